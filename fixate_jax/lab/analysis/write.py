"""An analysis on disk: CSV files, pictures and one HTML page, each written whole or not at all."""

import importlib.metadata
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd

from fixate_jax.data.session import StoredSession
from fixate_jax.data.store import SessionStore
from fixate_jax.errors import ConfigError
from fixate_jax.lab.analysis.layouts import AnalysisSettings, Layout
from fixate_jax.lab.analysis.measures import random_halves, user_means
from fixate_jax.lab.analysis.tables import Analysis, analyse
from fixate_jax.lab.report.gaze import half_scatter, slot_maps
from fixate_jax.lab.report.html import write_report
from fixate_jax.lab.text import csv_text
from fixate_jax.runtime.durable import write_text
from fixate_jax.runtime.lock import locked

REPORT = "analysis.html"
PACKAGES = ("fixate-jax", "numpy", "scipy", "pandas", "matplotlib")
HEADINGS = {
    "stability": "Stability of personal gaze",
    "clicks": "Gaze and clicks",
    "bounds": "What is known of gaze and clicks without a model",
    "clicks_by_user": "Gaze and clicks of each person",
    "user_slot_gaze": "Mean gaze of each person",
    "left_out": "Sessions left out",
    "dropped": "Left out when the data were read",
}
READING = [
    "Stability: each person's sessions are split into random halves, many times. The correlation, over people and "
    "slots, is between the mean gaze in the two halves beyond the mean over people; p is of the permutation test that "
    "people do not differ at all. Reliability (Spearman–Brown) is that of the mean over all sessions. Identified: a "
    "person's other half is the nearest of all people's.",
    "Clicks and bounds: micro is the mean over sessions, macro over people with its 95% bootstrap interval; better is "
    "for how many people, and p of the Wilcoxon test over people, beside chance or the predictor under 'against'.",
    "Bounds: mean gaze and click frequencies are those of other sessions. A predictor that is told the click stands "
    "beside teacher-forced relevance, any other beside free-running.",
]


def write_analysis(
    store: SessionStore, out: Path, settings: AnalysisSettings, *, sessions: Sequence[StoredSession] | None = None
) -> Analysis:
    """Analyse a store's sessions and write everything that was found.

    Args:
        store: the sessions.
        out: folder for the CSV files (named as in `Analysis.tables`), `figures/` and `analysis.html`; made where it is
            missing. Files of an earlier analysis are replaced.
        settings: what to analyse, and how.
        sessions: those of the store that count (None: all).

    Raises:
        ConfigError: `out` cannot be made, for example because a file is in its place, or another process is at it.
        DataError: too few people with enough sessions, or a session without the signal.
    """
    found = analyse(store.sessions if sessions is None else sessions, settings)
    told = {"dropped": pd.DataFrame(store.dropped.items(), columns=["reason", "count"])}
    if store.noted:
        told["noted"] = pd.DataFrame(store.noted.items(), columns=["what", "count"])
    found = replace(found, tables={**found.tables, **told})
    try:
        (out / "figures").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be made ({error.strerror}); choose another folder") from error
    with locked(out):
        return _write(found, store, out, settings)


def _write(found: Analysis, store: SessionStore, out: Path, settings: AnalysisSettings) -> Analysis:
    for name, table in found.tables.items():
        write_text(out / f"{name}.csv", csv_text(table))
    figures = []
    for number, layout in enumerate(found.layouts, start=1):
        figures += _figures(store, out / "figures", number, layout, settings)
    write_report(
        out,
        name=REPORT,
        title=f"What {store.manifest['name']} holds",
        tables={HEADINGS[name]: _shown(name, table) for name, table in found.tables.items() if not table.empty},
        figures=figures,
        config={"store": store.directory, "data": store.manifest["settings"], "analysis": asdict(settings)},
        versions={name: importlib.metadata.version(name) for name in PACKAGES},
        notes=[*found.notes, *READING],
    )
    return found


def _figures(
    store: SessionStore, folder: Path, number: int, layout: Layout, settings: AnalysisSettings
) -> list[tuple[str, Path]]:
    end = "" if number == 1 else f"-{number}"
    width, height = store.image(layout.page_id).size
    maps = slot_maps(
        folder / f"slot_maps{end}.png",
        boxes=layout.boxes,
        labels=layout.labels,
        users=layout.users,
        gaze=user_means(layout.gaze, layout.user),
        sessions=layout.sessions,
        aspect=height / width,
    )
    # The first of the halvings that the table is the mean of.
    (first,), (second,) = random_halves(layout.gaze, layout.user, halvings=1, seed=settings.seed)
    halves = half_scatter(folder / f"halves{end}.png", first=first, second=second, labels=layout.labels)
    return [
        (f"Where each person looks, beside the mean over people. Page layout {number}: {layout.name}", maps),
        (f"One split of each person's sessions into halves, page layout {number}", halves),
    ]


def _shown(name: str, table: pd.DataFrame) -> pd.DataFrame:
    """A table as it reads best on a page: the shares of a person side by side."""
    if name != "user_slot_gaze":
        return table
    wide = table.pivot_table(index=["layout", "user_id", "sessions"], columns="slot", values="gaze", sort=False)
    return wide.rename(columns=lambda slot: f"slot {slot}").reset_index().rename_axis(columns=None)
