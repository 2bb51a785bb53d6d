"""How recommenders earn as they go, as a PNG file."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from fixate_jax.errors import DataError
from fixate_jax.report.curves import COLOURS
from fixate_jax.report.figures import _style, save_figure


def policy_curves(path: Path, curves: Mapping[str, pd.DataFrame], *, title: str, reward: str) -> Path:
    """A line for each policy, with a band where it is over seeds.

    Args:
        path: PNG to write.
        curves: by policy, from :func:`fixate_jax.emulation.gym.learning_curve`; at most as many as there are colours.
        title: above the lines.
        reward: what is earned, beside the axis.

    Raises:
        DataError: there are more policies than colours.
    """
    if len(curves) > len(COLOURS):
        raise DataError(f"{len(curves)} policies in one figure; {len(COLOURS)} can be told apart")
    figure = Figure(figsize=(6.4, 3.6), dpi=150)
    figure.set_layout_engine("constrained")
    axis = figure.subplots()
    for (name, curve), colour in zip(curves.items(), COLOURS, strict=False):
        axis.fill_between(curve["round"], curve["low"], curve["high"], color=colour, alpha=0.2, linewidth=0)
        axis.plot(curve["round"], curve["reward"], color=colour, linewidth=1.6, label=name)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("pages seen by each user", fontsize=9)
    axis.set_ylabel(reward, fontsize=9)
    axis.legend(fontsize=8, frameon=False, ncols=len(curves))
    _style(axis, title)
    return save_figure(figure, path)
