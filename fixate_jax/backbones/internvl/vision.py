"""The vision tower of InternVL: tiles to page tokens, through InternViT, pixel shuffle and projector."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fixate_jax.backbones.decoder.attention import blocked_attention
from fixate_jax.backbones.decoder.decoder_layer import PLAIN, Rules
from fixate_jax.backbones.decoder.layers import layer_norm, linear, rms_norm
from fixate_jax.backbones.decoder.products import packed, unpacked
from fixate_jax.backbones.internvl.config import InternVLConfig, VisionConfig
from fixate_jax.backbones.internvl.pages import PageInputs
from fixate_jax.backbones.sharding import by_rows

PROJECTOR_NORM_EPS = 1e-5


class VisionLayer(nnx.Module):
    """Pre-norm full attention and feed-forward, the result of each scaled before it is added (layer scale)."""

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs):
        """Make a layer with random weights (checkpoints replace them)."""
        self.config = config
        width, dtype = config.width, config.dtype
        norm = layer_norm if config.norm == "layer_norm" else rms_norm
        self.attention_norm = norm(width, config.norm_eps, dtype, rngs)
        self.qkv = linear(width, 3 * width, dtype, rngs, bias=config.qkv_bias)
        self.q_norm = rms_norm(width, config.qk_norm_eps, dtype, rngs) if config.qk_norm else None
        self.k_norm = rms_norm(width, config.qk_norm_eps, dtype, rngs) if config.qk_norm else None
        self.proj = linear(width, width, dtype, rngs)
        self.attention_scale = nnx.Param(jnp.ones(width, dtype))
        self.mlp_norm = norm(width, config.norm_eps, dtype, rngs)
        self.fc1 = linear(width, config.ff, dtype, rngs)
        self.fc2 = linear(config.ff, width, dtype, rngs)
        self.mlp_scale = nnx.Param(jnp.ones(width, dtype))

    def __call__(self, x: Float[Array, "tiles rows width"], rules: Rules = PLAIN) -> Float[Array, "tiles rows width"]:
        """One layer; each tile attends to itself."""
        if self.config.attends:
            x = x + self._attend(rules.norm(self.attention_norm, x), rules) * self.attention_scale[...]
        hidden = rules.activation(self.config.activation, self.fc1(rules.norm(self.mlp_norm, x)))
        return by_rows(x + self.fc2(hidden) * self.mlp_scale[...])

    def _attend(self, x: Float[Array, "tiles rows width"], rules: Rules) -> Float[Array, "tiles rows width"]:
        query, key, value = jnp.split(self.qkv(x), 3, axis=-1)
        if self.q_norm is not None and self.k_norm is not None:
            query, key = rules.norm(self.q_norm, query), rules.norm(self.k_norm, key)
        query, key, value = (v.reshape(*v.shape[:2], self.config.heads, -1) for v in (query, key, value))
        query, key, value = rules.query(query), rules.key(key), rules.value(value)
        attended = blocked_attention(query, key, value, None, causal=False, block=self.config.attention_block)
        return self.proj(attended.reshape(x.shape))


def pixel_shuffle(x: Float[Array, "tiles patches width"], merge: int) -> Float[Array, "tiles cells joined"]:
    """Join merge × merge neighbouring patches into one vector, cells in raster order (InternVL's version 2)."""
    tiles, patches, width = x.shape
    cells = round(patches**0.5) // merge
    x = x.reshape(tiles, cells, merge, cells, merge, width)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(tiles, cells * cells, merge * merge * width)


class Projector(nnx.Module):
    """From the vision tower's width to the decoder's."""

    def __init__(self, config: InternVLConfig, rngs: nnx.Rngs):
        """Make a projector with random weights (checkpoints replace them)."""
        dtype = config.vision.dtype
        joined, width = config.vision.width * config.merge**2, config.decoder.width
        self.activation = config.projector_activation
        self.norm = layer_norm(joined, PROJECTOR_NORM_EPS, dtype, rngs)
        self.fc1 = linear(joined, width, dtype, rngs)
        self.fc2 = linear(width, width, dtype, rngs)

    def __call__(
        self, x: Float[Array, "tiles cells joined"], rules: Rules = PLAIN
    ) -> Float[Array, "tiles cells width"]:
        """Page tokens of each tile."""
        return self.fc2(rules.activation(self.activation, self.fc1(rules.norm(self.norm, x))))


class VisionTower(nnx.Module):
    """Patch embedding, class token, learned positions, layers, pixel shuffle, projector."""

    def __init__(self, config: InternVLConfig, rngs: nnx.Rngs):
        """Make a tower with random weights (checkpoints replace them)."""
        self.config = config.vision
        self.merge = config.merge
        vision, dtype = config.vision, config.vision.dtype
        self.patch_embed = linear(vision.channels * vision.patch**2, vision.width, dtype, rngs)
        self.class_token = nnx.Param(jnp.zeros((1, vision.width), dtype))
        self.positions = nnx.Param(jnp.zeros((1 + vision.side**2, vision.width), dtype))
        make = nnx.vmap(lambda r: VisionLayer(vision, r), in_axes=0, out_axes=0)
        self.layers = make(rngs.split(vision.layers))
        self.projector = Projector(config, rngs)

    def __call__(self, pages: PageInputs, rules: Rules = PLAIN) -> Float[Array, "batch tokens 1 width"]:
        """Page tokens, tile after tile; where a tile is padding they mean nothing."""
        return self.with_states(pages, rules)[0]

    def with_states(
        self, pages: PageInputs, rules: Rules = PLAIN
    ) -> tuple[Float[Array, "batch tokens 1 width"], Float[Array, "layers batch tiles rows vision"]]:
        """The same, with the state of each tile's class token and patches after every layer."""
        batch, tiles = pages.valid.shape
        graph, weights = nnx.split(self.layers)

        def body(x: Array, w: Any) -> tuple[Array, Array]:
            x = nnx.merge(graph, unpacked(w))(x, rules)
            return x, x

        x, states = jax.lax.scan(body, self._embed(pages), packed(weights))
        tokens = self.projector(pixel_shuffle(x[:, 1:], self.merge), rules)
        features = tokens.reshape(batch, -1, 1, tokens.shape[-1])
        return features, states.reshape(len(states), batch, tiles, *x.shape[1:])

    def _embed(self, pages: PageInputs) -> Float[Array, "tiles rows vision"]:
        """Class token and patches of all tiles, positions added."""
        config = self.config
        side, patch, channels = config.side, config.patch, config.channels
        pixels = jnp.asarray(pages.pixels, config.dtype).reshape(-1, channels, side, patch, side, patch)
        patches = self.patch_embed(pixels.transpose(0, 2, 4, 1, 3, 5).reshape(len(pixels), side * side, -1))
        first = jnp.broadcast_to(self.class_token[...], (len(pixels), *self.class_token.shape))
        return jnp.concatenate([first, patches], axis=1) + self.positions[...]
