"""Plain attention: the baseline operator."""

import jax.numpy as jnp

from fixate_jax.probing.layer_weights import depth_weights
from fixate_jax.probing.trace import Probe, Trace, operator


@operator(source_row=True)
def attention(trace: Trace, *, layer_weights: tuple[float, ...] | None = None) -> Probe:
    """R[src] = Σ_l w_l mean_h A_l[src], a depth-weighted mean of the attention that ``src`` pays.

    Relevance is not negative and sums to 1 over all positions.

    Args:
        trace: the stopped model; a factory's call leaves it out.
        layer_weights: w, the lowest tapped layer first (None: w_l = l / Σl, FixATE's).
    """
    out = trace.tail()
    weights = depth_weights(out.rows.shape[0], layer_weights)
    return out.with_relevance(jnp.einsum("l,lbck->bck", weights, out.rows[..., -1, :].mean(3)))
