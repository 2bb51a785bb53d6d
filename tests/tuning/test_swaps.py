"""The user-swap control: whose prompts a session is evaluated under, and how often."""

from collections import Counter
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.data.options import DataConfig
from fixate_jax.data.registry import open_or_prepare
from fixate_jax.errors import ConfigError
from fixate_jax.evaluation.forward import Evaluation
from fixate_jax.lab.config import PromptConfig, RunConfig
from fixate_jax.lab.experiments.evaluate import predict, swapped_metrics
from fixate_jax.lab.experiments.workspace import Workspace, open_workspace
from fixate_jax.lab.frames import metric_columns, session_metrics
from fixate_jax.pipeline.kept import CacheConfig
from fixate_jax.prompts import PromptParams

PEOPLE = 4
Seen = list[tuple[int, int]]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    work = tmp_path_factory.mktemp("work")
    config = RunConfig(
        data=DataConfig(name="synthetic_choice", store=work / "store", page_width=64, max_users=PEOPLE),
        backbone=BackboneConfig(tapped_layers=1),
        prompt=PromptConfig(basis=PEOPLE, tokens=1),
        cache=CacheConfig(device_bytes=0, host_bytes=0, disk_bytes=0),  # The vision tower never runs.
    )
    return open_workspace(config, open_or_prepare(config.data), directory=work)


@pytest.fixture
def seen() -> Seen:
    """Session and the user whose prompt it was evaluated under, in the order of evaluation."""
    return []


def watched(opened: Workspace, seen: Seen, swaps: int | None) -> Workspace:
    """The workspace with an evaluation that notes whose prompt it gets, and looks at the slot of that number."""
    config = replace(opened.config, train=replace(opened.config.train, swaps=swaps))
    workspace = replace(opened, config=config)

    def evaluate(soft: Any, use_prompt: Any, params: Any, batch: Any) -> Evaluation:
        user = np.rint(np.asarray(soft)[:, 0, 0]).astype(int)
        seen.extend((int(s), int(u)) for s, u in zip(batch.session, user, strict=True) if s >= 0)
        slots = batch.slot_mask.shape[1]
        attention = 0.1 + 0.7 * (np.arange(slots) == user[:, None] % slots)
        log_probs = np.log(attention / attention.sum(-1, keepdims=True))
        return Evaluation(log_probs, log_probs.argmax(-1), attention, attention, attention, attention)

    workspace.__dict__["evaluate"] = evaluate
    return workspace


def numbered() -> PromptParams:
    """Prompts that tell their user: all entries are the user's number."""
    basis = jnp.broadcast_to(jnp.arange(PEOPLE, dtype=jnp.float32)[:, None, None], (PEOPLE, 1, 128))
    return PromptParams(basis=basis, coefficients=100 * jnp.eye(PEOPLE))


def own(workspace: Workspace) -> dict[int, int]:
    return {i: workspace.users.index(workspace.data.sessions[i].user_id) for i in workspace.splits["test"]}


def test_everybody_has_the_own_prompt_without_a_shift(opened: Workspace, seen: Seen) -> None:
    predict(watched(opened, seen, None), numbered(), "test", "fixate")
    assert dict(seen) == own(opened) and len(seen) == len(own(opened))


def test_one_swap_gives_each_session_one_other_prompt_and_each_prompt_equal_use(opened: Workspace, seen: Seen) -> None:
    table = swapped_metrics(watched(opened, seen, 1), numbered(), "test", "swapped", top_k=2)
    users = own(opened)
    assert Counter(session for session, _ in seen) == dict.fromkeys(users, 1)
    assert all(users[session] != user for session, user in seen)
    # Everybody has as many test sessions, and everybody's prompt is somebody else's.
    assert len(set(Counter(users.values()).values())) == 1
    assert len(Counter(user for _, user in seen)) == PEOPLE
    assert len(set(Counter(user for _, user in seen).values())) == 1
    assert set(table["method"]) == {"swapped"} and len(table) == 2 * len(users)


@pytest.mark.parametrize(("swaps", "used"), [(2, 2), (None, 3), (7, 3)])
def test_more_swaps_are_other_users_each_at_most_once(
    opened: Workspace, seen: Seen, swaps: int | None, used: int
) -> None:
    swapped_metrics(watched(opened, seen, swaps), numbered(), "test", "swapped", top_k=2)
    users = own(opened)
    assert len(set(seen)) == len(seen) == used * len(users)
    assert all(users[session] != user for session, user in seen)
    assert len(set(Counter(user for _, user in seen).values())) == 1


def test_metrics_are_means_over_the_others_prompts(opened: Workspace, seen: Seen) -> None:
    workspace = watched(opened, seen, None)
    table = swapped_metrics(workspace, numbered(), "test", "swapped", top_k=2).set_index(["session_id", "mode"])
    single = [
        session_metrics(predict(workspace, numbered(), "test", "swapped", shift=shift), top_k=2).set_index(
            ["session_id", "mode"]
        )
        for shift in (1, 2, 3)
    ]
    names = metric_columns(table.reset_index())
    wanted = sum(frame.loc[table.index, names] for frame in single) / 3
    np.testing.assert_allclose(table[names].to_numpy(float), wanted.to_numpy(float), rtol=1e-6)
    assert not np.allclose(table["kl"], single[0].loc[table.index, "kl"])


def test_at_least_one_swap() -> None:
    with pytest.raises(ConfigError, match=r"train\.swaps = 0: at least 1 is needed"):
        replace(RunConfig().train, swaps=0)
