"""Weights of the tapped layers."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def depth_weights(layers: int) -> Float[Array, " layers"]:
    """w_l = l / Σl for l = 1…m: deeper layers count more (FixATE)."""
    index = jnp.arange(1, layers + 1, dtype=jnp.float32)
    return index / index.sum()
