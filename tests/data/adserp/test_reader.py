"""The reader of AdSERP, rule by rule, on trials whose sessions are worked out by hand."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixate_jax.data.readers.adserp.files import read_trial
from fixate_jax.data.readers.adserp.reader import COLUMNS, assign_splits, profile_text, read_adserp
from fixate_jax.data.readers.adserp.stops import BY_RANK, CONTRADICTED, LATER
from fixate_jax.data.readers.adserp.store import FEATURES, make_session
from fixate_jax.errors import DataError, DataWarning
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
    # count: 250 + 150 ms on result 4 (1100..1200). The one at 1500 was before, that at 5001 after. The cursor comes at
    # 3000 to (300, 1272) CSS on the page: x = 300·640/711 = 270.04, y = 1272·640/711 = 1144.98, result 4, and stays.
    row = session_of(
        tmp_path,
        events=[LOAD, scroll(2000, 300), scroll(2100, 711), move(3000, 300, 1272), click(5000, 300, 1272)],
        fixations=[(1500, 300, 150, 180), (2600, 300, 1150, 250), (4800, 650, 1199, 150), (5001, 300, 750, 999)],
    )
    assert row.session_id == TRIAL and row.user_id == "p004" and (row.block, row.trial) == (1, 3)
    assert row.scroll_px == pytest.approx(640) and (row.start_ms, row.end_ms) == (2100, 5000)
    assert row.crop == (640, 1664)
    assert row.kinds == ("organic", "organic") and row.ranks == (3, 4)
    assert row.boxes == ((100, 700, 700, 800), (100, 1100, 700, 1200))
    assert row.fixation_ms == (0, 400) and row.cursor_ms == (0, 2000) and row.click == 1
    assert row.query == "buy oil filter"
    session = make_session(row, page=PAGE)
    assert session.labels == ("0", "1")
    # The crop is 1024 px high and begins at 640: 700 is 60/1024 down, 1200 is 560/1024.
    expected = [[100 / 1280, 60 / 1024, 700 / 1280, 160 / 1024], [100 / 1280, 460 / 1024, 700 / 1280, 560 / 1024]]
    np.testing.assert_allclose(session.boxes, expected)
    np.testing.assert_allclose(session.dwell_ms["cursor"], [0, 2000])


def test_a_window_shows_rows_of_the_screenshot_as_its_size_says(tmp_path: Path) -> None:
    trial = read_trial(write_trial(tmp_path), TRIAL)
    assert (trial.scale, trial.rows) == (1280 / 1422, 1024)  # 1137 · 1280/1422 = 1023.46, rounded up
    other = read_trial(write_trial(tmp_path, window="1600x900"), TRIAL)
    assert (other.scale, other.rows) == (0.8, 720)
    # 150 CSS px are then 120 px, still result 1; result 3 is cut at 720.
    data = read_adserp(tmp_path)
    assert data.noted == {"window of another size than 1422x1137": 1}
    assert data.sessions["crop"][0] == (0, 720) and data.sessions["boxes"][0][2] == (100, 700, 700, 720)


def test_the_first_click_ends_it_whatever_comes_after(tmp_path: Path) -> None:
    # Result 1 is clicked at 5000. A later click on result 2 (y 350 px = 389 CSS) and scrolling count for nothing.
    later = [scroll(5100, 711), click(9000, 200, 389)]
    row = session_of(tmp_path, events=[LOAD, CLICK, *later])
    assert (row.click, row.crop, row.end_ms) == (0, (0, 1024), 5000)


def test_rows_are_taken_in_the_order_of_time(tmp_path: Path) -> None:
    row = session_of(tmp_path, events=[click(9000, 200, 389), scroll(5100, 711), CLICK, LOAD])
    assert (row.click, row.crop, row.start_ms, row.end_ms) == (0, (0, 1024), 1000, 5000)


@pytest.mark.parametrize(("pause", "crop"), [(400, (640, 1664)), (399, (0, 1024))])
def test_a_stop_lasts_400_ms(pause: int, crop: tuple[int, int], tmp_path: Path) -> None:
    # Offset 0 for 1000 ms, offset 711 for the pause, then offset 1422 for 100 ms until the click on result 3, which is
    # visible from both offsets: 833 CSS px are 749.8 px.
    events = [LOAD, scroll(2000, 711), scroll(2000 + pause, 1422), click(2100 + pause, y=833)]
    fixations = [(1500, 400, 750, 100), (2200, 400, 750, 120)]
    row = session_of(tmp_path, events=events, fixations=fixations)
    assert row.crop == crop
    assert row.kinds[row.click] == "organic" and row.ranks[row.click] == 3
    assert sum(row.fixation_ms) == (120 if crop[0] else 100)


def test_without_a_stop_there_is_one_at_the_top_for_the_whole_time(tmp_path: Path) -> None:
    # No offset holds for 400 ms: 300, 300 and 200 ms.
    events = [LOAD, scroll(1300, 711), scroll(1600, 1422), click(1800, y=389)]
    row = session_of(tmp_path, events=events, fixations=[(1100, 400, 150, 90), (1700, 400, 350, 110)])
    assert (row.scroll_px, row.start_ms, row.end_ms, row.crop) == (0, 1000, 1800, (0, 1024))
    assert row.fixation_ms == (90, 110, 0, 0) and row.click == 1


def test_scroll_events_that_move_nothing_do_not_end_a_stop(tmp_path: Path) -> None:
    # Offset 711 from 2000 on; three events tell it again. 5000 − 2000 = 3000 ms.
    again = [scroll(time, 711) for time in (2000, 2300, 2600, 2900)]
    row = session_of(tmp_path, events=[LOAD, *again, click(y=811)], fixations=[(2100, 400, 750, 100)])
    assert (row.start_ms, row.end_ms, row.scroll_px) == (2000, 5000, pytest.approx(640))


def test_of_scroll_events_at_one_time_the_last_holds(tmp_path: Path) -> None:
    events = [LOAD, scroll(2000, 1422), scroll(2000, 711), click(y=811)]
    assert session_of(tmp_path, events=events, fixations=[(2100, 400, 750, 100)]).crop == (640, 1664)


def test_a_click_just_after_scrolling_is_where_the_log_has_it_on_the_page(tmp_path: Path) -> None:
    # The stop is at offset 0 (1000 to 4800). At 4900 the page has moved by 111 CSS px, and the click at 223 CSS px on
    # the screen is at 334 on the page: 334·640/711 = 300.65 px, on result 2 (300..400); 331 is 297.95 px, above it.
    moved = [scroll(4800, 60), scroll(4900, 111)]
    row = session_of(tmp_path / "on", events=[LOAD, *moved, click(y=334)])
    assert (row.crop, row.end_ms, row.click) == ((0, 1024), 4800, 1)
    assert drop_of(tmp_path / "above", events=[LOAD, *moved, click(y=331)]) == "click on no visible area"


def test_the_first_click_that_hits_something_is_the_choice(tmp_path: Path) -> None:
    # 250 CSS px are 225 px, between results 1 and 2. At offset 711 the click at 811 (730 px) hits result 3; what was
    # looked at since then counts, and the click after it does not.
    fixations = [(2000, 400, 150, 90), (3500, 400, 750, 120)]
    events = [LOAD, click(2500, y=250), scroll(3000, 711), click(4000, y=811), click(4500, y=1272)]
    row = session_of(tmp_path, events=events, fixations=fixations)
    assert read_adserp(tmp_path).noted == {LATER: 1}
    assert (row.crop, row.start_ms, row.end_ms, row.click) == ((640, 1664), 3000, 4000, 0)
    assert row.fixation_ms == (120, 0)


def test_a_choice_that_nobody_looked_at_is_none_whatever_is_clicked_next(tmp_path: Path) -> None:
    # Result 3 is clicked unseen; result 1, which was looked at, later.
    events = [LOAD, scroll(2000, 711), click(3000, y=811), scroll(3500, 0), click(6000)]
    assert drop_of(tmp_path, events=events, fixations=[(5000, 400, 150, 99)]) == "no fixation on a slot"


@pytest.mark.parametrize(("height", "kept"), [(740, True), (739, False)])
def test_at_least_100_px_must_be_seen(height: int, kept: bool, tmp_path: Path) -> None:
    # Offset 711 is 640 px: of a page of 740 px 100 are seen.
    trial: dict[str, Any] = {
        "events": [LOAD, scroll(2000, 711), click(y=741)],
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
    # From offset 711: 640 to 1664. A box up to 640 is just out, one from 1664 as well, one from 600 to 700 is cut.
    organic = [(100, 500, 700, 640), (100, 600, 700, 700), (100, 1600, 700, 1700), (100, 1664, 700, 1800)]
    events = [LOAD, scroll(2000, 711), click(y=741)]  # 741 · 640/711 = 667.0: the second
    row = session_of(tmp_path, events=events, organic=organic, fixations=[(3000, 400, 650, 100)])
    assert row.ranks == (2, 3) and row.boxes == ((100, 640, 700, 700), (100, 1600, 700, 1664)) and row.click == 0


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
    # Result 2: 300 to 400 of 1024 px seen, of a document of 2222 CSS px = 2000.11 px.
    second = features.loc[1, ["left", "top", "width", "height", "page_top"]]
    np.testing.assert_allclose(
        second.to_numpy(float), [100 / 1280, 300 / 1024, 600 / 1280, 100 / 1024, 300 / 2000.11], rtol=1e-5
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
    events = [LOAD, scroll(2000, 711), click(4000, y=811)]
    times = [(1999, 1), (2000, 10), (4000, 100), (4001, 1000)]
    row = session_of(tmp_path, events=events, fixations=[(time, 400, 750, ms) for time, ms in times])
    assert row.fixation_ms == (110, 0)


def test_the_cursor_stays_where_it_is_until_an_event_says_otherwise(tmp_path: Path) -> None:
    # Offset 711 from 2000 to the click at 5000. On the page result 3 (700..800 px) is at 778 to 889 CSS px, result 4
    # (1100..1200) at 1222 to 1333.
    events = [
        LOAD,  # logged at 0, 0, which is no place of the cursor
        move(1500, 300, 100),  # stays on the screen while the page moves by 711: at 811, on result 3, from 2000 on
        scroll(2000, 711),
        move(2700, 300, 1272),  # result 4
        (2900, 0, 0, "focus", "/"),  # is no place of the cursor
        move(3000, 300, 1272, "mouseover"),
        move(3000, 1200, 1272),  # two events of one time: the last counts; nowhere until
        move(3600, 300, 821, "wheel"),  # result 3 again, until the click
        click(5000, 300, 821),
    ]
    row = session_of(tmp_path, events=events, fixations=[(3000, 400, 750, 100)])
    assert row.cursor_ms == (700 + 1400, 300)


def test_the_cursor_stays_on_the_screen_while_the_page_moves(tmp_path: Path) -> None:
    # At offset 300 the cursor is at 400 on the page, so at 100 on the screen. Offset 711 brings 811 under it, result 3
    # (778 to 889), from 2000 to the click at 5000; and back at offset 0 it is at 100: 90 px, above result 1.
    before = [LOAD, scroll(1200, 300), move(1500, 300, 400)]
    at_711 = {"events": [*before, scroll(2000, 711), click(5000, y=811)], "fixations": [(3000, 400, 750, 100)]}
    assert session_of(tmp_path / "on", **at_711).cursor_ms == (3000, 0)
    assert session_of(tmp_path / "off", events=[*before, scroll(2000, 0), click(5000)]).cursor_ms == (0, 0, 0, 0)


def test_without_a_cursor_on_a_slot_there_is_no_cursor_signal(tmp_path: Path) -> None:
    session = make_session(session_of(tmp_path, events=[LOAD, move(2000, 5, 5), CLICK]), page=PAGE)
    assert set(session.dwell_ms) == {"fixation"}
    moved = make_session(session_of(tmp_path, events=[LOAD, move(2000, 200, 150), CLICK]), page=PAGE)
    np.testing.assert_allclose(moved.dwell_ms["cursor"], [3000, 0, 0, 0])


@pytest.mark.parametrize(
    ("xpath", "place", "slot", "note"),
    [
        # What is under the click, and the element's rank agrees: 389 CSS px are 350 px, 833 are 750.
        ("//*[@id='rso']/div[2]/div/div/a/h3", (200, 389), 1, ""),
        ("//*[@id='rso']/div/div[3]/div/a", (200, 150), 0, ""),  # no index means 1; that of a child means nothing
        ('//*[@id="rso"]/div[3]', (200, 833), 2, ""),
        # It counts whatever stands between results, so the place is right.
        ("//*[@id='rso']/div[2]/a", (200, 150), 0, CONTRADICTED),
        ("//*[@id='rso']/div[1]/a", (1000, 280), 3, CONTRADICTED),
        # 250 CSS px are 225 px, between results 1 and 2.
        ("//*[@id='rso']/div[2]/a", (200, 250), 1, BY_RANK),
        # Result 4 cannot be seen, and there is no result 7.
        ("//*[@id='rso']/div[4]/a", (200, 389), 1, ""),
        ("//*[@id='rso']/div[7]/a", (200, 389), 1, ""),
        # No result's element: 1000 CSS px are 900 px, 280 are 252: the ad at the right.
        ("//*[@id='rhs']/div[2]/a", (1000, 280), 3, ""),
        ("//*[@id='rso']", (200, 389), 1, ""),
        ("//*[@id='rso2']/div[3]", (200, 389), 1, ""),
        ("", (200, 389), 1, ""),
        ("//*[@id='a,b']/div[3]", (200, 389), 1, ""),  # nothing quotes commas
    ],
)
def test_the_clicked_area(xpath: str, place: tuple[float, float], slot: int, note: str, tmp_path: Path) -> None:
    data = read_adserp(write_trial(tmp_path, events=[LOAD, click(5000, *place, xpath)]))
    assert data.sessions["click"].tolist() == [slot] and data.noted == ({note: 1} if note else {})


def test_without_the_places_of_results_the_slots_are_the_ads(tmp_path: Path) -> None:
    trial = {"organic": None, "fixations": [(3000, 900, 200, 200)]}
    write_trial(tmp_path, events=[LOAD, click(5000, 1000, 280)], **trial)  # type: ignore[arg-type]
    write_trial(tmp_path, "p004-b9-t9", events=[LOAD, click(5000, xpath="//*[@id='rso']/div[1]/a")], **trial)  # type: ignore[arg-type]
    with pytest.warns(DataWarning, match=r"organic-aoi-data: not there; slots are the ads alone"):
        data = read_adserp(tmp_path)
    assert data.sessions["kinds"].tolist() == [("dd_right",)] and data.sessions["click"].tolist() == [0]
    assert data.dropped == {"click on a result, whose place is not known": 1}
    # A result was clicked first: that was the choice, whatever came after.
    both = [LOAD, click(4000, xpath="//*[@id='rso']/div[1]/a"), click(5000, 1000, 280)]
    write_trial(tmp_path, "p004-b9-t9", events=both, **trial)  # type: ignore[arg-type]
    with pytest.warns(DataWarning):
        assert read_adserp(tmp_path).dropped == {"click on a result, whose place is not known": 1}


@pytest.mark.parametrize(
    ("trial", "reason"),
    [
        ({"events": [LOAD, click(y=250)]}, "click on no visible area"),  # 225 px: between results 1 and 2
        (
            {"events": [LOAD, scroll(2000, 711), click(y=300, xpath="//*[@id='rso']/div[1]/a")]},
            "click on no visible area",
        ),
        ({"organic": [], "ads": {}}, "click on no visible area"),
        ({"events": [LOAD, click(3000, y=250), click(4000, y=250)]}, "click on no visible area"),
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
