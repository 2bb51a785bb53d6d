"""What the generator knows of its people's visits and sessions, kept while they look, scroll, swipe and click.

The data set's rules of what counts as a visit are applied to the person's own state, the scroll offset and every
carousel's page, as it is at each fixation; no log is read for it.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import pandas as pd

from fixate_jax.data.readers.recgaze.geometry import CAROUSELS, places_on
from fixate_jax.data.readers.recgaze.screens import Screen
from fixate_jax.data.store import natural_order
from tests.data.synthetic.recgaze.people import Person
from tests.data.synthetic.recgaze.view import MOVIE, Aoi, full_rows, visible_rows

TICKS = 10_000
"""Time is counted in tenths of a millisecond, so many a second."""
LONG_MS, MOVED_PX = 150, 17.0
"""A fixation of at least so long starts a visit once the page has moved by more than so many pixels since
the visit began."""
TEST_TASKS = frozenset({1, 4, 9, 21, 24, 32})
VALIDATION_TASKS = frozenset({7, 11, 29, 31})
"""Tasks of the documented split; all others are for training."""
FIRST_DIRECT_TASK = 36
"""From this task on people search for a given film; those tasks are left out."""

Poster = tuple[int, int]
"""Carousel and place."""


class CursorSample(NamedTuple):
    """Where the cursor is: time in ticks, the area under it, and for how many s it is taken to be there."""

    time: int
    aoi: Aoi
    seconds: float


@dataclass(kw_only=True)
class Visit:
    """A visit as it goes on.

    Attributes:
        start: time in ticks.
        scroll: offset in pixels when it began.
        pages: page of each of the ten carousels, from 0.
        fixation_ms: time on each poster looked at.
        clicks: films clicked, in order.
        full: carousels whose posters are slots; by default those that are seen whole at the offset.
    """

    start: int
    scroll: float
    pages: tuple[int, ...]
    fixation_ms: dict[Poster, float] = field(default_factory=dict)
    clicks: list[Poster] = field(default_factory=list)
    full: tuple[int, ...] = ()

    @property
    def shown(self) -> tuple[tuple[int, int], ...]:
        """The visible carousels and their pages."""
        return tuple((row, self.pages[row - 1]) for row in visible_rows(self.scroll))

    @property
    def slots(self) -> tuple[Poster, ...]:
        """Posters of the fully visible rows in reading order."""
        return tuple(
            (row, place) for row in self.full or full_rows(self.scroll) for place in places_on(self.pages[row - 1])
        )


@dataclass(kw_only=True)
class Diary:
    """What happens in one task, in the data set's terms.

    Attributes:
        visits: so far.
        all_ms: time on each poster in the whole task, with or without a known scroll offset.
        clicks: each film click and its visit's number.
        unplaced: fixations without a scroll offset in the log.
        ignored, dragged: arrow clicks that did nothing, and rows moved without one.
    """

    visits: list[Visit] = field(default_factory=list)
    all_ms: dict[Poster, float] = field(default_factory=dict)
    clicks: list[tuple[Poster, int]] = field(default_factory=list)
    unplaced: int = 0
    ignored: int = 0
    dragged: int = 0

    def fixation(
        self, time: int, ms: int, poster: Poster | None, *, scroll: float, pages: tuple[int, ...], lost: bool
    ) -> None:
        """A fixation, on a poster or not; where the log has no scroll offset for it, no visit can have it."""
        if poster is not None:
            self.all_ms[poster] = self.all_ms.get(poster, 0.0) + ms
        if lost:
            self.unplaced += 1
            return
        if not self.visits or self._turned(self.visits[-1], ms, scroll, pages):
            self.visits.append(Visit(start=time, scroll=scroll, pages=pages))
        if poster is not None:
            dwell = self.visits[-1].fixation_ms
            dwell[poster] = dwell.get(poster, 0.0) + ms

    def click(self, poster: Poster) -> None:
        """A click on a film; it belongs to the visit that is on."""
        self.visits[-1].clicks.append(poster)
        self.clicks.append((poster, len(self.visits) - 1))

    @staticmethod
    def _turned(last: Visit, ms: int, scroll: float, pages: tuple[int, ...]) -> bool:
        """Is this another view than the last visit's?"""
        if tuple((row, pages[row - 1]) for row in visible_rows(scroll)) != last.shown:
            return True
        return ms >= LONG_MS and abs(scroll - last.scroll) > MOVED_PX


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What is true of made-up logs.

    Attributes:
        sessions: a row per session of the page definition, in the columns that a reader of the logs gives:
            `session_id`, `user_id`, `task_id`, `split`, `visit`, `scroll_px`, `horizontal_pages`, `slots`, `movie_ids`,
            `fixation_ms`, `cursor_ms`, `click`; by user in natural order, then by task.
        visits: a row per visit: `user_id`, `task_id`, `visit`, `start` (s), `scroll_px`, `rows`, `full_rows`,
            `horizontal_pages`, `fixation_ms`, `clicks`; likewise, then by visit.
        screen_sessions: a row per session of the screen definition (opening view, public files only), as `sessions`.
        people: the parameters of each person, in the order of the tables.
        left_out: how many fixations or tasks have no part in `sessions`, by reason.
        screen_left_out: how many tasks have no part in `screen_sessions`, by reason.
        ignored, dragged: how many arrow clicks did nothing, and how many rows were moved without one.
    """

    sessions: pd.DataFrame
    visits: pd.DataFrame
    screen_sessions: pd.DataFrame
    people: tuple[Person, ...]
    left_out: dict[str, int]
    screen_left_out: dict[str, int]
    ignored: int
    dragged: int


NO_OFFSET = "fixation without scroll offset"
DIRECT = "direct-search task"
NO_CLICK = "no movie click"
OFF_SLOTS = "final click off the slots"
NO_DWELL = "no dwell on the slots"
_SESSION = (
    "session_id",
    "user_id",
    "task_id",
    "split",
    "visit",
    "scroll_px",
    "horizontal_pages",
    "slots",
    "movie_ids",
    "fixation_ms",
    "cursor_ms",
    "click",
)
_VISIT = (
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
)
_OPENING = Visit(start=0, scroll=0.0, pages=(0,) * CAROUSELS, full=(1, 2, 3))


@dataclass(kw_only=True)
class TruthBook:
    """Collects what is true, task by task."""

    sessions: list[dict[str, object]] = field(default_factory=list)
    visits: list[dict[str, object]] = field(default_factory=list)
    screen_sessions: list[dict[str, object]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    screen_left_out: Counter[str] = field(default_factory=Counter)
    ignored: int = 0
    dragged: int = 0

    def add(self, user: str, task: int, screen: Screen, diary: Diary, cursor: Sequence[CursorSample]) -> None:
        """Take in a task."""
        if task >= FIRST_DIRECT_TASK:
            self.left_out[DIRECT] += 1
            self.screen_left_out[DIRECT] += 1
            return
        self.left_out[NO_OFFSET] += diary.unplaced
        self.ignored, self.dragged = self.ignored + diary.ignored, self.dragged + diary.dragged
        self.visits += [_visit_row(user, task, number, visit) for number, visit in enumerate(diary.visits)]
        if not diary.clicks:
            self.left_out[NO_CLICK] += 1
            self.screen_left_out[NO_CLICK] += 1
            return
        clicked, number = diary.clicks[-1]
        visit = diary.visits[number]
        end = diary.visits[number + 1].start if number + 1 < len(diary.visits) else None
        during = [s for s in cursor if visit.start <= s.time and (end is None or s.time < end)]
        head = {"session_id": f"{user}/{task}", "user_id": user, "task_id": task, "split": _split(task)}
        for rows, left_out, view, view_number, dwell, samples in (
            (self.sessions, self.left_out, visit, number, visit.fixation_ms, during),
            (self.screen_sessions, self.screen_left_out, _OPENING, 0, diary.all_ms, cursor),
        ):
            fixation_ms = tuple(dwell.get(slot, 0.0) for slot in view.slots)
            if clicked not in view.slots:
                left_out[OFF_SLOTS] += 1
            elif not any(fixation_ms):
                left_out[NO_DWELL] += 1
            else:
                row = head | {"visit": view_number} | _view(view)
                row |= {"movie_ids": tuple(screen[c - 1].movies[p - 1].movie_id for c, p in view.slots)}
                row |= {"fixation_ms": fixation_ms, "cursor_ms": _cursor_ms(view.slots, samples)}
                rows.append(row | {"click": view.slots.index(clicked)})

    def truth(self, people: Iterable[Person]) -> Truth:
        """The tables, in order."""
        named = {person.user_id: person for person in people}
        order = natural_order(named)
        return Truth(
            sessions=_table(self.sessions, _SESSION, order, ["task_id"]),
            visits=_table(self.visits, _VISIT, order, ["task_id", "visit"]),
            screen_sessions=_table(self.screen_sessions, _SESSION, order, ["task_id"]),
            people=tuple(named[name] for name in order),
            left_out={reason: count for reason, count in sorted(self.left_out.items()) if count},
            screen_left_out={reason: count for reason, count in sorted(self.screen_left_out.items()) if count},
            ignored=self.ignored,
            dragged=self.dragged,
        )


def _view(visit: Visit) -> dict[str, object]:
    return {"scroll_px": visit.scroll, "horizontal_pages": visit.pages, "slots": visit.slots}


def _visit_row(user: str, task: int, number: int, visit: Visit) -> dict[str, object]:
    return {
        "user_id": user,
        "task_id": task,
        "visit": number,
        "start": visit.start / TICKS,
        "scroll_px": visit.scroll,
        "rows": visible_rows(visit.scroll),
        "full_rows": full_rows(visit.scroll),
        "horizontal_pages": visit.pages,
        "fixation_ms": dict(visit.fixation_ms),
        "clicks": tuple(visit.clicks),
    }


def _cursor_ms(slots: Sequence[Poster], cursor: Iterable[CursorSample]) -> tuple[float, ...]:
    spent: dict[Poster, float] = dict.fromkeys(slots, 0.0)
    for sample in cursor:
        poster = (sample.aoi.carousel, sample.aoi.place)
        if sample.aoi.type == MOVIE and poster in spent:
            spent[poster] += 1000 * sample.seconds
    return tuple(spent.values())


def _split(task: int) -> str:
    return "test" if task in TEST_TASKS else "validation" if task in VALIDATION_TASKS else "train"


def _table(
    rows: list[dict[str, object]], columns: Sequence[str], users: Sequence[str], within: Sequence[str]
) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=list(columns))
    rank = frame["user_id"].map({name: place for place, name in enumerate(users)})
    order = frame.assign(rank=rank).sort_values(["rank", *within], kind="stable").index
    return frame.loc[order].reset_index(drop=True)
