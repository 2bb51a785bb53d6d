"""Tables, a figure and a page of a study, from what is on disk."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fixate_jax.evaluation.metrics import LOWER_IS_BETTER
from fixate_jax.evaluation.statistics import holm
from fixate_jax.lab.experiments.experiment import BACKBONE, FIXATE, SWAPPED
from fixate_jax.lab.frames import summarise, user_means
from fixate_jax.lab.report.studies import Point, axis_lines, differences
from fixate_jax.lab.report.tables import arrow, comparison_table, to_markdown
from fixate_jax.lab.studies.matrix import REFERENCE, Study, Variant
from fixate_jax.lab.studies.sweep import value_of
from fixate_jax.lab.text import code, csv_text, markdown
from fixate_jax.runtime.durable import write_text

SHOWN = ("kl", "csh@1", "log_loss", "accuracy")
TESTED = ("kl", "accuracy")
"""Metrics that variants are tested in; all tests of a study are one family for the correction."""
LEVEL = 0.05
BESIDE = (BACKBONE, "user_mean", "majority_click")
"""What is drawn beside the measures along a setting."""


def read(study: Study) -> dict[str, tuple[pd.DataFrame, pd.DataFrame]]:
    """Variant → its measures averaged over seeds, and their spread over seeds and splits."""
    return {variant.name: study.measures(variant) for variant in study.variants}


def measures_table(study: Study, found: dict[str, tuple[pd.DataFrame, pd.DataFrame]]) -> pd.DataFrame:
    """A row for each variant, free-running: mean and sd over runs; then what stands beside all of them.

    `another's` is the KL under other people's prompts: what is personal in a prompt is lost there.
    """
    rows: list[dict[str, Any]] = []
    for variant in study.variants:
        means, spread = (_micro(frame) for frame in (summarise(found[variant.name][0]), found[variant.name][1]))
        own, sd = means.loc[FIXATE], spread.loc[FIXATE]
        row: dict[str, Any] = {"variant": variant.name, "what": variant.why}
        for name in SHOWN:
            row[arrow(name)] = own[name]
            if name in TESTED:
                row[f"{name} sd"] = sd[f"{name} sd"]
        row["another's kl"] = means.loc[SWAPPED, "kl"] if SWAPPED in means.index else float("nan")
        rows.append(row)
    beside = _micro(summarise(found[REFERENCE][0])).drop(index=[FIXATE, SWAPPED], errors="ignore")
    for method, values in beside.iterrows():
        what = "no prompt" if method == BACKBONE else "no model"
        rows.append({"variant": method, "what": what} | {arrow(name): values.get(name) for name in SHOWN})
    return pd.DataFrame(rows)


def _micro(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[(frame["average"] == "micro") & (frame["mode"] == "FR")].set_index("method")


def tests_table(study: Study, found: dict[str, tuple[pd.DataFrame, pd.DataFrame]]) -> pd.DataFrame:
    """The preset against every other variant, over people, free-running.

    Returns:
        `against`, `metric`, `difference` (preset − variant, mean over people), `low`, `high` (95% interval),
        `effect` (Cohen's d of the paired differences: their mean over their deviation), `p` (Wilcoxon), `p holm`
        (corrected over the whole table), `better` (people for whom the preset is better), `users`, `reading`.
    """
    rows = [f[f["method"] == FIXATE].assign(method=name) for name, (f, _) in found.items()]
    together = pd.concat(rows, ignore_index=True)
    free = together[together["mode"] == "FR"]
    table = comparison_table(free, reference=REFERENCE, names=TESTED)
    if table.empty:
        return table
    people = user_means(free)
    sizes = [_effect(people, str(row.metric).split(" ")[0], str(row.against)) for row in table.itertuples()]
    table = table.drop(columns="mode").assign(**{"p holm": holm(table["p"].to_numpy(float)), "effect": sizes})
    lower = table["metric"].str.split(" ").str[0].isin(LOWER_IS_BETTER)
    ahead = np.where(lower, table["difference"] < 0, table["difference"] > 0)
    words = np.where(ahead, "preset better", "variant better")
    table["reading"] = np.where(table["p holm"] < LEVEL, words, "no difference shown")
    order = ["against", "metric", "difference", "low", "high", "effect", "p", "p holm", "better", "users", "reading"]
    return table[order]


def _effect(people: pd.DataFrame, metric: str, other: str) -> float:
    wide = people.pivot(index="user_id", columns="method", values=metric)
    difference = (wide[REFERENCE] - wide[other]).dropna()
    sd = difference.std()
    return float(difference.mean() / sd) if sd > 0 else 0.0


def write_report(study: Study, *, title: str, facts: Sequence[dict[str, Any]]) -> Path:
    """Write `measures.csv`, `tests.csv`, `figure.png` and `page.md`; returns the page.

    Args:
        study: with all its cells on disk.
        title: of the figure.
        facts: one of :func:`fixate_jax.lab.studies.provenance.provenance` for each time that it was computed at.
    """
    found = read(study)
    measures, tests = measures_table(study, found), tests_table(study, found)
    for name, table in {"measures": measures, "tests": tests}.items():
        write_text(study.out / f"{name}.csv", csv_text(table))
    figure = _figure(study, found, tests, study.out / "figure.png", title)
    text = _page(study, measures, tests, facts)
    write_text(study.out / "page.md", f"{text}\n![{markdown(title)}]({figure.name})\n")
    return study.out / "page.md"


def _figure(
    study: Study, found: dict[str, tuple[pd.DataFrame, pd.DataFrame]], tests: pd.DataFrame, path: Path, title: str
) -> Path:
    axes = list(dict.fromkeys(variant.axis for variant in study.variants if variant.axis))
    if not axes:
        return differences(path, tests, title=title)
    lines = {axis: {metric: _points(study, found, axis, metric) for metric in TESTED} for axis in axes}
    return axis_lines(path, lines, title=title)


def _points(study: Study, found: dict[str, tuple[pd.DataFrame, pd.DataFrame]], axis: str, metric: str) -> list[Point]:
    points = []
    for variant in study.variants:
        if variant.axis != axis and variant.name != REFERENCE:
            continue
        value = variant.changes[axis] if variant.axis == axis else value_of(study.base, axis)
        means = _micro(summarise(found[variant.name][0]))[metric].astype(float)
        sd = _micro(found[variant.name][1]).loc[FIXATE, f"{metric} sd"]
        # Of this value's own cells: what a predictor knows may depend on it, as the sessions of each person do.
        beside = {str(m): means[m] for m in BESIDE if m in means.index and not np.isnan(means[m])}
        points.append(
            Point(value=value, mean=means[FIXATE], sd=float(sd), preset=variant.name == REFERENCE, beside=beside)
        )
    if not all(point.value is None or isinstance(point.value, int | float) for point in points):
        return points  # Words have no order but that in which they were given.
    return sorted(points, key=lambda point: (point.value is None, point.value))


def _page(study: Study, measures: pd.DataFrame, tests: pd.DataFrame, facts: Sequence[dict[str, Any]]) -> str:
    config = study.base
    people = int(tests["users"].max()) if len(tests) else 0
    lines = [
        f"{code(Path(config.backbone.path).name)}, operator {code(config.operator.name)}, {config.data.name}: {people} "
        f"people, measured on the {study.measured} split against {study.signal}, free-running; seeds "
        f"{', '.join(map(str, study.seeds))}; split seeds {', '.join(map(str, study.splits))}.",
        "",
        *provenance_lines(facts),
        "",
        to_markdown(_without_empty(measures), 4),
        "Preset minus variant, over people; the p of the whole table are corrected together (Holm):",
        "",
        to_markdown(tests, 4),
    ]
    return "\n".join(lines)


def provenance_lines(facts: Sequence[dict[str, Any]]) -> list[str]:
    """What computed the cells, a list item each time."""
    return [
        f"- {fact['date']}: `{fact['command']}`, commit {fact['commit']}, {fact['machine']}, JAX "
        f"{fact['versions']['jax']}" + (f"; {fact['outcome']}" if fact.get("outcome") else "")
        for fact in facts
    ]


def _without_empty(table: pd.DataFrame) -> pd.DataFrame:
    return table.dropna(axis=1, how="all")


def variant_line(variant: Variant) -> str:
    """A variant in a line of a list."""
    return variant.name + (f": {variant.why}" if variant.why else "")
