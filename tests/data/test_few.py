"""A few sessions of each person: nested, independent of company, only of those given."""

from pathlib import Path

import numpy as np
import pytest

from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.data.few import few_sessions
from fixate_jax.data.options import DataConfig
from fixate_jax.data.registry import open_or_prepare
from fixate_jax.data.session import StoredSession
from fixate_jax.data.store import SessionStore
from fixate_jax.errors import ConfigError
from fixate_jax.lab.config import RunConfig
from fixate_jax.lab.experiments.workspace import open_workspace


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SessionStore:
    config = DataConfig(name="synthetic_choice", store=tmp_path_factory.mktemp("few") / "s", page_width=64, max_users=3)
    return open_or_prepare(config)


def test_fewer_are_among_more_and_nobody_else_matters(store: SessionStore) -> None:
    sessions = list(store.sessions)
    train = [i for i, s in enumerate(sessions) if s.split == "train"]
    kept = {count: few_sessions(sessions, train, count, seed=0) for count in (1, 2, 5, 1000)}
    assert kept[1000] == train
    for fewer, more in ((1, 2), (2, 5), (5, 1000)):
        assert set(kept[fewer]) < set(kept[more])
    for user in store.users:
        own = [i for i in train if sessions[i].user_id == user]
        assert few_sessions(sessions, own, 2, seed=0) == [i for i in kept[2] if sessions[i].user_id == user]
        assert sum(sessions[i].user_id == user for i in kept[5]) == 5
    assert few_sessions(sessions, train, 5, seed=1) != kept[5]


def test_a_workspace_learns_from_no_more(store: SessionStore, tmp_path: Path) -> None:
    """Validation and test stay as they are, and so does the store."""
    data = DataConfig(
        name="synthetic_choice", store=store.directory, page_width=64, max_users=3, train_sessions=2, split_seed=0
    )
    config = RunConfig(data=data, backbone=BackboneConfig(tapped_layers=1))
    workspace = open_workspace(config, open_or_prepare(data), directory=tmp_path)
    splits = {split: sum(s.split == split for s in store.sessions) for split in ("validation", "test")}
    assert {split: len(workspace.splits[split]) for split in splits} == splits
    assert sorted(s.user_id for s in workspace.sessions("train")) == sorted(2 * store.users)


def test_none_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data.train_sessions = 0: must be above 0"):
        DataConfig(train_sessions=0)


def test_the_draw_is_the_same_in_every_process() -> None:
    """Names decide, and not Python's hashes, which another process draws anew."""
    sessions = [
        StoredSession(
            session_id=f"s{i}",
            user_id=f"u{i % 2}",
            page_id="page",
            boxes=np.array([[0.0, 0.0, 1.0, 1.0]]),
            labels=("A",),
            dwell_ms={"fixation": np.ones(1)},
            click=0,
        )
        for i in range(40)
    ]
    assert few_sessions(sessions, range(40), 3, seed=0) == [7, 17, 28, 30, 37, 38]
    assert few_sessions(sessions, range(40), 3, seed=1) == [7, 17, 20, 21, 26, 34]
