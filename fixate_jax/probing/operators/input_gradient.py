"""Input × gradient at the embeddings: every position's share in ℓ, through the whole decoder."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fixate_jax.backbones.decoder.attention import precise
from fixate_jax.backbones.decoder.decoder_layer import Rules
from fixate_jax.probing.rules import TwiceRules
from fixate_jax.probing.trace import Probe, Trace, operator


class Embeddings(NamedTuple):
    """All that enters the decoder, or ∂ℓ/∂ of it, then with one more axis in front: whose ℓ.

    Attributes:
        hidden: what enters the first layer at the prefix.
        deep: what is added after the first layers (DeepStack).
        tail_hidden: what enters the first layer at the tail.
    """

    hidden: Float[Array, "*branch batch seq width"]
    deep: Float[Array, "*branch levels batch seq width"]
    tail_hidden: Float[Array, "*branch batch tails tail width"]

    @classmethod
    def of(cls, trace: Trace) -> "Embeddings":
        """Those of a trace."""
        start = trace.prefix.start
        return cls(start.hidden, start.deep, start.tail_hidden)


def embedding_gradient(
    trace: Trace, at: Embeddings, rules: Rules
) -> tuple[Float[Array, "batch branch tail vocab"], Embeddings]:
    """Logits and, for each branch, ∂ℓ/∂embeddings under some rules, the decoder being run from its first layer.

    Args:
        trace: whose model, sequences and target to take.
        at: the embeddings to run it with.
        rules: what the gradient sees of the layers.
    """
    decoder = trace.model.decoder

    def score(at: Embeddings) -> tuple[Float[Array, "batch branch"], Float[Array, "batch branch tail vocab"]]:
        start = trace.prefix.start._replace(**at._asdict())
        prefix = decoder.tapped(start, decoder.below(start, rules), rules)
        logits = decoder.tail(prefix, rules=rules).logits
        return trace.target(logits), logits

    value, pullback, logits = jax.vjp(score, at, has_aux=True)
    batch, branch = value.shape
    each = jnp.broadcast_to(jnp.eye(branch, dtype=value.dtype)[:, None], (branch, batch, branch))
    # One after the other: a gradient of the whole decoder for all branches at once would take so many times the memory.
    (gradient,) = jax.lax.map(pullback, each)
    return logits, gradient


def times_gradient(values: Embeddings, gradient: Embeddings) -> Float[Array, "batch branch keys"]:
    """Σ value · gradient at every position, over the width and over all levels of a page token."""
    kind = precise(values.hidden)
    prefix = jnp.einsum("bsd,cbsd->bcs", values.hidden, gradient.hidden, preferred_element_type=kind)
    if len(values.deep):
        prefix += jnp.einsum("lbsd,clbsd->bcs", values.deep, gradient.deep, preferred_element_type=kind)
    # A branch's tail matters to that branch alone.
    tail = jnp.einsum("bctd,cbctd->bct", values.tail_hidden, gradient.tail_hidden, preferred_element_type=kind)
    return jnp.concatenate([prefix, tail], axis=-1)


@operator()
def input_gradient(trace: Trace) -> Probe:
    """R_j = Σ x_j · ∂ℓ/∂x_j at the embeddings, a page token's being summed over its levels (Shrikumar et al., 2016).

    Args:
        trace: the model; what is differentiated is the whole of its decoder.

    Returns:
        Logits and signed relevance.
    """
    at = Embeddings.of(trace)
    logits, gradient = embedding_gradient(trace, at, TwiceRules())
    return Probe(logits, times_gradient(at, gradient))


@operator()
def integrated_gradients(trace: Trace, *, steps: int = 16) -> Probe:
    """R_j = Σ x_j · ∫₀¹ ∂ℓ/∂x_j(α) dα, the page being dimmed to α times its tokens (Sundararajan et al., ICML 2017).

    Only the page is dimmed, at all its levels; the prompt and the text stay, and have no relevance. The integral is the
    mean over ``steps`` midpoints, one gradient at a time. With enough of them relevance sums to ℓ less what it
    is with a page of zeros. Enough can be thousands: the first norm gives a dimmed page its full size back until its
    tokens are as small as √ε of the norm, so that much of the change lies below α = 0.001.

    Args:
        trace: the model; what is differentiated is the whole of its decoder.
        steps: points at which the integral is taken.

    Returns:
        Logits and signed relevance, 0 outside the page.
    """
    full = Embeddings.of(trace)
    visual = trace.prefix.start.visual[..., None]
    page = Embeddings(jnp.where(visual, full.hidden, 0), full.deep, jnp.zeros_like(full.tail_hidden))

    def add(total: Array, alpha: Array) -> tuple[Array, None]:
        dimmed = jax.tree.map(lambda x, part: x - (1 - alpha).astype(x.dtype) * part, full, page)
        _, gradient = embedding_gradient(trace, dimmed, TwiceRules())
        return total + times_gradient(page, gradient), None

    logits = trace.model.tail(trace.prefix).logits
    batch, branch, tail = full.tail_hidden.shape[:3]
    kind = precise(full.hidden)
    zeros = jnp.zeros((batch, branch, full.hidden.shape[1] + tail), kind)
    points = (jnp.arange(steps, dtype=kind) + 0.5) / steps
    total, _ = jax.lax.scan(jax.checkpoint(add, prevent_cse=False), zeros, points)
    return Probe(logits, total / steps)
