"""The reader of trials.csv: what it refuses, what it makes of a good row, and the split."""

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixate_jax.data.readers.human_choice import (
    DWELL,
    FEATURES,
    assign_splits,
    first_users,
    make_session,
    read_trials,
    shown,
)
from fixate_jax.errors import DataError
from tests.data.tables import Spoil, put, trials_csv

PAGE = "0" * 64


def drop_column(name: str) -> Spoil:
    def spoil(lines: list[list[str]]) -> None:
        place = lines[0].index(name)
        for line in lines:
            del line[place]

    return spoil


def repeat_column(name: str) -> Spoil:
    def spoil(lines: list[list[str]]) -> None:
        place = lines[0].index(name)
        for line in lines:
            line.append(line[place])

    return spoil


def repeat_trial(lines: list[list[str]]) -> None:
    lines[4][:3] = lines[3][:3]


def cut_short(lines: list[list[str]]) -> None:
    del lines[4][-2:]


def one_too_many(lines: list[list[str]]) -> None:
    lines[4].append("1")


BAD_ROWS: dict[str, tuple[Spoil, str, str, int]] = {
    # name: (what is done to line 5, the message, the reason in the counts, rows left out by "skip")
    "no choice": (put({"choice": ""}), r"line 5, field 'choice' = None: is empty", "missing value", 1),
    "NaN": (put({"pA": "NaN"}), r"line 5, field 'pA' = None: is empty", "missing value", 1),
    "text": (put({"mB": "many"}), r"line 5, field 'mB' = 'many': is not a number", "not a number", 1),
    "infinite": (put({"dwell_total": "inf"}), r"line 5, field 'dwell_total' = 'inf': is not a", "not a number", 1),
    "half a person": (put({"subject": "0.5"}), r"field 'subject' = '0.5': must be a whole", "no whole number", 1),
    "negative trial": (put({"trial": "-3"}), r"field 'trial' = '-3': must be a whole number", "no whole number", 1),
    "flag": (put({"pB_top": "yes"}), r"field 'pB_top' = 'yes': must be True or False", "neither True nor False", 1),
    "choice": (put({"choice": "D"}), r"field 'choice' = 'D': must be one of A, B, C", "unknown choice", 1),
    "repeated": (repeat_trial, r"line 4, field 'trial' = '\d+': \(subject, block, trial\)", "repeated trial", 2),
    "probability": (put({"pC": "1.2"}), r"field 'pC' = '1.2': must lie in 0..1", "probability out of range", 1),
    "amount": (put({"mA": "11.5"}), r"field 'mA' = '11.5': must be a whole number of euro", "amount out of range", 1),
    "position": (put({"pos_A": "3"}), r"pos_A, pos_B, pos_C must be 0, 1 and 2", "positions no permutation", 1),
    "same position": (
        put({"pos_A": "1", "pos_B": "1", "pos_C": "2"}),
        r"line 5, field 'pos_A' = '1'",
        "positions no permutation",
        1,
    ),
    "negative share": (put({"dwell_Bm": "-0.1"}), r"field 'dwell_Bm' = '-0.1': must not be", "negative dwell", 1),
    "shares": (
        put({"dwell_Ap": "0.99"}),
        r"line 5, .*the six dwell shares must sum",
        "dwell shares do not sum to 1",
        1,
    ),
    "no time": (put({"dwell_total": "0"}), r"field 'dwell_total' = '0': must be above 0 ms", "no dwell", 1),
    "cut short": (cut_short, r"line 5: has another number of fields than the header", "wrong number of fields", 1),
    "too long": (one_too_many, r"line 5: has another number of fields than the header", "wrong number of fields", 1),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_named_or_left_out_and_counted(name: str, tmp_path: Path) -> None:
    spoil, message, reason, rows = BAD_ROWS[name]
    folder = trials_csv(tmp_path, spoil=spoil)
    with pytest.raises(DataError, match=message) as caught:
        read_trials(folder)
    assert str(folder / "trials.csv") in str(caught.value)
    assert "fix the row or pass --data.on-bad-row skip" in str(caught.value)
    frame, dropped = read_trials(folder, on_bad_row="skip")
    assert dropped == {reason: rows}
    assert len(frame) == 60 - rows


def test_each_bad_row_is_counted_once(tmp_path: Path) -> None:
    def spoil(lines: list[list[str]]) -> None:
        put({"choice": "", "pA": "7", "dwell_total": "0"}, line=5)(lines)
        put({"pA": "7"}, line=6)(lines)

    frame, dropped = read_trials(trials_csv(tmp_path, spoil=spoil), on_bad_row="skip")
    assert dropped == {"missing value": 1, "probability out of range": 1}
    assert len(frame) == 58


def test_lines_are_counted_as_an_editor_counts_them(tmp_path: Path) -> None:
    trials_csv(tmp_path, spoil=put({"choice": "D"}, line=5))
    path = tmp_path / "trials.csv"
    path.write_text(path.read_text().replace("\n", "\n\n", 1))
    with pytest.raises(DataError, match="line 6, field 'choice'"):
        read_trials(path)


@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
def test_what_no_skipping_mends(on_bad_row: str, tmp_path: Path) -> None:
    def message_of(content: bytes) -> str:
        (tmp_path / "trials.csv").write_bytes(content)
        with pytest.raises(DataError) as caught:
            read_trials(tmp_path, on_bad_row=on_bad_row)  # type: ignore[arg-type]
        return str(caught.value)

    with pytest.raises(DataError, match=r"trials\.csv: not found; data\.path must be the folder"):
        read_trials(tmp_path, on_bad_row=on_bad_row)  # type: ignore[arg-type]
    assert "columns subject, block" in message_of(b"")
    assert "not readable as CSV" in message_of(b"\xff\xfe\x00")
    trials_csv(tmp_path, spoil=drop_column("pos_B"))
    assert message_of((tmp_path / "trials.csv").read_bytes()).endswith("columns pos_B are missing")
    trials_csv(tmp_path, spoil=repeat_column("pos_B"))
    assert "columns pos_B are given twice" in message_of((tmp_path / "trials.csv").read_bytes())
    trials_csv(tmp_path)
    header = (tmp_path / "trials.csv").read_bytes().split(b"\n")[0] + b"\n"
    assert "holds no rows" in message_of(header)


def test_a_file_of_bad_rows_only_is_an_error(tmp_path: Path) -> None:
    def spoil(lines: list[list[str]]) -> None:
        for line in range(2, len(lines) + 1):
            put({"choice": "D"}, line=line)(lines)

    with pytest.raises(DataError, match=r"no row is left; left out by reason: \{'unknown choice': 60\}"):
        read_trials(trials_csv(tmp_path, spoil=spoil), on_bad_row="skip")


@pytest.mark.parametrize("slots", ["alternatives", "texts"])
def test_slots_go_by_screen_column(slots: str, tmp_path: Path) -> None:
    values = {"choice": "A", "pos_A": "2", "pos_B": "0", "pos_C": "1", "dwell_total": "1000"}
    values |= {"pA": "0.75", "mA": "11", "pA_top": "False", "pB_top": "True", "pC_top": "True"}
    values |= dict(zip(DWELL, ("0.3", "0.1", "0.2", "0.05", "0.25", "0.1"), strict=True))
    frame, _ = read_trials(trials_csv(tmp_path, spoil=put(values, line=2)))
    row = next(frame.itertuples(index=False))
    assert [letter for letter, _ in shown(row)] == ["B", "C", "A"]
    session = make_session(row, slots=slots, page=PAGE, split="train")  # type: ignore[arg-type]
    features = pd.DataFrame(session.slot_features, columns=FEATURES[slots])
    if slots == "alternatives":
        assert session.labels == ("A", "B", "C") and session.click == 2
        np.testing.assert_allclose(session.dwell_ms["fixation"], [250, 350, 400])
        assert tuple(features.loc[2, ["probability", "amount", "expected_value", "right"]]) == (0.75, 11, 8.25, 1)
    else:
        assert session.labels == tuple("ABCDEF") and session.click == 4
        np.testing.assert_allclose(session.dwell_ms["fixation"], [200, 50, 250, 100, 100, 300])
        assert tuple(features.loc[4, ["is_probability", "amount", "upper"]]) == (0, 11, 1)
        assert tuple(features.loc[5, ["is_probability", "probability", "upper"]]) == (1, 0.75, 0)


def trials_of(counts: list[int]) -> pd.DataFrame:
    rows = [(u, t // 75 + 1, t + 1) for u, n in enumerate(counts) for t in range(n)]
    return pd.DataFrame(rows, columns=["subject", "block", "trial"])


@settings(deadline=None, max_examples=25)
@given(counts=st.lists(st.integers(1, 60), min_size=1, max_size=4), seed=st.integers(0, 99), order=st.integers(0, 99))
def test_the_split_is_70_15_15_of_every_person_whatever_the_order_of_rows(
    counts: list[int], seed: int, order: int
) -> None:
    frame = trials_of(counts)
    frame["split"] = assign_splits(frame, seed)
    for _, rows in frame.groupby("subject"):
        shares = Counter(rows["split"])
        assert sum(shares.values()) == len(rows)
        for name, share in (("train", 0.70), ("validation", 0.15), ("test", 0.15)):
            assert abs(shares[name] - share * len(rows)) <= 1
    mixed = frame.sample(frac=1, random_state=order)
    assert assign_splits(mixed.reset_index(drop=True), seed) == list(mixed["split"])
    first = first_users(frame, 1)
    assert assign_splits(first, seed) == list(first["split"])


def test_another_seed_is_another_split() -> None:
    frame = trials_of([40])
    assert assign_splits(frame, 0) != assign_splits(frame, 1)


def test_the_real_file(shared_data: Path) -> None:
    folder = shared_data / "human_choice"
    if not (folder / "trials.csv").exists():
        pytest.skip(f"the human_choice data are not here ({folder} holds no trials.csv)")
    frame, dropped = read_trials(folder)
    assert (len(frame), frame["subject"].nunique(), dropped) == (4498, 20, {})
    # The data's own description, of all 40 people: KL(human ‖ uniform) 0.0659 with 3 slots and 0.1347 with 6, and the
    # longest-watched alternative is the chosen one in 56% of trials. The file holds half of the people.
    for slots, described, measured in (("alternatives", 0.0659, 0.0634), ("texts", 0.1347, 0.1268)):
        rows = frame.itertuples(index=False)
        sessions = [make_session(r, slots=slots, page=PAGE, split="train") for r in rows]  # type: ignore[arg-type]
        assert len({s.session_id for s in sessions}) == 4498
        gaze = np.stack([s.gaze() for s in sessions])
        divergence = np.sum(gaze * np.log(np.maximum(gaze, 1e-12) * gaze.shape[1]), axis=1).mean()
        assert divergence == pytest.approx(described, rel=0.1)
        assert divergence == pytest.approx(measured, abs=1e-4)
        if slots == "alternatives":
            longest = np.mean(gaze.argmax(axis=1) == [s.click for s in sessions])
            assert longest == pytest.approx(0.56, abs=0.03)
            assert longest == pytest.approx(0.535, abs=1e-3)
