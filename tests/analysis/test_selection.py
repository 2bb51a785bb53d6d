"""Which sessions are looked at, and what the settings decide."""

from dataclasses import replace

import numpy as np
import pytest

from fixate_jax.errors import ConfigError, DataError
from fixate_jax.lab.analysis import AnalysisSettings, analyse, select_sessions
from tests.analysis.made_up import SETTINGS, made_up, same, session


def test_the_seed_decides():
    sessions = made_up(5, 9)
    one, again, other = (analyse(sessions, replace(SETTINGS, seed=seed)).tables for seed in (1, 1, 2))
    assert all(same(one[name], again[name]) for name in one)
    assert not same(one["stability"], other["stability"])
    more = analyse(sessions, replace(SETTINGS, seed=1, halvings=6)).tables
    assert not same(one["stability"], more["stability"])


def test_gaze_is_of_the_signal_and_tempered():
    sessions = [session(k, f"u{k % 2}", [4.0, 1.0], 0) for k in range(8)]
    sessions = [replace(s, dwell_ms=s.dwell_ms | {"cursor": np.array([0.0, 7.0])}) for s in sessions]

    def gaze(**change: object) -> tuple[float, float]:
        tables = analyse(sessions, replace(SETTINGS, **change)).tables  # type: ignore[arg-type]
        return tables["user_slot_gaze"]["gaze"][0], tables["clicks"].set_index("measure")["micro"]["clicked_gaze"]

    assert gaze() == pytest.approx((0.8, 0.8))
    assert gaze(gaze_temperature=2.0) == pytest.approx((2 / 3, 2 / 3))
    assert gaze(signal="cursor") == pytest.approx((0, 0))


def test_the_test_split_is_not_looked_at():
    sessions = [replace(s, split=("train", "validation", "test")[i % 3]) for i, s in enumerate(made_up(4, 15))]
    found = analyse(sessions, SETTINGS)
    assert found.tables["left_out"].to_numpy().tolist() == [["all tables", "in split test", 20, 4]]
    assert "40 sessions of 4 people, split train and validation. The 20 sessions of the test" in found.notes[0]
    turned = [replace(s, dwell_ms={"fixation": np.roll(s.dwell_ms["fixation"], 1)}) for s in sessions]
    turned = [new if new.split == "test" else old for new, old in zip(turned, sessions, strict=True)]
    assert all(same(table, found.tables[name]) for name, table in analyse(turned, SETTINGS).tables.items())
    whole = analyse(sessions, replace(SETTINGS, splits=("train", "validation", "test")))
    assert whole.layouts[0].user.size == 60 and whole.tables["left_out"].empty
    assert "The test split is among them" in whole.notes[0]


def test_pages_of_other_layouts_are_counted_and_left_out():
    sessions = made_up(3, 6)  # 18 on pages of three slots
    more = [session(1000 + i, f"u{i % 2}", [1.0 + i, 2.0], 0) for i in range(10)]  # two slots, of u0 and u1
    more += [session(2000 + i, f"u{i % 3}", [1.0, 2.0, 3.0 + i], 1, shift=0.1) for i in range(4)]  # moved up
    more += [session(3000, "u2", [1.0, 2.0]), session(3001, "u0", [5.0])]
    found = analyse(sessions + more, SETTINGS)
    assert [one.name for one in found.layouts] == ["3 slots (A, B, C)"] and found.layouts[0].user.size == 18
    assert found.tables["clicks"]["sessions"].unique().tolist() == [33], "clicks count on every page of several slots"
    assert found.tables["left_out"].to_numpy().tolist() == [
        ["all tables", "on a page of one slot", 1, 1],
        ["all but clicks", "on another page layout", 15, 3],
    ]
    two = analyse(sessions + more, replace(SETTINGS, layouts=2))
    assert [one.name for one in two.layouts] == ["3 slots (A, B, C)", "2 slots (A, B)"]
    assert two.layouts[1].users == ("u0", "u1")
    assert two.tables["left_out"].to_numpy().tolist()[1:] == [
        ["all but clicks", "on another page layout", 4, 3],
        ["all but clicks", "of a person with under 4 sessions on page layout 2", 1, 1],
    ]
    assert two.tables["user_slot_gaze"].groupby("layout").size().tolist() == [9, 4]
    assert same(two.tables["stability"].query("layout == 1"), found.tables["stability"])


def test_people_with_too_few_sessions_are_counted_or_stop_it():
    sessions = [*made_up(3, 6), session(1000, "u9", [1.0, 2, 3]), session(1001, "u9", [1.0, 2, 3])]
    found = select_sessions(sessions, SETTINGS)
    assert found.left_out.to_numpy().tolist() == [["all tables", "of a person with under 4 sessions", 2, 1]]
    assert found.layouts[0].users == ("u0", "u1", "u2")
    assert len(select_sessions(sessions, replace(SETTINGS, min_sessions=2)).layouts[0].users) == 4
    with pytest.raises(DataError, match="0 of 4 people have at least 7 sessions in train, validation; people are comp"):
        analyse(sessions, replace(SETTINGS, min_sessions=7))
    with pytest.raises(DataError, match="1 of 1 people have at least 4 sessions"):
        analyse(made_up(1, 6), SETTINGS)
    with pytest.raises(DataError, match="0 of 4 people have at least 4 sessions in test"):
        analyse(sessions, replace(SETTINGS, splits=("test",)))
    alone = [session(i, f"u{i % 2}", [1.0, 2.0, 3.0][: 2 + i % 2]) for i in range(12)]
    with pytest.raises(DataError, match="on none of the 2 page layouts do 2 people have at least 4 sessions"):
        analyse(alone, SETTINGS)
    with pytest.raises(DataError, match="session 's0', field 'dwell_ms': no signal 'cursor', only"):
        analyse(sessions, replace(SETTINGS, signal="cursor"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"splits": ("tset",)}, "splits = tset: name some of train, validation, test, each once"),
        ({"splits": ()}, "splits = : name some of"),
        ({"splits": ("train", "train")}, "splits = train train"),
        ({"halvings": 0}, "halvings = 0: at least 1"),
        ({"min_sessions": 1}, "min_sessions = 1: at least 2"),
        ({"layouts": 0}, "layouts = 0: at least 1"),
        ({"seed": -1}, "seed = -1: at least 0"),
    ],
)
def test_settings_that_cannot_be_used(change: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        AnalysisSettings(**change)


def test_pages_that_scroll_are_alike_by_their_labels():
    people = made_up(3, 8)
    moved = [replace(s, boxes=s.boxes - np.array([0, i / 150, 0, i / 150])) for i, s in enumerate(people)]
    with pytest.raises(DataError, match="on none of the"):
        analyse(moved, SETTINGS)
    found = analyse(moved, replace(SETTINGS, alike="labels"))
    still = analyse(people, SETTINGS)
    for name, table in found.tables.items():
        placed = [c for c in table.columns if c in ("x0", "y0", "x1", "y1")]
        assert same(table.drop(columns=placed), still.tables[name].drop(columns=placed))
    (layout,) = found.layouts
    used = [s.boxes for s in moved if s.split != "test"]
    assert layout.boxes == pytest.approx(np.median(used, axis=0))
