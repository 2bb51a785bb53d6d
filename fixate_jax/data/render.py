"""Drawing the gamble page: three boxes on grey, two texts each, a label in every slot."""

from collections.abc import Sequence
from functools import lru_cache
from importlib import metadata
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont

SCREEN = (1280, 1024)
"""Screen of the study, in pixels; everything below is in these and scaled to the page."""
COLUMN_X = (640.0 - 391, 640.0, 640.0 + 391)
TEXT_Y = (512 - 195.5, 512 + 195.5)
TEXT_AREA = (385.0, 240.0)
"""Gaze area around a text's centre."""
BOX = (385.0, 391.0 + 240)
"""The white box around an alternative: as wide as its gaze areas, from the top of the upper to the end of the lower."""
GREY, WHITE = (128, 128, 128), (255, 255, 255)


class Alternative(NamedTuple):
    """What one box shows."""

    probability: float
    amount: int
    probability_on_top: bool

    @property
    def texts(self) -> tuple[str, str]:
        """Upper and lower text; the chance to a tenth of a percent, since more digits would not fit into a box."""
        texts = f"{round(100 * self.probability, 1):g}%", f"{self.amount}€"
        return texts if self.probability_on_top else (texts[1], texts[0])


def _relative(centre_x: float, centre_y: float, size: tuple[float, float]) -> list[float]:
    (width, height), (w, h) = SCREEN, size
    return [
        (centre_x - w / 2) / width,
        (centre_y - h / 2) / height,
        (centre_x + w / 2) / width,
        (centre_y + h / 2) / height,
    ]


def alternative_boxes() -> Float[np.ndarray, "3 4"]:
    """The three outlined boxes from left to right, in relative page coordinates."""
    return np.array([_relative(x, SCREEN[1] / 2, BOX) for x in COLUMN_X])


def text_boxes() -> Float[np.ndarray, "6 4"]:
    """The six gaze areas, upper then lower of each column from left to right, in relative page coordinates."""
    return np.array([_relative(x, y, TEXT_AREA) for x in COLUMN_X for y in TEXT_Y])


@lru_cache(maxsize=16)
def draw_font(size: float) -> ImageFont.FreeTypeFont:
    """DejaVu Sans as matplotlib ships it: the same on every machine (Pillow's own font has no euro sign)."""
    return ImageFont.truetype(
        str(metadata.distribution("matplotlib").locate_file("matplotlib/mpl-data/fonts/ttf/DejaVuSans.ttf")),
        size,
        layout_engine=ImageFont.Layout.BASIC,
    )


def text_marks(alternatives: Sequence[Alternative]) -> list[tuple[str, int, list[float]]]:
    """Each character of each text: itself, its alternative, and its box in relative page coordinates."""
    marks, font = [], draw_font(96.0)
    for column, (x, alternative) in enumerate(zip(COLUMN_X, alternatives, strict=True)):
        for y, text in zip(TEXT_Y, alternative.texts, strict=True):
            left = x - font.getlength(text) / 2
            for character in text:
                width = font.getlength(character)
                marks.append((character, column, _relative(left + width / 2, y, (width, 70.0))))
                left += width
    return marks


def draw_page(
    alternatives: Sequence[Alternative], labels: Sequence[str], boxes: Float[np.ndarray, "slots 4"], *, width: int
) -> Image.Image:
    """Draw a page.

    Args:
        alternatives: the three columns from left to right.
        labels: a label per slot, drawn in the slot's upper left corner, clear of the texts.
        boxes: the slots, in relative page coordinates.
        width: of the page in pixels; the height follows from the screen's shape.

    Returns:
        The page; with one release of Pillow it is the same on every machine.
    """
    scale = width / SCREEN[0]
    size = (width, round(SCREEN[1] * scale))
    page = Image.new("RGB", size, GREY)
    draw = ImageDraw.Draw(page)
    line = max(1, round(4 * scale))
    for box in alternative_boxes():
        x0, y0, x1, y1 = box * np.array([*size, *size])
        draw.rectangle([round(x0), round(y0), round(x1) - 1, round(y1) - 1], outline=WHITE, width=line)
    for x, alternative in zip(COLUMN_X, alternatives, strict=True):
        for y, text in zip(TEXT_Y, alternative.texts, strict=True):
            draw.text((x * scale, y * scale), text, fill=WHITE, font=draw_font(96 * scale), anchor="mm")
    for label, box in zip(labels, boxes, strict=True):
        x0, y0 = box[0] * size[0], box[1] * size[1]
        draw.text((x0 + 14 * scale, y0 + 10 * scale), label, fill=WHITE, font=draw_font(56 * scale), anchor="lt")
    return page
