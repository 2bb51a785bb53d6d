"""The script behind the tables of RecGaze: operators are chosen on validation, signals share their sessions."""

import dataclasses
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from fixate_jax.errors import ConfigError
from fixate_jax.tuning import cells
from tests.cells import fake_cells, load_script


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("results_recgaze")


def test_rows_differ_in_operator_and_signal_alone(script: ModuleType, tmp_path: Path):
    plan = script.Plan(out=tmp_path)
    gaze, cursor = (
        script.settings(plan, "tiny-internvl", "attention", split="test", signal=signal) for signal in script.SIGNALS
    )
    assert (gaze.data.signal, cursor.data.signal, gaze.data.common_sessions) == ("fixation", "cursor", True)
    assert gaze.data.max_users == 40 and gaze.backbone.path == "tiny-internvl"
    assert dataclasses.replace(cursor, data=gaze.data) == gaze
    paper = script.settings(plan, "tiny-internvl", script.PAPER, split="test", signal="fixation")
    assert (paper.operator.name, paper.operator.normalise, paper.operator.eps) == ("attn_lrp", "signed", 1e-4)
    assert dataclasses.replace(paper, operator=gaze.operator, objective=gaze.objective) == gaze
    with pytest.raises(ConfigError, match="--candidates nope: choose among attention, "):
        script.Plan(out=tmp_path, candidates=("nope",))


def test_the_operator_is_chosen_on_validation_and_the_tables_are_written(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked = fake_cells(monkeypatch)
    monkeypatch.setattr(script, "run_cells", cells.run_cells)
    plan = script.Plan(
        out=tmp_path / "recgaze",
        backbones=("tiny-qwen3-vl",),
        candidates=("attention", "rollout", "glimpse"),
        seeds=(7, 8),
    )
    script.main(plan, jobs=1)
    assert asked[:3] == [(name, 7, "validation") for name in plan.candidates]
    assert len(asked) == 3 + 2 * 2 * 2 and {split for _, _, split in asked[3:]} == {"test"}
    chosen, table = script.choose(plan, "tiny-qwen3-vl")
    assert table["operator"].tolist() == [*plan.candidates]
    assert chosen == plan.candidates[int(np.argmin(table["kl"]))]
    assert {operator for _, _, operator in script.variants(plan)} == {chosen, script.PAPER}
    assert not list(tmp_path.glob("recgaze/*/choosing/*/beside-test.parquet"))

    rows, tests = pd.read_csv(plan.out / "measures.csv"), pd.read_csv(plan.out / "tests.csv")
    # The stand-in writes the length of the signal's name where the JS stands.
    assert (rows["js"][rows["method"] == "fixate"] == rows["against"][rows["method"] == "fixate"].str.len()).all()
    assert len(rows[(rows["method"] == "fixate") & (rows["mode"] == "FR")]) == 2 * 2 * 2
    swapped = rows[rows["method"] == cells.SWAPPED]
    assert (swapped["tuned to"] == swapped["against"]).all() and len(swapped) == 2 * 4
    assert {len(family) for _, family in tests.groupby(["metric", "against", "mode"])} == {4}
    assert all((plan.out / f"people-{other}.png").stat().st_size > 10_000 for other in ("user_mean_shrunk", "backbone"))
