"""What controls found, as one figure and a page."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fixate_jax.lab.controls.controls import BROKEN, HABIT, PLACEBO, Controls
from fixate_jax.lab.controls.stages import BLANK, REARRANGED, SEEN
from fixate_jax.lab.experiments.experiment import BACKBONE, FIXATE
from fixate_jax.lab.report.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, save_figure
from fixate_jax.lab.report.tables import to_markdown
from fixate_jax.lab.text import csv_text, markdown
from fixate_jax.runtime.durable import write_text

COLOURS = {FIXATE: BLUE, PLACEBO: ORANGE, BROKEN: PURPLE, BACKBONE: GREY}
NAMES = {FIXATE: "own gaze", PLACEBO: "mean gaze", BROKEN: "another session's", BACKBONE: "no prompt"}


def write_controls(out: Path, found: Controls, *, title: str) -> Path:
    """Write tables, figure and page into a folder; returns the page.

    Args:
        out: the folder.
        found: the controls.
        title: of page and figure.

    Raises:
        DiskError: something cannot be written.
    """
    tables = {"pages": found.pages, "changes": found.changes, "profiles": found.profiles}
    for name, table in tables.items():
        write_text(out / f"{name}.csv", csv_text(table))
    controls_figure(out / "controls.png", found, title=title)
    lines = [f"# {markdown(title)}", "", reading(found), "", "![controls](controls.png)", ""]
    about = {
        "pages": "Prompts on pages shown in several ways, against the gaze and clicks on the pages as they were",
        "changes": f"How attention moved with the contents, against {found.known}",
        "profiles": "Prompt × profile",
    }
    for name, table in tables.items():
        if len(table):
            lines += [f"## {about[name]}", "", to_markdown(table, 3)]
    write_text(out / "controls.md", "\n".join(lines))
    return out / "controls.md"


def reading(found: Controls) -> str:
    """What the controls say, in sentences that are computed from them."""
    kl = found.pages[found.pages["metric"] == "kl"].set_index(["pages", "prompts"])["mean"]
    own = kl[SEEN, FIXATE]
    said = [
        f"KL on the test pages as seen: {own:.3f} with prompts tuned to each session's own gaze, "
        f"{kl[SEEN, PLACEBO]:.3f} where they were tuned to the person's mean gaze (place alone), "
        f"{kl[SEEN, BROKEN]:.3f} with the gaze of another session (habits, no content), {kl[SEEN, HABIT]:.3f} for the "
        f"person's mean itself and {kl[SEEN, BACKBONE]:.3f} without a prompt.",
        f"On blank pages the own prompts have {kl[BLANK, FIXATE]:.3f}: what they add without seeing anything.",
    ]
    if len(found.changes):
        moved = found.changes.set_index("prompts")
        said.append(
            f"Where contents change places, attention under the own prompts moves with {found.known} at a correlation "
            f"of {moved.loc[FIXATE, 'correlation']:.2f} (slope {moved.loc[FIXATE, 'slope']:.2f}); under the placebo "
            f"{moved.loc[PLACEBO, 'correlation']:.2f} ({moved.loc[PLACEBO, 'slope']:.2f}), without a prompt "
            f"{moved.loc[BACKBONE, 'correlation']:.2f} ({moved.loc[BACKBONE, 'slope']:.2f}). Place alone predicts 0."
        )
    if (found.profiles["profile"] == "own").all():
        said.append("Everybody has the same profile, so only prompts could be exchanged.")
    return " ".join(said)


def controls_figure(path: Path, found: Controls, *, title: str) -> Path:
    """KL by prompts and pages; how attention moves with contents; prompt × profile.

    Args:
        path: PNG to write.
        found: the controls.
        title: above the panels.
    """
    figure = Figure(figsize=(11.0, 3.4), dpi=150)
    figure.set_layout_engine("constrained")
    left, middle, right = figure.subplots(1, 3, gridspec_kw={"width_ratios": [1.6, 1.2, 1.0]})
    _bars(left, found.pages)
    _moves(middle, found)
    _exchange(right, found.profiles)
    for axis in (left, middle, right):
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=10, fontweight="bold")
    return save_figure(figure, path)


def _bars(axis: Axes, pages: pd.DataFrame) -> None:
    kl = pages[pages["metric"] == "kl"].set_index(["pages", "prompts"])["mean"]
    stages = [stage for stage in (SEEN, BLANK, REARRANGED) if (stage, FIXATE) in kl.index]
    for i, (name, colour) in enumerate(COLOURS.items()):
        place = np.arange(len(stages)) + (i - 1.5) * 0.2
        axis.bar(place, [kl[stage, name] for stage in stages], 0.19, color=colour, label=NAMES[name])
    axis.axhline(kl[SEEN, HABIT], color="black", linewidth=1, linestyle="--", label="person's mean, as seen")
    axis.set_xticks(range(len(stages)), [f"pages {stage}" if stage == SEEN else stage for stage in stages])
    axis.set_title("KL to the gaze on the page as it was (lower is closer)", fontsize=8, loc="left")
    axis.set_ylim(0, 1.3 * axis.get_ylim()[1])  # Room for the legend.
    axis.legend(fontsize=6, frameon=False, ncols=3, loc="upper left")


def _moves(axis: Axes, found: Controls) -> None:
    if not len(found.changes):
        axis.text(0.5, 0.5, "contents cannot be\nrearranged on these pages", ha="center", va="center", fontsize=8)
        axis.set_axis_off()
        return
    rows = found.changes.reset_index(drop=True)
    names = [NAMES.get(str(name), str(name).replace("_", " ")) for name in rows["prompts"]]
    for kind, colour, shift in (("correlation", BLUE, -0.15), ("slope", GREEN, 0.15)):
        mean = rows[kind].to_numpy(float)
        reach = np.abs(rows[[f"{kind} low", f"{kind} high"]].to_numpy(float).T - mean)
        axis.errorbar(
            mean, np.arange(len(rows)) + shift, xerr=reach, fmt="o", markersize=4, color=colour, capsize=2, label=kind
        )
    axis.axvline(0, color=GREY, linewidth=0.8)
    axis.axvline(1, color=GREY, linewidth=0.8, linestyle=":")
    axis.set_yticks(range(len(rows)), names)
    axis.invert_yaxis()
    axis.set_title("Moves with rearranged contents (place: 0, all: 1)", fontsize=8, loc="left")
    axis.legend(fontsize=6, frameon=False, loc="lower right")


def _exchange(axis: Axes, profiles: pd.DataFrame) -> None:
    names = [f"{row.prompt} prompt,\n{row.profile} profile" for row in profiles.itertuples()]
    colours = [BLUE if row.prompt == "own" else ORANGE for row in profiles.itertuples()]
    axis.bar(range(len(names)), profiles["kl"], 0.6, color=colours)
    axis.set_xticks(range(len(names)), names, fontsize=6)
    axis.set_title("KL when prompts are exchanged", fontsize=8, loc="left")
