"""Logs of the RecGaze study as short Python rows, and what is expected of them: types, and a writer of the CSVs."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

Row = dict[str, Any]
AOI = tuple[str, int, int]
Slot = tuple[int, int]

TOPS = (176, 516, 855, 1195, 1534, 1874, 2213, 2553, 2892, 3232)
GENRES = ("Drama", "Comedy", "Action", "Thriller", "Horror", "Crime", "Romance", "Sci-Fi", "Fantasy", "Animation")
EVENTS = ("Fixation_AOI", "Fixation_AOI_Closest", "Click_AOI", "Cursor_AOI")
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
KEYS = ("UserID", "SubjectID", "TaskID", "StimulusID", "Timestamp")
PUBLIC = (*KEYS, *(f"{e}_{f}" for e in EVENTS for f in AOI_FIELDS), "Fixation_Duration", "Cursor_Duration")
NON_PUBLIC = (*PUBLIC, "Fixation_LocY", "Gaze_LocY")
BACKGROUND: AOI = ("Background", 0, 0)


def movie(carousel: int, place: int) -> AOI:
    """A poster."""
    return "Movie", carousel, place


def genre(carousel: int) -> AOI:
    """A carousel's title."""
    return "Genre", carousel, 0


def forward(carousel: int) -> AOI:
    """The button that shows the next five movies."""
    return "Forward", carousel, 0


def backward(carousel: int) -> AOI:
    """The button that shows the five movies before."""
    return "Backward", carousel, 0


def fixation(time: float, ms: float, aoi: AOI, y: float, closest: AOI | None = None) -> Row:
    """A fixation at a height on the page; it tells the scroll offset only with a gaze sample after it."""
    row = {"time": time, "Fixation_AOI": aoi, "Fixation_Duration": ms, "Fixation_LocY": y}
    return row if closest is None else row | {"Fixation_AOI_Closest": closest}


def sample(time: float, y: float) -> Row:
    """A gaze sample at a height on the screen; only the non-public table has it."""
    return {"time": time, "Gaze_LocY": y}


def look(scroll: float, time: float, ms: float, aoi: AOI, closest: AOI | None = None) -> list[Row]:
    """A fixation, and 10 ms on a sample that tells the scroll offset."""
    y = TOPS[aoi[1] - 1] + 96.0 if aoi[1] else scroll + 500.0
    return [fixation(time, ms, aoi, y, closest), sample(time + 0.01, y - scroll)]


def click(time: float, aoi: AOI) -> Row:
    """A click."""
    return {"time": time, "Click_AOI": aoi}


def cursor(time: float, seconds: float, aoi: AOI) -> Row:
    """The cursor resting somewhere."""
    return {"time": time, "Cursor_AOI": aoi, "Cursor_Duration": seconds}


def row(carousel: int, first: int = 1) -> list[Slot]:
    """The five slots of a fully visible row, from the place that stands first."""
    return [(carousel, place) for place in range(first, first + 5)]


class Visit(NamedTuple):
    """A page visit; ``pages`` names the visible carousels that are not on page 0, ``ms`` the posters looked at."""

    start: float
    scroll: float
    rows: tuple[int, ...]
    full: tuple[int, ...]
    ms: Mapping[Slot, float] = {}
    clicks: Sequence[Slot] = ()
    pages: Mapping[int, int] = {}


class Session(NamedTuple):
    """A session; slots that ``ms`` and ``cursor`` do not name have 0, carousels not in ``pages`` are on page 0."""

    visit: int
    scroll: float
    slots: Sequence[Slot]
    click: int
    ms: Mapping[Slot, float]
    cursor: Mapping[Slot, float] = {}
    pages: Mapping[int, int] = {}


class Case(NamedTuple):
    """What one person did on one screen, and what comes out.

    Attributes:
        user, task, rows: the log.
        visits: expected page visits; none where the task is left out.
        session: expected session by page; None: there is none.
        screen: likewise for the opening view of three rows; ``...`` where the description does not say enough.
        drops: what this screen adds to the counts of ``DROPS``.
        split: of the task.
    """

    user: str
    task: int
    split: str
    rows: Sequence[Row | list[Row]]
    visits: Sequence[Visit]
    session: Session | None
    screen: Any = ...
    drops: Mapping[str, int] = {}


DROPS = ("no scroll", "off slots", "no dwell")
"""Fixations without a scroll offset; sessions by page with the click off the slots, and with no fixation on them."""
PLACES = range(1, 16)
ITEMS = (
    "TaskID",
    "Carousel_position",
    "Carousel_genre",
    "Movie_position_in_carousel",
    "MovieID",
    "TMDB_title",
    "TMDB_genres",
    "TMDB_poster_path",
)


def write_logs(cases: Sequence[Case], directory: Path) -> Path:
    """Write the four files of the data set."""
    public, non_public = [], []
    for case in cases:
        for entry in case.rows:
            for one in entry if isinstance(entry, list) else [entry]:
                written = _columns(case, one)
                if "Gaze_LocY" not in one:
                    public.append(written)
                if "public only" not in one:
                    non_public.append(written)
    _write(directory / "summary_feedback.csv", PUBLIC, public)
    _write(directory / "non_public_feedback_dataset.csv", NON_PUBLIC, non_public)
    items = [_item(task, c, place) for task in range(1, 41) for c in range(1, 11) for place in PLACES]
    _write(directory / "item_features.csv", ITEMS, items)
    names = sorted({case.user for case in cases})
    users = [{"UserID": name, "Top_genre": "Drama", "Preferred_genres": "Drama, Comedy"} for name in names]
    ratings = {f"{g}_rating": 3 for g in GENRES}
    _write(directory / "user_features.csv", (*users[0], *ratings), [user | ratings for user in users])
    return directory


def movie_id(task: int, slot: Slot) -> int:
    """MovieID of a poster: task 7, carousel 2, place 6 is 70206."""
    return task * 10_000 + slot[0] * 100 + slot[1]


def _item(task: int, carousel: int, place: int) -> Row:
    number = movie_id(task, (carousel, place))
    name = GENRES[carousel - 1]
    values = (task, carousel, name, place, number, f"Movie {number}", name, f"/{number}.jpg")
    return dict(zip(ITEMS, values, strict=True))


def _columns(case: Case, entry: Row) -> Row:
    written = {
        "UserID": case.user,
        "SubjectID": case.user.split("_")[1],
        "TaskID": case.task,
        "StimulusID": f"{case.task:02d}",
        "Timestamp": f"{entry['time']:.6f}",
    }
    for event in EVENTS:
        if event in entry:
            kind, carousel, place = entry[event]
            number = movie_id(case.task, (carousel, place)) if place else ""
            name = (GENRES[carousel - 1], carousel == 1, carousel <= 2, 3) if carousel else ("", "", "", "")
            values = (kind, number, place or "", carousel or "", *name)
            written |= {f"{event}_{field}": value for field, value in zip(AOI_FIELDS, values, strict=True)}
    return written | {k: entry[k] for k in NON_PUBLIC if k in entry}


def _write(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    with path.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, columns, restval="", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
