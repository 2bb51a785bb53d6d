"""Work elsewhere: on processes of this machine, which end with the command, and on a cluster, whose workers may die."""

import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

from fixate_jax.errors import ConfigError, DataError, FixateError
from fixate_jax.lab.studies.jobs import Workers, spread
from fixate_jax.lab.studies.run import run_study
from tests import environment
from tests.studies.notes import note
from tests.studies.small import finished_study, study, tables

ROOT = Path(__file__).parents[2]


def wait_for(condition: Callable[[], bool], *, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited for too long"
        time.sleep(0.05)


def test_processes_share_the_items(tmp_path: Path) -> None:
    list(spread(partial(note, folder=tmp_path), range(6), workers=Workers(jobs=2), out=tmp_path))
    done = dict(path.name.split("-") for path in tmp_path.glob("[0-9]*-*"))
    assert sorted(map(int, done)) == list(range(6)) and str(os.getpid()) not in done.values()
    with pytest.raises(DataError, match="item -1 is bad"):
        list(spread(partial(note, folder=tmp_path), [1, -1], workers=Workers(jobs=2), out=tmp_path))
    with pytest.raises(FixateError, match=r"a worker process died, see .*worker-\*.log.*run the same command again"):
        list(spread(partial(note, folder=tmp_path), [99, 1], workers=Workers(jobs=2), out=tmp_path))


def test_one_is_this_process(tmp_path: Path) -> None:
    assert len(list(spread(partial(note, folder=tmp_path), range(3), workers=Workers(), out=tmp_path))) == 3
    assert {path.name for path in tmp_path.iterdir()} == {f"{i}-{os.getpid()}" for i in range(3)}
    with pytest.raises(ConfigError, match="--jobs 0: at least 1 is needed"):
        Workers(jobs=0)


def test_processes_end_with_the_command_that_was_killed(tmp_path: Path) -> None:
    program = """
        import sys, time
        from pathlib import Path
        from fixate_jax.lab.studies.jobs import Workers, spread
        list(spread(time.sleep, [600, 600], workers=Workers(jobs=2), out=Path(sys.argv[1])))
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, env=environment.of_child()) as process:
        wait_for(lambda: len(list(tmp_path.glob("worker-*.log"))) == 2 or process.poll() is not None)
        assert process.poll() is None
        process.kill()
    pids = [int(path.stem.removeprefix("worker-")) for path in tmp_path.glob("worker-*.log")]
    wait_for(lambda: not any(map(alive, pids)), seconds=20)


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False


@contextmanager
def cluster(folder: Path, workers: int) -> Iterator[tuple[str, list[subprocess.Popen]]]:
    """A scheduler on loopback and its workers."""
    told = folder / "scheduler.json"
    where = ["--scheduler-file", str(told)]
    started: list[subprocess.Popen] = []

    def start(*words: str) -> None:
        command = [sys.executable, "-m", "dask", *words]
        log = (folder / f"dask-{len(started)}.log").open("w")
        started.append(subprocess.Popen(command, cwd=ROOT, env=environment.of_child(), stdout=log, stderr=log))

    try:
        start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--no-show", *where)
        wait_for(told.exists)
        for number in range(workers):
            local = ["--local-directory", str(folder / f"worker-{number}")]
            start("worker", *where, "--nthreads", "1", "--no-nanny", "--no-dashboard", *local)
        yield json.loads(told.read_text())["address"], started[1:]
    finally:
        for process in started:
            process.kill()
            process.wait()


@pytest.mark.slow
def test_a_study_on_a_cluster_survives_the_death_of_a_worker(tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    whole = finished_study(tmp_path)
    made = study(tmp_path, tmp_path / "out")
    compiled = Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
    compiled.mkdir(parents=True, exist_ok=True)
    made.out.mkdir()
    (made.out / "compiled").symlink_to(compiled.resolve())
    with cluster(tmp_path, 2) as (address, workers), ThreadPoolExecutor(1) as watching:

        def kill_half_way() -> bool:
            wait_for(lambda: any(made.out.glob("cells/**/metrics.jsonl")))
            workers[0].kill()
            return not any(made.out.glob("*.md"))

        killed = watching.submit(kill_half_way)
        run_study(made, title="T", workers=Workers(cluster=address))
        assert killed.result(), "all was done before"
    for ours, expected in zip(tables(made), tables(whole), strict=True):
        pd.testing.assert_frame_equal(ours, expected, check_exact=True)


def test_no_cluster_is_named(tmp_path: Path) -> None:
    dask = pytest.importorskip("dask")
    pytest.importorskip("distributed")

    with (
        dask.config.set({"distributed.comm.timeouts.connect": "200ms"}),
        pytest.raises(ConfigError, match=r"--cluster tcp://127.0.0.1:9: no scheduler answers there"),
    ):
        list(spread(print, [1], workers=Workers(cluster="tcp://127.0.0.1:9"), out=tmp_path))
