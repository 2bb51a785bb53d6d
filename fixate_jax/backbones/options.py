"""Which frozen vision-language model, and how to run it."""

from dataclasses import dataclass
from typing import Literal

from fixate_jax.errors import require


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """Which frozen vision-language model, and how to run it."""

    path: str = "tiny-random"
    """A Hugging Face directory, a repository on the Hub (owner/name), or the name of an embedded backbone."""
    revision: str | None = None
    """Branch, tag or commit of the repository on the Hub (None: its main branch)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the frozen weights and activations; norms, softmax, relevance and losses are float32 always."""
    tapped_layers: int = 6
    """m: the operators look at the last m decoder layers (fewer if the decoder has fewer)."""
    min_pixels: int | None = None
    """Qwen3-VL: smallest page area after resizing (None: what the checkpoint's image processor says)."""
    max_pixels: int | None = None
    """Qwen3-VL: largest page area after resizing (None: what the checkpoint's image processor says)."""
    max_tiles: int | None = None
    """InternVL: most tiles that a page is cut into, its thumbnail not counted (None: what the checkpoint says)."""
    positions: Literal["mrope", "flat"] = "mrope"
    """Rotary positions of a page's tokens: the model's own, or counted like words, as the published FixATE code does
    with Qwen3-VL. InternVL's own are flat."""
    deepstack: bool = True
    """Add DeepStack features after the first decoder layers (False: as the published code trains in batches)."""
    tile_layout: Literal["spatial", "raster"] = "spatial"
    """InternVL: put the page's cells together from its tiles, or read the tokens tile after tile as one raster with
    rows and columns exchanged, as the published code does."""
    instruction_role: Literal["user", "system"] = "user"
    """Where profile and question stand: after the page, or before it as a system message."""
    attention: Literal["auto", "blocked"] = "auto"
    """Attention of the prefill: the platform's flash kernel where it has one for these shapes and this type (bfloat16
    on NVIDIA GPUs, float32 and bfloat16 on TPUs) and row blocks elsewhere; or row blocks everywhere."""
    attention_block: int = 256
    """Rows of the attention matrix computed at a time in row blocks."""
    remat: Literal["dots", "full", "none"] = "dots"
    """What the backward pass recomputes: all but matrix products, everything, or nothing."""
    unroll: bool = False
    """Lay the decoder's layers out one by one instead of scanning them: slower to compile, and faster to run where
    layers are few and small."""

    def __post_init__(self) -> None:
        require(self.tapped_layers >= 1, "backbone.tapped_layers", self.tapped_layers, "at least 1 is needed")
        require(self.attention_block >= 8, "backbone.attention_block", self.attention_block, "at least 8 is needed")
        require(
            self.max_tiles is None or self.max_tiles >= 1, "backbone.max_tiles", self.max_tiles, "at least 1 is needed"
        )
