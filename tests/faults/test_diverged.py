"""A loss or parameter that is not finite ends the run, names and keeps the batch, and never reaches a checkpoint."""

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from fixate_jax.errors import DivergedError
from fixate_jax.lab.experiments import loop
from fixate_jax.lab.experiments.loop import train
from fixate_jax.lab.experiments.nonfinite import not_finite, not_finite_leaves, save_batch
from fixate_jax.lab.experiments.workspace import Workspace
from fixate_jax.probing.batches import TrainingPlan
from fixate_jax.tuning.checkpoint import CheckpointStore
from tests.faults.harness import SEED
from tests.tuning.test_loop import assert_same_run

BAD_STEP = 5


def rows_of(workspace: Workspace, step: int) -> list[int]:
    """The sessions of a step."""
    settings = workspace.config.train
    rows = settings.batch * settings.accumulate
    plan = TrainingPlan(workspace.data, workspace.splits["train"], rows=rows, seed=SEED, epochs=settings.epochs)
    return [int(i) for i in plan[step - 1]]


@pytest.fixture
def poisoned(workspace: Workspace) -> Workspace:
    """The same data, but the page of one session of the fifth step has features that are no numbers."""
    data = copy.copy(workspace.data)
    victim = data.sessions[rows_of(workspace, BAD_STEP)[3]].page_id

    def features(page_ids: Sequence[str]) -> tuple[Any, Any]:
        found, pages = workspace.data.features(page_ids)
        bad = np.array([page == victim for page in page_ids])
        return jnp.where(bad[:, None, None, None], jnp.nan, found), pages

    data.features = features
    return replace(workspace, data=data)


def with_checkpoints(workspace: Workspace, every: int) -> Workspace:
    return replace(
        workspace, config=replace(workspace.config, train=replace(workspace.config.train, checkpoint_every=every))
    )


def refused(workspace: Workspace, directory: Path) -> str:
    with pytest.raises(DivergedError) as caught:
        train(workspace, workspace.config, directory, seed=SEED)
    return str(caught.value)


def test_a_loss_that_is_not_finite_ends_the_run_each_time(
    workspace: Workspace, poisoned: Workspace, undisturbed: Path, tmp_path: Path
) -> None:
    message = refused(poisoned, tmp_path)
    rows = rows_of(workspace, BAD_STEP)
    names = [workspace.data.sessions[i].session_id for i in rows]
    path = tmp_path / f"diverged-step-{BAD_STEP:08d}.npz"
    for part in (f"step {BAD_STEP}: alignment is nan", "loss is nan", "basis_gradient is nan", ", ".join(names)):
        assert part in message
    assert str(path) in message and "checkpoints up to step 4 are finite and stay" in message

    about = json.loads(path.with_suffix(".json").read_text())
    assert [session["session_id"] for session in about["sessions"]] == names
    assert about["step"] == BAD_STEP and about["not_finite"]["loss"] == "nan" and about["types"] == {}
    kept = np.load(path, allow_pickle=False)
    np.testing.assert_array_equal(kept["session"], rows)
    assert np.isnan(kept["inputs.features"]).any(axis=(1, 2, 3)).tolist() == [i == 3 for i in range(len(rows))]
    np.testing.assert_array_equal(kept["slot_matrix"], workspace.data.batch(rows).slot_matrix)

    steps = CheckpointStore(tmp_path / "checkpoints").steps()
    assert max(steps) == 4
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert lines == (undisturbed / "metrics.jsonl").read_text().splitlines()[: BAD_STEP - 1]

    before = path.read_bytes(), path.with_suffix(".json").read_bytes()
    assert refused(poisoned, tmp_path) == message, "the same command comes to the same error"
    assert before == (path.read_bytes(), path.with_suffix(".json").read_bytes())
    assert CheckpointStore(tmp_path / "checkpoints").steps() == steps
    train(workspace, workspace.config, tmp_path, seed=SEED)
    assert_same_run(workspace, undisturbed, tmp_path)


def test_it_is_looked_for_when_the_log_is_written_and_not_at_every_step(
    poisoned: Workspace, one_step: None, tmp_path: Path
) -> None:
    """An epoch has 6 steps; nothing is fetched before the validation at its end, which names the step to blame."""
    taken: list[int] = []
    advance = loop.Training.advance

    def counted(self: Any) -> str:
        taken.append(self.step)
        return advance(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Training, "advance", counted)
        message = refused(with_checkpoints(poisoned, 100), tmp_path)
    assert f"step {BAD_STEP}: " in message and "there is no checkpoint yet" in message
    assert taken == list(range(6))


def test_parameters_that_are_not_finite_are_not_saved(
    workspace: Workspace, one_step: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss and gradient can be finite when the update is not: the last step before a checkpoint."""
    make = loop.make_train_step

    def overflowing(*args: Any, **rest: Any) -> Callable[..., Any]:
        step = make(*args, **rest)

        class Overflowing:
            _cache_size = step._cache_size

            def __call__(self, state: Any, *others: Any) -> Any:
                state, parts = step(state, *others)
                basis = jnp.where(state.step == 4, jnp.inf, state.prompt.basis)
                return state._replace(prompt=state.prompt._replace(basis=basis)), parts

        return Overflowing()

    monkeypatch.setattr(loop, "make_train_step", overflowing)
    message = refused(workspace, tmp_path)
    assert "step 4: state.prompt.basis is inf" in message
    assert CheckpointStore(tmp_path / "checkpoints").steps() == [2]


def test_what_is_not_finite_is_named() -> None:
    tree = {"a": np.array([1.0, -np.inf, np.nan]), "b": [np.ones(2), np.array([np.nan], ml_dtypes.bfloat16)]}
    found = not_finite_leaves({**tree, "key": np.arange(3), "flag": np.array(True)})
    assert list(found) == ["a", "b.1"] and found["a"] == -np.inf and np.isnan(found["b.1"])
    assert not_finite({"loss": float("inf"), "step": 3, "name": "x", "kl": 0.5}) == {"loss": float("inf")}


def test_a_batch_in_bfloat16_needs_no_pickle(workspace: Workspace, tmp_path: Path) -> None:
    batch = workspace.data.batch(rows_of(workspace, 1))
    half = np.asarray(batch.inputs.features).astype(ml_dtypes.bfloat16)
    types = save_batch(tmp_path / "batch.npz", batch._replace(inputs=batch.inputs._replace(features=half)))
    assert types == {"inputs.features": "bfloat16"}
    kept = np.load(tmp_path / "batch.npz", allow_pickle=False)["inputs.features"]
    np.testing.assert_array_equal(kept.view(ml_dtypes.bfloat16), half)
    assert [path.name for path in tmp_path.iterdir()] == ["batch.npz"]
