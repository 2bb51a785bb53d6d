"""The reader of RecGaze: single rules on small logs, and the split."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fixate_jax.data.readers.recgaze.geometry import SCREEN, SEEN, poster_top
from fixate_jax.data.readers.recgaze.logs import natural
from fixate_jax.data.readers.recgaze.reader import OPENING, SESSION_COLUMNS, read_recgaze, split_of_task
from fixate_jax.data.readers.recgaze.store import source_files
from fixate_jax.data.readers.recgaze.visits import DRAGGED, IGNORED, VISIT_COLUMNS, shown_rows
from fixate_jax.errors import DataError
from tests.data.recgaze.raw import (
    BACKGROUND,
    ITEM_FILE,
    OTHER,
    SUMMARY,
    USER,
    USER_FILE,
    Row,
    a_session,
    click,
    event,
    fixation,
    look,
    movie,
    movie_id,
    sample,
    split,
    swipe,
    write_folder,
)


def test_a_session_holds_what_was_seen_looked_at_and_clicked(tmp_path: Path) -> None:
    found = read_recgaze(write_folder(tmp_path, a_session()), definition="page")
    (session,) = found.sessions.to_dict("records")
    assert session == {
        "session_id": "KInIT_2/2",
        "user_id": "KInIT_2",
        "task_id": 2,
        "split": "train",
        "visit": 0,
        "scroll_px": 0.0,
        "horizontal_pages": (0,) * 10,
        "slots": OPENING[:10],
        "movie_ids": tuple(movie_id(2, *slot) for slot in OPENING[:10]),
        "fixation_ms": (0.0, 200.0, *[0.0] * 8),
        "cursor_ms": (0.0, 500.0, *[0.0] * 8),
        "click": 1,
    }
    (visit,) = found.visits.to_dict("records")
    assert visit == {
        "user_id": "KInIT_2",
        "task_id": 2,
        "visit": 0,
        "start": 1.0,
        "scroll_px": 0.0,
        "rows": (1, 2, 3),
        "full_rows": (1, 2),
        "horizontal_pages": (0,) * 10,
        "fixation_ms": {(1, 2): 200.0},
        "clicks": ((1, 2),),
    }
    assert found.dropped == found.noted == {}


def test_what_the_bars_hide_is_not_seen(tmp_path: Path) -> None:
    # At offset 0 row 3 (855 to 1048) is cut by the task bar at 1032. At 430 row 2 (516 to 709, so 86 to 279 on the
    # screen) loses a row of pixels to the browser's bar, which ends at 87; row 4 ends at 1388 - 430 = 958. At 700 what
    # is left of row 2 (9 px) is behind that bar, and row 5 (1534 to 1727) ends at 1027.
    rows = [row for i, scroll in enumerate((0, 430, 700)) for row in look(1.0 + i, 3, 1, scroll=scroll)]
    write_folder(tmp_path, [*rows, click(4.5, 4, 2)])
    seen = read_recgaze(tmp_path, definition="page").visits
    assert seen["rows"].tolist() == [(1, 2, 3), (2, 3, 4), (3, 4, 5)]
    assert seen["full_rows"].tolist() == [(1, 2), (3, 4), (3, 4, 5)]
    published = read_recgaze(tmp_path, definition="page", viewport="screen").visits
    assert published["rows"].tolist() == [(1, 2, 3), (2, 3, 4), (2, 3, 4, 5)]
    assert published["full_rows"].tolist() == [(1, 2, 3), (2, 3, 4), (3, 4, 5)]


def test_an_arrow_click_is_ignored_while_the_carousel_moves(tmp_path: Path) -> None:
    # Row 2: forward at 2.0; ignored at 2.3, and at 2.499, but not at 2.5, so it is on page 2. Row 1 moves by itself:
    # its click at 2.3 counts.
    swipes = [swipe(2.0, 2), swipe(2.3, 2), swipe(2.3, 1), swipe(2.499, 2, "Backward"), swipe(2.5, 2)]
    write_folder(tmp_path, [*look(1.0, 3, 1), *swipes, *look(3.0, 3, 1), click(3.5, 2, 11)])
    found = read_recgaze(tmp_path, definition="page")
    assert found.visits["horizontal_pages"].tolist() == [(0,) * 10, (1, 2, *[0] * 8)]
    assert found.noted == {IGNORED: 2}


def test_a_fixation_on_a_film_tells_the_page_of_its_row(tmp_path: Path) -> None:
    # Nobody clicked an arrow of row 2, but film 7 is looked at: the row was dragged to page 1. From there an arrow
    # takes it to page 2, where film 12 agrees. A film beside which the eyes rest tells the page, too; row 1 stays.
    steps = [*look(1.0, 1, 1), *look(2.0, 2, 7), swipe(2.5, 2), *look(3.5, 2, 12)]
    steps += [*fixation(USER, 2, 4.0, BACKGROUND, 200, closest=movie(2, 4)), click(5.0, 2, 1)]
    found = read_recgaze(write_folder(tmp_path, steps), definition="page")
    assert [pages[:2] for pages in found.visits["horizontal_pages"]] == [(0, 0), (0, 1), (0, 2), (0, 0)]
    assert found.visits["start"].tolist() == [1.0, 2.0, 3.5, 4.0] and found.noted == {DRAGGED: 2}
    (session,) = found.sessions.to_dict("records")
    assert session["slots"][5:] == tuple((2, place) for place in range(1, 6)) and session["click"] == 5


def test_the_split_is_the_documented_one() -> None:
    tasks = range(1, 36)
    assert [t for t in tasks if split_of_task(t) == "test"] == [1, 4, 9, 21, 24, 32]
    assert [t for t in tasks if split_of_task(t) == "validation"] == [7, 11, 29, 31]
    assert [split_of_task(t) for t in tasks] == [split(t) for t in tasks]
    for task in (0, 36):
        with pytest.raises(DataError, match=f"task {task} is in no split"):
            split_of_task(task)


@pytest.mark.parametrize("carousel", range(1, 11))
def test_rows_are_visible_with_3_px_and_full_to_half_a_pixel(carousel: int) -> None:
    # Of the whole screen, 0 to 1080; behind the bars of 87 and 48 px that much sooner.
    top = poster_top(carousel)
    edges = np.array(
        [top + 190, top + 190.01, top - 1077, top - 1077.01, top + 0.5, top + 0.51, top - 887.5, top - 888]
    )
    hidden = np.array([87, 87, -48, -48, 87, 87, -48, -48])
    for offsets, span in ((edges, SCREEN), (edges - hidden, SEEN)):
        visible, full = (marked[:, carousel - 1].tolist() for marked in shown_rows(offsets, span))
        assert visible == [True, False, True, False, True, True, True, True]
        assert full == [False, False, False, False, True, False, True, False]


def test_never_are_five_rows_visible_or_four_in_full() -> None:
    for span in (SCREEN, SEEN):
        visible, full = shown_rows(np.arange(-2000, 5000, 0.5), span)
        assert visible.sum(axis=1).max() == 4 and full.sum(axis=1).max() == 3


def starts(folder: Path, rows: list[Row]) -> list[float]:
    return read_recgaze(write_folder(folder, rows), definition="page").visits["start"].tolist()


@pytest.mark.parametrize(
    ("scroll", "ms", "visits"),
    [(17, 150, [1.0]), (17.1, 150, [1.0, 2.0]), (17.1, 149.9, [1.0]), (340, 1, [1.0, 2.0]), (100, 150, [1.0, 2.0])],
)
def test_a_visit_starts_with_other_rows_or_with_a_long_look_after_scrolling(
    scroll: float, ms: float, visits: list[float], tmp_path: Path
) -> None:
    assert starts(tmp_path, [*look(1.0, 1, 1), *look(2.0, 2, 1, ms, scroll=scroll)]) == visits


def test_17_px_are_not_enough_also_where_the_page_scrolls_on(tmp_path: Path) -> None:
    rows = [*look(1.0, 2, 1), *look(2.0, 2, 1, scroll=17), *look(3.0, 2, 1, 100, scroll=30), *look(4.0, 2, 1)]
    assert starts(tmp_path, [*rows, *look(5.0, 2, 1, scroll=17.1)]) == [1.0, 5.0]


def test_scrolling_adds_up_since_the_visit_began(tmp_path: Path) -> None:
    rows = [row for i in range(8) for row in look(1.0 + i, 2, 1, 200, scroll=6.0 * i)]
    assert starts(tmp_path, rows) == [1.0, 4.0, 7.0]


def test_pages_go_round_and_only_those_in_sight_start_a_visit(tmp_path: Path) -> None:
    rows = [*look(1.0, 1, 1), swipe(1.5, 7), *look(2.0, 1, 1), swipe(2.5, 2, "Backward"), *look(3.0, 1, 1)]
    rows += [swipe(3.1, 2), swipe(3.6, 2, "Backward"), *look(4.2, 1, 1), *(swipe(4.3 + i / 2, 2) for i in range(2))]
    rows += [*look(5.0, 2, 7), click(5.5, 2, 7)]
    found = read_recgaze(write_folder(tmp_path, rows), definition="page")
    assert found.visits["start"].tolist() == [1.0, 3.0, 5.0]
    assert [pages[1] for pages in found.visits["horizontal_pages"]] == [0, 2, 1]
    assert [pages[6] for pages in found.visits["horizontal_pages"]] == [0, 1, 1]
    (session,) = found.sessions.to_dict("records")
    assert session["slots"][5:] == tuple((2, place) for place in range(6, 11)) and session["click"] == 6


@pytest.mark.parametrize("rows_between", [0, 1, 2, 3])
def test_a_gaze_sample_counts_within_three_rows_of_the_same_screen(rows_between: int, tmp_path: Path) -> None:
    here = event(USER, 2, 1.0, look=movie(1, 2), ms=200, page_y=600) | {"Gaze_LocY": 1.0}  # Its own does not count.
    strange = sample("UvA_1", 2, 1.0, 77.0)
    lost = [sample(USER, 2, 1.1, None)] * rows_between
    rows = [here, strange, *lost, sample(USER, 2, 1.2, 590.0), click(2.0, 1, 2)]
    found = read_recgaze(write_folder(tmp_path, rows), definition="page")
    assert found.visits["scroll_px"].tolist() == ([10.0] if rows_between < 3 else [])
    reasons = {"fixation without scroll offset": 1, "no visit before the final click": 1}
    assert found.dropped == (reasons if rows_between == 3 else {})


def test_the_next_screen_gives_no_offset_away(tmp_path: Path) -> None:
    here = event(USER, 2, 9.0, look=movie(1, 2), ms=200, page_y=600)
    rows = [here, sample(USER, 3, 0.1, 590.0), *look(1.0, 1, 1, task=3), click(2.0, 1, 1, task=3)]
    found = read_recgaze(write_folder(tmp_path, rows), definition="page")
    assert found.visits["task_id"].tolist() == [3]
    assert found.dropped == {"fixation without scroll offset": 1, "no movie click": 1}


def test_rows_of_the_same_time_are_joined_in_their_order(tmp_path: Path) -> None:
    one, other = (event(USER, 2, 1.0, look=movie(1, 1), ms=ms, page_y=y) for ms, y in [(100, 500), (300, 900)])
    gaze = sample(USER, 2, 1.0, 500)
    found = read_recgaze(write_folder(tmp_path, [one, other, gaze]), definition="page")
    assert found.visits["scroll_px"].tolist() == [0.0, 400.0]
    assert found.visits["fixation_ms"].tolist() == [{(1, 1): 100.0}, {(1, 1): 300.0}]


def test_background_counts_for_its_closest_poster_and_nothing_else_does(tmp_path: Path) -> None:
    genre = ("Genre", 1, None)
    rows = [
        *fixation(USER, 2, 1.0, BACKGROUND, 200, closest=movie(1, 3)),
        *fixation(USER, 2, 2.0, BACKGROUND, 200, closest=genre),
        *fixation(USER, 2, 3.0, genre, 200, closest=movie(1, 3)),
        *fixation(USER, 2, 4.0, movie(1, 1), 50, closest=movie(1, 3)),
        *fixation(USER, 2, 5.0, BACKGROUND, 200),
        click(6.0, 1, 3),
    ]
    for definition in ("page", "screen"):
        found = read_recgaze(write_folder(tmp_path, rows), definition=definition)
        assert found.sessions["fixation_ms"][0][:3] == (50.0, 0.0, 200.0)


DROPPED: dict[str, tuple[list[Row], str | None, str | None]] = {
    # name: (rows, the reason by pages, the reason by screens)
    "no click": (look(1.0, 1, 1), "no movie click", "no movie click"),
    "click on a genre": (
        [*look(1.0, 1, 1), event(USER, 2, 2.0, click=("Genre", 1, None))],
        "no movie click",
        "no movie click",
    ),
    "click first": ([click(0.5, 1, 1), *look(1.0, 1, 1)], "no visit before the final click", None),
    "click off": ([*look(1.0, 1, 1), click(2.0, 1, 6)], "final click off the slots", "final click off the slots"),
    "click on a row in part": (
        [*look(1.0, 2, 1, scroll=300), click(2.0, 1, 1)],
        "final click off the slots",
        None,
    ),
    "looked elsewhere": ([*look(1.0, 4, 1), click(2.0, 1, 1)], "no dwell on the slots", "no dwell on the slots"),
    "looked before": (
        [*look(1.0, 1, 1), *look(2.0, 9, 1, scroll=500), click(3.0, 3, 1)],
        "no dwell on the slots",
        None,
    ),
    "direct search": (a_session(task=36), "direct-search task", "direct-search task"),
    "practice": (a_session(task=0), "practice task", "practice task"),
}


@pytest.mark.parametrize("name", DROPPED)
def test_what_makes_no_session_is_counted(name: str, tmp_path: Path) -> None:
    rows, by_page, by_screen = DROPPED[name]
    write_folder(tmp_path, rows)
    page, screen = (read_recgaze(tmp_path, definition=d) for d in ("page", "screen"))
    assert page.dropped == ({by_page: 1} if by_page else {}) and len(page.sessions) == (by_page is None)
    assert screen.dropped == ({by_screen: 1} if by_screen else {}) and len(screen.sessions) == (by_screen is None)
    assert list(page.sessions) == list(screen.sessions) == SESSION_COLUMNS
    assert list(page.visits) == list(screen.visits) == VISIT_COLUMNS and not len(screen.visits)


def test_people_are_in_natural_order_and_rows_can_come_in_any(tmp_path: Path) -> None:
    rows = [row for user in ("UvA_1", "KInIT_10", "KInIT_2") for task in (33, 2) for row in a_session(user, task)]
    found = read_recgaze(write_folder(tmp_path / "a", rows), definition="page")
    names = [f"{user}/{task}" for user in ("KInIT_2", "KInIT_10", "UvA_1") for task in (2, 33)]
    assert found.sessions["session_id"].tolist() == names
    assert sorted(["UvA_1", "KInIT_10", "KInIT_2"], key=natural) == ["KInIT_2", "KInIT_10", "UvA_1"]
    backwards = read_recgaze(write_folder(tmp_path / "b", rows[::-1]), definition="page")
    pd.testing.assert_frame_equal(found.sessions, backwards.sessions)
    pd.testing.assert_frame_equal(found.visits, backwards.visits)


def test_screens_are_read_from_the_public_files_alone(tmp_path: Path) -> None:
    write_folder(tmp_path, a_session())
    assert [file.name for file in source_files(tmp_path)] == [SUMMARY, OTHER, ITEM_FILE, USER_FILE]
    (tmp_path / OTHER).unlink()
    assert OTHER not in [file.name for file in source_files(tmp_path)]
    assert len(read_recgaze(tmp_path, definition="screen").sessions) == 1
    with pytest.raises(DataError, match=rf"{OTHER}: not found; data\.path must be"):
        read_recgaze(tmp_path, definition="page")
