"""The script behind the table on real gaze: its variants exist, and pooling makes nobody count twice."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

SCRIPT = Path(__file__).parents[1] / "train" / "results_human_choice.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("results_human_choice", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_variant_has_valid_settings_of_its_own(script: ModuleType) -> None:
    shared = {"data_path": Path("x"), "split": 2, "seeds": (7,), "swaps": 3, "ntp_baseline": False}
    found = {name: script.settings(name, **shared) for name in script.VARIANTS}
    assert all(c.data.split_seed == 2 and c.train.swaps == 3 for c in found.values())
    assert {name for name, c in found.items() if c.train.seeds != (7,)} == {"paper's settings"}
    names = {(c.operator.name, c.operator.normalise if c.operator.name == "attn_lrp" else "") for c in found.values()}
    assert names == {("attention", ""), ("attn_lrp", "abs"), ("attn_lrp", "signed")}
    assert found["paper's settings"].objective.alignment == "weighted_kl"
    assert found["paper's settings"].optimizer.basis_lr == 1e-3


def test_pooling_averages_over_seeds_and_keeps_splits_apart(script: ModuleType) -> None:
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
    averaged, spread = script.pool(frames)
    assert len(averaged) == 2 * 2 * 6
    first = averaged[(averaged["session_id"] == "1:s3") & (averaged["method"] == "fixate")]
    both = frames[1][(frames[1]["session_id"] == "s3") & (frames[1]["method"] == "fixate")]
    assert len(both) == 2 and float(first["kl"].iloc[0]) == pytest.approx(both["kl"].mean())
    runs = [f.loc[(f["seed"] == s) & (f["method"] == "fixate"), "kl"].mean() for f in frames.values() for s in (1, 2)]
    row = spread[(spread["method"] == "fixate") & (spread["average"] == "micro")].iloc[0]
    assert row["kl mean"] == pytest.approx(np.mean(runs)) and row["kl sd"] == pytest.approx(np.std(runs, ddof=1))
