"""Plans: what the compiled step takes, part by part, and what `fixate plan` prints."""

import gc
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest

from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.errors import CheckpointError, ConfigError
from fixate_jax.lab.cli import commands as cli
from fixate_jax.lab.config import OperatorConfig, RunConfig
from fixate_jax.lab.planning.abstract import open_abstract
from fixate_jax.lab.planning.devices import DEVICES, memory_of
from fixate_jax.lab.planning.plan import Plan, Workload, make_plan, train_parts
from fixate_jax.pipeline.kept import CacheConfig
from tests import environment
from tests.abstract_steps import settings, write_small

ROOT = Path(__file__).parents[2]
WORK = Workload(page=(320, 320), text=84, slots=4, users=5, pages=10)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_small(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def plan(model: str) -> Plan:
    gc.collect()  # What earlier tests left behind may go while the plan is made.
    before = len(jax.live_arrays())
    made = make_plan(model, settings(batch=8), WORK, device=10**9)
    assert len(jax.live_arrays()) == before, "something was allocated"
    return made


def test_every_part_is_there(plan: Plan) -> None:
    assert plan.shapes.seq == 16 + plan.shapes.visual + 84
    assert plan.device_bytes == sum(plan.parts.values()) and plan.fits
    assert plan.parts["weights"] == 4 * plan.parameters
    assert plan.cache == plan.parts["cache of pages"] == 10 * plan.shapes.visual * 3 * 512 * 4
    # At least the inputs of all ten layers are kept for the backward pass.
    assert plan.parts["temporaries"] > 8 * plan.shapes.seq * 512 * 4 * 10
    assert set(plan.flops) == {"forward", "inner gradient", "backward"}


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the compiler, which takes seconds: a step of 7 MB and 3 MB for each session of the micro-batch."""

    def lower(backbone: Any, config: RunConfig, work: Workload) -> Any:
        assert backbone.config.decoder.dtype == "float32", "compiled as a CPU would"
        size = 7_000_000 + 3_000_000 * config.train.batch
        program = SimpleNamespace(memory_analysis=lambda: SimpleNamespace(temp_size_in_bytes=size))
        return SimpleNamespace(compile=lambda compiler_options: program)

    monkeypatch.setattr("fixate_jax.lab.planning.plan.lower_step", lower)


@pytest.mark.usefixtures("stub")
def test_the_largest_batch_is_the_largest(model: str) -> None:
    plan = make_plan(model, settings(batch=8), WORK, device=10**9)
    assert plan.parts["temporaries"] == 31_000_000
    assert plan.per_session == 3_000_000 + plan.parts["batch"] / 8
    fullest, over = (make_plan(model, settings(batch=plan.largest_batch + more), WORK, device=10**9) for more in (0, 1))
    assert fullest.fits and not over.fits and over.largest_batch == plan.largest_batch
    assert replace(plan, device=10**6).largest_batch == 0


@pytest.mark.usefixtures("stub")
def test_bfloat16_takes_half(model: str) -> None:
    whole, half = (
        make_plan(model, settings(batch=8, backbone=BackboneConfig(dtype=dtype)), WORK, device=10**9)
        for dtype in ("float32", "bfloat16")
    )
    for part in ("weights", "temporaries", "cache of pages"):
        assert half.parts[part] == whole.parts[part] / 2


@pytest.mark.usefixtures("stub")
def test_cached_pages_take_work_from_the_step(plan: Plan, model: str) -> None:
    config = settings(batch=8)
    behind = replace(config, prompt=replace(config.prompt, position="after_image"), cache=CacheConfig(device_bytes=0))
    after = make_plan(model, behind, WORK, device=10**9)
    cached = 16 + plan.shapes.visual + 1
    assert after.cache == 10 * 2 * 10 * cached * 4 * 64 * 4
    assert after.tier == "host" and after.parts["cache of pages"] == 0
    assert sum(after.flops.values()) < sum(plan.flops.values()) / 2


def test_operations_of_other_operators_are_not_counted(plan: Plan, model: str) -> None:
    decoder = open_abstract(model, BackboneConfig()).config.decoder
    assert train_parts(decoder, RunConfig(operator=OperatorConfig(name="glimpse")), plan.shapes) == {}


def test_a_mesh_shares_weights_and_rows(model: str, plan: Plan) -> None:
    """In a process of its own, which simulates the devices."""
    sizes = ["--page", "320", "320", "--text", "84", "--slots", "4", "--users", "5", "--pages", "10"]
    mesh = ["--device-gb", "1", "--train.batch", "8", "--train.accumulate", "1", "--train.mesh", "2", "2", "1"]
    mesh += ["--operator.normalise", "abs"]
    command = [
        sys.executable,
        "-m",
        "fixate_jax",
        "plan",
        "--models",
        model,
        *sizes,
        *mesh,
        "--operator.normalise",
        "abs",
    ]
    done = subprocess.run(
        command, cwd=ROOT, env=environment.of_child() | {"COLUMNS": "160"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "data 2 × fsdp 2 × tensor 1 = 4 devices of 1 GB" in done.stdout
    lines = {line.split("│")[1].strip(): line.split("│")[2] for line in done.stdout.splitlines() if line.count("│") > 2}
    assert float(lines["weights"]) == pytest.approx(plan.parts["weights"] / 2e9, rel=0.02)
    assert float(lines["batch"]) == pytest.approx(plan.parts["batch"] / 4e9, abs=0.001)
    assert float(lines["temporaries"]) < plan.parts["temporaries"] / 2e9
    assert "a device" in done.stdout


def test_mistakes_are_named(model: str) -> None:
    with pytest.raises(CheckpointError, match=r"'qwen3-vl-5b' is neither a published size \(qwen3-vl-2b"):
        make_plan("qwen3-vl-5b", RunConfig(), WORK, device=1)
    with pytest.raises(ConfigError, match=r"train.mesh = \(1, 512, 1\): 512 devices are needed, and 1 are here"):
        make_plan(model, settings(batch=512, mesh=(1, 512, 1)), WORK, device=1)
    with pytest.raises(ConfigError, match="--device h100: known are a100-40gb"):
        memory_of("h100")
    with pytest.raises(ConfigError, match=r"--device-gb -1\.0: must be above 0"):
        memory_of("mine", -1.0)
    assert memory_of("mine", 12.5) == 12_500_000_000
    assert all(device.memory_gb >= 16 and device.per_host >= 1 for device in DEVICES.values())
    with pytest.raises(ConfigError, match="--users 0"):
        Workload(users=0)
    with pytest.raises(ConfigError, match="--before 200: must lie between 0 and --text 128"):
        Workload(before=200)
    with pytest.raises(ConfigError, match="--page"):
        Workload(page=(0, 10))


@pytest.mark.usefixtures("stub")
def test_the_command_compares_models(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    flags = ["--device", "mine", "--device-gb", "0.2", "--page", "320", "320"]
    assert cli.parse(["plan", "--models", model, "tiny-internvl", *flags]).run() == 1
    lines = [line.split("│") for line in capsys.readouterr().out.splitlines() if line.count("│") > 5]
    assert [line[-4].strip() for line in lines] == ["no", "yes"]
    assert cli.parse(["plan", "--models", model, *flags]).run() == 1
    assert "does not fit" in capsys.readouterr().out
