"""Tables and figures of new people, from made-up measures whose means are known."""

from pathlib import Path

import pandas as pd
import pytest

from fixate_jax.evaluation.statistics import holm
from fixate_jax.lab.studies.transfer_report import ALL, NOTHING, measures_table, per_person, write_transfer

COUNTS = (1, 4, ALL)
KL = {
    ("backbone", NOTHING): 0.9,
    ("population_prompt", NOTHING): 0.5,
    ("together", NOTHING): 0.1,
    ("population_mean", NOTHING): 0.6,
    ("coefficients_swapped", ALL): 0.7,
    **{("coefficients", k): value for k, value in zip(COUNTS, (0.55, 0.4, 0.3), strict=True)},
    **{("user_mean", k): value for k, value in zip(COUNTS, (0.8, 0.45, 0.2), strict=True)},
    **{("user_mean_shrunk", k): value for k, value in zip(COUNTS, (0.6, 0.42, 0.2), strict=True)},
}
PEOPLE = 8


@pytest.fixture
def measured() -> pd.DataFrame:
    """Two seeds, 0.02 apart; person p has p + 1 sessions, and a kl that is p hundredths higher."""
    rows = []
    for seed in (1, 2):
        for (method, k), kl in KL.items():
            modes = ("FR", "TF") if method == "coefficients" else ("FR",)
            rows += [
                {"session_id": f"{p}-{s}", "user_id": f"u{p}", "split": "test", "method": method, "mode": mode}
                | {"seed": seed, "k": k, "kl": kl + 0.01 * p + 0.02 * (seed - 1) + (mode == "TF")}
                | {"csh@1": 0.5, "log_loss": 1.0, "accuracy": 1 - kl}
                for p in range(PEOPLE)
                for s in range(p + 1)
                for mode in modes
            ]
            if method == "user_mean":
                rows += [row | {"method": "majority_click"} for row in rows[-sum(range(PEOPLE + 1)) :]]
    return pd.DataFrame(rows)


def test_means_are_over_people_and_deviations_over_seeds(measured: pd.DataFrame) -> None:
    table = measures_table(measured[measured["mode"] == "FR"])
    row = table[(table["method"] == "coefficients") & (table["k"] == "4") & (table["metric"] == "kl ↓")].iloc[0]
    assert row["mean"] == pytest.approx(0.4 + 0.035 + 0.01)
    assert row["sd"] == pytest.approx(0.02 / 2**0.5)
    assert row["seeds"] == 2


def test_seeds_are_no_extra_people(measured: pd.DataFrame) -> None:
    people = per_person(measured[measured["mode"] == "FR"])
    assert (people.groupby("method")["user_id"].count() == PEOPLE).all()


def test_coefficients_are_set_against_what_knows_as_much(measured: pd.DataFrame, tmp_path: Path) -> None:
    measures, tests = write_transfer(tmp_path, measured, counts=COUNTS, most=30.0)
    kl = tests[tests["metric"] == "kl ↓"].set_index(["k", "against"])["difference"]
    assert kl["1", "population_prompt"] == pytest.approx(0.05)
    assert kl["4", "population_prompt"] == pytest.approx(-0.1)
    assert kl["1", "user_mean"] == pytest.approx(-0.25)
    assert kl["4", "user_mean_shrunk"] == pytest.approx(-0.02)
    assert kl["all", "user_mean"] == pytest.approx(0.1)
    assert kl["all", "coefficients_swapped"] == pytest.approx(-0.4)
    assert kl["all", "together"] == pytest.approx(0.2)
    assert kl["all", "backbone"] == pytest.approx(-0.6)
    better = tests.set_index(["k", "against", "metric"])["better"]
    assert better["4", "population_prompt", "kl ↓"] == PEOPLE
    assert better["1", "population_prompt", "accuracy ↑"] == 0
    assert list(tests["p holm"]) == list(holm(tests["p"].to_numpy(float)))
    assert len(pd.read_csv(tmp_path / "measures.csv")) == len(measures)
    for name in ("cold_start.png", "transfer.png"):
        assert (tmp_path / name).stat().st_size > 5_000
