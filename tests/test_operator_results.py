"""The script behind the table of operators: its rows differ in the operator alone, and it goes on where it stopped."""

import dataclasses
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest

from fixate_jax.errors import ConfigError
from fixate_jax.lab.experiments import cells
from fixate_jax.lab.parts import OPERATORS
from fixate_jax.lab.studies.jobs import Workers
from tests.cells import fake_cells, load_script

VARIANTS = ("attention", "attn_lrp abs")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("results_operators")


def small(script: ModuleType, out: Path, **changes: Any) -> Any:
    return script.Plan(data_path=Path("x"), out=out, variants=VARIANTS, splits=(0, 1), seeds=(7, 8), **changes)


def test_rows_differ_in_the_operator_alone(script: ModuleType, tmp_path: Path):
    plan = script.Plan(data_path=Path("x"), out=tmp_path)
    first = script.settings(plan, "tiny-qwen3-vl", "attention", 1)
    assert (first.data.split_seed, first.train.seeds, first.train.epochs) == (1, (42, 123, 456), plan.epochs)
    for variant in plan.variants:
        config = script.settings(plan, "tiny-qwen3-vl", variant, 1)
        assert config.operator.name in OPERATORS
        same = dataclasses.replace(first.objective, relevance=config.objective.relevance)
        assert dataclasses.replace(config, operator=first.operator, objective=first.objective) == first
        assert config.objective == same
        assert (config.objective.relevance == "own") == (variant not in ("attention", "rollout"))
    measures = [cell.measures for group in plan.groups() for cell in group]
    assert len(measures) == len(set(measures)) == 2 * len(plan.variants) * 9
    with pytest.raises(ConfigError, match="--variants attnlrp: choose among attention, "):
        script.Plan(data_path=Path("x"), out=tmp_path, variants=("attnlrp",))


def test_a_group_goes_on_where_it_stopped_and_ends_in_tables(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked = fake_cells(monkeypatch)
    plan = small(script, tmp_path / "operators", backbones=("tiny-qwen3-vl", "tiny-internvl"))
    cells.run_cells(plan.groups(), out=plan.out, workers=Workers(), title="")
    every = [cell for group in plan.groups() for cell in group]
    assert len(asked) == len(every) == 16 and all(cell.measures.exists() for cell in every)
    gone = every[5]
    before = {cell.measures: cell.measures.read_bytes() for cell in every}
    gone.measures.unlink()
    directory = gone.folder / f"seed-{gone.seed}"
    (directory / cells.SECONDS).unlink()
    directory.rmdir()
    cells.run_cells(plan.groups(), out=plan.out, workers=Workers(), title="")
    assert len(asked) == 17 and asked[-1][1:] == (gone.seed, "test")
    assert all(path.read_bytes() == content for path, content in before.items() if path != gone.measures)

    figure = script.report(plan)
    assert figure.stat().st_size > 10_000
    rows, tests = pd.read_csv(plan.out / "operators.csv"), pd.read_csv(plan.out / "tests.csv")
    assert list(zip(rows["backbone"], rows["operator"], strict=True)) == [
        (b, v) for b in plan.backbones for v in VARIANTS
    ]
    folder = plan.folder("tiny-internvl", "attn_lrp abs", 0).parent
    found = pd.concat([pd.read_parquet(path) for path in sorted(folder.glob("*/seed-*.parquet"))])
    own = found[(found["method"] == "fixate") & (found["mode"] == "FR")]
    assert rows["kl"].iloc[-1] == pytest.approx(own["kl"].mean()) and rows["kl sd"].iloc[-1] > 0
    families = tests.groupby(["metric", "against"])
    assert {len(family) for _, family in families} == {4} and len(families) == 6
    assert (tests["p holm"] >= tests["p"]).all() and set(tests["users"]) == {4}
