"""Shape and special tokens of an InternVL checkpoint."""

from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp

from fixate_jax.backbones.decoder.decoder_layer import DecoderConfig


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """Shape of an InternViT vision tower, which reads square tiles."""

    layers: int
    width: int
    ff: int
    heads: int
    image_size: int = 448
    """Side of a tile in pixels."""
    patch: int = 14
    channels: int = 3
    activation: str = "gelu"
    norm: Literal["layer_norm", "rms_norm"] = "layer_norm"
    norm_eps: float = 1e-6
    qkv_bias: bool = True
    qk_norm: bool = False
    """Norm queries and keys, each over the width of all heads together."""
    qk_norm_eps: float = 1e-6
    dtype: Any = jnp.float32
    attends: bool = True
    """False leaves attention out: the same for a tower whose projection of attention is zero, and much faster."""
    attention_block: int = 256

    @property
    def side(self) -> int:
        """Patches along a side of a tile."""
        return self.image_size // self.patch


@dataclass(frozen=True, kw_only=True)
class InternVLConfig:
    """An InternVL checkpoint's shape, special tokens and tiling."""

    decoder: DecoderConfig
    vision: VisionConfig
    image_token: int
    """Stands for a page token in the sequence; its text is ``image_word``."""
    image_start: str = "<img>"
    image_end: str = "</img>"
    image_word: str = "<IMG_CONTEXT>"
    downsample: float = 0.5
    """Pixel shuffle makes one page token of 1 / downsample² patches."""
    projector_activation: str = "gelu"
    layout: Literal["transformers", "original"] = "transformers"
    """Whose names of files, tensors and settings the checkpoint uses."""
    prefix: str = ""
    """What stands before the names of tensors: "model." where transformers saved them as it has them in memory."""
    tile_layout: Literal["spatial", "raster"] = "spatial"
    """See :attr:`fixate_jax.backbones.options.BackboneConfig.tile_layout`."""
    thumbnail: bool = True
    """Whether the whole page follows its tiles as one more tile, where there are several."""
    min_tiles: int = 1
    max_tiles: int = 12
    """Original layout: most tiles that a page is cut into, the thumbnail not counted. (transformers' layout has both
    limits in the image processor's file.)"""
    system_message: str | None = None
    """Original layout: what the conversation template starts with."""
    template: str = "internvl2_5"
    """Original layout: name of the conversation template."""

    @property
    def merge(self) -> int:
        """Patches along a side of a cell."""
        return round(1 / self.downsample)

    @property
    def tile_side(self) -> int:
        """Cells along a side of a tile."""
        return self.vision.side // self.merge
