"""Whole attention matrices of the prefix, some rows at a time."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fixate_jax.backbones.decoder.attention import MASKED, group_heads
from fixate_jax.backbones.decoder.products import multiply


def attention_rows(
    query: Float[Array, "batch rows heads head"],
    key: Float[Array, "batch keys kv head"],
    valid: Bool[Array, "batch keys"],
    first: Int[Array, ""] | int,
) -> Float[Array, "batch heads rows keys"]:
    """Post-softmax causal attention of some rows, the first of them being position ``first``; 0 where masked."""
    scale = query.shape[-1] ** -0.5
    asked = group_heads(query, key.shape[2])
    scores = multiply("bqhgd,bkhd->bhgqk", asked, key) * scale
    rows = first + jnp.arange(query.shape[1])
    seen = valid[:, None, :] & (jnp.arange(key.shape[1]) <= rows[:, None])
    weights = jax.nn.softmax(jnp.where(seen[:, None, None], scores, MASKED), axis=-1)
    weights = jnp.where(seen[:, None, None], weights, 0)
    return weights.reshape(weights.shape[0], -1, *weights.shape[3:])


def widen(vector: Float[Array, "*dims keys"], to: int) -> Float[Array, "*dims wide"]:
    """Zeros put after a vector."""
    return jnp.pad(vector, [(0, 0)] * (vector.ndim - 1) + [(0, to - vector.shape[-1])])
