"""GLIMPSE: gradient-weighted attention, heads and layers weighted by what their gradient says, propagated in depth."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fixate_jax.backbones.decoder.attention import group_heads, precise
from fixate_jax.backbones.decoder.row_blocks import add_blocks, rows_of
from fixate_jax.backbones.inputs import Stream
from fixate_jax.probing.attention_rows import attention_rows, widen
from fixate_jax.probing.rules import TwiceRules
from fixate_jax.probing.trace import Probe, Trace, operator

HEAD_TEMPERATURE = 0.5
DEPTH_RATE = 0.2
"""Constants of the method, as FixATE takes them."""


class Sums(NamedTuple):
    """Sums over a layer's whole matrices.

    Attributes:
        weighted: Σ W_h of each head.
        positive: Σ relu(G_h) of each head.
        size: ‖Σ_h G‖₁.
    """

    weighted: Float[Array, "*layers batch branch heads"]
    positive: Float[Array, "*layers batch branch heads"]
    size: Float[Array, "*layers batch branch"]


class PrefixLayer(NamedTuple):
    """What the prefix's rows of A and of ∂ℓ/∂A = cotangent · valueᵀ are made of, in one layer or in a stack of them.

    Attributes:
        query, key, value: of the prefix.
        cotangent: ∂ℓ/∂(what each head attended to), scaled by c.
        tail_value: the tail's values, for the columns that no row of the prefix may see.
    """

    query: Float[Array, "*layers batch seq heads head"]
    key: Float[Array, "*layers batch seq kv head"]
    value: Float[Array, "*layers batch seq kv head"]
    cotangent: Float[Array, "*layers batch branch seq heads head"]
    tail_value: Float[Array, "*layers batch branch tail kv head"]


@operator()
def glimpse(
    trace: Trace,
    *,
    grad_scale: float = 0.1,
    eps: float = 1e-4,
    stop_gradient: bool = False,
    masked_gradients: bool = True,
) -> Probe:
    """R ← R + α_l E_l R upwards from R = I, with E_l and α_l from whole matrices (GLIMPSE; FixATE's constants).

    W_h = relu(G_h ⊙ A_h); s_h = ΣW_h / (Σ relu(G_h) + ε); E = Σ_h softmax(s / 0.5)_h W_h, rows divided by their sum
    + ε; α_l ∝ ‖Σ_h G_l‖₁ · softmax(0.2 · l), divided by their sum + ε.

    G[i, j] = c · (∂ℓ/∂o_i) · v_j, o_i being what a head attended to at position i, so no whole matrix is stored:
    every sum is over blocks of rows, computed again where they are differentiated. The sums of G count the places
    that causality masks, as the published code does, unless ``masked_gradients`` is False; padding is
    never counted.

    Args:
        trace: the stopped model; a factory's call leaves it out.
        grad_scale: c.
        eps: ε.
        stop_gradient: take G for a constant where relevance is differentiated, which saves the second order.
        masked_gradients: count G also where causality masks attention.

    Returns:
        Logits and relevance, which is not negative.
    """
    logits, rows, gradient, layers = _whole_gradient(trace, grad_scale=grad_scale, stop_gradient=stop_gradient)
    below, block = trace.prefix.below, trace.model.decoder.config.attention_block
    counted = _counted_in_tail(below.valid, below.tail_valid, rows.shape, masked_gradients)
    sums = _tail_sums(rows, gradient, counted)
    if layers is not None:
        one = partial(_prefix_sums, below=below, block=block, masked=masked_gradients)
        more = jax.lax.map(jax.checkpoint(one), layers)
        sums = jax.tree.map(lambda all_, part: all_.at[:-1].add(part), sums, more)
    heads = jax.nn.softmax(sums.weighted / (sums.positive + eps) / HEAD_TEMPERATURE, axis=-1)
    depth = jax.nn.softmax(DEPTH_RATE * jnp.arange(1, len(rows) + 1, dtype=rows.dtype))
    alpha = sums.size * depth[:, None, None]
    alpha = alpha / (alpha.sum(0) + eps)

    tail = rows.shape[-2]
    vector = jnp.zeros(rows.shape[1:3] + rows.shape[-1:], rows.dtype).at[..., -1].set(1)
    fused = jnp.einsum("lbch,lbchtk->lbctk", heads, jax.nn.relu(rows * gradient))
    fused = fused / (fused.sum(-1, keepdims=True) + eps)
    vector = vector + alpha[-1][..., None] * jnp.einsum("bct,bctk->bck", vector[..., -tail:], fused[-1])
    if layers is not None:
        down = jax.checkpoint(partial(_push_down, valid=below.valid, block=block, eps=eps))
        xs = (layers, fused[:-1], heads[:-1], alpha[:-1])
        vector, _ = jax.lax.scan(lambda v, x: (down(v, *x), None), vector, xs, reverse=True)
    return Probe(logits, vector)


def _whole_gradient(
    trace: Trace, *, grad_scale: float, stop_gradient: bool
) -> tuple[Array, Array, Array, PrefixLayer | None]:
    """Logits, the tail's rows of A and G in all tapped layers, and what the prefix's are made of below the last.

    In the last tapped layer no row of the prefix has a gradient.
    """
    model, prefix = trace.model, trace.prefix
    below, layers = prefix.below, prefix.key.shape[0]
    batch, branch, tail = below.tail_hidden.shape[:3]
    seq, heads = below.hidden.shape[1], model.config.decoder.heads
    kind = precise(prefix.key)
    taps = jnp.zeros((layers, batch, branch, heads, tail, seq + tail), kind)
    attended = jnp.zeros((layers - 1, batch, seq, heads, prefix.key.shape[-1]), kind) if layers > 1 else None

    def score(taps: Array, attended: Array | None) -> tuple[Array, tuple]:
        rows = model.decoder.whole_rows(below, TwiceRules(), attended)
        out = model.decoder.tail(prefix._replace(key=rows.key, value=rows.value), taps)
        return trace.target(out.logits), (out, rows)

    _, pullback, (out, rows) = jax.vjp(score, taps, attended, has_aux=True)
    each = jnp.broadcast_to(jnp.eye(branch, dtype=kind)[:, None], (branch, batch, branch))
    # One branch after the other: a gradient for all of them at once would take so many times the memory.
    tail_gradient, cotangent = jax.lax.map(pullback, each)
    tail_gradient = jnp.moveaxis(jnp.diagonal(tail_gradient, axis1=0, axis2=3), -1, 2)
    # What G is made of. Queries and keys are not.
    parts = (grad_scale * tail_gradient, cotangent, rows.value, out.value)
    tail_gradient, cotangent, value, tail_value = jax.lax.stop_gradient(parts) if stop_gradient else parts
    whole = None
    if layers > 1:
        cotangent = grad_scale * jnp.moveaxis(cotangent, 0, 2)
        whole = PrefixLayer(rows.query, rows.key[:-1], value[:-1], cotangent, tail_value[:-1])
    return out.logits, out.rows, tail_gradient, whole


def _counted_in_tail(
    valid: Bool[Array, "batch seq"], tail_valid: Bool[Array, "batch branch tail"], shape: tuple[int, ...], masked: bool
) -> Bool[Array, "batch branch 1 tail keys"]:
    """Which places of the tail's rows of G are counted."""
    batch, branch, _, tail, keys = shape[1:]
    prefix = jnp.broadcast_to(valid[:, None, None, :], (batch, branch, tail, keys - tail))
    own = jnp.broadcast_to(tail_valid[:, :, None, :], (batch, branch, tail, tail))
    if not masked:
        own = own & jnp.tril(jnp.ones((tail, tail), bool))
    return jnp.concatenate([prefix, own], axis=-1)[:, :, None]


def _tail_sums(rows: Array, gradient: Array, counted: Array) -> Sums:
    gradient = jnp.where(counted, gradient, 0)
    return Sums(
        weighted=jax.nn.relu(rows * gradient).sum((-1, -2)),
        positive=jax.nn.relu(gradient).sum((-1, -2)),
        size=jnp.abs(gradient.sum(3)).sum((-1, -2)),
    )


def _block_gradient(
    cotangent: Float[Array, "batch branch rows heads head"], value: Float[Array, "batch keys kv head"]
) -> Float[Array, "batch branch heads rows keys"]:
    """Some rows of G."""
    asked = group_heads(cotangent, value.shape[-2])
    out = jnp.einsum("bcqhgd,bkhd->bchgqk", asked, value, preferred_element_type=precise(value))
    return out.reshape(*out.shape[:2], -1, *out.shape[-2:])


def _prefix_sums(
    layer: PrefixLayer,
    *,
    below: Stream,
    block: int,
    masked: bool,
) -> Sums:
    """One layer's sums over the rows of the prefix."""
    valid, tail_valid = below.valid, below.tail_valid
    seq, kv = layer.key.shape[1], layer.key.shape[2]

    def one(first: Any, size: int, keys: int) -> Sums:
        columns = seq if masked else keys
        cotangent = rows_of(layer.cotangent, first, size, axis=2)
        gradient = _block_gradient(cotangent, layer.value[:, :columns])
        seen = valid[:, None, None, None, :columns]
        if not masked:
            seen = seen & (jnp.arange(columns) <= (first + jnp.arange(size))[:, None])
        gradient = jnp.where(seen, gradient, 0)
        rows = attention_rows(rows_of(layer.query, first, size), layer.key[:, :keys], valid[:, :keys], first)
        parts = Sums(
            jax.nn.relu(gradient[..., :keys] * rows[:, None]).sum((-1, -2)),
            jax.nn.relu(gradient).sum((-1, -2)),
            jnp.abs(gradient.sum(2)).sum((-1, -2)),
        )
        if not masked:
            return parts
        beyond = jnp.einsum("bcqhgd,bcthd->bchgqt", group_heads(cotangent, kv), layer.tail_value)
        beyond = beyond.reshape(*gradient.shape[:-1], -1).astype(gradient.dtype)
        beyond = jnp.where(tail_valid[:, :, None, None, :], beyond, 0)
        return parts._replace(
            positive=parts.positive + jax.nn.relu(beyond).sum((-1, -2)),
            size=parts.size + jnp.abs(beyond.sum(2)).sum((-1, -2)),
        )

    return add_blocks(one, seq, block)


def _push_down(
    vector: Float[Array, "batch branch keys"],
    layer: PrefixLayer,
    tail_fused: Float[Array, "batch branch tail keys"],
    heads: Float[Array, "batch branch heads"],
    alpha: Float[Array, "batch branch"],
    *,
    valid: Bool[Array, "batch seq"],
    block: int,
    eps: float,
) -> Any:
    """v + α v E for one layer."""
    seq, tail = layer.key.shape[1], tail_fused.shape[-2]

    def one(first: Any, size: int, keys: int) -> Float[Array, "batch branch keys"]:
        gradient = _block_gradient(rows_of(layer.cotangent, first, size, axis=2), layer.value[:, :keys])
        rows = attention_rows(rows_of(layer.query, first, size), layer.key[:, :keys], valid[:, :keys], first)
        fused = jnp.einsum("bch,bchqk->bcqk", heads, jax.nn.relu(gradient * rows[:, None]))
        share = rows_of(vector, first, size, axis=2) / (fused.sum(-1) + eps)
        return widen(jnp.einsum("bcq,bcqk->bck", share, fused), vector.shape[-1])

    pushed = add_blocks(one, seq, block) + jnp.einsum("bct,bctk->bck", vector[..., -tail:], tail_fused)
    return vector + alpha[..., None] * pushed
