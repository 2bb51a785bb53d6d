"""Odd RecGaze logs, made up by the hundred: what the reader makes of them is what a plain reading gives."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fixate_jax.data.readers.recgaze import Definition, RecGaze, read_recgaze
from fixate_jax.data.readers.recgaze.reader import Viewport
from fixate_jax.errors import DataError
from tests.data.recgaze.raw import (
    BACKGROUND,
    Row,
    event,
    movie,
    read_plainly,
    sample,
    write_features,
    write_logs,
    write_value,
)

CASES = int(os.environ.get("RECGAZE_CASES", "1000"))
"""Odd logs that are made up."""
SCREENS = [("KInIT_10", 1), ("KInIT_2", 1), ("KInIT_2", 29), ("UvA_1", 29), ("UvA_1", 36), ("KInIT_2", 0)]
"""Mixed up in one file; some have a single session, some none."""
SCROLLS = [0, 17, 17.3, 34.4, 176.5, 176.6, 366, 366.25, 366.5, 367, 369.4, 500, 1000.5, 2345, 2600, -8]
"""Among them offsets at which a row is just visible, just not, or just in full."""
DURATIONS = [0, 80, 149.9, 150, 210.5, 400]
KINDS = [
    "look",
    "look",
    "look",
    "near",
    "away",
    "forward",
    "backward",
    "click",
    "cursor",
    "scroll",
    "scroll",
    "both",
    "turn",
]
DEFINITIONS: list[Definition] = ["page", "page", "screen"]
VIEWPORTS: list[Viewport] = ["seen", "screen"]
Step = tuple[int, str, int, int, int]
STEPS = st.lists(
    st.tuples(
        st.sampled_from([0, 0, 0, *range(len(SCREENS))]),
        st.sampled_from(KINDS),
        st.integers(1, 5),
        st.integers(1, 15),
        st.integers(0, 29),
    ),
    min_size=1,
    max_size=40,
)


@dataclass
class State:
    """Where a person stands on a screen while a log is made up."""

    time: float = 1.0
    scroll: float = 0.0


def made_up(steps: list[Step]) -> list[Row]:
    """Rows of both logs: one for each step that is none of scrolling, with gaze samples near or far or not at all."""
    states, rows = [State() for _ in SCREENS], list[Row]()
    for screen, kind, carousel, place, chance in steps:
        state, (user, task) = states[screen], SCREENS[screen]
        if kind == "scroll":
            state.scroll = SCROLLS[chance % len(SCROLLS)]
            continue
        state.time = round(state.time + (0, 0, 0.1, 0.25, -0.1)[chance % 5], 3)  # The same again, later, or earlier.
        poster, ms = movie(carousel, place), DURATIONS[chance % len(DURATIONS)]
        events: dict[str, dict[str, Any]] = {
            "look": {"look": poster},
            "near": {"look": BACKGROUND, "closest": poster},
            "away": {"look": [BACKGROUND, ("Genre", carousel, None), ("Forward", carousel, None)][chance % 3]},
            "forward": {"click": ("Forward", carousel, None)},
            "backward": {"click": ("Backward", carousel, None)},
            "click": {"click": poster},
            "cursor": {"cursor": poster, "seconds": ms / 1000},
            "turn": {"look": poster, "click": ("Forward", carousel, None)},
            "both": {"look": poster, "click": movie(1 + chance % 3, place), "cursor": BACKGROUND, "seconds": 0.5},
        }
        more = events[kind]
        if "look" in more:
            more |= {"ms": ms, "page_y": state.scroll + 400.1 if chance != 7 else None}
        rows.append(event(user, task, state.time, **more) | {"Gaze_LocY": 333.3 if chance % 5 == 1 else None})
        if "look" in more:
            lost = (0, 0, 1, 2, 3)[chance // 6]
            rows += [sample(user, task, state.time, None) for _ in range(lost)]
            rows += [sample(user, task, state.time + 0.005, 400.1)] if chance % 4 else []
    return rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with screens and people, to which every case writes its logs."""
    folder = tmp_path_factory.mktemp("recgaze")
    users, tasks = zip(*SCREENS, strict=True)
    write_features(folder, tasks={1, 29} & {*tasks}, users=sorted(set(users)))
    return folder


def records(frame: Any) -> list[dict[str, Any]]:
    return frame.to_dict("records")


def same(found: RecGaze, expected: tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, int]]) -> None:
    sessions, visits, dropped = expected
    assert records(found.sessions) == sessions
    assert records(found.visits) == visits
    assert found.dropped == {reason: count for reason, count in dropped.items() if count}


CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@pytest.mark.slow
@settings(max_examples=CASES, deadline=None, suppress_health_check=CHECKS)
@given(steps=STEPS, definition=st.sampled_from(DEFINITIONS), viewport=st.sampled_from(VIEWPORTS))
def test_an_odd_log_is_read_as_the_rules_say(
    steps: list[Step], definition: Definition, viewport: Viewport, folder: Path
) -> None:
    rows = made_up(steps)
    if not rows:
        return
    write_logs(folder, rows)
    plainly = read_plainly(folder, definition, span=(87, 1032) if viewport == "seen" else (0, 1080))
    same(read_recgaze(folder, definition=definition, viewport=viewport), plainly)


FAULTS: dict[str, tuple[Callable[[Row], bool], str, Any, str]] = {
    # name: (the rows it can befall, the field, what stands there then, the reason)
    "no user": (lambda row: True, "UserID", None, "missing value"),
    "no time": (lambda row: True, "Timestamp", None, "missing value"),
    "time": (lambda row: True, "Timestamp", "soon", "not a number"),
    "no task": (lambda row: True, "TaskID", 41, "unknown task"),
    "type": (lambda row: "Click_AOI_type" in row, "Click_AOI_type", "Film", "unknown type"),
    "carousel": (lambda row: "Click_AOI_type" in row, "Click_AOI_Carousel_position", 11, "place outside the screen"),
    "negative": (lambda row: "Fixation_AOI_type" in row, "Fixation_Duration", -1, "negative duration"),
    "no duration": (lambda row: "Cursor_AOI_type" in row, "Cursor_Duration", None, "missing value"),
    "movie": (lambda row: "Cursor_AOI_MovieID" in row, "Cursor_AOI_MovieID", 3, "movie not at its place"),
}


@settings(max_examples=max(CASES // 5, 20), deadline=None, suppress_health_check=CHECKS)
@given(
    steps=STEPS,
    definition=st.sampled_from(DEFINITIONS),
    fault=st.sampled_from(sorted(FAULTS)),
    which=st.integers(0, 39),
)
def test_a_bad_row_in_an_odd_log_is_named_or_left_out(
    steps: list[Step], definition: Definition, fault: str, which: int, folder: Path
) -> None:
    befalls, column, value, reason = FAULTS[fault]
    rows = [row for row in made_up(steps) if row["TaskID"] in range(1, 36)]
    public = [row for row in rows if not row.get("sample")]
    hit = [row for row in public if befalls(row)]
    if not hit:
        return
    row = hit[which % len(hit)]
    line = 2 + next(i for i, other in enumerate(public) if other is row)
    write_logs(folder, rows)
    key = column in ("UserID", "TaskID", "Timestamp")
    # A row without its key is none that another can be the second of, so that it must not be counted either.
    twins = [r for r in public if all(r[k] == row[k] for k in ("UserID", "TaskID", "Timestamp"))]
    if key and len(twins) > 1:
        return
    sessions, visits, dropped = read_plainly(folder, definition, without=[line])
    write_value(folder / "summary_feedback.csv", line, column, value)
    with pytest.raises(DataError, match=rf"summary_feedback\.csv, line {line}, field '{column}'"):
        read_recgaze(folder, definition=definition)
    found = read_recgaze(folder, definition=definition, on_bad_row="skip")
    same(found, (sessions, visits, dropped | {reason: 1}))
