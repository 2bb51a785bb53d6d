"""Attention without a square matrix: row blocks for the sequence, one small product for the tail.

Heads are grouped (grouped-query attention): query head ``j`` reads key head ``j // (heads // kv_heads)``.
Scores and softmax are float32 whatever the (lower) type of the inputs.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fixate_jax.backbones.decoder.products import multiply
from fixate_jax.backbones.decoder.row_blocks import join_blocks, rows_of

MASKED = -1e30
"""Score of a masked pair; finite, so that a row with nothing to see stays free of NaN."""


def precise(*arrays: Array) -> jnp.dtype:
    """The type to accumulate in: float32, or float64 where the inputs are."""
    return jnp.promote_types(jnp.result_type(*arrays), jnp.float32)


def group_heads(query: Float[Array, "*dims heads width"], kv_heads: int) -> Float[Array, "*dims kv group width"]:
    """Query heads beside the key head that they read."""
    *dims, heads, width = query.shape
    return query.reshape(*dims, kv_heads, heads // kv_heads, width)


def blocked_attention(
    query: Float[Array, "batch seq heads width"],
    key: Float[Array, "batch seq kv width"],
    value: Float[Array, "batch seq kv width"],
    valid: Bool[Array, "batch seq"] | None,
    *,
    causal: bool,
    block: int,
) -> Float[Array, "batch seq heads width"]:
    """Softmax attention computed ``block`` rows at a time.

    A causal block reads no keys far beyond its last row, so the upper triangle is hardly computed. The backward pass
    computes a block's scores again, and so holds those of a few blocks at a time.

    Args:
        query: rotated queries.
        key: rotated keys.
        value: values.
        valid: False at keys that nobody may see (padding); None where there are none, or where they come last and
            attention is causal.
        causal: whether position i sees only positions up to i.
        block: rows of scores held at a time.

    Returns:
        The attended values, heads unmerged, in the type of ``value``.
    """
    seq, heads = query.shape[1:3]
    grouped = group_heads(query, key.shape[2])
    scale = query.shape[-1] ** -0.5

    def one(first: Any, size: int, keys: int) -> Float[Array, "batch rows kv group width"]:
        asked, seen, read = rows_of(grouped, first, size), key[:, :keys], value[:, :keys]
        scores = multiply("bqhgd,bkhd->bhgqk", asked, seen) * scale
        mask = jnp.ones((), bool) if valid is None else valid[:, None, None, None, :keys]
        if causal:
            mask = mask & (jnp.arange(keys)[None, :] <= (first + jnp.arange(size))[:, None])
        weights = jax.nn.softmax(jnp.where(mask, scores, MASKED), axis=-1)
        out = multiply("bhgqk,bkhd->bqhgd", weights.astype(value.dtype), read)
        return out.astype(value.dtype)

    out = join_blocks(one, seq, block, causal=causal)
    return out.reshape(*out.shape[:2], heads, out.shape[-1])


def tail_attention(
    query: Float[Array, "batch branch tail heads width"],
    prefix_key: Float[Array, "batch seq kv width"],
    prefix_value: Float[Array, "batch seq kv width"],
    prefix_valid: Bool[Array, "batch seq"],
    key: Float[Array, "batch branch tail kv width"],
    value: Float[Array, "batch branch tail kv width"],
    valid: Bool[Array, "batch branch tail"],
    tap: Float[Array, "batch branch heads tail keys"] | None = None,
) -> tuple[Float[Array, "batch branch tail heads width"], Float[Array, "batch branch heads tail keys"]]:
    """Attention of the few last positions over a shared prefix and over themselves.

    Branches are alternative continuations of one prefix; they see the prefix and their own positions only.
    ``tap`` is added after the softmax, so that the gradient with respect to a zero tap is ∂ℓ/∂A, A being used in the
    product with the values.

    Returns:
        Attended values, and the tail's rows of A (before the tap), keys being prefix then tail.
    """
    kv, seq, tail = key.shape[-2], prefix_key.shape[1], query.shape[2]
    grouped = group_heads(query, kv)
    scale = query.shape[-1] ** -0.5
    over_prefix = multiply("bcthgd,bshd->bchgts", grouped, prefix_key)
    over_tail = multiply("bcthgd,bcuhd->bchgtu", grouped, key)
    causal = jnp.tril(jnp.ones((tail, tail), bool))
    scores = jnp.concatenate(
        [
            jnp.where(prefix_valid[:, None, None, None, None, :], over_prefix * scale, MASKED),
            jnp.where(causal & valid[:, :, None, None, None, :], over_tail * scale, MASKED),
        ],
        axis=-1,
    )
    weights = jax.nn.softmax(scores, axis=-1)
    rows = weights.reshape(*weights.shape[:2], -1, *weights.shape[-2:])
    if tap is not None:
        weights = weights + tap.reshape(weights.shape)
    weights = weights.astype(value.dtype)
    out = multiply("bchgts,bshd->bcthgd", weights[..., :seq], prefix_value)
    out += multiply("bchgtu,bcuhd->bcthgd", weights[..., seq:], value)
    return out.astype(value.dtype).reshape(query.shape), rows
