"""A run with the prompt behind the page, from tuning to probing, and how often it compiles."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from fixate_jax.data.registry import open_or_prepare
from fixate_jax.lab.cli import commands as cli
from fixate_jax.lab.config import RunConfig
from fixate_jax.lab.experiments.experiment import open_run, run_experiment
from fixate_jax.lab.experiments.workspace import open_workspace
from fixate_jax.pipeline.kept import CacheConfig
from fixate_jax.pipeline.page_keys import NOWHERE
from tests.tuning.test_loop import settings


def behind(config: RunConfig) -> RunConfig:
    train = replace(config.train, epochs=1, pictures=1)
    return replace(config, prompt=replace(config.prompt, position="after_image"), train=train)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run") / "run"
    run_experiment(behind(settings(directory.parent / "store")), directory)
    return directory


def test_it_trains_evaluates_and_compiles_once_a_bucket(run: Path) -> None:
    config, workspace = open_run(run)
    assert config.prompt.position == "after_image" and workspace.data.page_keys is not None
    assert workspace.features.tier == "step", "features are not kept beside keys"
    buckets, counted = len(workspace.data.buckets), json.loads((run / "run.json").read_text())["compilations"]
    assert counted == {f"step, seed {config.train.seeds[0]}": buckets, "evaluation": buckets}
    results = pd.read_csv(run / "results-test.csv")
    assert {"backbone", "fixate"} <= set(results["method"])


@pytest.mark.parametrize("operator", ["attention", "rollout"])
def test_its_prompts_are_probed(run: Path, operator: str, tmp_path: Path) -> None:
    out = tmp_path / "probe.png"
    assert cli.parse(["probe", str(run), "--operator", operator, "--out", str(out)]).run() == 0
    assert out.stat().st_size > 0


def test_its_operators_are_compared(run: Path, tmp_path: Path) -> None:
    arguments = ["faithfulness", str(run), "--operators", "attention", "rollout", "--sessions", "2", "--draws", "1"]
    assert cli.parse([*arguments, "--out", str(tmp_path / "out")]).run() == 0
    table = pd.read_csv(tmp_path / "out" / "faithfulness.csv")
    assert {"attention", "rollout"} <= set(table["operator"])


def test_keys_that_fit_nowhere_leave_features(run: Path, tmp_path: Path) -> None:
    config, workspace = open_run(run)
    assert workspace.data.page_keys is not None
    keys = workspace.data.page_keys.kept.rows.nbytes  # type: ignore[attr-defined]
    for budget, tier in ((keys - 1, "host"), (0, "step")):
        tight = replace(config, cache=replace(NOWHERE, host_bytes=budget))
        other = open_workspace(tight, open_or_prepare(config.data), directory=tmp_path)
        assert other.data.page_keys is None and other.features.tier == tier
    assert CacheConfig() == config.cache
