"""Sessions of made-up people, and layouts of gaze written down."""

import numpy as np
import pandas as pd

from fixate_jax.data.session import StoredSession
from fixate_jax.lab.analysis import AnalysisSettings, Layout

SETTINGS = AnalysisSettings(halvings=5)
PATTERNS = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]])


def same(first: pd.DataFrame, second: pd.DataFrame) -> bool:
    return first.to_csv(index=False) == second.to_csv(index=False)


def boxes(slots: int) -> np.ndarray:
    edges = np.linspace(0, 1, slots + 1)
    return np.stack([edges[:-1], np.full(slots, 0.2), edges[1:], np.full(slots, 0.9)], axis=1)


def layout(gaze: np.ndarray, user: np.ndarray, click: np.ndarray | None = None) -> Layout:
    users, slots = int(user.max()) + 1, gaze.shape[1]
    return Layout(
        labels=tuple("ABCDEF"[:slots]),
        boxes=boxes(slots),
        page_id="0" * 64,
        users=tuple(f"u{i}" for i in range(users)),
        user=user,
        gaze=gaze,
        click=np.zeros(user.size, int) if click is None else click,
    )


def session(
    number: int, user: str, dwell: list[float], click: int = 0, *, split="train", shift: float = 0.0
) -> StoredSession:
    return StoredSession(
        session_id=f"s{number}",
        user_id=user,
        page_id="0" * 64,
        boxes=boxes(len(dwell)) - np.array([0, shift, 0, shift]),
        labels=tuple("ABCDEF"[: len(dwell)]),
        dwell_ms={"fixation": np.array(dwell, float)},
        click=click,
        split=split,
    )


def made_up(users: int, sessions: int, *, seed: int = 0, personal: bool = True) -> list[StoredSession]:
    rng = np.random.default_rng(seed)
    habits = rng.dirichlet(np.ones(3), users) if personal else np.full((users, 3), 1 / 3)
    return [
        session(100 * u + k, f"u{u}", list(rng.dirichlet(20 * habits[u] + 0.1) + 1e-6), int(rng.integers(3)))
        for u in range(users)
        for k in range(sessions)
    ]
