"""AttnLRP as FixATE defines it: attention times its gradient, normalised row by row, summed over layers."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fixate_jax.backbones.attention import precise
from fixate_jax.config import OperatorConfig
from fixate_jax.probing.layer_weights import depth_weights
from fixate_jax.probing.trace import Probe, Trace


def normalise_rows(
    weighted: Float[Array, "layers batch branch heads keys"], *, how: str, eps: float
) -> Float[Array, "layers batch branch heads keys"]:
    """Divide each row W by its stabilised sum D.

    ``"signed"`` (the paper): D = ΣW, moved away from 0 by ε: D + ε·sign(D), and ε where that is still below ε.
    ``"abs"``: D = Σ|W| + ε, which can neither vanish nor turn a row's sign.
    """
    if how == "abs":
        return weighted / (jnp.abs(weighted).sum(-1, keepdims=True) + eps)
    total = weighted.sum(-1, keepdims=True)
    moved = total + eps * jnp.sign(total)
    return weighted / jnp.where(jnp.abs(moved) < eps, eps, moved)


def attn_lrp(trace: Trace, config: OperatorConfig) -> Probe:
    """R = I + Σ_l w_l E_l with E_l = mean_h W/D, W = A⊙G, G = c·∂ℓ/∂A (FixATE's AttnLRP).

    Only row ``src`` is wanted, and A[src] is one token's computation given the keys and values before it: a zero tap
    on that row and one gradient through the tail give G[src] of every tapped layer. The identity touches only
    position ``src`` itself, which is no visual token, and is left out.

    Args:
        trace: the stopped model.
        config: ``grad_scale`` c, ``eps`` ε, the normalisation and ``layer_weights``.

    Returns:
        Logits and signed relevance.
    """
    prefix = trace.prefix
    layers, _, seq, _, _ = prefix.key.shape
    batch, branch, tail = prefix.hidden.shape[:3]
    heads = trace.model.config.decoder.heads
    taps = jnp.zeros((layers, batch, branch, heads, seq + tail), precise(prefix.key))

    def score(taps: Float[Array, "layers batch branch heads keys"]) -> tuple[Float[Array, ""], tuple]:
        out = trace.model.tail(prefix, taps)
        return trace.target(out.logits).sum(), out

    gradient, (logits, rows) = jax.grad(score, has_aux=True)(taps)
    weighted = rows * (config.grad_scale * gradient)
    mean = normalise_rows(weighted, how=config.normalise, eps=config.eps).mean(3)
    return Probe(logits, jnp.einsum("l,lbck->bck", depth_weights(layers, config.layer_weights), mean))
