"""What of a screen is in the viewport at a scroll offset, and what lies under a point of the page.

Offsets are whole pixels or odd eighths of one: exact in binary, and never on the edge of the data set's rules (half a
pixel off a fully visible row).
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from fixate_jax.data.readers.recgaze import geometry

ROW_GAP = 146
"""Pixels from a carousel's posters down to the next carousel's, and to the page's end below the last."""
MAX_SCROLL = geometry.poster_top(geometry.CAROUSELS) + geometry.POSTER[1] + ROW_GAP - geometry.VIEWPORT[1]
"""Offset at the page's end."""
VISIBLE_PX, FULL_PX = 3.0, geometry.POSTER[1] - 0.5
"""A row counts as visible, and as fully visible, from so many pixels of its posters."""
HIDDEN_ABOVE, SEEN_TO = 87, 1032
"""Rows of the screen behind the browser's bar, and where the task bar begins."""
GENRE_WIDTH = 120
"""Pixels of a genre's name, which are as many as its letters need; this will do for all."""

MOVIE, GENRE, FORWARD, BACKWARD, BACKGROUND = TYPES = ("Movie", "Genre", "Forward", "Backward", "Background")
"""Types of areas of interest, as the data set names them."""

TOPS = np.array([geometry.poster_top(carousel + 1) for carousel in range(geometry.CAROUSELS)])


class Aoi(NamedTuple):
    """An area of interest: its type, the carousel (0: none) and the place in it (0: none)."""

    type: str
    carousel: int
    place: int


NOWHERE = Aoi(BACKGROUND, 0, 0)


@lru_cache(maxsize=4096)
def poster_pixels(scroll: float) -> tuple[tuple[int, float], ...]:
    """The visible carousels from the top, each with how many pixels of its posters' height are seen."""
    height = np.minimum(TOPS + geometry.POSTER[1], scroll + SEEN_TO) - np.maximum(TOPS, scroll + HIDDEN_ABOVE)
    return tuple((int(row) + 1, float(height[row])) for row in np.flatnonzero(height >= VISIBLE_PX))


def visible_rows(scroll: float) -> tuple[int, ...]:
    """Carousels of which enough is seen."""
    return tuple(row for row, _ in poster_pixels(scroll))


def full_rows(scroll: float) -> tuple[int, ...]:
    """Carousels that are seen whole."""
    return tuple(row for row, height in poster_pixels(scroll) if height >= FULL_PX)


def settle(scroll: float, *, whole: bool) -> float:
    """The nearest offset on the page that is a whole pixel, or an odd eighth of one."""
    offset = float(round(scroll)) if whole else (2 * round((scroll * 8 - 1) / 2) + 1) / 8
    return min(max(offset, 0.0), float(MAX_SCROLL))


def eighth(position: float) -> float:
    """A position in eighths of a pixel, so that sums and differences of positions are exact."""
    return round(position * 8) / 8


def area_under(
    x: Float[np.ndarray, " points"], y: Float[np.ndarray, " points"], pages: Int[np.ndarray, "points carousels"]
) -> list[Aoi]:
    """The area of interest under each point of the page, in page pixels, with every carousel's page at that time."""
    width, height = geometry.POSTER
    above = np.searchsorted(TOPS, y, side="right") - 1
    row = np.maximum(above, 0)
    below_top = np.where(above >= 0, y - TOPS[row], np.inf)
    column = np.floor((x - geometry.FIRST_LEFT) / geometry.PITCH_X)
    inside = (column >= 0) & (column < geometry.SHOWN) & (x - geometry.FIRST_LEFT - column * geometry.PITCH_X < width)
    on_poster = inside & (below_top < height)
    place = pages[np.arange(len(x)), row] * geometry.SHOWN + column + 1
    at_button = (below_top >= geometry.SWIPE_TOP) & (below_top < geometry.SWIPE_TOP + geometry.SWIPE)
    forward = at_button & (x >= geometry.FORWARD_LEFT) & (x < geometry.FORWARD_LEFT + geometry.SWIPE)
    backward = at_button & (x >= geometry.BACKWARD_LEFT) & (x < geometry.BACKWARD_LEFT + geometry.SWIPE)
    following = np.minimum(above + 1, geometry.CAROUSELS - 1)
    above_next = TOPS[following] - y
    on_genre = (above_next <= geometry.GENRE_TOP) & (above_next > geometry.GENRE_TOP - geometry.GENRE_HEIGHT)
    on_genre &= (x >= geometry.FIRST_LEFT) & (x < geometry.FIRST_LEFT + GENRE_WIDTH)
    found = []
    for i in range(len(x)):
        if on_poster[i]:
            found.append(Aoi(MOVIE, int(row[i]) + 1, int(place[i])))
        elif forward[i] or backward[i]:
            found.append(Aoi(FORWARD if forward[i] else BACKWARD, int(row[i]) + 1, 0))
        elif on_genre[i]:
            found.append(Aoi(GENRE, int(following[i]) + 1, 0))
        else:
            found.append(NOWHERE)
    return found
