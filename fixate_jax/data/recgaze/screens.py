"""The movies on the carousel screens of the RecGaze study: read from its ``item_features.csv`` or a table of titles."""

import csv
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, NoReturn

from fixate_jax.data.recgaze.geometry import CAROUSELS, MOVIES
from fixate_jax.errors import DataError

FILE = "item_features.csv"
PLACE_FIELDS = ("TaskID", "Carousel_position", "Movie_position_in_carousel")
ITEM_FIELDS = {"id": "MovieID", "title": "TMDB_title", "genres": "TMDB_genres", "poster": "TMDB_poster_path"}
TITLE_FIELDS = {"title": "title", "genres": "genres", "poster": "poster_file"}
_WHOLE = re.compile(r"(\d{1,18})(\.0*)?")
_NONE = ("", "NA", "NaN", "nan", "None")


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
    """Screens by task, from the study's ``item_features.csv``.

    Args:
        path: the file, or the folder that holds it.

    Raises:
        DataError: naming the file, the line and the field, or the movie that is missing.
    """
    return _read(path / FILE if path.is_dir() else path, ITEM_FIELDS)


def screens_from_csv(path: Path) -> dict[int, Screen]:
    """Screens by task, from a table of the titles seen.

    Its columns are ``TaskID``, ``Carousel_position``, ``Carousel_genre``, ``Movie_position_in_carousel``, ``title``,
    ``genres`` and ``poster_file``; others are not read. It has no numbers of movies, so they are made:
    1000 · task + 15 · (carousel − 1) + place.

    Raises:
        DataError: as ``read_screens``.
    """
    return _read(path, TITLE_FIELDS)


def _read(path: Path, fields: Mapping[str, str]) -> dict[int, Screen]:
    seen: dict[int, dict[tuple[int, int], Movie]] = {}
    genres: dict[tuple[int, int], str] = {}
    for line, row in _rows(path, fields):
        if row["TaskID"].strip() in _NONE:
            continue  # A movie that was on no screen.
        task, carousel, place = (_whole(path, line, row, field) for field in PLACE_FIELDS)
        for field, value, last in ((PLACE_FIELDS[1], carousel, CAROUSELS), (PLACE_FIELDS[2], place, MOVIES)):
            if not 1 <= value <= last:
                _fail(path, line, row, field, f"must lie in 1..{last}")
        genre = _text(path, line, row, "Carousel_genre")
        if genres.setdefault((task, carousel), genre) != genre:
            _fail(path, line, row, "Carousel_genre", f"was {genres[task, carousel]!r} for this carousel further up")
        movies = seen.setdefault(task, {})
        if (carousel, place) in movies:
            _fail(path, line, row, PLACE_FIELDS[2], f"is given twice in carousel {carousel} of task {task}")
        movies[carousel, place] = _movie(path, line, row, fields, (task, carousel, place))
    if not seen:
        raise DataError(f"{path}: holds no rows")
    return {task: _screen(path, task, seen[task], genres) for task in sorted(seen)}


def _movie(path: Path, line: int, row: dict[str, str], fields: Mapping[str, str], at: tuple[int, int, int]) -> Movie:
    task, carousel, place = at
    number = 1000 * task + MOVIES * (carousel - 1) + place
    poster = row[fields["poster"]].strip()
    return Movie(
        movie_id=_whole(path, line, row, fields["id"]) if "id" in fields else number,
        title=_text(path, line, row, fields["title"]),
        genres=tuple(part.strip() for part in row[fields["genres"]].split(",") if part.strip() not in _NONE),
        # A path as the movie data base gives it, or a name; either way a file of the folder of posters and no other.
        poster=None if poster in _NONE else re.split(r"[/\\]", poster)[-1] or None,
    )


def _screen(
    path: Path, task: int, movies: Mapping[tuple[int, int], Movie], genres: Mapping[tuple[int, int], str]
) -> Screen:
    for carousel in range(1, CAROUSELS + 1):
        missing = [str(place) for place in range(1, MOVIES + 1) if (carousel, place) not in movies]
        if missing:
            raise DataError(
                f"{path}, task {task}, carousel {carousel}: Movie_position_in_carousel {', '.join(missing)} missing; "
                f"a screen has {CAROUSELS} carousels of {MOVIES} movies"
            )
    return tuple(
        Carousel(genres[task, carousel], tuple(movies[carousel, place] for place in range(1, MOVIES + 1)))
        for carousel in range(1, CAROUSELS + 1)
    )


def _rows(path: Path, fields: Mapping[str, str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Line numbers and rows of a table."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            reader = csv.DictReader(handle, strict=True)
            wanted = [*PLACE_FIELDS, "Carousel_genre", *fields.values()]
            missing = [name for name in wanted if name not in (reader.fieldnames or [])]
            if missing:
                raise DataError(f"{path}: columns {', '.join(missing)} are missing")
            for row in reader:
                if None in row or None in row.values():
                    raise DataError(f"{path}, line {reader.line_num}: has another number of fields than the header")
                yield reader.line_num, row
    except FileNotFoundError:
        raise DataError(f"{path}: not found") from None
    except (csv.Error, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable as CSV ({error})") from error


def _text(path: Path, line: int, row: Mapping[str, str], field: str) -> str:
    text = row[field].strip()
    if text in _NONE:
        _fail(path, line, row, field, "is empty; fill it in")
    return text


def _whole(path: Path, line: int, row: Mapping[str, str], field: str) -> int:
    match = _WHOLE.fullmatch(row[field].strip())
    if match is None:
        _fail(path, line, row, field, "must be a whole number from 0")
    return int(match[1])


def _fail(path: Path, line: int, row: Mapping[str, str], field: str, wanted: str) -> NoReturn:
    raise DataError(f"{path}, line {line}, field {field!r} = {row[field]!r}: {wanted}")
