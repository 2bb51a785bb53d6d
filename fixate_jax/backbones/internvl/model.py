"""InternVL3.5 (dense): the model, and what the rest of the library asks of its family."""

from pathlib import Path

from flax import nnx
from jaxtyping import Array, Float

from fixate_jax.backbones.decoder.decoder import Decoder
from fixate_jax.backbones.family import Model
from fixate_jax.backbones.internvl.config import InternVLConfig
from fixate_jax.backbones.internvl.pages import (
    PageInputs,
    cell_tokens,
    chat_text,
    image_positions,
    page_processor,
    page_units,
)
from fixate_jax.backbones.internvl.params import read_original, read_transformers, rules
from fixate_jax.backbones.internvl.vision import VisionTower
from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.backbones.weights.config_json import read_config_json

MODEL_TYPES = ("internvl", "internvl_chat")
"""transformers' layout and InternVL's own."""


class InternVL(Model):
    """Vision tower and decoder."""

    def __init__(self, config: InternVLConfig, rngs: nnx.Rngs):
        """Make a model with random weights (checkpoints replace them)."""
        self.config = config
        self.vision = VisionTower(config, rngs)
        self.decoder = Decoder(config.decoder, rngs)

    def encode_pages(self, pages: PageInputs) -> Float[Array, "batch tokens 1 width"]:
        """Page tokens, tile after tile; depends on nothing that is trained, so it can be cached."""
        return self.vision(pages)


def read_config(directory: Path, settings: BackboneConfig) -> InternVLConfig:
    """Read ``config.json`` of either layout, and names of tensors where the file leaves something open.

    Raises:
        CheckpointError: naming the file and the field that is missing or not supported.
    """
    root = read_config_json(directory)
    original = root.one_of("model_type", MODEL_TYPES, None) == "internvl_chat"
    return read_original(root, settings) if original else read_transformers(root, settings)


def ignored_tensor(config: InternVLConfig, name: str) -> bool:
    """Whether a checkpoint may hold this tensor without our using it: what masked patches were in pretraining."""
    del config
    return name.endswith("vision_tower.embeddings.mask_token")


def build(config: InternVLConfig, rngs: nnx.Rngs) -> InternVL:
    """The model, with random weights."""
    return InternVL(config, rngs)


__all__ = [
    "MODEL_TYPES",
    "InternVL",
    "InternVLConfig",
    "build",
    "cell_tokens",
    "chat_text",
    "ignored_tensor",
    "image_positions",
    "page_processor",
    "page_units",
    "read_config",
    "rules",
]
