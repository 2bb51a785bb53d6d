"""Figures of a comparison of versions: differences with their intervals, and a page in each version."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fixate_jax.lab.report.figures import (
    BLUE,
    GREY,
    ORANGE,
    _style,
    draw_heat,
    draw_slots,
    fill_slots,
    save_figure,
    shares,
)

MOST = 24
"""Rows of a panel; of more things those that change most are shown."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Shown:
    """One page in one version.

    Attributes:
        image: the page.
        boxes: of its slots, in relative page coordinates.
        names: what is written in the slots.
        shares: measure → the share of each slot.
    """

    image: UInt8[np.ndarray, "height width 3"] = field(repr=False)
    boxes: Float[np.ndarray, "slots 4"]
    names: tuple[str, ...]
    shares: Mapping[str, Float[np.ndarray, " slots"]]


def version_differences(path: Path, table: pd.DataFrame, *, title: str) -> Path:
    """What each thing gains or loses against the first version: a row of panels for each other version.

    The thick line is the interval over users, the thin one that over users and pages. Blue gains, orange loses, grey is
    not told from 0 by the interval over users. Items come in the order of what their clicks gain, slots in their own.

    Args:
        path: PNG to write.
        table: :meth:`fixate_jax.lab.comparison.Comparison.items` or ``slots``.
        title: above the panels.
    """
    key = str(table.columns[0])
    first, *others = dict.fromkeys(table["version"])
    measures = list(dict.fromkeys(table["measure"]))
    names = _names(table[table["version"] != first], key)
    size = (4.2 * len(measures) + 1.4, (0.2 * len(names) + 0.9) * len(others) + 0.6)
    figure = Figure(figsize=size, dpi=150)
    figure.set_layout_engine("constrained")
    grid = figure.subplots(len(others), len(measures), squeeze=False)
    for panels, version in zip(grid, others, strict=True):
        here = table[table["version"] == version]
        listed = names if key == "slot" else _sorted(here, key, names)
        for axis, measure in zip(panels, measures, strict=True):
            rows = here[here["measure"] == measure].set_index(key).loc[listed]
            _draw_rows(axis, rows)
            _style(axis, f"{measure}: {version} − {first}")
        panels[1].set_yticklabels([])
    figure.suptitle(f"{title}\n95% intervals: thick over users, thin over users and pages", fontsize=9)
    return save_figure(figure, path)


def _names(table: pd.DataFrame, key: str) -> list[object]:
    """All things, or those whose clicks change most in any version."""
    clicks = table[table["measure"] == "click"]
    largest = clicks.assign(size=clicks["difference"].abs()).groupby(key, sort=False)["size"].max()
    kept = set(largest.nlargest(MOST).index)
    return [name for name in largest.index if name in kept]


def _sorted(table: pd.DataFrame, key: str, names: Sequence[object]) -> list[object]:
    gains = table[table["measure"] == "click"].set_index(key)["difference"].loc[list(names)]
    return list(gains.sort_values(ascending=False, kind="stable").index)


def _draw_rows(axis: Axes, rows: pd.DataFrame) -> None:
    for place, row in enumerate(rows.itertuples()):
        certain = row.low > 0 or row.high < 0
        colour = GREY if not certain else BLUE if row.difference > 0 else ORANGE
        axis.plot([100 * row.low_pages, 100 * row.high_pages], [place, place], color=colour, linewidth=0.9)
        axis.plot([100 * row.low, 100 * row.high], [place, place], color=colour, linewidth=2.6)
        axis.plot(100 * row.difference, place, "o", color=colour, markersize=4)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(rows)), [str(name) for name in rows.index], fontsize=7)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_xlabel("percentage points", fontsize=8)


def page_versions(path: Path, versions: Mapping[str, Shown], *, title: str) -> Path:
    """One page in each version side by side: above by attention, below by clicks; the highest slot framed in orange.

    Fills are on one scale in all versions of a measure, so that they can be compared.

    Args:
        path: PNG to write.
        versions: the page by the name of the version.
        title: above the panels.
    """
    measures = list(next(iter(versions.values())).shares)
    height, width = next(iter(versions.values())).image.shape[:2]
    figure = Figure(figsize=(3.6 * len(versions), (3.6 * height / width + 0.3) * len(measures) + 0.4), dpi=150)
    figure.set_layout_engine("constrained", w_pad=0.03, h_pad=0.03)
    grid = figure.subplots(len(measures), len(versions), squeeze=False)
    for row, measure in zip(grid, measures, strict=True):
        top = max(float(shown.shares[measure].max()) for shown in versions.values())
        for axis, (name, shown) in zip(row, versions.items(), strict=True):
            tall, wide = shown.image.shape[:2]
            axis.set_axis_off()
            axis.set(xlim=(0, 1), ylim=(1, 0), aspect=tall / wide)
            grey = np.repeat(shown.image.mean(axis=2, keepdims=True), 3, axis=2) / 255
            axis.imshow(grey, extent=(0, 1, 1, 0), aspect="auto")
            axis.set_title(f"{name}: {measure}", fontsize=10)
            draw_heat(axis, fill_slots(shown.boxes, shown.shares[measure]), top=top)
            texts = shares(shown.names, shown.shares[measure])
            draw_slots(axis, shown.boxes, texts, int(np.argmax(shown.shares[measure])))
    figure.suptitle(title, fontsize=11, fontweight="bold")
    return save_figure(figure, path)
