"""The movies on the carousel screens of the RecGaze study: read from its ``item_features.csv`` or a table of titles."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fixate_jax.data.recgaze.geometry import CAROUSELS, MOVIES
from fixate_jax.data.recgaze.tables import (
    MAX_TASK,
    MISSING,
    Table,
    no_odd_lines,
    poster_code,
    poster_of,
    read_small_table,
    stop_at,
)
from fixate_jax.errors import DataError

ITEM_FIELDS = {"id": "MovieID", "title": "TMDB_title", "genres": "TMDB_genres", "poster": "TMDB_poster_path"}
TITLE_FIELDS = {"title": "title", "genres": "genres", "poster": "poster_file"}
PLACE_FIELDS = ("TaskID", "Carousel_position", "Movie_position_in_carousel")
LIMITS = dict(zip(PLACE_FIELDS, ((0, MAX_TASK), (1, CAROUSELS), (1, MOVIES)), strict=True))
MAX_MOVIE_ID = 2**53


class Movie(NamedTuple):
    """A movie.

    Attributes:
        movie_id: number in the study.
        title: with the year in brackets, as the study's pages give it, or without.
        genres: may be empty.
        poster: name of the poster's file; None where it is not known.
    """

    movie_id: int
    title: str
    genres: tuple[str, ...]
    poster: str | None


class Carousel(NamedTuple):
    """A row of the page: its genre and its fifteen movies."""

    genre: str
    movies: tuple[Movie, ...]


Screen = tuple[Carousel, ...]
"""The ten carousels of a task, from the top."""


def read_screens(path: Path) -> dict[int, Screen]:
    """Screens by task, from the study's ``item_features.csv``; movies without a TaskID are on none.

    Raises:
        DataError: naming the file, the line and the field, or the place on a screen that no row fills.
    """
    return _read(path, ITEM_FIELDS, None)


def screens_from_csv(path: Path, *, genres: Sequence[str] | None = None) -> dict[int, Screen]:
    """Screens by task, from a table of the titles seen.

    Its columns are ``TaskID``, ``Carousel_position``, ``Carousel_genre``, ``Movie_position_in_carousel``, ``title``,
    ``genres`` and ``poster_file``; others are not read. It has no numbers of movies, so they are made by ``movie_id``.

    Args:
        path: the file.
        genres: those that carousels may have; None: any.

    Raises:
        DataError: as ``read_screens``, or for another genre.
    """
    return _read(path, TITLE_FIELDS, genres)


def movie_id(task: int, carousel: int, place: int) -> int:
    """The number of a movie where the study's own is not known."""
    return 1000 * task + MOVIES * (carousel - 1) + place


def _read(path: Path, fields: Mapping[str, str], genres: Sequence[str] | None) -> dict[int, Screen]:
    numbers = [*PLACE_FIELDS, *(name for key, name in fields.items() if key == "id")]
    texts = ["Carousel_genre", *(name for key, name in fields.items() if key != "id")]
    table = read_small_table(path, numbers=numbers, texts=texts)
    no_odd_lines(table)
    seen: dict[int, dict[int, Movie]] = {}
    found: dict[tuple[int, int], str] = {}
    for row in _rows_on_screens(table):
        task, carousel, place = (int(table.numbers[name][row]) for name in PLACE_FIELDS)
        genre = _told(table, row, "Carousel_genre")
        if genres is not None and genre not in genres:
            raise table.error(row, "Carousel_genre", f"must be one of {', '.join(genres)}")
        if found.setdefault((task, carousel), genre) != genre:
            raise table.error(row, "Carousel_genre", f"was {found[task, carousel]!r} for this carousel further up")
        movies, code = seen.setdefault(task, {}), poster_code(carousel, place)
        if code in movies:
            raise table.error(row, PLACE_FIELDS[2], f"is given twice in carousel {carousel} of task {task}")
        movies[code] = _movie(table, row, fields, movie_id(task, carousel, place))
    return {task: _screen(path, task, seen[task], found) for task in sorted(seen)}


def _rows_on_screens(table: Table) -> list[int]:
    """The rows that have a task, their numbers checked."""
    shown = ~np.isnan(table.numbers["TaskID"])
    if not shown.any():
        raise DataError(f"{table.path}: holds no rows with a TaskID")
    for column, values in table.numbers.items():
        low, high = LIMITS.get(column, (0, MAX_MOVIE_ID))
        bad = ~((values >= low) & (values <= high) & (np.floor(values) == values))
        stop_at(table, shown & bad, column, f"must be a whole number from {low} to {high}")
    return np.flatnonzero(shown).tolist()


def _movie(table: Table, row: int, fields: Mapping[str, str], number: int) -> Movie:
    poster = table.text(row, fields["poster"])
    return Movie(
        movie_id=int(table.numbers[fields["id"]][row]) if "id" in fields else number,
        title=_told(table, row, fields["title"]),
        genres=tuple(g for part in table.text(row, fields["genres"]).split(",") if (g := part.strip()) not in MISSING),
        # A path as the movie data base gives it, or a name; either way a file of the folder of posters and no other.
        poster=re.split(r"[/\\]", poster)[-1] or None,
    )


def _told(table: Table, row: int, column: str) -> str:
    text = table.text(row, column)
    if not text:
        raise table.error(row, column, "is empty; fill it in")
    return text


def _screen(path: Path, task: int, movies: Mapping[int, Movie], genres: Mapping[tuple[int, int], str]) -> Screen:
    missing = next((code for code in range(CAROUSELS * MOVIES) if code not in movies), None)
    if missing is not None:
        carousel, place = poster_of(missing)
        raise DataError(f"{path}: the screen of task {task} lacks carousel {carousel}, place {place}; add a row")
    return tuple(
        Carousel(genres[task, carousel], tuple(movies[poster_code(carousel, place)] for place in range(1, MOVIES + 1)))
        for carousel in range(1, CAROUSELS + 1)
    )
