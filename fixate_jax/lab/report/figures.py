"""Pictures of a run, as PNG files: what was looked at, how training went, and for whom it helped."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from fixate_jax.errors import DataError
from fixate_jax.evaluation.metrics import LOWER_IS_BETTER
from fixate_jax.runtime.durable import replacing

# Okabe and Ito's palette, told apart under every common colour blindness.
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#6E6E6E"
HEAT = "viridis"
"""Perceptually even, and readable in grey."""


def page_figure(
    path: Path,
    *,
    image: UInt8[np.ndarray, "height width 3"],
    boxes: Float[np.ndarray, "slots 4"],
    labels: Sequence[str],
    gaze: Float[np.ndarray, " slots"],
    click: int,
    relevance: Mapping[str, Float[np.ndarray, "_rows _columns"]],
    slot_attention: Mapping[str, Float[np.ndarray, " slots"]],
    title: str = "",
) -> Path:
    """One page side by side: as drawn with its slots, with human gaze, and with each method's relevance.

    The clicked slot has a thick orange frame. Gaze fills the slots, relevance the cells of the visual tokens, each
    panel's colours reaching up to its own maximum; shares of the slots are printed at the top of each.

    Args:
        path: PNG to write.
        image: the page.
        boxes: (x0, y0, x1, y1) of each slot in relative page coordinates.
        labels: of the slots.
        gaze: share of the dwell time on each slot.
        click: index of the clicked slot.
        relevance: a grid of token relevance over the page for each method; its magnitude is shown.
        slot_attention: the share of each slot for each method in `relevance`.
        title: above the panels.

    Raises:
        DataError: a method has relevance but no slot attention, or the other way round.
    """
    if set(relevance) != set(slot_attention):
        raise DataError(
            f"relevance is of {sorted(relevance)} but slot attention of {sorted(slot_attention)}; give both of each"
        )
    height, width = image.shape[:2]
    panels = 2 + len(relevance)
    panel_width = 3.6
    figure = Figure(figsize=(panel_width * panels, panel_width * height / width + (0.75 if title else 0.45)), dpi=150)
    figure.set_layout_engine("constrained", w_pad=0.03, h_pad=0.03)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    grey = np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2) / 255
    for axis in axes:
        axis.set_axis_off()
        axis.set(xlim=(0, 1), ylim=(1, 0), aspect=height / width)

    axes[0].imshow(image, extent=(0, 1, 1, 0), aspect="auto")
    axes[0].set_title("page", fontsize=10)
    draw_slots(axes[0], boxes, list(labels), click)

    axes[1].imshow(grey, extent=(0, 1, 1, 0), aspect="auto")
    axes[1].set_title("human gaze", fontsize=10)
    draw_heat(axes[1], fill_slots(boxes, gaze))
    draw_slots(axes[1], boxes, shares(labels, gaze), click)

    for axis, (method, grid) in zip(axes[2:], relevance.items(), strict=True):
        axis.imshow(grey, extent=(0, 1, 1, 0), aspect="auto")
        axis.set_title(f"{method} relevance", fontsize=10)
        draw_heat(axis, np.abs(grid))
        draw_slots(axis, boxes, shares(labels, slot_attention[method]), click)
    if title:
        figure.suptitle(title, fontsize=11, fontweight="bold")
    return save_figure(figure, path)


def shares(labels: Sequence[str], shares: Float[np.ndarray, " slots"]) -> list[str]:
    return [f"{label} {100 * share:.0f}%" for label, share in zip(labels, shares, strict=True)]


def fill_slots(
    boxes: Float[np.ndarray, "slots 4"], values: Float[np.ndarray, " slots"]
) -> Float[np.ndarray, "rows columns"]:
    """A grid over the page with each slot's value inside its box, NaN between them."""
    heat = np.full((200, 200), np.nan)
    y, x = (np.indices(heat.shape) + 0.5) / heat.shape[0]
    for (x0, y0, x1, y1), value in zip(boxes, values, strict=True):
        heat[(x >= x0) & (x < x1) & (y >= y0) & (y < y1)] = value
    return heat


def draw_heat(axis: Axes, grid: Float[np.ndarray, "rows columns"], *, top: float | None = None) -> None:
    """A transparent layer, denser where the value is high, so that the page shows through; nothing where it is NaN.

    Args:
        axis: to draw on, its limits 0 to 1.
        grid: values over the page.
        top: where the colours end (None: at the grid's own maximum).
    """
    top = float(np.nanmax(grid)) or 1.0 if top is None else top
    alpha = np.where(np.isnan(grid), 0.0, 0.3 + 0.45 * np.nan_to_num(grid) / top)
    axis.imshow(np.nan_to_num(grid), extent=(0, 1, 1, 0), aspect="auto", cmap=HEAT, vmin=0, vmax=top, alpha=alpha)


def draw_slots(axis: Axes, boxes: Float[np.ndarray, "slots 4"], texts: Sequence[str], click: int) -> None:
    for slot, ((x0, y0, x1, y1), text) in enumerate(zip(boxes, texts, strict=True)):
        clicked = slot == click
        edge, line = (ORANGE, 2.6) if clicked else ("white", 1.0)
        # Black under white or orange keeps the frame visible on any page; the clicked one lies over its neighbours'.
        for colour, thickness in (("black", line + 1.2), (edge, line)):
            frame = Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=thickness)
            axis.add_patch(frame).set_zorder(3 if clicked else 2)
        axis.text(
            x0 + 0.012,
            y0 + 0.02,
            text,
            ha="left",
            va="top",
            fontsize=7.5,
            color="white",
            fontweight="bold" if clicked else "normal",
            zorder=4,
            bbox={"facecolor": ORANGE if clicked else "black", "alpha": 0.8, "edgecolor": "none", "pad": 1.4},
        )


def method_differences(
    path: Path, per_user: Mapping[str, pd.DataFrame], *, reference: str, against: Mapping[str, str]
) -> Path:
    """For each variant of a method, how much better or worse it does for each person than another method.

    Args:
        path: PNG to write.
        per_user: variant → `metrics.user_means`.
        reference: the method under test; its free-running rows are drawn.
        against: metric → the method to compare with, a panel each.
    """
    figure = Figure(figsize=(4.6 * len(against), 0.5 * len(per_user) + 1.3), dpi=150)
    figure.set_layout_engine("constrained")
    axes = figure.subplots(1, len(against), squeeze=False).ravel()
    for axis, (metric, other) in zip(axes, against.items(), strict=True):
        for row, means in enumerate(per_user.values()):
            free = means[means["mode"] == "FR"].pivot(index="user_id", columns="method", values=metric)
            difference = (free[reference] - free[other]).to_numpy(float)
            good = difference < 0 if metric in LOWER_IS_BETTER else difference > 0
            colours = np.where(good, BLUE, np.where(difference == 0, GREY, ORANGE))
            height = row + np.linspace(-0.22, 0.22, len(difference))
            axis.scatter(difference, height, s=14, c=colours, alpha=0.75, linewidths=0)
            axis.plot([difference.mean()] * 2, [row - 0.35, row + 0.35], color="black", linewidth=1.6)
            axis.text(
                1.0, row, f"{good.sum()}/{good.size}", transform=axis.get_yaxis_transform(), fontsize=7, va="center"
            )
        axis.axvline(0, color="grey", linewidth=0.8)
        axis.set_yticks(range(len(per_user)), list(per_user), fontsize=8)
        axis.invert_yaxis()
        axis.locator_params(axis="x", nbins=5)
        _style(axis, f"{metric}: {reference} − {other.replace('_', ' ')}")
    return save_figure(figure, path)


def user_improvement(path: Path, *, per_user: pd.DataFrame, metric: str) -> Path:
    """Each user's metric before and after, users sorted by what they gain.

    Args:
        path: PNG to write.
        per_user: users in the index and two columns, before and after; their names become the legend.
        metric: what the columns hold; decides the better direction.

    Raises:
        DataError: not two columns, or no user with both values.
    """
    if per_user.shape[1] != 2 or per_user.dropna().empty:
        raise DataError(
            f"a picture of the improvement needs two columns, before and after, and users with both values; "
            f"got the columns {list(per_user.columns)} and {len(per_user.dropna())} such users"
        )
    rows = per_user.dropna()
    before, after = (rows.iloc[:, column].to_numpy(dtype=np.float64) for column in (0, 1))
    gain = before - after if metric in LOWER_IS_BETTER else after - before
    order = np.argsort(gain, kind="stable")
    before, after, gain, users = before[order], after[order], gain[order], rows.index.to_numpy()[order]
    named = len(users) <= 60
    figure = Figure(figsize=(6.0, 1.3 + (0.2 * len(users) if named else 10.0)), dpi=150)
    figure.set_layout_engine("constrained")
    axis = figure.subplots()
    place = np.arange(len(users))
    axis.hlines(
        place, before, after, color=np.where(gain > 0, GREEN, PURPLE), linewidth=2.0 if named else 0.8, alpha=0.7
    )
    axis.plot(before, place, "o", color=GREY, markersize=5 if named else 2, label=str(rows.columns[0]))
    axis.plot(after, place, "D", color=BLUE, markersize=5 if named else 2, label=str(rows.columns[1]))
    axis.set_yticks(place if named else [], [str(user) for user in users] if named else [], fontsize=7)
    axis.set_ylim(-0.8, len(users) - 0.2)
    axis.set_ylabel("user", fontsize=9)
    direction = "lower" if metric in LOWER_IS_BETTER else "higher"
    axis.set_xlabel(f"{metric} ({direction} is better)", fontsize=9)
    _style(axis, f"{int((gain > 0).sum())} of {len(users)} users better, mean gain {gain.mean():+.4f}")
    figure.legend(loc="outside lower center", fontsize=8, frameon=False, ncols=2)
    return save_figure(figure, path)


def _style(axis: Axes, title: str) -> None:
    axis.set_title(title, fontsize=9, loc="left")
    axis.tick_params(labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25, linewidth=0.6)


def save_figure(figure: Figure, path: Path) -> Path:
    # A dollar in a name begins no formula; the numbers at an axis in powers are one.
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) if axis.get_scale() != "linear"):
        for text in axis.get_ticklabels(which="both"):
            text.set_parse_math(True)
    # A Figure that pyplot does not know draws with Agg and leaves no global state behind.
    engine = figure.get_layout_engine()
    if engine is not None:
        # Laid out once and not again while drawing, which takes as long.
        engine.execute(figure)
        figure.set_layout_engine("none")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", facecolor="white", pil_kwargs={"optimize": True})
    return path
