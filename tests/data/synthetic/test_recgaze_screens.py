"""What made-up people see: built-in screens or the study's own, and which settings are refused."""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from fixate_jax.data.synthetic.recgaze import write_recgaze
from fixate_jax.data.synthetic.recgaze.catalogue import built_in
from fixate_jax.data.synthetic.recgaze.people import GENRES
from fixate_jax.errors import ConfigError, DataError


def test_the_built_in_screens_hold_every_genre_once_in_an_order_of_their_own() -> None:
    pages = built_in(range(1, 41))
    orders = {tuple(row.genre for row in page) for page in pages.values()}
    assert all(sorted(order) == sorted(GENRES) for order in orders) and len(orders) == 40
    for page in pages.values():
        assert all(row.genre in film.genres and len(row.movies) == 15 for row in page for film in row.movies)
    assert built_in([7])[7] == pages[7]


def test_titles_and_genres_come_from_a_list_of_screens(tmp_path: Path) -> None:
    path = write_screens(tmp_path / "screens.csv", [3, 12])
    write_recgaze(tmp_path / "logs", users=1, seed=0, screens=path, tasks=[12])
    items = pd.read_csv(tmp_path / "logs" / "item_features.csv", keep_default_na=False)
    assert len(items) == 150 and set(items["TaskID"]) == {12}
    first = items.iloc[0]
    assert first["TMDB_title"] == 'Film "12/1/1", or so (1999)' and first["TMDB_genres"] == "Action, War"
    assert first["TMDB_poster_path"] == "12-1-1.jpg" and first["MovieID"] == 12001


def write_screens(path: Path, tasks: Iterable[int]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        head = ["TaskID", "Carousel_position", "Carousel_genre", "Movie_position_in_carousel"]
        table.writerow([*head, "title", "genres", "cast", "poster_file"])
        for task in tasks:
            for carousel in range(1, 11):
                for place in range(1, 16):
                    title = f'Film "{task}/{carousel}/{place}", or so (1999)'
                    poster = f"{task}-{carousel}-{place}.jpg"
                    table.writerow((task, carousel, GENRES[carousel - 1], place, title, "Action, War", "", poster))
    return path


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Carousel_genre", "Genre", "screens.csv: columns Carousel_genre are missing"),
        (
            "\n3,2,Animation",
            "\n3,two,Animation",
            "line 17, field 'Carousel_position' = 'two': must be a whole",
        ),
        ("\n3,2,Animation", "\n3,2,Anime", "line 17, field 'Carousel_genre' = 'Anime': must be one of Action, "),
        ("\n3,2,Animation,4,", "\n3,2,Animation,5,", "line 21, .* is given twice in carousel 2 of task 3"),
    ],
)
def test_a_list_of_screens_that_cannot_be_used(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = write_screens(tmp_path / "screens.csv", [3])
    path.write_text(path.read_text(encoding="utf-8").replace(old, new, 1), encoding="utf-8")
    with pytest.raises(DataError, match=message):
        write_recgaze(tmp_path / "logs", users=1, seed=0, screens=path, tasks=[3])


def test_a_task_that_is_not_in_the_list(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no rows of task 5; a list of"):
        write_recgaze(tmp_path, users=1, seed=0, screens=write_screens(tmp_path / "screens.csv", [3]), tasks=[5])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"users": 0}, "users"), ({"samples": 0}, "samples"), ({"tasks": []}, "tasks"), ({"tasks": [0, 3]}, "0 to 3")],
)
def test_settings_out_of_range(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        write_recgaze(tmp_path, **({"users": 1, "seed": 0} | wrong))


def test_the_real_screens(shared_data: Path, tmp_path: Path) -> None:
    truth = write_recgaze(tmp_path, users=1, seed=0, screens=shared_data / "recgaze_screens" / "screens.csv")
    items = pd.read_csv(tmp_path / "item_features.csv")
    assert len(items) == 6000 and items.iloc[0]["TaskID"] == 1 and items["TMDB_title"].notna().all()
    assert len(truth.sessions) > 20
