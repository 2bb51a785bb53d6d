"""Results as tables: pandas for code, Markdown for documents, rich for the terminal."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fixate_jax.errors import DataError
from fixate_jax.evaluation.metrics import LOWER_IS_BETTER
from fixate_jax.lab.frames import compare_methods, over_seeds, summarise, user_means
from fixate_jax.lab.text import markdown, visible

COMPARED = ("kl", "js", "cosine", "csh@1", "tgo@1", "accuracy", "log_loss", "auc")
"""Metrics of the comparison table unless told otherwise."""


def arrow(metric: str) -> str:
    """The metric's name with ↓ or ↑ for the better direction, e.g. "kl ↓"."""
    return f"{metric} {'↓' if metric in LOWER_IS_BETTER else '↑'}"


def results_table(summary: pd.DataFrame, metrics: Sequence[str] | None = None) -> pd.DataFrame:
    """Methods × modes in rows, metrics in columns, micro and macro means in rows of their own.

    Args:
        summary: from `metrics.summarise`.
        metrics: columns wanted, in this order (None: all that any method has).

    Returns:
        `method`, `mode`, `average`, `sessions`, `users` and the metrics under their `arrow` names; all micro rows come
        before the macro rows.
    """
    keys = ["method", "mode", "average", "sessions", "users"]
    names = [name for name in summary.columns if name not in keys] if metrics is None else list(metrics)
    names = [name for name in names if summary[name].notna().any()]
    micro_first = summary.sort_values("average", ascending=False, kind="stable")
    return micro_first[[*keys, *names]].rename(columns={name: arrow(name) for name in names}).reset_index(drop=True)


def comparison_table(
    metrics: pd.DataFrame,
    *,
    reference: str,
    names: Sequence[str] = COMPARED,
    seed: int = 0,
) -> pd.DataFrame:
    """The reference method against every other, user by user.

    A method is compared with the reference in its own mode. One that has no teacher-forced rows knows nothing of the
    click, so the reference is compared with it in both modes; one that only has teacher-forced rows is told the click,
    so only the teacher-forced reference is.

    Args:
        metrics: from `metrics.session_metrics`.
        reference: the method under test, e.g. "fixate".
        names: metrics to compare; those that one of the two lacks are left out.
        seed: of the bootstrap.

    Returns:
        A row for each mode, other method and metric: `mode`, `against`, `metric`, `difference` (reference − other, mean
        over users), `low` and `high` (95% interval over users), `p` (paired Wilcoxon over users), `better`
        and `users` (how many users the reference is better for, of how many).

    Raises:
        DataError: the reference has no predictions.
    """
    per_user = user_means(metrics)
    modes: dict[str, list[str]] = {}
    for method, mode in per_user[["method", "mode"]].drop_duplicates().itertuples(index=False):
        modes.setdefault(method, []).append(mode)
    if reference not in modes:
        raise DataError(f"there are no predictions of method {reference!r} to compare; there are {sorted(modes)}")
    rows: list[dict[str, Any]] = []
    for mode in modes[reference]:
        for other in (method for method in modes if method != reference):
            theirs = mode if mode in modes[other] else "FR"
            if theirs not in modes[other]:
                continue
            for metric in (name for name in names if name in per_user.columns):
                if per_user.loc[_is(per_user, reference, mode), metric].isna().all():
                    continue
                if per_user.loc[_is(per_user, other, theirs), metric].isna().all():
                    continue
                test, interval = compare_methods(
                    per_user, metric, first=(reference, mode), second=(other, theirs), seed=seed
                )
                rows.append(
                    {
                        "mode": mode,
                        "against": other,
                        "metric": arrow(metric),
                        "difference": test.mean_difference,
                        "low": interval.low,
                        "high": interval.high,
                        "p": test.p_value,
                        "better": test.better,
                        "users": test.users,
                    }
                )
    return pd.DataFrame(rows)


def pool_runs(frames: Mapping[int, pd.DataFrame]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The runs of several splits of the same data together.

    Seeds are no extra people, nor are splits: a session is averaged over seeds, and a person over the sessions of all
    splits.

    Args:
        frames: split → metrics of every session, method, mode and seed.

    Returns:
        Metrics averaged over seeds, a session of each split counted by itself; and the spread of the means over runs.
    """
    marked = [
        f.assign(session_id=f"{s}:" + f["session_id"], run=f"{s}/" + f["seed"].astype(str)) for s, f in frames.items()
    ]
    metrics = pd.concat(marked, ignore_index=True).drop(columns="seed")
    keys = ["session_id", "user_id", "split", "method", "mode"]
    averaged = metrics.drop(columns="run").groupby(keys, sort=False).mean(numeric_only=True).reset_index()
    spread = over_seeds([summarise(f.drop(columns="run")) for _, f in metrics.groupby("run")])
    return averaged, spread


def _is(frame: pd.DataFrame, method: str, mode: str) -> pd.Series:
    return (frame["method"] == method) & (frame["mode"] == mode)


def cell(value: Any, digits: int = 4) -> str:
    """A value as text: floats with so many digits after the point, tiny ones in powers of ten, "–" for missing ones."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, float):
        return f"{value:.1e}" if 0 < abs(value) < 0.5 * 10**-digits else f"{value:.{digits}f}"
    return str(value)


def cells(frame: pd.DataFrame, digits: int = 4) -> list[list[str]]:
    """Every value of a frame as `cell`."""
    return [[cell(value, digits) for value in row] for row in frame.itertuples(index=False, name=None)]


def numeric_columns(frame: pd.DataFrame) -> list[bool]:
    """Which columns hold numbers, and are set flush right."""
    return [pd.api.types.is_numeric_dtype(frame[name]) for name in frame.columns]


def to_markdown(frame: pd.DataFrame, digits: int = 4) -> str:
    """A frame as a Markdown table, without its index."""
    rules = ["---:" if numeric else "---" for numeric in numeric_columns(frame)]
    head, *body = ([markdown(text) for text in row] for row in [list(frame.columns), *cells(frame, digits)])
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, rules, *body]) + "\n"


def print_table(frame: pd.DataFrame, *, title: str, console: Console | None = None, digits: int = 4) -> None:
    """Print a frame to the terminal, without its index."""
    table = Table(title=Text(visible(title)), title_justify="left", header_style="bold", row_styles=["", "dim"])
    rows = cells(frame, digits)
    for i, (name, numeric) in enumerate(zip(frame.columns, numeric_columns(frame), strict=True)):
        # In a narrow terminal headers and texts break before a number does.
        widest = max([len(row[i]) for row in rows], default=0) if numeric else None
        table.add_column(Text(visible(name)), justify="right" if numeric else "left", min_width=widest)
    for row in rows:
        # As Text, since square brackets in a string would be read as markup.
        table.add_row(*(Text(visible(text)) for text in row))
    (console or Console()).print(table)


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted names and text, e.g. {"prompt": {"tokens": 16}} as {"prompt.tokens": "16"}."""
    flat: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = str(value)
    return flat
