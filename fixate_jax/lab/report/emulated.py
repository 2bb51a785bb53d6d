"""What emulated users did, as files: the table, and a picture of each visit."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure

from fixate_jax.lab.report.figures import draw_heat, draw_slots, save_figure, shares
from fixate_jax.lab.text import csv_text
from fixate_jax.runtime.durable import replacing


def write_table(path: Path, table: pd.DataFrame) -> Path:
    """Write a table whole or not at all.

    Args:
        path: ends in ``.csv`` or ``.parquet``.
        table: to write.

    Raises:
        DiskError: there is no space.
    """
    with replacing(path) as temporary:
        if path.suffix == ".csv":
            temporary.write_text(csv_text(table), encoding="utf-8", newline="")
        else:
            table.to_parquet(temporary, index=False)
    return path


def visit_figure(
    path: Path,
    *,
    image: UInt8[np.ndarray, "height width 3"],
    boxes: Float[np.ndarray, "slots 4"],
    labels: Sequence[str],
    relevance: Float[np.ndarray, "rows columns"],
    attention: Float[np.ndarray, " slots"],
    probabilities: Float[np.ndarray, " slots"],
    title: str,
) -> Path:
    """One visit: where the emulated user looks, and what it would click; the likeliest slot has an orange frame.

    Args:
        path: PNG to write.
        image: the page.
        boxes: of the slots, in relative page coordinates.
        labels: of the slots.
        relevance: of each visual token.
        attention: share of each slot.
        probabilities: of a click on each slot.
        title: above the panels.
    """
    height, width = image.shape[:2]
    figure = Figure(figsize=(9.0, 4.5 * height / width + 0.75), dpi=150)
    figure.set_layout_engine("constrained", w_pad=0.03, h_pad=0.03)
    looked, clicked = figure.subplots(1, 2)
    likeliest = int(np.argmax(probabilities))
    grey = np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2) / 255
    panels = ((looked, grey, "attention", attention), (clicked, image, "click probability", probabilities))
    for axis, picture, name, numbers in panels:
        axis.set_axis_off()
        axis.set(xlim=(0, 1), ylim=(1, 0), aspect=height / width)
        axis.imshow(picture, extent=(0, 1, 1, 0), aspect="auto")
        axis.set_title(name, fontsize=10)
        if axis is looked:
            draw_heat(axis, np.abs(relevance))
        draw_slots(axis, boxes, shares(labels, numbers), likeliest)
    figure.suptitle(title, fontsize=11, fontweight="bold")
    return save_figure(figure, path)
