"""Made-up people on RecGaze's screens: their traits show in where they look, scroll, swipe and click."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from fixate_jax.data.recgaze.geometry import VIEWPORT, poster_top
from fixate_jax.data.synthetic.recgaze import Person
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


def walks(person: Person, tasks: Iterable[int] = range(1, 31), seed: int = 5) -> list[Walk]:
    """What a person does on screens whose films' own appeal is the same for everybody."""
    done = []
    for task, page in built_in(list(tasks)).items():
        rng = np.random.default_rng([seed, task])
        done.append(Walk(person, aim_of(person, genre_weights(page), task, rng), rng, start=0))
        done[-1].run()
    return done


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


def test_searchers_find_the_film_they_are_asked_for() -> None:
    found = []
    for walk in [w for person in draw_people(6, 0) for w in walks(person, range(36, 41))]:
        if walk.diary.clicks and walk.aim.target in {
            poster for visit in walk.diary.visits for poster in visit.fixation_ms
        }:
            found.append(walk.diary.clicks[-1][0] == walk.aim.target)
    assert len(found) >= 15 and np.mean(found) > 0.8
