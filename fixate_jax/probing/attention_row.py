"""Plain attention: the baseline operator."""

import jax.numpy as jnp

from fixate_jax.config import OperatorConfig
from fixate_jax.probing.layer_weights import depth_weights
from fixate_jax.probing.trace import Probe, Trace


def attention_row(trace: Trace, config: OperatorConfig) -> Probe:
    """R[src] = Σ_l w_l mean_h A_l[src], a depth-weighted mean of the attention that ``src`` pays.

    Args:
        trace: the stopped model.
        config: ``layer_weights``.

    Returns:
        Logits and relevance; relevance is not negative and sums to 1 over all positions.
    """
    out = trace.model.tail(trace.prefix)
    weights = depth_weights(out.rows.shape[0], config.layer_weights)
    return Probe(out.logits, jnp.einsum("l,lbck->bck", weights, out.rows[..., -1, :].mean(3)))
