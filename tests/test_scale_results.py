"""The script behind the tables of low precision and of prompts after the page: settings differ, people are paired."""

import dataclasses
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

from fixate_jax.errors import ConfigError
from fixate_jax.lab.experiments import cells
from fixate_jax.lab.studies.jobs import Workers
from tests.cells import fake_cells, load_script


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("results_scale")


def test_variants_differ_in_one_setting_each(script: ModuleType, tmp_path: Path):
    plan = script.Plan(data_path=Path("x"), out=tmp_path)
    default, low, after = (script.settings(plan, "tiny-internvl", name, 1) for name in plan.variants)
    assert (default.backbone.dtype, default.prompt.position) == ("float32", "before")
    assert dataclasses.replace(low, backbone=default.backbone) == default
    assert low.backbone == dataclasses.replace(default.backbone, dtype="bfloat16")
    assert dataclasses.replace(after, prompt=default.prompt) == default
    assert after.prompt == dataclasses.replace(default.prompt, position="after_image")
    assert default.backbone.path == "tiny-internvl" and default.data.split_seed == 1
    with pytest.raises(ConfigError, match="--variants int3: choose among default, "):
        script.Plan(data_path=Path("x"), out=tmp_path, variants=("int3",))


def test_cells_end_in_tables(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = fake_cells(monkeypatch)
    monkeypatch.setattr(script, "run_cells", cells.run_cells)
    plan = script.Plan(data_path=Path("x"), out=tmp_path / "scale", seeds=(7, 8), splits=(0, 1))
    script.main(plan, workers=Workers())
    assert len(asked) == 2 * 3 * 2 * 2
    script.main(plan, workers=Workers())
    assert len(asked) == 2 * 3 * 2 * 2, "finished cells are not repeated"

    rows, tests = pd.read_csv(plan.out / "measures.csv"), pd.read_csv(plan.out / "tests.csv")
    tuned = rows[(rows["method"] == "fixate") & (rows["mode"] == "FR")]
    assert sorted(zip(tuned["backbone"], tuned["variant"], strict=True)) == sorted(
        (backbone, variant) for backbone in plan.backbones for variant in plan.variants
    )
    assert (tuned["kl sd"] > 0).all()
    # What is compared are the same people's sessions under two settings, the default first.
    averaged = {variant: script.pooled(plan, "tiny-internvl", variant)[0] for variant in plan.variants}
    means = {
        variant: frame[(frame["method"] == "fixate") & (frame["mode"] == "FR")].groupby("user_id")["kl"].mean()
        for variant, frame in averaged.items()
    }
    found = tests[
        (tests["backbone"] == "tiny-internvl")
        & (tests["method"] == "fixate")
        & (tests["mode"] == "FR")
        & (tests["against"] == "after_image")
        & tests["metric"].str.startswith("kl")
    ]
    wanted = (means["default"] - means["after_image"]).mean()
    assert found["difference"].item() == pytest.approx(wanted) and found["users"].item() == 4
    assert "Seconds of tiny-internvl, bfloat16" in (plan.out / "tables.md").read_text()
