"""Drawing a screen as it was seen: photographs at their places on black, a label under each."""

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageOps

from fixate_jax.data.readers.recgaze.posters import wrap
from fixate_jax.data.render import draw_font
from fixate_jax.errors import DataError

SCREEN = (1280, 1024)
"""Of the study, in pixels."""
SMALLEST_LABEL, LARGEST_LABEL, LABEL_GAP = 8.0, 48.0, 2.0
"""Height of a capital at least and at most, and what is free above and below it, in pixels of the screen."""
CAPITAL = 0.729
"""Height of a capital of the font over its size."""
LEGIBLE_PX = 7
"""Least height of a label on the page."""
INK, STAND_IN = (255, 255, 255), (64, 64, 70)


def label_height(boxes: Float[np.ndarray, "items 4"]) -> float:
    """Height of the labels of a grid in pixels of the screen: as high as what is free under the photographs.

    Raises:
        DataError: hardly anything is.
    """
    free = math.inf
    for x0, _, x1, bottom in boxes:
        beneath = (boxes[:, 0] < x1) & (boxes[:, 2] > x0) & (boxes[:, 3] > bottom)
        free = min(free, float(min([*boxes[beneath, 1], SCREEN[1]]) - bottom))
    if free < SMALLEST_LABEL + 2 * LABEL_GAP:
        raise DataError(
            f"the grid of {len(boxes)}: no room for a label under each photograph ({free:g} pixels are free); mend the "
            "positions, or leave it out of data.grids"
        )
    return float(min(free - 2 * LABEL_GAP, LARGEST_LABEL))


def least_width(boxes: Float[np.ndarray, "items 4"]) -> int:
    """Width of a page from which on a grid's labels can be read."""
    return math.ceil(LEGIBLE_PX * SCREEN[0] / label_height(boxes) / 10) * 10


def draw_screen(
    photos: Sequence[Path | str], boxes: Float[np.ndarray, "items 4"], labels: Sequence[str], *, width: int
) -> Image.Image:
    """Draw a screen.

    Args:
        photos: for each item the file of its photograph, or its name where there is none.
        boxes: of the items, in pixels of the screen.
        labels: of the items.
        width: of the page in pixels.

    Raises:
        DataError: naming a photograph that cannot be read.
    """
    scale = width / SCREEN[0]
    page = Image.new("RGB", (width, round(SCREEN[1] * scale)))
    draw, height = ImageDraw.Draw(page), label_height(boxes)
    font = draw_font(round(height * scale / CAPITAL, 1))
    for photo, label, box in zip(photos, labels, boxes * scale, strict=True):
        x0, y0, x1, y1 = (round(float(side)) for side in box)
        page.paste(picture(photo, (x1 - x0, y1 - y0)), (x0, y0))
        middle = float(box[0] + box[2]) / 2, float(box[3]) + (LABEL_GAP + height) * scale
        draw.text(middle, label, fill=INK, font=font, anchor="ms")
    return page


@lru_cache(maxsize=512)
def picture(photo: Path | str, size: tuple[int, int]) -> Image.Image:
    """A photograph in the middle of a black box, or a plain box with the product's name."""
    if isinstance(photo, Path):
        try:
            with Image.open(photo, formats=["PNG", "JPEG"]) as image:
                whole = image.convert("RGBA")
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(f"{photo}: the photograph cannot be read ({error}); remove it to have one drawn") from error
        seen = Image.new("RGBA", whole.size, (0, 0, 0, 255))
        seen.alpha_composite(whole)
        return ImageOps.pad(seen.convert("RGB"), size, Image.Resampling.LANCZOS)
    box = Image.new("RGB", size, STAND_IN)
    letters = max(6.0, 0.2 * size[1])
    lines = wrap(photo, letters, 0.9 * size[0])
    place = (size[0] / 2, size[1] / 2)
    text = "\n".join(lines)
    ImageDraw.Draw(box).multiline_text(place, text, fill=INK, font=draw_font(letters), anchor="mm", align="center")
    return box
