"""The script behind the table on real gaze: its variants exist, and pooling makes nobody count twice."""

import dataclasses
import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fixate_jax.lab.config import RunConfig
from fixate_jax.lab.experiments.experiment import CONFIG_FILE, absolute_paths
from fixate_jax.lab.report.tables import pool_runs
from fixate_jax.lab.settings import dump_config

SCRIPT = Path(__file__).parents[1] / "train" / "results_human_choice.py"
SHARED: dict[str, Any] = {"data_path": Path("x"), "split": 2, "seeds": (7,), "swaps": 3, "ntp_baseline": False}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("results_human_choice", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_variant_has_valid_settings_of_its_own(script: ModuleType) -> None:
    found = {name: script.settings(name, **SHARED) for name in script.VARIANTS}
    assert all(c.data.split_seed == 2 and c.train.swaps == 3 for c in found.values())
    assert {name for name, c in found.items() if c.train.seeds != (7,)} == {"paper's settings"}
    names = {(c.operator.name, c.operator.normalise if c.operator.name == "attn_lrp" else "") for c in found.values()}
    assert names == {("attention", ""), ("attn_lrp", "abs"), ("attn_lrp", "signed")}
    assert found["paper's settings"].objective.alignment == "weighted_kl"
    assert found["paper's settings"].optimizer.basis_lr == 1e-3


def test_another_backbone_changes_nothing_else(script: ModuleType) -> None:
    for name in script.VARIANTS:
        preset, other = script.settings(name, **SHARED), script.settings(name, backbone="a/model", **SHARED)
        assert (preset.backbone.path, other.backbone.path) == ("tiny-qwen3-vl", "a/model")
        other_backbone = dataclasses.replace(other.backbone, path=preset.backbone.path)
        assert dataclasses.replace(other, backbone=other_backbone) == preset


def made_up_metrics(seed: int, split: int) -> pd.DataFrame:
    """What a run of one seed finds: six sessions of three people, three methods."""
    rng = np.random.default_rng([seed, split])
    keys = [
        {"session_id": f"s{i}", "user_id": f"u{i % 3}", "split": "test", "method": method, "mode": "FR", "seed": seed}
        for method in ("fixate", "backbone", "user_mean")
        for i in range(6)
    ]
    shown = ("kl", "js", "cosine", "csh@1", "tgo@1", "log_loss", "auc", "accuracy")
    return pd.DataFrame(keys).assign(**{name: rng.random(len(keys)) for name in shown})


def test_runs_on_another_backbone_have_a_directory_of_their_own(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[str, Path]] = []

    def run_experiment(config: RunConfig, run: Path) -> SimpleNamespace:
        made.append((config.backbone.path, run))
        run.mkdir(parents=True)
        (run / CONFIG_FILE).write_text(dump_config(absolute_paths(config)))
        return SimpleNamespace(metrics=made_up_metrics(config.train.seeds[0], config.data.split_seed))

    monkeypatch.setattr(script, "run_experiment", run_experiment)
    monkeypatch.setattr(script, "open_or_prepare", lambda data: None)
    out = tmp_path / "internvl"
    wanted: dict[str, Any] = {"out": out, "splits": (0, 1), "seeds": (7,), "variants": ("attention",)}
    for _ in range(2):  # Finished runs are not repeated.
        script.main(tmp_path, backbone="tiny-random", **wanted)
    assert made == [("tiny-random", out / "attention" / f"split-{i}") for i in (0, 1)]
    tables = (out / "tables.md").read_text()
    assert tables.startswith("### attention") and "user_mean" in tables and (out / "human_choice.png").stat().st_size
    with pytest.raises(SystemExit, match="other settings"):
        script.main(tmp_path, **wanted)
    assert len(made) == 2


def test_pooling_averages_over_seeds_and_keeps_splits_apart() -> None:
    rng = np.random.default_rng(0)
    frames = {}
    for split in (0, 1):
        rows = [
            {
                "session_id": f"s{i}",
                "user_id": f"u{i % 2}",
                "split": "test",
                "method": method,
                "mode": "FR",
                "seed": seed,
            }
            for seed in (1, 2)
            for method in ("fixate", "uniform")
            for i in range(6)
        ]
        frames[split] = pd.DataFrame(rows).assign(kl=rng.random(len(rows)), accuracy=np.nan)
    averaged, spread = pool_runs(frames)
    assert len(averaged) == 2 * 2 * 6
    first = averaged[(averaged["session_id"] == "1:s3") & (averaged["method"] == "fixate")]
    both = frames[1][(frames[1]["session_id"] == "s3") & (frames[1]["method"] == "fixate")]
    assert len(both) == 2 and float(first["kl"].iloc[0]) == pytest.approx(both["kl"].mean())
    runs = [f.loc[(f["seed"] == s) & (f["method"] == "fixate"), "kl"].mean() for f in frames.values() for s in (1, 2)]
    row = spread[(spread["method"] == "fixate") & (spread["average"] == "micro")].iloc[0]
    assert row["kl mean"] == pytest.approx(np.mean(runs)) and row["kl sd"] == pytest.approx(np.std(runs, ddof=1))
