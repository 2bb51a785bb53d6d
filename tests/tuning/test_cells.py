"""Many runs of one table: failures surface, other settings do not mix, nothing is begun once a worker has failed."""

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from fixate_jax.config import BackboneConfig, DataConfig, RunConfig, TrainConfig
from fixate_jax.errors import ConfigError, DataError
from fixate_jax.settings import load_config
from fixate_jax.tuning import cells
from fixate_jax.tuning.experiment import CONFIG_FILE, absolute_paths
from tests.cells import fake_cells


def some_cells(tmp_path: Path, signal: str = "fixation", **changes) -> list[cells.Cell]:
    config = RunConfig(
        data=DataConfig(name="synthetic_choice", max_users=2, store=tmp_path / "store", signal=signal),
        backbone=BackboneConfig(path="tiny-qwen3-vl"),
        train=TrainConfig(seeds=(1, 2), **changes),
    )
    return [cells.Cell(folder=tmp_path / "run", config=absolute_paths(config), seed=seed) for seed in (1, 2)]


def test_the_failure_of_a_worker_surfaces(tmp_path: Path):
    with pytest.raises(DataError, match=r"data.signal = 'cursor': session .* has only fixation"):
        cells.run_cells([some_cells(tmp_path, signal="cursor")], out=tmp_path, jobs=1, title="Cells")
    assert list(tmp_path.glob("worker-*.log"))


def test_other_settings_do_not_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = fake_cells(monkeypatch)
    group = some_cells(tmp_path)
    cells.run_cells([group], out=tmp_path, jobs=1, title="")
    cells.run_cells([group], out=tmp_path, jobs=1, title="")
    assert [seed for _, seed, _ in asked] == [1, 2]
    assert load_config(tmp_path / "run" / CONFIG_FILE) == group[0].config
    with pytest.raises(ConfigError, match=r"run was made with other settings \(train.epochs: 30 there, 9 now"):
        cells.run_cells([some_cells(tmp_path, epochs=9)], out=tmp_path, jobs=1, title="")


def test_measures_are_against_each_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fake_cells(monkeypatch)
    cell = replace(some_cells(tmp_path)[0], also=("fixation", "cursor"))
    cells.run_cells([[cell]], out=tmp_path, jobs=1, title="")
    own, other = cells.read_cells([cell]), cells.read_cells([cell], signal="cursor")
    # The stand-in for the metrics writes down the gaze that it was given: the length of the signal's name.
    assert set(own.loc[own["method"] == cells.FIXATE, "js"]) == {len("fixation")}
    assert set(other["js"]) == {len("cursor")} and cells.SWAPPED not in set(other["method"])
    assert cells.SWAPPED in set(own["method"])


def test_nothing_is_begun_once_another_worker_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = fake_cells(monkeypatch)
    monkeypatch.setattr(cells, "_stop", SimpleNamespace(is_set=lambda: len(asked) == 1))
    cells.run_group(some_cells(tmp_path), tmp_path)
    assert len(asked) == 1


def test_unknown_operators_are_named():
    with pytest.raises(ConfigError, match="operator 'nope': choose among attention, rollout"):
        cells.with_operator(RunConfig(), "nope")


def with_seeds(config: RunConfig, *seeds: int) -> RunConfig:
    return replace(config, train=replace(config.train, seeds=seeds))


@pytest.mark.parametrize(("wanted", "possible", "sets"), [(True, True, [[1, 2]]), (True, False, []), (False, True, [])])
def test_seeds_go_together_where_wanted_and_possible(
    wanted: bool, possible: bool, sets: list[list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """They are tuned side by side first; what each cell does afterwards finds them finished."""
    asked, tuned = fake_cells(monkeypatch), list[list[int]]()

    def train_seeds(workspace, config, directories):
        assert not asked and config == group[0].config
        assert list(directories.values()) == [cells.seed_directory(cell.folder, cell.seed) for cell in group]
        tuned.append(list(directories))
        time.sleep(0.4)

    monkeypatch.setattr(cells, "train_seeds", train_seeds)
    monkeypatch.setattr(cells, "can_go_together", lambda workspace: possible)
    group = [
        replace(cell, folder=tmp_path / str(cell.seed), config=with_seeds(cell.config, cell.seed))
        for cell in some_cells(tmp_path)
    ]
    cells.run_group(group, tmp_path, wanted)
    assert tuned == sets and [seed for _, seed, _ in asked] == [1, 2]
    assert (cells.seconds_of(group) >= 0.4) == bool(sets), "each seed has its share of the time"
    cells.run_group(group, tmp_path, wanted)
    assert tuned == sets and len(asked) == 2


def test_a_cell_without_company_is_tuned_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One that is left over, other settings, and prompts that are each person's own."""
    asked = fake_cells(monkeypatch)
    monkeypatch.setattr(cells, "train_seeds", lambda *args: pytest.fail("nobody is there to go with"))
    monkeypatch.setattr(cells, "can_go_together", lambda workspace: True)
    first, second = some_cells(tmp_path)
    cells.run_group([first], tmp_path, True)
    cells.run_group([first, second], tmp_path, True)
    other = replace(second.config, train=replace(second.config.train, epochs=9))
    group = [replace(first, folder=tmp_path / "a"), replace(second, folder=tmp_path / "b", config=other)]
    cells.run_group(group, tmp_path, True)
    alone = [replace(cell, folder=tmp_path / "alone", alone=True) for cell in (first, second)]
    cells.run_group(alone, tmp_path, True)
    assert [seed for _, seed, _ in asked] == [1, 2, 1, 2, 1, 2]
