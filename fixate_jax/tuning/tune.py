"""Tuning and evaluation on sessions in memory: no files, any operator, loss and optimizer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from fixate_jax.backbones.loading import Backbone
from fixate_jax.data.page import Session
from fixate_jax.errors import ConfigError, DataError
from fixate_jax.evaluation.metrics import page_metrics
from fixate_jax.objective import Alignment, BoundAlignment, weighted_kl
from fixate_jax.probing import Operator, attn_lrp
from fixate_jax.probing.batches import Batch
from fixate_jax.probing.encode import session_data, with_soft_position
from fixate_jax.probing.look import Look, look
from fixate_jax.prompts import Position, PromptParams, init_prompt, population_prompt, soft_prompt
from fixate_jax.tuning.optimizer import make_optimizer
from fixate_jax.tuning.step import Objective, session_losses

FIXATE_ALIGNMENT = BoundAlignment(weighted_kl, (("gamma", 2.0),))
"""FixATE's alignment loss, the KL with importance weights."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Tuned:
    """Tuned soft prompts, and what it takes to use them.

    Attributes:
        prompt: basis and coefficients.
        users: whose the rows of the coefficients are.
        operator: how it was told where the model looks.
        position: where the soft prompt stands.
        assignment: how tokens were assigned to slots.
        history: means over the sessions of each epoch: loss, next_token, penalty, and alignment where there is one.
    """

    prompt: PromptParams
    users: tuple[str, ...]
    operator: Operator
    position: Position
    assignment: Literal["centre", "area"]
    history: dict[str, Float[np.ndarray, " epochs"]]

    def prompts(
        self, users: Sequence[str], *, unknown: Literal["error", "population"] = "error"
    ) -> Float[Array, "users tokens width"]:
        """Soft tokens of some users.

        Args:
            users: whose; may repeat.
            unknown: what to do with users who were not tuned: stop, or take the mean prompt.

        Raises:
            ConfigError: a user was not tuned.
        """
        row = {user: i for i, user in enumerate(self.users)}
        strangers = [user for user in users if user not in row]
        if strangers and unknown == "error":
            raise ConfigError(f"user {strangers[0]!r} was not tuned; there are {', '.join(self.users[:8])}")
        rows = np.array([row.get(user, len(self.users)) for user in users])
        own = soft_prompt(self.prompt, jnp.arange(len(self.users)))
        return jnp.concatenate([own, population_prompt(self.prompt)[None]])[rows]


def tune(
    backbone: Backbone,
    sessions: Sequence[Session],
    *,
    operator: Operator | None = None,
    alignment: Alignment | None = FIXATE_ALIGNMENT,
    optimizer: optax.GradientTransformation | None = None,
    prompt_tokens: int = 16,
    basis: int = 8,
    init_scale: float = 0.01,
    epochs: int = 30,
    batch: int = 8,
    ntp_weight: float = 0.5,
    attention_weight: float | Callable[[int], float] = 0.5,
    beta: float = 1e-3,
    relevance: Literal["click", "own"] = "click",
    position: Position = "before",
    assignment: Literal["centre", "area"] = "centre",
    seed: int = 0,
) -> Tuned:
    """Tune soft prompts of several people on sessions in memory: P_u = Σ_m softmax(z_u)_m B_m (FixATE).

    The weights stay as they are; only the basis B and one small vector z for each person are learned. Without
    `operator`, `alignment` and `optimizer` these are FixATE's AttnLRP, weighted KL, and AdamW with lazy updates. For a
    loop of your own, differentiate :func:`fixate_jax.probing.look.look`.

    Args:
        backbone: the frozen model.
        sessions: what people saw, looked at and clicked. To choose an epoch, keep some apart and tune for fewer epochs.
        operator: how to tell where the model looks.
        alignment: how that is compared with gaze, one number a page; None: next-token prediction alone.
        optimizer: of the `PromptParams`; the users of a step are given to `update` as ``present`` if it takes that.
        prompt_tokens: K, soft tokens of a prompt.
        basis: M, prompts that people mix theirs of.
        init_scale: standard deviation of the basis at the start.
        epochs: how often each session is seen.
        batch: sessions of an optimizer step.
        ntp_weight: weight of next-token prediction of the click.
        attention_weight: λ, or a schedule of it over the optimizer steps.
        beta: weight of mean‖z‖².
        relevance: whose answer's relevance is aligned, the clicked slot's label or the model's own answer.
        position: where the soft prompt stands.
        assignment: how tokens are assigned to slots.
        seed: of the basis and of the order of sessions.

    Raises:
        DataError: no session.
        LabelError: labels of a page do not suit the tokenizer.
        FloatingPointError: the loss is not finite.
    """
    if not sessions:
        raise DataError("tune: no session is given; give at least one")
    objective = Objective(
        operator=attn_lrp() if operator is None else operator,
        alignment=alignment,
        relevance=relevance,
        ntp_weight=ntp_weight,
        beta=beta,
    )
    users = tuple(dict.fromkeys(session.user for session in sessions))
    how: dict[str, Any] = {"prompt_tokens": prompt_tokens, "position": position, "assignment": assignment}
    data = session_data(backbone, sessions, signal="fixation", users=users, **how)
    sizes = {"basis": basis, "tokens": prompt_tokens, "users": len(users), "width": backbone.width}
    prompt = init_prompt(jax.random.key(seed), init_scale=init_scale, **sizes)
    rule = optax.with_extra_args_support(optimizer or make_optimizer())

    @jax.jit
    def step(prompt: PromptParams, state: Any, backbone: Backbone, batch: Batch, weight: Array) -> Any:
        losses = partial(session_losses, end_token=backbone.encoder.end_token)
        (_, parts), gradient = jax.value_and_grad(losses, has_aux=True)(
            prompt, backbone.model, batch, objective, weight
        )
        present = jnp.zeros(len(users), bool).at[batch.user].max(batch.weight > 0)
        updates, state = rule.update(gradient, state, prompt, present=present)
        return optax.apply_updates(prompt, updates), state, parts

    state, rng, taken, history = rule.init(prompt), np.random.default_rng(seed), 0, []
    schedule = attention_weight if callable(attention_weight) else lambda _: attention_weight
    for _ in range(epochs):
        order = rng.permutation(len(sessions))
        rows = np.pad(order, (0, -len(order) % batch), constant_values=-1).reshape(-1, batch)
        epoch = []
        for indices in rows:
            prompt, state, parts = step(
                prompt, state, backbone, data.batch([int(i) for i in indices]), jnp.float32(schedule(taken))
            )
            epoch.append((parts, (indices >= 0).mean()))
            taken += 1
        found, shares = jax.device_get([parts for parts, _ in epoch]), np.array([share for _, share in epoch])
        history.append({name: np.average([parts[name] for parts in found], weights=shares) for name in found[0]})
        if not np.isfinite(history[-1]["loss"]):
            raise FloatingPointError(f"tune: the loss of epoch {len(history)} is not finite; lower the learning rate")
    return Tuned(
        prompt=prompt,
        users=users,
        operator=objective.operator,
        position=position,
        assignment=assignment,
        history={name: np.array([epoch[name] for epoch in history]) for name in (history[0] if history else ())},
    )


@partial(jax.jit, static_argnames=("operator", "own"))
def _look(backbone: Backbone, batch: Batch, prompt: Any, operator: Operator, *, own: bool) -> Look:
    return look(backbone, batch, prompt, operator, answer="own" if own else batch.click)


def evaluate(
    backbone: Backbone,
    tuned: Tuned | None,
    sessions: Sequence[Session],
    *,
    operator: Operator | None = None,
    relevance: Literal["own", "click"] = "own",
    unknown: Literal["error", "population"] = "error",
    batch: int = 16,
    ks: tuple[int, ...] = (1, 3),
    top_k: int = 5,
) -> dict[str, Float[np.ndarray, " sessions"]]:
    """How close a model comes to people, session by session.

    Args:
        backbone: the frozen model.
        tuned: their prompts; None for the backbone alone.
        sessions: what they saw, looked at and clicked.
        operator: how to tell where it looks (None: as it was tuned, or FixATE's AttnLRP for the backbone alone).
        relevance: for which answer, the model's own (free-running) or the click (teacher-forced).
        unknown: what to do with people who were not tuned: stop, or take the mean prompt for them.
        batch: sessions at a time.
        ks: the k of csh_k, tgo_k and recall_k.
        top_k: slots that top-k JS keeps apart.

    Returns:
        Arrays by name, one number a session: what :func:`fixate_jax.evaluation.metrics.page_metrics` returns.

    Raises:
        DataError: no session.
        ConfigError: a user was not tuned.
    """
    if not sessions:
        raise DataError("evaluate: no session is given; give at least one")
    operator = operator or (attn_lrp() if tuned is None else tuned.operator)
    tokens = 0 if tuned is None else tuned.prompt.basis.shape[1]
    data = session_data(
        backbone,
        sessions,
        prompt_tokens=tokens,
        position="before" if tuned is None else tuned.position,
        assignment="centre" if tuned is None else tuned.assignment,
        signal="fixation",
    )
    soft = None if tuned is None else tuned.prompts([session.user for session in sessions], unknown=unknown)
    parts: list[dict[str, np.ndarray]] = []
    for first in range(0, len(sessions), batch):
        indices = list(range(first, min(first + batch, len(sessions))))
        filled = indices + [-1] * (batch - len(indices))
        rows = with_soft_position(data.batch(filled), tokens)
        prompt = None if soft is None else soft[np.maximum(filled, 0)]
        seen = _look(backbone, rows, prompt, operator, own=relevance == "own")
        found = page_metrics(
            rows.gaze,
            seen.slot_attention,
            seen.label_log_probs,
            rows.click,
            rows.slot_mask,
            ks=ks,
            top_k=top_k,
        )
        parts.append({name: np.asarray(value)[: len(indices)] for name, value in found.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
