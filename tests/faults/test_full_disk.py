"""No space on the disk, at every write in turn: one error that names the file, nothing lost, and the run goes on."""

import builtins
import errno
import io
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import pandas as pd
import pyarrow.parquet as pq
import pytest
from matplotlib.figure import Figure

from fixate_jax.errors import CheckpointError, DiskError
from fixate_jax.lab.cli import commands as cli
from fixate_jax.lab.experiments import experiment
from fixate_jax.lab.experiments.experiment import evaluate_run, seed_directory
from fixate_jax.lab.experiments.log import MetricsLog
from fixate_jax.lab.experiments.loop import train
from fixate_jax.lab.experiments.workspace import Workspace
from fixate_jax.lab.report.figures import save_figure
from fixate_jax.pipeline.features import FeatureStore
from fixate_jax.pipeline.kept import CacheConfig
from fixate_jax.runtime import durable
from fixate_jax.tuning.checkpoint import CheckpointWarning
from tests.data.test_store import contents, write
from tests.faults.harness import SEED, Place, assert_same
from tests.faults.test_kills import POINTS
from tests.tuning.test_loop import assert_same_run

OPEN = io.open
assert OPEN is builtins.open


class Disk:
    """Has no space left from its n-th write on."""

    def __init__(self, at: int) -> None:
        self.at, self.writes = at, 0

    @property
    def was_full(self) -> bool:
        return self.writes >= self.at

    def wrap(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """A function that writes, which fails when the disk is full."""

        def guarded(*args: Any, **rest: Any) -> Any:
            if call is not OPEN or set("wax+") & set(str(rest.get("mode", [*args, "r"][1]))):
                self.writes += 1
                if self.was_full:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return call(*args, **rest)

        return guarded

    @contextmanager
    def filling(self) -> Iterator["Disk"]:
        """While active, this is the disk."""
        places = [(builtins, "open"), (io, "open"), (os, "replace"), (os, "rename"), (os, "mkdir")]
        places += [
            (os, "posix_fallocate"),
            (pd.DataFrame, "to_parquet"),
            (pq, "write_table"),
            (ocp.Checkpointer, "save"),
        ]
        with pytest.MonkeyPatch.context() as patch:
            for owner, name in places:
                patch.setattr(owner, name, self.wrap(getattr(owner, name)))
            yield self


def until_it_fits(work: Callable[[], object], check: Callable[[str], object]) -> int:
    """Do something on a disk that is full at the first write, then at the second …; returns how often it failed."""
    for at in range(1, 200):
        try:
            with Disk(at).filling() as disk:
                work()
        except (DiskError, CheckpointError) as error:
            assert disk.was_full
            assert "No space left on device; free some space and run the same command again" in str(error)
            check(str(error))
        else:
            assert not disk.was_full
            return at - 1
    raise AssertionError("it never fits")


def remembered(function: Callable[..., pd.DataFrame]) -> Callable[..., pd.DataFrame]:
    """A function that is called once for each text among its arguments."""
    known: dict[tuple[str, ...], pd.DataFrame] = {}

    def call(*args: Any, **rest: Any) -> pd.DataFrame:
        key = tuple(value for value in args if isinstance(value, str))
        if key not in known:
            known[key] = function(*args, **rest)
        return known[key].copy()

    return call


def no_remains(directory: Path) -> None:
    """Nothing half-written is left."""
    assert [path for path in directory.rglob("*") if "unfinished" in path.name] == []


def test_a_store(tmp_path: Path) -> None:
    def check(message: str) -> None:
        assert message.startswith(f"{tmp_path / 'store'}: could not be written")
        assert list(tmp_path.iterdir()) == []

    assert until_it_fits(lambda: write(tmp_path / "store"), check) >= 6
    write(tmp_path / "again")
    assert contents(tmp_path / "store") == contents(tmp_path / "again")


@pytest.mark.filterwarnings(f"ignore::{CheckpointWarning.__module__}.{CheckpointWarning.__name__}")
def test_tuning(workspace: Workspace, undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"

    def check(message: str) -> None:
        assert str(run) in message
        no_remains(tmp_path)

    work = lambda: train(workspace, workspace.config, run, seed=SEED)  # noqa: E731
    assert until_it_fits(work, check) >= 10
    assert_same_run(workspace, undisturbed, run)


def test_evaluation(workspace: Workspace, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What is computed is computed once: this is about what is written.
    for name in ("predict", "predict_without_model", "comparison_table"):
        monkeypatch.setattr(experiment, name, remembered(getattr(experiment, name)))
    for name in ("training_curves", "user_improvement"):
        monkeypatch.setattr(experiment, name, lambda path, *_, **__: save_figure(Figure(figsize=(1, 1)), path))
    run, whole = tmp_path / "run", tmp_path / "whole"
    for place in (run, whole):
        shutil.copytree(undisturbed, seed_directory(place, SEED))
    evaluate_run(workspace, whole)
    before: dict[str, bytes] = {}

    def check(message: str) -> None:
        nonlocal before
        assert str(run) in message
        no_remains(run)
        now = contents(run)
        assert before.items() <= now.items(), "what was there stays as it was"
        before = now

    assert until_it_fits(lambda: evaluate_run(workspace, run), check) >= 14
    mine, theirs = contents(run), contents(whole)
    assert mine == theirs


def test_page_features(workspace: Workspace, tmp_path: Path) -> None:
    """The file is memory-mapped: without space of its own, the process would die at a page that has none."""
    arguments: dict[str, Any] = {
        "backbone": workspace.backbone,
        "images": workspace.store.image,
        "page_ids": [s.page_id for s in workspace.sessions("test")],
        "cache": replace(CacheConfig(), device_bytes=0, host_bytes=0),
        "directory": tmp_path,
        "batch": workspace.config.train.eval_batch,
    }
    with (
        file_limit(4096),
        pytest.raises(DiskError, match=r"features-\w+\.npy: could not be written: File too large; free"),
    ):
        FeatureStore(**arguments)
    assert list(tmp_path.iterdir()) == []
    with Disk(2).filling(), pytest.raises(DiskError, match=r"features-\w+\.npy: could not be written: No space"):
        FeatureStore(**arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_mapped_file_has_its_space(tmp_path: Path) -> None:
    mapped = durable.mapped_array(tmp_path / "a.npy", np.dtype("float32"), (1000, 1000))
    assert (tmp_path / "a.npy").stat().st_blocks * 512 >= 4_000_000
    mapped[:] = 1
    mapped.flush()
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(os, "posix_fallocate")
        durable.mapped_array(tmp_path / "b.npy", np.dtype("float32"), (1000, 1000))[:] = 1
    assert (tmp_path / "b.npy").stat().st_blocks * 512 >= 4_000_000
    assert (tmp_path / "b.npy").read_bytes() == (tmp_path / "a.npy").read_bytes()


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    """No file may become larger."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_half_a_line_of_the_log(tmp_path: Path) -> None:
    """What reached the disk of the lines after the last checkpoint is dropped by the run that goes on."""
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.add({"step": 1, "loss": 0.5})
    log.flush()
    log.add({"step": 2, "loss": 0.25})
    with file_limit(40), pytest.raises(DiskError, match=r"metrics\.jsonl: could not be written: File too large; free"):
        log.flush()
    assert (tmp_path / "metrics.jsonl").stat().st_size == 40
    again = MetricsLog(tmp_path / "metrics.jsonl", keep_lines=1)
    again.add({"step": 2, "loss": 0.25})
    assert again.frame()["loss"].tolist() == [0.5, 0.25]


def test_any_other_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever has no place of its own for it, such as a temporary folder, still gets one clear error."""

    def full(self: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/tmp/somewhere")

    monkeypatch.setattr(cli.Read, "run", full)
    with pytest.raises(SystemExit, match="2"):
        cli.main(["read"])
    assert "error: /tmp/somewhere: No space left on device; free some space and run" in capsys.readouterr().err


@pytest.mark.skipif(POINTS == 0, reason="make test-faults")
def test_the_command_on_a_small_disk_that_grows(tmp_path: Path) -> None:
    """A real file system of 200 kB, then twice as much …, until everything fits."""
    whole, mounted = Place(tmp_path / "undisturbed"), tmp_path / "mounted"
    whole.finish()
    mounted.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", mounted], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        place, size = Place(mounted / "run", log=tmp_path / "messages.txt"), 200
        while (status := place.start().wait(timeout=600)) != 0:
            place.history.append(f"{size} kB: exit status {status}")
            assert status == 2 and size < 2**15, f"{place.history}\n{place.messages()}"
            last = next(line for line in reversed(place.messages().splitlines()) if line.startswith("error: "))
            assert "No space left on device; free some space and run the same command again" in last
            place.history[-1] += f", {last}"
            no_remains(mounted)
            size *= 2
            subprocess.run(["mount", "-o", f"remount,size={size}k", mounted], check=True)
        print(place.history)
        assert len(place.history) >= 3
        assert_same(place, whole)
    finally:
        subprocess.run(["umount", mounted], check=True)
