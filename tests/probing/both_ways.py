"""A small world of each architecture, and what operators make of it: by the library, and by their definitions.

The library computes a batch of padded sequences with two answers each; the definition one sequence at a time, without
padding and without company. Where both agree, neither padding nor company matters.

Both architectures have the same decoder, and compiling its second derivatives is what takes the time here. So both
worlds have the same shapes: what comes before the decoder is each architecture's own program, the rest is compiled
once.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, cached_property
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fixate_jax.backbones import Backbone
from fixate_jax.backbones.decoder.decoder import Decoder
from fixate_jax.backbones.decoder.decoder_layer import DecoderConfig
from fixate_jax.backbones.inputs import Stream
from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.backbones.tiny.random import TinySizes, write_tiny_random
from fixate_jax.lab.config import OperatorConfig, PromptConfig, RunConfig
from fixate_jax.lab.parts import operator_of
from fixate_jax.probing import Trace, slot_attention, tail_gradient
from fixate_jax.probing.batches import Batch
from fixate_jax.probing.passes import target_logit
from fixate_jax.prompts import PromptParams, soft_prompt
from tests.worlds import World, numbers

QWEN, INTERN = "qwen3_vl", "internvl"
ARCHITECTURES = (QWEN, INTERN)
LAYERS, TAPPED = 3, 2
LEVELS = 2
"""DeepStack levels of the decoder; InternVL's are zero."""
SEQ = 120
"""Positions of the prefix, some of them padding in every sequence."""
PAGES: dict[str, tuple[tuple[int, int, int], ...]] = {
    QWEN: ((12, 128, 96), (3, 96, 64), (11, 96, 128)),
    INTERN: ((12, 128, 64), (3, 64, 64), (11, 64, 128)),
}
"""Slots and size; the most page tokens are 12 in both, InternVL's with the thumbnail's."""
EPS = 1e-4
"""ε of slot attention."""
SAME = 2e-5
"""How far two orders of summation may lie apart in float32."""
COMPANY = [2, 0, 0]
"""The sessions in another order and company."""
ANSWERS = 2
"""How many answers of each page are looked at."""
LOSSES = ("where it looks", "what it answers")


def small_world(directory: Path, family: str) -> World:
    """A model small enough for whole matrices; labels are of one token and of two."""
    sizes = TinySizes(
        family=family,  # type: ignore[arg-type]
        layers=LAYERS,
        width=48,
        ff=64,
        head_dim=16,
        vision_width=32,
        vision_ff=32,
    )
    path = write_tiny_random(directory / "model", sizes=sizes)
    config = RunConfig(
        backbone=BackboneConfig(path=str(path), tapped_layers=TAPPED), prompt=PromptConfig(basis=2, tokens=3)
    )
    return World(directory, sizes=PAGES[family], labels=numbers, config=config)


def host_prompt(world: World, seed: int) -> PromptParams:
    """A prompt of the size of real embeddings, with users that differ, drawn on the host."""
    rng = np.random.default_rng(seed)
    settings, users = world.config.prompt, len(world.data.user_rows)
    basis: Any = 0.5 * rng.standard_normal((settings.basis, settings.tokens, world.backbone.width))
    coefficients: Any = rng.standard_normal((users, settings.basis))
    return jax.tree.map(lambda x: x.astype(np.float32), PromptParams(basis, coefficients))


def padded(batch: Batch, seq: int) -> Batch:
    """The same sequences with more padding in front."""
    inputs, more = batch.inputs, seq - batch.inputs.token_ids.shape[1]

    def pad(x: Any, value: int = 0) -> np.ndarray:
        return np.pad(x, [(0, 0), (more, 0), *[(0, 0)] * (x.ndim - 2)], constant_values=value)

    return batch._replace(
        inputs=inputs._replace(
            token_ids=pad(inputs.token_ids),
            positions=pad(inputs.positions),
            visual_index=pad(inputs.visual_index, -1),
            start=inputs.start + more,
            visual_position=inputs.visual_position + more,
        )
    )


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
        """Two answers to each page of a batch on the host: the clicked slot's label and its neighbour's."""
        slots = (batch.click[:, None] + np.arange(ANSWERS)) % batch.slot_mask.sum(1)[:, None]
        rows = np.arange(len(slots))[:, None]
        inputs, branch = batch.inputs, slots if batch.inputs.tail_ids.shape[1] > 1 else np.zeros_like(slots)
        inputs = inputs._replace(
            tail_ids=inputs.tail_ids[rows, branch],
            tail_positions=inputs.tail_positions[rows, branch],
            tail_valid=inputs.tail_valid[rows, branch],
        )
        return cls(batch._replace(inputs=inputs), batch.answer_ids[rows, slots], batch.answer_mask[rows, slots])


class Wanted(NamedTuple):
    """What the losses are made of.

    Attributes:
        position: of each cell's page token.
        matrix: M.
        gaze: of each session.
        ids, mask: the answers' tokens.
    """

    position: Any
    matrix: Any
    gaze: Any
    ids: Any
    mask: Any

    @classmethod
    def of(cls, asked: Asked) -> "Wanted":
        """That of a batch."""
        batch = asked.batch
        return cls(batch.inputs.visual_position, batch.slot_matrix, batch.gaze, asked.ids, asked.mask)


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


def in_host_order(relevance: jax.Array, moved: jax.Array | None, seq: int) -> jax.Array:
    """Relevance with the prefix's padding in front, as the batch was put together."""
    if moved is None:
        return relevance
    places = (jnp.arange(seq) - moved[:, None]) % seq
    prefix = jax.vmap(lambda r, p: r[:, p])(relevance[..., :seq], places)
    return jnp.concatenate([prefix, relevance[..., seq:]], axis=-1)


def losses(relevance: jax.Array, logits: jax.Array, wanted: Wanted) -> tuple[jax.Array, jax.Array]:
    """Two numbers, and slot attention."""
    position = wanted.position[:, None]
    position = jnp.broadcast_to(position, (*relevance.shape[:2], position.shape[2]))
    tokens = jnp.abs(jnp.take_along_axis(relevance, position, axis=-1))
    slots = slot_attention(tokens, wanted.matrix, EPS)
    each = jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), wanted.ids[..., None], axis=-1)[..., 0]
    alignment = jnp.square(slots - wanted.gaze[:, None]).sum()
    return jnp.stack([alignment, -jnp.where(wanted.mask, each, 0).sum()]), slots


@contextmanager
def one_tail_gradient() -> Iterator[None]:
    """Operators that ask one trace for the same A[src] and G[src] get the same: half of the program is spared."""
    found: dict[tuple, Any] = {}

    def source_rows(trace: Trace, **settings: Any) -> Any:
        key = (id(trace), *settings.items())
        if key not in found:
            found[key] = tail_gradient.source_rows(trace, **settings)
        return found[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(import_module("fixate_jax.probing.operators.attn_lrp"), "source_rows", source_rows)
        yield


@cache
def decoder_graph(config: DecoderConfig) -> tuple[Any, DecoderConfig]:
    """Structure of the decoder that both architectures share; rotary angles and features are given to it."""
    config = replace(config, mrope_section=None, deepstack_levels=LEVELS)
    graph, _ = nnx.split(nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(0))))
    return graph, config


class DecoderAlone(NamedTuple):
    """What operators need of a model."""

    decoder: Any
    config: Any

    def tail(self, *arguments: Any) -> Any:
        """The decoder's."""
        return self.decoder.tail(*arguments)


@cache
def program(configs: tuple[tuple[str, OperatorConfig], ...], graph: Any, config: DecoderConfig) -> Any:
    """All that is to be known of some operators, from what enters the decoder.

    Args:
        configs: the operators, by name.
        graph, config: of the decoder.

    Returns:
        A compiled function, whose gradients are those in what enters the decoder.
    """

    def run(params: Any, start: Stream, wanted: Wanted) -> dict[str, Found]:
        decoder = nnx.merge(graph, params)

        def values(hidden: jax.Array) -> tuple[jax.Array, dict[str, Found]]:
            stream = start._replace(hidden=hidden)
            prefix = decoder.tapped(stream, decoder.below(stream))
            model = DecoderAlone(decoder, SimpleNamespace(decoder=config))
            trace = Trace(model, prefix, target_logit(wanted.ids, wanted.mask))
            with one_tail_gradient():
                probes = {name: operator_of(each)(trace) for name, each in configs}
            found: dict[str, Found] = {}
            for name, probe in probes.items():
                relevance = in_host_order(probe.relevance, start.moved, hidden.shape[1])
                each, slots = losses(relevance, probe.logits, wanted)
                found[name] = Found(each, relevance, slots, probe.logits, None)
            return jnp.concatenate([each.losses for each in found.values()]), found

        each, pullback, found = jax.vjp(values, start.hidden, has_aux=True)
        (gradient,) = jax.vmap(pullback)(jnp.eye(len(each), dtype=each.dtype))
        return {name: found[name]._replace(gradient=gradient[2 * i : 2 * i + 2]) for i, (name, _) in enumerate(configs)}

    return jax.jit(run)


class Subject:
    """A world, and what operators make of it; programs are compiled when they are first asked for, and kept."""

    def __init__(self, world: World):
        """Of a world whose sessions fit into one batch."""
        self.world, self.backbone = world, world.backbone
        batch: Batch = jax.tree.map(np.asarray, world.data.batch(range(len(world.sessions))))
        self.asked = Asked.of(padded(batch, SEQ))
        self.prompts = [host_prompt(world, seed) for seed in (0, 1)]
        self.decoder = jax.device_get(self.backbone.params["decoder"])
        self._defined: dict[tuple, dict[str, Found]] = {}

        def start(prompt: PromptParams, params: Any, asked: Asked) -> Stream:
            """What enters the decoder."""
            soft = soft_prompt(prompt, asked.batch.user)
            stream = self.backbone.merge(params).decoder.start(asked.batch.inputs, soft)
            none = jnp.zeros((LEVELS - len(stream.deep), *stream.hidden.shape))
            return stream._replace(deep=jnp.concatenate([stream.deep, none]))

        def pull(prompt: PromptParams, params: Any, asked: Asked, cotangent: Any) -> PromptParams:
            """The prompt's gradients, from those of two losses in what enters the decoder."""
            back = jax.vjp(lambda p: start(p, params, asked).hidden, prompt)[1]
            return jax.vmap(back)(cotangent)[0]

        self._start, self._pull = jax.jit(start), jax.jit(pull)

    @cached_property
    def last_tapped(self) -> Any:
        """The decoder's weights where only its last layer is tapped."""
        state = dict(self.decoder)
        lower = jax.tree.map(lambda *parts: np.concatenate(parts), state["lower"], state.pop("upper"))
        return nnx.State(state | {"lower": lower})

    def run(
        self,
        configs: dict[str, OperatorConfig],
        prompt: PromptParams,
        rows: Sequence[int] | None = None,
        how: dict[str, Any] | None = None,
    ) -> dict[str, Found]:
        """What the library makes of some operators.

        Args:
            configs: settings of each.
            prompt: the soft prompt.
            rows: which sessions, as many as there are (None: each once).
            how: settings of the decoder.
        """
        asked = self.asked if rows is None else jax.tree.map(lambda x: x[np.asarray(rows)], self.asked)
        arguments = (prompt, self.backbone.params, asked)
        config = replace(self.backbone.config.decoder, **(how or {}))
        run = program(tuple(configs.items()), *decoder_graph(config))
        weights = self.decoder if config.tapped == TAPPED else self.last_tapped
        found = run(weights, self._start(*arguments), Wanted.of(asked))
        return {
            name: jax.device_get(each._replace(gradient=self._pull(*arguments, each.gradient)))
            for name, each in found.items()
        }

    def defined(self, configs: dict[str, OperatorConfig], seed: int) -> dict[str, Found]:
        """What some operators are by definition, with one of the prompts."""
        from tests.probing.definition import by_definition
        from tests.probing.whole_model import WholeModel

        key = (tuple(configs.items()), seed)
        if key not in self._defined:
            self._defined[key] = by_definition(WholeModel(self.backbone), configs, self.asked, self.prompts[seed])
        return self._defined[key]


def relative(ours: Any, theirs: Any) -> float:
    """‖ours − theirs‖ / ‖theirs‖."""
    ours, theirs = (np.asarray(x, np.float64) for x in (ours, theirs))
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


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


def check_against_definition(
    subject: Subject,
    configs: dict[str, OperatorConfig],
    how: dict[str, Any] | None = None,
    loose: Sequence[str] = (),
) -> None:
    """In float32 against the definition in float64: values to 1e-5, gradients to 1e-4.

    Both prompts are run through one compiled program.

    Args:
        subject: the world.
        configs: the operators.
        how: settings of the decoder.
        loose: those whose values are held to 1e-4 only.
    """
    for seed, prompt in enumerate(subject.prompts):
        ours, theirs = subject.run(configs, prompt, how=how), subject.defined(configs, seed)
        for name in configs:
            found = differences(ours[name], theirs[name], subject.asked.mask)
            print(f"\n{name}, prompt {seed}: " + ", ".join(f"{k} {v:.0e}" for k, v in found.items()), end="")
            for figure, difference in found.items():
                limit = 1e-4 if "gradient" in figure or name in loose else 1e-5
                assert difference <= limit, (name, figure)
            slots = ours[name].slots
            assert (slots >= 0).all() and (slots.sum(-1) <= 1 + 1e-6).all(), "a share of the slots"


def check_company_and_order(
    subject: Subject, configs: dict[str, OperatorConfig], how: dict[str, Any] | None = None
) -> None:
    """Whatever else is in the batch, slot attention is what the definition gives for a session without padding."""
    ours, alone = subject.run(configs, subject.prompts[0], COMPANY, how), subject.defined(configs, 0)
    for name in configs:
        np.testing.assert_allclose(ours[name].slots, alone[name].slots[COMPANY], atol=SAME, err_msg=name)
