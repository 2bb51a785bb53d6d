"""Drawing what was seen of a RecGaze screen: the viewport at a scroll offset, with every carousel at its page.

Movies stand where the study's page had them (``geometry``). Slots get a letter under their poster.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple, TypeVar

from PIL import Image, ImageDraw

from fixate_jax.data.readers.recgaze.geometry import (
    BACKWARD_LEFT,
    CAROUSELS,
    FIRST_LEFT,
    FORWARD_LEFT,
    GENRE_HEIGHT,
    GENRE_TOP,
    PAGES,
    POSTER,
    SCREEN,
    SWIPE,
    SWIPE_TOP,
    VIEWPORT,
    page_of,
    places_on,
    poster_top,
    slot_boxes,
)
from fixate_jax.data.readers.recgaze.posters import draw_poster
from fixate_jax.data.readers.recgaze.screens import Movie, Screen
from fixate_jax.data.render import draw_font
from fixate_jax.data.store import encode_image
from fixate_jax.errors import DataError

T = TypeVar("T")

BACKGROUND, INK, BUTTON, BAR = (20, 20, 24), (255, 255, 255), (170, 170, 175), (70, 72, 78)
GENRE_SIZE = 31.0
"""Size of a genre's name, so that names are about as wide as measured."""
LABEL_HEIGHT, LABEL_GAP = 28.0, 2.0
"""Height of a letter, and what is free above and below it: together what is seen under row 3 at scroll 0."""
CAPITAL = 0.729
"""Height of a capital of the font over its size."""
FEW = 24
"""Up to so many pictures are drawn in this process: starting others would take longer."""
CHUNK = 16
"""Pictures that a process draws at a time; neighbours share posters, which are kept at hand."""


@dataclass(frozen=True, kw_only=True)
class Viewport:
    """What is seen of a screen.

    Attributes:
        screen: its ten carousels.
        scroll: how far the page is scrolled down, in pixels of the study's page.
        horizontal_pages: the page, 0 to 2, of every carousel.
        labels: letters by carousel and place; each goes under its poster.
        span: upper and lower end of what bars on the screen leave to be seen.
        width: of the picture, in pixels; its height follows from the viewport's shape.
        posters: folder of poster files; None to have all drawn.
    """

    screen: Screen
    scroll: float
    horizontal_pages: Sequence[int]
    labels: Mapping[tuple[int, int], str]
    span: tuple[int, int] = SCREEN
    width: int = 1100
    posters: Path | None = None


class _Row(NamedTuple):
    carousel: int
    genre: str
    places: tuple[int, ...]
    movies: tuple[Movie, ...]
    labels: tuple[str | None, ...]


class _View(NamedTuple):
    """All that a picture depends on, and nothing else: what the rows outside hold is left out."""

    rows: tuple[_Row, ...]
    scroll: float
    span: tuple[int, int]
    width: int
    posters: Path | None


def draw_viewport(
    screen: Screen,
    *,
    scroll: float,
    horizontal_pages: Sequence[int],
    labels: Mapping[tuple[int, int], str],
    span: tuple[int, int] = SCREEN,
    width: int = 1100,
    posters: Path | None = None,
) -> Image.Image:
    """Draw what is seen of a screen; the arguments are those of ``Viewport``.

    Returns:
        The picture. Posters fill their boxes of ``slot_boxes`` to the pixel. With one release of Pillow it is the same
        on every machine.

    Raises:
        DataError: when a carousel, page or label is not on the screen, or naming a poster file that cannot be read.
    """
    given: dict[str, Any] = {"horizontal_pages": horizontal_pages, "labels": labels, "span": span, "posters": posters}
    return _draw(_view(Viewport(screen=screen, scroll=scroll, width=width, **given)))


def render_viewports(
    viewports: Sequence[Viewport], out: Callable[[bytes], T], *, workers: int | None = None
) -> list[T]:
    """Draw many viewports, each different picture once.

    Pictures are drawn by several processes that are started afresh, so a script that calls this needs the usual
    ``if __name__ == "__main__":``. What comes out does not depend on their number.

    Args:
        viewports: what to draw.
        out: takes the PNG bytes of a picture, e.g. ``StoreWriter.add_image``; called once for each different picture,
            in this process, in the order in which they first appear.
        workers: processes; None: one for each processor.

    Returns:
        What ``out`` returned, for each viewport.

    Raises:
        DataError: as ``draw_viewport``.
    """
    views = [_view(viewport) for viewport in viewports]
    different = list(dict.fromkeys(views))
    workers = min(workers or os.cpu_count() or 1, len(different))
    if workers <= 1 or len(different) <= FEW:
        made = {view: out(_png(view)) for view in different}
    else:
        with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_end_with_parent) as pool:
            pictures = pool.map(_png, different, chunksize=CHUNK)
            try:
                made = {view: out(png) for view, png in zip(different, pictures, strict=True)}
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    return [made[view] for view in views]


def _end_with_parent() -> None:
    """End this process when the one that started it is gone; if that is killed, it cannot tell its helpers to end."""
    parent = parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    Thread(target=wait, daemon=True).start()


def _png(view: _View) -> bytes:
    return encode_image(_draw(view))


def _view(viewport: Viewport) -> _View:
    pages, scroll = tuple(viewport.horizontal_pages), float(viewport.scroll)
    if len(viewport.screen) != CAROUSELS:
        raise DataError(f"a screen has {CAROUSELS} carousels, got {len(viewport.screen)}")
    if len(pages) != CAROUSELS or any(page not in range(PAGES) for page in pages):
        raise DataError(f"horizontal_pages: must be {CAROUSELS} numbers in 0..{PAGES - 1}, got {pages}")
    if not math.isfinite(scroll):
        raise DataError(f"scroll: must be a number of pixels, got {scroll}")
    shown = [c for c in range(1, CAROUSELS + 1) if _touches(poster_top(c) - scroll)]
    for number, place in viewport.labels:
        if number not in shown or page_of(place) != pages[number - 1]:
            raise DataError(f"labels: place {place} of carousel {number} is not in the viewport at scroll {scroll:g}")
    rows = []
    for number in shown:
        genre, films = viewport.screen[number - 1]
        places = places_on(pages[number - 1])
        movies = tuple(films[place - 1] for place in places)
        labels = tuple(viewport.labels.get((number, place)) for place in places)
        rows.append(_Row(number, genre, places, movies, labels))
    return _View(tuple(rows), scroll, viewport.span, viewport.width, viewport.posters)


def _touches(top: float) -> bool:
    """Whether a row, from its genre's name to where its letters end, shows in the viewport."""
    return top - GENRE_TOP < VIEWPORT[1] and top + POSTER[1] + LABEL_HEIGHT + 2 * LABEL_GAP > 0


def _draw(view: _View) -> Image.Image:
    scale = view.width / VIEWPORT[0]
    picture = Image.new("RGB", (view.width, round(VIEWPORT[1] * scale)), BACKGROUND)
    seen = round(view.span[0] * scale), round(view.span[1] * scale)
    draw = ImageDraw.Draw(picture)
    for row in view.rows:
        top = poster_top(row.carousel) - view.scroll
        middle = (FIRST_LEFT * scale, (top - GENRE_TOP + GENRE_HEIGHT / 2) * scale)
        draw.text(middle, row.genre, fill=INK, font=draw_font(GENRE_SIZE * scale), anchor="lm")
        _draw_buttons(draw, top, scale)
        boxes = slot_boxes([(row.carousel, place) for place in row.places], scroll=view.scroll)
        for movie, label, box in zip(row.movies, row.labels, boxes, strict=True):
            x0, x1 = (math.floor(x * picture.width + 0.5) for x in (box[0], box[2]))
            y0, y1 = (math.floor(y * picture.height + 0.5) for y in (box[1], box[3]))
            picture.paste(draw_poster(movie, (x1 - x0, y1 - y0), view.posters), (x0, y0))
            if label is not None:
                _draw_label(picture, label, (x0 + x1) / 2, y1, scale, seen[1])
    for top, bottom in ((0, seen[0]), (seen[1], picture.height)):
        picture.paste(BAR, (0, top, picture.width, bottom))
    return picture


def _draw_buttons(draw: ImageDraw.ImageDraw, top: float, scale: float) -> None:
    """The two arrows that swipe a row."""
    y = top + SWIPE_TOP
    for left, tip in ((BACKWARD_LEFT, 0), (FORWARD_LEFT, SWIPE)):
        base = left + SWIPE - tip
        corners = [(base, y), (left + tip, y + SWIPE / 2), (base, y + SWIPE)]
        draw.polygon([(scale * a, scale * b) for a, b in corners], fill=BUTTON)


@lru_cache(maxsize=256)
def _letter(text: str, height: int) -> Image.Image:
    """A label as a mask, cropped to what is drawn."""
    font = draw_font(height / CAPITAL)
    mask = Image.new("L", (math.ceil(font.getlength(text)) + 4, 3 * height))
    ImageDraw.Draw(mask).text((2, 2 * height), text, fill=255, font=font, anchor="ls", stroke_width=height / 40)
    return mask.crop(mask.getbbox())


def _draw_label(picture: Image.Image, label: str, x: float, bottom: int, scale: float, end: int) -> None:
    """A letter under a poster, or over its lower edge where what is seen ends too soon."""
    gap = max(1, round(LABEL_GAP * scale))
    letter = _letter(label, max(1, round(LABEL_HEIGHT * scale)))
    left = round(x - letter.width / 2)
    top = min(bottom + gap, end - letter.height)
    if top < bottom:
        plate = [left - 2 * gap, top - gap, left + letter.width + 2 * gap - 1, top + letter.height + gap - 1]
        ImageDraw.Draw(picture).rectangle(plate, fill=BACKGROUND)
    picture.paste(INK, (left, top), letter)
