"""Pictures of people's gaze, as PNG files: where each person looks, and how alike the halves of their sessions are."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle

from fixate_jax.lab.report.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, _style, save_figure

DIFFERENCE = "PuOr_r"
"""Purple below 0, orange above; told apart under every common colour blindness."""
SLOT_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, GREY)
MAP_WIDTH = 1.9
"""Inches of a page in a slot map."""


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
    few = f"; the {most} of {len(users)} people with the most sessions" if len(users) > most else ""
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
        title=f"Mean gaze of each person{few}",
    )
    return save_figure(figure, path)


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
        figure: where to draw; pages are best about `MAP_WIDTH` inches wide.
        boxes: (x0, y0, x1, y1) of each slot in relative page coordinates.
        labels: of the slots.
        users: the people.
        gaze: mean share of the dwell time on each slot of each person.
        sessions: of each person.
        aspect: height of the page over its width.
        most: people drawn; of more, those with the most sessions.
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
    figure.suptitle(title, fontsize=11, fontweight="bold")


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
    return save_figure(figure, path)


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
    # Nobody looks at a slot for less than no time, so shares reach further up than down.
    reach = 1.08 * min(x.min(), y.min()) or -1.0, 1.08 * max(x.max(), y.max()) or 1.0
    axis.plot(reach, reach, color=GREY, linewidth=0.8)
    named = len(labels) <= len(SLOT_COLOURS)
    # Hundreds of points lie over each other.
    size, alpha = (18, 0.8) if x.size <= 200 else (12, 0.35)
    for slot, label in enumerate(labels):
        colour, marker = (SLOT_COLOURS[slot], "osD^v"[slot]) if named else (BLUE, "o")
        at = x[:, slot], y[:, slot]
        axis.scatter(*at, s=size, alpha=alpha, color=colour, marker=marker, linewidths=0, label=label)
    axis.set(xlim=reach, ylim=reach, aspect="equal")
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
    return save_figure(figure, path)
