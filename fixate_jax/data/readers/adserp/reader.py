"""Gaze, cursor and clicks on search result pages: AdSERP (Latifzadeh, Gwizdka, Leiva, SIGIR 2025).

A trial is a full-page screenshot with boxes of its results and ads, a person's fixations on it, and the browser's log
of cursor, scrolling and clicks. A session is what was on the screen at the last stop of scrolling before the first
click on something. The number drawn on a slot is its label: visible organic results by rank from "0" on, then visible
ads.
"""

import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from fixate_jax.data.readers.adserp import stops
from fixate_jax.data.readers.adserp.files import (
    FOLDERS,
    TRIAL_ID,
    Trial,
    has_organic,
    read_trial,
)
from fixate_jax.data.readers.adserp.tables import BadTrial, Table
from fixate_jax.data.session import Split
from fixate_jax.data.splits import split_by_content
from fixate_jax.data.store import natural_order
from fixate_jax.errors import DataError, DataWarning
from fixate_jax.runtime.progress import track

PARTICIPANTS = "participants.csv"
TRAITS = {
    "gender": "gender",
    "age": "age",
    "english": "English",
    "education": "education",
    "pref_device": "shops online with",
    "pref_website": "on",
    "online_shopping_freq": "how often",
}
"""Columns of ``participants.csv`` that go into the profile, and what they are called there."""
WINDOW = (1422, 1137)
"""The study's window in CSS pixels, which shows 1,024 rows of the screenshot."""
UNKNOWN_PLACE = "click on a result, whose place is not known"
NOT_LOOKED = "no fixation on a slot"
OTHER_WINDOW = f"window of another size than {WINDOW[0]}x{WINDOW[1]}"
FREQUENCIES = ("Rarely", "Weekly", "Monthly")

COLUMNS = (
    *("session_id", "user_id", "block", "trial", "split", "query", "profile", "scroll_px", "start_ms", "end_ms"),
    *("page_height", "crop", "kinds", "ranks", "boxes", "fixation_ms", "cursor_ms", "click"),
)


@dataclass(frozen=True, kw_only=True)
class AdSerp:
    """Sessions of AdSERP.

    Attributes:
        sessions: sorted by user, block and trial. Columns: ``session_id`` (the trial's ID), ``user_id``, ``block``,
            ``trial``, ``split``, ``query``, ``profile``; the stop's ``start_ms``, ``end_ms`` and offset ``scroll_px``;
            the document's ``page_height``; ``crop``, top and bottom of what is seen; for each slot ``kinds``,
            ``ranks`` (0 for ads), ``boxes`` (x0, y0, x1, y1, what is seen of it), ``fixation_ms``, ``cursor_ms`` (all 0
            when the cursor was on none); ``click``, the clicked slot's index. Lengths are screenshot pixels.
        dropped: how many trials were left out, by reason.
        noted: how many of these sessions there is something to know about, by what it is.
    """

    sessions: pd.DataFrame
    dropped: dict[str, int]
    noted: dict[str, int]


def read_adserp(path: Path, *, on_bad_row: Literal["error", "skip"] = "error", seed: int = 0) -> AdSerp:
    """Read and check all trials.

    Trials without a session (no click, none on anything, no gaze on a slot) are left out and counted in any case.
    Without the places of organic results the slots are the ads alone, and a :class:`DataWarning` says so.

    Args:
        path: the folder with ``participants.csv`` and the folders of ``FOLDERS``.
        on_bad_row: stop at the first bad file, or leave out trials with a bad file and count them.
        seed: of the split.

    Raises:
        DataError: naming the file, and the line or field.
    """
    participants = read_participants(path / PARTICIPANTS)
    if not has_organic(path):
        folder = path / FOLDERS["organic"][0]
        warnings.warn(
            f"{folder}: not there; slots are the ads alone, and clicks on results are left out",
            DataWarning,
            stacklevel=2,
        )
    dropped, noted = Counter[str](), Counter[str]()
    rows = []
    for trial_id in track(trial_ids(path), "Reading trials"):
        try:
            row = read_session(path, trial_id, participants)
        except BadTrial as error:
            if on_bad_row == "error":
                raise
            row = error.reason
        if isinstance(row, str):
            dropped[row] += 1
        else:
            noted.update(row.pop("noted"))
            rows.append(row)
    if not rows:
        raise DataError(f"{path}: no session is left; left out by reason: {dict(dropped)}")
    frame = pd.DataFrame(rows)
    frame["split"] = assign_splits(frame, seed)
    return AdSerp(sessions=frame[list(COLUMNS)], dropped=dict(dropped), noted=dict(noted))


def source_files(path: Path) -> list[Path]:
    """The raw files that the sessions are made of."""
    found = [
        file for folder, ending in FOLDERS.values() for file in natural_files(path / folder, ending) if file.is_file()
    ]
    return [path / PARTICIPANTS, *found]


def natural_files(folder: Path, ending: str) -> list[Path]:
    """The files of a folder with this ending, p2 before p10; hidden ones are none of ours."""
    names = [file.name for file in folder.glob(f"*{ending}") if not file.name.startswith(".")]
    return [folder / name for name in natural_order(names)]


def trial_ids(path: Path) -> list[str]:
    """IDs of all trials of which any file is there, in natural order.

    Raises:
        DataError: when a folder is missing or holds a file that is named after no trial.
    """
    found: set[str] = set()
    for folder, ending in FOLDERS.values():
        if not (path / folder).is_dir():
            if folder == FOLDERS["organic"][0]:
                continue
            raise DataError(f"{path / folder}: not found; data.path must be the folder of AdSERP")
        for file in natural_files(path / folder, ending):
            if not TRIAL_ID.fullmatch(file.stem):
                raise DataError(f"{file}: is named after no trial such as p004-b1-t3; remove or rename it")
            found.add(file.stem)
    return natural_order(found)


def read_participants(path: Path) -> dict[str, dict[str, str]]:
    """Traits of every participant by column.

    Raises:
        DataError: naming the file, the line and the field.
    """
    if not path.is_file():
        raise DataError(f"{path}: not found; data.path must be the folder of AdSERP")
    try:
        table = Table(path, ["participant_id", *TRAITS])
        names = table.filled("participant_id")
        for row, name in enumerate(names):
            if name in names[:row]:
                raise table.fail(row, "participant_id", "is given twice", "repeated participant")
    except BadTrial as error:
        raise DataError(f"{error.problem}; fix the file") from None
    return {name: {trait: table.texts[trait][row] for trait in TRAITS} for row, name in enumerate(names)}


def profile_text(query: str, traits: Mapping[str, str]) -> str:
    """What the model is told: the query and the person's traits."""
    traits = dict(traits)
    # The published table has the names of these two columns exchanged.
    if traits["pref_website"] in FREQUENCIES and traits["online_shopping_freq"] not in FREQUENCIES:
        website = traits["online_shopping_freq"]
        traits |= {"online_shopping_freq": traits["pref_website"], "pref_website": website}
    known = [f"{name}: {traits[column]}" for column, name in TRAITS.items() if traits[column]]
    about = f" About the user: {'; '.join(known)}." if known else ""
    return f"The user searches for “{query}” and picks a result.{about}"


def read_session(path: Path, trial_id: str, participants: Mapping[str, Mapping[str, str]]) -> dict[str, Any] | str:
    """A trial as a row of ``AdSerp.sessions``, or the reason why it gives no session.

    Returns:
        A row without its split and with ``noted``, what there is to know about it; or the reason.

    Raises:
        BadTrial: naming the file, and the line or field.
    """
    match = TRIAL_ID.fullmatch(trial_id)
    assert match is not None
    user = match[1]
    if user not in participants:
        problem = f"participant {user!r} of trial {trial_id} is missing"
        raise BadTrial(f"{path / PARTICIPANTS}: {problem}", "unknown participant")
    trial = read_trial(path, trial_id)
    seen = _choice(trial)
    if isinstance(seen, str):
        return seen
    query = " ".join(trial.query.replace("-", " ").split())
    return {
        "session_id": trial_id,
        "user_id": user,
        "block": int(match[2]),
        "trial": int(match[3]),
        "query": query,
        "profile": profile_text(query, participants[user]),
        "page_height": trial.document_height * trial.scale,
    } | seen


def _choice(trial: Trial) -> dict[str, Any] | str:
    """What the first click on something chose; or why there is no session, for several clicks that of the first."""
    reasons: list[str] = []
    for click in stops.clicks(trial.mouse):
        seen = _view_before(trial, click)
        if not isinstance(seen, str):
            return seen | {"noted": [*seen["noted"], *([stops.LATER] if reasons else [])]}
        if seen == NOT_LOOKED:
            return seen
        if not trial.organic and stops.on_result(trial.mouse, click):
            return UNKNOWN_PLACE
        reasons.append(seen)
    return reasons[0] if reasons else "no click"


def _view_before(trial: Trial, click: int) -> dict[str, Any] | str:
    """What was seen and looked at in the last stop before a click, and what was clicked; or why it is no choice."""
    stop = stops.last_stop(trial.mouse, click)
    crop = stops.crop_of(trial, stop)
    if crop[1] - crop[0] < stops.MIN_CROP:
        return f"less than {stops.MIN_CROP} px of the page seen"
    slots = stops.visible_slots(trial.aois, crop)
    clicked, doubt = stops.clicked_slot(trial, click, slots)
    if clicked is None:
        return "click on no visible area"
    fixation = stops.fixation_dwell(trial.fixations, stop, slots.boxes)
    if fixation.sum() <= 0:
        return NOT_LOOKED
    return {
        "scroll_px": stop.offset * trial.scale,
        "start_ms": stop.start,
        "end_ms": stop.end,
        "crop": crop,
        "kinds": tuple(aoi.kind for aoi in slots.aois),
        "ranks": tuple(aoi.rank for aoi in slots.aois),
        "boxes": tuple(tuple(box) for box in slots.boxes.tolist()),
        "fixation_ms": tuple(fixation.tolist()),
        "cursor_ms": tuple(stops.cursor_dwell(trial, click, stop, slots.boxes).tolist()),
        "click": clicked,
        "noted": [note for note in (doubt, "" if trial.window == WINDOW else OTHER_WINDOW) if note],
    }


def assign_splits(frame: pd.DataFrame, seed: int) -> list[Split]:
    """Split every person's sessions by :func:`split_by_content`, all sessions of a query into one part.

    Args:
        frame: rows with ``user_id`` and ``query``.
        seed: of the order.
    """
    return split_by_content(frame, "query", seed)
