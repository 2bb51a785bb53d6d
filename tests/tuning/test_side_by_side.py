"""Seeds side by side: each ends as it does alone, stops by itself, and survives what a run alone survives."""

import copy
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from fixate_jax.config import (
    BackboneConfig,
    DataConfig,
    ObjectiveConfig,
    OperatorConfig,
    PromptConfig,
    RunConfig,
    TrainConfig,
)
from fixate_jax.data import open_or_prepare
from fixate_jax.errors import ConfigError
from fixate_jax.tuning import loop, side_by_side
from fixate_jax.tuning.checkpoint import CheckpointStore, Restored
from fixate_jax.tuning.experiment import load_prompt
from fixate_jax.tuning.loop import Interrupted, start_state, train
from fixate_jax.tuning.setup import Workspace, open_workspace
from fixate_jax.tuning.side_by_side import SideBySide, can_go_together, train_seeds

SEEDS = (1, 2, 3)
EPOCH = 7
"""Steps of an epoch."""
EPOCHS = 3
"""Of a seed that is not stopped early."""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    folder = tmp_path_factory.mktemp("work")
    config = RunConfig(
        data=DataConfig(name="synthetic_choice", store=folder / "store", page_width=64, max_users=2, train_sessions=14),
        backbone=BackboneConfig(path="tiny-random", tapped_layers=2),
        prompt=PromptConfig(basis=2, tokens=2, init_scale=0.3),
        operator=OperatorConfig(name="attention"),
        objective=ObjectiveConfig(alignment="kl", warmup=3),
        train=TrainConfig(
            seeds=SEEDS,
            epochs=EPOCHS,
            batch=2,
            eval_batch=18,
            validate_every=1,
            patience=1,
            checkpoint_every=4,
            keep_checkpoints=2,
            max_lengths=1,
        ),
    )
    return open_workspace(config, open_or_prepare(config.data), directory=folder)


def folders(root: Path) -> dict[int, Path]:
    return {seed: root / f"seed-{seed}" for seed in SEEDS}


def final(workspace: Workspace, directory: Path) -> Restored:
    like = start_state(workspace.config, users=2, width=workspace.backbone.width, seed=0)
    restored = CheckpointStore(directory / "checkpoints").restore({"state": like, "best": like.prompt})
    assert restored is not None
    return restored


def rows(directory: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def assert_alike(first: Path, second: Path) -> None:
    assert_rows_alike(rows(first), rows(second))


def assert_rows_alike(a: list[dict[str, float]], b: list[dict[str, float]]) -> None:
    """The same rows in the same places, their numbers to 1e-4."""
    assert [list(row) for row in a] == [list(row) for row in b]
    for one, other in zip(a, b, strict=True):
        np.testing.assert_allclose(list(one.values()), list(other.values()), rtol=1e-4, atol=1e-4)


def assert_same(workspace: Workspace, first: dict[int, Path], second: dict[int, Path]) -> None:
    """The same checkpoints and files, bit for bit."""
    for a, b in zip(first.values(), second.values(), strict=True):
        for x, y in zip(jax.tree.leaves(final(workspace, a)), jax.tree.leaves(final(workspace, b)), strict=True):
            np.testing.assert_array_equal(x, y)
        for name in ("metrics.jsonl", "metrics.csv"):
            assert (a / name).read_bytes() == (b / name).read_bytes()


def made_once(make: Callable[..., Any]) -> Callable[..., Any]:
    """A maker of jitted functions that gives what it made first: all runs here have the same settings."""
    made: list[Any] = []

    def once(*args: Any, **rest: Any) -> Any:
        made.extend([] if made else [make(*args, **rest)])
        return made[0]

    return once


@pytest.fixture(autouse=True, scope="module")
def compiled_once() -> Iterator[None]:
    """One program for a seed alone and one for seeds side by side, in this module alone: the patch goes with it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_train_step", made_once(loop.make_train_step))
        patch.setattr(side_by_side, "make_seeds_step", made_once(side_by_side.make_seeds_step))
        yield


@pytest.fixture(scope="module")
def alone(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Directories of seeds that were tuned one after the other."""
    there = folders(tmp_path_factory.mktemp("alone"))
    for seed, directory in there.items():
        train(workspace, workspace.config, directory, seed=seed)
    return there


@pytest.fixture(scope="module")
def together(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Directories of the same seeds, tuned side by side."""
    there = folders(tmp_path_factory.mktemp("together"))
    tuned = train_seeds(workspace, workspace.config, there)
    assert {t.compilations for t in tuned.values()} == {1}, "one program for all seeds and steps"
    steps = [t.steps for t in tuned.values()]
    assert max(steps) == EPOCHS * EPOCH > min(steps), "one seed has to stop early, and one not"
    for seed, directory in there.items():
        prompt = load_prompt(workspace, directory, seed=seed)
        jax.tree.map(np.testing.assert_array_equal, prompt, tuned[seed].prompt)
    return there


def test_each_seed_ends_as_it_does_alone(
    workspace: Workspace, alone: dict[int, Path], together: dict[int, Path]
) -> None:
    for seed in SEEDS:
        one, other = final(workspace, alone[seed]), final(workspace, together[seed])
        assert one.step == other.step
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), one.state, other.state)
        best = ("best_epoch", "without_gain", "finished", "lines", "batches")
        assert [one.meta[name] for name in best] == [other.meta[name] for name in best]
        assert_alike(alone[seed], together[seed])
        stores = [CheckpointStore(place[seed] / "checkpoints").steps() for place in (alone, together)]
        assert stores[0] == stores[1]


def test_a_shared_order_of_sessions_would_be_seen(
    workspace: Workspace, alone: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the test above is for: with the first seed's sessions in everybody's steps it would fail."""
    short = replace(workspace.config, train=replace(workspace.config.train, epochs=1))
    train_seeds(workspace, short, folders(tmp_path / "right"))
    plan = loop.TrainingPlan
    monkeypatch.setattr(loop, "TrainingPlan", lambda *args, seed, **rest: plan(*args, seed=SEEDS[0], **rest))
    train_seeds(workspace, short, folders(tmp_path / "wrong"))
    for seed in SEEDS:
        compare = rows(alone[seed])[: EPOCH + 1], rows(tmp_path / "wrong" / f"seed-{seed}")[: EPOCH + 1]
        right = rows(tmp_path / "right" / f"seed-{seed}")[: EPOCH + 1]
        assert_rows_alike(compare[0], right)
        if seed == SEEDS[0]:
            assert_rows_alike(*compare)
        else:
            with pytest.raises(AssertionError):
                assert_rows_alike(*compare)


def stopping(monkeypatch: pytest.MonkeyPatch, step: int, how: Callable[[], None]) -> None:
    """After so many steps something happens."""
    advance = SideBySide.advance

    def advance_and(self: Any) -> str:
        note = advance(self)
        if self.step == step:
            how()
        return note

    monkeypatch.setattr(SideBySide, "advance", advance_and)


def test_a_request_to_stop_is_obeyed_after_the_step_and_loses_nothing(
    workspace: Workspace, together: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stopping(patch, 7, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted, match="SIGTERM: saved after step 7; give the same command again"):
            train_seeds(workspace, workspace.config, folders(tmp_path))
    assert all(final(workspace, directory).step == 7 for directory in folders(tmp_path).values())
    train_seeds(workspace, workspace.config, folders(tmp_path))
    assert_same(workspace, together, folders(tmp_path))


class _Killed(BaseException):
    """Stands in for SIGKILL."""


def test_killed_between_the_checkpoints_of_two_seeds_the_later_one_catches_up(
    workspace: Workspace, together: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill() -> None:
        raise _Killed

    with monkeypatch.context() as patch:
        stopping(patch, 18, kill)
        with pytest.raises(_Killed):
            train_seeds(workspace, workspace.config, folders(tmp_path))
    stores = [CheckpointStore(directory / "checkpoints") for directory in folders(tmp_path).values()]
    going = [store for store in stores if store.steps()[-1] == 16]
    assert 1 < len(going) < len(SEEDS)
    shutil.rmtree(going[1].directory / "step_00000016")
    taken: list[list[bool]] = []
    make = side_by_side.make_seeds_step

    def noting(*args: Any, **rest: Any) -> Any:
        step = make(*args, **rest)

        class Noting:
            _cache_size = step._cache_size

            def __call__(self, states: Any, params: Any, batches: Any, going: Any) -> Any:
                taken.append(going.tolist())
                return step(states, params, batches, going)

        return Noting()

    monkeypatch.setattr(side_by_side, "make_seeds_step", noting)
    train_seeds(workspace, workspace.config, folders(tmp_path))
    assert [sum(steps) for steps in taken[:3]] == [1, 1, len(going)], "two steps to catch up"
    assert_same(workspace, together, folders(tmp_path))


def test_a_finished_run_takes_no_step(
    workspace: Workspace, together: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SideBySide, "advance", lambda self: pytest.fail("a step was taken"))
    tuned = train_seeds(workspace, workspace.config, together)
    again = train(workspace, workspace.config, together[SEEDS[0]], seed=SEEDS[0])
    jax.tree.map(np.testing.assert_array_equal, again.prompt, tuned[SEEDS[0]].prompt)


def test_several_lengths_do_not_go_together(workspace: Workspace, tmp_path: Path) -> None:
    assert can_go_together(workspace)
    data = copy.copy(workspace.data)
    train_first = workspace.splits["train"][0]
    data.bucket_of = [int(i == train_first) for i in range(len(data.sessions))]
    several = replace(workspace, data=data)
    assert not can_go_together(several)
    with pytest.raises(ConfigError, match=r"seeds 1, 2, 3 .*: .* padded to 2 lengths; set train.max_lengths to 1"):
        train_seeds(several, workspace.config, folders(tmp_path))
    assert not any(tmp_path.iterdir())
