"""The vision tower of Qwen3-VL: patches to visual tokens, with DeepStack features from inner layers."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from fixate_jax.backbones.decoder.attention import blocked_attention
from fixate_jax.backbones.decoder.decoder_layer import PLAIN, Rules
from fixate_jax.backbones.decoder.layers import layer_norm, linear
from fixate_jax.backbones.decoder.products import packed, unpacked
from fixate_jax.backbones.decoder.rope import rotate, vision_angles
from fixate_jax.backbones.inputs import HostOrDevice
from fixate_jax.backbones.sharding import by_rows

NORM_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """Shape of a Qwen3-VL vision tower."""

    layers: int
    width: int
    ff: int
    heads: int
    out_width: int
    patch: int = 16
    temporal: int = 2
    channels: int = 3
    merge: int = 2
    table: int = 2304
    activation: str = "gelu_pytorch_tanh"
    rope_theta: float = 10000.0
    deepstack_after: tuple[int, ...] = ()
    dtype: Any = jnp.float32
    attends: bool = True
    """False leaves attention out: the same for a tower whose projection of attention is zero, and much faster."""
    attention_block: int = 256

    @property
    def patch_values(self) -> int:
        """Numbers in one patch: channels × frames × height × width."""
        return self.channels * self.temporal * self.patch**2

    @property
    def segments(self) -> tuple[int, ...]:
        """Sizes of the stacks between which DeepStack features are read off."""
        ends = sorted({*(i + 1 for i in self.deepstack_after), self.layers})
        return tuple(int(n) for n in np.diff([0, *ends]))


class PageInputs(NamedTuple):
    """Pages as the vision tower reads them, patches in the order of the image processor.

    Attributes:
        patches: normalised pixels of each patch.
        table_index: the four entries of the learned position grid around each patch.
        table_weight: their bilinear weights.
        position: row and column of each patch.
        valid: False on padding patches.
    """

    patches: Float[HostOrDevice, "batch patches pixels"]
    table_index: Int[HostOrDevice, "batch patches 4"]
    table_weight: Float[HostOrDevice, "batch patches 4"]
    position: Int[HostOrDevice, "batch patches 2"]
    valid: Bool[HostOrDevice, "batch patches"]


class VisionLayer(nnx.Module):
    """Pre-norm full attention and feed-forward."""

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs):
        """Make a layer with random weights (checkpoints replace them)."""
        self.config = config
        self.attention_norm = layer_norm(config.width, NORM_EPS, config.dtype, rngs)
        self.qkv = linear(config.width, 3 * config.width, config.dtype, rngs)
        self.proj = linear(config.width, config.width, config.dtype, rngs)
        self.mlp_norm = layer_norm(config.width, NORM_EPS, config.dtype, rngs)
        self.fc1 = linear(config.width, config.ff, config.dtype, rngs)
        self.fc2 = linear(config.ff, config.width, config.dtype, rngs)

    def __call__(
        self,
        x: Float[Array, "batch patches width"],
        angles: Float[Array, "batch patches half"],
        valid: Bool[Array, "batch patches"],
        rules: Rules = PLAIN,
    ) -> Float[Array, "batch patches width"]:
        """One layer over all patches of each page."""
        if self.config.attends:
            x = x + self._attend(x, angles, valid, rules)
        return by_rows(x + self.fc2(rules.activation(self.config.activation, self.fc1(rules.norm(self.mlp_norm, x)))))

    def _attend(
        self,
        x: Float[Array, "batch patches width"],
        angles: Float[Array, "batch patches half"],
        valid: Bool[Array, "batch patches"],
        rules: Rules = PLAIN,
    ) -> Float[Array, "batch patches width"]:
        heads = self.config.heads
        qkv = self.qkv(rules.norm(self.attention_norm, x)).reshape(*x.shape[:2], 3, heads, -1)
        query = rules.query(rotate(qkv[:, :, 0], angles))
        key, value = rules.key(rotate(qkv[:, :, 1], angles)), rules.value(qkv[:, :, 2])
        attended = blocked_attention(query, key, value, valid, causal=False, block=self.config.attention_block)
        return self.proj(attended.reshape(x.shape))


class PatchMerger(nnx.Module):
    """Joins merge × merge neighbouring patches into one visual token."""

    def __init__(self, config: VisionConfig, *, norm_after_merge: bool, rngs: nnx.Rngs):
        """Make a merger; DeepStack's mergers norm the joined patches, the main one each patch."""
        joined = config.width * config.merge**2
        self.joined = joined
        self.norm_after_merge = norm_after_merge
        self.norm = layer_norm(joined if norm_after_merge else config.width, NORM_EPS, config.dtype, rngs)
        self.fc1 = linear(joined, joined, config.dtype, rngs)
        self.fc2 = linear(joined, config.out_width, config.dtype, rngs)

    def __call__(
        self, x: Float[Array, "batch patches width"], rules: Rules = PLAIN
    ) -> Float[Array, "batch visual out"]:
        """Visual tokens of each page, in raster order of their cells."""
        if self.norm_after_merge:
            x = rules.norm(self.norm, x.reshape(x.shape[0], -1, self.joined))
        else:
            x = rules.norm(self.norm, x).reshape(x.shape[0], -1, self.joined)
        return self.fc2(rules.activation("gelu", self.fc1(x)))


class VisionTower(nnx.Module):
    """Patch embedding, interpolated learned positions, layers, mergers."""

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs):
        """Make a tower with random weights (checkpoints replace them)."""
        self.config = config
        self.patch_embed = linear(config.patch_values, config.width, config.dtype, rngs)
        self.position_table = nnx.Embed(
            config.table, config.width, dtype=config.dtype, param_dtype=config.dtype, rngs=rngs
        )
        make = nnx.vmap(lambda r: VisionLayer(config, r), in_axes=0, out_axes=0)
        self.stacks = nnx.List([make(rngs.split(size)) for size in config.segments])
        self.merger = PatchMerger(config, norm_after_merge=False, rngs=rngs)
        self.deepstack_mergers = nnx.List(
            [PatchMerger(config, norm_after_merge=True, rngs=rngs) for _ in config.deepstack_after]
        )

    def __call__(self, pages: PageInputs, rules: Rules = PLAIN) -> Float[Array, "batch visual levels out"]:
        """Visual tokens of each page (level 0) and their DeepStack features (levels 1, 2, …)."""
        return self.with_states(pages, rules)[0]

    def with_states(
        self, pages: PageInputs, rules: Rules = PLAIN
    ) -> tuple[Float[Array, "batch visual levels out"], Float[Array, "layers batch patches width"]]:
        """The same, with the patches' state after every layer."""
        config = self.config
        x = self.patch_embed(pages.patches.astype(config.dtype))
        table = self.position_table(pages.table_index).astype(jnp.float32)
        x = x + (table * pages.table_weight[..., None]).sum(2).astype(x.dtype)
        angles = vision_angles(pages.position, head_dim=config.width // config.heads, theta=config.rope_theta)
        outputs: dict[int, Array] = {}
        states, done = [], 0
        for stack, size in zip(self.stacks, config.segments, strict=True):
            graph, weights = nnx.split(stack)

            def body(x: Array, w: Any, graph: Any = graph) -> tuple[Array, Array]:
                x = nnx.merge(graph, unpacked(w))(x, angles, pages.valid, rules)
                return x, x

            x, state = jax.lax.scan(body, x, packed(weights))
            states.append(state)
            done += size
            outputs[done - 1] = x
        deep = [
            merger(outputs[layer], rules)
            for merger, layer in zip(self.deepstack_mergers, config.deepstack_after, strict=True)
        ]
        return jnp.stack([self.merger(x, rules), *deep], axis=2), jnp.concatenate(states)


def patch_geometry(rows: int, columns: int, *, config: VisionConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where each patch of a page lies, in the image processor's order (merge blocks in raster order).

    The learned square grid of positions is stretched over the page, corners on corners, and read bilinearly.

    Args:
        rows: patches down the page.
        columns: patches across the page.
        config: the vision tower's shape.

    Returns:
        ``table_index`` [patches, 4], ``table_weight`` [patches, 4] and ``position`` [patches, 2] (row, column).
    """
    merge, side = config.merge, int(config.table**0.5)
    row, column = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    position = np.stack([row, column], axis=-1)
    position = position.reshape(rows // merge, merge, columns // merge, merge, 2)
    position = position.transpose(0, 2, 1, 3, 4).reshape(-1, 2)

    def taps(index: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        source = index.astype(np.float32) * np.float32(side - 1) / np.float32(max(size - 1, 1))
        low = np.floor(source)
        fraction = source - low
        both = np.stack([low, low + 1], axis=-1).astype(np.int64)
        return np.clip(both, 0, side - 1), np.stack([1 - fraction, fraction], axis=-1)

    row_index, row_weight = taps(position[:, 0], rows)
    column_index, column_weight = taps(position[:, 1], columns)
    index = row_index[:, :, None] * side + column_index[:, None, :]
    weight = row_weight[:, :, None] * column_weight[:, None, :]
    return (
        index.reshape(-1, 4).astype(np.int32),
        weight.reshape(-1, 4).astype(np.float32),
        position.astype(np.int32),
    )
