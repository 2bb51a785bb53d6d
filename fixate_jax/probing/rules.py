"""What the gradient sees of a layer's pieces: all of them, or what AttnLRP's backward rules make of them.

Input × gradient under these rules is layer-wise relevance propagation (Achtibat et al., ICML 2024). The values never
change. Each ruled operation is a ``jax.custom_vjp`` whose forward
part is written in plain operations: differentiating the ruled gradient once more, which tuning does, sees nothing but
those and is exact.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fixate_jax.backbones.decoder.attention import precise
from fixate_jax.backbones.decoder.decoder_layer import PLAIN, Rules
from fixate_jax.backbones.decoder.layers import ACTIVATIONS

HALF = 0.5
QUARTER = 0.25
"""Shares of relevance in a product, and in a product within a product."""


class TwiceRules(Rules):
    """The model as it is, differentiated twice."""

    twice = True


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def part_of_gradient(x: Float[Array, "*dims"], share: float) -> Float[Array, "*dims"]:
    """x itself, of whose gradient only a share flows on."""
    return x


part_of_gradient.defvjp(lambda x, share: (x, None), lambda share, _, cotangent: (share * cotangent,))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def held_rms_norm(
    x: Float[Array, "*dims width"], scale: Float[Array, " width"], eps: float
) -> Float[Array, "*dims width"]:
    """RMSNorm y = x · g(x), g being a constant to the gradient, and so is ``scale``: the identity rule."""
    return _rms_norm(x, scale, eps)[0]


def _rms_norm(x: Array, scale: Array, eps: float) -> tuple[Array, Array]:
    wide = x.astype(precise(x))
    gain = jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + eps) * scale
    return (wide * gain).astype(x.dtype), gain


def _rms_norm_back(eps: float, gain: Array, cotangent: Array) -> tuple[Array, None]:
    return (cotangent * gain).astype(cotangent.dtype), None


held_rms_norm.defvjp(_rms_norm, _rms_norm_back)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def held_layer_norm(
    x: Float[Array, "*dims width"], scale: Float[Array, " width"], bias: Float[Array, " width"], eps: float
) -> Float[Array, "*dims width"]:
    """LayerNorm y = (x − mean x) · g(x) + bias, g being a constant to the gradient: the identity rule."""
    return _layer_norm(x, scale, bias, eps)[0]


def _layer_norm(x: Array, scale: Array, bias: Array, eps: float) -> tuple[Array, Array]:
    wide = x.astype(precise(x))
    centred = wide - wide.mean(-1, keepdims=True)
    gain = jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + eps) * scale
    return (centred * gain + bias).astype(x.dtype), gain


def _layer_norm_back(eps: float, gain: Array, cotangent: Array) -> tuple[Array, None, None]:
    centred = cotangent * gain
    return (centred - centred.mean(-1, keepdims=True)).astype(cotangent.dtype), None, None


held_layer_norm.defvjp(_layer_norm, _layer_norm_back)


GAINS = {
    "gelu": lambda x: 0.5 * jax.lax.erfc(-x * 0.5**0.5),
    "gelu_pytorch_tanh": lambda x: 0.5 * (1 + jnp.tanh((2 / jnp.pi) ** 0.5 * (x + 0.044715 * x**3))),
    "silu": jax.nn.sigmoid,
}
"""What each of :data:`fixate_jax.backbones.decoder.layers.ACTIVATIONS` multiplies its input by."""


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def held_activation(x: Float[Array, "*dims"], name: str) -> Float[Array, "*dims"]:
    """An activation x · g(x), g being a constant to the gradient: the identity rule."""
    return ACTIVATIONS[name](x)


held_activation.defvjp(
    lambda x, name: (ACTIVATIONS[name](x), GAINS[name](x)), lambda name, gain, cotangent: (cotangent * gain,)
)


@jax.custom_vjp
def held_gated(gate: Float[Array, "*dims"], up: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
    """silu(gate) · up: the identity rule on silu(x) = x · σ(x), the uniform rule on the product."""
    return PLAIN.gated(gate, up)


def _gated(gate: Array, up: Array) -> tuple[Array, tuple[Array, Array]]:
    return PLAIN.gated(gate, up), (gate, up)


def _gated_back(saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    kind = cotangent.dtype
    gate, up, half = (x.astype(precise(x)) for x in (*saved, HALF * cotangent))
    gain = GAINS["silu"](gate)
    return (half * gain * up).astype(kind), (half * gate * gain).astype(kind)


held_gated.defvjp(_gated, _gated_back)


class LrpRules(TwiceRules):
    """AttnLRP's rules.

    - Identity rule on activations (their eq. 9) and norms (Proposition 3.4): what multiplies the input counts as a
      constant.
    - Uniform rule on products (eq. 7, Propositions 3.2 and 3.3): each factor gets half. Values are a factor of one
      product, so half of the gradient; queries and keys are factors of a factor of it, so a quarter.
    - Softmax: its Taylor rule (Proposition 3.1) is its plain gradient where relevance is input × gradient.
    - Linear maps, residuals and rotations as they are.
    """

    def norm(self, module: nnx.RMSNorm | nnx.LayerNorm, x: Float[Array, "*dims width"]) -> Float[Array, "*dims width"]:
        """Identity rule."""
        assert module.scale is not None
        scale = module.scale[...]
        if isinstance(module, nnx.LayerNorm):
            assert module.bias is not None
            return held_layer_norm(x, scale, module.bias[...], module.epsilon)
        return held_rms_norm(x, scale, module.epsilon)

    def activation(self, name: str, x: Float[Array, "*dims ff"]) -> Float[Array, "*dims ff"]:
        """Identity rule."""
        return held_activation(x, name)

    def gated(self, gate: Float[Array, "*dims ff"], up: Float[Array, "*dims ff"]) -> Float[Array, "*dims ff"]:
        """Identity rule on the activation, half of the product for either side."""
        return held_gated(gate, up)

    def query(self, query: Float[Array, "*dims heads head"]) -> Float[Array, "*dims heads head"]:
        """A quarter."""
        return part_of_gradient(query, QUARTER)

    def key(self, key: Float[Array, "*dims kv head"]) -> Float[Array, "*dims kv head"]:
        """A quarter."""
        return part_of_gradient(key, QUARTER)

    def value(self, value: Float[Array, "*dims kv head"]) -> Float[Array, "*dims kv head"]:
        """Half."""
        return part_of_gradient(value, HALF)
