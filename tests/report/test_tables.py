"""The results and comparison tables, and their forms."""

import io

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from fixate_jax.errors import DataError
from fixate_jax.lab.frames import session_metrics, summarise
from fixate_jax.lab.report.tables import cell, comparison_table, flatten, print_table, results_table, to_markdown


def predictions() -> pd.DataFrame:
    """A method that is nearly right, one that is less so, a predictor without the click and one with it."""
    rng = np.random.default_rng(0)
    rows = []
    for index in range(24):
        gaze = rng.dirichlet([2.0, 2.0, 2.0])
        click = int(gaze.argmax())
        for method, modes, noise in (
            ("fixate", ("TF", "FR"), 0.1),
            ("backbone", ("TF", "FR"), 0.8),
            ("user_mean", ("FR",), 0.5),
            ("user_mean_given_click", ("TF",), 0.4),
        ):
            attention = (1 - noise) * gaze + noise * rng.dirichlet([1.0, 1.0, 1.0])
            answers = method in ("fixate", "backbone")
            for mode in modes:
                rows.append(
                    {
                        "session_id": f"s{index}",
                        "user_id": f"u{index % 8}",
                        "split": "test",
                        "method": method,
                        "mode": mode,
                        "slots": 3,
                        "click": click,
                        "answer": int(attention.argmax()) if answers else -1,
                        "gaze": gaze.tolist(),
                        "attention": attention.tolist(),
                        "log_probs": np.log(attention).tolist() if answers else None,
                    }
                )
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def metrics() -> pd.DataFrame:
    return session_metrics(predictions())


def test_results_table(metrics):
    table = results_table(summarise(metrics), ["kl", "accuracy"])
    assert table.columns.tolist() == ["method", "mode", "average", "sessions", "users", "kl ↓", "accuracy ↑"]
    assert table["average"].tolist() == ["micro"] * 6 + ["macro"] * 6
    micro = metrics.query("method == 'fixate' and mode == 'TF'")["kl"].mean()
    assert table["kl ↓"].iloc[0] == pytest.approx(micro)
    assert "csh@3 ↑" in results_table(summarise(metrics)).columns


def test_a_metric_that_no_method_has_gets_no_column(metrics):
    summary = summarise(metrics[metrics["method"] == "user_mean"])
    assert "accuracy ↑" not in results_table(summary).columns


def test_comparison_is_fair_about_who_is_told_the_click(metrics):
    table = comparison_table(metrics, reference="fixate", names=["kl", "accuracy"])
    pairs = {(row.mode, row.against) for row in table.itertuples()}
    assert pairs == {
        ("TF", "backbone"),
        ("TF", "user_mean"),
        ("TF", "user_mean_given_click"),
        ("FR", "backbone"),
        ("FR", "user_mean"),
    }
    # The predictors of gaze have no accuracy to compare.
    assert set(table[table["metric"] == "accuracy ↑"]["against"]) == {"backbone"}


def test_comparison_numbers(metrics):
    row = comparison_table(metrics, reference="fixate", names=["kl"]).query("mode == 'TF' and against == 'backbone'")
    row = row.iloc[0]
    users = metrics.query("mode == 'TF'").groupby(["method", "user_id"])["kl"].mean()
    assert row["difference"] == pytest.approx((users["fixate"] - users["backbone"]).mean())
    assert row["low"] <= row["difference"] <= row["high"] < 0
    assert (row["better"], row["users"]) == (8, 8) and row["p"] == pytest.approx(2 / 2**8)


def test_a_reference_without_predictions_is_named(metrics):
    with pytest.raises(DataError, match="method 'ours'"):
        comparison_table(metrics, reference="ours")


def test_cells():
    assert [cell(x) for x in (0.12345, float("nan"), None, 3, "a", 0.0, 1.23e-6)] == [
        *("0.1235", "–", "–", "3", "a", "0.0000"),
        "1.2e-06",
    ]
    assert cell(0.123, digits=1) == "0.1"


def test_markdown():
    frame = pd.DataFrame({"method": ["a|b", "c"], "kl ↓": [0.5, float("nan")]})
    assert to_markdown(frame) == "| method | kl ↓ |\n| --- | ---: |\n| a\\|b | 0.5000 |\n| c | – |\n"


def test_print_table():
    console = Console(width=80, record=True, file=io.StringIO())
    print_table(pd.DataFrame({"method": ["[bold]x"], "kl": [0.25]}), title="Results", console=console)
    text = console.export_text()
    assert "Results" in text and "0.2500" in text and "[bold]x" in text


def test_flatten():
    settings = {"prompt": {"tokens": 16, "inner": {"a": None}}, "seeds": (1, 2)}
    assert flatten(settings) == {"prompt.tokens": "16", "prompt.inner.a": "None", "seeds": "(1, 2)"}
