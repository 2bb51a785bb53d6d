"""AttnLRP as FixATE defines it: attention times its gradient, normalised row by row, summed over layers."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fixate_jax.probing.layer_weights import depth_weights
from fixate_jax.probing.tail_gradient import source_rows
from fixate_jax.probing.trace import Probe, Trace, operator


def normalise_rows(
    weighted: Float[Array, "layers batch branch heads keys"], *, how: str, eps: float
) -> Float[Array, "layers batch branch heads keys"]:
    """Divide each row W by its stabilised sum D.

    ``"signed"`` (the paper): D = ΣW, moved away from 0 by ε: D + ε·sign(D), and ε where that is still below ε.
    ``"abs"``: D = Σ|W| + ε, which can neither vanish nor turn a row's sign.
    ``"positive"``: only relu(W) is kept, D = Σ relu(W) + ε, so that nothing cancels anywhere.
    """
    if how == "positive":
        weighted = jax.nn.relu(weighted)
    if how in ("abs", "positive"):
        return weighted / (jnp.abs(weighted).sum(-1, keepdims=True) + eps)
    total = weighted.sum(-1, keepdims=True)
    moved = total + eps * jnp.sign(total)
    return weighted / jnp.where(jnp.abs(moved) < eps, eps, moved)


@operator(source_row=True)
def attn_lrp(
    trace: Trace,
    *,
    normalise: Literal["signed", "abs", "positive"] = "signed",
    grad_scale: float = 0.1,
    eps: float = 1e-4,
    stop_gradient: bool = False,
    layer_weights: tuple[float, ...] | None = None,
) -> Probe:
    """R = I + Σ_l w_l E_l with E_l = mean_h W/D, W = A⊙G, G = c·∂ℓ/∂A (FixATE's AttnLRP).

    Only row ``src`` is wanted. The identity touches only position ``src`` itself, which is no visual token, and is
    left out.

    Args:
        trace: the stopped model; a factory's call leaves it out.
        normalise: how rows are divided, see :func:`normalise_rows`.
        grad_scale: c.
        eps: ε.
        stop_gradient: take G for a constant where relevance is differentiated, which saves the second order.
        layer_weights: w, the lowest tapped layer first (None: w_l = l / Σl, FixATE's).

    Returns:
        Logits and signed relevance (``positive``: not negative).
    """
    logits, rows, gradient = source_rows(trace, grad_scale=grad_scale, stop_gradient=stop_gradient)
    mean = normalise_rows(rows * gradient, how=normalise, eps=eps).mean(3)
    return Probe(logits, jnp.einsum("l,lbck->bck", depth_weights(len(rows), layer_weights), mean))


@operator(source_row=True)
def attention_gradient(
    trace: Trace,
    *,
    grad_scale: float = 0.1,
    stop_gradient: bool = False,
    layer_weights: tuple[float, ...] | None = None,
) -> Probe:
    """R[src] = Σ_l w_l mean_h A_l[src] ⊙ G_l[src]: attention times gradient, as it is.

    What AttnLRP does before it divides by anything (Chefer et al., 2021, without the clipping at 0).

    Args:
        trace: the stopped model; a factory's call leaves it out.
        grad_scale: c in G = c · ∂ℓ/∂A.
        stop_gradient: take G for a constant where relevance is differentiated.
        layer_weights: w, the lowest tapped layer first (None: w_l = l / Σl, FixATE's).

    Returns:
        Logits and signed relevance.
    """
    logits, rows, gradient = source_rows(trace, grad_scale=grad_scale, stop_gradient=stop_gradient)
    mean = (rows * gradient).mean(3)
    return Probe(logits, jnp.einsum("l,lbck->bck", depth_weights(len(rows), layer_weights), mean))
