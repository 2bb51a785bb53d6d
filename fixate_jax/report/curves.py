"""Curves of faithfulness, as a PNG file."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from fixate_jax.report.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, _save, _style

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
    return _save(figure, path)
