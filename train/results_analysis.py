"""The tables and figures of docs/results/analysis.md: real people's gaze beside that of made-up people.

    python train/results_analysis.py --data-path path/to/human_choice

What `fixate analyze` says of human_choice and of made-up people before RecGaze's screens, column by column; of the
latter also gaze and cursor on the sessions that have both. People of human_choice have many more sessions each, and
means of many sessions are the more stable, so their stability is also taken from as few sessions as the others have.
Training and validation sessions only.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tyro
from matplotlib.figure import SubFigure

from fixate_jax.analysis import (
    Analysis,
    AnalysisSettings,
    random_halves,
    select_sessions,
    stability,
    user_means,
    write_analysis,
)
from fixate_jax.analysis.faithfulness import choose_sessions
from fixate_jax.config import DataConfig
from fixate_jax.data import SessionStore, open_or_prepare, usable_sessions
from fixate_jax.progress import track
from fixate_jax.report.gaze import draw_halves, draw_slot_maps, side_by_side
from fixate_jax.report.tables import to_markdown
from fixate_jax.settings import load_config

ROOT = Path(__file__).resolve().parents[1]
REAL, MADE_UP = "human_choice", "synthetic_recgaze"
GAZE, CURSOR = "gaze where both are", "cursor where both are"
FEW = f"{REAL}, few sessions"
MAPS = {REAL: 7, MADE_UP: 9}
"""People whose maps are drawn, so that both sides are about as high."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is analysed.

    Attributes:
        data_path: folder of human_choice.
        out: where everything goes.
        users: made-up people.
        halvings: how often each person's sessions are split into halves.
        draws: how often so few sessions are drawn of human_choice's.
    """

    data_path: Path
    out: Path = Path("runs/analysis")
    users: int = 40
    halvings: int = 100
    draws: int = 20


@dataclass(frozen=True, kw_only=True)
class Case:
    """A column of the tables.

    Attributes:
        data: which sessions.
        settings: how they are analysed.
        store: the data set's.
        found: what came out.
    """

    data: DataConfig
    settings: AnalysisSettings
    store: SessionStore
    found: Analysis


def data_sets(plan: Plan) -> dict[str, DataConfig]:
    """Column → its sessions."""
    real, made_up = (load_config(ROOT / "configs" / f"{name}.yaml").data for name in (REAL, MADE_UP))
    real = replace(real, path=plan.data_path, store=plan.out / "stores" / REAL)
    made_up = replace(made_up, max_users=plan.users, store=plan.out / "stores" / MADE_UP)
    both = replace(made_up, common_sessions=True)
    return {REAL: real, MADE_UP: made_up, GAZE: both, CURSOR: replace(both, signal="cursor")}


def analyse_one(plan: Plan, name: str) -> Case:
    """A column but that of few sessions; everything about it is in a folder of its own."""
    data = data_sets(plan)[name]
    # Pages that scroll never agree in their boxes.
    settings = AnalysisSettings(signal=data.signal, halvings=plan.halvings, alike="boxes" if name == REAL else "labels")
    store = open_or_prepare(data)
    found = write_analysis(store, plan.out / name.replace(" ", "_"), settings, sessions=usable_sessions(store, data))
    return Case(data=data, settings=settings, store=store, found=found)


def stability_of_few(case: Case, *, each: int, draws: int) -> pd.DataFrame:
    """The table of stability if everybody had few sessions: means over draws, `sd` over draws.

    Args:
        case: with more sessions than that.
        each: sessions of a person.
        draws: how often they are drawn.
    """
    sessions = [s for s in usable_sessions(case.store, case.data) if s.split in case.settings.splits]
    people, tables = len({s.user_id for s in sessions}), []
    for seed in track(range(draws), "Drawing few sessions"):
        few = select_sessions(choose_sessions(sessions, each * people, seed=seed), case.settings).layouts[0]
        tables.append(stability(few, halvings=max(case.settings.halvings // draws, 1), seed=seed))
    values = np.stack([table["value"] for table in tables])
    return tables[0].assign(value=values.mean(axis=0), sd=values.std(axis=0), low=np.nan, high=np.nan, p=np.nan)


def beside(
    tables: Mapping[str, pd.DataFrame], keys: list[str], cell: Callable[[Any, pd.DataFrame], str]
) -> pd.DataFrame:
    """Tables of the same rows as the columns of one.

    Args:
        tables: by the name of the column.
        keys: columns that name a row.
        cell: the text for a row of a table.
    """
    found = next(iter(tables.values()))[keys].copy()
    for name, table in tables.items():
        texts = {tuple(row[key] for key in keys): cell(row, table) for _, row in table.iterrows()}
        found[name] = [texts[tuple(row)] for row in found[keys].itertuples(index=False)]
    return found


def stable(row: Any, table: pd.DataFrame) -> str:
    """A cell of the table of stability: with the interval over people, or with the deviation over draws."""
    del table
    about = f"± {row['sd']:.2f}" if np.isnan(row["low"]) else f"({row['low']:.2f} to {row['high']:.2f})"
    return (
        f"{row['value']:.2f} {about if not np.isnan(row['low']) or row['sd'] > 0 else ''}, chance {row['chance']:.2f}"
    )


def telling(row: Any, table: pd.DataFrame) -> str:
    """A cell of the table of clicks."""
    del table
    people = f"{row['better']:.0f} of {row['users']}"
    return f"{row['macro']:.2f} ({row['low']:.2f} to {row['high']:.2f}), chance {row['chance']:.2f}; {people}"


def bound(row: Any, table: pd.DataFrame) -> str:
    """A cell of the table of bounds: the mean over people, its ratio to uniform's, and p beside the one it refines."""
    same = table[(table["measure"] == row["measure"]) & (table["predictor"] == "uniform")]
    text = f"{row['macro']:.3f}"
    if row["predictor"] == "uniform":
        return text
    p = f"p {row['p']:.2g}" if row["p"] >= 0.001 else "p < 0.001"
    return f"{text} (× {row['macro'] / same['macro'].item():.2f}; {p}, {row['better']})"


def sizes(cases: Mapping[str, Case]) -> pd.DataFrame:
    """How much there is, what a session looks like, and how far people are from each other."""
    columns = {}
    for name, case in cases.items():
        (layout, *_), difference = case.found.layouts, case.found.tables["user_slot_gaze"]["difference"]
        sessions = [s for s in usable_sessions(case.store, case.data) if s.split in case.settings.splits]
        dwell = [s.dwell_ms[case.settings.signal] for s in sessions]
        apart = float((difference**2).mean() ** 0.5)
        columns[name] = {
            "people": f"{len(layout.users)}",
            "sessions": f"{len(sessions)}",
            "of them on pages alike": f"{layout.user.size}",
            "of these a person": f"{layout.user.size / len(layout.users):.0f}",
            "slots of these": f"{len(layout.labels)}",
            "seconds of the signal in a session, median": f"{np.median([ms.sum() for ms in dwell]) / 1000:.1f}",
            "slots it is on in a session, mean": f"{np.mean([(ms > 0).sum() for ms in dwell]):.1f}",
            "share of the slot with most of it, median": f"{np.median([ms.max() / ms.sum() for ms in dwell]):.2f}",
            "person's mean less people's mean, points (rms)": f"{100 * apart:.1f}",
            "the same over a slot's even share": f"{apart * len(layout.labels):.2f}",
        }
    return pd.DataFrame(columns).rename_axis("").reset_index()


def left_out(cases: Mapping[str, Case]) -> pd.DataFrame:
    """What was not used, by reason: in reading (rows of logs or sessions), and in the analysis (sessions)."""
    rows: list[dict[str, Any]] = []
    for name in (REAL, MADE_UP):
        tables = cases[name].found.tables
        rows += [
            {"": name, "when": "reading", "reason": row.reason, "count": row.count}
            for row in tables["dropped"].itertuples(index=False, name="Row")
        ]
        rows += [
            {"": name, "when": f"analysis, {row.tables}", "reason": row.reason, "count": row.sessions}
            for row in tables["left_out"].itertuples(index=False)
        ]
    return pd.DataFrame(rows)


def draw(plan: Plan, cases: Mapping[str, Case]) -> list[Path]:
    """The three figures."""

    def maps(name: str, figure: SubFigure) -> None:
        layout, store = cases[name].found.layouts[0], cases[name].store
        width, height = store.image(layout.page_id).size
        draw_slot_maps(
            figure,
            boxes=layout.boxes,
            labels=layout.labels,
            users=layout.users,
            gaze=user_means(layout.gaze, layout.user),
            sessions=layout.sessions,
            aspect=height / width,
            most=MAPS[name],
            columns=2,
            title=f"{name}, {MAPS[name]} of {len(layout.users)} people",
        )

    def halves(name: str, figure: SubFigure) -> None:
        layout = cases[name].found.layouts[0]
        (first,), (second,) = random_halves(layout.gaze, layout.user, halvings=1, seed=0)
        draw_halves(figure, first=first, second=second, labels=layout.labels, title=name)

    pictures = {
        "analysis-slot-maps": ([partial(maps, name) for name in MAPS], (4.9, 7.4)),
        "analysis-halves": ([partial(halves, name) for name in MAPS], (4.6, 4.2)),
        "analysis-cursor": ([partial(halves, name) for name in (GAZE, CURSOR)], (4.6, 4.2)),
    }
    return [side_by_side(plan.out / f"{name}.png", panels, size=size) for name, (panels, size) in pictures.items()]


def main(plan: tyro.conf.OmitArgPrefixes[Plan]) -> None:
    """Analyse, and write the tables and figures."""
    cases = {name: analyse_one(plan, name) for name in track(list(data_sets(plan)), "Analysing")}
    alike = cases[MADE_UP].found.layouts[0]
    each = round(alike.user.size / len(alike.users))
    tables = {name: case.found.tables for name, case in cases.items()}
    stabilities = {name: of["stability"] for name, of in tables.items()}
    real = stabilities.pop(REAL)
    few = stability_of_few(cases[REAL], each=each, draws=plan.draws)
    text = {
        "What there is": sizes(cases),
        f"Stability (few: {each} sessions a person)": beside(
            {REAL: real, FEW: few, **stabilities}, ["measure"], stable
        ),
        "Gaze and clicks": beside({name: of["clicks"] for name, of in tables.items()}, ["measure"], telling),
        "Bounds": beside({name: of["bounds"] for name, of in tables.items()}, ["measure", "predictor"], bound),
        "Left out": left_out(cases),
    }
    lines = [f"## {heading}\n\n{to_markdown(table, 2)}" for heading, table in text.items()]
    (plan.out / "tables.md").write_text("\n".join(lines), encoding="utf-8")
    for path in (plan.out / "tables.md", *draw(plan, cases)):
        print(path)


if __name__ == "__main__":
    tyro.cli(main)
