"""Tables and pages of studies: who is compared with whom, corrected for how much, and where the text goes."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fixate_jax.errors import ConfigError
from fixate_jax.evaluation.statistics import holm
from fixate_jax.lab.experiments.experiment import BACKBONE, FIXATE, SWAPPED
from fixate_jax.lab.studies import report
from fixate_jax.lab.studies.matrix import REFERENCE, Study, Variant
from fixate_jax.lab.studies.provenance import commit, machine, provenance
from tests.cells import load_script
from tests.studies.small import study

PEOPLE, SESSIONS = 12, 4


def measures(rng: np.random.Generator, shift: float) -> pd.DataFrame:
    """Made-up measures: the KL of the tuned is `shift` above a noise that is everybody's own."""
    rows = []
    for user in range(PEOPLE):
        for session in range(SESSIONS):
            for method, level in ((FIXATE, shift), (SWAPPED, 0.9), (BACKBONE, 1.5)):
                kl = level + 0.1 * user / PEOPLE + 0.02 * rng.standard_normal()
                keys = {"session_id": f"{user}/{session}", "user_id": f"u{user}", "split": "test"}
                rows.append(
                    keys | {"method": method, "mode": "FR", "kl": kl, "csh@1": 0.5, "log_loss": 1.0, "accuracy": 0.5}
                )
    return pd.DataFrame(rows)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A study of which `worse` has 0.3 more KL than the preset, `same` as much."""
    variants = (Variant(name=REFERENCE), Variant(name="worse", why="a part less"), Variant(name="same"))
    levels = {REFERENCE: 0.5, "worse": 0.8, "same": 0.5}
    rngs = {name: np.random.default_rng(i) for i, name in enumerate(levels)}

    def read(self: Study, variant: Variant) -> tuple[pd.DataFrame, pd.DataFrame]:
        from fixate_jax.lab.report.tables import pool_runs

        frames = [measures(rngs[variant.name], levels[variant.name]).assign(seed=seed) for seed in (1, 2)]
        return pool_runs({0: pd.concat(frames)})

    monkeypatch.setattr(Study, "measures", read)
    return study(tmp_path, tmp_path / "some", variants)


def test_what_makes_a_difference_is_found_and_what_does_not_is_not(made: Study) -> None:
    tests = report.tests_table(made, report.read(made)).set_index(["against", "metric"])
    worse, same = tests.loc[("worse", "kl ↓")], tests.loc[("same", "kl ↓")]
    assert worse["difference"] == pytest.approx(-0.3, abs=0.03) and worse["high"] < 0
    assert worse["better"] == PEOPLE and worse["reading"] == "preset better"
    assert worse["effect"] < -5 and abs(same["effect"]) < 2
    assert same["reading"] == "no difference shown"
    np.testing.assert_allclose(tests["p holm"], holm(tests["p"].to_numpy(float)))
    assert worse["p holm"] == pytest.approx(4 * worse["p"]), "four tests are one family"


def test_the_measures_table_has_what_stands_beside(made: Study) -> None:
    table = report.measures_table(made, report.read(made)).set_index("variant")
    assert list(table.index) == [REFERENCE, "worse", "same", BACKBONE]
    assert table.loc["worse", "kl ↓"] == pytest.approx(0.85, abs=0.03)
    assert table.loc["worse", "another's kl"] == pytest.approx(0.95, abs=0.03)
    assert table.loc["worse", "kl sd"] > 0 and np.isnan(table.loc[BACKBONE, "kl sd"])
    assert table.loc[BACKBONE, "kl ↓"] == pytest.approx(1.55, abs=0.03)


def test_the_page_is_filled_between_its_marks(made: Study, tmp_path: Path) -> None:
    made.out.mkdir()
    page = tmp_path / "page.md"
    page.write_text("Before.\n\n<!-- begin some -->\nold\n<!-- end some -->\n\nHow to read it.\n")
    facts = [provenance() | {"outcome": "6 cells in 1.0 min"}]
    report.write_report(made, title="T", facts=facts)
    script = load_script("fill_page")
    script.fill(made.out, page)
    text = page.read_text()
    assert text.startswith("Before.") and text.endswith("How to read it.\n") and "old" not in text
    assert "preset better" in text and "seeds 1;" in text and commit() in text and "6 cells in 1.0 min" in text
    assert (tmp_path / "some.png").read_bytes() == (made.out / "figure.png").read_bytes()
    assert "![T](figure.png)" in (made.out / "page.md").read_text() and "![T](some.png)" in text
    script.fill(made.out, page)
    assert page.read_text() == text, "filled again with the same it stays as it is"
    for wrong in ("", "<!-- begin some -->", "<!-- end some --><!-- begin some -->"):
        page.write_text(wrong)
        with pytest.raises(ConfigError, match=r"page.md: needs one line '<!-- begin some -->'"):
            script.fill(made.out, page)
        assert page.read_text() == wrong
    with pytest.raises(ConfigError, match="holds 0 Markdown files"):
        script.fill(tmp_path / "nothing", page)


def test_lines_along_a_setting(made: Study, tmp_path: Path) -> None:
    """The preset belongs to every axis, at its own value."""
    variants = (made.variants[0], Variant(name="worse", axis="prompt.basis", changes={"prompt.basis": 1}))
    swept = Study(**{**vars(made), "variants": variants})
    found = report.read(swept)
    points = report._points(swept, found, "prompt.basis", "kl")
    assert [(p.value, p.preset) for p in points] == [(1, False), (2, True)]
    assert points[0].mean - points[1].mean == pytest.approx(0.3, abs=0.03) and points[0].sd > 0
    swept.out.mkdir()
    report.write_report(swept, title="T", facts=[])
    assert (swept.out / "figure.png").stat().st_size > 5000


def test_where_it_ran_is_told() -> None:
    facts = provenance()
    assert facts["versions"]["jax"] and "logical processors" in machine()
    assert len(facts["commit"]) >= 7


def test_where_this_machine_keeps_its_files_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["/opt/bin/fixate", "sweep", "/home/me/configs/a.yaml", "--data.path=/home/me/gaze", "--out", "~/x y"]
    monkeypatch.setattr(sys, "argv", [*words, "--over", "objective.gamma=0,1", "runs/one two"])
    told = (
        "fixate sweep configs/a.yaml --data.path=PATH/gaze --out PATH/'x y' --over objective.gamma=0,1 'runs/one two'"
    )
    assert provenance()["command"] == told


def test_levels_beside_are_those_of_each_value(made: Study) -> None:
    """What a predictor knows may depend on the value, as with sessions of each person."""
    variants = (made.variants[0], Variant(name="worse", axis="data.train_sessions", changes={"data.train_sessions": 1}))
    swept = Study(**{**vars(made), "variants": variants})
    found = report.read(swept)
    frame, spread = found["worse"]
    found["worse"] = (frame.assign(kl=frame["kl"] + (frame["method"] == BACKBONE)), spread)
    one, preset = report._points(swept, found, "data.train_sessions", "kl")
    assert one.beside[BACKBONE] - preset.beside[BACKBONE] == pytest.approx(1.0, abs=0.05)


def test_words_along_a_setting_stay_in_their_order(made: Study) -> None:
    axis = "objective.alignment"
    values = {"worse": "weighted_kl", "same": "coarse_kl"}
    others = [Variant(name=name, axis=axis, changes={axis: value}) for name, value in values.items()]
    swept = Study(**{**vars(made), "variants": (made.variants[0], *others)})
    points = report._points(swept, report.read(swept), axis, "kl")
    assert [p.value for p in points] == ["kl", "weighted_kl", "coarse_kl"]
