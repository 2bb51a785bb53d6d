"""Posters of movies: from files, or drawn where there is none."""

import hashlib
import re
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageOps

from fixate_jax.data import carousel
from fixate_jax.data.glyphs import draw_glyph
from fixate_jax.data.readers.recgaze.screens import Movie
from fixate_jax.data.render import draw_font
from fixate_jax.errors import DataError

Colour = tuple[int, int, int]

GENRES: dict[str, tuple[Colour, str]] = {
    # Those that carousel pages have keep their colours and shapes.
    **{name.title(): code for name, code in carousel.GENRES.items() if name != "science"},
    "Sci-Fi": carousel.GENRES["science"],
    "Adventure": ((240, 140, 40), "arrow"),
    "Crime": ((150, 30, 50), "saltire"),
    "Mystery": ((85, 60, 175), "hourglass"),
    "Biography": ((205, 170, 125), "person"),
    "Family": ((90, 200, 160), "house"),
    "History": ((140, 125, 85), "steps"),
    "Music": ((230, 80, 210), "note"),
    "Sport": ((60, 170, 70), "cup"),
    "War": ((95, 105, 60), "shield"),
    "Documentary": ((90, 130, 145), "frame"),
    "Musical": ((250, 130, 130), "notes"),
}
"""Genre → colour and glyph of a drawn poster."""
OTHER: tuple[Colour, str] = ((120, 120, 120), "square")
"""What any other genre gets."""
SYNONYMS = {"Science Fiction": "Sci-Fi"}
"""The movie data base's names for genres that the study names otherwise."""
STRIP = 0.29
"""Part of a drawn poster's width that shows the genres."""
MAX_GENRES = 3
"""Genres shown on a drawn poster."""
TITLE_SIZES = (0.24, 0.21, 0.18, 0.155, 0.13)
"""Sizes of a title over the poster's height; the first that lets it fit with its words whole is taken."""
MIN_TITLE = 7.0
"""Pixels; smaller letters cannot be read."""
LINE = 1.16
"""Distance of lines over the size of their letters."""


@lru_cache(maxsize=1024)
def draw_poster(movie: Movie, size: tuple[int, int], folder: Path | None) -> Image.Image:
    """A movie's poster at a size in pixels; one without a file is drawn. Not to be written to: it is kept for later.

    Raises:
        DataError: naming a file that is there and cannot be read.
    """
    if folder is not None and movie.poster is not None and (folder / movie.poster).exists():
        return _read_poster(folder / movie.poster, size)
    return draw_stand_in(movie, size)


def _read_poster(path: Path, size: tuple[int, int]) -> Image.Image:
    try:
        with Image.open(path) as image:
            # A large JPEG is decoded at a fraction of its size, still twice what is needed.
            image.draft("RGB", (2 * size[0], 2 * size[1]))
            # One of another shape fills the place and loses its edges.
            return ImageOps.fit(image.convert("RGB"), size, Image.Resampling.LANCZOS)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{path}: the poster cannot be read ({error}); fix the file, or remove it to have one drawn"
        ) from error


def draw_stand_in(movie: Movie, size: tuple[int, int]) -> Image.Image:
    """A poster made of the movie's first genres, each with its colour and glyph, and its title without the year.

    The ground is a dark shade of the first genre's colour, a little lighter or darker by title, so that two movies of
    one genre differ; the same movie always looks the same.
    """
    width, height = size
    codes = [GENRES.get(SYNONYMS.get(name, name), OTHER) for name in movie.genres[:MAX_GENRES]] or [OTHER]
    shade = 0.25 + 0.2 * hashlib.sha256(movie.title.encode()).digest()[0] / 255
    image = Image.new("RGB", size, _scaled(codes[0][0], shade))
    draw = ImageDraw.Draw(image)
    strip = round(STRIP * width)
    for i, (colour, glyph) in enumerate(codes):
        top, bottom = round(i * height / len(codes)), round((i + 1) * height / len(codes))
        draw.rectangle([0, top, strip - 1, bottom - 1], fill=colour)
        contrast = (250, 250, 250) if sum(colour) < 420 else (30, 30, 30)
        draw_glyph(draw, glyph, strip / 2, (top + bottom) / 2, 0.4 * min(strip, bottom - top), contrast)
    _write_title(draw, re.sub(r"\s+\(\d{4}\)$", "", movie.title), (strip, 0, width, height))
    return image


def _scaled(colour: Colour, factor: float) -> Colour:
    red, green, blue = (round(part * factor) for part in colour)
    return red, green, blue


def _write_title(draw: ImageDraw.ImageDraw, title: str, box: tuple[int, int, int, int]) -> None:
    """Write a title in the middle of a box, as large as it fits, and cut where it does not."""
    left, top, right, bottom = box
    margin = 0.04 * (bottom - top)
    width, height = right - left - 2 * margin, bottom - top - 2 * margin
    for share in TITLE_SIZES:
        size = max(MIN_TITLE, share * (bottom - top))
        lines, longest = wrap(title, size, width), _longest(title, size)
        if (len(lines) * LINE * size <= height and longest <= width) or size == MIN_TITLE:
            break
    most = max(1, int(height / (LINE * size)))
    if len(lines) > most:
        lines = [*lines[: most - 1], lines[most - 1].rstrip() + "…"]
    y = (top + bottom) / 2 - (len(lines) - 1) / 2 * LINE * size
    for i, line in enumerate(lines):
        place = ((left + right) / 2, y + i * LINE * size)
        draw.text(place, line, fill=(250, 250, 250), font=draw_font(size), anchor="mm")


def _longest(text: str, size: float) -> float:
    """Width of a text's longest word."""
    return max((draw_font(size).getlength(word) for word in text.split()), default=0.0)


def wrap(text: str, size: float, width: float) -> list[str]:
    """Lines of a text in letters of a size, none wider than ``width`` pixels; words that are too long are cut."""
    font, lines = draw_font(size), [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".lstrip()
        if font.getlength(joined) <= width:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        for character in word:
            if lines[-1] and font.getlength(lines[-1] + character) > width:
                lines.append("")
            lines[-1] += character
    return lines
