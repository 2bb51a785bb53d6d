"""Whatever befalls the newest checkpoint, the run goes on from the one before and ends the same, bit by bit."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fixate_jax.errors import CheckpointError
from fixate_jax.lab.experiments import loop
from fixate_jax.lab.experiments.loop import start_state, train
from fixate_jax.lab.experiments.workspace import Workspace
from fixate_jax.tuning.checkpoint import CheckpointStore, CheckpointWarning
from tests.faults.harness import SEED
from tests.test_checkpoint import same
from tests.tuning.test_loop import assert_same_run


@pytest.fixture(scope="module")
def stopped(workspace: Workspace, undisturbed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ended in the middle of its eleventh step of 12."""
    directory, advance = tmp_path_factory.mktemp("stopped") / "run", loop.Training.advance

    def until(self: Any) -> str:
        if self.step == 10:
            raise KeyboardInterrupt
        return advance(self)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop.Training, "advance", until)
        train(workspace, workspace.config, directory, seed=SEED)
    assert CheckpointStore(directory / "checkpoints").steps() == [8, 10]
    return directory


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def garbage(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 4)


DAMAGES = (emptied, cut, flipped, garbage, Path.unlink)
NAMES = ("meta.json", "checksums.json", "largest array file")


def damaged_copy(stopped: Path, run: Path, damage: Callable[[Path], object], name: str) -> Path:
    """The stopped run at another place, with its newest checkpoint damaged; returns that checkpoint."""
    shutil.copytree(stopped, run)
    newest = run / "checkpoints" / "step_00000010"
    files = [path for path in (newest / "state").rglob("*") if path.is_file()]
    damage(newest / name if name.endswith("json") else max(files, key=lambda path: path.stat().st_size))
    return newest


@pytest.mark.parametrize(("damage", "name"), [(emptied, NAMES[0]), (Path.unlink, NAMES[1]), (flipped, NAMES[2])])
def test_a_run_whose_newest_checkpoint_is_damaged_ends_the_same(
    workspace: Workspace, undisturbed: Path, stopped: Path, tmp_path: Path, damage: Callable[[Path], object], name: str
) -> None:
    run = tmp_path / "run"
    newest = damaged_copy(stopped, run, damage, name)
    with pytest.warns(CheckpointWarning, match=f"{newest.name} left aside"):
        train(workspace, workspace.config, run, seed=SEED)
    assert_same_run(workspace, undisturbed, run)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", NAMES)
def test_whatever_the_damage_the_checkpoint_before_is_taken(
    workspace: Workspace, stopped: Path, tmp_path: Path, damage: Callable[[Path], object], name: str
) -> None:
    newest = damaged_copy(stopped, tmp_path / "run", damage, name)
    state = start_state(workspace.config, users=len(workspace.users), width=workspace.backbone.width, seed=SEED)
    like = {"state": state, "best": state.prompt}
    with pytest.warns(CheckpointWarning, match=f"{newest.name} left aside"):
        found = CheckpointStore(newest.parent).restore(like)
    shutil.copytree(stopped, tmp_path / "before")
    shutil.rmtree(tmp_path / "before" / "checkpoints" / newest.name)
    expected = CheckpointStore(tmp_path / "before" / "checkpoints").restore(like)
    assert found is not None and expected is not None and found.step == expected.step == 8
    assert found.meta == expected.meta and same(found.state, expected.state)


def test_a_missing_log_is_named(workspace: Workspace, stopped: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    cut(run / "metrics.jsonl")
    with pytest.raises(
        CheckpointError, match=r"metrics\.jsonl: \d+ lines are left of the 11 that belong to the newest"
    ):
        train(workspace, workspace.config, run, seed=SEED)
