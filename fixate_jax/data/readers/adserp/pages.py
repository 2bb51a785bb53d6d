"""The page of an AdSERP session: what was on the screen, with each slot's number drawn on it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw

from fixate_jax.data.readers.adserp.files import IMAGE_ERRORS, SCREENSHOT_WIDTH, bad_image
from fixate_jax.data.render import draw_font

LABEL_SHARE = 0.026
"""Size of a number's font over the page's width; an organic result is about three times as high."""
PLATE, INK = (190, 20, 60), (255, 255, 255)
"""Colours of a number's plate and of the number; results pages have little red."""

Plate = tuple[float, float, float, float]


def relative_boxes(boxes: Float[np.ndarray, "slots 4"], crop: tuple[int, int]) -> Float[np.ndarray, "slots 4"]:
    """Boxes on the screenshot in relative coordinates of the crop."""
    top, bottom = crop
    span = [SCREENSHOT_WIDTH, bottom - top] * 2
    return (boxes - np.array([0, top, 0, top], np.float64)) / np.array(span, np.float64)


def draw_viewport(
    screenshot: Path, crop: tuple[int, int], boxes: Float[np.ndarray, "slots 4"], *, width: int
) -> Image.Image:
    """Cut the viewport out of a screenshot, scale it down and number the slots from 0.

    Numbers are drawn after scaling, so that they are as sharp as the page allows.

    Args:
        screenshot: the file.
        crop: top and bottom of the viewport on it.
        boxes: of the slots, relative to the crop.
        width: of the page in pixels; a screenshot is not scaled up.

    Raises:
        BadTrial: naming the file when it cannot be decoded.
    """
    try:
        with Image.open(screenshot, formats=["PNG"]) as image:
            view = image.crop((0, crop[0], SCREENSHOT_WIDTH, crop[1])).convert("RGB")
    except IMAGE_ERRORS as error:
        raise bad_image(screenshot, error) from error
    width = min(width, SCREENSHOT_WIDTH)
    height = max(1, round(view.height * width / view.width))
    page = view.resize((width, height), Image.Resampling.LANCZOS)
    draw_numbers(page, boxes)
    return page


def draw_numbers(page: Image.Image, boxes: Float[np.ndarray, "slots 4"]) -> None:
    """Draw each slot's number on a plate in a corner of its box, where it hides no other number if one is free."""
    draw, font = ImageDraw.Draw(page), draw_font(max(8.0, LABEL_SHARE * page.width))
    size = np.array([page.width, page.height] * 2)
    plates: list[Plate] = []
    for number, box in enumerate(boxes * size):
        text = str(number)
        plate_size = (font.getlength(text) + 0.5 * font.size, 1.15 * font.size)
        choices = _corners(box, plate_size, page.size)
        plate = min(choices, key=lambda choice: sum(_overlap(choice, other) for other in plates))
        plates.append(plate)
        x0, y0, x1, y1 = (round(value) for value in plate)
        draw.rectangle([x0, y0, x1 - 1, y1 - 1], fill=PLATE)
        draw.text(((plate[0] + plate[2]) / 2, (plate[1] + plate[3]) / 2), text, fill=INK, font=font, anchor="mm")


def _corners(box: np.ndarray, size: tuple[float, float], page: tuple[int, int]) -> list[Plate]:
    """Places for a plate in a box: upper right first, where results have no text; kept on the page."""
    (w, h), (x0, y0, x1, y1) = size, box
    places = [(x1 - w, y0), (x1 - w, y1 - h), (x0, y0), (x0, y1 - h)]
    kept = [(min(max(x, 0.0), page[0] - w), min(max(y, 0.0), page[1] - h)) for x, y in places]
    return [(float(x), float(y), float(x + w), float(y + h)) for x, y in kept]


def _overlap(a: Sequence[float], b: Sequence[float]) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
