"""Qwen3-VL (Instruct, dense): configuration, model, and the table that maps its checkpoints."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from fixate_jax.backbones.decoder.decoder import Decoder
from fixate_jax.backbones.decoder.decoder_layer import DecoderConfig
from fixate_jax.backbones.decoder.layers import ACTIVATIONS
from fixate_jax.backbones.decoder.params import (
    MOST_LAYERS,
    decoder_rules,
    is_tied,
    known_tensors,
    read_decoder,
    rope_settings,
)
from fixate_jax.backbones.family import ChatTurn, Model, template_chat
from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.backbones.qwen3_vl.pages import PageProcessor
from fixate_jax.backbones.qwen3_vl.vision import PageInputs, VisionConfig, VisionTower
from fixate_jax.backbones.weights.checkpoint import Rule, flatten_transpose, keep, transpose
from fixate_jax.backbones.weights.config_json import Section, read_config_json
from fixate_jax.errors import CheckpointError, ConfigError

MODEL_TYPE = "qwen3_vl"
HEAD = "lm_head.weight"
"""The output head's tensor, where it is not the embedding."""


@dataclass(frozen=True, kw_only=True)
class Qwen3VLConfig:
    """A Qwen3-VL checkpoint's shape and special tokens."""

    decoder: DecoderConfig
    vision: VisionConfig
    image_token: int
    flat_positions: bool = False
    """Count the page's tokens like words instead of by row and column (not what the model was trained with)."""


class Qwen3VL(Model):
    """Vision tower and decoder."""

    def __init__(self, config: Qwen3VLConfig, rngs: nnx.Rngs):
        """Make a model with random weights (checkpoints replace them)."""
        self.config = config
        self.vision = VisionTower(config.vision, rngs)
        self.decoder = Decoder(config.decoder, rngs)

    def encode_pages(self, pages: PageInputs) -> Float[Array, "batch visual levels width"]:
        """Visual tokens of pages; depends on nothing that is trained, so it can be cached."""
        return self.vision(pages)[:, :, : 1 + self.config.decoder.deepstack_levels]


def read_config(directory: Path, settings: BackboneConfig) -> Qwen3VLConfig:
    """Read ``config.json``, in the spelling of transformers 5 or of earlier releases.

    Raises:
        CheckpointError: naming the file and the field that is missing or not supported.
    """
    root = read_config_json(directory)
    root.one_of("model_type", (MODEL_TYPE,), None)
    text, vision = root.section("text_config"), root.section("vision_config")
    depth = vision.whole("depth", most=MOST_LAYERS)
    deepstack = vision.need("deepstack_visual_indexes")
    if not isinstance(deepstack, list) or not all(type(i) is int and 0 <= i < depth for i in deepstack):
        raise vision.refusal("deepstack_visual_indexes", deepstack, f"a list of layers from 0 to {depth - 1}")
    decoder = read_decoder(
        text,
        settings,
        tied=is_tied((root, text), known_tensors(directory), (HEAD,)),
        mrope_section=_mrope_section(text),
        deepstack_levels=len(deepstack) if settings.deepstack else 0,
    )
    tower = VisionConfig(
        layers=depth,
        width=vision.whole("hidden_size"),
        ff=vision.whole("intermediate_size"),
        heads=vision.whole("num_heads"),
        out_width=vision.whole("out_hidden_size"),
        patch=vision.whole("patch_size", 16),
        temporal=vision.whole("temporal_patch_size", 2),
        channels=vision.whole("in_channels", 3),
        merge=vision.whole("spatial_merge_size", 2),
        table=vision.whole("num_position_embeddings", 2304),
        activation=vision.one_of("hidden_act", tuple(ACTIVATIONS), "gelu_pytorch_tanh"),
        rope_theta=Section(vision.path, vision.object("rope_parameters")).real("rope_theta", 10000.0),
        deepstack_after=tuple(deepstack),
        dtype=decoder.dtype,
        attention_block=settings.attention_block,
    )
    if tower.out_width != decoder.width:
        raise CheckpointError(
            f"{root.path}: vision_config.out_hidden_size {tower.out_width} is not text_config.hidden_size "
            f"{decoder.width}"
        )
    return Qwen3VLConfig(
        decoder=decoder,
        vision=tower,
        image_token=root.whole("image_token_id"),
        flat_positions=settings.positions == "flat",
    )


def _mrope_section(text: Section) -> tuple[int, ...]:
    rope = rope_settings(text)
    if not rope.get("mrope_interleaved", True):
        raise CheckpointError(
            f"{text.path}: M-RoPE that is not interleaved (mrope_interleaved: false) is not supported"
        )
    section = rope.get("mrope_section") or [24, 20, 20]
    if not isinstance(section, list) or not [type(n) for n in section] == [int] * 3 or min(section) < 0:
        raise text.refusal("mrope_section", section, "three whole numbers")
    return tuple(section)


_VISION_LAYER = [
    *(
        (f"{ours}.{kind}", f"{theirs}.{tensor}", keep)
        for ours, theirs in (("attention_norm", "norm1"), ("mlp_norm", "norm2"))
        for kind, tensor in (("scale", "weight"), ("bias", "bias"))
    ),
    *(
        row
        for ours, theirs in (
            ("qkv", "attn.qkv"),
            ("proj", "attn.proj"),
            ("fc1", "mlp.linear_fc1"),
            ("fc2", "mlp.linear_fc2"),
        )
        for row in ((f"{ours}.kernel", f"{theirs}.weight", transpose), (f"{ours}.bias", f"{theirs}.bias", keep))
    ),
]
_MERGER = [
    ("norm.scale", "norm.weight", keep),
    ("norm.bias", "norm.bias", keep),
    ("fc1.kernel", "linear_fc1.weight", transpose),
    ("fc1.bias", "linear_fc1.bias", keep),
    ("fc2.kernel", "linear_fc2.weight", transpose),
    ("fc2.bias", "linear_fc2.bias", keep),
]


def rules(config: Qwen3VLConfig) -> list[Rule]:
    """The mapping of a whole Qwen3-VL checkpoint."""
    table = list(decoder_rules(config.decoder, "model.language_model.", HEAD))
    visual = "model.visual."
    table += [
        Rule("vision.patch_embed.kernel", f"{visual}patch_embed.proj.weight", flatten_transpose),
        Rule("vision.patch_embed.bias", f"{visual}patch_embed.proj.bias"),
        Rule("vision.position_table.embedding", f"{visual}pos_embed.weight"),
    ]
    table += [Rule(f"vision.merger.{o}", f"{visual}merger.{t}", f) for o, t, f in _MERGER]
    for i in range(len(config.vision.deepstack_after)):
        table += [
            Rule(f"vision.deepstack_mergers.{i}.{o}", f"{visual}deepstack_merger_list.{i}.{t}", f)
            for o, t, f in _MERGER
        ]
    first = 0
    for i, size in enumerate(config.vision.segments):
        layers = range(first, first + size)
        table += [
            Rule(f"vision.stacks.{i}.{o}", f"{visual}blocks.{{layer}}.{t}", f, layers) for o, t, f in _VISION_LAYER
        ]
        first += size
    return table


def ignored_tensor(config: Qwen3VLConfig, name: str) -> bool:
    """Whether a checkpoint may hold this tensor without our using it: none may."""
    del config, name
    return False


def build(config: Qwen3VLConfig, rngs: nnx.Rngs) -> Qwen3VL:
    """The model, with random weights."""
    return Qwen3VL(config, rngs)


def page_processor(directory: Path, settings: BackboneConfig, config: Qwen3VLConfig) -> PageProcessor:
    """The checkpoint's image processor, with the settings' limits on the page's area.

    Raises:
        ConfigError: when the settings limit the number of tiles, which Qwen3-VL does not have.
    """
    if settings.max_tiles is not None:
        raise ConfigError(
            "backbone.max_tiles is not for Qwen3-VL, which resizes a page as a whole; set backbone.max_pixels"
        )
    return PageProcessor(directory, config.vision, min_pixels=settings.min_pixels, max_pixels=settings.max_pixels)


def page_units(rows: int, columns: int, config: Qwen3VLConfig) -> int:
    """Patches of a page with so many cells."""
    return rows * columns * config.vision.merge**2


def cell_tokens(rows: int, columns: int, config: Qwen3VLConfig) -> Int[np.ndarray, " cells"]:
    """Which page token shows each cell: they are in the same order."""
    del config
    return np.arange(rows * columns)


def image_positions(
    rows: int, columns: int, start: int, config: Qwen3VLConfig
) -> tuple[Int[np.ndarray, "tokens 3"], int]:
    """M-RoPE positions of a page's tokens (time, height, width), and the position after them.

    Args:
        rows: of the page's cells.
        columns: of the page's cells.
        start: position of the first.
        config: with ``flat_positions`` the page's tokens are counted like words.
    """
    if config.flat_positions:
        count = rows * columns
        return np.repeat(np.arange(start, start + count)[:, None], 3, axis=1), start + count
    row, column = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    positions = np.stack([np.zeros_like(row), row, column], axis=-1).reshape(-1, 3) + start
    return positions, start + max(rows, columns)


def chat_text(tokenizer: Any, turns: Sequence[ChatTurn], config: Qwen3VLConfig) -> str:
    """The chat as the checkpoint's own template writes it."""
    del config
    return template_chat(tokenizer, turns)
