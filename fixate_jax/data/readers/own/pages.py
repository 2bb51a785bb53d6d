"""Pages of one's own data: a screenshot, scaled, with a label in every slot."""

import re
import struct
import zlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont, ImageOps

from fixate_jax.data.boxes import require_pixels
from fixate_jax.data.images import as_seen
from fixate_jax.data.readers.own.files import DRAWN, PAGES, find_image
from fixate_jax.data.readers.own.tables import BOX, Page
from fixate_jax.data.readers.recgaze.tables import Table
from fixate_jax.data.render import draw_font
from fixate_jax.errors import DataError

EDGE = 1.0
"""Pixels by which a box may reach off the screenshot, for rounding; it is cut there."""
FONT_SHARE, MIN_FONT = 0.035, 10.0
"""Size of a label over the page's width, and the least size in pixels; less where a box holds no more."""
PLATE, INK = (255, 255, 255), (0, 0, 0)
LONGEST = 200
"""Longer side of a page over its shorter one, at most; no processor takes more."""
_IMAGE_ERRORS = (OSError, SyntaxError, ValueError, struct.error, zlib.error)
"""What Pillow raises on a file that is no whole image."""
_FIX = "or pass --data.on-bad-row skip"


class BrokenImage(DataError):
    """A file is no whole image."""


Plate = tuple[float, float, float, float]


class BadPage(DataError):
    """A page cannot be drawn; ``reason`` is what it is counted under when it is left out."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(f"{message} {_FIX}")
        self.reason = reason


def make_page(
    path: Path, name: str, page: Page, table: Table, *, width: int, draw: bool
) -> tuple[Image.Image, Float[np.ndarray, "slots 4"], int]:
    """Draw a page.

    Args:
        path: the folder of the data.
        name: of the screenshot.
        page: its slots.
        table: of all slots, to name a line of it.
        width: of the page in pixels; the height follows from the screenshot's shape.
        draw: whether to draw the labels, which is done after scaling so that they are sharp.

    Returns:
        The page, the boxes in relative coordinates, and how wide the screenshot is.

    Raises:
        BadPage: naming the file when it is no whole image, or the line and field of a box that is not on it.
    """
    try:
        image = read_image(find_image(path / PAGES, name) or path / PAGES / name)
    except BrokenImage as error:
        raise BadPage(str(error), "broken image") from error
    boxes = _relative_boxes(page, table, image.size)
    drawn = image.resize((width, max(1, round(image.height * width / image.width))), Image.Resampling.LANCZOS)
    if draw:
        draw_labels(drawn, page.labels, boxes)
    return drawn, boxes, image.width


def read_image(file: Path) -> Image.Image:
    """A screenshot as it is seen: turned as its camera says, what is transparent in white.

    Raises:
        BrokenImage: naming the file.
    """
    try:
        with Image.open(file, formats=["PNG", "JPEG"]) as image:
            short, long = sorted(image.size)
            if long > LONGEST * short:
                raise BrokenImage(
                    f"{file}: {image.width} × {image.height} pixels; a page may be {LONGEST} times as long as wide at "
                    "most, so crop it"
                )
            return as_seen(ImageOps.exif_transpose(image))
    except BrokenImage:
        raise
    except Image.DecompressionBombError as error:
        pixels = int(re.findall(r"\d+", str(error))[0])
        raise BrokenImage(
            f"{file}: an image of {pixels:,} pixels; {2 * (Image.MAX_IMAGE_PIXELS or 0):,} is the limit, so crop or "
            "scale it"
        ) from None
    except _IMAGE_ERRORS as error:
        raise BrokenImage(f"{file}: not readable as a PNG or JPEG image ({error}); save it again") from None


def _relative_boxes(page: Page, table: Table, size: tuple[int, int]) -> Float[np.ndarray, "slots 4"]:
    require_pixels(page.boxes, size, f"{table.path}, line {int(table.lines[page.rows[0]])}")
    limit = np.array([*size, *size], np.float64)
    bad = (page.boxes < -EDGE) | (page.boxes > limit + EDGE)
    boxes = page.boxes.clip(0, limit)
    # What lies in the tolerated strip beside the screenshot has nothing left on it.
    bad[:, 2:] |= boxes[:, 2:] <= boxes[:, :2]
    if bad.any():
        slot, side = np.argwhere(bad)[0]
        wanted = f"is off the screenshot of {size[0]} × {size[1]} pixels; fix the box"
        raise BadPage(str(table.error(page.rows[slot], BOX[side], wanted)), "box off the screenshot")
    return boxes / limit


def draw_labels(page: Image.Image, labels: Sequence[str], boxes: Float[np.ndarray, "slots 4"]) -> None:
    """Draw labels on white plates in the upper left corners of their boxes.

    Where that would hide a label that is drawn already, as with a box in a box, another corner is taken.

    Args:
        page: to draw on.
        labels: of the slots.
        boxes: of the slots, in relative coordinates.

    Raises:
        DataError: the font has no glyph for a letter of a label.
    """
    for label in labels:
        missing = next((letter for letter in label if not _has_glyph(letter)), None)
        if missing is not None:
            raise DataError(
                f"label {label!r}: {missing!r} cannot be drawn, the font (DejaVu Sans) has no such letter; give other "
                f"labels, or draw them on the pages yourself and put a file {DRAWN} beside the tables"
            )
    draw = ImageDraw.Draw(page)
    taken: list[Plate] = []
    for label, box in zip(labels, boxes * np.array([*page.size, *page.size]), strict=True):
        size = max(MIN_FONT, FONT_SHARE * page.width)
        w, h = draw_font(size).getlength(label) + 0.5 * size, 1.25 * size
        shrink = min(1.0, (box[2] - box[0]) / w, (box[3] - box[1]) / h)
        font, w, h = draw_font(max(1.0, shrink * size)), shrink * w, shrink * h
        corners = [(x, y, x + w, y + h) for y in (box[1], box[3] - h) for x in (box[0], box[2] - w)]
        plate = min(corners, key=lambda corner: sum(_overlap(corner, other) for other in taken))
        taken.append(plate)
        x0, y0, x1, y1 = (round(float(side)) for side in plate)
        draw.rectangle([x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)], fill=PLATE, outline=INK)
        draw.text(((plate[0] + plate[2]) / 2, (plate[1] + plate[3]) / 2), label, fill=INK, font=font, anchor="mm")


@cache
def _has_glyph(letter: str) -> bool:
    """Whether the font draws a letter as something else than the box that stands for what it lacks."""
    font = draw_font(20.0)
    return letter.isspace() or _drawn(font, letter) != _drawn(font, "\U0010ffff")


def _drawn(font: ImageFont.FreeTypeFont, letter: str) -> bytes:
    return bytes(font.getmask(letter))


def _overlap(a: Plate, b: Plate) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
