"""The movies on the carousel screens of the RecGaze study: read from its ``item_features.csv``."""

import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fixate_jax.data.readers.recgaze.geometry import CAROUSELS, MOVIES
from fixate_jax.data.readers.recgaze.tables import (
    MAX_TASK,
    MISSING,
    Table,
    no_odd_lines,
    read_small_table,
    stop_at,
)
from fixate_jax.errors import DataError

NUMBER, TITLE, GENRES, POSTER = "MovieID", "TMDB_title", "TMDB_genres", "TMDB_poster_path"
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
    texts = ("Carousel_genre", TITLE, GENRES, POSTER)
    table = read_small_table(path, numbers=(*PLACE_FIELDS, NUMBER), texts=texts)
    no_odd_lines(table)
    rows = _rows_on_screens(table)
    movies = _movies(table)
    places = list(zip(*(table.numbers[name] for name in PLACE_FIELDS), strict=True))
    row_genres = table.words("Carousel_genre")
    seen: dict[int, dict[tuple[int, int], Movie]] = {}
    found: dict[tuple[int, int], str] = {}
    for row in rows:
        task, carousel, place = map(int, places[row])
        genre = row_genres[row]
        if found.setdefault((task, carousel), genre) != genre:
            raise table.error(row, "Carousel_genre", f"was {found[task, carousel]!r} for this carousel further up")
        own = seen.setdefault(task, {})
        if (carousel, place) in own:
            raise table.error(row, PLACE_FIELDS[2], f"is given twice in carousel {carousel} of task {task}")
        own[carousel, place] = movies[row]
    return {task: _screen(path, task, seen[task], found) for task in sorted(seen)}


def _rows_on_screens(table: Table) -> list[int]:
    """The rows that have a task, with numbers and texts as they must be."""
    shown = ~np.isnan(table.numbers["TaskID"])
    if not shown.any():
        raise DataError(f"{table.path}: holds no rows with a TaskID")
    for column, values in table.numbers.items():
        low, high = LIMITS.get(column, (0, MAX_MOVIE_ID))
        bad = ~((values >= low) & (values <= high) & (np.floor(values) == values))
        stop_at(table, shown & bad, column, f"must be a whole number from {low} to {high}")
    for column in (TITLE, "Carousel_genre"):
        stop_at(table, shown & ~np.array(table.words(column), bool), column, "is empty; fill it in")
    return np.flatnonzero(shown).tolist()


def _movies(table: Table) -> list[Movie]:
    """The movie of every row; the number of one on no screen means nothing."""
    whole = np.clip(np.nan_to_num(table.numbers[NUMBER]), 0, MAX_MOVIE_ID).astype(np.int64).tolist()
    titles, genres, posters = (table.words(name) for name in (TITLE, GENRES, POSTER))
    return [
        Movie(
            movie_id=number,
            title=title,
            genres=tuple(name for part in own.split(",") if (name := part.strip()) not in MISSING),
            # A path as the movie data base gives it, or a name; either way a file of the folder of posters.
            poster=re.split(r"[/\\]", poster)[-1] or None,
        )
        for number, title, own, poster in zip(whole, titles, genres, posters, strict=True)
    ]


def _screen(
    path: Path, task: int, movies: Mapping[tuple[int, int], Movie], genres: Mapping[tuple[int, int], str]
) -> Screen:
    for carousel, place in itertools.product(range(1, CAROUSELS + 1), range(1, MOVIES + 1)):
        if (carousel, place) not in movies:
            raise DataError(f"{path}: the screen of task {task} lacks carousel {carousel}, place {place}; add a row")
    return tuple(
        Carousel(genres[task, carousel], tuple(movies[carousel, place] for place in range(1, MOVIES + 1)))
        for carousel in range(1, CAROUSELS + 1)
    )
