"""Made-up people on RecGaze's screens: logs in the raw form, a truth that holds, traits that show."""

import csv
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fixate_jax.analysis.measures import random_halves, split_half_correlation
from fixate_jax.data.recgaze.geometry import VIEWPORT, poster_top
from fixate_jax.data.synthetic.recgaze import Person, Truth, write_recgaze
from fixate_jax.data.synthetic.recgaze.aims import Aim, aim_of
from fixate_jax.data.synthetic.recgaze.catalogue import built_in, genre_weights
from fixate_jax.data.synthetic.recgaze.cursor import cursor_of
from fixate_jax.data.synthetic.recgaze.people import GENRES, draw_people, user_id
from fixate_jax.data.synthetic.recgaze.view import (
    MAX_SCROLL,
    MOVIE,
    NOWHERE,
    area_under,
    full_rows,
    settle,
    visible_rows,
)
from fixate_jax.data.synthetic.recgaze.walk import MS, Walk
from fixate_jax.errors import ConfigError, DataError

SCREENS = Path(__file__).parents[4] / "shared" / "data" / "recgaze_screens" / "screens.csv"
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


def walks(person: Person, tasks: Iterable[int] = range(1, 31), seed: int = 5) -> list[Walk]:
    """What a person does on screens whose films' own appeal is the same for everybody."""
    done = []
    for task, page in built_in(list(tasks)).items():
        rng = np.random.default_rng([seed, task])
        done.append(Walk(person, aim_of(person, genre_weights(page), task, rng), rng, start=0))
        done[-1].run()
    return done


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


def test_people_are_named_as_in_the_study() -> None:
    names = [user_id(index) for index in range(87)]
    assert sorted(names) == sorted([f"KInIT_{i}" for i in range(1, 62)] + [f"UvA_{i}" for i in range(1, 27)])


def test_opinions_agree_with_tastes() -> None:
    people = draw_people(200, 0)
    for person in people:
        best = max(person.ratings)
        assert person.top_genre == GENRES[int(np.argmax(person.tastes))] == person.preferred_genres[0]
        assert person.rating(person.top_genre) == best and 1 <= min(person.ratings) <= best <= 5
        assert all(person.rating(genre) >= 4 for genre in person.preferred_genres) and len(person.preferred_genres) <= 4
    tastes, ratings = (np.array([getattr(p, name) for p in people]).ravel() for name in ("tastes", "ratings"))
    assert np.corrcoef(tastes, ratings)[0, 1] > 0.9


def test_visible_rows_follow_the_rules_on_the_edges() -> None:
    assert visible_rows(0.0) == full_rows(0.0) == (1, 2, 3)
    fourth = poster_top(4) - VIEWPORT[1]
    assert visible_rows(fourth + 3.0) == (1, 2, 3, 4) and visible_rows(fourth + 2.875) == (1, 2, 3)
    whole = fourth + 193
    assert full_rows(whole - 0.375) == (2, 3, 4) and full_rows(whole - 0.625) == (2, 3)
    assert full_rows(float(MAX_SCROLL)) == (8, 9, 10)
    offsets = [settle(x, whole=False) for x in np.linspace(0.3, MAX_SCROLL - 1, 997)]
    assert all(abs(2 * x - round(2 * x)) > 0.2 for x in offsets), "no offset is on the edge of half a pixel"


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


def test_what_the_log_says_is_under_the_eyes_is_under_them() -> None:
    kinds = set()
    for walk in walks(replace(draw_people(1, 0)[0], swipe_readiness=0.5)):
        states = [next(s for s in reversed(walk.states) if s.time <= f.time) for f in walk.fixations]
        found = area_under(
            np.array([f.x for f in walk.fixations]),
            np.array([f.y for f in walk.fixations]),
            np.array([s.pages for s in states]),
        )
        assert found == [f.aoi for f in walk.fixations]
        assert all(f.scroll == s.scroll for f, s in zip(walk.fixations, states, strict=True))
        assert all(0 <= f.y - f.scroll <= VIEWPORT[1] for f in walk.fixations)
        assert not any(f.closest for f in walk.fixations if f.aoi != NOWHERE)
        kinds |= {(f.aoi.type, f.closest and f.closest.type) for f in walk.fixations}
    assert kinds == {
        (MOVIE, None),
        ("Genre", None),
        ("Forward", None),
        ("Backward", None),
        ("Background", None),
        ("Background", MOVIE),
        ("Background", "Genre"),
    }


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


def share(done: list[Walk], wanted: Any) -> float:
    """Share of the time in the opening view for which `wanted` holds of a poster."""
    seen = [f for walk in done for f in walk.fixations if f.aoi.type == MOVIE and f.scroll == 0]
    return sum(f.ms for f in seen if wanted(f.aoi)) / sum(f.ms for f in seen)


def changed(trait: str, value: float) -> dict[str, Any]:
    return {trait: value}


def test_scan_habits_show_in_gaze() -> None:
    person = draw_people(1, 0)[0]
    for trait, low, high, wanted in [
        ("top_pull", 0.0, 1.2, lambda aoi: aoi.carousel == 1),
        ("left_pull", 0.0, 0.8, lambda aoi: aoi.place % 5 == 1),
        ("centre_pull", -0.5, 1.2, lambda aoi: aoi.place % 5 == 3),
    ]:
        little, much = (share(walks(replace(person, **changed(trait, value))), wanted) for value in (low, high))
        assert much > little + 0.1, trait


def test_the_eyes_of_the_loyal_stay_in_their_row() -> None:
    def stays(loyalty: float) -> float:
        done = walks(replace(draw_people(1, 0)[0], row_loyalty=loyalty))
        pairs = [(a.aoi, b.aoi) for w in done for a, b in zip(w.fixations, w.fixations[1:], strict=False)]
        pairs = [(a, b) for a, b in pairs if a.type == b.type == MOVIE]
        return float(np.mean([a.carousel == b.carousel for a, b in pairs]))

    assert stays(2.0) > stays(0.0) + 0.2


def test_a_taste_for_a_genre_draws_gaze_and_clicks() -> None:
    person = replace(draw_people(1, 0)[0], taste_pull=0.6)
    pages = built_in(range(1, 31))
    looks, clicks = [], []
    for taste in (-2.0, 0.0, 2.0):
        done = walks(replace(person, tastes=(taste, *person.tastes[1:])))
        genre = [
            (f.ms, pages[task][f.aoi.carousel - 1].genre == GENRES[0])
            for task, walk in enumerate(done, start=1)
            for f in walk.fixations
            if f.aoi.type == MOVIE
        ]
        looks.append(sum(ms for ms, liked in genre if liked) / sum(ms for ms, _ in genre))
        clicked = [(task, walk.diary.clicks[-1][0][0]) for task, walk in enumerate(done, start=1) if walk.diary.clicks]
        clicks.append(np.mean([pages[task][carousel - 1].genre == GENRES[0] for task, carousel in clicked]))
    assert looks == sorted(looks) and looks[2] > 2 * looks[0]
    assert clicks[2] > clicks[1] + 0.15 and clicks[1] >= clicks[0]


def test_gaze_drives_the_click_where_taste_is_silent() -> None:
    person = draw_people(1, 0)[0]
    ranks = []
    for seed in range(600):
        walk = Walk(person, Aim(np.zeros((10, 15)), None), np.random.default_rng(seed), start=0)
        walk._look(1.0)
        before = dict(walk.view_ms)
        walk._choose()
        chosen = walk.diary.clicks[-1][0]
        ranks.append(np.mean([ms < before[chosen] for poster, ms in before.items() if poster != chosen]))
    assert np.mean(ranks) > 0.53


def test_swipers_swipe_and_far_scrollers_get_far() -> None:
    person = replace(draw_people(1, 0)[0], decisiveness=-2.0, wheel=True)
    few, tasks = replace(person, swipe_readiness=0.05, jump_px=250.0), range(1, 13)
    often, far = replace(few, swipe_readiness=0.6), replace(few, jump_px=900.0, wheel=False)
    swipes, depths, offsets = [], [], []
    for one in (few, often, far):
        done = walks(one, tasks)
        swipes.append(sum(c.aoi.type in ("Forward", "Backward") for w in done for c in w.clicks))
        depths.append(np.mean([max(s.scroll for s in w.states) for w in done]))
        # Where a scroll ends, which is where more than a glance is cast.
        offsets.append([f.scroll % 1 for w in done for f in w.fixations if f.ms > 150 and f.scroll])
    assert swipes[1] > 5 * max(swipes[0], 1)
    assert depths[2] > depths[0] + 300
    assert not any(offsets[0]) and np.mean(np.array(offsets[2]) == 0) < 0.5


def test_the_cursor_lags_behind_the_gaze() -> None:
    agreement = {lag: [0, 0] for lag in (-400, 0, 400)}
    person = replace(draw_people(1, 0)[0], cursor_following=0.9, cursor_lag_ms=400.0)
    for walk in walks(person):
        starts = np.array([f.time for f in walk.fixations])
        for sample in cursor_of(walk, person, np.random.default_rng(0)):
            for lag, (hits, asked) in agreement.items():
                at = int(np.searchsorted(starts, sample.time - lag * MS, side="right")) - 1
                if at >= 0 and walk.fixations[at].aoi.type == MOVIE and sample.aoi.type == MOVIE:
                    agreement[lag] = [hits + (walk.fixations[at].aoi == sample.aoi), asked + 1]
    ahead, now, behind = (hits / asked for hits, asked in agreement.values())
    assert behind > now + 0.08 > ahead + 0.08 and behind > 0.35


def test_the_cursor_is_on_what_is_clicked() -> None:
    person = replace(draw_people(1, 0)[0], swipe_readiness=0.4)
    for walk in walks(person):
        there = {s.time: s.aoi for s in cursor_of(walk, person, np.random.default_rng(1)) if s.time % MS == 0}
        assert not there or [there[click.time] for click in walk.clicks] == [click.aoi for click in walk.clicks]


def test_some_sessions_have_no_cursor(truth: Truth) -> None:
    moved = truth.sessions["cursor_ms"].map(any)
    assert 0.8 < moved.mean() < 0.99


def test_searchers_find_the_film_they_are_asked_for() -> None:
    found = []
    for walk in [w for person in draw_people(6, 0) for w in walks(person, range(36, 41))]:
        if walk.diary.clicks and walk.aim.target in {
            poster for visit in walk.diary.visits for poster in visit.fixation_ms
        }:
            found.append(walk.diary.clicks[-1][0] == walk.aim.target)
    assert len(found) >= 15 and np.mean(found) > 0.8


def test_the_built_in_screens_hold_every_genre_once_in_an_order_of_their_own() -> None:
    pages = built_in(range(1, 41))
    orders = {tuple(row.genre for row in page) for page in pages.values()}
    assert all(sorted(order) == sorted(GENRES) for order in orders) and len(orders) == 40
    for page in pages.values():
        assert all(row.genre in film.genres and len(row.films) == 15 for row in page for film in row.films)
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
        ("Carousel_genre", "Genre", "screens.csv: no field 'Carousel_genre'"),
        ("\n3,2,Animation", "\n3,two,Animation", "screens.csv, line 17: task, carousel and place must be whole"),
        ("\n3,2,Animation", "\n3,2,Anime", "line 17, field 'Carousel_genre': must be one of Action, "),
        ("\n3,2,Animation,4,", "\n3,2,Animation,5,", "carousel 2 of task 3 must have the places 1 to 15"),
    ],
)
def test_a_list_of_screens_that_cannot_be_used(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = write_screens(tmp_path / "screens.csv", [3])
    path.write_text(path.read_text(encoding="utf-8").replace(old, new, 1), encoding="utf-8")
    with pytest.raises(DataError, match=message):
        write_recgaze(tmp_path / "logs", users=1, seed=0, screens=path, tasks=[3])


def test_a_task_that_is_not_in_the_list(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="carousel 1 of task 5 must have"):
        write_recgaze(tmp_path, users=1, seed=0, screens=write_screens(tmp_path / "screens.csv", [3]), tasks=[5])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"users": 0}, "users"), ({"samples": 0}, "samples"), ({"tasks": []}, "tasks"), ({"tasks": [0, 3]}, "0 to 3")],
)
def test_settings_out_of_range(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        write_recgaze(tmp_path, **({"users": 1, "seed": 0} | wrong))


@pytest.mark.skipif(not SCREENS.exists(), reason="needs the study's list of screens beside the project")
def test_the_real_screens(tmp_path: Path) -> None:
    truth = write_recgaze(tmp_path, users=1, seed=0, screens=SCREENS)
    items = pd.read_csv(tmp_path / "item_features.csv")
    assert len(items) == 6000 and items.iloc[0]["TaskID"] == 1 and items["TMDB_title"].notna().all()
    assert len(truth.sessions) > 20
