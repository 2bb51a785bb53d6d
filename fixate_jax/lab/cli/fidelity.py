"""The subcommand `fixate fidelity`: emulated users beside the people whom they emulate."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import pandas as pd
import tyro

from fixate_jax.data.session import Split
from fixate_jax.lab.notes import few_people, tell_of_foreign_pages
from fixate_jax.lab.text import markdown, say

if TYPE_CHECKING:
    from fixate_jax.lab.fidelity.fidelity import Humans, Predicted

SHOWN = ("fixate", "backbone", "population_mean", "user_mean_shrunk", "majority_click")
"""Methods in the printed table; the page adds the regressions, the files have all."""
ON_PAGE = (*SHOWN, "uniform", "user_mean", "personal_content_regression", "personal_content_click")


@dataclass(frozen=True)
class Fidelity:
    """Ask how good a run's emulated users are, on held-out sessions of their people."""

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Directory that `fixate train` made."""
    split: Split = "test"
    """Which sessions; those that a run has no predictions of are evaluated first."""
    out: Path | None = None
    """Folder for tables, figure and page (None: fidelity/ and the run's name, and the split unless it is test)."""
    seed: int = 0
    """Of the bootstrap, the simulated clicks and the permutations."""
    accept_other_backbone: bool = False
    """Go on although the backbone's files are not those that the prompts were tuned with."""

    def run(self) -> int:
        """Run the command."""
        from fixate_jax.lab.fidelity.fidelity import gather
        from fixate_jax.lab.report.tables import print_table

        name = self.source.resolve().name
        out = self.out or Path("fidelity") / (name if self.split == "test" else f"{name}-{self.split}")
        frames = read_predictions(self.source, self.split, accept_other_backbone=self.accept_other_backbone)
        humans, predicted = gather(frames)
        measures = write_fidelity(humans, predicted, out, seed=self.seed, what=f"{name}, {self.split} sessions")
        for note in notes(humans, len(frames), self.split):
            say(note, wrap=True)
        for kind in ("clicks", "attention"):
            print_table(shown(measures, kind), title=f"{kind.capitalize()}", digits=3)
        say(f"everything: {out / 'fidelity.md'} and beside it")
        return 0


def read_predictions(run: Path, split: Split, *, accept_other_backbone: bool = False) -> list[pd.DataFrame]:
    """Predictions of each seed of a run, evaluated where there are none, or none of the prompts as they are now.

    Raises:
        ConfigError: it is no run of `fixate train`, or one is at work there.
    """
    from fixate_jax.errors import ConfigError
    from fixate_jax.lab.experiments.experiment import CONFIG_FILE, evaluate_run, open_run, seed_directory
    from fixate_jax.lab.settings import load_config
    from fixate_jax.runtime.lock import locked

    if not (run / CONFIG_FILE).is_file():
        raise ConfigError(f"{run}: no {CONFIG_FILE} there; give the directory of a run made by `fixate train`")
    config = load_config(run / CONFIG_FILE)
    folders = [seed_directory(run, seed) for seed in config.train.seeds]
    paths = [folder / f"predictions-{split}.parquet" for folder in folders]
    if all(map(_up_to_date, paths, folders)):
        tell_of_foreign_pages(config.backbone.path, config.data.name)
    else:
        with locked(run):
            _, workspace = open_run(run, accept_other_backbone=accept_other_backbone)
            evaluate_run(workspace, run, split=split)
    return [pd.read_parquet(path) for path in paths]


def _up_to_date(predictions: Path, folder: Path) -> bool:
    """Whether predictions are there and no prompts are newer."""
    if not predictions.is_file():
        return False
    newest = max((path.stat().st_mtime_ns for path in (folder / "checkpoints").glob("*")), default=0)
    return predictions.stat().st_mtime_ns >= newest


def notes(humans: "Humans", seeds: int, split: str) -> list[str]:
    """What the figures rest on."""
    told = [
        f"{len(humans.click)} {split} sessions of {len(humans.users)} people, pages of {humans.gaze.shape[1]} slots, "
        f"{seeds} {'seed' if seeds == 1 else 'seeds'}; free-running."
    ]
    if few := few_people(len(humans.users)):
        told.append(few)
    if humans.left_out:
        told.append(
            f"{humans.left_out} sessions are left out: their pages have another number of slots, or their person has "
            "no second one."
        )
    return told


def shown(measures: pd.DataFrame, kind: str) -> pd.DataFrame:
    """A row for each measure of a kind, a column for each method: what fits on a screen."""
    rows = measures[(measures["kind"] == kind) & measures["method"].isin(SHOWN)]
    wide = rows.pivot(index="measure", columns="method", values="value")
    arrows = {"lower": "↓", "higher": "↑", "one": "→ 1"}
    best = rows.drop_duplicates("measure").set_index("measure")["best"].map(arrows)
    ours = rows[rows["method"] == "fixate"].set_index("measure")
    table = wide[[method for method in SHOWN if method in wide]].loc[list(dict.fromkeys(rows["measure"]))]
    if ours["floor"].notna().any():
        table.insert(1, "if it were right", ours["floor"].reindex(table.index))
    table = table.round(4).rename(columns=lambda name: name.replace("_", " "))
    table.insert(0, "measure", [f"{name} {best[name]}" for name in table.index])
    return table.reset_index(drop=True)


def write_fidelity(
    humans: "Humans",
    predicted: "Mapping[str, Predicted]",
    out: Path,
    *,
    seed: int,
    what: str,
) -> pd.DataFrame:
    """Write ``measures.csv``, ``reliability.csv``, ``slots.csv``, ``figure.png`` and ``fidelity.md``.

    Args:
        humans: people, from :func:`fixate_jax.lab.fidelity.fidelity.gather`.
        predicted: methods, from the same.
        out: folder.
        seed: of everything drawn.
        what: run and split, for titles.

    Returns:
        The measures.

    Raises:
        DiskError: something cannot be written.
    """
    from fixate_jax.lab.fidelity import fidelity
    from fixate_jax.lab.report.emulated import write_table
    from fixate_jax.lab.report.fidelity import fidelity_figure
    from fixate_jax.runtime.durable import write_text

    tables = {
        "measures": fidelity.measures_table(humans, predicted, seed=seed),
        "reliability": fidelity.reliability_table(humans, predicted, seed=seed),
        "slots": fidelity.slots_table(humans, predicted, seed=seed),
    }
    for name, table in tables.items():
        write_table(out / f"{name}.csv", table)
    fidelity_figure(out / "figure.png", **tables, title=f"Fidelity: {what}")
    lines = page_lines(humans, tables["measures"], what)
    write_text(out / "fidelity.md", "\n".join([*lines, f"![{markdown(what)}](figure.png)", ""]))
    return tables["measures"]


def page_lines(humans: "Humans", measures: pd.DataFrame, what: str) -> Sequence[str]:
    """Markdown: what it rests on, every measure of the methods shown, and FixATE against them."""
    from fixate_jax.lab.report.tables import to_markdown
    from fixate_jax.lab.studies.provenance import provenance
    from fixate_jax.lab.studies.report import provenance_lines

    rows = measures[measures["method"].isin(ON_PAGE)]
    unknown = rows.loc[rows["value"].isna(), "measure"].unique().tolist()
    rows = rows[rows["value"].notna()]

    def interval(value: float, low: float, high: float) -> str:
        # In thousandths, where tiny values are no news.
        text = f"{value:.3f} [{low:.3f}, {high:.3f}]" if value == value else "–"
        return text.replace("-0.000", "0.000")

    values = pd.DataFrame(
        {
            "measure": rows["measure"],
            "method": rows["method"],
            "value": [interval(*x) for x in zip(rows["value"], rows["low"], rows["high"], strict=True)],
            "if it were right": rows["floor"],
            "FixATE − method": [
                interval(*x)
                for x in zip(rows["difference"], rows["difference low"], rows["difference high"], strict=True)
            ],
            "p": rows["p"],
            "p holm": rows["p holm"],
        }
    )
    return [
        f"{markdown(what)}: {len(humans.click)} sessions of {len(humans.users)} people, pages of "
        f"{humans.gaze.shape[1]} slots.",
        "",
        *provenance_lines([provenance()]),
        "",
        *([few_people(len(humans.users)), ""] if few_people(len(humans.users)) else []),
        "With 95% bootstrap intervals over people; p of a paired Wilcoxon test over people, of likeness against users "
        "handed out at random, corrected for all tests of all methods (Holm):",
        "",
        to_markdown(values, 3),
        *[f"No {name}: people differ in it by no more than chance would have it.\n" for name in unknown],
    ]
