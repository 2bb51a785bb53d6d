"""The operators on attention and gradients that are given, against the definitions on whole matrices."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fixate_jax.backbones.inputs import Prefix, Stream, TailOutput, WholeRows
from fixate_jax.lab.config import OperatorConfig
from fixate_jax.lab.parts import operator_of
from fixate_jax.probing import Trace
from fixate_jax.probing.operators.attn_lrp import normalise_rows
from fixate_jax.probing.slots import slot_attention
from tests.probing import whole_matrix

torch = whole_matrix.torch

LAYERS, BATCH, SEQ, TAIL, HEADS, KV, HEAD = 3, 2, 6, 2, 4, 2, 3
KEYS = SEQ + TAIL


class Given:
    """In place of a decoder: it attends as it is told, and ℓ is a sum of products with what is added to it."""

    def __init__(self, seed: int, kind: Any):
        rng = np.random.default_rng(seed)

        def draw(*shape: int) -> jax.Array:
            return jnp.asarray(rng.normal(size=shape), kind)

        self.config = SimpleNamespace(heads=HEADS, attention_block=4)
        self.query = draw(LAYERS - 1, BATCH, SEQ, HEADS, HEAD)
        self.key, self.value = (draw(LAYERS, BATCH, SEQ, KV, HEAD) for _ in range(2))
        self.tail_value = draw(LAYERS, BATCH, 1, TAIL, KV, HEAD)
        self.valid = jnp.arange(SEQ) >= jnp.array([[0], [2]])
        self.tail_valid = jnp.ones((BATCH, 1, TAIL), bool).at[1, 0, 0].set(False)
        seen = jnp.concatenate([self.valid, self.tail_valid[:, 0]], axis=1)[:, None]
        seen = seen & jnp.tril(jnp.ones((KEYS, KEYS), bool))[None, SEQ:]
        scores = jnp.where(seen[None, :, None], draw(LAYERS, BATCH, HEADS, TAIL, KEYS), -1e30)
        self.rows = jax.nn.softmax(scores, axis=-1)[:, :, None]
        # Nothing depends on what is computed at padding.
        self.slope = draw(LAYERS, BATCH, 1, HEADS, TAIL, KEYS) * self.tail_valid[:, :, None, :, None]
        self.cotangent = draw(LAYERS - 1, BATCH, SEQ, HEADS, HEAD) * self.valid[..., None, None]

    def whole_rows(self, below: Stream, rules: Any = None, taps: jax.Array | None = None) -> WholeRows:
        moved = 0 if taps is None else (taps * self.cotangent).sum((0, 2, 3, 4))[:, None, None, None]
        return WholeRows(self.query, self.key.at[-1].add(moved), self.value)

    def tail(self, prefix: Prefix, taps: jax.Array | None = None) -> TailOutput:
        score = (prefix.key[-1] - self.key[-1])[:, :1, 0, 0]
        score = score if taps is None else score + (taps * self.slope).sum((0, 3, 4, 5))
        logits = jnp.zeros((BATCH, 1, TAIL, 2), self.key.dtype).at[:, :, -1, 1].set(score)
        return TailOutput(logits, self.rows, self.tail_value)

    def trace(self) -> Trace:
        empty = jnp.zeros((BATCH, SEQ, 1), self.key.dtype)
        below = Stream(
            hidden=empty,
            deep=empty[None],
            angles=empty,
            valid=self.valid,
            visual=self.valid,
            moved=None,
            tail_hidden=jnp.zeros((BATCH, 1, TAIL, 1), self.key.dtype),
            tail_angles=jnp.zeros((BATCH, 1, TAIL, 1), self.key.dtype),
            tail_valid=self.tail_valid,
        )
        model = SimpleNamespace(config=SimpleNamespace(decoder=self.config), decoder=self, tail=self.tail)
        return Trace(model, Prefix(self.key, self.value, below, below), lambda logits: logits[..., -1, 1])

    def matrices(self) -> tuple[list[jax.Array], list[jax.Array]]:
        """A and ∂ℓ/∂A of every layer, whole; of the last one the prefix's rows have no part in anything."""
        group = HEADS // KV
        attention, gradient = [], []
        for i in range(LAYERS):
            rows, slope = self.rows[i, :, 0], self.slope[i, :, 0]
            above = jnp.zeros((BATCH, HEADS, SEQ, KEYS))
            below = above
            if i < LAYERS - 1:
                key = jnp.repeat(self.key[i], group, axis=2)
                scores = jnp.einsum("bqhd,bkhd->bhqk", self.query[i], key) / np.sqrt(HEAD)
                seen = self.valid[:, None, None, :] & jnp.tril(jnp.ones((SEQ, SEQ), bool))
                weights = jnp.where(seen, jax.nn.softmax(jnp.where(seen, scores, -1e30), axis=-1), 0)
                above = above.at[..., :SEQ].set(weights)
                value = jnp.concatenate([self.value[i], self.tail_value[i, :, 0]], axis=1)
                below = jnp.einsum("bqhd,bkhd->bhqk", self.cotangent[i], jnp.repeat(value, group, axis=2))
            attention.append(jnp.concatenate([above, rows], axis=2))
            gradient.append(jnp.concatenate([below, slope], axis=2))
        return attention, gradient


@pytest.fixture(scope="module")
def given() -> Given:
    return Given(0, jnp.float32)


def found(given: Given, config: OperatorConfig) -> np.ndarray:
    probe = jax.jit(lambda: operator_of(config)(given.trace()).relevance)()
    return np.asarray(probe[:, 0])


def wanted(given: Given, config: OperatorConfig) -> np.ndarray:
    """Row src of the definition, each sequence without its padding; 0 there."""
    matrices, gradients = ([np.asarray(x, np.float64) for x in layers] for layers in given.matrices())
    places = np.concatenate([given.valid, given.tail_valid[:, 0]], axis=1)
    row = np.zeros((BATCH, KEYS))
    for i, place in enumerate(places):
        cut = [[torch.tensor(x[i][:, place][..., place]) for x in layers] for layers in (matrices, gradients)]
        row[i, place] = whole_matrix.relevance(config, *cut)[-1]
    return row


@pytest.mark.parametrize("how", ["signed", "abs", "positive"])
@pytest.mark.parametrize("scale", [0.1, 1.0])
def test_attn_lrp(given: Given, how: Any, scale: float) -> None:
    config = OperatorConfig(name="attn_lrp", normalise=how, grad_scale=scale, eps=0.05)
    np.testing.assert_allclose(found(given, config), wanted(given, config), rtol=1e-4, atol=1e-6)


def test_the_scale_of_the_gradient_is_a_tenth_unless_told_otherwise(given: Given) -> None:
    """It only matters next to ε."""
    config = OperatorConfig(name="attn_lrp", normalise="abs", eps=0.05)
    tenth = wanted(given, replace(config, grad_scale=0.1))
    np.testing.assert_allclose(found(given, config), tenth, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["attention", "attention_gradient"])
def test_attention_and_its_product_with_the_gradient(given: Given, name: str) -> None:
    config = OperatorConfig(name=name)
    np.testing.assert_allclose(found(given, config), wanted(given, config), rtol=1e-4, atol=1e-7)


def test_rollout(given: Given) -> None:
    config = OperatorConfig(name="rollout")
    row = found(given, config)
    np.testing.assert_allclose(row, wanted(given, config), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(row.sum(-1), 1, rtol=1e-5)


@pytest.mark.parametrize("masked", [True, False])
def test_glimpse(given: Given, masked: bool) -> None:
    config = OperatorConfig(name="glimpse", masked_gradients=masked, eps=0.05)
    np.testing.assert_allclose(found(given, config), wanted(given, config), rtol=1e-4, atol=1e-6)


def test_rows_are_divided_by_sums_moved_away_from_zero() -> None:
    rows = jnp.array([[0.3, 0.1, -0.1], [-0.3, 0.1, -0.2], [0.2, -0.1, -0.1], [0.04, 0.0, -0.01], [0.0, 0.01, -0.04]])
    signed = normalise_rows(rows[:, None, None, None], how="signed", eps=0.1)[:, 0, 0, 0]
    divisor = np.array([0.3 + 0.1, -(0.4 + 0.1), 0.1, 0.03 + 0.1, -(0.03 + 0.1)])
    np.testing.assert_allclose(signed, np.asarray(rows) / divisor[:, None], rtol=1e-5, atol=1e-7)
    divisor = np.abs(rows).sum(-1, keepdims=True) + 0.1
    found = normalise_rows(rows[:, None, None, None], how="abs", eps=0.1)[:, 0, 0, 0]
    np.testing.assert_allclose(found, rows / divisor, rtol=1e-5)
    kept = np.maximum(rows, 0)
    found = normalise_rows(rows[:, None, None, None], how="positive", eps=0.1)[:, 0, 0, 0]
    np.testing.assert_allclose(found, kept / (kept.sum(-1, keepdims=True) + 0.1), rtol=1e-5)


def test_slot_attention_is_a_share_of_the_slots_sum() -> None:
    matrix = jnp.array([[[1.0, 0, 0, 0], [0, 1, 1, 0]]])
    found = slot_attention(jnp.array([[[0.3, 0.2, 0.1, 5.0]]]), matrix, 0.1)
    np.testing.assert_allclose(found[0, 0], np.array([0.3, 0.3]) / 0.7, rtol=1e-6)
