"""The RecGaze reader against logs and results written by hand."""

from pathlib import Path
from typing import Any

import pytest

from fixate_jax.data.readers.recgaze import RecGaze, read_recgaze
from tests.data.recgaze.by_hand import CASES, DROPPED, OPENING, USERS
from tests.data.recgaze.log_writer import Case, Session, movie_id, write_logs

REASONS = {
    "no scroll": "fixation without scroll offset",
    "off slots": "final click off the slots",
    "no dwell": "no dwell on the slots",
}
"""What the reader calls the reasons for which it leaves something out."""
PAGE_CASES = [case for case in CASES if case.split]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All cases in one data set."""
    return write_logs(CASES, tmp_path_factory.mktemp("recgaze"))


@pytest.fixture(scope="module")
def page(folder: Path) -> RecGaze:
    """The result by page, with all of the screen counted as seen, as the description of the published code has it."""
    return read_recgaze(folder, definition="page", viewport="screen")


@pytest.fixture(scope="module")
def screen(folder: Path) -> RecGaze:
    """The result by screen, from a folder without the table that it does not need."""
    (folder / "non_public_feedback_dataset.csv").rename(folder / "elsewhere.csv")
    result = read_recgaze(folder, definition="screen")
    (folder / "elsewhere.csv").rename(folder / "non_public_feedback_dataset.csv")
    return result


def _name(case: Case) -> str:
    return f"{case.user}-{case.task}"


def _rows(frame: Any, case: Case) -> list[dict[str, Any]]:
    chosen = frame[(frame["user_id"] == case.user) & (frame["task_id"] == case.task)]
    return list(chosen.to_dict("records"))


def _check_session(frame: Any, case: Case, expected: Session | None, visible: tuple[int, ...]) -> None:
    found = _rows(frame, case)
    assert len(found) == (expected is not None)
    if expected is None:
        return
    (row,) = found
    assert row["session_id"] == f"{case.user}/{case.task}"
    assert (row["split"], row["visit"], row["click"]) == (case.split, expected.visit, expected.click)
    assert row["scroll_px"] == pytest.approx(expected.scroll, abs=1e-6)
    assert row["slots"] == tuple(expected.slots)
    assert row["movie_ids"] == tuple(movie_id(case.task, slot) for slot in expected.slots)
    assert row["fixation_ms"] == pytest.approx(tuple(expected.ms.get(slot, 0.0) for slot in expected.slots))
    assert row["cursor_ms"] == pytest.approx(tuple(expected.cursor.get(slot, 0.0) for slot in expected.slots))
    assert len(row["horizontal_pages"]) == 10
    assert [row["horizontal_pages"][c - 1] for c in visible] == [expected.pages.get(c, 0) for c in visible]


@pytest.mark.parametrize("case", PAGE_CASES, ids=_name)
def test_sessions_by_page(page: Any, case: Case) -> None:
    visible = case.visits[case.session.visit].rows if case.session else ()
    _check_session(page.sessions, case, case.session, visible)


@pytest.mark.parametrize("case", PAGE_CASES, ids=_name)
def test_visits(page: Any, case: Case) -> None:
    found = _rows(page.visits, case)
    assert [row["visit"] for row in found] == list(range(len(case.visits)))
    for row, visit in zip(found, case.visits, strict=True):
        assert row["start"] == pytest.approx(visit.start, rel=0, abs=1e-5)
        assert row["scroll_px"] == pytest.approx(visit.scroll, abs=1e-6)
        assert (row["rows"], row["full_rows"]) == (visit.rows, visit.full)
        assert {c: row["horizontal_pages"][c - 1] for c in visit.rows} == {c: visit.pages.get(c, 0) for c in visit.rows}
        assert {slot: ms for slot, ms in row["fixation_ms"].items() if ms} == pytest.approx(dict(visit.ms))
        assert row["clicks"] == tuple(visit.clicks)


@pytest.mark.parametrize("case", [case for case in PAGE_CASES if case.screen is not ...], ids=_name)
def test_sessions_by_screen(screen: Any, case: Case) -> None:
    _check_session(screen.sessions, case, case.screen, tuple(range(1, 11)))
    assert case.screen is None or case.screen.slots == OPENING


def test_direct_search_is_left_out(page: Any, screen: Any) -> None:
    for frame in (page.sessions, page.visits, screen.sessions):
        assert not frame["task_id"].isin(range(36, 41)).any()
    assert screen.visits.empty


def test_order(page: Any) -> None:
    """By user, 2 before 10, then by task, then by visit."""
    for frame, column in ((page.sessions, "task_id"), (page.visits, "visit")):
        keys = [(USERS.index(user), task) for user, task in zip(frame["user_id"], frame["task_id"], strict=True)]
        assert keys == sorted(keys), column


def test_drops(page: Any) -> None:
    assert {ours: page.dropped.get(theirs, 0) for ours, theirs in REASONS.items()} == DROPPED
    assert {name: sum(case.drops.get(name, 0) for case in CASES) for name in REASONS} == DROPPED
