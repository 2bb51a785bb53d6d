"""Weights of the tapped layers."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from fixate_jax.errors import ConfigError


def depth_weights(layers: int, chosen: Sequence[float] | None = None) -> Float[Array, " layers"]:
    """w_l = l / Σl for l = 1…m: deeper layers count more (FixATE). Or the weights chosen, divided by their sum.

    Args:
        layers: m, number of tapped layers.
        chosen: ``operator.layer_weights``, lowest tapped layer first.

    Raises:
        ConfigError: when there is not one weight a tapped layer.
    """
    if chosen is not None and len(chosen) != layers:
        raise ConfigError(f"operator.layer_weights = {tuple(chosen)}: {layers} layers are tapped, give one weight each")
    index = jnp.arange(1, layers + 1, dtype=jnp.float32) if chosen is None else jnp.asarray(chosen, jnp.float32)
    return index / index.sum()
