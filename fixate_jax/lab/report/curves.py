"""Curves of training, pretraining and faithfulness, as PNG files."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fixate_jax.errors import DataError
from fixate_jax.evaluation.metrics import LOWER_IS_BETTER
from fixate_jax.lab.report.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, _style, save_figure

# Colour and line together tell more operators apart than colours alone could.
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, "black")
LINES = ("-", "--", ":")
TITLES = {
    "deletion": ("deletion: low is faithful", "share of slots masked, most relevant first"),
    "insertion": ("insertion: high is faithful", "share of slots shown, most relevant first"),
}


def faithfulness_curves(
    path: Path, curves: Mapping[str, Mapping[str, Float[np.ndarray, " shares"]]], *, baseline: str
) -> Path:
    """Deletion and insertion side by side, a line for each operator.

    Args:
        path: PNG to write.
        curves: operator → "deletion" and "insertion" → probability of the answer at even shares from 0 to 1.
        baseline: the operator that is drawn thick and grey.
    """
    figure = Figure(figsize=(9.2, 3.8), dpi=150)
    figure.set_layout_engine("constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, (kind, (title, label)) in zip(axes, TITLES.items(), strict=True):
        others = 0
        for name, both in curves.items():
            shares = np.linspace(0, 1, len(both[kind]))
            if name == baseline:
                axis.plot(shares, both[kind], color=GREY, linewidth=4.0, alpha=0.5, label=name)
                continue
            colour, line = COLOURS[others % len(COLOURS)], LINES[others // len(COLOURS) % len(LINES)]
            axis.plot(shares, both[kind], color=colour, linestyle=line, linewidth=1.5, label=name)
            others += 1
        axis.set_xlim(0, 1)
        axis.set_xlabel(label, fontsize=9)
        _style(axis, title)
    axes[0].set_ylim(bottom=0)
    axes[0].set_ylabel("probability of the answer", fontsize=9)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8, frameon=False)
    return save_figure(figure, path)


def training_curves(path: Path, metrics: pd.DataFrame) -> Path:
    """Losses over the optimizer steps, and the validation metrics.

    Args:
        path: PNG to write.
        metrics: a row for each log entry: `step`, and NaN where an entry lacks a value. The columns "loss",
            "next_token", "alignment" and "penalty" are drawn in one panel each, thin as logged and thick as a running
            mean; every column that begins with "validation/" in a panel of its own, its best step marked.

    Raises:
        DataError: no column that can be drawn.
    """
    validation = [name for name in metrics.columns if str(name).startswith("validation/")]
    names = [name for name in ("loss", "next_token", "alignment", "penalty") if name in metrics.columns] + validation
    names = [name for name in names if metrics[name].notna().any()]
    if not names:
        raise DataError(f"no losses or 'validation/…' columns to draw among {list(metrics.columns)}")
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(3.3 * columns, 2.3 * rows), dpi=150)
    figure.set_layout_engine("constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, name in zip(axes, names, strict=False):
        points = metrics[["step", name]].dropna()
        if name in validation:
            _validation_panel(axis, points["step"], points[name], name.removeprefix("validation/"))
        else:
            window = max(1, len(points) // 20)
            smooth = points[name].rolling(window, min_periods=1, center=True).mean()
            axis.plot(points["step"], points[name], color=BLUE, alpha=0.3, linewidth=0.7)
            axis.plot(points["step"], smooth, color=BLUE, linewidth=1.6)
            _style(axis, name.replace("_", " "))
    for axis in axes[len(names) :]:
        axis.set_visible(False)
    figure.supxlabel("optimizer step", fontsize=9)
    return save_figure(figure, path)


def _validation_panel(axis: Axes, steps: pd.Series, values: pd.Series, name: str) -> None:
    lower = name in LOWER_IS_BETTER or name.endswith("loss")
    best = int(np.argmin(values) if lower else np.argmax(values))
    axis.plot(steps, values, color=GREEN, linewidth=1.4, marker="o", markersize=3)
    axis.plot(
        steps.iloc[best], values.iloc[best], "o", color=ORANGE, markersize=7, fillstyle="none", markeredgewidth=1.8
    )
    _style(axis, f"validation {name}: best {values.iloc[best]:.3f}")


def pretraining_curves(path: Path, metrics: pd.DataFrame) -> Path:
    """How a tiny backbone learns to read: per kind of page, the excess loss of each of its questions.

    Args:
        path: PNG to write.
        metrics: a row a step: `step`, and columns such as "gambles/read chance" with the excess of the loss over the
            least there can be, NaN in steps that did not ask it.
    """
    names = [name for name in metrics.columns if "/" in str(name)]
    pages = list(dict.fromkeys(str(name).split("/")[0] for name in names))
    figure = Figure(figsize=(5.5 * len(pages), 3.6), dpi=120)
    figure.set_layout_engine("constrained")
    axes = figure.subplots(1, len(pages), squeeze=False).ravel()
    window = max(1, len(metrics) // 60)
    for axis, page in zip(axes, pages, strict=True):
        for name in (n for n in names if str(n).startswith(f"{page}/")):
            smooth = metrics[name].rolling(window, min_periods=1, center=True).mean()
            axis.plot(metrics["step"], smooth, linewidth=1.3, label=str(name).split("/")[1])
        axis.set_yscale("symlog", linthresh=0.1)
        axis.legend(fontsize=6, frameon=False, ncols=2)
        _style(axis, f"{page}: loss above the least possible")
    figure.supxlabel("step", fontsize=9)
    return save_figure(figure, path)
