"""InternVL checkpoints of the page side alone: small tiles, image processor, tokenizer, chat template; no weights."""

import json
from pathlib import Path
from typing import Any

from fixate_jax.backbones.decoder.decoder_layer import DecoderConfig
from fixate_jax.backbones.internvl.config import InternVLConfig, VisionConfig
from fixate_jax.backbones.tiny.random import TinySizes, tokenizer_of, write_tokenizer_files

SIDE, CELLS = 32, 4
"""Pixels and cells along the side of a tile."""
SIZES = TinySizes(family="internvl")


def vision_config(**changes: Any) -> VisionConfig:
    """A tower for tiles of 32 × 32 pixels, each 8 × 8 patches and 4 × 4 cells."""
    fields: dict[str, Any] = {"layers": 1, "width": 8, "ff": 8, "heads": 1, "image_size": SIDE, "patch": 4}
    return VisionConfig(**(fields | changes))


def tile_config(**changes: Any) -> InternVLConfig:
    """A configuration for such tiles."""
    decoder = DecoderConfig(
        vocab=SIZES.vocab, layers=1, width=8, ff=8, heads=1, kv_heads=1, head_dim=8, rope_theta=10_000.0
    )
    fields: dict[str, Any] = {"decoder": decoder, "vision": vision_config(), "image_token": mark_ids()["<IMG_CONTEXT>"]}
    return InternVLConfig(**(fields | changes))


def mark_ids() -> dict[str, int]:
    """Ids of the tokens that mark a page."""
    ids = tokenizer_of(SIZES).get_vocab()
    return {text: ids[text] for text in ("<img>", "</img>", "<IMG_CONTEXT>")}


def write_page_files(directory: Path, **processor: Any) -> Path:
    """Write tokenizer, chat template and image processor; ``processor`` replaces fields of the last.

    Returns:
        ``directory``.
    """
    directory.mkdir(parents=True, exist_ok=True)
    write_tokenizer_files(directory, SIZES)
    made = {
        "image_processor_type": "GotOcr2ImageProcessorFast",
        "size": {"height": SIDE, "width": SIDE},
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        # transformers' processor for InternVL cuts pages into tiles whatever this says, and so do we.
        "crop_to_patches": False,
        "min_patches": 1,
        "max_patches": 12,
    }
    (directory / "preprocessor_config.json").write_text(json.dumps(made | processor), encoding="utf-8")
    return directory
