"""Simple shapes that stand for genres on drawn pages."""

import math

from PIL import ImageDraw

Shape = list[list[tuple[float, float]]]


def _polygon(corners: int, turn: float, inner: float | None = None) -> list[tuple[float, float]]:
    """Corners on the unit circle; with ``inner``, every second one at that radius (a star)."""
    count = corners if inner is None else 2 * corners
    radius = [1.0 if inner is None or i % 2 == 0 else inner for i in range(count)]
    angle = [2 * math.pi * i / count + turn for i in range(count)]
    return [(r * math.sin(a), -r * math.cos(a)) for r, a in zip(radius, angle, strict=True)]


def _bar(x0: float, y0: float, x1: float, y1: float) -> list[tuple[float, float]]:
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def _disc(x: float, y: float, radius: float) -> list[tuple[float, float]]:
    return [(x + radius * dx, y + radius * dy) for dx, dy in _polygon(16, 0.0)]


_SHAPES: dict[str, Shape] = {
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
    "arrow": [_bar(-0.9, -0.25, 0.1, 0.25), [(0.1, -0.8), (0.95, 0), (0.1, 0.8)]],
    "saltire": [
        [(-0.9, -0.6), (-0.6, -0.9), (0.9, 0.6), (0.6, 0.9)],
        [(0.6, -0.9), (0.9, -0.6), (-0.6, 0.9), (-0.9, 0.6)],
    ],
    "hourglass": [[(-0.75, -0.9), (0.75, -0.9), (0, 0)], [(0, 0), (0.75, 0.9), (-0.75, 0.9)]],
    "person": [_disc(0.0, -0.5, 0.42), [(-0.35, 0.05), (0.35, 0.05), (0.8, 0.9), (-0.8, 0.9)]],
    "house": [[(0, -0.95), (0.95, -0.1), (-0.95, -0.1)], _bar(-0.65, -0.1, 0.65, 0.85)],
    "steps": [_bar(-0.35, -0.8, 0.35, -0.4), _bar(-0.65, -0.2, 0.65, 0.2), _bar(-0.95, 0.4, 0.95, 0.8)],
    "note": [_disc(-0.25, 0.6, 0.38), _bar(-0.05, -0.9, 0.15, 0.6), [(0.15, -0.9), (0.7, -0.35), (0.15, -0.45)]],
    "cup": [
        [(-0.8, -0.85), (0.8, -0.85), (0.3, 0.2), (-0.3, 0.2)],
        _bar(-0.1, 0.2, 0.1, 0.6),
        _bar(-0.5, 0.6, 0.5, 0.9),
    ],
    "shield": [[(-0.8, -0.85), (0.8, -0.85), (0.8, 0.1), (0, 0.95), (-0.8, 0.1)]],
    "frame": [
        _bar(-0.85, -0.85, 0.85, -0.5),
        _bar(-0.85, 0.5, 0.85, 0.85),
        _bar(-0.85, -0.5, -0.5, 0.5),
        _bar(0.5, -0.5, 0.85, 0.5),
    ],
    "notes": [
        *(_disc(-0.55, 0.6, 0.33), _disc(0.5, 0.45, 0.33)),
        *(_bar(-0.37, -0.7, -0.22, 0.6), _bar(0.68, -0.85, 0.83, 0.45)),
        [(-0.37, -0.7), (0.83, -0.9), (0.83, -0.5), (-0.37, -0.3)],
    ],
}
_ROUND = ("circle", "ring")
GLYPHS = (*_ROUND, *_SHAPES)
"""Names of all shapes."""


def draw_glyph(draw: ImageDraw.ImageDraw, shape: str, x: float, y: float, size: float, fill: tuple[int, ...]) -> None:
    """Draw a shape.

    Args:
        draw: where to.
        shape: one of ``GLYPHS``.
        x: of the centre, in pixels.
        y: of the centre, in pixels.
        size: half of its width, in pixels.
        fill: its colour.
    """
    if shape in _ROUND:
        box = [x - size, y - size, x + size, y + size]
        if shape == "circle":
            draw.ellipse(box, fill=fill)
        else:
            draw.ellipse(box, outline=fill, width=max(1, round(size / 3)))
        return
    for part in _SHAPES[shape]:
        draw.polygon([(x + size * dx, y + size * dy) for dx, dy in part], fill=fill)
