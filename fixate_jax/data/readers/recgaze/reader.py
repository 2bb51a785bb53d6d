"""Human gaze and clicks on carousels of movies: RecGaze (de Leon-Martinez et al., SIGIR 2025).

87 people saw up to 40 screens (``geometry``), one a task, and clicked a movie on each. Two definitions of a
session, one for each task of a person at most:

- ``page``, with the non-public table: the page visit in which the final movie was clicked. Slots are the posters of
  the fully visible carousels, five each, at most 15.
- ``screen``, from the public files alone: the 15 posters of the opening view (carousels 1 to 3, places 1 to 5), with
  the time spent on them during the whole task, whatever was on screen, and the task's final movie click.

**What becomes of odd logs**

- Rows of different people and tasks may be mixed; within a task they are put in order of time, and those of the same
  time stay as in the file. The order of occurrence counts all rows of the same person, task and timestamp.
- An event exists where its ``type`` is given; where it is not, its other columns do not matter. One row can hold
  several events: the fixation comes first, the click last, so a swipe changes what is on screen from the next row on.
- The scroll offset needs a later row: a gaze sample on the fixation's own row does not count. A fixation without one is
  left out altogether: it starts no visit and its time goes nowhere ("fixation without scroll offset"). So is one
  whose row the non-public table lacks; what else such a row holds counts. Without any of the rows it is an error.
- Of the screen's 1080 rows the browser's bar hides the upper 87 and the task bar those from 1032 on. With
  ``viewport="screen"`` all count as seen, as in the published code.
- An arrow click within 500 ms of the last that moved the carousel is ignored, as the page does. A fixation on a film,
  or beside one, tells on which page its carousel is, whatever the arrows say: a row can be dragged without a click.
  Both are counted in ``noted``.
- Visits start with a fixation, on whatever it is. After a swipe the visit before goes on until then, and clicks and
  cursor belong to it; swipes that cancel out in between, and those of carousels out of sight, start none. Before the
  first visit, clicks and cursor belong to none.
- What counts as scrolled is the distance between two offsets, either way; scrolling there and back is none.
- A visit keeps the offset and pages of its first fixation, also for its slots. Time on posters that are not its slots
  (scrolled into view, say) stays in the visits' ``fixation_ms`` and goes to no slot.
- A fixation on a genre or a button counts for no poster, whatever its Closest AOI; without a Closest AOI neither does a
  Background fixation. Cursor time goes by the strict AOI, and by when it starts.
- Offsets are as recovered, also above the page's top or below its end. Offsets, distances and cursor times are rounded
  to a millionth, so that 17.000000000000004 px are 17.
- Clicks on anything but movies and swipe buttons do nothing.

**What is left out**, counted in ``dropped``: tasks of a person ("practice task", "direct-search task", "no movie
click", "no visit before the final click", "final click off the slots", "no dwell on the slots"; the first that
applies), single fixations ("fixation without scroll offset"), and with ``on_bad_row="skip"`` rows of the logs: "wrong
number of fields", "missing value", "not a number", "unknown task", "unknown user", "task without a screen", "unknown
type", "place outside the screen", "movie not at its place" and "negative duration".
Rows of the practice and direct-search tasks are checked for user, task and timestamp alone. ``item_features.csv`` and
``user_features.csv`` must be whole: nothing in them is skipped, but for movies without a TaskID, which were on no
screen.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from fixate_jax.data.readers.recgaze.geometry import CAROUSELS, SCREEN, SEEN, SHOWN
from fixate_jax.data.readers.recgaze.logs import Log, read_log
from fixate_jax.data.readers.recgaze.screens import Screen
from fixate_jax.data.readers.recgaze.tables import OnBadRow, poster_of
from fixate_jax.data.readers.recgaze.visits import (
    VISIT_COLUMNS,
    Times,
    Visits,
    carousels,
    find_visits,
    slots_of,
    times_by_stretch,
    visits_frame,
)
from fixate_jax.data.session import Split
from fixate_jax.errors import DataError

Definition = Literal["page", "screen"]
Viewport = Literal["seen", "screen"]
SPANS: dict[Viewport, tuple[int, int]] = {"seen": SEEN, "screen": SCREEN}
FREE, SEMI_FREE = range(1, 31), range(31, 36)
SPLIT_SEED = 42
OPENING = tuple((carousel, place) for carousel in (1, 2, 3) for place in range(1, SHOWN + 1))
"""Slots of the screen definition."""
SESSION_COLUMNS = [
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
]


@dataclass(frozen=True, kw_only=True)
class RecGaze:
    """What was read.

    Attributes:
        sessions: one row a session, by person (KInIT_2 before KInIT_10) and task. ``session_id``; ``user_id``;
            ``task_id``; ``split``; ``visit``, number of the visit within the person's task, from 0; ``scroll_px``, the
            offset it started at; ``horizontal_pages``, page 0 to 2 of each of the ten carousels; ``slots``, carousel
            and place of every slot in reading order; ``movie_ids`` of the slots; ``fixation_ms`` and ``cursor_ms`` per
            slot; ``click``, index of the clicked slot.
        visits: one row a page visit, likewise, none for the screen definition. ``user_id``, ``task_id``, ``visit``;
            ``start``, timestamp (s) of the fixation that started it; ``scroll_px``; ``rows`` and ``full_rows``,
            carousels visible and fully visible; ``horizontal_pages``; ``fixation_ms``, ms by (carousel, place) of the
            posters looked at; ``clicks``, (carousel, place) of the movies clicked, in order.
        screens: what there was to see, by task.
        dropped: how much was left out by reason.
        noted: what was put right, and how often; none for the screen definition.
    """

    sessions: pd.DataFrame
    visits: pd.DataFrame
    screens: dict[int, Screen]
    dropped: dict[str, int]
    noted: dict[str, int]


def read_recgaze(
    path: Path, *, definition: Definition, viewport: Viewport = "seen", on_bad_row: OnBadRow = "error"
) -> RecGaze:
    """Read a folder of RecGaze's raw tables.

    Args:
        path: the folder; for the screen definition without the non-public table.
        definition: of a session.
        viewport: what of the screen counts as seen; to the screen definition it makes no difference here.
        on_bad_row: stop at the first bad row of a log, or leave bad rows out and count them.

    Raises:
        DataError: naming file, line and field of what is missing or bad.
    """
    dropped: dict[str, int] = {}
    log, screens = read_log(path, scroll=definition == "page", on_bad_row=on_bad_row, dropped=dropped)
    if definition == "page":
        found = find_visits(log, SPANS[viewport])
        sessions, visits = _page_sessions(log, found, screens, dropped)
    else:
        sessions, visits = _screen_sessions(log, screens, dropped)
    noted = found.noted if definition == "page" else {}
    return RecGaze(sessions=sessions, visits=visits, screens=screens, dropped=dropped, noted=noted)


def split_of_task(task: int) -> Split:
    """The split that a browsing task belongs to; no screen is in two.

    Raises:
        DataError: for a task that no session is made of.
    """
    if task not in _SPLITS:
        raise DataError(f"task {task} is in no split: sessions are made of tasks 1 to {SEMI_FREE[-1]}")
    return _SPLITS[task]


def _draw_splits() -> dict[int, Split]:
    rng = random.Random(SPLIT_SEED)
    splits: dict[int, Split] = dict.fromkeys((*FREE, *SEMI_FREE), "train")
    shares: tuple[tuple[Split, int, int], ...] = (("test", 5, 1), ("validation", 3, 1))
    for split, free, semi_free in shares:
        for tasks, count in ((FREE, free), (SEMI_FREE, semi_free)):
            rest = sorted(task for task in tasks if splits[task] == "train")
            splits |= dict.fromkeys(rng.sample(rest, count), split)
    return splits


_SPLITS = _draw_splits()

Screens = dict[int, Screen]


def _final_clicks(log: Log, dropped: dict[str, int]) -> list[int]:
    """The row of every screen's final movie click, where there is one."""
    firsts = log.firsts
    rows = np.where(log.clicked >= 0, np.arange(len(log.time)), -1)
    finals = np.maximum.reduceat(rows, firsts) if firsts.size else firsts
    _count(dropped, "no movie click", int((finals < firsts).sum()))
    return finals[finals >= firsts].tolist()


def _page_sessions(
    log: Log, visits: Visits, screens: Screens, dropped: dict[str, int]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    _count(dropped, "fixation without scroll offset", int((log.fixated & np.isnan(log.scroll)).sum()))
    count = len(visits.first)
    seen = np.where(np.isnan(log.scroll), -1, visits.of_row)
    looked = times_by_stretch(seen, log.looked, log.fixation_ms, stretches=count)
    pointed = times_by_stretch(visits.of_row, log.pointed, log.cursor_ms, stretches=count)
    sessions = []
    for row in _final_clicks(log, dropped):
        visit = int(visits.of_row[row])
        if visit < 0:
            _count(dropped, "no visit before the final click", 1)
            continue
        pages = visits.pages[visit].tolist()
        view = {
            "visit": int(visits.number[visit]),
            "scroll_px": float(log.scroll[visits.first[visit]]),
            "horizontal_pages": tuple(pages),
            "slots": slots_of(carousels(visits.full[visit]), pages),
        }
        sessions.append(_session(log, row, screens, view, looked[visit], pointed[visit], dropped))
    return _sessions_frame(sessions), visits_frame(log, visits, looked)


def _screen_sessions(log: Log, screens: Screens, dropped: dict[str, int]) -> tuple[pd.DataFrame, pd.DataFrame]:
    firsts = log.firsts
    screen = np.cumsum(np.bincount(firsts, minlength=len(log.time))) - 1
    looked = times_by_stretch(screen, log.looked, log.fixation_ms, stretches=len(firsts))
    pointed = times_by_stretch(screen, log.pointed, log.cursor_ms, stretches=len(firsts))
    view = {"visit": 0, "scroll_px": 0.0, "horizontal_pages": (0,) * CAROUSELS, "slots": OPENING}
    sessions = [
        _session(log, row, screens, view, looked[screen[row]], pointed[screen[row]], dropped)
        for row in _final_clicks(log, dropped)
    ]
    return _sessions_frame(sessions), pd.DataFrame(columns=VISIT_COLUMNS)


def _session(
    log: Log,
    row: int,
    screens: Screens,
    view: dict[str, Any],
    looked: Times,
    pointed: Times,
    dropped: dict[str, int],
) -> dict[str, Any] | None:
    """The session that a final click ends, or None where it is left out."""
    slots, clicked = view["slots"], poster_of(int(log.clicked[row]))
    fixation = tuple(looked.get(slot, 0.0) for slot in slots)
    if clicked not in slots:
        _count(dropped, "final click off the slots", 1)
        return None
    if not sum(fixation) > 0:
        _count(dropped, "no dwell on the slots", 1)
        return None
    user, task = log.users[log.user[row]], int(log.task[row])
    return view | {
        "session_id": f"{user}/{task}",
        "user_id": user,
        "task_id": task,
        "split": split_of_task(task),
        "movie_ids": tuple(screens[task][c - 1].movies[place - 1].movie_id for c, place in slots),
        "fixation_ms": fixation,
        "cursor_ms": tuple(pointed.get(slot, 0.0) for slot in slots),
        "click": slots.index(clicked),
    }


def _sessions_frame(sessions: Sequence[dict[str, Any] | None]) -> pd.DataFrame:
    return pd.DataFrame([session for session in sessions if session is not None], columns=SESSION_COLUMNS)


def _count(dropped: dict[str, int], reason: str, number: int) -> None:
    if number:
        dropped[reason] = dropped.get(reason, 0) + number
