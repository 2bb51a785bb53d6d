"""Where things stand on the carousel screens of the RecGaze study (de Leon-Martinez et al., SIGIR 2025).

A screen is ten carousels of fifteen movies, five of them shown at a time; a swipe shows the next five. Lengths are
pixels of the study's page at 1920×1080: x to the right, y down from the top of the page. Carousels, places in them (1
to 15) and the pages of a carousel (0 to 2) are counted as in the data set.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

VIEWPORT = (1920, 1080)
"""Width and height of what is seen at once."""
SEEN, SCREEN = (87, 1032), (0, VIEWPORT[1])
"""Upper and lower end of what browser bar and task bar leave to be seen, and of the whole screen."""
CAROUSELS, MOVIES, SHOWN = 10, 15, 5
"""Carousels on a screen, movies in each, and how many of those are shown at a time."""
PAGES = MOVIES // SHOWN
"""Horizontal pages of a carousel."""
POSTER = (342, 193)
"""Width and height of a poster."""
FIRST_LEFT, PITCH_X = 76, 351
FIRST_TOP, PITCH_Y = 176, 339.5
GENRE_TOP, GENRE_HEIGHT = 70, 43
"""The genre's name starts so far above its posters, and is so high."""
SWIPE = 21
"""Side of a swipe button."""
BACKWARD_LEFT, FORWARD_LEFT, SWIPE_TOP = 51, 1831, 86
"""Left edges of the swipe buttons, and how far below the posters' tops they are."""


def poster_top(carousel: int) -> int:
    """Upper edge of a carousel's posters; every other one would lie on half a pixel and is rounded up, as measured."""
    return math.ceil(FIRST_TOP + PITCH_Y * (carousel - 1))


def poster_left(place: int) -> int:
    """Left edge of a movie's poster when its page of the carousel is shown."""
    return FIRST_LEFT + PITCH_X * ((place - 1) % SHOWN)


def page_of(place: int) -> int:
    """The carousel's page that shows a place."""
    return (place - 1) // SHOWN


def places_on(page: int) -> tuple[int, ...]:
    """The places that a carousel's page shows, from left to right."""
    return tuple(range(page * SHOWN + 1, (page + 1) * SHOWN + 1))


def slot_boxes(slots: Sequence[tuple[int, int]], *, scroll: float) -> Float[np.ndarray, "slots 4"]:
    """Boxes of posters in the viewport, in relative coordinates of it.

    Args:
        slots: carousel and place of each.
        scroll: how far the page is scrolled down, in pixels.
    """
    corners = [(poster_left(place), poster_top(carousel) - scroll) for carousel, place in slots]
    boxes = np.array([[x, y, x + POSTER[0], y + POSTER[1]] for x, y in corners], np.float64).reshape(-1, 4)
    return boxes / np.array([*VIEWPORT, *VIEWPORT], np.float64)
