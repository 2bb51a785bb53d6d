"""Figures of studies: what leaving something out changes, and measures along a setting."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fixate_jax.lab.report.figures import BLUE, GREEN, GREY, ORANGE, _style, save_figure

READINGS = {"preset better": BLUE, "variant better": ORANGE, "no difference shown": GREY}


@dataclass(frozen=True, kw_only=True)
class Point:
    """A value of a setting, and a metric there: mean and deviation over runs, and the means of what stands beside."""

    value: Any
    mean: float
    sd: float
    preset: bool = False
    beside: Mapping[str, float] = field(default_factory=dict)


def differences(path: Path, tests: pd.DataFrame, *, title: str) -> Path:
    """Preset − variant for each variant, with its interval over people; a panel for each metric.

    Args:
        path: PNG to write.
        tests: from :func:`fixate_jax.lab.studies.report.tests_table`.
        title: above the panels.
    """
    metrics = list(dict.fromkeys(tests["metric"]))
    names = list(dict.fromkeys(tests["against"]))
    figure = Figure(figsize=(4.4 * len(metrics) + 1.2, 0.36 * len(names) + 1.5), dpi=150)
    figure.set_layout_engine("constrained")
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for axis, metric in zip(panels, metrics, strict=True):
        rows = tests[tests["metric"] == metric].set_index("against")
        for place, name in enumerate(names):
            row = rows.loc[name]
            colour = READINGS[row["reading"]]
            axis.plot([row["low"], row["high"]], [place, place], color=colour, linewidth=1.8)
            axis.plot(row["difference"], place, "o", color=colour, markersize=5)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_yticks(range(len(names)), names, fontsize=8)
        axis.set_xlabel(f"preset − variant, {metric}", fontsize=9)
        _style(axis, metric)
    panels[0].invert_yaxis()  # of all panels, which share it: in the order of the table
    handles = [Axes.plot(panels[0], [], [], "o-", color=c, label=name)[0] for name, c in READINGS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=10, fontweight="bold")
    return save_figure(figure, path)


def axis_lines(
    path: Path,
    lines: Mapping[str, Mapping[str, Sequence[Point]]],
    *,
    title: str,
) -> Path:
    """Measures along each setting: a row of panels for each setting, a column for each metric.

    Args:
        path: PNG to write.
        lines: setting → metric → points in the order of their values, which are drawn at even distances.
        title: above the panels.
    """
    metrics = list(next(iter(lines.values())))
    figure = Figure(figsize=(3.9 * len(metrics) + 0.6, 2.3 * len(lines) + 0.6), dpi=150)
    figure.set_layout_engine("constrained")
    grid = figure.subplots(len(lines), len(metrics), squeeze=False, sharey="col")
    for panels, (setting, by_metric) in zip(grid, lines.items(), strict=True):
        for axis, metric in zip(panels, metrics, strict=True):
            points = by_metric[metric]
            places = range(len(points))
            means, deviations = [p.mean for p in points], [p.sd for p in points]
            axis.errorbar(places, means, deviations, color=BLUE, marker="o", markersize=4, capsize=3)
            for place, point in zip(places, points, strict=True):
                if point.preset:
                    axis.plot(place, point.mean, "o", color=ORANGE, markersize=9, fillstyle="none", markeredgewidth=1.8)
            beside = dict.fromkeys(name for p in points for name in p.beside)
            for name, line in zip(beside, ("--", ":", "-."), strict=False):
                levels = [p.beside.get(name, math.nan) for p in points]
                axis.plot(places, levels, color=GREEN, linestyle=line, linewidth=1.2, label=name)
            without = "all" if setting.startswith("data.") else "null"
            axis.set_xticks(list(places), [without if p.value is None else str(p.value) for p in points], fontsize=8)
            axis.set_xlabel(setting, fontsize=9)
            _style(axis, metric)
    for axis in grid[0]:
        axis.legend(fontsize=7, frameon=False)
    figure.suptitle(f"{title} (circle: the preset; bars: sd over runs)", fontsize=10, fontweight="bold")
    return save_figure(figure, path)
