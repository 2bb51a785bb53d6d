"""The script that puts real people's gaze beside that of made-up people: its tables say what the library finds."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from fixate_jax.analysis import stability
from tests.analysis.made_up import layout
from tests.data.tables import trials_csv

SCRIPT = Path(__file__).parents[1] / "train" / "results_analysis.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("results_analysis", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["results_analysis"] = module  # Dataclasses look their module up.
    spec.loader.exec_module(module)
    return module


def rows(text: str, heading: str) -> dict[str, list[str]]:
    """Lines of a table under a heading, by their first cell."""
    table = text.split(f"## {heading}")[1].split("##")[0].strip().splitlines()
    cells = [[cell.strip() for cell in line.split(" | ")] for line in table if line.startswith("|")]
    return {row[0].strip("| "): [cell.removesuffix(" |") for cell in row[1:]] for row in cells}


def test_tables_and_figures(script: ModuleType, tmp_path: Path):
    plan = script.Plan(
        data_path=trials_csv(tmp_path, users=3, trials=40), out=tmp_path / "out", users=2, halvings=4, draws=2
    )
    script.main(plan)
    names = ["analysis-cursor.png", "analysis-halves.png", "analysis-slot-maps.png"]
    assert sorted(path.name for path in plan.out.glob("*.png")) == names
    text = (plan.out / "tables.md").read_text(encoding="utf-8")

    def found(folder: str, table: str) -> pd.DataFrame:
        return pd.read_csv(plan.out / folder / f"{table}.csv")

    folders = ["human_choice", "synthetic_recgaze", "gaze_where_both_are", "cursor_where_both_are"]
    stable = rows(text, "Stability")
    assert stable["measure"] == ["human_choice", "human_choice, few sessions", *list(script.data_sets(plan))[1:]]
    for folder, cell in zip(folders, np.delete(stable["split-half correlation"], 1), strict=True):
        value = found(folder, "stability").set_index("measure").loc["split-half correlation"]
        assert cell == f"{value['value']:.2f} ({value['low']:.2f} to {value['high']:.2f}), chance 0.00"
    clicks = rows(text, "Gaze and clicks")["auc"]
    assert [float(cell.split()[0]) for cell in clicks] == [
        round(found(folder, "clicks").set_index("measure").loc["auc", "macro"], 2) for folder in folders
    ]
    assert clicks[2] != clicks[3], "of gaze and of the cursor"
    sizes = rows(text, "What there is")
    assert sizes["people"] == ["3", "2", "2", "2"] and sizes["slots of these"] == ["3", "15", "15", "15"]
    _, every, gaze, cursor = map(int, sizes["sessions"])
    assert every >= gaze == cursor
    seconds = sizes["seconds of the signal in a session, median"]
    assert seconds[2] != seconds[3], "of gaze and of the cursor"
    assert "in split test" in text and "direct-search task" in text


def test_fewer_sessions_are_less_stable(script: ModuleType, tmp_path: Path):
    plan = script.Plan(data_path=trials_csv(tmp_path, users=4, trials=60), out=tmp_path / "out", halvings=20, draws=4)
    case = script.analyse_one(plan, script.REAL)
    many = case.found.tables["stability"].set_index("measure")
    few = script.stability_of_few(case, each=6, draws=4).set_index("measure")
    assert set(few["sessions"]) == {24} and set(many["sessions"]) == {4 * 51}
    assert 0 < few.loc["reliability", "value"] < many.loc["reliability", "value"] and few["sd"].gt(0).all()


def test_cells(script: ModuleType):
    gaze = np.random.default_rng(0).dirichlet(np.ones(3), 40)
    table = stability(layout(gaze, np.repeat(np.arange(4), 10), np.zeros(40, int)), halvings=5, seed=0)
    row = table.iloc[0]
    assert script.stable(row, table) == f"{row['value']:.2f} ({row['low']:.2f} to {row['high']:.2f}), chance 0.00"
    bounds = pd.DataFrame(
        {
            "predictor": ["uniform", "user_mean", "uniform"],
            "measure": ["kl", "kl", "accuracy"],
            "macro": [0.5, 0.4, 0.1],
            "p": [np.nan, 0.0004, np.nan],
            "better": pd.Series([None, 17, None], dtype=object),
        }
    )
    assert [script.bound(row, bounds) for _, row in bounds.iterrows()] == [
        "0.500",
        "0.400 (× 0.80; p < 0.001, 17)",
        "0.100",
    ]
