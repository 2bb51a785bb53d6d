"""Many runs of one table: failures surface, other settings do not mix."""

from dataclasses import replace
from pathlib import Path

import pytest

from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.data.options import DataConfig
from fixate_jax.errors import ConfigError, DataError
from fixate_jax.lab.config import RunConfig, TrainConfig
from fixate_jax.lab.experiments import cells
from fixate_jax.lab.experiments.experiment import CONFIG_FILE, absolute_paths
from fixate_jax.lab.settings import load_config
from fixate_jax.lab.studies.jobs import Workers
from tests.cells import fake_cells


def some_cells(tmp_path: Path, signal: str = "fixation", **changes) -> list[cells.Cell]:
    config = RunConfig(
        data=DataConfig(name="synthetic_choice", max_users=2, store=tmp_path / "store", signal=signal),
        backbone=BackboneConfig(path="tiny-qwen3-vl"),
        train=TrainConfig(seeds=(1, 2), **changes),
    )
    return [cells.Cell(folder=tmp_path / "run", config=absolute_paths(config), seed=seed) for seed in (1, 2)]


def test_a_failure_surfaces(tmp_path: Path):
    with pytest.raises(DataError, match=r"data.signal = 'cursor': session .* has only fixation"):
        cells.run_cells([some_cells(tmp_path, signal="cursor")], out=tmp_path, workers=Workers(), title="Cells")


def test_other_settings_do_not_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = fake_cells(monkeypatch)
    group = some_cells(tmp_path)
    cells.run_cells([group], out=tmp_path, workers=Workers(), title="")
    cells.run_cells([group], out=tmp_path, workers=Workers(), title="")
    assert [seed for _, seed, _ in asked] == [1, 2]
    assert load_config(tmp_path / "run" / CONFIG_FILE) == group[0].config
    with pytest.raises(ConfigError, match=r"run was made with other settings \(train.epochs: 30 there, 9 now"):
        cells.run_cells([some_cells(tmp_path, epochs=9)], out=tmp_path, workers=Workers(), title="")


def test_measures_are_against_each_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fake_cells(monkeypatch)
    cell = replace(some_cells(tmp_path)[0], also=("fixation", "cursor"))
    cells.run_cells([[cell]], out=tmp_path, workers=Workers(), title="")
    own, other = cells.read_cells([cell]), cells.read_cells([cell], signal="cursor")
    # The stand-in for the metrics writes down the gaze that it was given: the length of the signal's name.
    assert set(own.loc[own["method"] == cells.FIXATE, "js"]) == {len("fixation")}
    assert set(other["js"]) == {len("cursor")} and cells.SWAPPED not in set(other["method"])
    assert cells.SWAPPED in set(own["method"])


def test_other_splits_do_not_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fake_cells(monkeypatch)
    group = some_cells(tmp_path)
    cells.run_cells([group[:1]], out=tmp_path, workers=Workers(), title="")
    with pytest.raises(ConfigError, match=r"seed-1.parquet was measured on test, now validation is asked for"):
        cells.run_cells(
            [[replace(cell, split="validation") for cell in group]], out=tmp_path, workers=Workers(), title=""
        )


def test_unknown_operators_are_named():
    with pytest.raises(ConfigError, match="operator 'nope': choose among attention, rollout"):
        cells.with_operator(RunConfig(), "nope")
