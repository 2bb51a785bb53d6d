"""A third backbone, all of it in this file: cells of mean colours, one linear layer, and the shared decoder.

Its vision tower has no layers, no patches and no positions: a page token is a linear function of the mean colour of its
cell. Its ``config.json`` has the decoder's fields at the top level, and its tensors have names of their own.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int
from PIL import Image
from safetensors.numpy import save_file

from fixate_jax.backbones.decoder.decoder import Decoder
from fixate_jax.backbones.decoder.decoder_layer import DecoderConfig
from fixate_jax.backbones.decoder.params import decoder_rules, read_decoder
from fixate_jax.backbones.family import ChatTurn, Model, template_chat
from fixate_jax.backbones.inputs import EncodedPage, HostOrDevice
from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.backbones.tiny.random import TinySizes, random_tensors, tokenizer_of, write_tokenizer_files
from fixate_jax.backbones.weights.checkpoint import Rule, transpose
from fixate_jax.backbones.weights.config_json import read_config_json

MODEL_TYPE = "colours"
IMAGE_TOKEN = "<|image_pad|>"


class Colours(NamedTuple):
    """Mean colour of each cell, and which cells are no padding."""

    colour: Float[HostOrDevice, "batch cells 3"]
    valid: Bool[HostOrDevice, "batch cells"]


@dataclass(frozen=True, kw_only=True)
class ColoursConfig:
    """The decoder's shape, the page's token, and the side of a cell in pixels."""

    decoder: DecoderConfig
    image_token: int
    cell: int


class ColoursModel(Model):
    """One linear layer and a decoder."""

    def __init__(self, config: ColoursConfig, rngs: nnx.Rngs):
        """Make a model with random weights."""
        width, dtype = config.decoder.width, config.decoder.dtype
        self.config = config
        self.colours = nnx.Linear(3, width, dtype=dtype, param_dtype=dtype, rngs=rngs)
        self.decoder = Decoder(config.decoder, rngs)

    def encode_pages(self, pages: Colours) -> Float[Array, "batch tokens 1 width"]:
        """Page tokens of mean colours; zero where there is padding."""
        tokens = jnp.where(pages.valid[..., None], self.colours(pages.colour), 0)
        return tokens[:, :, None]


class ColoursProcessor:
    """Shrinks a page to one pixel a cell."""

    def __init__(self, cell: int):
        """Cells have sides of ``cell`` pixels."""
        self.cell = cell

    def __call__(self, image: Image.Image) -> EncodedPage:
        """Encode one page."""
        rows, columns = self.grid(*image.size)
        small = image.convert("RGB").resize((columns, rows), Image.Resampling.BOX)
        colour = np.asarray(small, np.float32).reshape(1, rows * columns, 3) / 127.5 - 1
        return EncodedPage(inputs=Colours(colour, np.ones((1, rows * columns), bool)), rows=rows, columns=columns)

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """Rows and columns of cells."""
        return max(1, round(height / self.cell)), max(1, round(width / self.cell))


def read_config(directory: Path, settings: BackboneConfig) -> ColoursConfig:
    """Read ``config.json``."""
    root = read_config_json(directory)
    decoder = read_decoder(root, settings, tied=True)
    return ColoursConfig(decoder=decoder, image_token=root.need("image_token_id"), cell=root.need("cell"))


def build(config: ColoursConfig, rngs: nnx.Rngs) -> ColoursModel:
    """The model, with random weights."""
    return ColoursModel(config, rngs)


def rules(config: ColoursConfig) -> list[Rule]:
    """The mapping of a whole checkpoint."""
    table = list(decoder_rules(config.decoder, "language.", "head.weight"))
    return [*table, Rule("colours.kernel", "colours.weight", transpose), Rule("colours.bias", "colours.bias")]


def ignored_tensor(config: ColoursConfig, name: str) -> bool:
    """None is ignored."""
    del config, name
    return False


def page_processor(directory: Path, settings: BackboneConfig, config: ColoursConfig) -> ColoursProcessor:
    """Needs no file: the side of a cell is in ``config.json``."""
    del directory, settings
    return ColoursProcessor(config.cell)


def page_units(rows: int, columns: int, config: ColoursConfig) -> int:
    """Cells are what a batch of pages is padded along."""
    del config
    return rows * columns


def cell_tokens(rows: int, columns: int, config: ColoursConfig) -> Int[np.ndarray, " cells"]:
    """Page tokens are in the order of the cells."""
    del config
    return np.arange(rows * columns)


def image_positions(
    rows: int, columns: int, start: int, config: ColoursConfig
) -> tuple[Int[np.ndarray, "tokens 3"], int]:
    """Page tokens are counted like words."""
    del config
    after = start + rows * columns
    return np.repeat(np.arange(start, after)[:, None], 3, axis=1), after


def chat_text(tokenizer: Any, turns: Sequence[ChatTurn], config: ColoursConfig) -> str:
    """The chat as the tokenizer's template writes it."""
    del config
    return template_chat(tokenizer, turns)


def write_colours(directory: Path, *, seed: int = 0) -> Path:
    """Write a checkpoint with random weights.

    Returns:
        ``directory``.
    """
    sizes = TinySizes(width=32, ff=48, layers=3, heads=2, kv_heads=1, head_dim=16)
    directory.mkdir(parents=True)
    write_tokenizer_files(directory, sizes)
    fields = {
        "model_type": MODEL_TYPE,
        "image_token_id": tokenizer_of(sizes).token_to_id(IMAGE_TOKEN),
        "cell": 32,
        "vocab_size": sizes.vocab,
        "num_hidden_layers": sizes.layers,
        "hidden_size": sizes.width,
        "intermediate_size": sizes.ff,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "head_dim": sizes.head_dim,
        "rope_theta": sizes.rope_theta,
    }
    (directory / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    rng, theirs = np.random.default_rng(seed), "model.language_model."
    tensors = {
        name.replace(theirs, "language."): tensor
        for name, tensor in random_tensors(sizes, seed=seed).items()
        if name.startswith(theirs)
    }
    tensors["colours.weight"] = rng.standard_normal((sizes.width, 3)).astype(np.float32)
    tensors["colours.bias"] = rng.standard_normal(sizes.width).astype(np.float32)
    save_file(tensors, directory / "model.safetensors")
    return directory
