"""Sharded training on two processes: stopped and resumed, they end as one process does."""

import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd

from fixate_jax.lab.config import RunConfig
from fixate_jax.lab.experiments.experiment import run_experiment, seed_directory
from fixate_jax.lab.experiments.loop import start_state
from fixate_jax.lab.settings import dump_config
from fixate_jax.runtime import hosts
from fixate_jax.tuning.checkpoint import CheckpointStore
from tests import environment
from tests.tuning.test_loop import SEED, settings

ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-5


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(preset: Path, run: Path) -> list[subprocess.Popen[str]]:
    """`fixate train` on two processes with two devices each, their logs next to the run."""
    command = [sys.executable, "-m", "fixate_jax", "train", str(preset), "--run", str(run)]
    address = f"127.0.0.1:{free_port()}"
    started = []
    for process in range(2):
        numbers = {hosts.COORDINATOR: address, hosts.PROCESSES: "2", hosts.PROCESS: str(process)}
        env = environment.of_child(devices=2, **numbers)
        log = run.with_name(f"{run.name}-{process}.log").open("w")
        started.append(subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=run.parent, text=True))
    return started


def finish(run: Path, started: list[subprocess.Popen[str]]) -> list[int]:
    try:
        codes = [process.wait(timeout=500) for process in started]
    finally:
        for process in started:
            process.kill()
    for i, code in enumerate(codes):
        if code not in (0, 130):
            print(run.with_name(f"{run.name}-{i}.log").read_text()[-3000:])
    return codes


def final_prompt(config: RunConfig, run: Path) -> Any:
    like = start_state(config, users=2, width=128, seed=SEED)
    restored = CheckpointStore(seed_directory(run, SEED) / "checkpoints").restore({"state": like, "best": like.prompt})
    assert restored is not None
    return restored


def test_two_processes_that_are_stopped_and_go_on_end_like_one(tmp_path: Path) -> None:
    """2 processes × 2 devices on loopback, the second of which gets a SIGTERM, next to this process on one device."""
    config = settings(tmp_path / "store")
    config = replace(config, train=replace(config.train, pictures=0, report_sessions=0))
    one, two = tmp_path / "one", tmp_path / "two"
    run_experiment(config, one)
    preset = tmp_path / "preset.yaml"
    preset.write_text(dump_config(replace(config, train=replace(config.train, mesh=(2, 2, 1)))))
    started = start(preset, two)
    checkpoints = CheckpointStore(seed_directory(two, SEED) / "checkpoints")
    deadline = time.monotonic() + 400
    while not checkpoints.steps() and all(p.poll() is None for p in started) and time.monotonic() < deadline:
        time.sleep(0.01)
    started[1].send_signal(signal.SIGTERM)
    assert finish(two, started) == [130, 130]
    assert final_prompt(config, two).step < final_prompt(config, one).step
    assert finish(two, start(preset, two)) == [0, 0]
    assert {p.name for p in two.iterdir()} == {p.name for p in one.iterdir()}
    a, b = final_prompt(config, one), final_prompt(config, two)
    assert a.step == b.step and a.meta["best_epoch"] == b.meta["best_epoch"]
    same = all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a.state), jax.tree.leaves(b.state), strict=True))
    largest = max(
        float(np.abs(x - y).max()) for x, y in zip(jax.tree.leaves(a.state), jax.tree.leaves(b.state), strict=True)
    )
    logs = [pd.read_json(seed_directory(run, SEED) / "metrics.jsonl", lines=True) for run in (one, two)]
    loss = (logs[0] - logs[1]).abs().max()["loss"]
    print(f"\nsame bits: {same}; largest difference of the state {largest:.1e}, of the losses {loss:.1e}")
    pd.testing.assert_frame_equal(*logs, rtol=TOLERANCE, atol=1e-6)
    assert largest <= 1e-5
    tables = [pd.read_csv(run / "results-test.csv") for run in (one, two)]
    pd.testing.assert_frame_equal(*tables, rtol=1e-4, atol=1e-6)
