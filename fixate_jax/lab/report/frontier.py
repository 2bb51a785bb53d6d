"""Gaze against clicks: what each setting reaches of both."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from fixate_jax.lab.report.figures import BLUE, GREY, ORANGE, PURPLE, save_figure

MARKERS = {"fixate": ("o", BLUE), "fixate_calibrated": ("D", ORANGE), "ntp_only": ("s", PURPLE)}


def frontier_figure(path: Path, table: pd.DataFrame, *, bars: Mapping[str, pd.Series]) -> Path:
    """KL against log-loss of each setting, as tuned and calibrated, and what predictors without a model reach.

    Args:
        path: PNG to write.
        table: columns `setting`, `method`, `kl`, `log_loss`.
        bars: name → `kl` and `log_loss` of a predictor, NaN for what it does not predict.
    """
    figure = Figure(figsize=(7.0, 4.6), dpi=150)
    figure.set_layout_engine("constrained")
    axis = figure.subplots()
    for method, (marker, colour) in MARKERS.items():
        rows = table[table["method"] == method]
        axis.scatter(rows["kl"], rows["log_loss"], marker=marker, color=colour, s=28, label=method.replace("_", " "))
        for row in rows.itertuples():
            at = (float(str(row.kl)), float(str(row.log_loss)))
            axis.annotate(str(row.setting), at, fontsize=5.5, xytext=(4, 2), textcoords="offset points")
    for name, values in bars.items():
        shown = name.replace("_", " ")
        if values.notna().all():
            axis.scatter(values["kl"], values["log_loss"], marker="x", color=GREY)
            axis.annotate(shown, (values["kl"], values["log_loss"]), fontsize=6, color=GREY)
        elif values.notna()["kl"]:
            axis.axvline(values["kl"], color=GREY, linewidth=0.8, linestyle="--")
            axis.text(values["kl"], 1.0, shown, transform=axis.get_xaxis_transform(), fontsize=6, rotation=90, va="top")
        else:
            axis.axhline(values["log_loss"], color=GREY, linewidth=0.8, linestyle="--")
            axis.text(1.0, values["log_loss"], shown, transform=axis.get_yaxis_transform(), fontsize=6, ha="right")
    axis.set_xlabel("KL to gaze (lower is closer)", fontsize=8)
    axis.set_ylabel("log-loss of the click (lower is better)", fontsize=8)
    axis.tick_params(labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=7, frameon=False)
    return save_figure(figure, path)
