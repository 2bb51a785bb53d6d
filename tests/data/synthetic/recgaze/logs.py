"""Walks as rows of the raw tables: text, since most fields of a row are empty and nothing else is as fast."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from fixate_jax.data.readers.recgaze.screens import Screen
from tests.data.synthetic.recgaze.people import GENRES, Person
from tests.data.synthetic.recgaze.truth import TICKS, CursorSample
from tests.data.synthetic.recgaze.view import BACKGROUND, MOVIE, Aoi, eighth
from tests.data.synthetic.recgaze.walk import MS, Fixation, Walk

AOI_FIELDS = (
    "type",
    "MovieID",
    "Movie_position_in_carousel",
    "Carousel_position",
    "Carousel_genre",
    "Carousel_genre_is_top_genre",
    "Carousel_genre_is_preferred_genre",
    "Carousel_genre_rating",
)
AOI_PREFIXES = ("Fixation_AOI_", "Fixation_AOI_Closest_", "Click_AOI_", "Cursor_AOI_")
KEY_COLUMNS = ("UserID", "SubjectID", "TaskID", "StimulusID", "Timestamp")
PUBLIC_COLUMNS = (
    *KEY_COLUMNS,
    *(prefix + name for prefix in AOI_PREFIXES for name in AOI_FIELDS),
    "Fixation_Duration",
    "Cursor_Duration",
)
NON_PUBLIC_COLUMNS = (*PUBLIC_COLUMNS, "Fixation_LocY", "Gaze_LocY")
ITEM_COLUMNS = (
    "TaskID",
    "Carousel_position",
    "Carousel_genre",
    "Movie_position_in_carousel",
    "MovieID",
    "TMDB_title",
    "TMDB_genres",
    "TMDB_poster_path",
)
USER_COLUMNS = ("UserID", "Top_genre", "Preferred_genres", *(f"{genre}_rating" for genre in GENRES))

FIRST_SAMPLE, LATE_SAMPLE, LATE_SHARE = 2, (4, 30), 0.3
"""A fixation's first gaze sample comes so many ticks after its start, in this share of them so many
ms later."""
SAMPLE_SPREAD_PX = 4.0
"""Deviation of the later samples from the fixation; the first one is on it."""

_NONE = "," * (len(AOI_FIELDS) - 1)
_NO_EVENT = ",".join([_NONE] * len(AOI_PREFIXES)) + ",,"
Row = tuple[int, str | None, str]
"""Time in ticks, the fields after it in the public table (None: it has no such row), and the two of the other table."""


def task_lines(
    walk: Walk,
    cursor: Sequence[CursorSample],
    *,
    person: Person,
    subject: int,
    task: int,
    screen: Screen,
    samples: int,
    rng: np.random.Generator,
) -> tuple[list[str], list[str]]:
    """Lines of a task in the public and in the non-public table, ordered by time.

    Args:
        walk: fixations and clicks of the task.
        cursor: where the cursor was.
        person: who looked.
        subject: number of the person in the tables.
        task: number of the task.
        screen: what was seen.
        samples: gaze samples of each fixation that the tracker did not lose.
        rng: for the samples.
    """
    areas = _Areas(person, screen)
    rows: list[Row] = []
    late = np.where(rng.random(len(walk.fixations)) < LATE_SHARE, rng.integers(*LATE_SAMPLE, len(walk.fixations)), 0)
    spread = rng.normal(0, SAMPLE_SPREAD_PX, (len(walk.fixations), samples - 1))
    for fixation, delay, stray in zip(walk.fixations, late.tolist(), spread.tolist(), strict=True):
        closest = _NONE if fixation.closest is None else areas[fixation.closest]
        event = f"{areas[fixation.aoi]},{closest},{_NONE},{_NONE},{fixation.ms},"
        rows.append((fixation.time, event, f"{_number(fixation.y)},"))
        if not fixation.lost:
            rows += _samples(fixation, delay, stray)
    rows += [(click.time, f"{_NONE},{_NONE},{areas[click.aoi]},{_NONE},,", ",") for click in walk.clicks]
    rows += [(s.time, f"{_NONE},{_NONE},{_NONE},{areas[s.aoi]},,{s.seconds}", ",") for s in cursor]
    rows.sort(key=lambda row: row[0])
    head = f"{person.user_id},{subject},{task},screen_{task:02d},"
    timed = [(f"{head}{time // TICKS}.{time % TICKS:04d},", event, raw) for time, event, raw in rows]
    public = [f"{start}{event}\n" for start, event, _ in timed if event is not None]
    return public, [f"{start}{_NO_EVENT if event is None else event},{raw}\n" for start, event, raw in timed]


def _samples(fixation: Fixation, delay: int, stray: Sequence[float]) -> Iterable[Row]:
    """Rows of gaze samples, spread over the fixation."""
    y = fixation.y - fixation.scroll
    yield fixation.time + delay * MS + FIRST_SAMPLE, None, f",{_number(y)}"
    step = (fixation.ms - delay) // (len(stray) + 1) * MS
    for number, off in enumerate(stray, start=1):
        yield fixation.time + delay * MS + FIRST_SAMPLE + number * step, None, f",{_number(eighth(y + off))}"


def _number(value: float) -> str:
    """Eighths of a pixel in full."""
    return f"{value:.3f}"


class _Areas(dict[Aoi, str]):
    """The eight fields of an area of interest as they stand in a person's rows, made when first asked for."""

    def __init__(self, person: Person, screen: Screen) -> None:
        super().__init__()
        self.person, self.screen = person, screen

    def __missing__(self, aoi: Aoi) -> str:
        if aoi.type == BACKGROUND:
            text = BACKGROUND + _NONE
        else:
            row = self.screen[aoi.carousel - 1]
            film = f"{row.movies[aoi.place - 1].movie_id},{aoi.place}" if aoi.type == MOVIE else ","
            top, preferred = row.genre == self.person.top_genre, row.genre in self.person.preferred_genres
            text = f"{aoi.type},{film},{aoi.carousel},{row.genre},{top},{preferred},{self.person.rating(row.genre)}"
        self[aoi] = text
        return text


def write_items(path: Path, screens: Mapping[int, Screen]) -> None:
    """Write the table of films."""
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(ITEM_COLUMNS)
        for task, screen in sorted(screens.items()):
            for carousel, row in enumerate(screen, start=1):
                for place, film in enumerate(row.movies, start=1):
                    told = (film.movie_id, film.title, ", ".join(film.genres), film.poster or "")
                    table.writerow((task, carousel, row.genre, place, *told))


def write_users(path: Path, people: Iterable[Person]) -> None:
    """Write the table of people."""
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(USER_COLUMNS)
        for person in people:
            table.writerow((person.user_id, person.top_genre, ", ".join(person.preferred_genres), *person.ratings))
