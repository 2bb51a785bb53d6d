"""The recipe of a tiny backbone: its sizes, its pages, its optimizer."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fixate_jax.errors import ConfigError

if TYPE_CHECKING:
    from fixate_jax.backbones.tiny.random import TinySizes


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that the weights depend on."""

    family: Literal["qwen3_vl", "internvl"] = "qwen3_vl"
    """Architecture, by its model_type."""
    seed: int = 0
    """Of the weights at the start and of all pages."""
    steps: int = 2400
    """Optimizer steps."""
    batch: int = 16
    """Pages a step, half of them gambles, half carousels."""
    learning_rate: float = 2e-3
    """Highest learning rate of AdamW."""
    warmup: int = 50
    """Steps in which the rate grows; afterwards it falls along a half cosine to a hundredth."""
    weight_decay: float = 0.01
    """Decoupled weight decay of matrices."""
    clip: float = 1.0
    """Largest global gradient norm."""
    naming_weight: float = 1.0
    """Weight of the loss that has each visual token name what it shows."""
    looking_weight: float = 1.0
    """Weight of the loss that has the answering position look at what it answers, or where the person looks."""
    looking_layers: int = 2
    """In how many of the last decoder layers."""
    matched: bool = True
    """Whether queries start as keys do, so that attention starts by looking for what is alike."""
    page_width: int = 320
    """Width of the drawn pages in pixels."""
    seq: int = 148
    """Prefix length: persona, page, profile, labels."""
    tail: int = 20
    """Tail length: question and answer."""
    checkpoint_every: int = 200
    """Steps between checkpoints."""
    width: int = 128
    """Width of the decoder."""
    layers: int = 4
    """Decoder layers."""
    ff: int = 384
    """Width of the decoder's feed-forward layers."""
    vision_width: int = 96
    """Width of the vision tower."""
    vision_ff: int = 192
    """Width of the vision tower's feed-forward layers."""

    def __post_init__(self) -> None:
        for name in ("steps", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)}: at least 1 is needed")
        if self.batch < 2:
            raise ConfigError(f"batch = {self.batch}: at least 2 are needed, a page of each kind")
        if not 1 <= self.looking_layers < self.layers:
            raise ConfigError(
                f"looking_layers = {self.looking_layers}: must lie between 1 and layers - 1 = {self.layers - 1}"
            )

    @property
    def early(self) -> int:
        """Steps after which the weights' checksum is noted, to compare a rerun with: a twentieth of all."""
        return max(1, self.steps // 20)


def sizes_of(recipe: Recipe) -> "TinySizes":
    """Shape of the model and its tokenizer."""
    from fixate_jax.backbones.tiny.random import TinySizes
    from fixate_jax.lab.pretraining.tasks import TRAIT_WORDS, WORDS

    return TinySizes(
        family=recipe.family,
        vocab=768,
        words=WORDS,
        late_words=TRAIT_WORDS,
        merges=None,
        width=recipe.width,
        layers=recipe.layers,
        ff=recipe.ff,
        vision_width=recipe.vision_width,
        vision_ff=recipe.vision_ff,
        deepstack=(0,),
    )
