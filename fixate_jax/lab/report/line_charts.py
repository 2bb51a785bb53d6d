"""Training curves as drawings inside an HTML page, whose colours follow the page's."""

import html
import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
from jaxtyping import Float

from fixate_jax.evaluation.metrics import LOWER_IS_BETTER

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 300, 170, 46, 8, 24, 24
"""Of a chart, and what is left for its title and numbers, in pixels."""
MOST_POINTS = 300
"""Of a line; more could not be told apart."""
STYLES = 5
"""Lines that the style sheet tells apart, by colour and dashes."""
LOSSES = ("loss", "next_token", "alignment", "penalty")


def training_charts(logs: Mapping[str, pd.DataFrame]) -> str:
    """Losses over the optimizer steps and the validation metrics, a chart each, a line for each run.

    Losses are running means; of validation metrics the best step is marked.

    Args:
        logs: name of a run, e.g. "seed 42" → its log: `step`, and NaN where an entry lacks a value.

    Returns:
        HTML; empty where there is nothing to draw.
    """
    names = list(dict.fromkeys(str(name) for log in logs.values() for name in log.columns))
    drawn = [n for n in LOSSES if n in names] + [n for n in names if n.startswith("validation/")]
    charts = [
        _chart(name, {run: log[["step", name]].dropna() for run, log in logs.items() if name in log}) for name in drawn
    ]
    if not any(charts):
        return ""
    keys = "".join(
        '<li><svg class="key" viewBox="0 0 24 8" aria-hidden="true">'
        f'<path class="line style-{i % STYLES}" d="M0 4H24"/></svg>{html.escape(run)}</li>'
        for i, run in enumerate(logs)
    )
    legend = f'<ul class="keys">{keys}</ul>' if len(logs) > 1 else ""
    return f'{legend}<div class="charts">{"".join(charts)}</div>'


def _chart(name: str, lines: Mapping[str, pd.DataFrame]) -> str:
    validation = name.startswith("validation/")
    points = {run: _thinned(line, smooth=not validation) for run, line in lines.items()}
    every = np.concatenate([p for p in points.values() if len(p)] or [np.zeros((0, 2))])
    if not len(every):
        return ""
    x_ends, y_ends = (_ends(every[:, axis]) for axis in (0, 1))
    short = name.removeprefix("validation/")
    lower = short in LOWER_IS_BETTER or short.endswith(("loss", "alignment", "next_token", "penalty"))
    parts, ends = [], []
    for i, (run, line) in enumerate(points.items()):
        if not len(line):
            continue
        at = _place(line, x_ends, y_ends)
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in at)
        parts.append(f'<path class="line style-{i % STYLES}" d="{path}"/>')
        best = int(np.argmin(line[:, 1]) if lower else np.argmax(line[:, 1]))
        if validation:
            x, y = at[best]
            parts.append(f'<circle class="best style-{i % STYLES}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>')
        ends.append(
            f"{run}: {line[0, 1]:.4g} to {line[-1, 1]:.4g}" + (f", best {line[best, 1]:.4g}" if validation else "")
        )
    title = f"validation {short}" if validation else short.replace("_", " ")
    better = "lower" if lower else "higher"
    said = html.escape(f"{title} over the optimizer steps, {better} is better. {'; '.join(ends)}.", quote=True)
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{said}">'
        f'<text class="head" x="{LEFT}" y="14">{html.escape(title)} {"↓" if lower else "↑"}</text>'
        f"{_axes(x_ends, y_ends)}{''.join(parts)}</svg>"
    )


def _thinned(line: pd.DataFrame, *, smooth: bool) -> Float[np.ndarray, "points 2"]:
    values = line.iloc[:, 1].astype(float)
    if smooth:
        values = values.rolling(max(1, len(line) // 20), min_periods=1, center=True).mean()
    points = np.stack([line.iloc[:, 0].to_numpy(float), values.to_numpy()], axis=1)
    points = points[np.isfinite(points).all(axis=1)]
    return points[np.unique(np.linspace(0, len(points) - 1, MOST_POINTS).astype(int))] if len(points) else points


def _ends(values: Float[np.ndarray, " points"]) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    margin = 0.1 * abs(low) or 1.0
    return (low, high) if high > low else (low - margin, high + margin)


def _place(
    points: Float[np.ndarray, "points 2"], x_ends: tuple[float, float], y_ends: tuple[float, float]
) -> Float[np.ndarray, "points 2"]:
    x = LEFT + (points[:, 0] - x_ends[0]) / (x_ends[1] - x_ends[0]) * (WIDTH - LEFT - RIGHT)
    y = HEIGHT - BOTTOM - (points[:, 1] - y_ends[0]) / (y_ends[1] - y_ends[0]) * (HEIGHT - TOP - BOTTOM)
    return np.stack([x, y], axis=1)


def _axes(x_ends: tuple[float, float], y_ends: tuple[float, float]) -> str:
    parts = []
    digits = int(np.clip(2 - math.floor(math.log10(y_ends[1] - y_ends[0])), 0, 4))
    for share in (0.0, 0.5, 1.0):
        value = y_ends[0] + share * (y_ends[1] - y_ends[0])
        y = HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
        parts.append(
            f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
            f'<text x="{LEFT - 5}" y="{y + 3.5:.1f}" text-anchor="end">{value:.{digits}f}</text>'
        )
    for share, anchor in ((0.0, "start"), (1.0, "end")):
        value = x_ends[0] + share * (x_ends[1] - x_ends[0])
        x = LEFT + share * (WIDTH - LEFT - RIGHT)
        step = f"step {value:.0f}" if share else f"{value:.0f}"
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">{step}</text>')
    return "".join(parts)
