"""Figures, and the command from settings to files."""

import errno
import html
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure, SubFigure
from PIL import Image

from fixate_jax.data.options import DataConfig
from fixate_jax.data.registry import open_or_prepare
from fixate_jax.data.store import SessionStore
from fixate_jax.errors import ConfigError, DiskError
from fixate_jax.lab.analysis import AnalysisSettings, analyse, click_relation, stability, write_analysis
from fixate_jax.lab.analysis import write as analysis_write
from fixate_jax.lab.cli import commands as cli
from fixate_jax.lab.report import gaze as pictures
from tests.analysis.made_up import PATTERNS, SETTINGS, boxes, layout, same

DEMO = str(Path(__file__).parents[2] / "configs" / "demo.yaml")


def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures in the order in which they are saved."""
    kept: list[Figure] = []
    save = pictures.save_figure

    def keep(figure: Figure, path: Path) -> Path:
        kept.append(figure)
        return save(figure, path)

    monkeypatch.setattr(pictures, "save_figure", keep)
    return kept


def test_the_maps_show_the_people_with_the_most_sessions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    kept = drawn(monkeypatch)
    people = [f"p{i}" for i in range(30)]
    gaze = np.tile([0.5, 0.5], (30, 1))
    gaze[29], gaze[0] = [0.9, 0.1], [0.1, 0.9]
    arguments: dict = {"boxes": boxes(2), "labels": ("A", "B"), "aspect": 0.8}
    path = pictures.slot_maps(tmp_path / "a.png", users=people, gaze=gaze, sessions=np.arange(30), **arguments)
    assert path.stat().st_size > 10_000
    (figure,) = kept
    assert figure.get_suptitle() == "Mean gaze of each person; the 24 of 30 people with the most sessions"
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert titles[0] == "mean over 30 people"
    assert titles[1:] == [f"user p{i}, n = {i}" for i in range(6, 30)]
    texts = {axis.get_title(): [text.get_text() for text in axis.texts] for axis in figure.axes}
    assert texts["mean over 30 people"] == ["A\n50%", "B\n50%"]
    assert texts["user p29, n = 29"] == ["90%\n+40", "10%\n−40"] and texts["user p6, n = 6"] == ["50%\n±0"] * 2
    fill = {axis.get_title(): [to_rgb(patch.get_facecolor()) for patch in axis.patches[1:]] for axis in figure.axes}
    more, less = fill["user p29, n = 29"]
    assert more[0] > 2 * more[2] and less[2] > 2 * less[1], "orange where it is more, purple where less"
    pictures.slot_maps(tmp_path / "b.png", users=people[:2], gaze=gaze[1:3], sessions=np.ones(2, int), **arguments)
    assert kept[1].get_suptitle() == "Mean gaze of each person"


def test_halves_are_drawn_slot_by_slot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    kept = drawn(monkeypatch)
    pictures.half_scatter(tmp_path / "a.png", first=PATTERNS, second=PATTERNS, labels=("A", "B", "C"))
    (axis,) = kept[0].axes
    assert axis.get_title(loc="left") == "3 people × 3 slots: r = 1.00"
    assert len(axis.collections) == 3 and axis.get_legend() is not None
    many = np.random.default_rng(0).dirichlet(np.ones(9), 4)
    pictures.half_scatter(tmp_path / "b.png", first=many, second=many[::-1], labels=tuple("ABCDEFGHI"))
    assert kept[1].axes[0].get_legend() is None


def test_halves_fill_their_axes_which_are_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    kept = drawn(monkeypatch)
    first, second = np.random.default_rng(0).dirichlet(np.full(9, 0.2), (2, 30))
    pictures.half_scatter(tmp_path / "a.png", first=first, second=second, labels=tuple("ABCDEFGHI"))
    (axis,) = kept[0].axes
    points = np.concatenate([np.asarray(drawn.get_offsets()) for drawn in axis.collections])
    assert axis.get_xlim() == axis.get_ylim() == pytest.approx((1.08 * points.min(), 1.08 * points.max()))
    assert len(points) == 270 and -axis.get_xlim()[0] < 0.7 * axis.get_xlim()[1]
    pictures.half_scatter(tmp_path / "b.png", first=PATTERNS[:1], second=PATTERNS[:1], labels=("A", "B", "C"))
    assert kept[1].axes[0].get_xlim() == (-1, 1), "nothing to see of one person"


def test_pictures_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    kept = drawn(monkeypatch)
    few = {"boxes": boxes(3), "labels": ("A", "B", "C"), "users": ("x", "y", "z"), "gaze": PATTERNS, "aspect": 0.5}

    def maps(figure: SubFigure) -> None:
        pictures.draw_slot_maps(figure, **few, sessions=np.array([5, 4, 6]), most=2, columns=1, title="people")  # type: ignore[arg-type]

    def halves(figure: SubFigure) -> None:
        pictures.draw_halves(figure, first=PATTERNS, second=PATTERNS, labels=("A", "B", "C"), title="them")

    path = pictures.side_by_side(tmp_path / "a.png", [maps, halves], size=(3.0, 2.0))
    with Image.open(path) as image:
        assert image.width == 3 * image.height
    left, right = kept[0].subfigs
    assert left.get_suptitle() == "people"
    assert [axis.get_title() for axis in left.axes[:3]] == ["mean over 3 people", "user x, n = 5", "user z, n = 6"]
    assert right.axes[0].get_title(loc="left") == "them: 3 people × 3 slots: r = 1.00"


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        cli.main(list(arguments))
    assert isinstance(left.value.code, int)
    return left.value.code


ARGUMENTS = ["analyze", DEMO, "--data.name", "synthetic_choice", "--data.max-users", "3", "--data.page-width", "64"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SessionStore:
    """Three made-up people."""
    folder = tmp_path_factory.mktemp("made") / "store"
    return open_or_prepare(DataConfig(name="synthetic_choice", max_users=3, page_width=64, store=folder))


def test_the_command_writes_everything(
    store: SessionStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    arguments = [*ARGUMENTS, "--data.store", str(store.directory), "--halvings", "10"]
    assert call(*arguments, "--out", "found") == 0
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    assert max(map(len, lines)) <= 80 and "…" not in shown
    assert lines[0].startswith("153 sessions of 3 people, split train and validation. The 27 sessions of the")
    assert "left out of all tables: 27 sessions of 3 people (in split test)" in shown
    assert (
        "user_mean_given_click" in shown and "longest_clicked" in shown and "everything: found/analysis.html" in shown
    )
    assert any("split-half correlation" in line and "0.001" in line for line in lines), "whole words, whole numbers"

    out = tmp_path / "found"
    names = ["stability", "clicks", "bounds", "clicks_by_user", "user_slot_gaze", "left_out"]
    files = [*(f"{n}.csv" for n in names), "dropped.csv", "analysis.html", "figures"]
    assert sorted(p.name for p in out.iterdir()) == sorted(files)
    assert sorted(p.name for p in (out / "figures").iterdir()) == ["halves.png", "slot_maps.png"]
    tables = analyse(store.sessions, AnalysisSettings(halvings=10)).tables
    for name in names:
        assert (out / f"{name}.csv").read_text(encoding="utf-8") == tables[name].to_csv(index=False)
    assert pd.read_csv(out / "stability.csv")["value"].between(0.5, 1).all(), "made-up people have habits"
    page = (out / "analysis.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 2
    assert all((heading in page) == (name != "dropped") for name, heading in analysis_write.HEADINGS.items())
    assert "27 sessions of the test split were left untouched" in page and ">slot 2</th>" in page

    assert (
        call(
            *arguments,
            "--splits",
            "test",
            "--seed",
            "3",
            "--min-sessions",
            "9",
            "--layouts",
            "2",
            "--data.gaze-temperature",
            "2",
        )
        == 0
    )
    out = tmp_path / "analyses" / "demo"
    page = (out / "analysis.html").read_text(encoding="utf-8")
    assert "The test split is among them" in page
    wanted = AnalysisSettings(splits=("test",), halvings=10, min_sessions=9, layouts=2, seed=3, gaze_temperature=2.0)
    assert same(
        pd.read_csv(out / "stability.csv", float_precision="round_trip"),
        analyse(store.sessions, wanted).tables["stability"],
    )
    assert same(pd.read_csv(out / "left_out.csv"), analyse(store.sessions, wanted).tables["left_out"])
    for name, value in vars(wanted).items():
        assert f"<td>analysis.{name}</td><td>{html.escape(str(value))}</td>" in page


def test_what_the_reader_dropped_is_counted(store: SessionStore, tmp_path: Path):
    lossy = replace(store, manifest={**store.manifest, "dropped": {"no gaze": 3, "no click": 1}})
    write_analysis(lossy, tmp_path, SETTINGS)
    assert (tmp_path / "dropped.csv").read_text() == "reason,count\nno gaze,3\nno click,1\n"
    page = (tmp_path / "analysis.html").read_text(encoding="utf-8")
    assert analysis_write.HEADINGS["dropped"] in page and "no gaze" in page


def test_help_explains_every_flag(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("COLUMNS", "100")
    assert call("analyze", "--help") == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for flag, meaning in {
        "--out": "Directory to write to (None: analyses/ and the preset's name).",
        "--splits": "The test split stays untouched unless it is named. (default: train validation)",
        "--halvings INT": "How often each person's sessions are split into random halves. (default: 100)",
        "--min-sessions INT": "People with fewer sessions are left out and counted. (default: 4)",
        "--layouts INT": "How many of the commonest page layouts to analyse, each by itself. (default: 1)",
        "--seed INT": "Of the halves, the permutation test and the bootstrap. (default: 0)",
        "--data.name STR": "Data set",
    }.items():
        assert flag in shown and meaning in shown


def test_mistakes_stop_the_command(
    store: SessionStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")
    assert call(*ARGUMENTS, "--data.store", "new", "--splits", "tset") == 2
    assert "error: splits = tset: name some of train, validation, test" in capsys.readouterr().err
    assert not (tmp_path / "new").exists(), "settings are checked before any work"
    assert call(*ARGUMENTS, "--data.store", str(store.directory), "--min-sessions", "52") == 2
    assert "0 of 3 people have at least 52 sessions in train, validation" in capsys.readouterr().err
    assert call(*ARGUMENTS, "--data.store", str(store.directory), "--data.signal", "cursor") == 2
    assert "has only fixation; choose another signal" in capsys.readouterr().err
    assert not (tmp_path / "analyses").exists()
    assert call("analyze", "--seed", "1", DEMO) == 2
    assert f"give the preset first: fixate analyze {DEMO}" in capsys.readouterr().err


def test_a_file_in_the_way_of_the_directory(store: SessionStore, tmp_path: Path):
    (tmp_path / "letter").write_text("a", encoding="utf-8")
    for out in (tmp_path / "letter", tmp_path / "letter" / "below"):
        with pytest.raises(ConfigError, match=f"--out {out}: "):
            write_analysis(store, out, SETTINGS)
    assert (tmp_path / "letter").read_text(encoding="utf-8") == "a"


def test_a_file_is_replaced_whole_or_not_at_all(store: SessionStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def files() -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in tmp_path.rglob("*.*")}

    write_analysis(store, tmp_path, SETTINGS)
    before = files()
    write_analysis(store, tmp_path, SETTINGS)
    assert files() == before, "the same sessions give the same bytes"

    def half(figure: Figure, path: Path, **_: object) -> None:
        path.write_bytes(b"half a picture")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Figure, "savefig", half)
    with pytest.raises(DiskError, match=r"slot_maps\.png: could not be written: No space left"):
        write_analysis(store, tmp_path, SETTINGS)
    assert files() == before


def test_known_figures_on_human_choice(shared_data: Path):
    """40 people are known to correlate 0.84 between halves, and to choose what they watch longest in 56% of trials."""
    trials = pd.read_csv(shared_data / "human_choice" / "trials.csv")
    place = trials[["pos_A", "pos_B", "pos_C"]].to_numpy()
    dwell = np.stack([trials[f"dwell_{x}p"] + trials[f"dwell_{x}m"] for x in "ABC"], axis=1)
    gaze = np.empty_like(dwell)
    np.put_along_axis(gaze, place, dwell, axis=1)
    chosen = trials["choice"].map({"A": 0, "B": 1, "C": 2}).to_numpy()
    click = np.take_along_axis(place, chosen[:, None], axis=1)[:, 0]
    user = np.unique(trials["subject"], return_inverse=True)[1]
    start = time.perf_counter()
    table = stability(layout(gaze / gaze.sum(axis=1, keepdims=True), user, click), halvings=100, seed=0)
    assert time.perf_counter() - start < 10, "takes under a second where nothing else runs"
    table = table.set_index("measure")
    assert 0.75 < table.loc["split-half correlation", "value"] < 0.92
    assert table.loc["split-half correlation", "p"] == 0.001
    assert table.loc["identified", "low"] > 3 / 20
    relation = click_relation(gaze, click, np.ones(gaze.shape, bool))
    assert relation["longest_clicked"].mean() == pytest.approx(0.55, abs=0.03)
