"""Blocked and tail attention are plain attention, computed in another order."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fixate_jax.backbones.attention import blocked_attention, tail_attention

BATCH, SEQ, HEADS, KV, WIDTH = 2, 11, 4, 2, 8


def draw(seed: int, *shapes: tuple[int, ...]) -> list[jax.Array]:
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]


def whole_matrix(
    query: jax.Array, key: jax.Array, value: jax.Array, valid: jax.Array, *, causal: bool
) -> tuple[jax.Array, jax.Array]:
    """The definition: (attended values, attention matrix [batch, heads, query, key])."""
    group = query.shape[2] // key.shape[2]
    key, value = (jnp.repeat(x, group, axis=2) for x in (key, value))
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(query.shape[-1])
    mask = valid[:, None, None, :]
    if causal:
        mask = mask & jnp.tril(jnp.ones((query.shape[1], key.shape[1]), bool))
    weights = jax.nn.softmax(jnp.where(mask, scores, -1e30), axis=-1)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, value), weights


def close(ours: Any, theirs: Any) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), ours, theirs)


@pytest.mark.parametrize(("causal", "kv"), [(True, 1), (True, KV), (True, HEADS), (False, KV)])
def test_any_block_size_gives_the_same(causal: bool, kv: int) -> None:
    *arrays, weight = draw(kv, (BATCH, SEQ, HEADS, WIDTH), *[(BATCH, SEQ, kv, WIDTH)] * 2, (BATCH, SEQ, HEADS, WIDTH))
    valid = jnp.arange(SEQ) >= jnp.asarray([[0], [6]])
    # Rows at padding hold numbers without meaning.
    weight = weight * valid[..., None, None]

    def results(attention: Any, **how: Any) -> Any:
        def total(*arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
            out = attention(*arrays, valid, causal=causal, **how)
            return (out * weight).sum(), out * valid[..., None, None]

        return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))(*arrays)

    theirs = results(lambda *a, causal: whole_matrix(*a, causal=causal)[0])
    # Neither heads nor causality change where blocks are cut.
    for block in (2, 4, 5, SEQ) if causal and kv == KV else (4,):
        close(results(blocked_attention, block=block), theirs)


@pytest.mark.parametrize("causal", [True, False])
def test_nothing_to_see_is_no_nan(causal: bool) -> None:
    arrays = draw(0, (BATCH, SEQ, HEADS, WIDTH), *[(BATCH, SEQ, KV, WIDTH)] * 2)
    valid = jnp.asarray([[False] * SEQ, [True] * SEQ])

    def total(*arrays: jax.Array) -> jax.Array:
        query, key, value = arrays
        return (blocked_attention(query, key, value, valid, causal=causal, block=4) ** 2).sum()

    value, gradient = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))(*arrays)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in gradient)


def tail_case() -> dict[str, Any]:
    """Two sequences with left padding, three branches of up to three positions each."""
    branch, tail = 3, 3
    query, key, value, prefix_key, prefix_value, tap = draw(
        1,
        (BATCH, branch, tail, HEADS, WIDTH),
        *[(BATCH, branch, tail, KV, WIDTH)] * 2,
        *[(BATCH, SEQ, KV, WIDTH)] * 2,
        (BATCH, branch, HEADS, tail, SEQ + tail),
    )
    prefix_valid = jnp.arange(SEQ) >= jnp.asarray([[0], [5]])
    valid = jnp.broadcast_to(jnp.arange(tail) >= jnp.asarray([0, 1, 2])[:, None], (BATCH, branch, tail))
    return {
        "arguments": (query, prefix_key, prefix_value, prefix_valid, key, value, valid),
        "tap": tap,
        "branches": branch,
    }


def test_tail_is_the_last_rows_of_whole_attention() -> None:
    case = tail_case()
    query, prefix_key, prefix_value, prefix_valid, key, value, valid = case["arguments"]
    out, rows = jax.jit(tail_attention)(*case["arguments"])
    whole = jax.jit(partial(whole_matrix, causal=True))
    tail = query.shape[2]
    for b in range(case["branches"]):
        padded = jnp.concatenate([jnp.zeros((BATCH, SEQ, HEADS, WIDTH)), query[:, b]], axis=1)
        keys, values, seen = (
            jnp.concatenate(pair, axis=1)
            for pair in ((prefix_key, key[:, b]), (prefix_value, value[:, b]), (prefix_valid, valid[:, b]))
        )
        theirs, weights = whole(padded, keys, values, seen)
        real = np.asarray(valid[:, b])
        close(out[:, b][real], theirs[:, -tail:][real])
        picked = np.broadcast_to(real[:, None], (BATCH, HEADS, tail))
        close(rows[:, b][picked], weights[:, :, -tail:][picked])
    np.testing.assert_allclose(rows.sum(-1), 1, atol=1e-6)


def test_tap_is_added_after_the_softmax() -> None:
    case = tail_case()
    _, _, prefix_value, _, _, value, _ = case["arguments"]
    tapped, rows = jax.jit(tail_attention)(*case["arguments"], case["tap"])
    plain, plain_rows = jax.jit(tail_attention)(*case["arguments"])
    close(rows, plain_rows)
    repeated = jnp.broadcast_to(prefix_value[:, None], (BATCH, case["branches"], *prefix_value.shape[1:]))
    values = jnp.repeat(jnp.concatenate([repeated, value], axis=2), HEADS // KV, axis=3)
    close(tapped - plain, jnp.einsum("bchtk,bckhd->bcthd", case["tap"], values))


def test_tail_with_nothing_to_see_is_no_nan() -> None:
    query, prefix_key, prefix_value, prefix_valid, key, value, valid = tail_case()["arguments"]

    def total(query: jax.Array) -> jax.Array:
        hidden = (prefix_key, prefix_value, jnp.zeros_like(prefix_valid), key, value, jnp.zeros_like(valid))
        return (tail_attention(query, *hidden)[0] ** 2).sum()

    loss, gradient = jax.jit(jax.value_and_grad(total))(query)
    assert np.isfinite(loss) and np.isfinite(gradient).all()


def test_bfloat16_keeps_the_softmax_in_float32() -> None:
    inputs = [x.astype(jnp.bfloat16) for x in draw(3, *[(1, 64, 2, WIDTH)] * 3)]
    valid = jnp.ones((1, 64), bool)
    ours = jax.jit(partial(blocked_attention, causal=True, block=32))(*inputs, valid)
    query, key, value = (x.astype(jnp.float32) for x in inputs)
    theirs, _ = jax.jit(partial(whole_matrix, causal=True))(query, key, value, valid)
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_allclose(ours.astype(jnp.float32), theirs, atol=0.02)
