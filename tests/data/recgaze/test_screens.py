"""Screens of RecGaze: read whole from either table, bad fields named."""

import csv
from pathlib import Path

import pandas as pd
import pytest

from fixate_jax.data.readers.recgaze.posters import GENRES
from fixate_jax.data.readers.recgaze.screens import Movie, read_screens
from fixate_jax.errors import DataError

HEADER = (
    "TaskID,Carousel_position,Carousel_genre,Movie_position_in_carousel,MovieID,TMDB_title,TMDB_genres,TMDB_poster_path"
)


def item_rows() -> list[list[str]]:
    """Lines of an ``item_features.csv`` of one task; line 2 is carousel 1, place 1."""
    return [
        ["5", str(c), "Drama", str(p), str(1000 * c + p), f"Movie {c}, {p}", "Drama, Crime", f"/{c}-{p}.jpg"]
        for c in range(1, 11)
        for p in range(1, 16)
    ]


def write_items(path: Path, rows: list[list[str]], header: str = HEADER) -> Path:
    with path.open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(header.split(","))
        writer.writerows(rows)
    return path


def test_screens_are_read_in_any_order_of_rows(tmp_path: Path) -> None:
    screens = read_screens(write_items(tmp_path / "item_features.csv", item_rows()[::-1]))
    assert list(screens) == [5]
    assert screens[5][1].movies[2] == Movie(2003, "Movie 2, 3", ("Drama", "Crime"), "2-3.jpg")
    assert [len(carousel.movies) for carousel in screens[5]] == [15] * 10


def test_a_movie_without_genres_or_poster_is_read(tmp_path: Path) -> None:
    rows = item_rows()
    rows[0][6:] = ["", "NA"]
    assert read_screens(write_items(tmp_path / "items.csv", rows))[5][0].movies[0][2:] == ((), None)


@pytest.mark.parametrize(
    ("line", "field", "value", "message"),
    [
        (2, 0, "five", "line 2, field 'TaskID' = 'five': must be a whole number from 0 to 40"),
        (3, 1, "11", "line 3, field 'Carousel_position' = '11': must be a whole number from 1 to 10"),
        (4, 3, "0", "line 4, field 'Movie_position_in_carousel' = '0': must be a whole number from 1 to 15"),
        (5, 3, "1", "line 5, field 'Movie_position_in_carousel' = '1': is given twice in carousel 1 of task 5"),
        (6, 2, "War", "line 6, field 'Carousel_genre' = 'War': was 'Drama'"),
        (7, 4, "", "line 7, field 'MovieID' = '': must be a whole number"),
        (8, 4, "-1", "line 8, field 'MovieID' = '-1': must be a whole number"),
        (9, 5, " ", "line 9, field 'TMDB_title' = ' ': is empty"),
        (10, 2, "", "line 10, field 'Carousel_genre' = '': is empty"),
    ],
)
def test_a_bad_field_is_named(tmp_path: Path, line: int, field: int, value: str, message: str) -> None:
    rows = item_rows()
    rows[line - 2][field] = value
    with pytest.raises(DataError, match=rf"items\.csv, {message}"):
        read_screens(write_items(tmp_path / "items.csv", rows))


def test_tables_that_are_no_screens_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    rows = item_rows()
    for write, message in [
        (lambda: write_items(path, rows[:20] + rows[21:]), "the screen of task 5 lacks carousel 2, place 6; add a row"),
        (lambda: write_items(path, rows[:-15]), "the screen of task 5 lacks carousel 10, place 1; add a row"),
        (lambda: write_items(path, []), "holds no rows"),
        (lambda: write_items(path, rows, HEADER.replace("MovieID", "ID")), "columns MovieID are missing"),
        (lambda: write_items(path, [*rows, ["5"]]), "line 152: has another number of fields"),
        (lambda: path.write_bytes(b"\xff\xfe\x00"), "not readable as CSV"),
        (lambda: write_items(path, [["NA", *row[1:]] for row in rows]), "holds no rows with a TaskID"),
        (path.unlink, "not found"),
    ]:
        write()
        with pytest.raises(DataError, match=message):
            read_screens(path)


def test_the_real_screens_are_read(shared_data: Path, tmp_path: Path) -> None:
    table = pd.read_csv(shared_data / "recgaze_screens" / "screens.csv", keep_default_na=False)
    place = (table["Carousel_position"] - 1) * 15 + table["Movie_position_in_carousel"]
    table["MovieID"] = 1000 * table["TaskID"] + place
    names = {"title": "TMDB_title", "genres": "TMDB_genres", "poster_file": "TMDB_poster_path"}
    table.rename(columns=names).to_csv(tmp_path / "item_features.csv", index=False)
    screens = read_screens(tmp_path / "item_features.csv")
    assert list(screens) == list(range(41))
    assert screens[0][0].movies[1] == Movie(
        2, "Inception (2010)", ("Action", "Adventure", "Sci-Fi"), "rWDkbJlIyqN8KcqXajh9sZMwGzo.jpg"
    )
    assert screens[7][9].movies[14].movie_id == 7150
    genres = {genre for screen in screens.values() for row in screen for movie in row.movies for genre in movie.genres}
    assert genres <= set(GENRES)
