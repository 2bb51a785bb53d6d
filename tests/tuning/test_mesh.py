"""Sharded training: any mesh computes what one device does, and no weights are sent around whole."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from fixate_jax.backbones.sharding import batch_axes, make_mesh, rule_of
from fixate_jax.errors import ConfigError
from fixate_jax.lab.config import RunConfig, TrainConfig
from fixate_jax.lab.experiments.loop import start_state
from fixate_jax.pipeline.placement import Placement
from fixate_jax.runtime import hosts
from tests import environment
from tests.tuning.mesh_worker import MESHES

ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("mesh")
    command = [sys.executable, "-m", "tests.tuning.mesh_worker", str(folder)]
    done = subprocess.run(command, env=environment.of_child(devices=8), capture_output=True, text=True, cwd=ROOT)
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
