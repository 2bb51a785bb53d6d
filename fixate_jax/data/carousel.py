"""Drawing a carousel page: rows of posters on dark, each coded by its genre's colour and glyph, a letter on each."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw

from fixate_jax.data.glyphs import draw_glyph
from fixate_jax.data.render import draw_font

ROWS, COLUMNS = 3, 5
"""Places for posters on the page."""
ASPECT = 0.6
"""Height of the page over its width, so that places are square."""
BACKGROUND = (20, 20, 24)
SHADES = 4
"""Brightnesses a poster comes in; they mean nothing."""
GENRES: dict[str, tuple[tuple[int, int, int], str]] = {
    "action": ((214, 64, 40), "star"),
    "comedy": ((245, 200, 50), "circle"),
    "drama": ((110, 80, 160), "square"),
    "horror": ((60, 90, 60), "triangle"),
    "romance": ((235, 120, 165), "heart"),
    "animation": ((70, 190, 235), "ring"),
    "thriller": ((40, 60, 120), "bars"),
    "fantasy": ((150, 215, 110), "diamond"),
    "western": ((165, 105, 50), "cross"),
    "science": ((170, 175, 185), "hexagon"),
}
"""Genre → poster colour and glyph."""


class Poster(NamedTuple):
    """One poster.

    Attributes:
        genre: a key of ``GENRES``.
        shade: brightness, 0 to ``SHADES`` − 1.
    """

    genre: str
    shade: int = 0


def poster_boxes(heights: Sequence[float] = (1.0,) * ROWS) -> Float[np.ndarray, "slots 4"]:
    """The places of posters row by row, in relative page coordinates.

    Args:
        heights: of the rows, in any unit; together they fill the page.
    """
    edges = np.concatenate([[0.0], np.cumsum(heights)]) / np.sum(heights)
    return np.array(
        [[c / COLUMNS, edges[r], (c + 1) / COLUMNS, edges[r + 1]] for r in range(ROWS) for c in range(COLUMNS)]
    )


def draw_carousels(
    posters: Sequence[Poster | None],
    labels: Sequence[str | None],
    *,
    width: int,
    boxes: Float[np.ndarray, "slots 4"] | None = None,
) -> Image.Image:
    """Draw a page.

    Args:
        posters: what stands in each place row by row; None leaves it empty.
        labels: the letter on each poster; None where there is none.
        width: of the page in pixels.
        boxes: the places, in relative page coordinates; None: the squares of :func:`poster_boxes`. Sign and letter grow
            with the shorter side of their place.

    Returns:
        The page; with one release of Pillow it is the same on every machine.
    """
    page = Image.new("RGB", (width, round(width * ASPECT)), BACKGROUND)
    draw = ImageDraw.Draw(page)
    for box, poster, label in zip(poster_boxes() if boxes is None else boxes, posters, labels, strict=True):
        if poster is None:
            continue
        x, y = box[0] * page.width, box[1] * page.height
        # Squares that do not end on a pixel all have the same size, so that posters look alike in all places.
        across = width / COLUMNS if boxes is None else (box[2] - box[0]) * page.width
        down = width / COLUMNS if boxes is None else (box[3] - box[1]) * page.height
        side = min(across, down)
        gap = 0.04 * side
        colour, glyph = GENRES[poster.genre]
        fill = tuple(round(part * (1 - 0.1 * poster.shade)) for part in colour)
        draw.rectangle([x + gap, y + gap, x + across - gap - 1, y + down - gap - 1], fill=fill)
        contrast = (250, 250, 250) if sum(fill) < 420 else (30, 30, 30)
        draw_glyph(draw, glyph, x + 0.58 * across, y + 0.6 * down, 0.28 * side, contrast)
        if label is not None:
            draw.rectangle([x + gap, y + gap, x + 0.36 * side, y + 0.4 * side], fill=(255, 255, 255))
            centre = x + 0.2 * side, y + 0.22 * side
            draw.text(centre, label, fill=(0, 0, 0), font=draw_font(0.3 * side), anchor="mm")
    return page
