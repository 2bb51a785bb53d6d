"""Hints, warnings and notes that people need before they believe a number."""

import io
import time
import warnings
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

import fixate_jax as fx
from fixate_jax.data.images import tell_of_small_text
from fixate_jax.emulation.page_sets import read_page_set
from fixate_jax.errors import DataError, DataWarning, did_you_mean
from fixate_jax.lab.cli.fidelity import read_predictions
from fixate_jax.lab.experiments.experiment import CONFIG_FILE
from fixate_jax.lab.notes import ForeignPagesWarning, few_people, tell_of_foreign_pages
from fixate_jax.runtime import progress
from tests.data.own.folder import Spoil, own_folder, put


def renamed(table: str, old: str, new: str) -> Spoil:
    def spoil(_: Path, content: dict[str, list[list[str]]]) -> None:
        head = content[table][0]
        head[head.index(old)] = new

    return spoil


def both(*spoils: Spoil) -> Spoil:
    def spoil(path: Path, content: dict[str, list[list[str]]]) -> None:
        for one in spoils:
            one(path, content)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (put("dwell.csv", 2, session_id="s00"), r"line 2, field 'session_id' = 's00'.*did you mean 's0'\?"),
        (put("sessions.csv", 2, page="a.pgn"), r"field 'page' = 'a\.pgn'.*did you mean 'a\.png'\?"),
        (
            renamed("dwell.csv", "fixation_ms", "fixations_ms"),
            r"columns fixation_ms are missing.*mean 'fixations_ms'\?",
        ),
        (
            both(renamed("slots.csv", "x1", "w"), renamed("slots.csv", "y1", "h")),
            r"columns x1, y1 are missing.*x1 = x0 \+ width and y1 = y0 \+ height",
        ),
    ],
)
def test_did_you_mean(spoil: Spoil, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        fx.data.own(own_folder(tmp_path, spoil=spoil), page_width=64)


def test_duration_is_duration_ms(tmp_path: Path) -> None:
    folder = own_folder(tmp_path, gaze="fixations", spoil=renamed("fixations.csv", "duration_ms", "duration"))
    with pytest.raises(DataError, match=r"columns duration_ms are missing.*did you mean 'duration'\?"):
        fx.data.own(folder, page_width=64)


def test_a_number_that_a_table_made_of_a_name() -> None:
    assert did_you_mean("1.0", ["1", "10", "2"]) == "; did you mean '1'?"
    assert did_you_mean("quite another", ["1", "2"]) == ""


def test_text_that_scaling_makes_unreadable_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "pages").mkdir()
    rows = []
    for name in ("a.png", "b.png"):
        Image.new("RGB", (1280, 800), "white").save(tmp_path / "pages" / name)
        rows += [f"{name},0,0,600,400", f"{name},600,0,1200,400"]
    (tmp_path / "slots.csv").write_text("\n".join(["page,x0,y0,x1,y1", *rows]) + "\n")
    # 8 px are needed of 320 for 1280: text of 32 px; text of 12 px wants 1280 · 8/12 = 853, in tens 860.
    wanted = r"screenshots 1280 pixels wide are drawn 320 wide: text less than 32 pixels .* --page-width 860 would do"
    with pytest.warns(DataWarning, match=wanted) as told:
        read_page_set(tmp_path, width=320)
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tell_of_small_text(1280, 860, "--page-width")


def test_few_people_are_said_to_be_few() -> None:
    assert few_people(3).startswith("3 people are few: no test over them (Wilcoxon's) can give a p below 0.25")
    assert few_people(1).startswith("1 person is few") and few_people(12) == ""


@pytest.mark.parametrize(
    ("backbone", "pages", "told"),
    [
        ("tiny-qwen3-vl", "own", True),
        ("tiny-random", "recgaze", True),
        ("tiny-internvl", "synthetic_carousel", False),
        ("tiny-qwen3-vl", "human_choice", False),
        ("Qwen/Qwen3-VL-2B-Instruct", "adserp", False),
    ],
)
def test_pages_that_a_tiny_backbone_cannot_read(backbone: str, pages: str, told: bool) -> None:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        tell_of_foreign_pages(backbone, pages)
    assert [w.category for w in found] == ([ForeignPagesWarning] if told else [])
    assert not told or (f"{backbone} has learned to read" in str(found[0].message) and pages in str(found[0].message))


def test_the_warning_comes_too_where_everything_was_evaluated_before(tmp_path: Path) -> None:
    config = "backbone: {path: tiny-random}\ndata: {name: recgaze, path: elsewhere}\ntrain: {seeds: [0]}\n"
    (tmp_path / CONFIG_FILE).write_text(config)
    predictions = pd.DataFrame({"user": ["a"]})
    (tmp_path / "seed-0").mkdir()
    predictions.to_parquet(tmp_path / "seed-0/predictions-test.parquet")
    with pytest.warns(ForeignPagesWarning, match="on the pages of recgaze"):
        read = read_predictions(tmp_path, "test")
    assert [list(frame["user"]) for frame in read] == [["a"]]


def test_where_no_bar_can_be_drawn_a_line_comes_each_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    out, now = io.StringIO(), [0.0]
    monkeypatch.setattr(progress, "_console", lambda: Console(file=out, force_terminal=False, width=200))
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with progress.bar("Reading [b]trials[/b]", 300) as (bars, task):
        for _ in range(150):
            now[0] += 1.0
            bars.update(task, advance=1)
        said = out.getvalue().splitlines()
    assert [line.split(",")[0] for line in said] == [
        "Reading [b]trials[/b]: 60 of 300",
        "Reading [b]trials[/b]: 120 of 300",
    ]
    assert "min left" in said[0]
