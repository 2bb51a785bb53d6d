"""Whole attention matrices of the prefix, some rows at a time."""

from collections.abc import Callable, Iterator
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fixate_jax.backbones.attention import MASKED, precise

Result = TypeVar("Result")


def grouped(query: Float[Array, "*dims heads head"], kv_heads: int) -> Float[Array, "*dims kv group head"]:
    """Query heads beside the key head that they read."""
    *dims, heads, width = query.shape
    return query.reshape(*dims, kv_heads, heads // kv_heads, width)


def attention_rows(
    query: Float[Array, "batch rows heads head"],
    key: Float[Array, "batch keys kv head"],
    valid: Bool[Array, "batch keys"],
    first: int,
) -> Float[Array, "batch heads rows keys"]:
    """Post-softmax causal attention of some rows, the first of them being position ``first``; 0 where masked."""
    scale = query.shape[-1] ** -0.5
    asked = grouped(query, key.shape[2])
    scores = jnp.einsum("bqhgd,bkhd->bhgqk", asked, key, preferred_element_type=precise(query)) * scale
    rows = jnp.arange(first, first + query.shape[1])
    seen = valid[:, None, :] & (jnp.arange(key.shape[1]) <= rows[:, None])
    weights = jax.nn.softmax(jnp.where(seen[:, None, None], scores, MASKED), axis=-1)
    weights = jnp.where(seen[:, None, None], weights, 0)
    return weights.reshape(weights.shape[0], -1, *weights.shape[3:])


def blocks(seq: int, block: int) -> Iterator[tuple[int, int]]:
    """First row of every block, and the row after its last."""
    for first in range(0, seq, block):
        yield first, min(first + block, seq)


def add_blocks(seq: int, block: int, one: Callable[[int, int], Result]) -> Result:
    """The sum over row blocks of whatever ``one(first, last)`` makes of them.

    The backward pass computes a block again instead of storing it.
    """
    total = None
    for first, last in blocks(seq, block):
        part = jax.checkpoint(one, static_argnums=(0, 1))(first, last)
        total = part if total is None else jax.tree.map(jnp.add, total, part)
    assert total is not None
    return total


def widen(vector: Float[Array, "*dims keys"], to: int) -> Float[Array, "*dims wide"]:
    """Zeros put after a vector."""
    return jnp.pad(vector, [(0, 0)] * (vector.ndim - 1) + [(0, to - vector.shape[-1])])
