"""Sizes of a tiny model."""

from dataclasses import dataclass
from typing import Literal

from fixate_jax.backbones.tiny.tokenizer import MERGES, WORDS, learn_merges
from fixate_jax.errors import ConfigError

SPECIAL = {"qwen3_vl": 7, "internvl": 10}
"""Special tokens of each architecture."""


@dataclass(frozen=True, kw_only=True)
class TinySizes:
    """Shape of the model; the defaults make about one million parameters.

    Raises:
        ConfigError: naming the field, if the sizes contradict each other.
    """

    family: Literal["qwen3_vl", "internvl"] = "qwen3_vl"
    """Whose architecture, by its model_type."""
    vocab: int = 512
    """Rows of the embedding; the tokenizer uses fewer, the rest is padding."""
    words: str = WORDS
    """What the tokenizer is learned from."""
    late_words: tuple[str, ...] = ()
    """Words that become one token after a space, each made of a word that is one already and one more letter."""
    merges: int | None = MERGES
    """Joins of neighbours that the tokenizer learns (None: as many as make one token of every word)."""
    width: int = 128
    """Width of the decoder's residual stream."""
    ff: int = 384
    """Width of the decoder's feed-forward layers."""
    layers: int = 4
    """Decoder layers."""
    heads: int = 4
    """Query heads of the decoder."""
    kv_heads: int = 2
    """Key and value heads of the decoder."""
    head_dim: int = 32
    """Width of a decoder head."""
    rope_theta: float = 10_000.0
    """Base of the decoder's rotary frequencies."""
    dtype: str = "float32"
    """Type of the weights as config.json states it."""
    tied: bool = True
    """Whether the output head is the embedding."""
    vision_layers: int = 2
    """Blocks of the vision tower."""
    vision_width: int = 64
    """Width of the vision tower."""
    vision_ff: int = 128
    """Width of the vision tower's feed-forward layers."""
    vision_heads: int = 4
    """Heads of the vision tower."""
    deepstack: tuple[int, ...] = (0, 1)
    """Qwen3-VL: vision blocks whose output is added after the first decoder layers, one a layer."""
    grid_side: int = 12
    """Qwen3-VL: side of the square table of learned patch positions."""
    patch: int = 16
    """Side of a patch in pixels."""
    merge: int = 2
    """Patches along each side of the square that becomes one visual token."""
    min_pixels: int = 4_096
    """Qwen3-VL: smallest page area after resizing."""
    max_pixels: int = 1_048_576
    """Qwen3-VL: largest page area after resizing."""
    tile: int = 64
    """InternVL: side of a tile in pixels."""
    max_tiles: int = 20
    """InternVL: most tiles of a page, its thumbnail not counted."""

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ConfigError(f"heads = {self.heads}: must be a multiple of kv_heads = {self.kv_heads}")
        if self.head_dim % 8:
            raise ConfigError(f"head_dim = {self.head_dim}: must be a multiple of 8")
        if self.vision_width % (4 * self.vision_heads):
            raise ConfigError(f"vision_width = {self.vision_width}: each of {self.vision_heads} heads needs 4k columns")
        if len(self.deepstack) > self.layers or any(not 0 <= i < self.vision_layers for i in self.deepstack):
            raise ConfigError(f"deepstack = {self.deepstack}: needs vision blocks below {self.vision_layers}")
        if self.tile % (self.patch * self.merge):
            raise ConfigError(f"tile = {self.tile}: must be a multiple of patch × merge = {self.patch * self.merge}")
        needed = self.first_special + SPECIAL[self.family]
        if self.vocab < needed:
            raise ConfigError(f"vocab = {self.vocab}: the tokenizer needs {needed} rows")

    @property
    def first_special(self) -> int:
        """Index of the first special token."""
        return 256 + len(self.merge_list)

    @property
    def merge_list(self) -> tuple[tuple[str, str], ...]:
        """The joins of the tokenizer, in order."""
        late = tuple((f"Ġ{word[:-1]}", word[-1]) for word in self.late_words)
        return learn_merges(self.words, self.merges) + late
