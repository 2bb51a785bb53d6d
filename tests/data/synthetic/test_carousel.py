"""Made-up people at carousel pages: seeded, unlike each other, and led by habit and taste as they were drawn."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fixate_jax.data.carousel import COLUMNS, GENRES, ROWS, poster_boxes
from fixate_jax.data.options import DataConfig
from fixate_jax.data.readers.synthetic.carousel import (
    FEATURES,
    LABELS,
    PAGES,
    PROFILE,
    SESSIONS,
    USERS,
    Page,
    Person,
    Visit,
    page_pool,
    people,
    slot_features,
    synthetic_visits,
)
from fixate_jax.data.registry import DATASETS, open_or_prepare
from fixate_jax.data.store import SessionStore, sessions_frame
from fixate_jax.lab.experiments.predictors import trivial_predictions

SEEDS = [0, 1, 2]
MANY = 200
"""Visits of each, where an average over them is to follow what the person was drawn as."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SessionStore:
    return prepared(tmp_path_factory.mktemp("carousel") / "store")


def prepared(directory: Path, *, users: int | None = None, seed: int = 0, width: int = 64) -> SessionStore:
    return open_or_prepare(
        DataConfig(name="synthetic_carousel", store=directory, page_width=width, max_users=users, split_seed=seed)
    )


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def gaze_of(visit: Visit) -> np.ndarray:
    return visit.dwell_ms / visit.dwell_ms.sum()


def divergence(gaze: np.ndarray, predicted: np.ndarray) -> float:
    return float(np.sum(gaze * np.log((gaze + 1e-9) / (predicted + 1e-9)), axis=-1).mean())


Seen = tuple[Person, list[Visit], list[Page]]


def seen(seed: int, *, users: int = USERS, sessions: int = SESSIONS) -> list[Seen]:
    """Each person with their visits and the pages of these."""
    pool, visits = page_pool(seed), synthetic_visits(users=users, sessions=sessions, seed=seed)
    own = [[v for v in visits if v.user == user] for user in range(users)]
    return [(person, v, [pool[x.page] for x in v]) for person, v in zip(people(users, seed), own, strict=True)]


def hits(by_person: Sequence[Seen], answer: Callable[[Person, Visit, Page], int]) -> float:
    """Share of visits where the answer is the click."""
    return float(np.mean([answer(p, v, c) == v.click for p, vs, cs in by_person for v, c in zip(vs, cs, strict=True)]))


def test_a_store_is_whole_and_split_within_each_person(store: SessionStore) -> None:
    assert store.users == tuple(str(u) for u in range(USERS)) and store.slot_feature_names == FEATURES
    assert store.manifest["splits"] == {"train": 42 * USERS, "validation": 9 * USERS, "test": 9 * USERS}
    assert not store.dropped
    for user in store.users:
        assert [len(store.select(split=s, users=[user])) for s in ("train", "validation", "test")] == [42, 9, 9]
    for session in store.sessions:
        assert session.labels == LABELS and session.profile == PROFILE
        np.testing.assert_array_equal(session.boxes, poster_boxes())
    assert store.image(store.sessions[0].page_id).size == (64, 38)


def test_pages_are_shared_among_people_and_seen_once_by_each(store: SessionStore) -> None:
    assert PAGES * 0.9 < store.manifest["pages"] <= PAGES
    for user in store.users:
        assert len({s.page_id for s in store.select(users=[user])}) == SESSIONS
    readers: dict[str, set[str]] = {}
    for session in store.sessions:
        readers.setdefault(session.page_id, set()).add(session.user_id)
    assert np.mean([len(users) for users in readers.values()]) >= 3
    assert store.manifest["pages"] == len({v.page for v in synthetic_visits(users=USERS, sessions=SESSIONS, seed=0)})


def test_preparing_again_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    first, again, other = (
        contents(prepared(tmp_path / name, users=1, seed=seed).directory)
        for name, seed in [("first", 3), ("again", 3), ("other", 4)]
    )
    assert first == again
    assert not {name for name in first if name.endswith(".png")} & other.keys()


def test_a_seed_gives_people_pages_and_visits_of_its_own() -> None:
    a, b = people(2, 0), people(2, 1)
    for one, other in [(a[0], a[1]), (a[0], b[0])]:
        assert not np.isclose(one.rows, other.rows).any()
        assert not np.isclose(one.columns, other.columns).any()
        assert not np.isclose(one.tastes, other.tastes).any()
    assert page_pool(0) == page_pool(0)
    assert not set(page_pool(0)) & set(page_pool(1))
    visits, again = (synthetic_visits(users=2, sessions=5, seed=0) for _ in range(2))
    for v, w in zip(visits, again, strict=True):
        assert (v.page, v.click, v.dwell_ms.tolist()) == (w.page, w.click, w.dwell_ms.tolist())
    assert {v.page for v in visits if v.user == 0} != {v.page for v in visits if v.user == 1}


def test_max_users_takes_the_first(store: SessionStore, tmp_path: Path) -> None:
    part = prepared(tmp_path / "store", users=3)
    assert part.users == ("0", "1", "2") and len(part.sessions) == 3 * SESSIONS
    pd.testing.assert_frame_equal(sessions_frame(part.sessions), sessions_frame(store.select(users=part.users)))


def test_it_reads_no_files() -> None:
    assert DATASETS["synthetic_carousel"].files is None


def test_nobody_sees_more_pages_than_there_are() -> None:
    with pytest.raises(ValueError, match="larger sample than population"):
        synthetic_visits(users=1, sessions=PAGES + 1, seed=0)


def test_genres_are_spread_evenly_over_pages_and_places() -> None:
    genres = np.array([[list(GENRES).index(poster.genre) for poster in page] for page in page_pool(0)])
    shares = np.stack([(genres == g).mean(axis=0) for g in range(len(GENRES))])
    np.testing.assert_allclose(shares.mean(axis=1), 1 / len(GENRES), atol=0.02)
    np.testing.assert_allclose(shares, 1 / len(GENRES), atol=0.08)


def test_features_name_genre_row_and_column_of_each_slot() -> None:
    page = page_pool(0)[0]
    features = pd.DataFrame(slot_features(page), columns=list(FEATURES))
    assert features.isin([0.0, 1.0]).all(axis=None)
    genre, row, column = np.split(features.to_numpy(), [len(GENRES), len(GENRES) + ROWS], axis=1)
    assert [list(GENRES)[g] for g in genre.argmax(axis=1)] == [poster.genre for poster in page]
    assert row.argmax(axis=1).tolist() == np.repeat(range(ROWS), COLUMNS).tolist()
    assert column.argmax(axis=1).tolist() == list(range(COLUMNS)) * ROWS
    for group in (genre, row, column):
        assert (group.sum(axis=1) == 1).all()


def test_mean_gaze_follows_pulls_and_tastes() -> None:
    found: dict[str, list[np.ndarray]] = {"rows": [], "columns": [], "tastes": []}
    drawn: dict[str, list[np.ndarray]] = {"rows": [], "columns": [], "tastes": []}
    for person, visits, pages in seen(0, users=6, sessions=MANY):
        gaze = np.stack([gaze_of(v) for v in visits])
        place = gaze.mean(axis=0).reshape(ROWS, COLUMNS)
        genres = np.array([[list(GENRES).index(poster.genre) for poster in page] for page in pages])
        taste = np.array([gaze[genres == g].mean() for g in range(len(GENRES))])
        for name, share in [("rows", place.sum(axis=1)), ("columns", place.sum(axis=0)), ("tastes", taste)]:
            pull = getattr(person, name)
            found[name].append(np.log(share) - np.log(share).mean())
            drawn[name].append(pull - pull.mean())
    for name in found:
        assert np.corrcoef(np.concatenate(found[name]), np.concatenate(drawn[name]))[0, 1] > 0.97, name


def test_expected_gaze_is_the_mean_over_visits() -> None:
    by_person = seen(0, users=2, sessions=MANY)
    for person, visits, pages in by_person:
        gaze, expected = np.stack([gaze_of(v) for v in visits]), np.stack([person.expected_gaze(c) for c in pages])
        np.testing.assert_allclose(gaze.mean(axis=0), expected.mean(axis=0), atol=0.01)
        assert divergence(gaze, expected) < 0.1


def test_time_on_a_page_is_in_seconds() -> None:
    total = [v.dwell_ms.sum() / 1000 for v in synthetic_visits(users=USERS, sessions=SESSIONS, seed=0)]
    assert 7 < np.median(total) < 9 and min(total) > 1 and max(total) < 60


@pytest.mark.parametrize("seed", SEEDS)
def test_people_differ_and_what_is_shown_matters(seed: int) -> None:
    by_person = seen(seed)
    gaze = np.stack([[gaze_of(v) for v in visits] for _, visits, _ in by_person])
    expected = np.stack([[person.expected_gaze(c) for c in pages] for person, _, pages in by_person])
    uniform = divergence(gaze, np.full(len(LABELS), 1 / len(LABELS)))
    everyone = divergence(gaze, gaze.mean(axis=(0, 1)))
    own = divergence(gaze, gaze.mean(axis=1, keepdims=True))
    content = divergence(gaze, expected)
    assert 0.5 < uniform < 0.9
    assert 0.45 < everyone < 0.8 and everyone < uniform
    assert 0.19 < own < 0.3
    assert content < 0.1


@pytest.mark.parametrize("seed", SEEDS)
def test_a_perfect_model_hits_over_half_of_the_clicks_and_habit_alone_far_fewer(seed: int) -> None:
    by_person = seen(seed)
    best = hits(by_person, lambda person, _, page: int(expected_click(person, page).argmax()))
    told = hits(by_person, lambda person, v, page: int(person.click_probabilities(page, gaze_of(v)).argmax()))
    gaze = hits(by_person, lambda _, v, __: int(v.dwell_ms.argmax()))
    clicks = np.array([[v.click for v in visits] for _, visits, _ in by_person])
    majority = np.mean([np.bincount(own).max() / len(own) for own in clicks])
    assert 0.5 < best < 0.65 and 0.5 < told < 0.68
    assert 0.45 < gaze < told
    assert majority < best - 0.2


def expected_click(person: Person, page: Page) -> np.ndarray:
    return person.click_probabilities(page, person.expected_gaze(page))


def test_both_gaze_and_taste_drive_the_click() -> None:
    def surprise(taste: float, gaze: float) -> float:
        """Mean −log p(click) for a model that knows only parts of what drove it."""
        return float(
            -np.mean(
                [
                    np.log(
                        replace(person, tastes=taste * person.tastes).click_probabilities(page, gaze * gaze_of(v))[
                            v.click
                        ]
                    )
                    for person, visits, pages in seen(0)
                    for v, page in zip(visits, pages, strict=True)
                ]
            )
        )

    both = surprise(1, 1)
    assert both + 0.2 < surprise(0, 1) and both + 0.2 < surprise(1, 0)


def test_the_content_predictors_find_it_from_the_features(store: SessionStore) -> None:
    table = trivial_predictions(
        store.select(split="train"), store.select(split="test"), slot_feature_names=store.slot_feature_names
    ).set_index("method")

    def kl(method: str) -> float:
        rows = table.loc[method]
        return divergence(np.stack(rows["gaze"].tolist()), np.stack(rows["attention"].tolist()))

    def accuracy(method: str) -> float:
        rows = table.loc[method]
        return float((rows["answer"] == rows["click"]).mean())

    assert kl("personal_content_regression") < 0.5 * kl("user_mean") < 0.25 * kl("uniform")
    assert kl("content_regression") < kl("user_mean") < kl("population_mean")
    assert accuracy("personal_content_click") > accuracy("majority_click") + 0.2
