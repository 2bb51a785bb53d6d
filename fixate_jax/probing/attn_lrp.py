"""AttnLRP as FixATE defines it: attention times its gradient, normalised row by row, summed over layers."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fixate_jax.config import OperatorConfig
from fixate_jax.probing.layer_weights import depth_weights
from fixate_jax.probing.tail_gradient import source_rows
from fixate_jax.probing.trace import Probe, Trace


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


def attn_lrp(trace: Trace, config: OperatorConfig) -> Probe:
    """R = I + Σ_l w_l E_l with E_l = mean_h W/D, W = A⊙G, G = c·∂ℓ/∂A (FixATE's AttnLRP).

    Only row ``src`` is wanted. The identity touches only position ``src`` itself, which is no visual token, and is
    left out.

    Args:
        trace: the stopped model.
        config: ``grad_scale`` c, ``eps`` ε, the normalisation, ``stop_gradient`` and ``layer_weights``.

    Returns:
        Logits and signed relevance (``positive``: not negative).
    """
    logits, rows, gradient = source_rows(trace, config)
    mean = normalise_rows(rows * gradient, how=config.normalise, eps=config.eps).mean(3)
    return Probe(logits, jnp.einsum("l,lbck->bck", depth_weights(len(rows), config.layer_weights), mean))


def attention_gradient(trace: Trace, config: OperatorConfig) -> Probe:
    """R[src] = Σ_l w_l mean_h A_l[src] ⊙ G_l[src]: attention times gradient, as it is.

    What AttnLRP does before it divides by anything (Chefer et al., 2021, without the clipping at 0).

    Args:
        trace: the stopped model.
        config: ``grad_scale`` c, ``stop_gradient`` and ``layer_weights``.

    Returns:
        Logits and signed relevance.
    """
    logits, rows, gradient = source_rows(trace, config)
    mean = (rows * gradient).mean(3)
    return Probe(logits, jnp.einsum("l,lbck->bck", depth_weights(len(rows), config.layer_weights), mean))
