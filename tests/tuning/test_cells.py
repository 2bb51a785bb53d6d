"""Many runs of one table: failures surface, other settings do not mix, nothing is begun once a worker has failed."""

import multiprocessing
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from fixate_jax.config import BackboneConfig, DataConfig, RunConfig, TrainConfig
from fixate_jax.errors import ConfigError, DataError, FixateError
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


def test_other_splits_do_not_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fake_cells(monkeypatch)
    group = some_cells(tmp_path)
    cells.run_cells([group[:1]], out=tmp_path, jobs=1, title="")
    with pytest.raises(ConfigError, match=r"seed-1.parquet was measured on test, now validation is asked for"):
        cells.run_cells([[replace(cell, split="validation") for cell in group]], out=tmp_path, jobs=1, title="")


def test_no_worker_is_none(tmp_path: Path):
    with pytest.raises(ConfigError, match="--jobs 0: at least 1 is needed"), cells.pool_of_workers(0, tmp_path):
        pass


def test_more_workers_than_cores_share_them(tmp_path: Path):
    cores = len(os.sched_getaffinity(0))
    with cells.pool_of_workers(cores + 1, tmp_path) as pool:
        taken = [future.result() for future in [pool.submit(slow_affinity) for _ in range(cores + 1)]]
    assert all(len(own) == 1 for own in taken) and set().union(*taken) <= os.sched_getaffinity(0)


def slow_affinity() -> set[int]:
    time.sleep(1.0)  # So that every worker gets one.
    return os.sched_getaffinity(0)


def test_a_worker_that_dies_is_told_and_nobody_is_left(tmp_path: Path):
    before = multiprocessing.active_children()
    with (
        pytest.raises(FixateError, match=r"a worker process died, see .*worker-\*.log.*fewer --jobs need less"),
        cells.pool_of_workers(2, tmp_path) as pool,
    ):
        stubborn = pool.submit(deaf, tmp_path, 600.0)
        deadline = time.monotonic() + 60
        while not (tmp_path / "deaf").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        gone = pool.submit(os._exit, 9)
        pool.submit(abs, 0)  # A pool looks at a worker that it has just begun when something else comes.
        gone.result()
    assert stubborn.exception() is not None
    assert multiprocessing.active_children() == before


def deaf(folder: Path, seconds: float) -> None:
    """As tuning, take a polite signal for a request to come to an end some time."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (folder / "deaf").touch()
    time.sleep(seconds)


def test_what_waits_is_not_begun_after_an_interrupt(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt), cells.pool_of_workers(1, tmp_path) as pool:
        waiting = [pool.submit(note, tmp_path / str(i)) for i in range(12)]
        waiting[0].result()
        raise KeyboardInterrupt
    # One at work and one handed over already may still be done.
    assert 1 <= len(list(tmp_path.glob("[0-9]*"))) <= 4 and waiting[-1].cancelled()


def note(path: Path) -> None:
    path.touch()
    time.sleep(0.2)


def test_nothing_is_begun_once_another_worker_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = fake_cells(monkeypatch)
    monkeypatch.setattr(cells, "_stop", SimpleNamespace(is_set=lambda: len(asked) == 1))
    cells.run_group(some_cells(tmp_path), tmp_path)
    assert len(asked) == 1


def test_unknown_operators_are_named():
    with pytest.raises(ConfigError, match="operator 'nope': choose among attention, rollout"):
        cells.with_operator(RunConfig(), "nope")
