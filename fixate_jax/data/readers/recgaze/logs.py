"""The events of RecGaze's logs as arrays: both tables checked, put into order and joined."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Integer

from fixate_jax.data.readers.recgaze.geometry import CAROUSELS, MOVIES
from fixate_jax.data.readers.recgaze.screens import Screen, read_screens
from fixate_jax.data.readers.recgaze.tables import (
    ITEMS,
    MAX_TASK,
    NON_PUBLIC,
    PUBLIC,
    USERS,
    OnBadRow,
    Sieve,
    Table,
    poster_code,
    read_table,
    read_users,
)
from fixate_jax.errors import DataError

TYPES = ("Movie", "Genre", "Forward", "Backward", "Background")
MOVIE, _, FORWARD, BACKWARD, BACKGROUND = range(len(TYPES))
FIXATION, CLOSEST, CLICK, CURSOR = "Fixation_AOI_", "Fixation_AOI_Closest_", "Click_AOI_", "Cursor_AOI_"
EVENTS = (FIXATION, CLOSEST, CLICK, CURSOR)
PLACES = {"Carousel_position": CAROUSELS, "Movie_position_in_carousel": MOVIES}
KEY = ["TaskID", "Timestamp"]
NUMBERS = [
    *KEY,
    *(f"{event}{column}" for event in EVENTS for column in ("MovieID", *PLACES)),
    "Fixation_Duration",
    "Cursor_Duration",
]
TEXTS = ["UserID", *(f"{event}type" for event in EVENTS)]
BROWSING = (1, 35)
"""First and last of the tasks that sessions are made of; 0 is practice and those above are direct search."""
LOOKAHEAD = 3
"""Rows after a fixation's in which its gaze sample may stand."""
DECIMALS = 6
"""Decimals that lengths in px and times in ms keep, so that binary fractions decide no threshold."""


@dataclass(frozen=True, kw_only=True)
class Log:
    """Rows of the browsing tasks by person (natural order), task and time; one can hold several events.

    Posters are counted over their screen from 0; -1 is none.

    Attributes:
        users: the people.
        user, task: whose row it is, as an index into ``users``, and of which task.
        time: in s.
        fixated: there is a fixation.
        fixation_ms: its duration, 0 without one.
        looked: the poster it counts for.
        scroll: the page's offset at the fixation in px; NaN where it is unknown.
        clicked: the poster clicked.
        swipe: pages that the clicked button moves the carousel ``swiped`` (from 0) by: 1, -1 or 0.
        pointed: the poster under the cursor.
        cursor_ms: for how long.
    """

    users: list[str]
    user: Integer[np.ndarray, " rows"]
    task: Integer[np.ndarray, " rows"]
    time: Float[np.ndarray, " rows"]
    fixated: Bool[np.ndarray, " rows"]
    fixation_ms: Float[np.ndarray, " rows"]
    looked: Integer[np.ndarray, " rows"]
    scroll: Float[np.ndarray, " rows"]
    clicked: Integer[np.ndarray, " rows"]
    swipe: Integer[np.ndarray, " rows"]
    swiped: Integer[np.ndarray, " rows"]
    pointed: Integer[np.ndarray, " rows"]
    cursor_ms: Float[np.ndarray, " rows"]

    @property
    def firsts(self) -> Integer[np.ndarray, " screens"]:
        """The first row of every screen, that is of every task of every person."""
        return _firsts(self.user * (MAX_TASK + 1) + self.task)


def natural(text: str) -> list[tuple[int, str]]:
    """A sort key by which KInIT_2 comes before KInIT_10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)]


def read_log(
    path: Path, *, scroll: bool, on_bad_row: OnBadRow, dropped: dict[str, int]
) -> tuple[Log, dict[int, Screen]]:
    """Read the events, and every task's screen.

    Args:
        path: the folder.
        scroll: recover scroll offsets with the non-public table; without, that is not read and they are NaN.
        on_bad_row: stop at a bad row of a log, or leave it out.
        dropped: where what is left out is counted by reason.

    Raises:
        DataError: naming file, line and field.
    """
    screens, users = read_screens(path / ITEMS), sorted(read_users(path / USERS), key=natural)
    table = read_table(path / PUBLIC, numbers=NUMBERS, texts=TEXTS)
    sieve = Sieve(table, on_bad_row=on_bad_row, dropped=dropped)
    user = _check_key(sieve, users)
    sieve.refuse(user < 0, column="UserID", reason="unknown user", wanted=f"has no row in {USERS}")
    _leave_out_tasks(sieve, user, dropped)
    keys = _sorted_keys(table, user, sieve.good, users=len(users))
    columns = _check_events(sieve, screens)
    offsets = np.full(len(table), np.nan)
    if scroll:
        other = read_table(path / NON_PUBLIC, numbers=[*KEY, "Fixation_LocY", "Gaze_LocY"], texts=["UserID"])
        offsets[keys.rows] = _scroll_of(keys, Sieve(other, on_bad_row=on_bad_row, dropped=dropped), users)
    rows = keys.rows[sieve.good[keys.rows]]
    columns["scroll"] = np.where(columns["fixated"], offsets, np.nan)
    task, time = table.numbers["TaskID"][rows].astype(np.int64), table.numbers["Timestamp"][rows]
    events = {name: values[rows] for name, values in columns.items()}
    return Log(users=users, user=user[rows], task=task, time=time, **events), screens


def _check_key(sieve: Sieve, users: list[str]) -> Integer[np.ndarray, " rows"]:
    """Check user, task and time of every row; returns the users as indices, -1 for one who is not among them."""
    table = sieve.table
    sieve.refuse_missing("UserID")
    for column in KEY:
        sieve.refuse_missing(column)
        values = table.numbers[column]
        sieve.refuse(np.isinf(values), column=column, reason="not a number", wanted="is not a number")
    sieve.refuse_outside("TaskID", 0, MAX_TASK, reason="unknown task")
    place = {name: i for i, name in enumerate(users)}
    return np.array([*(place.get(name, -1) for name in table.texts["UserID"]), -1])[table.codes["UserID"]]


def _leave_out_tasks(sieve: Sieve, user: Integer[np.ndarray, " rows"], dropped: dict[str, int]) -> None:
    """Leave out the tasks that no session is made of, each counted once per person."""
    task = sieve.table.numbers["TaskID"]
    for reason, other in {"practice task": task < BROWSING[0], "direct-search task": task > BROWSING[1]}.items():
        rows = sieve.good & other
        count = len(np.unique(user[rows] * (MAX_TASK + 1) + task[rows]))
        if count:
            dropped[reason] = count
        sieve.good &= ~rows


@dataclass(frozen=True, kw_only=True)
class _Keys:
    """Rows of a table by screen and time, those of the same time as they stand in the file."""

    rows: Integer[np.ndarray, " keys"]
    screen: Integer[np.ndarray, " keys"]
    time: Float[np.ndarray, " keys"]


def _sorted_keys(
    table: Table, user: Integer[np.ndarray, " rows"], chosen: Bool[np.ndarray, " rows"], *, users: int
) -> _Keys:
    rows = np.flatnonzero(chosen)
    # numpy sorts 16-bit integers in linear time.
    kind = np.int16 if users * (MAX_TASK + 1) < np.iinfo(np.int16).max else np.int64
    screen = (user[rows] * (MAX_TASK + 1) + table.numbers["TaskID"][rows].astype(np.int64)).astype(kind)
    order = np.argsort(screen, kind="stable")
    time = table.numbers["Timestamp"][rows]
    backwards = (np.diff(time[order]) < 0) & (np.diff(screen[order]) == 0)
    if backwards.any():
        order = np.lexsort((time, screen))
    return _Keys(rows=rows[order], screen=screen[order], time=time[order])


def _firsts(values: Integer[np.ndarray, " rows"]) -> Integer[np.ndarray, " firsts"]:
    """Where a run of equal values starts."""
    return np.flatnonzero(np.diff(values, prepend=-1) != 0) if values.size else np.zeros(0, np.int64)


def _check_events(sieve: Sieve, screens: dict[int, Screen]) -> dict[str, np.ndarray]:
    """Check what happened in every row; returns those columns of a :class:`Log` that come from it."""
    table = sieve.table
    sieve.refuse_texts()
    movies = np.full((MAX_TASK + 1, CAROUSELS * MOVIES), -1, np.int64)
    for number, screen in screens.items():
        movies[number] = [movie.movie_id for carousel in screen for movie in carousel.movies]
    task = np.where(sieve.good, table.numbers["TaskID"], 0).astype(np.int64)
    sieve.refuse(movies[task, 0] < 0, column="TaskID", reason="task without a screen", wanted=f"has no rows in {ITEMS}")
    kinds, posters = dict[str, np.ndarray](), dict[str, np.ndarray]()
    for event in EVENTS:
        kinds[event] = _kinds(sieve, event)
        if event == CLOSEST:
            kinds[event][kinds[FIXATION] < 0] = -1
        posters[event] = _posters(sieve, event, kinds[event], movies, task)
    duration = {}
    for event, column in {FIXATION: "Fixation_Duration", CURSOR: "Cursor_Duration"}.items():
        happened, values = kinds[event] >= 0, table.numbers[column]
        sieve.refuse_missing(column, happened)
        bad = happened & (values < 0)
        sieve.refuse(bad, column=column, reason="negative duration", wanted="must not be negative")
        duration[event] = np.where(happened, values, 0)
    background = kinds[FIXATION] == BACKGROUND
    click = kinds[CLICK]
    swipe = (click == FORWARD).astype(np.int64) - (click == BACKWARD)
    button = sieve.good & (swipe != 0)
    return {
        "fixated": kinds[FIXATION] >= 0,
        "fixation_ms": duration[FIXATION],
        "looked": np.where(background, posters[CLOSEST], posters[FIXATION]),
        "clicked": posters[CLICK],
        "swipe": swipe,
        "swiped": np.where(button, table.numbers[f"{CLICK}Carousel_position"] - 1, 0).astype(np.int64),
        "pointed": posters[CURSOR],
        "cursor_ms": np.round(duration[CURSOR] * 1000, DECIMALS),
    }


def _kinds(sieve: Sieve, event: str) -> Integer[np.ndarray, " rows"]:
    """What every row's event is about, as an index into TYPES; -1 where there is no event."""
    column, unknown = f"{event}type", -2
    texts = sieve.table.texts[column]
    kinds = np.array([*(TYPES.index(text) if text in TYPES else unknown for text in texts), -1], np.int64)
    kinds = kinds[sieve.table.codes[column]]
    wanted = f"must be one of {', '.join(TYPES)}, or NA"
    sieve.refuse(kinds == unknown, column=column, reason="unknown type", wanted=wanted)
    return kinds


def _posters(
    sieve: Sieve,
    event: str,
    kind: Integer[np.ndarray, " rows"],
    movies: Integer[np.ndarray, "tasks movies"],
    task: Integer[np.ndarray, " rows"],
) -> Integer[np.ndarray, " rows"]:
    """The poster that every row's event is about; -1 where it is about none."""
    movie = kind == MOVIE
    button = np.isin(kind, (FORWARD, BACKWARD)) if event == CLICK else np.zeros_like(movie)
    for name, high in PLACES.items():
        needed = movie | button if name == "Carousel_position" else movie
        sieve.refuse_missing(f"{event}{name}", needed)
        sieve.refuse_outside(f"{event}{name}", 1, high, needed=needed, reason="place outside the screen")
    carousel, place = (sieve.table.numbers[f"{event}{name}"] for name in PLACES)
    rows = np.flatnonzero(movie & sieve.good)
    poster = np.full(len(movie), -1, np.int64)
    poster[rows] = poster_code(carousel, place)[rows].astype(np.int64)
    column = f"{event}MovieID"
    sieve.refuse_missing(column, movie)
    differs = np.zeros_like(movie)
    differs[rows] = movies[task[rows], poster[rows]] != sieve.table.numbers[column][rows]
    wanted = f"is not the movie at this place of the task's screen in {ITEMS}"
    sieve.refuse(differs, column=column, reason="movie not at its place", wanted=wanted)
    return poster


def _scroll_of(keys: _Keys, sieve: Sieve, users: list[str]) -> Float[np.ndarray, " keys"]:
    """Find the rows of the non-public table that belong to keys, and recover the scroll offset there; NaN without.

    Raises:
        DataError: when the table has none of them, so that it must be another study's.
    """
    table = sieve.table
    user = _check_key(sieve, users)
    task = table.numbers["TaskID"]
    sieve.good &= (user >= 0) & (task >= BROWSING[0]) & (task <= BROWSING[1])
    other = _sorted_keys(table, user, sieve.good, users=len(users))
    sieve.refuse_texts()
    good = sieve.good[other.rows]
    partner = _partners(keys, other)
    found = partner >= 0
    found[found] = good[partner[found]]
    if len(keys.rows) and not found.any():
        raise DataError(
            f"{table.path}: has no row of the events in {PUBLIC} (same user, task, timestamp and order of occurrence); "
            "give the two tables of one study"
        )
    # From here on the rows that were left out do not count, neither as rows that come next.
    place = (np.cumsum(good) - 1)[partner[found]]
    rows, screen = other.rows[good], other.screen[good]
    gaze, height = table.numbers["Gaze_LocY"], np.full(len(place), np.nan)
    for step in range(1, LOOKAHEAD + 1):
        after = np.minimum(place + step, len(rows) - 1)
        same = (place + step < len(rows)) & (screen[after] == screen[place])
        height = np.where(np.isnan(height) & same, gaze[rows[after]], height)
    scroll = np.full(len(keys.rows), np.nan)
    scroll[found] = np.round(table.numbers["Fixation_LocY"][rows[place]] - height, DECIMALS)
    return scroll


def _partners(keys: _Keys, other: _Keys) -> Integer[np.ndarray, " keys"]:
    """Where in ``other`` the row of the same screen, time and order of occurrence is; -1 where there is none."""
    partner = np.full(len(keys.rows), -1, np.int64)
    for first, last in _runs(keys.screen):
        screen, time = keys.screen[first], keys.time[first:last]
        begin = int(np.searchsorted(other.screen, screen, "left"))
        end = int(np.searchsorted(other.screen, screen, "right"))
        occurrence = np.arange(last - first) - np.searchsorted(time, time, "left")
        place = begin + np.searchsorted(other.time[begin:end], time, "left") + occurrence
        inside = np.flatnonzero(place < end)
        match = inside[other.time[place[inside]] == time[inside]]
        partner[first + match] = place[match]
    return partner


def _runs(values: Integer[np.ndarray, " rows"]) -> Iterator[tuple[int, int]]:
    """Start and end of every run of equal values."""
    firsts = _firsts(values)
    yield from zip(firsts.tolist(), np.append(firsts, len(values))[1:].tolist(), strict=True)
