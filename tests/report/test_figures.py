"""The pictures: files of a sensible size, marks where they belong, no global state."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fixate_jax.errors import DataError
from fixate_jax.lab.report.curves import training_curves
from fixate_jax.lab.report.figures import method_differences, page_figure, user_improvement

BOXES = np.array([[0.05, 0.1, 0.45, 0.9], [0.55, 0.1, 0.95, 0.9]])


def page_arguments(**changes) -> dict:
    arguments = {
        "image": np.full((120, 200, 3), 128, np.uint8),
        "boxes": BOXES,
        "labels": ("A", "B"),
        "gaze": np.array([0.8, 0.2]),
        "click": 0,
        "relevance": {"backbone": np.full((4, 6), 0.5), "fixate": np.eye(5)[:, :4] - 0.2},
        "slot_attention": {"backbone": np.array([0.5, 0.5]), "fixate": np.array([0.7, 0.3])},
    }
    return arguments | changes


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def share_of(image: np.ndarray, colour: tuple[int, int, int]) -> float:
    return float((np.abs(image - np.array(colour)).max(axis=-1) < 12).mean())


def test_page_figure_has_a_panel_for_each_method(tmp_path):
    four = pixels(page_figure(tmp_path / "deep" / "four.png", **page_arguments(), title="a session"))
    two = pixels(page_figure(tmp_path / "two.png", **page_arguments(relevance={}, slot_attention={})))
    assert four.shape[1] == 2 * two.shape[1]
    # The clicked slot's orange frame is in every panel.
    for panel in np.array_split(four, 4, axis=1):
        assert share_of(panel, (0xD5, 0x5E, 0x00)) > 0.002


def test_gaze_is_drawn_where_people_looked(tmp_path):
    image = pixels(page_figure(tmp_path / "page.png", **page_arguments(relevance={}, slot_attention={})))
    gaze = image[:, image.shape[1] // 2 :]
    middle = gaze[gaze.shape[0] // 2]
    left, right = middle[gaze.shape[1] // 4], middle[3 * gaze.shape[1] // 4]
    # Viridis: its top is yellow, its low end bluish.
    assert left[0] > 180 and left[2] < 100
    assert right[0] < 120 and right[2] > right[0]


def test_relevance_of_zero_everywhere_can_be_drawn(tmp_path):
    arguments = page_arguments(relevance={"x": np.zeros((2, 2))}, slot_attention={"x": np.array([0.5, 0.5])})
    assert page_figure(tmp_path / "zero.png", **arguments).stat().st_size > 1000


def test_page_figure_wants_both_views_of_a_method(tmp_path):
    with pytest.raises(DataError, match=r"relevance is of \['backbone', 'fixate'\] but slot attention of \[\]"):
        page_figure(tmp_path / "page.png", **page_arguments(slot_attention={}))


def test_training_curves(tmp_path):
    log = pd.DataFrame({"step": range(20), "loss": np.linspace(2, 1, 20), "alignment": np.linspace(1, 0, 20)})
    one_row = pixels(training_curves(tmp_path / "losses.png", log))
    validation = pd.DataFrame(
        {"step": [5, 10, 15], "epoch": 1, "validation/kl": [3.0, 1.0, 2.0], "validation/score": 0.5}
    )
    validation["validation/accuracy"] = [0.1, 0.2, float("nan")]
    two_rows = pixels(training_curves(tmp_path / "all.png", pd.concat([log, validation])))
    # Five panels, four to a row.
    assert two_rows.shape == (2 * one_row.shape[0], 2 * one_row.shape[1], 3)


def test_nothing_to_draw_is_said(tmp_path):
    with pytest.raises(DataError, match=r"no losses or 'validation/…' columns to draw among \['step', 'loss'\]"):
        training_curves(tmp_path / "none.png", pd.DataFrame({"step": [1], "loss": [float("nan")]}))


@pytest.mark.parametrize("users", [1, 20, 90])
def test_user_improvement(tmp_path, users):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {"backbone": rng.random(users), "fixate": rng.random(users)}, index=[f"u{i}" for i in range(users)]
    )
    image = pixels(user_improvement(tmp_path / "users.png", per_user=frame, metric="kl"))
    assert share_of(image, (0x00, 0x72, 0xB2)) > 1e-4
    assert image.shape[0] < 2000


@pytest.mark.parametrize("frame", [{"a": [1.0]}, {"a": [1.0], "b": [float("nan")]}])
def test_user_improvement_wants_before_and_after(tmp_path, frame):
    with pytest.raises(DataError, match="two columns, before and after"):
        user_improvement(tmp_path / "users.png", per_user=pd.DataFrame(frame), metric="kl")


def test_drawing_never_touches_pyplot():
    code = (
        "import sys, pandas as pd, pathlib, tempfile\n"
        "from fixate_jax.lab.report.curves import training_curves\n"
        "log = pd.DataFrame({'step': [1, 2], 'loss': [2.0, 1.0]})\n"
        "training_curves(pathlib.Path(tempfile.mkdtemp()) / 'x.png', log)\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_method_differences_colours_people_by_who_gains(tmp_path):
    def means(gain: float) -> pd.DataFrame:
        rows = [("fixate", f"u{i}", 0.5 - gain) for i in range(8)] + [("mean", f"u{i}", 0.5) for i in range(8)]
        return pd.DataFrame([{"method": m, "mode": "FR", "user_id": u, "kl": k, "accuracy": 1 - k} for m, u, k in rows])

    def through(value: int) -> int:
        return round(0.75 * value + 0.25 * 255)

    blue, orange = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)
    for gain, there, absent in ((0.2, blue, orange), (-0.2, orange, blue)):
        path = tmp_path / f"{gain}.png"
        against = {"kl": "mean", "accuracy": "mean"}
        image = pixels(
            method_differences(path, {"a": means(gain), "b": means(gain)}, reference="fixate", against=against)
        )
        # Points are drawn a little transparent, over white.
        shares = [share_of(image, (through(r), through(g), through(b))) for r, g, b in (there, absent)]
        assert shares[0] > 0 and shares[1] == 0
