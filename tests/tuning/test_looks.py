"""Which sessions a report shows: some of every user, the same ones every time, not too many in all."""

import numpy as np

from fixate_jax.data.session import StoredSession
from fixate_jax.lab.experiments.looks import BYTES, MOST_USERS, choose_sessions, room

SESSIONS = [
    StoredSession(
        session_id=str(i),
        user_id=f"user {i % 5}",
        page_id="page",
        boxes=np.array([[0.0, 0.0, 1.0, 1.0]]),
        labels=("A",),
        dwell_ms={"fixation": np.ones(1)},
        click=0,
    )
    for i in range(100)
]


def users(chosen: list[int]) -> list[str]:
    return [SESSIONS[i].user_id for i in chosen]


def test_each_user_has_as_many_and_they_stay_the_same() -> None:
    chosen = choose_sessions(SESSIONS, range(50, 100), 3, most=99)
    assert chosen == choose_sessions(SESSIONS, range(50, 100), 3, most=99)
    assert users(chosen) == [f"user {i}" for i in range(5) for _ in range(3)]
    assert len(set(chosen)) == 15 and min(chosen) >= 50
    assert chosen == sorted(chosen, key=lambda i: (i % 5, i))
    assert sorted(choose_sessions(SESSIONS, range(50, 100), 99, most=99)) == list(range(50, 100)), (
        "all where there are fewer"
    )


def test_there_is_a_most() -> None:
    assert users(choose_sessions(SESSIONS, range(100), 6, most=12)) == [f"user {i}" for i in range(5) for _ in range(2)]
    assert users(choose_sessions(SESSIONS, range(100), 6, most=2)) == ["user 0", "user 2"]
    assert choose_sessions(SESSIONS, [], 6, most=9) == []


def test_as_many_as_fit_and_one_of_every_user() -> None:
    assert room([9_000, 11_000], users=20) == BYTES // 10_000
    assert room([1_000_000], users=20) == 20, "large pages"
    assert room([1_000_000], users=5000) == MOST_USERS, "and very many users"
