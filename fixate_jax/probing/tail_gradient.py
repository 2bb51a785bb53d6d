"""Attention of ``src`` and its gradient, from the tail alone."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fixate_jax.backbones.decoder.attention import precise
from fixate_jax.probing.trace import Trace


def source_rows(
    trace: Trace, *, grad_scale: float, stop_gradient: bool
) -> tuple[
    Float[Array, "batch branch tail vocab"],
    Float[Array, "layers batch branch heads keys"],
    Float[Array, "layers batch branch heads keys"],
]:
    """Logits, A_l[src] and G_l[src] = c·∂ℓ/∂A_l[src] of the tapped layers.

    A[src] is one token's computation given the keys and values before it: a zero tap on that row and one gradient
    through the tail give G[src] of every tapped layer.

    Args:
        trace: the stopped model.
        grad_scale: c.
        stop_gradient: G counts as a constant where relevance is differentiated.
    """
    prefix = trace.prefix
    layers, _, seq, _, _ = prefix.key.shape
    batch, branch, tail = prefix.below.tail_hidden.shape[:3]
    heads = trace.model.config.decoder.heads
    zeros = jnp.zeros((layers, batch, branch, heads, seq + tail), precise(prefix.key))

    def score(source: Float[Array, "layers batch branch heads keys"]) -> tuple[Float[Array, ""], tuple]:
        taps = jnp.pad(source[..., None, :], ((0, 0), (0, 0), (0, 0), (0, 0), (tail - 1, 0), (0, 0)))
        out = trace.model.tail(prefix, taps)
        return trace.target(out.logits).sum(), (out.logits, out.rows[..., -1, :])

    gradient, (logits, rows) = jax.grad(score, has_aux=True)(zeros)
    if stop_gradient:
        gradient = jax.lax.stop_gradient(gradient)
    return logits, rows, grad_scale * gradient
