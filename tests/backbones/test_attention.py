"""Blocked and tail attention are plain attention, computed in another order."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fixate_jax.backbones.decoder.attention import blocked_attention, tail_attention

BATCH, SEQ, HEADS, KV, WIDTH = 2, 11, 4, 2, 8


def draw(seed: int, *shapes: tuple[int, ...]) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def whole_matrix(query: Any, key: Any, value: Any, valid: np.ndarray, *, causal: bool) -> tuple[Any, Any]:
    """The definition, in PyTorch and float64: (attended values, attention matrix [batch, heads, query, key])."""
    torch = pytest.importorskip("torch", reason="PyTorch, in which the definition is written, is not installed")
    query, key, value = (torch.as_tensor(x).double() for x in (query, key, value))
    key, value = (x.repeat_interleave(query.shape[2] // x.shape[2], dim=2) for x in (key, value))
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(query.shape[-1])
    mask = torch.tensor(valid)[:, None, None, :]
    if causal:
        mask = mask & torch.ones(query.shape[1], key.shape[1], dtype=torch.bool).tril()
    weights = torch.where(mask, scores, -1e30).softmax(-1)
    return torch.einsum("bhqk,bkhd->bqhd", weights, value), weights


def close(ours: Any, theirs: Any) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), ours, theirs)


@pytest.mark.parametrize(
    ("causal", "kv", "blocks"), [(True, 1, (4,)), (True, KV, (2, 4, 5, SEQ)), (True, HEADS, (5,)), (False, KV, (2, 5))]
)
def test_any_block_size_gives_the_same(causal: bool, kv: int, blocks: tuple[int, ...]) -> None:
    """Blocks of 2 are a loop, fewer are laid out one by one; the last is shorter but for a single block."""
    torch = pytest.importorskip("torch", reason="PyTorch, in which the definition is written, is not installed")
    *arrays, weight = draw(kv, (BATCH, SEQ, HEADS, WIDTH), *[(BATCH, SEQ, kv, WIDTH)] * 2, (BATCH, SEQ, HEADS, WIDTH))
    valid = np.arange(SEQ) >= np.array([[0], [6]])
    # Rows at padding hold numbers without meaning.
    weight = weight * valid[..., None, None]

    def total(block: int, *arrays: Any) -> tuple[jax.Array, jax.Array]:
        query, key, value = arrays
        out = blocked_attention(query, key, value, jnp.asarray(valid), causal=causal, block=block)
        return (out * weight).sum(), out * valid[..., None, None]

    slope = jax.value_and_grad(total, argnums=(1, 2, 3), has_aux=True)
    ours = jax.device_get(jax.jit(lambda *arrays: [slope(block, *arrays) for block in blocks])(*arrays))
    query, key, value = leaves = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in arrays]
    out, _ = whole_matrix(query, key, value, valid, causal=causal)
    (out * torch.tensor(weight)).sum().backward()
    out = out.detach().numpy()
    theirs = ((out * weight).sum(), out * valid[..., None, None]), tuple(x.grad.numpy() for x in leaves)
    for found in ours:
        close(found, theirs)


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
    prefix_valid = np.arange(SEQ) >= np.array([[0], [5]])
    valid = np.broadcast_to(np.arange(tail) >= np.array([0, 1, 2])[:, None], (BATCH, branch, tail))
    return {
        "arguments": (query, prefix_key, prefix_value, prefix_valid, key, value, valid),
        "tap": tap,
        "branches": branch,
    }


@pytest.fixture(scope="module")
def tail_results() -> tuple[Any, Any]:
    """Attended values and rows without the tap and with it."""
    case = tail_case()
    run = jax.jit(lambda taps, arguments: [tail_attention(*arguments, *tap) for tap in taps])
    results: tuple[Any, Any] = jax.device_get(run(([], [case["tap"]]), case["arguments"]))
    return results


def test_tail_is_the_last_rows_of_whole_attention(tail_results: tuple[Any, Any]) -> None:
    case, (out, rows) = tail_case(), tail_results[0]
    query, prefix_key, prefix_value, prefix_valid, key, value, valid = case["arguments"]
    tail = query.shape[2]
    for b in range(case["branches"]):
        padded = np.concatenate([np.zeros((BATCH, SEQ, HEADS, WIDTH)), query[:, b]], axis=1)
        keys, values, seen = (
            np.concatenate(pair, axis=1)
            for pair in ((prefix_key, key[:, b]), (prefix_value, value[:, b]), (prefix_valid, valid[:, b]))
        )
        theirs, weights = whole_matrix(padded, keys, values, seen, causal=True)
        real = valid[:, b]
        close(out[:, b][real], theirs[:, -tail:][real].numpy())
        picked = np.broadcast_to(real[:, None], (BATCH, HEADS, tail))
        close(rows[:, b][picked], weights[:, :, -tail:][picked].numpy())
    np.testing.assert_allclose(rows.sum(-1), 1, atol=1e-6)


def test_tap_is_added_after_the_softmax(tail_results: tuple[Any, Any]) -> None:
    case, ((plain, plain_rows), (tapped, rows)) = tail_case(), tail_results
    _, _, prefix_value, _, _, value, _ = case["arguments"]
    close(rows, plain_rows)
    repeated = np.broadcast_to(prefix_value[:, None], (BATCH, case["branches"], *prefix_value.shape[1:]))
    values = np.repeat(np.concatenate([repeated, value], axis=2), HEADS // KV, axis=3)
    close(tapped - plain, np.einsum("bchtk,bckhd->bcthd", case["tap"], values))


def test_tail_with_nothing_to_see_is_no_nan() -> None:
    query, prefix_key, prefix_value, prefix_valid, key, value, valid = tail_case()["arguments"]

    def total(query: jax.Array, hidden: Any) -> jax.Array:
        return (tail_attention(query, *hidden)[0] ** 2).sum()

    hidden = (prefix_key, prefix_value, np.zeros_like(prefix_valid), key, value, np.zeros_like(valid))
    loss, gradient = jax.device_get(jax.jit(jax.value_and_grad(total))(query, hidden))
    assert np.isfinite(loss) and np.isfinite(gradient).all()


def test_bfloat16_keeps_the_softmax_in_float32() -> None:
    inputs = [x.astype(jnp.bfloat16) for x in draw(3, *[(1, 64, 2, WIDTH)] * 3)]
    valid = np.ones((1, 64), bool)
    ours = jax.device_get(jax.jit(partial(blocked_attention, causal=True, block=32))(*inputs, valid))
    query, key, value = (x.astype(np.float32) for x in inputs)
    theirs, _ = whole_matrix(query, key, value, valid, causal=True)
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_allclose(ours.astype(np.float32), theirs, atol=0.02)
