"""Tables and figures of the study of new people, from the measures of every session."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fixate_jax.evaluation.statistics import bootstrap_interval, holm
from fixate_jax.lab.experiments.experiment import BACKBONE
from fixate_jax.lab.frames import compare_methods, metric_columns, user_means
from fixate_jax.lab.report.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, _style, method_differences, save_figure
from fixate_jax.lab.report.tables import arrow, to_markdown
from fixate_jax.lab.text import csv_text
from fixate_jax.runtime.durable import write_text

COEFFICIENTS, POPULATION, TOGETHER, SWAPPED = "coefficients", "population_prompt", "together", "coefficients_swapped"
NOTHING = -1
"""Column `k` of methods to which it makes no difference how much is known of a new person."""
ALL = 0
"""Column `k` of all training sessions of a new person."""
SHOWN = ("kl", "csh@1", "log_loss", "accuracy")
TESTED = ("kl", "accuracy")
RIVALS = {"kl": ("user_mean", "user_mean_shrunk"), "accuracy": ("majority_click",)}
"""Predictors without a model that know the same sessions."""
OTHERS = (BACKBONE, POPULATION, SWAPPED, TOGETHER)
"""What the coefficients from all sessions are set against."""
CURVES = {COEFFICIENTS: BLUE, "user_mean": ORANGE, "user_mean_shrunk": PURPLE, "majority_click": ORANGE}
PICTURES = {"cold_start": "A new person from a few sessions", "transfer": "Coefficients on others' basis, by person"}
LEVELS = {BACKBONE: (GREY, ":"), POPULATION: (GREEN, "--"), TOGETHER: ("black", "-."), "population_mean": (ORANGE, ":")}


def write_transfer(
    run: Path,
    measured: pd.DataFrame,
    *,
    counts: Sequence[int],
    most: float,
    about: str = "",
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Write `measures.csv`, `tests.csv`, `page.md`, `cold_start.png` and `transfer.png`.

    Args:
        run: the run directory.
        measured: `metrics.session_metrics` of every method, with the columns `seed` and `k`.
        counts: values of `k` in their order, `ALL` last.
        most: training sessions of a person, the place of `ALL` on the axis.
        about: what the page says above the tables: settings, commands, commits, machines.

    Returns:
        The measures and the tests.
    """
    free = measured[measured["mode"] == "FR"].reset_index(drop=True)
    people = per_person(free)
    measures, tests = measures_table(free), tests_table(people, counts)
    for stem, table in {"measures": measures, "tests": tests}.items():
        write_text(run / f"{stem}.csv", csv_text(table))
    cold_start(run / "cold_start.png", people, counts=counts, most=most)
    rows = {f"against {other.replace('_', ' ')}": _pair(people, other) for other in OTHERS}
    against = dict.fromkeys(TESTED, "the other")
    method_differences(run / "transfer.png", rows, reference=COEFFICIENTS, against=against)
    shown = "".join(f"\n![{what}]({stem}.png)\n" for stem, what in PICTURES.items())
    write_text(run / "page.md", f"{about}\n\n{_text(measures, tests, people)}{shown}")
    return measures, tests


def label(method: str, k: int) -> str:
    """A method with what it knows, e.g. "coefficients, k = 4"."""
    return method if k == NOTHING else f"{method}, k = {'all' if k == ALL else k}"


def per_person(free: pd.DataFrame) -> pd.DataFrame:
    """Means of every person, sessions being averaged over seeds; methods carry their `k` in their name."""
    named = free.assign(method=[label(m, k) for m, k in zip(free["method"], free["k"], strict=True)])
    keys = ["session_id", "user_id", "split", "method", "mode"]
    averaged = named.drop(columns=["seed", "k"]).groupby(keys, sort=False).mean(numeric_only=True).reset_index()
    return user_means(averaged)


def measures_table(free: pd.DataFrame) -> pd.DataFrame:
    """A row for each method, `k` and metric: mean over people, and its mean and deviation over seeds."""
    names = [name for name in metric_columns(free) if name not in ("seed", "k")]
    by_person = free.groupby(["method", "k", "seed", "user_id"], sort=False)[names].mean()
    by_seed = by_person.groupby(["method", "k", "seed"], sort=False).mean()
    groups = by_seed.groupby(["method", "k"], sort=False)
    mean, sd, seeds = groups.mean(), groups.std(), groups.size()
    rows: list[dict[str, Any]] = []
    for key in mean.index:
        method, k = key
        for name in (n for n in SHOWN if not pd.isna(mean.loc[key, n])):
            values = {"mean": mean.loc[key, name], "sd": sd.loc[key, name], "seeds": seeds.loc[key]}
            rows.append({"method": method, "k": _shown(k), "metric": arrow(name)} | values)
    return pd.DataFrame(rows)


def tests_table(people: pd.DataFrame, counts: Sequence[int]) -> pd.DataFrame:
    """Coefficients against what else could be done for a new person, over people.

    Returns:
        `k`, `against`, `metric`, `difference` (coefficients − the other, mean over people), `low`, `high` (95%
        interval), `p` (Wilcoxon), `p holm` (corrected over the whole table), `better` (people for whom the
        coefficients are better) and `users`.
    """
    rows: list[dict[str, Any]] = []
    for k in counts:
        for metric in TESTED:
            same = [(name, k) for name in RIVALS[metric]]
            others = [(name, ALL if name == SWAPPED else NOTHING) for name in (OTHERS if k == ALL else (POPULATION,))]
            for other, known in (*others, *same):
                first, second = (label(COEFFICIENTS, k), "FR"), (label(other, known), "FR")
                test, interval = compare_methods(people, metric, first=first, second=second)
                row = {"k": _shown(k), "against": other, "metric": arrow(metric), "difference": test.mean_difference}
                row |= {"low": interval.low, "high": interval.high, "p": test.p_value}
                rows.append(row | {"better": test.better, "users": test.users})
    table = pd.DataFrame(rows)
    table.insert(table.columns.get_loc("p") + 1, "p holm", holm(table["p"].to_numpy(float)))
    return table


def cold_start(path: Path, people: pd.DataFrame, *, counts: Sequence[int], most: float) -> Path:
    """Measures against the sessions that are known of a new person, with 95% bands over people.

    Args:
        path: PNG to write.
        people: from :func:`per_person`.
        counts: values of `k`, `ALL` last.
        most: place of `ALL` on the axis, in sessions.
    """
    some = [k for k in counts if k != ALL]
    places = [*map(float, some), max(most, 1.5 * max(some))]
    figure = Figure(figsize=(9.4, 4.4), dpi=150)
    figure.set_layout_engine("constrained")
    axes = figure.subplots(1, len(TESTED), squeeze=False)[0]
    for axis, metric in zip(axes, TESTED, strict=True):
        for name in (COEFFICIENTS, *RIVALS[metric]):
            _curve(axis, people, metric, name, counts, places)
        for name, (colour, line) in LEVELS.items():
            values = _values(people, metric, name)
            if len(values):
                axis.axhline(values.mean(), color=colour, linestyle=line, linewidth=1.3, label=name.replace("_", " "))
        axis.set_xscale("log", base=2)
        axis.set_xticks(places, [_shown(k) for k in counts])
        axis.minorticks_off()
        axis.set_xlabel("sessions known of a new person", fontsize=9)
        _style(axis, arrow(metric))
        axis.legend(fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3)
    return save_figure(figure, path)


def _curve(
    axis: Axes, people: pd.DataFrame, metric: str, name: str, counts: Sequence[int], places: Sequence[float]
) -> None:
    found = [bootstrap_interval(_values(people, metric, label(name, k)).to_numpy(float), seed=0) for k in counts]
    low, high = ([getattr(x, end) for x in found] for end in ("low", "high"))
    own, colour = name == COEFFICIENTS, CURVES[name]
    means = [x.mean for x in found]
    axis.fill_between(places, low, high, color=colour, alpha=0.18 if own else 0.08, linewidth=0)
    axis.plot(places, means, color=colour, marker="o", markersize=4, linewidth=1.8 if own else 1.2, label=_said(name))


def _said(name: str) -> str:
    return name.replace("_", " ")


def _values(people: pd.DataFrame, metric: str, name: str) -> pd.Series:
    return people.loc[people["method"] == name, metric].dropna()


def _pair(people: pd.DataFrame, other: str) -> pd.DataFrame:
    """The coefficients from all sessions and another method, under the names that the figure wants."""
    names = {label(COEFFICIENTS, ALL): COEFFICIENTS, label(other, ALL if other == SWAPPED else NOTHING): "the other"}
    rows = people[people["method"].isin(names)]
    return rows.assign(method=rows["method"].map(names))


def _shown(k: int) -> str:
    return {ALL: "all", NOTHING: "–"}.get(k, str(k))


def _text(measures: pd.DataFrame, tests: pd.DataFrame, people: pd.DataFrame) -> str:
    wide = measures.assign(text=[_mean_and_sd(m, s) for m, s in zip(measures["mean"], measures["sd"], strict=True)])
    wide = wide.pivot_table(index=["method", "k"], columns="metric", values="text", aggfunc="first", sort=False)
    table = wide.fillna("–").reset_index()
    return (
        f"{people['user_id'].nunique()} people, each new once. Free-running; means over "
        "people, ± deviation over seeds. `k`: sessions known of a new person; a – where it makes no difference. "
        f"`together` has learnt from everybody.\n\n{to_markdown(table)}\n"
        "Coefficients against the others, over people; negative differences in kl and positive ones in accuracy speak "
        f"for the coefficients; `p holm` is corrected over this table.\n\n{to_markdown(tests)}"
    )


def _mean_and_sd(mean: float, sd: float) -> str:
    return f"{mean:.4f}" if pd.isna(sd) else f"{mean:.4f} ± {sd:.4f}"
