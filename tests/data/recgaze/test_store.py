"""RecGaze in a store: pages, letters, profiles and features, from logs of made-up people."""

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fixate_jax.data.options import DataConfig
from fixate_jax.data.readers.recgaze import read_recgaze
from fixate_jax.data.readers.recgaze.pages import draw_viewport
from fixate_jax.data.readers.recgaze.screens import read_screens
from fixate_jax.data.readers.recgaze.store import FEATURES, LABELS, Tastes, read_tastes, slot_features
from fixate_jax.data.registry import open_or_prepare, store_settings
from fixate_jax.data.store import SessionStore
from fixate_jax.errors import DataError
from tests.data.synthetic.recgaze import write_recgaze

TASKS = (1, 2, 4, 7, 31, 32)
"""Two tasks to train on, test and validation tasks."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recgaze")
    write_recgaze(path, users=3, seed=5, tasks=TASKS)
    return path


@pytest.fixture(scope="module")
def config(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    store = tmp_path_factory.mktemp("stores") / "page"
    return DataConfig(name="recgaze", path=folder, page_width=192, store=store)


@pytest.fixture(scope="module")
def store(config: DataConfig) -> SessionStore:
    return open_or_prepare(config)


def test_sessions_are_those_that_the_reader_finds(store: SessionStore, folder: Path):
    found = read_recgaze(folder, definition="page").sessions
    assert len(found) > 10 and store.dropped
    for session, row in zip(store.sessions, found.itertuples(index=False), strict=True):
        assert (session.session_id, session.user_id, session.split) == (row.session_id, row.user_id, row.split)
        assert session.labels == LABELS[: len(row.slots)] and session.click == row.click
        assert session.dwell_ms["fixation"].tolist() == list(row.fixation_ms)
        assert ("cursor" in session.dwell_ms) == (sum(row.cursor_ms) > 0)
    assert store.slot_feature_names == FEATURES


def test_the_page_is_what_was_seen(store: SessionStore, folder: Path):
    found = read_recgaze(folder, definition="page")
    for session, row in list(zip(store.sessions, found.sessions.itertuples(index=False), strict=True))[::4]:
        page = draw_viewport(
            found.screens[row.task_id],
            scroll=row.scroll_px,
            horizontal_pages=row.horizontal_pages,
            labels=dict(zip(row.slots, LABELS, strict=False)),
            span=(87, 1032),
            width=192,
        )
        assert np.array_equal(np.asarray(store.image(session.page_id)), np.asarray(page))


def test_the_profile_tells_tastes_in_words():
    liking = Tastes(top="Drama", preferred=("Comedy", "Drama", "War", "Crime"), ratings={})
    assert liking.profile().endswith("favourite genre is Drama. The user also likes Comedy, War and Crime.")
    assert replace(liking, preferred=("Drama",)).profile().endswith("The user's favourite genre is Drama.")
    assert replace(liking, top="", preferred=("War",)).profile().endswith("watch. The user also likes War.")
    assert replace(liking, top="", preferred=()).profile().endswith("picks the film to watch.")


def test_features_by_hand(folder: Path):
    screen = read_screens(folder / "item_features.csv")[1]
    top, film = screen[1].genre, screen[1].movies[6]
    tastes = Tastes(top=top, preferred=(film.genres[0],), ratings={top: 4.0})
    features = slot_features(((2, 6), (2, 7), (3, 1)), screen, tastes)
    assert features.shape == (3, len(FEATURES))
    row = dict(zip(FEATURES, features[1].tolist(), strict=True))
    assert (row["row_of_top_genre"], row["rating_of_row_genre"]) == (1.0, 4.0)
    assert row["film_of_top_genre"] == float(top in film.genres)
    assert row["share_of_preferred_genres"] == pytest.approx(1 / len(film.genres))
    assert [k for k, v in row.items() if k.startswith(("row_", "column_", "swiped_")) and v and "genre" not in k] == [
        "row_1",
        "column_2",
        "swiped_1",
    ]
    below = dict(zip(FEATURES, features[2].tolist(), strict=True))
    assert below["row_2"] == below["column_1"] == 1.0 and below["swiped_1"] == below["swiped_2"] == 0.0


def test_tastes_are_read_from_the_table(folder: Path):
    lines = (folder / "user_features.csv").read_text().splitlines()
    header, first = lines[0].split(","), lines[1]
    genre = next(name.removesuffix("_rating") for name in header if name.endswith("_rating"))
    tastes = read_tastes(folder / "user_features.csv", [genre])
    user = first.split(",")[0]
    assert tastes[user].top in first and all(name in first for name in tastes[user].preferred)
    assert 0 <= tastes[user].ratings[genre] <= 10
    with pytest.raises(DataError, match="Unheard_rating"):
        read_tastes(folder / "user_features.csv", ["Unheard"])


def test_the_screen_definition_needs_no_non_public_table(config: DataConfig, folder: Path, tmp_path: Path):
    public = tmp_path / "public"
    public.mkdir()
    for name in ("summary_feedback.csv", "item_features.csv", "user_features.csv"):
        (public / name).write_bytes((folder / name).read_bytes())
    screen = replace(config, path=public, definition="screen", store=tmp_path / "screen")
    store = open_or_prepare(screen)
    assert {s.slots for s in store.sessions} == {15} and len({s.boxes.tobytes() for s in store.sessions}) == 1
    with pytest.raises(DataError, match=r"non_public_feedback_dataset\.csv"):
        open_or_prepare(replace(screen, definition="page", store=tmp_path / "page"))
    assert not (tmp_path / "page").exists()


def test_a_poster_makes_another_store(config: DataConfig, store: SessionStore, folder: Path, tmp_path: Path):
    copied = tmp_path / "raw"
    copied.mkdir()
    for file in folder.iterdir():
        (copied / file.name).write_bytes(file.read_bytes())
    before = store_settings(replace(config, path=copied))
    (copied / "posters").mkdir()
    (copied / "posters" / "a.jpg").write_bytes(b"no picture")
    assert store_settings(replace(config, path=copied)) != before
    del store


KILLED = """
import os, signal, sys
from pathlib import Path
from fixate_jax.data.options import DataConfig
from fixate_jax.data.registry import open_or_prepare
from fixate_jax.data.readers.recgaze import pages
from fixate_jax.data.store import StoreWriter
pages.FEW, add, added = 1, StoreWriter.add_image, []
def dying(self, png):
    added.append(add(self, png))
    if len(added) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return added[-1]
StoreWriter.add_image = dying
open_or_prepare(DataConfig(name="recgaze", path=Path(sys.argv[1]), page_width=192, store=Path(sys.argv[2])))
"""


def test_killed_half_way_it_leaves_no_store_and_does_it_again(
    store: SessionStore, config: DataConfig, folder: Path, tmp_path: Path
):
    root = Path(__file__).parents[3]
    arguments = [sys.executable, "-c", KILLED, str(folder), str(tmp_path / "store")]
    # The processes that draw hold the pipes, too: all of them must end for this to.
    run = subprocess.run(arguments, cwd=root, capture_output=True, timeout=120)
    assert run.returncode == -signal.SIGKILL, run.stderr.decode()
    (left,) = tmp_path.iterdir()
    assert left.name.endswith(".unfinished") and len(list(left.glob("images/*.png"))) == 3
    again = open_or_prepare(replace(config, store=tmp_path / "store"))
    assert contents(again.directory) == contents(store.directory)
    assert list(tmp_path.iterdir()) == [again.directory]


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}
