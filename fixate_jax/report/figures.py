"""Pictures of a run, as PNG files: what was looked at, how training went, and for whom it helped."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle

from fixate_jax.errors import DataError
from fixate_jax.metrics import LOWER_IS_BETTER

# Okabe and Ito's palette, told apart under every common colour blindness.
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#6E6E6E"
HEAT = "viridis"
"""Perceptually even, and readable in grey."""
DIFFERENCE = "PuOr_r"
"""Purple below 0, orange above; told apart under every common colour blindness."""
SLOT_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, GREY)
MAP_WIDTH = 1.9
"""Inches of a page in a slot map."""


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
    _draw_slots(axes[0], boxes, list(labels), click)

    axes[1].imshow(grey, extent=(0, 1, 1, 0), aspect="auto")
    axes[1].set_title("human gaze", fontsize=10)
    heat = np.full((200, 200), np.nan)
    y, x = (np.indices(heat.shape) + 0.5) / heat.shape[0]
    for (x0, y0, x1, y1), share in zip(boxes, gaze, strict=True):
        heat[(x >= x0) & (x < x1) & (y >= y0) & (y < y1)] = share
    _draw_heat(axes[1], heat)
    _draw_slots(axes[1], boxes, _shares(labels, gaze), click)

    for axis, (method, grid) in zip(axes[2:], relevance.items(), strict=True):
        axis.imshow(grey, extent=(0, 1, 1, 0), aspect="auto")
        axis.set_title(f"{method} relevance", fontsize=10)
        _draw_heat(axis, np.abs(grid))
        _draw_slots(axis, boxes, _shares(labels, slot_attention[method]), click)
    if title:
        figure.suptitle(title, fontsize=11, fontweight="bold")
    return _save(figure, path)


def _shares(labels: Sequence[str], shares: Float[np.ndarray, " slots"]) -> list[str]:
    return [f"{label} {100 * share:.0f}%" for label, share in zip(labels, shares, strict=True)]


def _draw_heat(axis: Axes, grid: Float[np.ndarray, "rows columns"]) -> None:
    """A transparent layer, denser where the value is high, so that the page shows through; nothing where it is NaN."""
    top = float(np.nanmax(grid)) or 1.0
    alpha = np.where(np.isnan(grid), 0.0, 0.3 + 0.45 * np.nan_to_num(grid) / top)
    axis.imshow(np.nan_to_num(grid), extent=(0, 1, 1, 0), aspect="auto", cmap=HEAT, vmin=0, vmax=top, alpha=alpha)


def _draw_slots(axis: Axes, boxes: Float[np.ndarray, "slots 4"], texts: Sequence[str], click: int) -> None:
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
            height = row + np.linspace(-0.22, 0.22, len(difference))
            axis.scatter(difference, height, s=14, c=np.where(good, BLUE, ORANGE), alpha=0.75, linewidths=0)
            axis.plot([difference.mean()] * 2, [row - 0.35, row + 0.35], color="black", linewidth=1.6)
            axis.text(
                1.0, row, f"{good.sum()}/{good.size}", transform=axis.get_yaxis_transform(), fontsize=7, va="center"
            )
        axis.axvline(0, color="grey", linewidth=0.8)
        axis.set_yticks(range(len(per_user)), list(per_user), fontsize=8)
        axis.invert_yaxis()
        _style(axis, f"{metric}: {reference} − {other.replace('_', ' ')}, each person")
    return _save(figure, path)


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
    return _save(figure, path)


def _style(axis: Axes, title: str) -> None:
    axis.set_title(title, fontsize=9, loc="left")
    axis.tick_params(labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25, linewidth=0.6)


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    # A Figure that pyplot does not know draws with Agg and leaves no global state behind.
    figure.savefig(path, format="png", facecolor="white")
    return path


def slot_maps(
    path: Path,
    *,
    boxes: Float[np.ndarray, "slots 4"],
    labels: Sequence[str],
    users: Sequence[str],
    gaze: Float[np.ndarray, "users slots"],
    sessions: Int[np.ndarray, " users"],
    aspect: float,
    most: int = 24,
) -> Path:
    """Where each person looks: the page with its slots, once for the mean over people and once for each person.

    A person's slots are orange where they look more than people do on the mean, purple where less; the numbers are
    the share of the person's gaze in per cent and, below, how many points that is above the mean.

    Args:
        path: PNG to write.
        boxes: (x0, y0, x1, y1) of each slot in relative page coordinates.
        labels: of the slots.
        users: the people.
        gaze: mean share of the dwell time on each slot of each person.
        sessions: of each person.
        aspect: height of the page over its width.
        most: people drawn; of more, those with the most sessions, which the title then says.
    """
    panels = min(len(users), most) + 1
    columns = min(panels, max(3, int(np.ceil(np.sqrt(panels * min(aspect, 2.0) * 1.6)))))
    rows = -(-panels // columns)
    size = (MAP_WIDTH * columns + 1.0, (MAP_WIDTH * aspect + 0.25) * rows + 0.6)
    figure = Figure(figsize=size, dpi=150)
    figure.set_layout_engine("constrained", w_pad=0.04, h_pad=0.04)
    draw_slot_maps(
        figure,
        boxes=boxes,
        labels=labels,
        users=users,
        gaze=gaze,
        sessions=sessions,
        aspect=aspect,
        most=most,
        columns=columns,
        title="Mean gaze of each person",
    )
    return _save(figure, path)


def draw_slot_maps(
    figure: Figure | SubFigure,
    *,
    boxes: Float[np.ndarray, "slots 4"],
    labels: Sequence[str],
    users: Sequence[str],
    gaze: Float[np.ndarray, "users slots"],
    sessions: Int[np.ndarray, " users"],
    aspect: float,
    most: int,
    columns: int,
    title: str,
) -> None:
    """The maps of `slot_maps` in a figure or in a part of one.

    Args:
        figure: where to draw; pages are best about 1.9 inches wide.
        boxes, labels, users, gaze, sessions, aspect, most: as there.
        columns: of maps.
        title: above the maps.
    """
    drawn = np.sort(np.argsort(-sessions, kind="stable")[:most])
    rows = -(-(len(drawn) + 1) // columns)
    mean = 100 * gaze.mean(axis=0)
    points = 100 * gaze - mean
    axes = figure.subplots(rows, columns, squeeze=False)
    colours = ScalarMappable(
        Normalize(-np.abs(points[drawn]).max() or -1.0, np.abs(points[drawn]).max() or 1.0), DIFFERENCE
    )
    for axis in axes.flat:
        axis.set_axis_off()
        axis.set(xlim=(-0.01, 1.01), ylim=(1.01, -0.01), aspect=aspect)
    first, *others = axes.flat
    grey = ScalarMappable(Normalize(0, 3 * mean.max()), "Greys")
    texts = [f"{label}\n{share:.0f}%" for label, share in zip(labels, mean, strict=True)]
    _draw_map(first, boxes, grey.to_rgba(mean), texts, aspect)
    first.set_title(f"mean over {len(users)} people", fontsize=8, fontweight="bold")
    for axis, user in zip(others, drawn, strict=False):
        texts = [f"{100 * share:.0f}%\n{_signed(more)}" for share, more in zip(gaze[user], points[user], strict=True)]
        _draw_map(axis, boxes, colours.to_rgba(points[user]), texts, aspect)
        name = users[user] if len(users[user]) <= 16 else f"{users[user][:15]}…"
        axis.set_title(f"user {name}, n = {sessions[user]}", fontsize=8)
    bar = figure.colorbar(colours, ax=axes, shrink=0.6, aspect=30)
    bar.set_label("percentage points beyond the mean over people", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    few = f"; the {len(drawn)} of {len(users)} people with the most sessions" if len(users) > len(drawn) else ""
    figure.suptitle(f"{title}{few}", fontsize=11, fontweight="bold")


def _signed(points: float) -> str:
    return "±0" if round(points) == 0 else f"{points:+.0f}".replace("-", "−")


def _draw_map(
    axis: Axes,
    boxes: Float[np.ndarray, "slots 4"],
    colours: Float[np.ndarray, "slots 4"],
    texts: Sequence[str],
    aspect: float,
) -> None:
    """Filled slots on the outline of the page, with texts where they can be read."""
    axis.add_patch(Rectangle((0, 0), 1, 1, fill=False, edgecolor=GREY, linewidth=0.8))
    for (x0, y0, x1, y1), colour, text in zip(boxes, colours, texts, strict=True):
        axis.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, facecolor=colour, edgecolor=GREY, linewidth=0.5))
        # In points: a letter is about 0.65 of the font's size wide, a line 1.3 high.
        size = min(72 * MAP_WIDTH * (x1 - x0) / (4 * 0.65), 72 * MAP_WIDTH * aspect * (y1 - y0) / (2 * 1.3), 8.0)
        if size >= 4:
            dark = colour[:3] @ np.array([0.299, 0.587, 0.114]) < 0.5
            place = ((x0 + x1) / 2, (y0 + y1) / 2)
            axis.text(*place, text, ha="center", va="center", fontsize=size, color="white" if dark else "black")


def half_scatter(
    path: Path,
    *,
    first: Float[np.ndarray, "users slots"],
    second: Float[np.ndarray, "users slots"],
    labels: Sequence[str],
) -> Path:
    """Each person's mean gaze beyond the mean over people, in one half of their sessions against the other.

    Args:
        path: PNG to write.
        first: mean share of the dwell time of each person on each slot, in one half of the sessions.
        second: the same in the other half.
        labels: of the slots.
    """
    figure = Figure(figsize=(4.6, 4.2), dpi=150)
    figure.set_layout_engine("constrained")
    draw_halves(figure, first=first, second=second, labels=labels)
    return _save(figure, path)


def draw_halves(
    figure: Figure | SubFigure,
    *,
    first: Float[np.ndarray, "users slots"],
    second: Float[np.ndarray, "users slots"],
    labels: Sequence[str],
    title: str = "",
) -> None:
    """The points of `half_scatter` in a figure or in a part of one, with a title before what they are."""
    x, y = (100 * (half - half.mean(axis=0)) for half in (first, second))
    norm = np.sqrt((x**2).sum() * (y**2).sum())
    axis = figure.subplots()
    reach = 1.08 * max(np.abs(x).max(), np.abs(y).max()) or 1.0
    axis.plot([-reach, reach], [-reach, reach], color=GREY, linewidth=0.8)
    named = len(labels) <= len(SLOT_COLOURS)
    # Hundreds of points lie over each other.
    size, alpha = (18, 0.8) if x.size <= 200 else (12, 0.35)
    for slot, label in enumerate(labels):
        colour, marker = (SLOT_COLOURS[slot], "osD^v"[slot]) if named else (BLUE, "o")
        at = x[:, slot], y[:, slot]
        axis.scatter(*at, s=size, alpha=alpha, color=colour, marker=marker, linewidths=0, label=label)
    axis.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    axis.set_xlabel("first half: points beyond the mean over people", fontsize=8)
    axis.set_ylabel("second half", fontsize=8)
    r = (x * y).sum() / norm if norm > 0 else np.nan
    _style(axis, f"{title}{': ' if title else ''}{len(x)} people × {len(labels)} slots: r = {r:.2f}")
    if named:
        axis.legend(title="slot", title_fontsize=8, fontsize=8, frameon=False)


def side_by_side(path: Path, panels: Sequence[Callable[[SubFigure], None]], *, size: tuple[float, float]) -> Path:
    """Several pictures beside each other.

    Args:
        path: PNG to write.
        panels: each draws one.
        size: width and height of one in inches.
    """
    figure = Figure(figsize=(size[0] * len(panels), size[1]), dpi=150)
    figure.set_layout_engine("constrained", w_pad=0.04, h_pad=0.04)
    for panel, draw in zip(figure.subfigures(1, len(panels), squeeze=False).ravel(), panels, strict=True):
        draw(panel)
    return _save(figure, path)
