"""Logs of made-up people: in the raw form of RecGaze, with a truth that holds."""

import csv
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fixate_jax.analysis.measures import random_halves, split_half_correlation
from fixate_jax.data.recgaze.geometry import VIEWPORT, poster_top
from fixate_jax.data.synthetic.recgaze import Truth, write_recgaze
from fixate_jax.data.synthetic.recgaze.people import GENRES
from fixate_jax.data.synthetic.recgaze.view import (
    MOVIE,
    full_rows,
)

USERS = 12
AOI = ["type", "MovieID", "Movie_position_in_carousel", "Carousel_position", "Carousel_genre"]
AOI += ["Carousel_genre_is_top_genre", "Carousel_genre_is_preferred_genre", "Carousel_genre_rating"]
EVENTS = ["Fixation_AOI_", "Fixation_AOI_Closest_", "Click_AOI_", "Cursor_AOI_"]
KEY = ["UserID", "TaskID", "Timestamp"]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Truth]:
    directory = tmp_path_factory.mktemp("recgaze")
    return directory, write_recgaze(directory, users=USERS, seed=0)


@pytest.fixture(scope="module")
def truth(written: tuple[Path, Truth]) -> Truth:
    return written[1]


@pytest.fixture(scope="module")
def public(written: tuple[Path, Truth]) -> pd.DataFrame:
    return pd.read_csv(written[0] / "summary_feedback.csv")


@pytest.fixture(scope="module")
def raw(written: tuple[Path, Truth]) -> pd.DataFrame:
    return pd.read_csv(written[0] / "non_public_feedback_dataset.csv")


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def rows_of(directory: Path, name: str, keep: dict[str, set[str]]) -> list[list[str]]:
    with (directory / name).open(encoding="utf-8", newline="") as file:
        head, *lines = csv.reader(file)
    return [line for line in lines if all(line[head.index(column)] in values for column, values in keep.items())]


def test_columns_are_those_of_the_data_set(written: tuple[Path, Truth]) -> None:
    columns = {path.name: pd.read_csv(path, nrows=0).columns.tolist() for path in written[0].iterdir()}
    events = ["UserID", "SubjectID", "TaskID", "StimulusID", "Timestamp", *(e + a for e in EVENTS for a in AOI)]
    events += ["Fixation_Duration", "Cursor_Duration"]
    assert columns == {
        "summary_feedback.csv": events,
        "non_public_feedback_dataset.csv": [*events, "Fixation_LocY", "Gaze_LocY"],
        "item_features.csv": ["TaskID", "Carousel_position", "Carousel_genre", "Movie_position_in_carousel", "MovieID"]
        + ["TMDB_title", "TMDB_genres", "TMDB_poster_path"],
        "user_features.csv": ["UserID", "Top_genre", "Preferred_genres", *(f"{genre}_rating" for genre in GENRES)],
    }


def test_a_row_is_one_event_and_holds_nothing_else(public: pd.DataFrame) -> None:
    fixation, closest, click, cursor = (public[f"{event}type"].notna() for event in EVENTS)
    assert (fixation.astype(int) + click + cursor == 1).all()
    assert not (closest & (public["Fixation_AOI_type"] != "Background")).any() and closest.any()
    assert (public["Fixation_Duration"].notna() == fixation).all() and (public["Fixation_Duration"][fixation] > 0).all()
    assert (public["Cursor_Duration"].notna() == cursor).all() and (public["Cursor_Duration"][cursor] > 0).all()
    known = {"Movie", "Genre", "Forward", "Backward", "Background"}
    for event in EVENTS:
        kind = public[f"{event}type"].dropna()
        assert set(kind) <= known - ({"Background"} if event in EVENTS[1:3] else set())
        for names, filled in [(AOI[1:3], {MOVIE}), (AOI[3:], known - {"Background"})]:
            for name in names:
                assert (public.loc[kind.index, event + name].notna() == kind.isin(filled)).all(), event + name
                assert public.loc[public.index.difference(kind.index), event + name].isna().all(), event + name


def test_events_are_in_order_of_time_and_tell_of_films_as_the_other_tables_do(
    written: tuple[Path, Truth], public: pd.DataFrame
) -> None:
    assert (public.groupby("UserID")["Timestamp"].diff().dropna() >= 0).all()
    assert public["UserID"].drop_duplicates().tolist() == [person.user_id for person in written[1].people]
    items = pd.read_csv(written[0] / "item_features.csv")
    assert len(items) == 40 * 150 and items["MovieID"].is_unique and items["TMDB_title"].is_unique
    items = items.set_index("MovieID")
    people = pd.read_csv(written[0] / "user_features.csv").set_index("UserID")
    for event in EVENTS:
        films = public[public[f"{event}type"] == MOVIE]
        own = items.loc[films[f"{event}MovieID"].astype(int)].reset_index()
        assert own["TaskID"].tolist() == films["TaskID"].tolist()
        for name in ("Carousel_position", "Movie_position_in_carousel", "Carousel_genre"):
            assert own[name].tolist() == films[event + name].tolist(), name
        asked = people.loc[films["UserID"]].reset_index().assign(genre=own["Carousel_genre"])
        top = (asked["genre"] == asked["Top_genre"]).tolist()
        assert films[f"{event}Carousel_genre_is_top_genre"].astype(bool).tolist() == top
        preferred = [g in names.split(", ") for g, names in zip(asked["genre"], asked["Preferred_genres"], strict=True)]
        assert films[f"{event}Carousel_genre_is_preferred_genre"].astype(bool).tolist() == preferred
        rating = [row[f"{row['genre']}_rating"] for row in asked.to_dict("records")]
        assert films[f"{event}Carousel_genre_rating"].tolist() == rating


def test_the_non_public_table_holds_the_same_events_and_gaze_samples_beside_them(
    public: pd.DataFrame, raw: pd.DataFrame
) -> None:
    sample = raw["Gaze_LocY"].notna()
    events = raw[~sample].reset_index(drop=True)
    pd.testing.assert_frame_equal(events[public.columns], public)
    assert (events["Fixation_LocY"].notna() == events["Fixation_AOI_type"].notna()).all()
    assert raw.loc[sample, public.columns[5:]].isna().all(axis=None)
    assert not set(map(tuple, raw.loc[sample, KEY].to_numpy())) & set(map(tuple, public[KEY].to_numpy()))
    twice = public.duplicated(KEY, keep=False)
    assert twice.any() and public.loc[twice, "Fixation_AOI_type"].isna().all(), "no tie decides what a visit holds"
    assert raw["Gaze_LocY"].dropna().between(0, VIEWPORT[1]).all()


def test_more_samples_change_nothing_else(tmp_path: Path) -> None:
    one = write_recgaze(tmp_path / "one", users=1, seed=3, tasks=[2, 31])
    many = write_recgaze(tmp_path / "many", users=1, seed=3, tasks=[2, 31], samples=6)
    pd.testing.assert_frame_equal(one.sessions, many.sessions)
    a, b = (pd.read_csv(tmp_path / name / "non_public_feedback_dataset.csv") for name in ("one", "many"))
    assert b["Gaze_LocY"].notna().sum() == 6 * a["Gaze_LocY"].notna().sum()
    few, more = contents(tmp_path / "one"), contents(tmp_path / "many")
    assert [name for name in few if few[name] != more[name]] == ["non_public_feedback_dataset.csv"]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in [("first", 1), ("again", 1), ("other", 2)]:
        write_recgaze(tmp_path / name, users=2, seed=seed, tasks=range(1, 6))
    first, again, other = (contents(tmp_path / name) for name in ("first", "again", "other"))
    assert first == again
    assert [name for name in first if first[name] == other[name]] == ["item_features.csv"]


def test_more_people_and_fewer_tasks_leave_the_others_as_they_are(tmp_path: Path) -> None:
    many = write_recgaze(tmp_path / "many", users=5, seed=1, tasks=range(1, 9))
    few = write_recgaze(tmp_path / "few", users=3, seed=1, tasks=[2, 7, 8])
    users, tasks = {person.user_id for person in few.people}, {"2", "7", "8"}
    keep = {"UserID": users, "TaskID": tasks}
    for name in ("summary_feedback.csv", "non_public_feedback_dataset.csv"):
        assert rows_of(tmp_path / "few", name, {}) == rows_of(tmp_path / "many", name, keep)
    kept = many.visits[many.visits["user_id"].isin(users) & many.visits["task_id"].isin([2, 7, 8])]
    pd.testing.assert_frame_equal(few.visits, kept.reset_index(drop=True))


def test_truth_is_consistent(truth: Truth) -> None:
    splits = {"test": {1, 4, 9, 21, 24, 32}, "validation": {7, 11, 29, 31}}
    for frame in (truth.sessions, truth.screen_sessions):
        assert len(frame) and frame["session_id"].is_unique
        for row in frame.itertuples():
            assert row.session_id == f"{row.user_id}/{row.task_id}" and 1 <= row.task_id <= 35
            assert row.split == next((name for name, tasks in splits.items() if row.task_id in tasks), "train")
            assert len(row.slots) in (10, 15) and len(row.slots) == len(row.fixation_ms) == len(row.cursor_ms)
            assert 0 <= row.click < len(row.slots) and sum(row.fixation_ms) > 0 <= min(row.cursor_ms)
            assert row.slots == tuple(
                (c, p + 5 * row.horizontal_pages[c - 1]) for c in full_rows(row.scroll_px) for p in range(1, 6)
            )
            assert all(row.scroll_px <= poster_top(c) <= row.scroll_px + VIEWPORT[1] - 193 for c, _ in row.slots)
            assert row.movie_ids == tuple(1000 * row.task_id + 15 * (c - 1) + p for c, p in row.slots)
    assert set(truth.screen_sessions["slots"]) == {tuple((c, p) for c in (1, 2, 3) for p in range(1, 6))}
    both = truth.sessions.merge(truth.visits, on=["user_id", "task_id", "visit"], suffixes=("", "_visit"))
    assert len(both) == len(truth.sessions) and (both["scroll_px"] == both["scroll_px_visit"]).all()
    for row in both.itertuples():
        assert row.clicks[-1] == row.slots[row.click]
        assert row.fixation_ms == tuple(row.fixation_ms_visit.get(slot, 0.0) for slot in row.slots)


def test_rows_of_truth_are_in_order_and_visits_differ_from_the_one_before(truth: Truth) -> None:
    order = {person.user_id: place for place, person in enumerate(truth.people)}
    assert list(order) == sorted(order, key=lambda name: (name.split("_")[0], int(name.split("_")[1])))
    keys = [(order[row.user_id], row.task_id, row.visit) for row in truth.visits.itertuples()]
    assert keys == sorted(keys)
    same = 0
    for _, task in truth.visits.groupby(["user_id", "task_id"]):
        assert task["visit"].tolist() == list(range(len(task))) and task["start"].is_monotonic_increasing
        shown = [tuple((c, row.horizontal_pages[c - 1]) for c in row.rows) for row in task.itertuples()]
        for a, b, moved in zip(shown, shown[1:], task["scroll_px"].diff().abs()[1:], strict=False):
            same += a == b
            assert a != b or moved > 17
    assert same, "a small scroll starts a visit at times"


def test_every_fixation_with_an_offset_in_the_log_is_where_truth_has_it(truth: Truth, raw: pd.DataFrame) -> None:
    group = raw.groupby(["UserID", "TaskID"])["Gaze_LocY"]
    gaze = group.shift(-1).fillna(group.shift(-2)).fillna(group.shift(-3))
    fixations = raw.assign(offset=raw["Fixation_LocY"] - gaze)[raw["Fixation_LocY"].notna() & (raw["TaskID"] <= 35)]
    lost = fixations["offset"].isna()
    assert lost.sum() == truth.left_out["fixation without scroll offset"] > 0
    starts = truth.visits.merge(fixations, left_on=["user_id", "task_id", "start"], right_on=KEY, how="left")
    assert len(starts) == len(truth.visits) and (starts["offset"] == starts["scroll_px"]).all()
    looked = (fixations["Fixation_AOI_type"] == MOVIE) | (fixations["Fixation_AOI_Closest_type"] == MOVIE)
    total = sum(sum(dwell.values()) for dwell in truth.visits["fixation_ms"])
    assert total == fixations.loc[looked & ~lost, "Fixation_Duration"].sum()
    swiped = raw["Click_AOI_type"].isin(["Forward", "Backward"]) & (raw["TaskID"] <= 35)
    clicks = (raw["Click_AOI_type"] == MOVIE) & (raw["TaskID"] <= 35)
    assert clicks.sum() == truth.visits["clicks"].map(len).sum() and swiped.any()


def test_screen_sessions_count_the_whole_task(truth: Truth, public: pd.DataFrame) -> None:
    by_task = dict(list(public.groupby(["UserID", "TaskID"])))
    for row in truth.screen_sessions.head(60).itertuples():
        task = by_task[row.user_id, row.task_id]
        last = task[task["Click_AOI_type"] == MOVIE].iloc[-1]
        assert last["Click_AOI_MovieID"] == row.movie_ids[row.click]
        strict = task["Fixation_AOI_MovieID"].fillna(task["Fixation_AOI_Closest_MovieID"])
        ms = task["Fixation_Duration"].groupby(strict).sum()
        assert row.fixation_ms == tuple(ms.get(movie, 0.0) for movie in row.movie_ids)
        seconds = task["Cursor_Duration"].groupby(task["Cursor_AOI_MovieID"]).sum()
        assert row.cursor_ms == tuple(1000 * seconds.get(movie, 0.0) for movie in row.movie_ids)


def test_what_is_left_out_is_counted(truth: Truth, public: pd.DataFrame) -> None:
    tasks = public[["UserID", "TaskID"]].drop_duplicates()
    assert 0.95 * 40 * USERS < len(tasks) < 40 * USERS
    for frame, counts in [(truth.sessions, truth.left_out), (truth.screen_sessions, truth.screen_left_out)]:
        without = sum(count for reason, count in counts.items() if "fixation" not in reason)
        assert len(frame) + without == len(tasks)
        assert counts["direct-search task"] == (tasks["TaskID"] > 35).sum()


def test_gaze_and_clicks_are_as_in_real_data(truth: Truth, public: pd.DataFrame) -> None:
    assert len(truth.sessions) > 0.75 * 35 * USERS
    dwell = [np.array(ms) for ms in truth.sessions["fixation_ms"]]
    rank = np.array([(ms > ms[c]).sum() for ms, c in zip(dwell, truth.sessions["click"], strict=True)])
    assert 0.6 < (rank < 3).mean() < 0.8 and 0.25 < (rank < 1).mean() < 0.6
    gaze = np.stack([ms / ms.sum() for ms in map(np.array, truth.screen_sessions["fixation_ms"])])
    user = truth.screen_sessions["user_id"].astype("category").cat.codes.to_numpy().astype(int)
    first, second = random_halves(gaze, user, halvings=30, seed=0)
    assert 0.5 < split_half_correlation(first, second).mean() < 0.9
    looked = (public["Fixation_AOI_type"] == MOVIE) | (public["Fixation_AOI_Closest_type"] == MOVIE)
    per_task = public[looked & (public["TaskID"] <= 35)].groupby(["UserID", "TaskID"]).size()
    assert per_task.quantile(0.1) > 10 and per_task.quantile(0.9) < 80
    assert 200 < public["Fixation_Duration"].median() < 300
    log = np.log(public["Fixation_Duration"].dropna())
    assert abs(((log - log.mean()) ** 3).mean()) < 0.3 * log.std() ** 3, "log-normal"


def test_some_sessions_have_no_cursor(truth: Truth) -> None:
    moved = truth.sessions["cursor_ms"].map(any)
    assert 0.8 < moved.mean() < 0.99
