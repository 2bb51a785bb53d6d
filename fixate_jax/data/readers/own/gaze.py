"""Gaze of one's own data, by session and slot: from a table of dwell, or of fixations."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from fixate_jax.data.boxes import slot_at
from fixate_jax.data.readers.own.files import DWELL, FIXATIONS, SESSIONS, SLOTS, read_header
from fixate_jax.data.readers.own.tables import Log, Page, Rules, require_owner
from fixate_jax.data.readers.recgaze.tables import Table, read_table
from fixate_jax.errors import DataError, DataWarning

OFF_SLOTS = "fixation on no slot"
"""Counted in fixations, unlike other reasons; its session stays if it has others."""


SHORT_MS = 30
"""Times that all lie below it, and most of which are no whole numbers, are taken for seconds."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Gaze:
    """Times on slots, a row each.

    Attributes:
        session: row of the session.
        slot: index of the slot on its page.
        ms: time by signal.
        bad: sessions that had a bad row.
    """

    session: Int[np.ndarray, " rows"]
    slot: Int[np.ndarray, " rows"]
    ms: Mapping[str, Float[np.ndarray, " rows"]]
    bad: Bool[np.ndarray, " sessions"]


def read_dwell(path: Path, sessions: pd.DataFrame, known: set[str], pages: Mapping[str, Page], log: Log) -> Gaze:
    """Read and check ``dwell.csv``.

    Args:
        path: the file.
        sessions: the good ones, as :func:`~fixate_jax.data.readers.own.tables.read_sessions` returns them.
        known: ids of all; rows of sessions that were left out are passed over.
        pages: by name of the screenshot.
        log: what becomes of bad rows.

    Raises:
        DataError: naming file, line and field.
    """
    signals = {"fixation": "fixation_ms"}
    if "cursor_ms" in read_header(path, ["session_id", "label", "fixation_ms"]):
        signals["cursor"] = "cursor_ms"
    table = read_table(path, numbers=list(signals.values()), texts=["session_id", "label"], gaps=("",))
    rules, owner = _owned(table, sessions, known, log)
    asked = rules.good.copy()
    rules.refuse_texts()
    for name in ("label", *table.numbers):
        rules.refuse_missing(name)
    for name, values in table.numbers.items():
        rules.refuse(values < 0, column=name, reason="negative dwell", wanted="must not be negative")
    seen = [pages[name] for name in sessions["page"].to_numpy()[owner]]
    slot = np.array([p.slot_of(label) for p, label in zip(seen, rules.texts("label"), strict=True)], np.int64)
    wanted = f"is no label of the session's page in {SLOTS}"
    rules.refuse(slot < 0, column="label", reason="unknown label", wanted=wanted)
    rules.refuse_repeats("session_id", "label")
    good = rules.finish()
    ms = {signal: table.numbers[column][good] for signal, column in signals.items()}
    _require_ms(path, ms["fixation"], "fixation_ms")
    return Gaze(session=owner[good], slot=slot[good], ms=ms, bad=_bad(owner[asked & ~good], len(sessions)))


def read_fixations(path: Path, sessions: pd.DataFrame, known: set[str], pages: Mapping[str, Page], log: Log) -> Gaze:
    """Read and check ``fixations.csv``, arguments as in :func:`read_dwell`.

    A fixation counts, with its whole duration, for the smallest box that holds it. Boxes hold their upper and left edge
    and not their lower and right one. Fixations in no box are counted; they may lie off the page, since eyes do too.

    Raises:
        DataError: naming file, line and field.
    """
    columns = ["x", "y", "duration_ms"]
    read_header(path, ["session_id", *columns])
    table = read_table(path, numbers=columns, texts=["session_id"], gaps=("",))
    rules, owner = _owned(table, sessions, known, log)
    asked = rules.good.copy()
    rules.refuse_texts()
    for name in columns:
        rules.refuse_missing(name)
    x, y, ms = (table.numbers[name] for name in columns)
    rules.refuse(ms < 0, column="duration_ms", reason="negative duration", wanted="must not be negative")
    good = rules.finish()
    points = np.stack([x, y], axis=1)[good]
    if len(points) and points.min() >= 0 and points.max() <= 1:
        raise DataError(
            f"{path}: all {len(points)} fixations lie between 0 and 1; are these shares of the page? Multiply x by the "
            "width of the screenshot and y by its height, in pixels"
        )
    _require_ms(path, ms[good], "duration_ms")
    _tell_of_copies(path)
    bad = _bad(owner[asked & ~good], len(sessions))
    owner, ms = owner[good], ms[good]
    slot = np.full(len(owner), -1)
    seen = sessions["page"].to_numpy()[owner]
    for page, rows in pd.Series(seen).groupby(seen).indices.items():
        slot[rows] = slot_at(points[rows], pages[page].boxes)
    on = slot >= 0
    log.count(OFF_SLOTS, int((~on & ~bad[owner]).sum()))
    return Gaze(session=owner[on], slot=slot[on], ms={"fixation": ms[on]}, bad=bad)


READERS: dict[str, Callable[[Path, pd.DataFrame, set[str], Mapping[str, Page], Log], Gaze]] = {
    DWELL: read_dwell,
    FIXATIONS: read_fixations,
}
"""By name of the file."""


def _require_ms(path: Path, times: Float[np.ndarray, " rows"], column: str) -> None:
    """Refuse times that are meant in seconds: nobody's eyes rest for a few ms alone, and nobody measures parts of one.

    Raises:
        DataError: all of them are below 30, and most are no whole numbers.
    """
    if len(times) and times.max() < SHORT_MS and (times % 1 > 0).mean() > 0.5:
        raise DataError(
            f"{path}, field {column!r}: all times are below {SHORT_MS} (at most {times.max():g}); are these seconds? "
            "Multiply them by 1000"
        )


def _tell_of_copies(path: Path) -> None:
    """Warn of rows that say the same in every column, as when a session was exported twice."""
    with path.open(encoding="utf-8-sig", newline="") as handle:
        lines = [line.rstrip("\r\n") for line in handle]
    repeated = pd.Series(lines, dtype=object).duplicated().to_numpy()
    copies = [number for number, (line, again) in enumerate(zip(lines, repeated, strict=True), 1) if line and again]
    if copies:
        warnings.warn(
            f"{path}: {len(copies)} rows say the same as an earlier one in every column, the first in line "
            f"{copies[0]}; each counts. Remove them if something was exported twice",
            DataWarning,
            stacklevel=2,
        )


def _owned(table: Table, sessions: pd.DataFrame, known: set[str], log: Log) -> tuple[Rules, Int[np.ndarray, " rows"]]:
    """Rules for the table, and the session of every row; those of sessions that were left out are good no longer."""
    require_owner(table, "session_id")
    rules = Rules(table, log)
    names = rules.texts("session_id")
    wanted = f"is no session of {SESSIONS}; add it there or remove its rows"
    rules.refuse_unknown("session_id", names, known, reason="unknown session", wanted=wanted)
    place = {name: row for row, name in enumerate(sessions["session_id"])}
    owner = np.array([place.get(name, -1) for name in names], np.int64)
    rules.good &= owner >= 0
    return rules, owner


def _bad(rows: Int[np.ndarray, " bad"], sessions: int) -> Bool[np.ndarray, " sessions"]:
    found = np.zeros(sessions, bool)
    found[rows] = True
    return found


def dwell_of(gaze: Gaze, slots: list[int]) -> list[dict[str, Float[np.ndarray, " _"]]]:
    """Time on each slot of each session by signal; a cursor that was on none of them is no signal.

    Args:
        gaze: the rows.
        slots: how many the page of each session has.
    """
    ends = np.cumsum(slots)
    place = (ends - slots)[gaze.session] + gaze.slot
    found: list[dict[str, np.ndarray]] = [{} for _ in slots]
    for signal, ms in gaze.ms.items():
        flat = np.bincount(place, weights=ms, minlength=int(ends[-1])).astype(np.float64)
        for dwell, own in zip(found, np.split(flat, ends[:-1]), strict=True):
            if signal == "fixation" or own.sum() > 0:
                dwell[signal] = own
    return found
