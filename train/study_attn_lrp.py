"""Why AttnLRP as published resists steering on small models: its rows, its gradient, and what other divisors change.

    python train/study_attn_lrp.py --backbones tiny-qwen3-vl tiny-internvl

For every backbone and every way of dividing W = A ⊙ G by row (all other settings being those of
configs/demo.yaml, with its former weight of alignment, 2):

- rows: at the first prompt, how far the row sums D = ΣW cancel, and how much of all relevance comes from the rows that
  cancel most;
- gradient: how much of a session's gradient of the alignment loss is common to all sessions, and how far along the
  mean gradient the loss falls as its slope promises;
- steering: the same loss before and after a short tuning, on validation sessions.

Tables go to the output directory as they are made; a variant that is there is not computed again.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import tyro
from jax.flatten_util import ravel_pytree

from fixate_jax.backbones import take_branches
from fixate_jax.data.registry import open_or_prepare
from fixate_jax.lab.config import RunConfig
from fixate_jax.lab.experiments.programs import make_evaluate, make_train_step
from fixate_jax.lab.experiments.workspace import Workspace, open_workspace
from fixate_jax.lab.parts import OPERATORS, objective_of, operator_of, optimizer_of
from fixate_jax.lab.report.tables import to_markdown
from fixate_jax.lab.settings import load_config
from fixate_jax.objective import kl, session_mean
from fixate_jax.probing import Operator, Probe, Trace, gather_visual, slot_attention
from fixate_jax.probing.batches import Batch, TrainingPlan, evaluation_batches, training_iterator
from fixate_jax.probing.layer_weights import depth_weights
from fixate_jax.probing.operators.attn_lrp import normalise_rows
from fixate_jax.probing.passes import target_logit
from fixate_jax.probing.tail_gradient import source_rows
from fixate_jax.prompts import PromptParams, init_prompt, soft_prompt
from fixate_jax.runtime.progress import track
from fixate_jax.tuning.step import TrainState

ROOT = Path(__file__).resolve().parents[1]
Rows = Any
"""W of every tapped layer, session, branch, head and position."""


def _signed(eps: float) -> Callable[[Rows], Rows]:
    return lambda weighted: normalise_rows(weighted, how="signed", eps=eps).mean(3)


def _pooled(weighted: Rows) -> Rows:
    """Heads added up before anything is divided."""
    return normalise_rows(weighted.sum(3), how="signed", eps=1e-4)


def _by_size(weighted: Rows) -> Rows:
    """Heads weighted by |D|, which takes the division by a small D back."""
    total = weighted.sum(-1, keepdims=True)
    return (jnp.sign(total) * weighted).sum(3) / (jnp.abs(total).sum(3) + 1e-4)


VARIANTS: dict[str, Callable[[Rows], Rows]] = {
    "signed, ε 1e-4 (published)": _signed(1e-4),
    "signed, ε 1e-2": _signed(1e-2),
    "signed, ε 1e-1": _signed(1e-1),
    "signed, ε 1": _signed(1.0),
    "signed, heads pooled": _pooled,
    "signed, heads weighted by size": _by_size,
    "positive part": lambda weighted: normalise_rows(weighted, how="positive", eps=1e-4).mean(3),
    "abs": lambda weighted: normalise_rows(weighted, how="abs", eps=1e-4).mean(3),
}
ATTENTION = "attention (no gradient)"
STEPS = (0.001, 0.01, 0.1)
"""Lengths of a step along the mean gradient, relative to the prompt's."""


def dividing(divide: Callable[[Rows], Rows]) -> Operator:
    """AttnLRP with another way of dividing rows."""

    def operator(trace: Trace) -> Probe:
        logits, rows, gradient = source_rows(trace, grad_scale=0.1, stop_gradient=False)
        weights = depth_weights(len(rows))
        return Probe(logits, jnp.einsum("l,lbck->bck", weights, divide(rows * gradient)))

    return operator


@dataclass(frozen=True)
class Study:
    """One backbone with its sessions."""

    workspace: Workspace
    prompt: PromptParams

    def _trace(self, prompt: PromptParams, params: Any, batch: Batch) -> tuple[Trace, Any]:
        model = self.workspace.backbone.merge(params)
        rows = jnp.arange(len(batch.click))
        ids, mask = batch.answer_ids[rows, batch.click][:, None], batch.answer_mask[rows, batch.click][:, None]
        inputs = take_branches(batch.inputs, batch.click[:, None])
        prefix = model.prefill(inputs, soft_prompt(prompt, batch.user))
        return Trace(model, prefix, target_logit(ids, mask)), inputs

    def row_sums(self, batch: Batch) -> dict[str, float]:
        """How far rows of W cancel at the first prompt; coherence is |ΣW| / Σ|W| of a row."""

        def weighted(prompt: PromptParams, params: Any, batch: Batch) -> Rows:
            _, rows, gradient = source_rows(self._trace(prompt, params, batch)[0], grad_scale=0.1, stop_gradient=False)
            return rows * gradient

        rows = np.asarray(jax.jit(weighted)(self.prompt, self.workspace.params, batch), np.float64)[:, :, 0]
        total, size = rows.sum(-1), np.abs(rows).sum(-1)
        coherence = (np.abs(total) / size).ravel()
        cancelling = np.argsort(coherence)[: max(len(coherence) // 10, 1)]
        return {
            "negative": float((total < 0).mean()),
            "coherence, 5%": float(np.quantile(coherence, 0.05)),
            "coherence, median": float(np.median(coherence)),
            "relevance of the tenth that cancels most": float(
                (1 / coherence[cancelling]).sum() / (1 / coherence).sum()
            ),
            "its part of W": float(size.ravel()[cancelling].sum() / size.sum()),
            "median size of D": float(np.median(np.abs(total))),
        }

    def losses(self, name: str) -> Callable[[PromptParams, Any, Batch], jax.Array]:
        """Alignment loss of a batch."""
        config = self.workspace.config
        operator, alignment = operator_of(replace(config.operator, name=name)), objective_of(config).alignment
        assert alignment is not None

        def loss(prompt: PromptParams, params: Any, batch: Batch) -> jax.Array:
            trace, inputs = self._trace(prompt, params, batch)
            relevance = operator(trace).relevance
            tokens = gather_visual(relevance, inputs.visual_position, trace.prefix.start.moved)
            attention = slot_attention(tokens, batch.slot_matrix, config.operator.eps)[:, 0]
            return session_mean(alignment(batch.gaze, attention, batch.slot_mask), batch.weight)

        return loss

    def gradient(self, name: str, batch: Batch) -> dict[str, float]:
        """How much of the sessions' gradients is common, and how far the mean gradient can be trusted.

        Gradients that have nothing in common have a signal ÷ noise of about 1/√sessions.
        """
        loss, params = self.losses(name), self.workspace.params

        def each(prompt: PromptParams, params: Any, batch: Batch) -> Any:
            one = lambda b: ravel_pytree(jax.grad(loss)(prompt, params, jax.tree.map(lambda x: x[None], b)))[0]  # noqa: E731
            return jax.lax.map(one, batch)

        found = np.asarray(jax.jit(each)(self.prompt, params, batch), np.float64)
        mean, size = found.mean(0), np.linalg.norm(found, axis=1)
        others = (found.sum(0) - found) / (len(found) - 1)
        cosine = (found * others).sum(1) / (size * np.linalg.norm(others, axis=1))
        noise = np.sqrt(((found - mean) ** 2).sum(1).mean())
        flat, back = ravel_pytree(self.prompt)
        value, slope = jax.jit(loss), np.linalg.norm(mean)
        before = float(value(self.prompt, params, batch))
        kept = {}
        for length in STEPS:
            step = length * float(jnp.linalg.norm(flat))
            moved = back(flat - jnp.asarray(step * mean / slope, flat.dtype))
            kept[f"kept at {length:.1%}"] = (before - float(value(moved, params, batch))) / (step * slope)
        return {
            "signal ÷ noise": slope / noise,
            "cosine to the others": float(np.median(cosine)),
            "largest ÷ median size": float(size.max() / np.median(size)),
            **kept,
        }

    def steer(self, name: str, steps: int) -> dict[str, float]:
        """Tune for some steps; loss, accuracy and the share of users that gain, on validation sessions."""
        workspace = self.workspace
        config = replace(workspace.config, operator=replace(workspace.config.operator, name=name))
        users = len(workspace.users)
        plan = TrainingPlan(
            workspace.data, workspace.splits["train"], rows=config.train.batch, seed=0, epochs=config.train.epochs
        )
        step = make_train_step(workspace.backbone.graph, config, users=users, steps=steps)
        optimizer = optimizer_of(config.optimizer, personal=True)
        prompt = jax.tree.map(jnp.copy, self.prompt)
        state = TrainState(prompt, optimizer.init(prompt), jnp.int32(0))
        evaluate = make_evaluate(workspace.backbone.graph, config, workspace.backbone.encoder.end_token)
        before = self._validate(evaluate, state.prompt)
        batches = iter(training_iterator(workspace.data, plan, accumulate=1))
        for _ in track(range(steps), name):
            state, _ = step(state, workspace.params, workspace.place(next(batches), micro=True))
        after = self._validate(evaluate, state.prompt)
        gained = (after - before).groupby("user").mean()
        return {
            "KL before": before["kl"].mean(),
            "KL after": after["kl"].mean(),
            "users better": float((gained["kl"] < 0).sum()),
            "accuracy before": before["right"].mean(),
            "accuracy after": after["right"].mean(),
        }

    def _validate(self, evaluate: Any, prompt: PromptParams) -> pd.DataFrame:
        rows, workspace = [], self.workspace
        indices = workspace.splits["validation"]
        for chosen in evaluation_batches(workspace.data, indices, workspace.config.train.eval_batch):
            batch = workspace.place(workspace.data.batch(chosen))
            found = evaluate(soft_prompt(prompt, batch.user), True, workspace.params, batch)
            loss = kl(batch.gaze, found.teacher_forced, batch.slot_mask)
            rows.append(
                pd.DataFrame(
                    {
                        "session": chosen,
                        "user": np.asarray(batch.user),
                        "kl": np.asarray(loss),
                        "right": np.asarray(found.answer == batch.click, float),
                    }
                ).drop_duplicates("session")
            )
        return pd.concat(rows).set_index(["session", "user"])


def kept_or_made(path: Path, make: Callable[[], dict[str, float]]) -> dict[str, float]:
    """A finished result from disk, or a new one, written when it is whole."""
    if path.exists():
        return dict(json.loads(path.read_text(encoding="utf-8")))
    made = {key: float(value) for key, value in make().items()}
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(made), encoding="utf-8")
    temporary.replace(path)
    return made


def study(config: RunConfig, out: Path, *, sessions: int, steps: int) -> dict[str, pd.DataFrame]:
    """All tables of one backbone."""
    workspace = open_workspace(config, open_or_prepare(config.data), directory=out)
    prompt = init_prompt(
        jax.random.key(0), **config.prompt.sizes, users=len(workspace.users), width=workspace.backbone.width
    )
    found = Study(workspace, prompt)
    chosen = np.random.default_rng(0).choice(workspace.splits["train"], sessions, replace=False)
    batch = workspace.place(workspace.data.batch([int(i) for i in chosen]))
    names = [*VARIANTS, ATTENTION]
    slug = {name: f"{i:02d}" for i, name in enumerate(names)}
    tables: dict[str, dict[str, dict[str, float]]] = {
        "rows": {"all": kept_or_made(out / "rows.json", lambda: found.row_sums(batch))},
        "gradient": {},
        "steering": {},
    }
    for name in names:
        tables["gradient"][name] = kept_or_made(
            out / f"gradient-{slug[name]}.json", partial(found.gradient, name, batch)
        )
        tables["steering"][name] = kept_or_made(out / f"steering-{slug[name]}.json", partial(found.steer, name, steps))
    return {
        kind: pd.DataFrame.from_dict(rows, orient="index").rename_axis("variant").reset_index()
        for kind, rows in tables.items()
    }


def main(
    out: Path = Path("runs/attn-lrp-study"),
    backbones: tuple[str, ...] = ("tiny-qwen3-vl", "tiny-internvl"),
    sessions: int = 64,
    steps: int = 200,
) -> None:
    """Run the study and print its tables.

    Args:
        out: where everything goes.
        backbones: names or directories.
        sessions: training sessions whose rows and gradients are looked at.
        steps: of the short tuning.
    """
    for name, divide in VARIANTS.items():
        OPERATORS[name] = dividing(divide)
    OPERATORS[ATTENTION] = OPERATORS["attention"]
    preset = load_config(ROOT / "configs" / "demo.yaml")
    for backbone in backbones:
        config = replace(
            preset,
            backbone=replace(preset.backbone, path=backbone),
            operator=replace(preset.operator, name="attn_lrp"),
            objective=replace(preset.objective, attention_weight=2.0),
        )
        folder = out / Path(backbone).name
        folder.mkdir(parents=True, exist_ok=True)
        for kind, table in study(config, folder, sessions=sessions, steps=steps).items():
            table.to_csv(folder / f"{kind}.csv", index=False)
            print(f"\n### {Path(backbone).name}: {kind}\n\n{to_markdown(table, 3)}")


if __name__ == "__main__":
    tyro.cli(main)
