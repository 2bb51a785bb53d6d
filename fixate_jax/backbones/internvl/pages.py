"""Pages and chats for InternVL: a page is cut into square tiles, and a small picture of all of it may follow them.

A tile has ``tile_side`` × ``tile_side`` page tokens in raster order. They come tile by tile, the tiles in raster order,
the thumbnail last. The page's cells are those of its tiles put together; a thumbnail's tokens are nobody's cell.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from PIL import Image

from fixate_jax.backbones.family import ChatTurn, template_chat
from fixate_jax.backbones.inputs import EncodedPage, HostOrDevice
from fixate_jax.backbones.internvl.config import InternVLConfig
from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.backbones.weights.config_json import Section
from fixate_jax.errors import CheckpointError, ConfigError

PIXEL_MEAN, PIXEL_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's, which InternVL's own code normalises pages with."""

SYSTEM_MESSAGES = {
    "internvl2_5": "你是书生·万象，英文名是InternVL，"
    "是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
}
"""Conversation templates of InternVL's own code → the system message that each starts with."""


class PageInputs(NamedTuple):
    """Pages as the vision tower reads them.

    Attributes:
        pixels: normalised pixels of each tile, the thumbnail last.
        valid: False on padding tiles.
    """

    pixels: Float[HostOrDevice, "batch tiles channels height width"]
    valid: Bool[HostOrDevice, "batch tiles"]


MOST_TILES = 1000
"""Of a page; the shapes that so many can have are all looked at."""


class PageProcessor:
    """Resizes a page to the grid of tiles that is closest to its shape, through transformers' PIL processor."""

    def __init__(self, processor: Any, config: InternVLConfig, *, max_tiles: int | None):
        """Wrap a ``GotOcr2ImageProcessorPil``.

        Args:
            processor: has the pixels' mean and deviation and the limits on the number of tiles.
            config: of the checkpoint.
            max_tiles: replaces the processor's upper limit.
        """
        self.processor, self.config = processor, config
        self.most = processor.max_patches if max_tiles is None else max_tiles
        self.least = min(processor.min_patches, self.most)

    def __call__(self, image: Image.Image) -> EncodedPage:
        """Encode one page."""
        rows, columns = self.grid(*image.size)
        out = self.processor(
            images=[image.convert("RGB")],
            crop_to_patches=True,
            min_patches=self.least,
            max_patches=self.most,
            return_tensors="np",
        )
        # The processor always adds a thumbnail where there are several tiles.
        pixels = np.asarray(out["pixel_values"], np.float32)[: page_units(rows, columns, self.config)]
        return EncodedPage(inputs=PageInputs(pixels[None], np.ones((1, len(pixels)), bool)), rows=rows, columns=columns)

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """Rows and columns of cells that a page of this many pixels gets, without reading it."""
        from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

        tile = (self.config.vision.image_size,) * 2
        columns, rows = get_optimal_tiled_canvas((height, width), tile, self.least, self.most)
        if self.config.tile_layout == "raster":
            rows, columns = columns, rows
        return rows * self.config.tile_side, columns * self.config.tile_side


def page_processor(directory: Path, settings: BackboneConfig, config: InternVLConfig) -> PageProcessor:
    """The checkpoint's image processor, with the settings' limit on the number of tiles.

    A checkpoint in the original layout has none for tiles; its processor is made of what InternVL's own code does.

    Raises:
        CheckpointError: when the image processor's file is missing or makes tiles of another size.
        ConfigError: when the settings limit a page's area, which InternVL does not have.
    """
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    if settings.min_pixels is not None or settings.max_pixels is not None:
        raise ConfigError(
            "backbone.min_pixels and backbone.max_pixels are not for InternVL, which cuts a page into tiles of one "
            "size; set backbone.max_tiles"
        )
    side = {"height": config.vision.image_size, "width": config.vision.image_size}
    if config.layout == "original":
        limits = {"min_patches": config.min_tiles, "max_patches": config.max_tiles}
        made = GotOcr2ImageProcessorPil(size=side, image_mean=PIXEL_MEAN, image_std=PIXEL_STD, **limits)
        return PageProcessor(made, config, max_tiles=settings.max_tiles)
    try:
        read = GotOcr2ImageProcessorPil.from_pretrained(directory)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{directory}: no usable image processor ({error})") from error
    found = Section(
        directory / "preprocessor_config.json", {k: getattr(read, k) for k in ("min_patches", "max_patches")}
    )
    for name in found.fields:
        found.whole(name, most=MOST_TILES)
    if dict(read.size) != side:
        raise CheckpointError(
            f"{directory}: the image processor's size is {dict(read.size)}, but config.json's vision_config.image_size "
            f"is {config.vision.image_size}; both must be the side of a tile"
        )
    return PageProcessor(read, config, max_tiles=settings.max_tiles)


def page_units(rows: int, columns: int, config: InternVLConfig) -> int:
    """Tiles of a page with so many cells, its thumbnail included."""
    tiles = rows * columns // config.tile_side**2
    return tiles + (config.thumbnail and tiles > 1)


def cell_tokens(rows: int, columns: int, config: InternVLConfig) -> Int[np.ndarray, " cells"]:
    """Which page token shows each cell: the tokens come tile by tile."""
    if config.tile_layout == "raster":
        return np.arange(rows * columns)
    side = config.tile_side
    tokens = np.arange(rows * columns).reshape(rows // side, columns // side, side, side)
    return tokens.transpose(0, 2, 1, 3).reshape(-1)


def image_positions(
    rows: int, columns: int, start: int, config: InternVLConfig
) -> tuple[Int[np.ndarray, "tokens 3"], int]:
    """Positions of all page tokens, counted like words, and the position after them.

    Args:
        rows: of the page's cells.
        columns: of the page's cells.
        start: position of the first page token.
        config: of the checkpoint.
    """
    after = start + page_units(rows, columns, config) * config.tile_side**2
    return np.repeat(np.arange(start, after)[:, None], 3, axis=1), after


def chat_text(tokenizer: Any, turns: Sequence[ChatTurn], config: InternVLConfig) -> str:
    """The chat up to where the answer starts, the page between its start and end marks.

    In the transformers layout this is the checkpoint's chat template, in the original layout the conversation that
    InternVL's own code writes and was trained with, whatever template the tokenizer may carry.
    """
    text = _conversation(turns, config) if config.layout == "original" else template_chat(tokenizer, turns)
    return text.replace(config.image_word, f"{config.image_start}{config.image_word}{config.image_end}")


def _conversation(turns: Sequence[ChatTurn], config: InternVLConfig) -> str:
    default = SYSTEM_MESSAGES[config.template] if config.system_message is None else config.system_message
    turns = turns if turns[0].role == "system" else [ChatTurn("system", default), *turns]
    said = ((turn.role, f"{config.image_word}\n" if turn.image else "", turn.text) for turn in turns)
    return "".join(f"<|im_start|>{role}\n{page}{text}<|im_end|>\n" for role, page, text in said) + (
        "<|im_start|>assistant\n"
    )
