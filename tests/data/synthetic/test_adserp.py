"""The reader of AdSERP finds exactly what made-up people did, as it was noted down while they did it."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fixate_jax.data.readers.adserp import AdSerp, read_adserp
from fixate_jax.data.readers.adserp.files import file_of
from fixate_jax.data.readers.adserp.stops import BY_RANK, CONTRADICTED, LATER
from fixate_jax.data.readers.adserp.store import make_session
from tests.data.synthetic.adserp import Truth, write_adserp
from tests.data.synthetic.adserp.pages import make_page
from tests.data.synthetic.adserp.people import CSS

USERS, TRIALS = 20, 15


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Truth, AdSerp]:
    folder = tmp_path_factory.mktemp("adserp")
    truth = write_adserp(folder, users=USERS, trials=TRIALS, seed=0)
    return folder, truth, read_adserp(folder)


def test_the_truth_is_recovered_exactly(made: tuple[Path, Truth, AdSerp]) -> None:
    _, truth, data = made
    assert data.dropped == truth.dropped and data.noted == truth.noted
    assert len(truth.sessions) + sum(truth.dropped.values()) == USERS * TRIALS
    pd.testing.assert_frame_equal(data.sessions, truth.sessions, check_exact=True)


def test_what_the_truth_is_tried_on_is_not_all_plain(made: tuple[Path, Truth, AdSerp]) -> None:
    folder, truth, _ = made
    assert set(truth.dropped) == {"no click", "click on no visible area", "no fixation on a slot"}
    assert set(truth.noted) == {BY_RANK, CONTRADICTED, LATER} and truth.noted[CONTRADICTED] > 5
    sessions = truth.sessions
    assert (sessions["scroll_px"] > 0).mean() > 0.3 and (sessions["scroll_px"] == 0).mean() > 0.1
    assert set().union(*sessions["kinds"]) == {"organic", "native_ad", "dd_top", "dd_right"}
    clicked = [kinds[click] for kinds, click in zip(sessions["kinds"], sessions["click"], strict=True)]
    assert {"organic", "native_ad", "dd_right"} <= set(clicked)
    cut = [
        any((b[1], b[3])[i] == c[i] for b in boxes for i in (0, 1))
        for boxes, c in sessions[["boxes", "crop"]].to_numpy()
    ]
    assert np.mean(cut) > 0.5
    assert (sessions.groupby("user_id")["query"].nunique() < sessions.groupby("user_id").size()).any()
    cursor = np.array([sum(ms) > 0 for ms in sessions["cursor_ms"]])
    assert 0.8 < cursor.mean() < 1
    # Scrolling goes on after the click, and up to it: the last offset before it is not always the session's.
    after = before = 0
    for row in sessions.itertuples():
        lines = [line.split(",") for line in file_of(folder, "mouse", row.session_id).read_text().splitlines()[1:]]
        click = next(i for i, line in enumerate(lines) if line[3] == "click")
        scrolls = [int(line[2]) * CSS for line in lines[:click] if line[3] == "scroll"]
        after += any(line[3] == "scroll" for line in lines[click:])
        before += bool(scrolls) and scrolls[-1] != row.scroll_px
    assert after > 20 and before > 5


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    def contents(name: str, seed: int) -> dict[str, bytes]:
        write_adserp(tmp_path / name, users=2, trials=2, seed=seed)
        folder = tmp_path / name
        return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}

    first = contents("a", 3)
    assert first == contents("b", 3) and len(first) == 1 + 6 * 4
    assert first != contents("c", 4)


def test_made_up_pages_hold_their_areas() -> None:
    for index in range(20):
        page = make_page(index, 0)
        assert page == make_page(index, 0)
        ranks = [area.rank for area in page.areas if area.kind == "organic"]
        assert ranks == list(range(1, len(ranks) + 1)) and len(ranks) >= 7
        assert all(0 <= a.box[0] < a.box[2] <= 1280 and 0 <= a.box[1] < a.box[3] <= page.height for a in page.areas)


def test_made_up_gaze_goes_with_the_click_and_the_person(made: tuple[Path, Truth, AdSerp]) -> None:
    _, truth, _ = made
    sessions = [make_session(row, page="0" * 64) for row in truth.sessions.itertuples()]
    top = np.mean([s.gaze().argmax() == s.click for s in sessions])
    assert top > 2 * np.mean([1 / s.slots for s in sessions])
    # Some people look at ads, others hardly do: the share over people varies more than chance would have it.
    ads = pd.DataFrame([(s.user_id, s.gaze() @ s.slot_features[:, 0]) for s in sessions], columns=["user", "share"])
    by_user = ads.groupby("user")["share"]
    assert by_user.mean().var() > 1.5 * (by_user.var() / by_user.size()).mean()
