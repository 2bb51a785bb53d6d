"""Sharded training: any mesh computes what one device does, no weights are sent around whole, processes are one."""

import json
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
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from fixate_jax import hosts
from fixate_jax.backbones.sharding import batch_axes, make_mesh, rule_of
from fixate_jax.config import OperatorConfig, RunConfig, TrainConfig
from fixate_jax.errors import ConfigError
from fixate_jax.settings import dump_config
from fixate_jax.tuning.checkpoint import CheckpointStore
from fixate_jax.tuning.experiment import seed_directory
from fixate_jax.tuning.loop import start_state
from fixate_jax.tuning.placement import Placement
from tests import environment
from tests.tuning.mesh_worker import MESHES
from tests.tuning.test_loop import SEED, settings

ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-5


# A device that waits for another one occupies a thread of XLA's; with fewer threads than waits, all wait for ever.
THREADS = {"NPROC": "32"}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("mesh")
    command = [sys.executable, "-m", "tests.tuning.mesh_worker", str(folder)]
    done = subprocess.run(
        command, env=environment.of_child(devices=8, **THREADS), capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found["devices"] == 8
    return found


@pytest.mark.parametrize("family", ["qwen3_vl", "internvl"])
def test_loss_and_gradients_on_any_mesh_are_those_of_one_device(report: dict[str, Any], family: str) -> None:
    differences = report[family]
    assert set(differences) == {str(shape) for shape in MESHES[family]}
    for shape, found in differences.items():
        print(f"\n{family} {shape}: " + ", ".join(f"{name} {value:.1e}" for name, value in found.items()))
        assert max(found.values()) <= TOLERANCE, (shape, found)


def test_no_stack_of_layers_is_gathered(report: dict[str, Any]) -> None:
    """With all matrices cut along fsdp, layers are sent around one by one, embedding and head not at all."""
    found = report["fsdp"]
    assert max(found["differences"].values()) <= TOLERANCE
    assert found["gathered"] == []
    careless = found["careless"]
    assert any("lower" in path for path in careless) and any("upper" in path for path in careless), careless
    assert any("embed" in path for path in careless), careless


def test_a_device_holds_its_part_of_the_weights(report: dict[str, Any]) -> None:
    found = report["fsdp"]
    assert found["share"] == pytest.approx(1 / 8)
    assert found["copied"] < 0.1 * found["bytes"]
    whole, part, prompt_is_copied = found["moment"]
    assert part * 8 == whole and prompt_is_copied


def test_evaluation_on_a_mesh_is_that_of_one_device(report: dict[str, Any]) -> None:
    found = report["evaluation"]
    assert found.pop("answer") == 0
    assert max(found.values()) <= 10 * TOLERANCE, found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(preset: Path, run: Path, *, processes: int) -> list[subprocess.Popen[str]]:
    """`fixate train` on eight devices of so many processes, with logs beside the run."""
    command = [sys.executable, "-m", "fixate_jax.cli", "train", str(preset), "--run", str(run)]
    address = f"127.0.0.1:{free_port()}"
    started = []
    for process in range(processes):
        numbers = {hosts.COORDINATOR: address, hosts.PROCESSES: str(processes), hosts.PROCESS: str(process)}
        env = environment.of_child(devices=8 // processes, **THREADS, **(numbers if processes > 1 else {}))
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
    """2 processes × 4 devices on loopback, the second of which gets a SIGTERM, beside 1 process × 8 devices."""
    config = settings(tmp_path / "store")
    config = replace(
        config, operator=OperatorConfig(name="attention"), train=replace(config.train, epochs=1, mesh=(2, 2, 2))
    )
    preset = tmp_path / "preset.yaml"
    preset.write_text(dump_config(config))
    one, two = tmp_path / "one", tmp_path / "two"
    assert finish(one, start(preset, one, processes=1)) == [0]
    started = start(preset, two, processes=2)
    checkpoints = CheckpointStore(seed_directory(two, SEED) / "checkpoints")
    deadline = time.monotonic() + 400
    while not checkpoints.steps() and all(p.poll() is None for p in started) and time.monotonic() < deadline:
        time.sleep(0.01)
    started[1].send_signal(signal.SIGTERM)
    assert finish(two, started) == [130, 130]
    assert final_prompt(config, two).step < final_prompt(config, one).step
    assert finish(two, start(preset, two, processes=2)) == [0, 0]
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


def test_meshes_that_cannot_be_used_are_refused() -> None:
    for mesh, message in (((0, 1, 1), "at least 1 along each axis"), ((2, 4, 1), "multiples of data × fsdp = 8")):
        with pytest.raises(ConfigError, match=rf"train\.mesh = .*{message}"):
            TrainConfig(mesh=mesh)
    assert TrainConfig(mesh=(1, 1, 8)).batch == 4


def test_where_there_is_one_process_nothing_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_NTASKS", raising=False)
    assert not hosts.wanted() and hosts.first() and hosts.anywhere(True) and not hosts.anywhere(False)
    hosts.barrier()
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert not hosts.wanted(), "an allocation without a step"
    monkeypatch.setenv("SLURM_STEP_NODELIST", "node[1-2]")
    assert hosts.wanted()
    monkeypatch.delenv("SLURM_STEP_NODELIST")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "host-0")
    assert not hosts.wanted()
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "host-0,host-1")
    assert hosts.wanted()


def test_processes_that_are_not_there_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_STEP_NODELIST", "TPU_WORKER_HOSTNAMES", hosts.COORDINATOR):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match=f"no other processes found .*set {hosts.COORDINATOR}"):
        hosts.start(distributed=True)


def test_small_states_are_copied_and_rows_are_shared() -> None:
    placement = Placement(make_mesh((1, 1, 1)), None)
    state = start_state(RunConfig(), users=3, width=16, seed=0)
    assert all(place.spec == PartitionSpec() for place in jax.tree.leaves(placement.with_state(state).state))
    assert placement.own_rows(5) == [0, 1, 2, 3, 4]
    mesh = AbstractMesh((2, 2, 2), ("data", "fsdp", "tensor"))
    assert batch_axes(mesh, 8) == ("data", "fsdp") and batch_axes(mesh, 6) is None
    assert rule_of("decoder.lower.q_proj.kernel") == ("fsdp", "tensor")
    assert rule_of("vision.layers.proj.kernel") == ("tensor", "fsdp")
    assert rule_of("decoder.norm.scale") == rule_of("decoder.lower.q_proj.bias") == (None, None)
