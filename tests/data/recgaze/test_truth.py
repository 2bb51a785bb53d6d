"""RecGaze's reader against what the generator of made-up people knows: all of it, exactly."""

import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from fixate_jax.data.readers.recgaze import read_recgaze
from fixate_jax.data.readers.recgaze.visits import DRAGGED, IGNORED
from tests.data.synthetic.recgaze import Truth, write_recgaze

USERS = int(os.environ.get("RECGAZE_USERS", "20"))
"""Users in the logs; the study had 87."""


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Truth]:
    folder = tmp_path_factory.mktemp("made_up")
    return folder, write_recgaze(folder, users=USERS, seed=3)


def same(found: pd.DataFrame, truth: pd.DataFrame) -> None:
    """Row by row, so that a difference names its session and column."""
    assert list(found.columns) == list(truth.columns)
    for ours, theirs in zip(found.to_dict("records"), truth.to_dict("records"), strict=True):
        differing: dict[str, Any] = {k: (ours[k], v) for k, v in theirs.items() if ours[k] != v}
        assert not differing, (theirs["user_id"], theirs["task_id"], differing)


def test_page_sessions_and_visits_are_recovered_exactly(logs: tuple[Path, Truth]):
    folder, truth = logs
    found = read_recgaze(folder, definition="page")
    same(found.visits, truth.visits)
    same(found.sessions, truth.sessions)
    assert found.noted == {IGNORED: truth.ignored, DRAGGED: truth.dragged} and truth.ignored > USERS < truth.dragged
    assert len(found.sessions) > 15 * USERS and set(found.sessions["split"]) == {"train", "validation", "test"}


def test_screen_sessions_are_recovered_exactly(logs: tuple[Path, Truth]):
    folder, truth = logs
    found = read_recgaze(folder, definition="screen")
    same(found.sessions, truth.screen_sessions)
    assert len(found.sessions) > 5 * USERS and found.visits.empty
