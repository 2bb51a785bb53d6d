"""Attention Rollout."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fixate_jax.backbones.decoder.attention import precise
from fixate_jax.backbones.decoder.row_blocks import add_blocks, rows_of
from fixate_jax.probing.attention_rows import attention_rows, widen
from fixate_jax.probing.trace import Probe, Trace, operator


@operator()
def rollout(trace: Trace) -> Probe:
    """R = Â_L ⋯ Â_{L−m+1} with Â = ½ mean_h A + ½ I (Abnar & Zuidema, 2020, over FixATE's tapped layers).

    Row ``src`` of R is a vector pushed down through the layers, so that no product of matrices is formed; the mean
    over heads is computed some rows at a time. A row of attention sums to 1, and so does a row of Â.

    Args:
        trace: the stopped model; its target plays no part.

    Returns:
        Logits and relevance; relevance is not negative and sums to 1 over all positions.
    """
    decoder, below = trace.model.decoder, trace.prefix.below
    rows = decoder.whole_rows(below)
    out = trace.model.tail(trace.prefix._replace(key=rows.key, value=rows.value))
    means = out.rows.mean(3)
    source = jnp.zeros(means.shape[1:4], precise(means)).at[..., -1].set(1)
    vector = jnp.zeros(means.shape[1:3] + means.shape[4:], means.dtype)
    vector = _through_tail(vector, source, means[-1])
    if len(means) > 1:
        down = jax.checkpoint(partial(_through_layer, valid=below.valid, block=decoder.config.attention_block))
        xs = (rows.query, rows.key[:-1], means[:-1])
        vector, _ = jax.lax.scan(lambda v, x: (down(v, *x), None), vector, xs, reverse=True)
    return Probe(out.logits, vector)


def _through_tail(
    vector: Float[Array, "batch branch keys"],
    source: Float[Array, "batch branch tail"],
    means: Float[Array, "batch branch tail keys"],
) -> Float[Array, "batch branch keys"]:
    """v Â for what v has at the tail, v elsewhere being added as it is."""
    places = widen(jnp.zeros(source.shape[:2] + (0,), source.dtype), vector.shape[-1] - source.shape[-1])
    return vector + 0.5 * (jnp.concatenate([places, source], axis=-1) + jnp.einsum("bct,bctk->bck", source, means))


def _through_layer(
    vector: Float[Array, "batch branch keys"],
    query: Float[Array, "batch seq heads head"],
    key: Float[Array, "batch seq kv head"],
    means: Float[Array, "batch branch tail keys"],
    *,
    valid: Bool[Array, "batch seq"],
    block: int,
) -> Float[Array, "batch branch keys"]:
    """v Â for a layer in which the prefix attends too."""
    seq = valid.shape[1]

    def one(first: Any, size: int, keys: int) -> Float[Array, "batch branch keys"]:
        rows = attention_rows(rows_of(query, first, size), key[:, :keys], valid[:, :keys], first).mean(1)
        return widen(jnp.einsum("bcq,bqk->bck", rows_of(vector, first, size, axis=2), rows), vector.shape[-1])

    prefix = 0.5 * (vector.at[..., seq:].set(0) + add_blocks(one, seq, block))
    return _through_tail(prefix, vector[..., seq:], means)
