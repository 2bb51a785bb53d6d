"""Drawing a carousel page: rows of posters on dark, each coded by its genre's colour and glyph, a letter on each."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw

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


def poster_boxes() -> Float[np.ndarray, "slots 4"]:
    """The places of posters row by row, in relative page coordinates."""
    return np.array(
        [[c / COLUMNS, r / ROWS, (c + 1) / COLUMNS, (r + 1) / ROWS] for r in range(ROWS) for c in range(COLUMNS)]
    )


def _polygon(corners: int, turn: float, inner: float | None = None) -> list[tuple[float, float]]:
    """Corners on the unit circle; with ``inner``, every second one at that radius (a star)."""
    count = corners if inner is None else 2 * corners
    radius = [1.0 if inner is None or i % 2 == 0 else inner for i in range(count)]
    angle = [2 * math.pi * i / count + turn for i in range(count)]
    return [(r * math.sin(a), -r * math.cos(a)) for r, a in zip(radius, angle, strict=True)]


_SHAPES: dict[str, list[list[tuple[float, float]]]] = {
    "star": [_polygon(5, 0.0, 0.4)],
    "square": [_polygon(4, math.pi / 4)],
    "triangle": [_polygon(3, 0.0)],
    "heart": [
        [(0, 0.9), (-0.9, -0.1), (-0.75, -0.7), (-0.3, -0.75), (0, -0.35), (0.3, -0.75), (0.75, -0.7), (0.9, -0.1)]
    ],
    "bars": [[(x - 0.15, -0.8), (x + 0.15, -0.8), (x + 0.15, 0.8), (x - 0.15, 0.8)] for x in (-0.6, 0, 0.6)],
    "diamond": [_polygon(4, 0.0)],
    "cross": [[(-0.2, -0.9), (0.2, -0.9), (0.2, 0.9), (-0.2, 0.9)], [(-0.8, -0.4), (0.8, -0.4), (0.8, 0), (-0.8, 0)]],
    "hexagon": [_polygon(6, 0.0)],
}


def _draw_glyph(draw: ImageDraw.ImageDraw, shape: str, x: float, y: float, size: float, fill: tuple[int, ...]) -> None:
    if shape in ("circle", "ring"):
        box = [x - size, y - size, x + size, y + size]
        if shape == "circle":
            draw.ellipse(box, fill=fill)
        else:
            draw.ellipse(box, outline=fill, width=max(1, round(size / 3)))
        return
    for part in _SHAPES[shape]:
        draw.polygon([(x + size * dx, y + size * dy) for dx, dy in part], fill=fill)


def draw_carousels(posters: Sequence[Poster | None], labels: Sequence[str | None], *, width: int) -> Image.Image:
    """Draw a page.

    Args:
        posters: what stands in each place row by row; None leaves it empty.
        labels: the letter on each poster; None where there is none.
        width: of the page in pixels.

    Returns:
        The page; with one release of Pillow it is the same on every machine.
    """
    cell = width / COLUMNS
    page = Image.new("RGB", (width, round(width * ASPECT)), BACKGROUND)
    draw = ImageDraw.Draw(page)
    gap, font = 0.04 * cell, draw_font(0.3 * cell)
    for box, poster, label in zip(poster_boxes(), posters, labels, strict=True):
        if poster is None:
            continue
        x, y = box[0] * page.width, box[1] * page.height
        colour, glyph = GENRES[poster.genre]
        fill = tuple(round(part * (1 - 0.1 * poster.shade)) for part in colour)
        draw.rectangle([x + gap, y + gap, x + cell - gap - 1, y + cell - gap - 1], fill=fill)
        contrast = (250, 250, 250) if sum(fill) < 420 else (30, 30, 30)
        _draw_glyph(draw, glyph, x + 0.58 * cell, y + 0.6 * cell, 0.28 * cell, contrast)
        if label is not None:
            draw.rectangle([x + gap, y + gap, x + 0.36 * cell, y + 0.4 * cell], fill=(255, 255, 255))
            draw.text((x + 0.2 * cell, y + 0.22 * cell), label, fill=(0, 0, 0), font=font, anchor="mm")
    return page
