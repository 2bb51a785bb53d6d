"""Page visits of RecGaze: what was on screen at a fixation, when that counts as a new page, and times per poster."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Integer

from fixate_jax.data.readers.recgaze.geometry import CAROUSELS, MOVIES, PAGES, POSTER, SHOWN, places_on, poster_top
from fixate_jax.data.readers.recgaze.logs import DECIMALS, Log
from fixate_jax.data.readers.recgaze.tables import poster_of

VISIBLE_PX = 3.0
"""A row of posters is visible with so many px of it; five rows never are."""
FULL_SLACK_PX = 0.5
"""A row is fully visible when no more than this is cut off."""
SCROLLED_PX, LONG_MS = 17.0, 150.0
"""Scrolled by more than this, a fixation of this duration or more starts a visit."""
MOVING_S = 0.5
"""For so long after an arrow click a carousel moves, and ignores others."""
IGNORED = "arrow click while the carousel still moved; ignored, as the page did"
DRAGGED = "row on another page than its arrows say; the fixation on or beside one of its films counts"
VISIT_COLUMNS = [
    "user_id",
    "task_id",
    "visit",
    "start",
    "scroll_px",
    "rows",
    "full_rows",
    "horizontal_pages",
    "fixation_ms",
    "clicks",
]
Times = dict[tuple[int, int], float]
"""Milliseconds by poster: carousel and place."""


@dataclass(frozen=True, kw_only=True)
class Visits:
    """Visits in the order of the log, and which of them its rows belong to.

    Attributes:
        first: row of the log with the fixation that starts each.
        number: from 0 within its screen.
        pages: horizontal page of every carousel.
        visible, full: carousels that are visible, and fully so.
        of_row: the visit on screen at each row of the log; -1 before the first of its screen.
        noted: what there is to know about the pages, and how often.
    """

    first: Integer[np.ndarray, " visits"]
    number: Integer[np.ndarray, " visits"]
    pages: Integer[np.ndarray, "visits carousels"]
    visible: Bool[np.ndarray, "visits carousels"]
    full: Bool[np.ndarray, "visits carousels"]
    of_row: Integer[np.ndarray, " rows"]
    noted: dict[str, int]


def shown_rows(
    scroll: Float[np.ndarray, " n"], span: tuple[int, int]
) -> tuple[Bool[np.ndarray, "n carousels"], Bool[np.ndarray, "n carousels"]]:
    """Carousels whose posters are visible, and fully visible, at scroll offsets, within a span of the screen's rows."""
    tops = np.array([poster_top(carousel) for carousel in range(1, CAROUSELS + 1)]) - scroll[:, None]
    overlap = np.round(np.minimum(tops + POSTER[1], span[1]) - np.maximum(tops, span[0]), DECIMALS)
    return overlap >= VISIBLE_PX, overlap >= POSTER[1] - FULL_SLACK_PX


def find_visits(log: Log, span: tuple[int, int]) -> Visits:
    """Cut every screen's fixations of known scroll offset into visits, given the rows of the screen that are seen."""
    firsts = log.firsts
    screen = _counted(firsts, len(log.time))
    seen = np.flatnonzero(~np.isnan(log.scroll))
    visible, full = shown_rows(log.scroll[seen], span)
    pages, noted = _pages(log, seen)
    view = np.where(visible, 1 + pages, 0) @ (1 + PAGES) ** np.arange(CAROUSELS)
    starts = np.diff(view, prepend=-1) != 0
    starts |= np.diff(screen[seen], prepend=-1) != 0
    _add_scrolled(starts, log.scroll[seen], log.fixation_ms[seen] >= LONG_MS)
    chosen = np.flatnonzero(starts)
    first = seen[chosen]
    of_row = _counted(first, len(log.time))
    ours = of_row >= 0
    ours[ours] = screen[first[of_row[ours]]] == screen[ours]
    number = np.arange(len(first)) - np.searchsorted(screen[first], screen[first], "left")
    return Visits(
        first=first,
        number=number,
        pages=pages[chosen],
        visible=visible[chosen],
        full=full[chosen],
        of_row=np.where(ours, of_row, -1),
        noted=noted,
    )


def _counted(firsts: Integer[np.ndarray, " n"], rows: int) -> Integer[np.ndarray, " rows"]:
    """The stretch that every row lies in, given the first rows of stretches; -1 before all."""
    return np.cumsum(np.bincount(firsts, minlength=rows)) - 1


def _pages(log: Log, seen: Integer[np.ndarray, " n"]) -> tuple[Integer[np.ndarray, "n carousels"], dict[str, int]]:
    """Horizontal page of every carousel at rows of the log, before what is clicked there, and what is to be noted.

    Arrows turn pages, and a fixation that counts for a film, on it or beside it, tells its carousel's page whatever
    they say: a row can be dragged.
    """
    firsts, rows = log.firsts, len(log.time)
    screen = _counted(firsts, rows)
    swipe, ignored = _turns(log, screen)
    turned = np.zeros((rows + 1, CAROUSELS), np.int32)
    turned[np.arange(1, rows + 1), log.swiped] = swipe
    np.cumsum(turned, axis=0, out=turned)
    told = np.flatnonzero(log.fixated & (log.looked >= 0))
    carousel, place = np.divmod(log.looked[told], MOVIES)
    # By how much a carousel is ahead of its arrows, counted over the whole log; as of a screen's start, then as told.
    start = -turned[firsts]
    ahead = place // SHOWN - turned[told, carousel]
    pages, dragged = np.empty((len(seen), CAROUSELS), np.int64), 0
    for number in range(CAROUSELS):
        at, known = told[carousel == number], ahead[carousel == number]

        def last(index: np.ndarray, screens: np.ndarray, at: np.ndarray = at, known: np.ndarray = known) -> np.ndarray:
            ours = index >= 0
            ours[ours] = screen[at[index[ours]]] == screens[ours]
            return np.where(ours, np.append(known, 0)[index], start[screens, number])  # noqa: B023

        dragged += int(((known - last(np.arange(len(at)) - 1, screen[at])) % PAGES != 0).sum())
        pages[:, number] = turned[seen, number] + last(np.searchsorted(at, seen, "right") - 1, screen[seen])
    counts = {IGNORED: ignored, DRAGGED: dragged}
    return pages % PAGES, {what: count for what, count in counts.items() if count}


def _turns(log: Log, screen: Integer[np.ndarray, " rows"]) -> tuple[Integer[np.ndarray, " rows"], int]:
    """By how many pages each row turns its carousel, and how many arrow clicks were ignored."""
    swipe, ignored, last = log.swipe.copy(), 0, dict[tuple[int, int], float]()
    rows = np.flatnonzero(swipe)
    for row, time, *key in zip(
        *(v.tolist() for v in (rows, log.time[rows], screen[rows], log.swiped[rows])), strict=True
    ):
        carousel = (key[0], key[1])
        if round(time - last.get(carousel, -np.inf), DECIMALS) < MOVING_S:
            swipe[row], ignored = 0, ignored + 1
        else:
            last[carousel] = time
    return swipe, ignored


def _add_scrolled(
    starts: Bool[np.ndarray, " n"], scroll: Float[np.ndarray, " n"], long: Bool[np.ndarray, " n"]
) -> None:
    """Mark, within the stretches that ``starts`` begins, the long fixations after which the page has scrolled on."""
    begins = np.flatnonzero(starts)
    if not begins.size:
        return
    reach = np.maximum.reduceat(scroll, begins) - np.minimum.reduceat(scroll, begins)
    ends = np.append(begins[1:], len(starts))
    for at, end in zip(begins[reach > SCROLLED_PX].tolist(), ends[reach > SCROLLED_PX].tolist(), strict=True):
        while True:
            moved = np.round(np.abs(scroll[at + 1 : end] - scroll[at]), DECIMALS) > SCROLLED_PX
            found = np.flatnonzero(moved & long[at + 1 : end])
            if not found.size:
                break
            at += 1 + int(found[0])
            starts[at] = True


def times_by_stretch(
    stretch: Integer[np.ndarray, " events"],
    poster: Integer[np.ndarray, " events"],
    ms: Float[np.ndarray, " events"],
    *,
    stretches: int,
) -> list[Times]:
    """Time on every poster within every stretch.

    Args:
        stretch: what each event belongs to, -1 for nothing.
        poster: what it is on, -1 for nothing.
        ms: how long.
        stretches: how many there are.
    """
    counts = (stretch >= 0) & (poster >= 0)
    keys, inverse = np.unique(stretch[counts] * CAROUSELS * MOVIES + poster[counts], return_inverse=True)
    sums = np.bincount(inverse, ms[counts], minlength=len(keys))
    times: list[Times] = [{} for _ in range(stretches)]
    for key, total in zip(keys.tolist(), sums.tolist(), strict=True):
        times[key // (CAROUSELS * MOVIES)][poster_of(key % (CAROUSELS * MOVIES))] = total
    return times


def visits_frame(log: Log, visits: Visits, times: Sequence[Times]) -> pd.DataFrame:
    """The visits as a table, given their times per poster."""
    clicks: list[list[tuple[int, int]]] = [[] for _ in visits.first]
    rows = np.flatnonzero((log.clicked >= 0) & (visits.of_row >= 0))
    for visit, poster in zip(visits.of_row[rows].tolist(), log.clicked[rows].tolist(), strict=True):
        clicks[visit].append(poster_of(poster))
    columns: dict[str, Any] = {
        "user_id": [log.users[user] for user in log.user[visits.first]],
        "task_id": log.task[visits.first],
        "visit": visits.number,
        "start": log.time[visits.first],
        "scroll_px": log.scroll[visits.first],
        "rows": [carousels(row) for row in visits.visible],
        "full_rows": [carousels(row) for row in visits.full],
        "horizontal_pages": [tuple(row) for row in visits.pages.tolist()],
        "fixation_ms": list(times),
        "clicks": [tuple(some) for some in clicks],
    }
    return pd.DataFrame(columns, columns=VISIT_COLUMNS)


def carousels(row: Bool[np.ndarray, " carousels"]) -> tuple[int, ...]:
    """Those that are marked, counted from 1."""
    return tuple((np.flatnonzero(row) + 1).tolist())


def slots_of(full: Sequence[int], pages: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Posters of carousels in reading order, given the horizontal page of every carousel."""
    return tuple((carousel, place) for carousel in full for place in places_on(pages[carousel - 1]))
