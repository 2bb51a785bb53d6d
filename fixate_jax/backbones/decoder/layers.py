"""The simplest layers, as the vision towers use them: one type for weights and results, norms computed in float32."""

from typing import Any

import jax
from flax import nnx

from fixate_jax.backbones.decoder.products import linear_product

ACTIVATIONS = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
}
"""By their names in a checkpoint's ``config.json``."""


def linear(inputs: int, outputs: int, dtype: Any, rngs: nnx.Rngs, *, bias: bool = True) -> nnx.Linear:
    """A linear layer."""
    return nnx.Linear(
        inputs, outputs, use_bias=bias, dtype=dtype, param_dtype=dtype, dot_general=linear_product, rngs=rngs
    )


def layer_norm(width: int, eps: float, dtype: Any, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """A layer norm with scale and bias."""
    return nnx.LayerNorm(width, epsilon=eps, dtype=dtype, param_dtype=dtype, use_fast_variance=False, rngs=rngs)


def rms_norm(width: int, eps: float, dtype: Any, rngs: nnx.Rngs) -> nnx.RMSNorm:
    """A root-mean-square norm with a scale."""
    return nnx.RMSNorm(width, epsilon=eps, dtype=dtype, param_dtype=dtype, rngs=rngs)
