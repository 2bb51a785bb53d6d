"""The figure of `fixate fidelity`: calibration, places, and how much users differ."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fixate_jax.lab.report.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, _style, save_figure

PEOPLE = "people"
COLOURS = {PEOPLE: BLUE, "fixate": ORANGE, "backbone": GREEN, "majority_click": PURPLE, "user_mean_shrunk": PURPLE}
"""Of the methods in the figure; the tables have the others."""


def fidelity_figure(
    path: Path, measures: pd.DataFrame, reliability: pd.DataFrame, slots: pd.DataFrame, *, title: str
) -> Path:
    """Four panels: reliability of click probabilities, clicks by slot, attention by slot, spread and likeness.

    Args:
        path: PNG to write.
        measures: from :func:`fixate_jax.lab.fidelity.fidelity.measures_table`.
        reliability: from ``reliability_table``.
        slots: from ``slots_table``.
        title: above the panels.
    """
    figure = Figure(figsize=(10.5, 7), dpi=130)
    figure.set_layout_engine("constrained")
    (curve, clicks), (differ, looks) = figure.subplots(2, 2)
    _reliability(curve, reliability)
    _by_slot(clicks, slots[slots["kind"] == "clicks"], "share of clicks by slot")
    _by_slot(looks, slots[slots["kind"] == "attention"], "share of attention by slot")
    _differences(differ, measures)
    figure.suptitle(title, fontsize=11, fontweight="bold")
    return save_figure(figure, path)


def _shown(methods: Sequence[str]) -> list[str]:
    return [method for method in COLOURS if method in methods]


def _reliability(axis: Axes, table: pd.DataFrame) -> None:
    top = float(table[["predicted", "observed"]].to_numpy().max()) * 1.05
    axis.plot([0, top], [0, top], color="black", linewidth=0.8)
    for method in _shown(table["method"].unique().tolist()):
        rows = table[table["method"] == method]
        axis.fill_between(rows["predicted"], rows["low"], rows["high"], color=COLOURS[method], alpha=0.15, linewidth=0)
        axis.plot(rows["predicted"], rows["observed"], "o-", color=COLOURS[method], markersize=4, label=method)
    axis.set(xlim=(0, top), ylim=(0, None))
    axis.set_xlabel("predicted probability of a click", fontsize=9)
    axis.set_ylabel("share clicked", fontsize=9)
    axis.legend(fontsize=8, frameon=False)
    _style(axis, "reliability, bands 95% over users")


def _by_slot(axis: Axes, table: pd.DataFrame, title: str) -> None:
    for method in _shown(table["method"].unique().tolist()):
        rows = table[table["method"] == method]
        wide = 2.4 if method == PEOPLE else 1.4
        if method == PEOPLE:
            axis.fill_between(rows["slot"], rows["low"], rows["high"], color=COLOURS[method], alpha=0.2, linewidth=0)
        axis.plot(rows["slot"], rows["share"], "o-", color=COLOURS[method], markersize=4, linewidth=wide, label=method)
    axis.axhline(1 / table["slot"].nunique(), color=GREY, linewidth=0.8, linestyle=":")
    axis.set_ylim(0, None)
    axis.set_xticks(sorted(table["slot"].unique()))
    axis.set_xlabel("slot, in reading order", fontsize=9)
    axis.legend(fontsize=8, frameon=False)
    _style(axis, title)


def _differences(axis: Axes, table: pd.DataFrame) -> None:
    names = ["gaze spread", "click spread", "gaze likeness", "click likeness"]
    rows = table[table["measure"].isin(names)]
    methods = _shown(rows["method"].unique().tolist())
    for place, name in enumerate(names):
        for i, method in enumerate(methods):
            row = rows[(rows["measure"] == name) & (rows["method"] == method)]
            if row.empty or row["value"].isna().all():
                continue
            y = place + 0.16 * (i - (len(methods) - 1) / 2)
            axis.plot(row[["low", "high"]].to_numpy()[0], [y, y], color=COLOURS[method], linewidth=1.8)
            axis.plot(row["value"], [y], "o", color=COLOURS[method], markersize=5)
    for method in methods:
        axis.plot([], [], "o-", color=COLOURS[method], label=method)
    axis.axvline(1, color="black", linewidth=0.8)
    axis.axvline(0, color=GREY, linewidth=0.8, linestyle=":")
    axis.set_yticks(range(len(names)), names, fontsize=9)
    axis.invert_yaxis()
    axis.set_xlabel("spread: users ÷ people; likeness: correlation", fontsize=9)
    axis.legend(fontsize=8, frameon=False)
    _style(axis, "do users differ as people do?")
