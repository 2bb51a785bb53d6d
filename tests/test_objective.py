"""The losses against numbers worked out by hand, their minimisers, and what masking and padding must not change."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixate_jax import objective
from fixate_jax.errors import ConfigError
from fixate_jax.lab.config import ObjectiveConfig
from fixate_jax.lab.parts import ALIGNMENTS, alignment_of, attention_weight_of

NAMES = sorted(ALIGNMENTS)
EPS = objective.EPS


@partial(jax.jit, static_argnames=("name", "gamma", "top_k"))
def compiled(name, gaze, attention, mask, gamma, top_k):
    loss = alignment_of(ObjectiveConfig(alignment=name, gamma=gamma, top_k=top_k))
    assert loss is not None
    return loss(gaze, attention, mask)


def divergence(name: str, gaze, attention, mask, *, gamma: float = 2.0, top_k: int = 2) -> jax.Array:
    return compiled(name, jnp.asarray(gaze), jnp.asarray(attention), jnp.asarray(mask), gamma=gamma, top_k=top_k)


@st.composite
def pages(draw):
    """A batch of pages with different numbers of slots; shares may be zero."""
    # Always of the same shape, so that each loss is compiled once.
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    mask = np.arange(6)[None] < rng.integers(1, 7, size=(3, 1))
    shares = []
    for _ in range(2):
        share = np.where(mask & (rng.random(mask.shape) < draw(st.sampled_from([0.3, 1.0]))), rng.random(mask.shape), 0)
        shares.append(np.float32(share / np.maximum(share.sum(1, keepdims=True), 1e-9)))
    return shares[0], shares[1], mask


def test_plain_kl_by_hand():
    gaze, attention, mask = [[0.5, 0.5, 0.0]], [[0.25, 0.75, 0.0]], [[True, True, True]]
    by_hand = 0.5 * np.log(0.5001 / 0.2501) + 0.5 * np.log(0.5001 / 0.7501)
    np.testing.assert_allclose(divergence("kl", gaze, attention, mask), [by_hand], rtol=1e-5)


def test_weighted_kl_by_hand():
    # ω = (0.64, 0.04, 0) / 0.68 for g = (0.8, 0.2, 0) and γ = 2.
    terms = np.array([0.8 * np.log(0.8001 / 0.5001), 0.2 * np.log(0.2001 / 0.3001)])
    by_hand = (0.64 * terms[0] + 0.04 * terms[1]) / 0.68
    got = divergence("weighted_kl", [[0.8, 0.2, 0.0]], [[0.5, 0.3, 0.2]], [[True] * 3])
    np.testing.assert_allclose(got, [by_hand], rtol=1e-5)


def test_coarse_kl_by_hand():
    # The top two slots of g are 1 and 3; slots 0 and 2 become a tail of 0.2 and 0.3.
    got = divergence("coarse_kl", [[0.1, 0.5, 0.1, 0.3]], [[0.2, 0.4, 0.1, 0.3]], [[True] * 4], gamma=0.0)
    by_hand = 0.5 * np.log(0.5001 / 0.4001) + 0.2 * np.log(0.2001 / 0.3001)
    np.testing.assert_allclose(got, [by_hand], rtol=1e-4)


def test_i_divergence_by_hand():
    got = divergence("i_divergence", [[0.5, 0.5]], [[0.25, 0.5]], [[True, True]], gamma=0.0)
    np.testing.assert_allclose(got, [0.5001 * np.log(0.5001 / 0.2501) - 0.25], rtol=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 20.0])
def test_importance_weights_sum_to_one_over_the_page(gamma):
    gaze, mask = jnp.array([[0.7, 0.3, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]]), jnp.array([[1, 1, 1, 0], [1, 0, 0, 0]]) > 0
    weights = np.asarray(objective.importance_weights(gaze, mask, gamma))
    np.testing.assert_allclose(weights.sum(1), [3, 1] if gamma == 0 else [1, 1], rtol=1e-5)
    assert (weights[~np.asarray(mask)] == 0).all()
    if gamma == 0:
        np.testing.assert_array_equal(weights, np.asarray(mask))
    else:
        np.testing.assert_allclose(weights[0, 0] / weights[0, 1], (7 / 3) ** gamma, rtol=1e-4)


def test_coarse_kl_keeps_everything_apart_on_a_small_page():
    page = ([[0.6, 0.3, 0.1, 0.0]], [[0.2, 0.5, 0.3, 0.0]], [[True, True, True, False]])
    np.testing.assert_allclose(
        divergence("coarse_kl", *page, top_k=5), divergence("weighted_kl", *page, top_k=5), rtol=1e-6
    )


def minimiser(name: str, gaze: np.ndarray, *, gamma: float, on_simplex: bool) -> np.ndarray:
    """Where the loss is smallest, over the simplex or over all non-negative attention."""
    mask = np.ones((1, len(gaze)), bool)

    def attention(free: jax.Array) -> jax.Array:
        return jax.nn.softmax(free) if on_simplex else jnp.exp(free)

    def loss(free: jax.Array) -> jax.Array:
        return divergence(name, gaze[None], attention(free)[None], mask, gamma=gamma).sum()

    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, 2000))

    def step(state, _):
        free, moments = state
        update, moments = optimizer.update(jax.grad(loss)(free), moments)
        return (free + update, moments), None

    free = jnp.zeros(len(gaze))
    (free, _), _ = jax.lax.scan(step, (free, optimizer.init(free)), None, length=2000)
    return np.asarray(attention(free))


def test_minimisers():
    """Plain KL is smallest at g, weighted KL at ω·g, which is sharper; the I-divergence at g, without Σa = 1."""
    gaze = np.array([0.5, 0.3, 0.15, 0.05], np.float32)
    np.testing.assert_allclose(minimiser("kl", gaze, gamma=2.0, on_simplex=True), gaze, atol=1e-3)
    np.testing.assert_allclose(
        minimiser("weighted_kl", gaze, gamma=2.0, on_simplex=True), gaze**3 / (gaze**3).sum(), atol=1e-3
    )
    for gamma in (0.0, 1.0):
        found = minimiser("i_divergence", gaze, gamma=gamma, on_simplex=False)
        np.testing.assert_allclose(found, gaze, atol=1e-3)


@partial(jax.jit, static_argnums=(0, 4))
def gradients(name, gaze, attention, mask, gamma):
    def total(gaze, attention):
        return divergence(name, gaze, attention, mask, gamma=gamma).sum()

    return jax.value_and_grad(total, argnums=(0, 1))(gaze, attention)


@settings(max_examples=40, deadline=None)
@given(pages(), st.sampled_from(NAMES), st.sampled_from([0.0, 0.5, 8.0]))
def test_values_and_gradients_are_finite(page, name, gamma):
    gaze, attention, mask = page
    # A row of padding has neither slots nor gaze.
    gaze, attention, mask = (np.concatenate([x, np.zeros_like(x[:1])]) for x in (gaze, attention, mask))

    value, grads = gradients(name, gaze, attention, mask, gamma)
    assert np.isfinite(value)
    for grad in grads:
        assert np.isfinite(grad).all()
        assert (np.asarray(grad)[~mask] == 0).all()


@settings(max_examples=40, deadline=None)
@given(pages(), st.sampled_from(NAMES))
def test_padding_slots_change_nothing(page, name):
    gaze, attention, mask = page
    # Whatever stands in a padded slot must not matter.
    wider = [np.pad(x, ((0, 0), (0, 3)), constant_values=fill) for x, fill in zip(page, (0.4, 7.0, False), strict=True)]
    np.testing.assert_allclose(divergence(name, gaze, attention, mask), divergence(name, *wider), rtol=1e-5, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(pages(), st.sampled_from(NAMES), st.randoms(use_true_random=False))
def test_order_of_slots_does_not_matter(page, name, random):
    gaze, attention, mask = page
    # Equal gaze at the border of the top k is decided by slot order, so ties are broken here.
    gaze = np.where(mask, gaze + np.linspace(0, 1e-3, gaze.shape[1], dtype=np.float32), 0)
    order = list(range(gaze.shape[1]))
    random.shuffle(order)
    np.testing.assert_allclose(
        divergence(name, gaze, attention, mask),
        divergence(name, gaze[:, order], attention[:, order], mask[:, order]),
        rtol=1e-4,
        atol=1e-6,
    )


@settings(max_examples=40, deadline=None)
@given(pages(), st.sampled_from([0.0, 2.0]))
def test_i_divergence_is_never_negative_and_zero_at_the_gaze(page, gamma):
    gaze, attention, mask = page
    assert (np.asarray(divergence("i_divergence", gaze, attention, mask, gamma=gamma)) >= -1e-6).all()
    np.testing.assert_allclose(divergence("i_divergence", gaze, gaze, mask, gamma=gamma), 0, atol=1e-6)


def test_the_mean_is_over_real_sessions():
    each = jnp.array([1.0, 2.0, jnp.nan])
    np.testing.assert_allclose(objective.session_mean(each, jnp.array([1.0, 1.0, 0.0])), 1.5, rtol=1e-6)
    assert objective.session_mean(each, jnp.zeros(3)) == 0


def test_a_loss_by_its_name():
    settings = ObjectiveConfig(alignment="weighted_kl", gamma=1.5)
    found = alignment_of(settings)
    assert found == alignment_of(settings) and hash(found) == hash(alignment_of(settings))
    assert found == objective.BoundAlignment(objective.weighted_kl, (("gamma", 1.5),))
    assert alignment_of(ObjectiveConfig(alignment="none")) is None
    own = alignment_of(ObjectiveConfig(alignment=f"{__name__}:half_squared"))
    assert own is not None and float(own(jnp.ones((1, 2)), jnp.zeros((1, 2)), jnp.ones((1, 2), bool))[0]) == 1
    with pytest.raises(ConfigError, match=r"objective\.alignment = 'kll': choose one of kl, weighted_kl"):
        ObjectiveConfig(alignment="kll")
    with pytest.raises(ConfigError, match="= 'no_such_module:loss' cannot be imported: No module named"):
        alignment_of(ObjectiveConfig(alignment="no_such_module:loss"))


def half_squared(gaze, attention, mask):
    """A loss of one's own."""
    return 0.5 * jnp.where(mask, (gaze - attention) ** 2, 0).sum(-1)


def test_next_token_loss_by_hand():
    """A session of two tokens and one of one token count the same; a padding row not at all, whatever it holds."""
    logits = jnp.log(jnp.array([[[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]], [[0.2, 0.2, 0.6], [1.0, 1.0, 1.0]]]))
    logits = jnp.concatenate([logits, jnp.full((1, 2, 3), jnp.nan)])
    ids = jnp.array([[0, 2], [1, 0], [0, 0]])
    mask = jnp.array([[True, True], [True, False], [False, False]])
    by_hand = (-(np.log(0.5) + np.log(0.8)) / 2 - np.log(0.2)) / 2
    loss = objective.next_token_loss(logits, ids, mask, jnp.array([1.0, 1.0, 0.0]))
    np.testing.assert_allclose(loss, by_hand, rtol=1e-6)


def test_next_token_loss_is_taken_in_float32():
    logits = jnp.array([[[8.0, 8.03125, -3.0]]], jnp.bfloat16)
    loss = objective.next_token_loss(logits, jnp.zeros((1, 1), int), jnp.ones((1, 1), bool), jnp.ones(1))
    expected = -jax.nn.log_softmax(logits[0, 0].astype(jnp.float32))[0]
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_attention_weight_schedule():
    config = ObjectiveConfig(warmup=10, attention_weight=0.5)
    steps = [0, 9, 10, 15, 20, 1000]
    got = [float(attention_weight_of(config, step)) for step in steps]
    np.testing.assert_allclose(got, [0, 0, 0, 0.25, 0.5, 0.5], rtol=1e-6)
    traced = jax.jit(lambda step: attention_weight_of(config, step))(jnp.asarray(15))
    np.testing.assert_allclose(traced, 0.25, rtol=1e-6)
    assert attention_weight_of(ObjectiveConfig(warmup=0, attention_weight=0.3), 0) == np.float32(0.3)


def test_total_loss_weighs_its_parts():
    weights: dict[str, Any] = {"ntp_weight": 0.5, "beta": 0.1}
    penalty = objective.coefficient_penalty(jnp.array([[1.0, 2.0], [3.0, 0.0], [9.0, 9.0]]), jnp.array([1.0, 1.0, 0.0]))
    np.testing.assert_allclose(penalty, 7.0)
    values: dict[str, Any] = {"next_token": jnp.asarray(2.0), "penalty": penalty, "attention_weight": jnp.asarray(0.25)}
    loss, parts = objective.total_loss(**weights, alignment=jnp.asarray(4.0), **values)
    np.testing.assert_allclose(loss, 0.5 * 2 + 0.1 * 7 + 0.25 * 4)
    assert {name: float(part) for name, part in parts.items()} == pytest.approx(
        {"loss": 2.7, "next_token": 2.0, "penalty": 7.0, "alignment": 4.0, "attention_weight": 0.25}
    )
    loss, parts = objective.total_loss(**weights, alignment=None, **values)
    np.testing.assert_allclose(loss, 1.7, rtol=1e-6)
    assert set(parts) == {"loss", "next_token", "penalty"}
