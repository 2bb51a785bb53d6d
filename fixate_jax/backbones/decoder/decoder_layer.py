"""One layer of the Qwen3 decoder, and what its pieces, and those of vision layers, may be replaced by."""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fixate_jax.backbones.decoder import layers
from fixate_jax.backbones.decoder.attention import precise
from fixate_jax.backbones.decoder.flash import Attention
from fixate_jax.backbones.decoder.layers import ACTIVATIONS
from fixate_jax.backbones.decoder.rope import rotate
from fixate_jax.backbones.sharding import by_rows

Remat = Literal["dots", "full", "none"]


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Shape of a Qwen3 decoder, and how to run it.

    ``attention``, ``attention_block``, ``remat`` and ``unroll`` change speed and memory, never results.
    """

    vocab: int
    layers: int
    width: int
    ff: int
    heads: int
    kv_heads: int
    head_dim: int
    rope_theta: float
    mrope_section: tuple[int, ...] | None = None
    norm_eps: float = 1e-6
    attention_bias: bool = False
    tied: bool = False
    deepstack_levels: int = 0
    tapped_layers: int = 6
    dtype: Any = jnp.float32
    attention: Attention = "auto"
    attention_block: int = 256
    remat: Remat = "dots"
    unroll: bool = False

    @property
    def tapped(self) -> int:
        """Number of layers that the tail runs through (never more than there are)."""
        return min(self.tapped_layers, self.layers)

    @property
    def groups(self) -> dict[str, range]:
        """Layer indices of each stack."""
        first = self.layers - self.tapped
        return {
            "lower": range(0, first),
            "upper": range(first, self.layers - 1),
            "last": range(self.layers - 1, self.layers),
        }


class Rules:
    """How the pieces of a layer are computed: here, as the model says.

    An operator with backward rules of its own overrides them (:class:`fixate_jax.probing.rules.LrpRules`). The values
    must stay the same, only what the gradient sees of them may change.
    """

    twice = False
    """Whether the layers are differentiated twice, which the platform's attention kernels do not allow."""

    def norm(self, module: nnx.RMSNorm | nnx.LayerNorm, x: Float[Array, "*dims width"]) -> Float[Array, "*dims width"]:
        """A normalised residual stream, or normalised queries or keys."""
        return module(x)

    def activation(self, name: str, x: Float[Array, "*dims ff"]) -> Float[Array, "*dims ff"]:
        """The activation of that name in :data:`fixate_jax.backbones.decoder.layers.ACTIVATIONS`, on its own."""
        return ACTIVATIONS[name](x)

    def gated(self, gate: Float[Array, "*dims ff"], up: Float[Array, "*dims ff"]) -> Float[Array, "*dims ff"]:
        """The gated activation, computed in float32 or wider and rounded once."""
        wide = precise(gate)
        return (jax.nn.silu(gate.astype(wide)) * up.astype(wide)).astype(gate.dtype)

    def query(self, query: Float[Array, "*dims heads head"]) -> Float[Array, "*dims heads head"]:
        """Queries on their way into attention."""
        return query

    def key(self, key: Float[Array, "*dims kv head"]) -> Float[Array, "*dims kv head"]:
        """Keys on their way into attention."""
        return key

    def value(self, value: Float[Array, "*dims kv head"]) -> Float[Array, "*dims kv head"]:
        """Values on their way into attention."""
        return value


PLAIN = Rules()
"""The model as it is."""


class DecoderLayer(nnx.Module):
    """One layer, in pieces, so that prefix and tail can attend differently with the same weights."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        """Make a layer with random weights (checkpoints replace them)."""
        dtype = config.dtype

        def norm(width: int) -> nnx.RMSNorm:
            return nnx.RMSNorm(width, epsilon=config.norm_eps, dtype=dtype, param_dtype=dtype, rngs=rngs)

        def linear(inputs: int, outputs: int, bias: bool = False) -> nnx.Linear:
            return layers.linear(inputs, outputs, dtype, rngs, bias=bias)

        heads, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.head_dim = config.head_dim
        self.input_norm = norm(config.width)
        self.q_proj = linear(config.width, heads, config.attention_bias)
        self.k_proj = linear(config.width, kv, config.attention_bias)
        self.v_proj = linear(config.width, kv, config.attention_bias)
        self.q_norm = norm(config.head_dim)
        self.k_norm = norm(config.head_dim)
        self.o_proj = linear(heads, config.width, config.attention_bias)
        self.post_attention_norm = norm(config.width)
        self.gate_proj = linear(config.width, config.ff)
        self.up_proj = linear(config.width, config.ff)
        self.down_proj = linear(config.ff, config.width)

    def _heads(self, x: Float[Array, "*dims flat"]) -> Float[Array, "*dims heads head"]:
        return x.reshape(*x.shape[:-1], -1, self.head_dim)

    def query(
        self, hidden: Float[Array, "*dims width"], angles: Float[Array, "*dims half"], rules: Rules = PLAIN
    ) -> Float[Array, "*dims heads head"]:
        """Normed and rotated queries of a residual stream."""
        heads = self._heads(self.q_proj(rules.norm(self.input_norm, hidden)))
        return rules.query(rotate(rules.norm(self.q_norm, heads), angles))

    def key_value(
        self, hidden: Float[Array, "*dims width"], angles: Float[Array, "*dims half"], rules: Rules = PLAIN
    ) -> tuple[Float[Array, "*dims kv head"], Float[Array, "*dims kv head"]]:
        """Normed and rotated keys, and values, of a residual stream."""
        normed = rules.norm(self.input_norm, hidden)
        key = rotate(rules.norm(self.k_norm, self._heads(self.k_proj(normed))), angles)
        return rules.key(key), rules.value(self._heads(self.v_proj(normed)))

    def finish(
        self,
        hidden: Float[Array, "*dims width"],
        attended: Float[Array, "*dims heads head"],
        rules: Rules = PLAIN,
    ) -> Float[Array, "*dims width"]:
        """Output projection, residuals and the gated feed-forward half."""
        hidden = hidden + self.o_proj(attended.reshape(*attended.shape[:-2], -1))
        normed = rules.norm(self.post_attention_norm, hidden)
        return by_rows(hidden + self.down_proj(rules.gated(self.gate_proj(normed), self.up_proj(normed))))
