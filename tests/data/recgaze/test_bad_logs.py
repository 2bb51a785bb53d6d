"""The reader of RecGaze: files, rows and fields that it refuses, or leaves out and counts."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fixate_jax.data.readers.recgaze.reader import read_recgaze
from fixate_jax.errors import DataError
from tests.data.recgaze.raw import (
    ITEM_FILE,
    OTHER,
    SUMMARY,
    USER_FILE,
    a_session,
    look,
    read_plainly,
    write_folder,
    write_value,
)


@pytest.mark.parametrize("name", [SUMMARY, OTHER, ITEM_FILE, USER_FILE])
@pytest.mark.parametrize("fault", ["absent", "no rows", "empty", "column", "twice", "bytes", "folder"])
def test_a_bad_file_is_named(name: str, fault: str, tmp_path: Path) -> None:
    path = write_folder(tmp_path, a_session()) / name
    header, *rows = path.read_text(encoding="utf-8").splitlines()
    column = {SUMMARY: "Timestamp", OTHER: "Gaze_LocY", ITEM_FILE: "MovieID", USER_FILE: "UserID"}[name]
    texts = {
        "no rows": (header + "\n", "holds no rows"),
        "empty": ("", "columns .* are missing"),
        "column": ("\n".join([header.replace(column, "other"), *rows]), f"columns {column} are missing"),
        "twice": ("\n".join(f"{line},{column if line == header else 1}" for line in (header, *rows)), "given twice"),
    }
    path.unlink()
    if fault in texts:
        path.write_text(texts[fault][0], encoding="utf-8")
    elif fault == "bytes":
        path.write_bytes(header.encode() + b"\n" + b"\xff\xfe," * header.count(",") + b"\xff\n")
    elif fault == "folder":
        path.mkdir()
    others = {"absent": "not found", "bytes": "not readable", "folder": "is no ordinary file but a folder"}
    message = texts[fault][1] if fault in texts else others[fault]
    with pytest.raises(DataError, match=rf"{name}: .*{message}"):
        read_recgaze(tmp_path, definition="page")


BAD_ROWS: dict[str, tuple[str, int, str, object, str, str]] = {
    # name: (file, line, field, what stands there, the message, the reason in the counts)
    "no user": (SUMMARY, 2, "UserID", None, "is empty", "missing value"),
    "stranger": (SUMMARY, 2, "UserID", "UvA_9", "has no row in user_features", "unknown user"),
    "task": (SUMMARY, 2, "TaskID", 2.5, "must be a whole number from 0 to 40", "unknown task"),
    "text for a task": (SUMMARY, 2, "TaskID", "two", "is not a number", "not a number"),
    "no screen": (SUMMARY, 2, "TaskID", 3, "has no rows in item_features", "task without a screen"),
    "infinite time": (SUMMARY, 3, "Timestamp", "inf", "is not a number", "not a number"),
    "text for a time": (SUMMARY, 3, "Timestamp", "1_0", "is not a number", "not a number"),
    "type": (SUMMARY, 2, "Fixation_AOI_type", "movie", "must be one of Movie, Genre", "unknown type"),
    "closest type": (SUMMARY, 2, "Fixation_AOI_Closest_type", "x", "must be one of Movie", "unknown type"),
    "carousel": (SUMMARY, 2, "Fixation_AOI_Carousel_position", 0, "from 1 to 10", "place outside the screen"),
    "no carousel": (SUMMARY, 4, "Click_AOI_Carousel_position", None, "is empty", "missing value"),
    "place": (SUMMARY, 3, "Cursor_AOI_Movie_position_in_carousel", 16, "1 to 15", "place outside the screen"),
    "movie": (SUMMARY, 4, "Click_AOI_MovieID", 7, "not the movie at this place", "movie not at its place"),
    "no movie": (SUMMARY, 4, "Click_AOI_MovieID", None, "is empty", "missing value"),
    "NaN": (SUMMARY, 2, "Fixation_Duration", "NaN", "is empty", "missing value"),
    "negative": (SUMMARY, 2, "Fixation_Duration", -0.1, "must not be negative", "negative duration"),
    "negative cursor": (SUMMARY, 3, "Cursor_Duration", -2, "must not be negative", "negative duration"),
    "text": (SUMMARY, 3, "Cursor_Duration", "long", "is not a number", "not a number"),
    "text for gaze": (OTHER, 3, "Gaze_LocY", "high", "is not a number", "not a number"),
    "other's time": (OTHER, 3, "Timestamp", None, "is empty", "missing value"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_named_or_left_out_and_counted(name: str, tmp_path: Path) -> None:
    file, line, column, value, message, reason = BAD_ROWS[name]
    write_folder(tmp_path, a_session())
    write_value(tmp_path / file, line, column, value)
    shown = repr("NA" if value is None else str(value))
    with pytest.raises(
        DataError, match=rf"{file}, line {line}, field '{column}' = {shown}: .*{message}.*; fix the row"
    ):
        read_recgaze(tmp_path, definition="page")
    dropped = read_recgaze(tmp_path, definition="page", on_bad_row="skip").dropped
    assert dropped[reason] == 1


def test_a_bad_row_of_the_non_public_table_takes_the_offset_along(tmp_path: Path) -> None:
    write_folder(tmp_path, [*look(0.5, 1, 1, 300), *a_session()])
    write_value(tmp_path / OTHER, 2, "Fixation_LocY", "high")
    found = read_recgaze(tmp_path, definition="page", on_bad_row="skip")
    assert found.dropped == {"not a number": 1, "fixation without scroll offset": 1}
    assert found.visits["fixation_ms"].tolist() == [{(1, 2): 200.0}]


def test_a_click_without_a_row_in_the_non_public_table_still_counts(tmp_path: Path) -> None:
    write_folder(tmp_path, a_session())
    before = read_recgaze(tmp_path, definition="page")
    write_value(tmp_path / OTHER, 4, "Timestamp", 2.25)
    found = read_recgaze(tmp_path, definition="page")
    assert len(found.sessions) == 1 and found.sessions.equals(before.sessions) and found.dropped == before.dropped


def test_the_non_public_table_of_another_study_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, a_session())
    lines = (tmp_path / OTHER).read_text(encoding="utf-8").splitlines()
    (tmp_path / OTHER).write_text("\n".join(lines[:1] + lines[-1:]) + "\n", encoding="utf-8")
    write_value(tmp_path / OTHER, 2, "Timestamp", 99)
    with pytest.raises(DataError, match=rf"{OTHER}: has no row of the events in {SUMMARY} .* two tables of one study"):
        read_recgaze(tmp_path, definition="page")


def change_line(line: int, change: Callable[[str], str]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        lines = path.read_text(encoding="utf-8").splitlines()
        lines[line - 1] = change(lines[line - 1])
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    return apply


@pytest.mark.parametrize("name", [SUMMARY, OTHER])
@pytest.mark.parametrize("change", [lambda text: text[: len(text) // 2], lambda text: text + ",1"])
def test_a_line_cut_short_or_too_long_is_named_or_left_out(
    name: str, change: Callable[[str], str], tmp_path: Path
) -> None:
    rows = [*look(0.5, 1, 1, 300), *a_session()]
    write_folder(tmp_path, rows)
    change_line(2, change)(tmp_path / name)
    with pytest.raises(DataError, match=rf"{name}, line 2: has another number of fields than the header; fix"):
        read_recgaze(tmp_path, definition="page")
    found = read_recgaze(tmp_path, definition="page", on_bad_row="skip")
    assert found.dropped.pop("wrong number of fields") == 1
    assert found.dropped == ({} if name == SUMMARY else {"fixation without scroll offset": 1})
    sessions, visits, _ = read_plainly(write_folder(tmp_path, rows), "page", without=[2])
    assert (found.sessions.to_dict("records"), found.visits.to_dict("records")) == (sessions, visits)


def test_empty_lines_change_no_line_numbers(tmp_path: Path) -> None:
    write_folder(tmp_path, a_session())
    whole = read_recgaze(tmp_path, definition="page")
    change_line(3, lambda text: "\n\n" + text)(tmp_path / SUMMARY)
    assert read_recgaze(tmp_path, definition="page").sessions.equals(whole.sessions)
    write_value(tmp_path / SUMMARY, 5, "Cursor_Duration", -1)
    with pytest.raises(DataError, match="line 5, field 'Cursor_Duration' = '-1'"):
        read_recgaze(tmp_path, definition="page")


BAD_FEATURES: dict[str, tuple[str, int, str, object, str]] = {
    "user twice": (USER_FILE, 3, "UserID", "KInIT_2", "line 3, field 'UserID' = 'KInIT_2': is given twice"),
    "nobody": (USER_FILE, 2, "UserID", None, "line 2, field 'UserID' = 'NA': is empty"),
    "carousel": (
        ITEM_FILE,
        9,
        "Carousel_position",
        11,
        "line 9, field 'Carousel_position' = '11': must be a whole number",
    ),
    "movie": (ITEM_FILE, 9, "MovieID", "Alien", "line 9, field 'MovieID' = 'Alien': must be a whole number"),
    "place twice": (ITEM_FILE, 9, "Movie_position_in_carousel", 7, "line 9, .* is given twice"),
    "hole": (ITEM_FILE, 9, "TaskID", None, "the screen of task 2 lacks carousel 1, place 8; add a row"),
}


@pytest.mark.parametrize("name", BAD_FEATURES)
@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
def test_screens_and_people_must_be_whole(name: str, on_bad_row: str, tmp_path: Path) -> None:
    file, line, column, value, message = BAD_FEATURES[name]
    write_folder(tmp_path, [*a_session("UvA_1"), *a_session()])
    path = tmp_path / file
    path.write_text(path.read_text(encoding="utf-8").replace('"', "").replace(", ", " "), encoding="utf-8")
    write_value(path, line, column, value)
    with pytest.raises(DataError, match=rf"{file}(: |, ){message}"):
        read_recgaze(tmp_path, definition="screen", on_bad_row=on_bad_row)  # type: ignore[arg-type]
