"""What tuning with each operator comes to, as a PNG file."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fixate_jax.lab.report.figures import BLUE, GREY, ORANGE, _style, save_figure

MARKERS = (("o", BLUE), ("s", ORANGE))
"""Of the first and the second backbone."""
LINES = {"uniform": ":", "user_mean": "--", "personal_content_regression": "-"}
"""Predictors drawn beside the KL."""
CLICK_LINES = {"majority_click": ":", "content_click": "--", "personal_content_click": "-"}
"""Predictors drawn beside the accuracy."""


def operator_overview(path: Path, rows: pd.DataFrame, predictors: pd.DataFrame) -> Path:
    """KL and accuracy of each operator, free-running, beside predictors without a model.

    Args:
        path: PNG to write.
        rows: `backbone`, `operator`, `kl`, `kl sd`, `backbone kl`, `accuracy` and `accuracy sd`; one or two backbones.
        predictors: `method`, `mode`, `kl` and `accuracy`.
    """
    operators = list(dict.fromkeys(rows["operator"]))
    figure = Figure(figsize=(9.6, 1.6 + 0.36 * len(operators)), dpi=150)
    figure.set_layout_engine("constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    free = predictors[predictors["mode"] == "FR"].set_index("method")
    for axis, metric, lines in ((left, "kl", LINES), (right, "accuracy", CLICK_LINES)):
        for method, line in lines.items():
            axis.axvline(free.loc[method, metric], color=GREY, linestyle=line, linewidth=1.2, label=method)
    for index, (backbone, own) in enumerate(rows.groupby("backbone", sort=False)):
        marker, colour = MARKERS[index]
        place = np.array([operators.index(name) for name in own["operator"]]) + 0.16 * (2 * index - 1)
        _points(left, own["kl"], own["kl sd"], place, marker, colour, f"{backbone}, tuned")
        _points(right, own["accuracy"], own["accuracy sd"], place, marker, colour, f"{backbone}, tuned")
        left.plot(
            own["backbone kl"], place, marker, color=colour, fillstyle="none", markersize=5, label=f"{backbone} alone"
        )
    left.set_xscale("log")
    left.set_yticks(range(len(operators)), operators, fontsize=8)
    left.invert_yaxis()
    _style(left, "KL of gaze and slot attention (lower is better)")
    _style(right, "accuracy of the click (higher is better)")
    for axis in (left, right):
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), fontsize=7, frameon=False, ncols=2)
    return save_figure(figure, path)


def _points(
    axis: Axes, values: pd.Series, spread: pd.Series, place: np.ndarray, marker: str, colour: str, label: str
) -> None:
    axis.errorbar(
        values, place, xerr=spread, fmt=marker, color=colour, markersize=5, linewidth=1.2, capsize=2, label=label
    )
