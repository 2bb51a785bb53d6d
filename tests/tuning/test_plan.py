"""Plans against XLA's own memory analysis of the compiled step, and what `fixate plan` prints.

XLA's CPU compiler works in float32 where a model is bfloat16 (it makes float32 copies of weights and activations, which
an accelerator does not), so that what is compared is in float32. Arguments that a step does not use, such as the vision
tower's weights, are no part of the compiled program.
"""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import pytest

from fixate_jax import cli, memory
from fixate_jax.backbones.published import PUBLISHED
from fixate_jax.config import BackboneConfig, CacheConfig, ObjectiveConfig, OperatorConfig, RunConfig
from fixate_jax.devices import DEVICES, USABLE, memory_of
from fixate_jax.errors import CheckpointError, ConfigError
from fixate_jax.memory import StepShape, temporaries
from fixate_jax.tuning.abstract import AbstractBackbone, open_abstract
from fixate_jax.tuning.plan import Plan, Workload, largest_batch, make_plan
from tests import environment
from tests.abstract_steps import compiled_bytes, compiled_step, settings, write_small

ROOT = Path(__file__).parents[2]
WORK = Workload(page=(320, 320), text=84, slots=4, users=5, pages=10)
H100 = memory_of("h100-80gb")


def planned(backbone: AbstractBackbone, config: RunConfig, work: Workload = WORK, **how: Any) -> Plan:
    """A plan for the CPU, which has no flash kernel."""
    return make_plan(backbone, config, work, **{"device": H100, "kernels": False, **how})


def compare(backbone: AbstractBackbone, config: RunConfig, work: Workload) -> tuple[float, float, Plan]:
    """Ours ÷ XLA's: all bytes, and temporaries alone."""
    plan = planned(backbone, config, work)
    whole, temporary = compiled_bytes(compiled_step(backbone, config, work))
    ratios = plan.step_bytes / whole, plan.temporaries.total / temporary
    print(f"\nours ÷ XLA's: all {ratios[0]:.3f}, temporaries {ratios[1]:.3f} ({temporary / whole:.0%} of all)")
    return *ratios, plan


@pytest.mark.parametrize("remat", ["dots", pytest.param("full", marks=pytest.mark.slow)])
def test_memory_is_what_a_small_step_compiles_to(tmp_path: Path, remat: Any) -> None:
    how = BackboneConfig(remat=remat)
    whole, temporary, plan = compare(open_abstract(write_small(tmp_path), how), settings(batch=16, backbone=how), WORK)
    # Close enough to miss one array a layer.
    assert abs(whole - 1) < (0.07 if remat == "dots" else 0.15)
    assert abs(temporary - 1) < 0.15
    # So that activations are what is tested.
    assert plan.temporaries.kept > (0.5 if remat == "dots" else 0.1) * plan.step_bytes


def test_so_is_a_step_behind_cached_pages(tmp_path: Path) -> None:
    config = settings(batch=16)
    config = replace(config, prompt=replace(config.prompt, position="after_image"))
    whole, temporary, plan = compare(open_abstract(write_small(tmp_path), config.backbone), config, WORK)
    assert abs(whole - 1) < 0.15 and abs(temporary - 1) < 0.15
    assert plan.page_flops > 0 and plan.shapes.page == 16 + plan.shapes.visual + 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "batch", "page"),
    [("internvl3.5-1b", 8, (448, 448)), ("internvl3.5-1b", 2, (1600, 1200)), ("qwen3-vl-4b", 4, (1100, 619))],
)
def test_memory_is_what_a_published_size_compiles_to(model: str, batch: int, page: tuple[int, int]) -> None:
    work = Workload(page=page, slots=3)
    whole, temporary, plan = compare(open_abstract(model, BackboneConfig()), settings(batch=batch), work)
    assert abs(whole - 1) < 0.15
    assert abs(temporary - 1) < 0.15
    assert plan.temporaries.total > 0.4 * plan.step_bytes


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(2, 2, 2), (1, 8, 1)])
def test_memory_is_what_a_step_on_a_mesh_compiles_to(mesh: tuple[int, int, int]) -> None:
    """On eight simulated devices, in a process of their own."""
    arguments = [sys.executable, "-m", "tests.tuning.plan_worker", "internvl3.5-1b", "16", *map(str, mesh)]
    done = subprocess.run(arguments, cwd=ROOT, env=environment.of_child(devices=8), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"\nmesh {mesh}: {found}")
    assert abs(found["whole"] - 1) < 0.15
    assert found["temporary share"] > 0.4


def test_nothing_is_allocated() -> None:
    before = len(jax.live_arrays())
    plan = planned(open_abstract("internvl3.5-38b", BackboneConfig(dtype="bfloat16")), RunConfig())
    assert plan.parameters > 38e9 and not plan.fits
    assert len(jax.live_arrays()) == before


def test_a_mesh_shares_weights_rows_and_products(tmp_path: Path) -> None:
    backbone = open_abstract(write_small(tmp_path), BackboneConfig())
    one, data, fsdp, tensor = (
        planned(backbone, settings(batch=8, mesh=mesh)) for mesh in ((1, 1, 1), (4, 1, 1), (1, 4, 1), (1, 1, 4))
    )
    weights = {name: plan.arguments["decoder weights"] for name, plan in (("1", one), ("d", data), ("f", fsdp))}
    assert weights["d"] == weights["1"]
    assert weights["f"] == pytest.approx(weights["1"] / 4, rel=0.01)
    assert data.temporaries.kept == fsdp.temporaries.kept == one.temporaries.kept // 4
    assert data.temporaries.gathered == 0 < fsdp.temporaries.gathered < weights["1"]
    # The residual stream is whole on each device, products with weights are cut.
    assert one.temporaries.kept / 4 < tensor.temporaries.kept < one.temporaries.kept / 2
    assert one.flops == data.flops == fsdp.flops == tensor.flops


def test_every_part_counts(tmp_path: Path) -> None:
    backbone, config = open_abstract(write_small(tmp_path), BackboneConfig()), settings(batch=8)
    plan = planned(backbone, config)
    assert plan.device_bytes == (
        sum(plan.arguments.values()) + sum(plan.idle.values()) + sum(vars(plan.temporaries).values())
    )
    assert plan.cache == 10 * plan.shapes.visual * 3 * 512 * 4 and plan.tier == "device"
    assert plan.idle["cache of pages"] == plan.cache
    small = planned(backbone, replace(config, cache=CacheConfig(device_bytes=0)))
    assert small.tier == "host" and small.idle["cache of pages"] == 0
    behind = planned(backbone, replace(config, prompt=replace(config.prompt, position="after_image")))
    cached = 16 + plan.shapes.visual + 1
    assert behind.cache == 10 * 2 * 10 * cached * 4 * 64 * 4
    assert behind.temporaries.kept == plan.temporaries.kept * (plan.shapes.seq - cached + 1) // (plan.shapes.seq + 1)
    assert sum(behind.flops.values()) < sum(plan.flops.values()) / 2


def test_kernels_hold_no_scores() -> None:
    decoder = open_abstract("internvl3.5-1b", BackboneConfig()).config.decoder
    shape = StepShape(rows=2, seq=912)
    blocks, kernel = (temporaries(decoder, replace(shape, flash=flash)).working for flash in (False, True))
    pairs = 256 * (256 + 512 + 768) + 144 * 912
    assert blocks - kernel == 4 * memory.SCORE_ARRAYS * 2 * 16 * pairs


def test_a_kernel_is_counted_on_where_there_is_one(tmp_path: Path) -> None:
    half = open_abstract("internvl3.5-1b", BackboneConfig(dtype="bfloat16"))
    auto, blocked = (RunConfig(backbone=BackboneConfig(attention=how)) for how in ("auto", "blocked"))
    working = [make_plan(half, config, WORK, device=H100).temporaries.working for config in (auto, blocked)]
    assert working[0] < working[1] == planned(half, auto).temporaries.working


@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 2, 1)])
def test_the_largest_batch_is_the_largest(mesh: tuple[int, int, int]) -> None:
    backbone, share = open_abstract("internvl3.5-2b", BackboneConfig(dtype="bfloat16")), mesh[0] * mesh[1]
    config, l4 = settings(batch=share, mesh=mesh), memory_of("l4")
    most = largest_batch(backbone, config, WORK, device=l4)
    assert most > 0 and most % share == 0

    def with_batch(rows: int) -> Plan:
        return make_plan(backbone, settings(batch=rows, mesh=mesh), WORK, device=l4)

    assert with_batch(most).fits
    assert not with_batch(most + share).fits
    assert with_batch(most).device_bytes > 0.8 * USABLE * l4
    assert largest_batch(backbone, config, WORK, device=10**9) == 0


def test_an_operator_that_is_not_planned_is_named(tmp_path: Path) -> None:
    backbone = open_abstract(write_small(tmp_path), BackboneConfig())
    with pytest.raises(ConfigError, match=r"operator.name = 'glimpse': its step is not planned; planned are attn_lrp"):
        planned(backbone, RunConfig(operator=OperatorConfig(name="glimpse")))


def test_what_is_kept_without_recomputation_is_not_planned(tmp_path: Path) -> None:
    backbone = open_abstract(write_small(tmp_path), BackboneConfig(remat="none"))
    with pytest.raises(ConfigError, match="its memory is not planned"):
        planned(backbone, RunConfig())


def test_plain_tuning_plans_with_any_operator(tmp_path: Path) -> None:
    backbone = open_abstract(write_small(tmp_path), BackboneConfig())
    plain = RunConfig(operator=OperatorConfig(name="glimpse"), objective=ObjectiveConfig(alignment="none"))
    assert planned(backbone, plain).flops["inner gradient"] == 0


def test_all_answers_of_several_tokens_have_tails_where_the_models_own_counts(tmp_path: Path) -> None:
    backbone, work = open_abstract(write_small(tmp_path), BackboneConfig()), replace(WORK, answer=3)
    click, own = (
        planned(backbone, RunConfig(objective=ObjectiveConfig(relevance=how)), work).temporaries.logits
        for how in ("click", "own")
    )
    assert own == WORK.slots * click


def test_unknown_models_and_devices_are_named() -> None:
    with pytest.raises(CheckpointError, match=r"'qwen3-vl-5b' is neither a published size \(qwen3-vl-2b"):
        open_abstract("qwen3-vl-5b", BackboneConfig())
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


def run(*arguments: str) -> int:
    status: int = cli.parse(["plan", *arguments]).run()
    return status


def test_the_command_prints_a_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    flags = ("--backbone.dtype", "bfloat16", "--train.mesh", "1", "4", "1")
    assert run("--models", "qwen3-vl-4b", *flags) == 0
    shown = capsys.readouterr().out
    assert "qwen3-vl-4b, 4.438 billion parameters" in shown
    assert "data 1 × fsdp 4 × tensor 1 = 4 devices of 80 GB" in shown
    assert "790 positions = 16 soft tokens + 646 page tokens + 128 of the chat" in shown
    lines = {line.split("│")[1].strip(): line.split("│")[2:-1] for line in shown.splitlines() if line.count("│") > 2}
    assert float(lines["decoder weights"][0]) == pytest.approx(2 * 4.022 / 4, rel=0.01)
    parts = [float(lines[name][0]) for name in ("forward", "inner gradient", "backward")]
    assert math.isclose(sum(parts), 93.899 * 1, rel_tol=0.05)
    assert run("--models", write_small(tmp_path), "--device", "mine", "--device-gb", "0.01") == 1
    assert "does not fit" in capsys.readouterr().out


def test_the_command_compares_models(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert run("--models", "all", "--backbone.dtype", "bfloat16", "--device", "a100-80gb") == 1
    lines = [line.split("│") for line in capsys.readouterr().out.splitlines() if line.count("│") > 5]
    assert [line[1].strip() for line in lines] == list(PUBLISHED)
    fits = {line[1].strip(): line[8].strip() for line in lines}
    assert fits["qwen3-vl-8b"] == "yes" and fits["internvl3.5-38b"] == fits["qwen3-vl-32b"] == "no"
