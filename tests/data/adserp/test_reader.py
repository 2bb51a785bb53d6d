"""The reader of AdSERP, rule by rule, on trials whose sessions are worked out by hand."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixate_jax.data.readers.adserp.reader import COLUMNS, assign_splits, profile_text, read_adserp
from fixate_jax.data.readers.adserp.stops import SCALE, VIEWPORT_HEIGHT
from fixate_jax.data.readers.adserp.store import FEATURES, make_session
from fixate_jax.errors import DataError
from tests.data.adserp.trials import (
    CLICK,
    LOAD,
    ON_FIRST,
    ORGANIC,
    TRIAL,
    Event,
    scroll,
    write_participants,
    write_trial,
)

PAGE = "0" * 64


def session_of(folder: Path, **trial: Any) -> Any:
    """The one session of a trial."""
    data = read_adserp(write_trial(folder, **trial))
    assert data.dropped == {}
    (row,) = data.sessions.itertuples(index=False)
    return row


def drop_of(folder: Path, **trial: Any) -> str:
    """Why a trial gives no session; a sound trial beside it keeps the data from being empty."""
    write_trial(folder, "p004-b9-t9")
    data = read_adserp(write_trial(folder, **trial))
    assert list(data.sessions["session_id"]) == ["p004-b9-t9"]
    ((reason, count),) = data.dropped.items()
    assert count == 1
    return reason


def click(time: int = 5000, x: float = 200, y: float = 150, xpath: str = "//*[@id='rcnt']") -> Event:
    return time, x, y, "click", xpath


def move(time: int, x: float, y: float, event: str = "mousemove") -> Event:
    return time, x, y, event, "//*[@id='rcnt']"


def test_a_session_as_worked_out_by_hand(tmp_path: Path) -> None:
    # 711 CSS px = 640 px. The last stop is from the last scroll event (2100) to the click (5000), so two fixations
    # count: 250 + 150 ms on result 4 (1000..1100). The one at 1500 was before, that at 5001 after. The cursor comes at
    # 3000 to (300, 450) CSS: x = 300·640/711 = 270.04, y = (450 + 711)·640/711 = 1045.06, result 4, and stays.
    row = session_of(
        tmp_path,
        events=[LOAD, scroll(2000, 300), scroll(2100, 711), move(3000, 300, 450), click(5000, 300, 450)],
        fixations=[(1500, 300, 150, 180), (2600, 300, 1050, 250), (4800, 650, 1099, 150), (5001, 300, 750, 999)],
    )
    assert row.session_id == TRIAL and row.user_id == "p004" and (row.block, row.trial) == (1, 3)
    assert row.scroll_px == pytest.approx(640) and (row.start_ms, row.end_ms) == (2100, 5000)
    assert row.crop == (640, 1562)
    assert row.kinds == ("organic", "organic") and row.ranks == (3, 4)
    assert row.boxes == ((100, 700, 700, 800), (100, 1000, 700, 1100))
    assert row.fixation_ms == (0, 400) and row.cursor_ms == (0, 2000) and row.click == 1
    assert row.query == "buy oil filter"
    session = make_session(row, page=PAGE)
    assert session.labels == ("0", "1")
    # The crop is 922 px high and begins at 640: 700 is 60/922 down, 1100 is 460/922.
    expected = [[100 / 1280, 60 / 922, 700 / 1280, 160 / 922], [100 / 1280, 360 / 922, 700 / 1280, 460 / 922]]
    np.testing.assert_allclose(session.boxes, expected)
    np.testing.assert_allclose(session.dwell_ms["cursor"], [0, 2000])


def test_css_pixels_and_viewport() -> None:
    assert SCALE == 1280 / 1422
    assert VIEWPORT_HEIGHT == 922  # 1024 · 1280/1422 = 921.74


def test_the_first_click_ends_it_whatever_comes_after(tmp_path: Path) -> None:
    # Result 1 is clicked at 5000. A later click on result 2 (y 350 px = 389 CSS) and scrolling count for nothing.
    later = [scroll(5100, 711), click(9000, 200, 389)]
    row = session_of(tmp_path, events=[LOAD, CLICK, *later])
    assert (row.click, row.crop, row.end_ms) == (0, (0, 922), 5000)


def test_rows_are_taken_in_the_order_of_time(tmp_path: Path) -> None:
    row = session_of(tmp_path, events=[click(9000, 200, 389), scroll(5100, 711), CLICK, LOAD])
    assert (row.click, row.crop, row.start_ms, row.end_ms) == (0, (0, 922), 1000, 5000)


@pytest.mark.parametrize(("pause", "crop"), [(400, (640, 1562)), (399, (0, 922))])
def test_a_stop_lasts_400_ms(pause: int, crop: tuple[int, int], tmp_path: Path) -> None:
    # Offset 0 for 1000 ms, offset 711 for the pause, then offset 1422 for 100 ms until the click on result 3 (its rank
    # is told by the element, and it is visible from both offsets).
    events = [LOAD, scroll(2000, 711), scroll(2000 + pause, 1422), click(2100 + pause, xpath="//*[@id='rso']/div[3]/a")]
    fixations = [(1500, 400, 750, 100), (2200, 400, 750, 120)]
    row = session_of(tmp_path, events=events, fixations=fixations)
    assert row.crop == crop
    assert row.kinds[row.click] == "organic" and row.ranks[row.click] == 3
    assert sum(row.fixation_ms) == (120 if crop[0] else 100)


def test_without_a_stop_there_is_one_at_the_top_for_the_whole_time(tmp_path: Path) -> None:
    # No offset holds for 400 ms: 300, 300 and 200 ms.
    events = [LOAD, scroll(1300, 711), scroll(1600, 1422), click(1800, xpath="//*[@id='rso']/div[2]/a")]
    row = session_of(tmp_path, events=events, fixations=[(1100, 400, 150, 90), (1700, 400, 350, 110)])
    assert (row.scroll_px, row.start_ms, row.end_ms, row.crop) == (0, 1000, 1800, (0, 922))
    assert row.fixation_ms == (90, 110, 0, 0) and row.click == 1


def test_scroll_events_that_move_nothing_do_not_end_a_stop(tmp_path: Path) -> None:
    # Offset 711 from 2000 on; three events tell it again. 5000 − 2000 = 3000 ms.
    again = [scroll(time, 711) for time in (2000, 2300, 2600, 2900)]
    row = session_of(tmp_path, events=[LOAD, *again, click(y=100)], fixations=[(2100, 400, 750, 100)])
    assert (row.start_ms, row.end_ms, row.scroll_px) == (2000, 5000, pytest.approx(640))


def test_of_scroll_events_at_one_time_the_last_holds(tmp_path: Path) -> None:
    events = [LOAD, scroll(2000, 1422), scroll(2000, 711), click(y=100)]
    assert session_of(tmp_path, events=events, fixations=[(2100, 400, 750, 100)]).crop == (640, 1562)


def test_a_click_just_after_scrolling_is_placed_by_the_offset_it_happened_at(tmp_path: Path) -> None:
    # The stop is at offset 0 (1000 to 4800). At 4900 the page has moved by 111 CSS px, and the click at 220 CSS px on
    # the screen is at (220 + 111)·640/711 = 297.95 px, above result 2 (300..400); at 223 it is at 300.65, on it.
    moved = [scroll(4800, 60), scroll(4900, 111)]
    row = session_of(tmp_path / "on", events=[LOAD, *moved, click(y=223)])
    assert (row.crop, row.end_ms, row.click) == ((0, 922), 4800, 1)
    assert drop_of(tmp_path / "above", events=[LOAD, *moved, click(y=220)]) == "click on no visible area"


@pytest.mark.parametrize(("height", "kept"), [(740, True), (739, False)])
def test_at_least_100_px_must_be_seen(height: int, kept: bool, tmp_path: Path) -> None:
    # Offset 711 is 640 px: of a page of 740 px 100 are seen.
    trial: dict[str, Any] = {
        "events": [LOAD, scroll(2000, 711), click(y=30)],
        "fixations": [(3000, 400, 670, 100)],
        "organic": [(100, 650, 700, 700)],
        "ads": {},
        "height": height,
    }
    if kept:
        assert session_of(tmp_path, **trial).crop == (640, 740)
    else:
        assert drop_of(tmp_path, **trial) == "less than 100 px of the page seen"


def test_boxes_are_clipped_to_what_is_seen_and_hidden_ones_are_no_slots(tmp_path: Path) -> None:
    # From offset 711: 640 to 1562. A box up to 640 is just out, one from 1562 as well, one from 600 to 700 is cut.
    organic = [(100, 500, 700, 640), (100, 600, 700, 700), (100, 1500, 700, 1600), (100, 1562, 700, 1700)]
    events = [LOAD, scroll(2000, 711), click(y=30)]  # 741 · 640/711 = 667.0: the second
    row = session_of(tmp_path, events=events, organic=organic, fixations=[(3000, 400, 650, 100)])
    assert row.ranks == (2, 3) and row.boxes == ((100, 640, 700, 700), (100, 1500, 700, 1562)) and row.click == 0


def test_slots_are_organic_results_by_rank_then_ads(tmp_path: Path) -> None:
    ads = {
        "dd_right": [(800, 100, 900, 200)],
        "native_ad": [(100, 500, 700, 550), (100, 600, 700, 650)],
        "dd_top": [(100, 20, 700, 90)],
    }
    row = session_of(tmp_path, ads=ads)
    assert row.kinds == ("organic", "organic", "organic", "native_ad", "native_ad", "dd_top", "dd_right")
    assert row.ranks == (1, 2, 3, 0, 0, 0, 0)
    assert [box[1] for box in row.boxes[3:]] == [500, 600, 20, 100]
    features = pd.DataFrame(make_session(row, page=PAGE).slot_features, columns=list(FEATURES))
    assert list(features["is_ad"]) == [0, 0, 0, 1, 1, 1, 1] and list(features["rank"]) == [1, 2, 3, 0, 0, 0, 0]
    assert list(features["dd_right"]) == [0] * 6 + [1] and list(features["native_ad"]) == [0, 0, 0, 1, 1, 0, 0]
    # Result 2: 300 to 400 of 922 px seen, of a document of 2222 CSS px = 2000.11 px.
    second = features.loc[1, ["left", "top", "width", "height", "page_top"]]
    np.testing.assert_allclose(
        second.to_numpy(float), [100 / 1280, 300 / 922, 600 / 1280, 100 / 922, 300 / 2000.11], rtol=1e-5
    )


def test_a_fixation_counts_for_the_smallest_area_that_holds_it(tmp_path: Path) -> None:
    # An ad within result 1, and one of the same size as result 2 in its place, which comes after it.
    ads = {"native_ad": [(300, 120, 500, 180), ORGANIC[1]]}
    fixations = [
        (2000, 400, 150, 1),  # in the inner ad
        (2000, 200, 150, 10),  # in result 1, beside the ad
        (2000, 100, 100, 100),  # the corner belongs to result 1
        (2000, 700, 150, 1000),  # the right edge does not
        (2000, 200, 200, 1000),  # nor does the lower one
        (2000, 400, 350, 10000),  # of equal boxes the first slot
        (2000, -40, 5000, 1000),  # eyes off the page are no error
    ]
    row = session_of(tmp_path, ads=ads, fixations=fixations)
    assert row.kinds == ("organic", "organic", "organic", "native_ad", "native_ad")
    assert row.fixation_ms == (110, 10000, 0, 1, 0)


def test_a_fixation_belongs_to_the_stop_of_its_timestamp(tmp_path: Path) -> None:
    events = [LOAD, scroll(2000, 711), click(4000, y=100)]
    times = [(1999, 1), (2000, 10), (4000, 100), (4001, 1000)]
    row = session_of(tmp_path, events=events, fixations=[(time, 400, 750, ms) for time, ms in times])
    assert row.fixation_ms == (110, 0)


def test_the_cursor_stays_where_it_is_until_an_event_says_otherwise(tmp_path: Path) -> None:
    # Offset 711 from 2000 to the click at 5000. Result 3 (700..800 px) is at 67 to 177 CSS px on the screen, result 4
    # (1000..1100) at 400 to 511.
    events = [
        LOAD,  # logged at 0, 0, which is no place of the cursor
        move(1500, 300, 100),  # rests here while the page moves: on result 3 from 2000 on
        scroll(2000, 711),
        move(2700, 300, 450),  # result 4
        (2900, 0, 0, "focus", "/"),  # is no place of the cursor
        move(3000, 300, 450, "mouseover"),
        move(3000, 1200, 450),  # two events of one time: the last counts; nowhere until
        move(3600, 300, 110, "mouseout"),  # result 3 again, until the click
        click(5000, 300, 110),
    ]
    row = session_of(tmp_path, events=events, fixations=[(3000, 400, 750, 100)])
    assert row.cursor_ms == (700 + 1400, 300)


def test_without_a_cursor_on_a_slot_there_is_no_cursor_signal(tmp_path: Path) -> None:
    session = make_session(session_of(tmp_path, events=[LOAD, move(2000, 5, 5), CLICK]), page=PAGE)
    assert set(session.dwell_ms) == {"fixation"}
    moved = make_session(session_of(tmp_path, events=[LOAD, move(2000, 200, 150), CLICK]), page=PAGE)
    np.testing.assert_allclose(moved.dwell_ms["cursor"], [3000, 0, 0, 0])


@pytest.mark.parametrize(
    ("xpath", "place", "slot"),
    [
        # The element tells the rank, wherever the click is.
        ("//*[@id='rso']/div[2]/div/div/a/h3", (200, 150), 1),
        ("//*[@id='rso']/div/div[3]/div/a", (200, 389), 0),  # no index means 1; that of a child means nothing
        ('//*[@id="rso"]/div[3]', (200, 150), 2),
        # Result 4 cannot be seen, and there is no result 7: 389 CSS px are 350 px, result 2.
        ("//*[@id='rso']/div[4]/a", (200, 389), 1),
        ("//*[@id='rso']/div[7]/a", (200, 389), 1),
        # No result's element: 900 CSS px are 810 px, 280 are 252: the ad at the right.
        ("//*[@id='rhs']/div[2]/a", (1000, 280), 3),
        ("//*[@id='rso']", (200, 389), 1),
        ("//*[@id='rso2']/div[3]", (200, 389), 1),
        ("", (200, 389), 1),
        ("//*[@id='a,b']/div[3]", (200, 389), 1),  # nothing quotes commas
    ],
)
def test_the_clicked_area(xpath: str, place: tuple[float, float], slot: int, tmp_path: Path) -> None:
    assert session_of(tmp_path, events=[LOAD, click(5000, *place, xpath)]).click == slot


@pytest.mark.parametrize(
    ("trial", "reason"),
    [
        ({"events": [LOAD, click(y=250)]}, "click on no visible area"),  # 225 px: between results 1 and 2
        (
            {"events": [LOAD, scroll(2000, 711), click(y=300, xpath="//*[@id='rso']/div[1]/a")]},
            "click on no visible area",
        ),
        ({"organic": [], "ads": {}}, "click on no visible area"),
        ({"events": [LOAD, (5000, 200, 150, "mouseup", "/")]}, "no click"),
        ({"events": []}, "no click"),
        ({"fixations": []}, "no fixation on a slot"),
        ({"fixations": [(3000, 400, 250, 200)]}, "no fixation on a slot"),
        ({"fixations": [(6000, 400, 150, 200)]}, "no fixation on a slot"),
        ({"fixations": [(3000, 400, 150, 0)]}, "no fixation on a slot"),
    ],
)
def test_trials_without_a_session_are_counted(trial: dict[str, Any], reason: str, tmp_path: Path) -> None:
    assert drop_of(tmp_path, **trial) == reason


def test_sessions_are_sorted_by_person_block_and_trial(tmp_path: Path) -> None:
    write_participants(tmp_path, ["p010", "p004"])
    ids = ["p004-b1-t2", "p004-b1-t10", "p004-b2-t1", "p010-b1-t1"]
    for trial_id in reversed(ids):
        write_trial(tmp_path, trial_id)
    data = read_adserp(tmp_path)
    assert list(data.sessions["session_id"]) == ids and list(data.sessions.columns) == list(COLUMNS)


def test_a_folder_without_a_session_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no session is left; left out by reason: \{'no click': 1\}"):
        read_adserp(write_trial(tmp_path, events=[LOAD]))


def test_the_query_and_the_profile(tmp_path: Path) -> None:
    row = session_of(tmp_path, task="buy-bosch-oil-filter")
    assert row.query == "buy bosch oil filter"
    assert row.profile == (
        "The user searches for “buy bosch oil filter” and picks a result. About the user: gender: Female; age: 40; "
        "English: Advanced; education: Graduate; shops online with: Computers or laptops; on: Amazon; "
        "how often: Monthly."
    )


def test_columns_that_the_published_table_exchanges_are_put_right() -> None:
    blank = dict.fromkeys(("gender", "age", "english", "education", "pref_device"), "")
    wanted = "The user searches for “tea” and picks a result. About the user: on: eBay; how often: Rarely."
    for website, often in (("eBay", "Rarely"), ("Rarely", "eBay")):
        assert profile_text("tea", blank | {"pref_website": website, "online_shopping_freq": often}) == wanted
    nothing = blank | {"pref_website": "", "online_shopping_freq": ""}
    assert profile_text("tea", nothing) == "The user searches for “tea” and picks a result."


@settings(deadline=None, max_examples=50)
@given(
    queries=st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=60), min_size=1, max_size=3),
    seed=st.integers(0, 99),
    order=st.integers(0, 99),
)
def test_the_split_parts_every_persons_queries(queries: list[list[int]], seed: int, order: int) -> None:
    rows = [(f"p{u}", f"query {q}") for u, own in enumerate(queries) for q in own]
    frame = pd.DataFrame(rows, columns=["user_id", "query"])
    frame["split"] = assign_splits(frame, seed)
    for _, own in frame.groupby("user_id"):
        assert (own.groupby("query")["split"].nunique() == 1).all()
        largest = own["query"].value_counts().max()
        counts = Counter(own["split"])
        test = counts["test"]
        # A part takes whole queries until it has its share, so it may be over by less than one query.
        assert round(0.2 * len(own)) <= test < round(0.2 * len(own)) + largest
        share = round(0.15 * (len(own) - test))
        assert share <= counts["validation"] < share + largest
    mixed = frame.sample(frac=1, random_state=order)
    assert assign_splits(mixed.reset_index(drop=True), seed) == list(mixed["split"])
    first = frame[frame["user_id"] == "p0"].reset_index(drop=True)
    assert assign_splits(first, seed) == list(first["split"])


def test_shares_and_seed_of_the_split() -> None:
    frame = pd.DataFrame({"user_id": "p1", "query": [f"q{i}" for i in range(100)]})
    assert Counter(assign_splits(frame, 0)) == {"test": 20, "validation": 12, "train": 68}
    assert assign_splits(frame, 0) != assign_splits(frame, 1)
    other = frame.assign(user_id="p2")
    assert assign_splits(frame, 0) != assign_splits(other, 0)


def test_a_session_needs_its_participant(tmp_path: Path) -> None:
    write_trial(tmp_path, "p005-b1-t1", fixations=[ON_FIRST])
    with pytest.raises(DataError, match=r"participants\.csv: participant 'p005' of trial p005-b1-t1 is missing"):
        read_adserp(tmp_path)
    write_trial(tmp_path)
    assert read_adserp(tmp_path, on_bad_row="skip").dropped == {"unknown participant": 1}
