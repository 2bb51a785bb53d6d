"""A small world of each architecture, and what operators make of it: by the library, and by their definitions.

The library computes a batch of padded sequences with two answers each; the definition one sequence at a time, without
padding and without company. Where both agree, neither padding nor company matters.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fixate_jax.backbones import Backbone, load_backbone
from fixate_jax.backbones.tiny_random import TinySizes, write_tiny_random
from fixate_jax.config import BackboneConfig, OperatorConfig, PromptConfig, RunConfig
from fixate_jax.probing import OPERATORS, Trace, slot_attention, tail_gradient
from fixate_jax.prompts import PromptParams, soft_prompt
from fixate_jax.tuning.batches import Batch
from fixate_jax.tuning.step import target_logit
from tests.worlds import World, letters, numbers

QWEN, INTERN = "qwen3_vl", "internvl"
ARCHITECTURES = (QWEN, INTERN)
EPS = 1e-4
"""ε of slot attention."""
SAME = 2e-5
"""How far two orders of summation may lie apart in float32."""
AT_EMBEDDINGS = {"input_gradient", "integrated_gradients", "lrp"}
"""Operators that end at the embeddings, and go through the whole of the decoder."""
ANSWERS = 2
"""How many answers of each page are looked at."""


class Case(NamedTuple):
    """A small model of one architecture, what stands on its pages, and how its decoder is run.

    Attributes:
        layers, tapped: of the decoder.
        labels, pages: see :class:`tests.worlds.World`.
        how: settings of the backbone for operators that read the tapped layers.
        whole: what is different for those that end at the embeddings.
    """

    layers: int
    tapped: int
    labels: Any
    pages: tuple[tuple[int, int, int], ...]
    how: dict[str, Any]
    whole: dict[str, Any]


CASES = {
    QWEN: Case(
        layers=3,
        tapped=2,
        labels=numbers,
        pages=((12, 128, 96), (3, 96, 64), (11, 96, 128)),
        how={"remat": "none"},
        whole={"tapped_layers": 1},
    ),
    INTERN: Case(
        layers=2,
        tapped=2,
        labels=letters,
        pages=((4, 128, 64), (25, 64, 64)),
        how={"attention": "blocked", "attention_block": 16},
        whole={"attention": "auto", "attention_block": 256},
    ),
}
"""Between them: labels of one and of two tokens; DeepStack; layers below the tapped ones and none; padding moved behind
the sequence and hidden in front of it; attention in one block and in many; states kept and computed again."""


def small_world(directory: Path, case: str) -> World:
    """A model small enough for whole matrices."""
    made = CASES[case]
    sizes = TinySizes(
        family=case,  # type: ignore[arg-type]
        layers=made.layers,
        width=48,
        ff=64,
        head_dim=16,
        vision_width=32,
        vision_ff=32,
    )
    path = write_tiny_random(directory / "model", sizes=sizes)
    backbone = BackboneConfig(path=str(path), tapped_layers=made.tapped, **made.how)
    config = RunConfig(backbone=backbone, prompt=PromptConfig(basis=2, tokens=3))
    return World(directory, sizes=made.pages, labels=made.labels, config=config)


def rebuilt(backbone: Backbone, **decoder: Any) -> Backbone:
    """The same weights, their decoder being run with other settings."""
    config = replace(backbone.config, decoder=replace(backbone.config.decoder, **decoder))
    graph, _ = nnx.split(nnx.eval_shape(lambda: backbone.family.build(config, nnx.Rngs(0))))
    return replace(backbone, graph=graph, config=config)


def host_prompt(world: World, seed: int) -> PromptParams:
    """A prompt of the size of real embeddings, with users that differ, drawn on the host."""
    rng = np.random.default_rng(seed)
    settings, users = world.config.prompt, len(world.data.user_rows)
    basis: Any = 0.5 * rng.standard_normal((settings.basis, settings.tokens, world.backbone.width))
    coefficients: Any = rng.standard_normal((users, settings.basis))
    return jax.tree.map(lambda x: x.astype(np.float32), PromptParams(basis, coefficients))


def chosen_slots(batch: Batch) -> np.ndarray:
    """Two answers to each page: the clicked slot's label and its neighbour's."""
    click, slots = np.asarray(batch.click), np.asarray(batch.slot_mask).sum(1)
    return np.stack([(click + i) % slots for i in range(ANSWERS)], axis=1)


class Asked(NamedTuple):
    """What a program is run on, the answers being picked on the host.

    Attributes:
        batch: the sessions, their inputs' branches being the answers.
        ids, mask: the answers' tokens.
    """

    batch: Batch
    ids: Any
    mask: Any

    @classmethod
    def of(cls, batch: Batch) -> "Asked":
        """The chosen answers of a batch on the host."""
        slots = chosen_slots(batch)
        rows = np.arange(len(slots))[:, None]
        inputs, branch = batch.inputs, slots if batch.inputs.tail_ids.shape[1] > 1 else np.zeros_like(slots)
        inputs = inputs._replace(
            tail_ids=inputs.tail_ids[rows, branch],
            tail_positions=inputs.tail_positions[rows, branch],
            tail_valid=inputs.tail_valid[rows, branch],
        )
        return cls(batch._replace(inputs=inputs), batch.answer_ids[rows, slots], batch.answer_mask[rows, slots])


class Found(NamedTuple):
    """What is known of one operator.

    Attributes:
        losses: two numbers, of which one depends on where the model looks and one on what it answers.
        relevance: (batch, answer, keys), of all positions, padding where the host put it.
        slots: (batch, answer, slots), slot attention.
        logits: (batch, answer, tail, vocab).
        gradient: of each loss, a :class:`PromptParams`.
    """

    losses: Any
    relevance: Any
    slots: Any
    logits: Any
    gradient: Any


def trace_of(backbone: Backbone, params: Any, prompt: PromptParams, asked: Asked) -> Trace:
    """The stopped model on the chosen answers."""
    model = backbone.merge(params)
    prefix = model.prefill(asked.batch.inputs, soft_prompt(prompt, asked.batch.user))
    return Trace(model, prefix, target_logit(asked.ids, asked.mask))


@contextmanager
def one_tail_gradient() -> Iterator[None]:
    """Operators that ask one trace for the same A[src] and G[src] get the same: half of the program is spared."""
    found: dict[tuple, Any] = {}

    def source_rows(trace: Trace, config: OperatorConfig) -> Any:
        key = (id(trace), config.grad_scale, config.stop_gradient)
        if key not in found:
            found[key] = tail_gradient.source_rows(trace, config)
        return found[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(import_module("fixate_jax.probing.attn_lrp"), "source_rows", source_rows)
        yield


def in_host_order(relevance: jax.Array, moved: jax.Array | None, seq: int) -> jax.Array:
    """Relevance with the prefix's padding in front, as the batch was put together."""
    if moved is None:
        return relevance
    places = (jnp.arange(seq) - moved[:, None]) % seq
    prefix = jax.vmap(lambda r, p: r[:, p])(relevance[..., :seq], places)
    return jnp.concatenate([prefix, relevance[..., seq:]], axis=-1)


def losses(relevance: jax.Array, logits: jax.Array, asked: Asked) -> tuple[jax.Array, jax.Array]:
    """Two numbers, and slot attention."""
    batch = asked.batch
    position = batch.inputs.visual_position[:, None]
    position = jnp.broadcast_to(position, (*relevance.shape[:2], position.shape[2]))
    tokens = jnp.abs(jnp.take_along_axis(relevance, position, axis=-1))
    slots = slot_attention(tokens, batch.slot_matrix, EPS)
    each = jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), asked.ids[..., None], axis=-1)[..., 0]
    alignment = jnp.square(slots - batch.gaze[:, None]).sum()
    return jnp.stack([alignment, -jnp.where(asked.mask, each, 0).sum()]), slots


def program(backbone: Backbone, configs: dict[str, OperatorConfig]) -> Any:
    """All that is to be known of some operators, in one compiled program."""

    def values(prompt: PromptParams, params: Any, asked: Asked) -> tuple[jax.Array, dict[str, Found]]:
        trace = trace_of(backbone, params, prompt, asked)
        found: dict[str, Found] = {}
        seq = asked.batch.inputs.token_ids.shape[1]
        with one_tail_gradient():
            probes = {name: OPERATORS[config.name](trace, config) for name, config in configs.items()}
        for name, probe in probes.items():
            relevance = in_host_order(probe.relevance, trace.prefix.start.moved, seq)
            each, slots = losses(relevance, probe.logits, asked)
            found[name] = Found(each, relevance, slots, probe.logits, None)
        return jnp.concatenate([each.losses for each in found.values()]), found

    def run(prompt: PromptParams, params: Any, asked: Asked) -> dict[str, Found]:
        each, pullback, found = jax.vjp(lambda p: values(p, params, asked), prompt, has_aux=True)
        (gradient,) = jax.vmap(pullback)(jnp.eye(len(each), dtype=each.dtype))
        return {
            name: found[name]._replace(gradient=jax.tree.map(lambda g, i=i: g[2 * i : 2 * i + 2], gradient))
            for i, name in enumerate(configs)
        }

    return jax.jit(run)


class Subject:
    """A world, and what operators make of it; programs are compiled when they are first asked for, and kept."""

    def __init__(self, world: World, case: str):
        """Of a world whose sessions fit into one batch."""
        self.world, self.case, self.backbone = world, case, world.backbone
        self.whole = load_backbone(replace(world.config.backbone, **CASES[case].whole))
        self.batch: Batch = jax.tree.map(np.asarray, world.data.batch(range(len(world.sessions))))
        assert self.batch.inputs.start.max() > 0, "some sequence is padded"
        self.asked = Asked.of(self.batch)
        self.prompts = [host_prompt(world, seed) for seed in (0, 1)]
        self._programs: dict[tuple, Any] = {}
        self._results: dict[tuple, dict[str, Found]] = {}

    def run(
        self, configs: dict[str, OperatorConfig], prompt: PromptParams, rows: Sequence[int] | None = None
    ) -> dict[str, Found]:
        """What the library makes of some operators.

        Args:
            configs: settings of each.
            prompt: the soft prompt.
            rows: which sessions, as many as there are (None: each once).
        """
        ends = {config.name for config in configs.values()} <= AT_EMBEDDINGS
        backbone = self.whole if ends else self.backbone
        key = tuple(configs.items())
        if key not in self._programs:
            self._programs[key] = program(backbone, configs)
        asked = self.asked if rows is None else jax.tree.map(lambda x: x[np.asarray(rows)], self.asked)
        found: dict[str, Found] = jax.device_get(self._programs[key](prompt, backbone.params, asked))
        return found

    def defined(self, configs: dict[str, OperatorConfig], seed: int) -> dict[str, Found]:
        """What some operators are by definition, with one of the prompts."""
        from tests.probing.definition import by_definition
        from tests.probing.whole_model import WholeModel

        key = (tuple(configs.items()), seed)
        if key not in self._results:
            self._results[key] = by_definition(WholeModel(self.backbone), configs, self.asked, self.prompts[seed])
        return self._results[key]


def relative(ours: Any, theirs: Any) -> float:
    """‖ours − theirs‖ / ‖theirs‖."""
    ours, theirs = (np.asarray(x, np.float64) for x in (ours, theirs))
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


LOSSES = ("where it looks", "what it answers")


def differences(ours: Found, theirs: Found, mask: np.ndarray) -> dict[str, float]:
    """How far two findings are apart; logits count where the answer's tokens are predicted."""
    found = {
        "relevance": relative(ours.relevance, theirs.relevance),
        "slots": relative(ours.slots, theirs.slots),
        "logits": relative(ours.logits[mask], theirs.logits[mask]),
    }
    for i, name in enumerate(LOSSES):
        found[name] = relative(ours.losses[i], theirs.losses[i])
        for part in ("basis", "coefficients"):
            mine, true = getattr(ours.gradient, part)[i], getattr(theirs.gradient, part)[i]
            assert true.any(), f"{name} depends on the prompt's {part}"
            found[f"{name}, gradient in {part}"] = relative(mine, true)
    return found


def check_against_definition(subject: Subject, configs: dict[str, OperatorConfig], loose: Sequence[str] = ()) -> None:
    """In float32 against the definition in float64: values to 1e-5, gradients to 1e-4.

    Both prompts are run through one compiled program.

    Args:
        subject: the world.
        configs: the operators.
        loose: those whose values are held to 1e-4 only.
    """
    for seed, prompt in enumerate(subject.prompts):
        ours, theirs = subject.run(configs, prompt), subject.defined(configs, seed)
        for name in configs:
            found = differences(ours[name], theirs[name], subject.asked.mask)
            print(f"\n{name}, prompt {seed}: " + ", ".join(f"{k} {v:.0e}" for k, v in found.items()), end="")
            for figure, difference in found.items():
                limit = 1e-4 if "gradient" in figure or name in loose else 1e-5
                assert difference <= limit, (name, figure)
            slots = ours[name].slots
            assert (slots >= 0).all() and (slots.sum(-1) <= 1 + 1e-6).all(), "a share of the slots"


def check_company_and_order(subject: Subject, configs: dict[str, OperatorConfig], rows: Sequence[int]) -> None:
    """Whatever else is in the batch, slot attention is what the definition gives for a session without padding."""
    ours, alone = subject.run(configs, subject.prompts[0], rows), subject.defined(configs, 0)
    for name in configs:
        np.testing.assert_allclose(ours[name].slots, alone[name].slots[list(rows)], atol=SAME, err_msg=name)
