"""What becomes of a folder of one's own data: sessions, gaze, splits, and the same store every time."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from fixate_jax.data.options import DataConfig
from fixate_jax.data.registry import open_or_prepare
from fixate_jax.data.store import SessionStore
from tests.data.own.folder import PAGES, Spoil, Tables, add_column, drop_column, half, own_folder, put


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stores go below the current folder."""
    monkeypatch.chdir(tmp_path)


def prepare(path: Path, **changes: object) -> SessionStore:
    return open_or_prepare(DataConfig(name="own", path=path, page_width=64, **changes))  # type: ignore[arg-type]


def both(*spoils: Spoil) -> Spoil:
    def spoil(path: Path, content: Tables) -> None:
        for each in spoils:
            each(path, content)

    return spoil


def rows(table: str, change: Callable[[list[list[str]]], list[list[str]]]) -> Spoil:
    """Change a table's rows, not its header."""

    def spoil(_: Path, content: Tables) -> None:
        header, *rest = content[table]
        content[table] = [header, *change(rest)]

    return spoil


def test_a_session_is_what_the_tables_say(tmp_path: Path) -> None:
    store = prepare(own_folder(tmp_path / "mine"))
    assert [s.session_id for s in store.sessions] == [f"s{i}" for i in range(12)]
    assert store.users == ("u1", "u2") and store.dropped == {} and store.slot_feature_names == ("price",)
    session = store.sessions[7]
    assert (session.user_id, session.labels, session.click, session.split) == ("u2", ("A", "B", "C"), 1, "validation")
    np.testing.assert_allclose(session.boxes, [[0, 0, 0.5, 1], [0.5, 0, 1, 1], [0.75, 0.5, 1, 1]])
    np.testing.assert_allclose(session.dwell_ms["fixation"], [107, 207, 307])
    np.testing.assert_allclose(session.slot_features, [[0], [10], [20]])
    assert list(session.dwell_ms) == ["fixation"]
    assert session.profile.startswith("The page shows several items")
    assert store.image(session.page_id).size == (64, 32)
    assert len({s.page_id for s in store.sessions}) == 3


def test_dwell_that_is_not_listed_is_zero_and_sessions_without_any_are_counted(tmp_path: Path) -> None:
    def change(dwell: list[list[str]]) -> list[list[str]]:
        kept = [row for row in dwell if row[:2] != ["s0", "B"] and row[0] != "s1"]
        return [[*row[:2], "0"] if row[0] == "s2" else row for row in kept]

    store = prepare(own_folder(tmp_path / "mine", spoil=rows("dwell.csv", change)))
    np.testing.assert_allclose(store.sessions[0].dwell_ms["fixation"], [100, 0, 300])
    assert store.sessions[1].session_id == "s3"
    assert store.dropped == {"no fixation on a slot": 2}


def test_cursor_dwell_is_a_signal_where_there_is_any(tmp_path: Path) -> None:
    cursor = add_column("dwell.csv", "cursor_ms", lambda n: "0" if n < 3 else str(n))
    store = prepare(own_folder(tmp_path / "mine", spoil=cursor))
    assert list(store.sessions[0].dwell_ms) == ["fixation"]
    np.testing.assert_allclose(store.sessions[1].dwell_ms["cursor"], [3, 4, 5])
    np.testing.assert_allclose(store.sessions[1].dwell_ms["fixation"], [101, 201, 301])


def test_a_fixation_counts_for_the_smallest_box_that_holds_it(tmp_path: Path) -> None:
    places = [("0", "0", "1"), ("99.9", "99.9", "2"), ("100", "0", "4"), ("150", "49.9", "8"), ("150", "50", "16")]
    outside = [("200", "50", "32"), ("50", "100", "64"), ("-5", "10", "128"), ("2000", "1e4", "256")]

    def change(fixations: list[list[str]]) -> list[list[str]]:
        return [["s4", *place] for place in (*places, *outside)] + [r for r in fixations if r[0] not in ("s4", "s5")]

    store = prepare(own_folder(tmp_path / "mine", gaze="fixations", spoil=rows("fixations.csv", change)))
    np.testing.assert_allclose(store.sessions[4].dwell_ms["fixation"], [1 + 2, 4 + 8, 16])
    np.testing.assert_allclose(store.sessions[0].dwell_ms["fixation"], [100, 200, 300])
    assert store.dropped == {"fixation on no slot": 4, "no fixation on a slot": 1}


def test_columns_that_nobody_asked_for(tmp_path: Path) -> None:
    spoil = both(
        add_column("slots.csv", "title", lambda n: "1984" if n == 2 else f"film {n}"),
        add_column("slots.csv", "rating", lambda n: f"{n / 2}"),
        add_column("slots.csv", "notes", lambda n: ""),
        add_column("slots.csv", "", str),
        add_column("sessions.csv", "age", lambda n: "old"),
        add_column("sessions.csv", "profile", lambda n: "Likes owls." if n == 1 else ""),
    )
    store = prepare(own_folder(tmp_path / "mine", spoil=spoil))
    assert store.slot_feature_names == ("price", "rating")
    np.testing.assert_allclose(store.sessions[1].slot_features, [[0.0, 1.5], [10.0, 2.0], [20.0, 2.5]])
    assert store.sessions[1].profile == "Likes owls."
    assert store.sessions[2].profile.startswith("The page shows")


def test_pages_may_have_different_slots_and_no_features(tmp_path: Path) -> None:
    fewer = rows("slots.csv", lambda slots: [row for row in slots if row[:2] != ["a.png", "C"]])
    gaze = rows("dwell.csv", lambda dwell: [row for row in dwell if not (row[1] == "C" and int(row[0][1:]) % 3 == 0)])
    store = prepare(own_folder(tmp_path / "mine", spoil=both(fewer, gaze, drop_column("slots.csv", "price"))))
    assert [s.slots for s in store.sessions[:4]] == [2, 3, 3, 2]
    assert store.slot_feature_names == () and store.sessions[0].slot_features.shape == (2, 0)


# Splits

NO_SPLIT = drop_column("sessions.csv", "split")


def many(people: int, pages: int, visits: int = 1) -> Spoil:
    """People who see every page, each in an order of their own."""

    def spoil(path: Path, content: Tables) -> None:
        NO_SPLIT(path, content)
        names = [f"{n}.png" for n in range(pages)]
        for n, name in enumerate(names):
            Image.new("RGB", (40, 20), (n, 0, 0)).save(path / "pages" / name)
        content["slots.csv"][1:] = [[name, "A", "0", "0", "20", "20", "1"] for name in names]
        sessions = [
            [f"{u}-{v}-{n}", f"u{u}", names[(n * (u + 3)) % pages], "A"]
            for u in range(people)
            for v in range(visits)
            for n in range(pages)
        ]
        content["sessions.csv"][1:] = sessions
        content["dwell.csv"][1:] = [[row[0], "A", "5"] for row in sessions]

    return spoil


def splits_of(store: SessionStore) -> dict[str, str]:
    return {s.session_id: s.split for s in store.sessions}


def test_no_page_of_a_person_is_in_two_splits(tmp_path: Path) -> None:
    store = prepare(own_folder(tmp_path / "mine", spoil=many(4, 13, visits=2)))
    assert len(store.sessions) == 104
    for user in store.users:
        own = store.select(users=[user])
        pages = {split: {s.page_id for s in own if s.split == split} for split in ("train", "validation", "test")}
        # 26 sessions: 20% is 5, so three pages of two; 15% of the other 20 is 3, so two pages.
        assert {split: len(found) for split, found in pages.items()} == {"train": 8, "validation": 2, "test": 3}
        assert len(set.union(*pages.values())) == 13


def test_the_split_is_seeded_and_does_not_depend_on_the_order_of_rows_or_on_other_people(tmp_path: Path) -> None:
    folder = own_folder(tmp_path / "mine", spoil=many(3, 11))
    before = splits_of(prepare(folder))
    assert splits_of(prepare(folder, split_seed=1)) != before
    part = splits_of(prepare(folder, max_users=2))
    assert part == {k: v for k, v in before.items() if not k.startswith("2-")} and len(part) == 22
    header, *lines = (folder / "sessions.csv").read_text().splitlines(keepends=True)
    (folder / "sessions.csv").write_text("".join([header, *lines[::-1]]))
    assert splits_of(prepare(folder)) == before


def test_people_with_too_few_pages_to_train_on_are_counted(tmp_path: Path) -> None:
    def lonely(path: Path, content: Tables) -> None:
        many(2, 9)(path, content)
        content["sessions.csv"] += [[f"x{n}", "u9", "0.png", "A"] for n in range(5)]
        content["dwell.csv"] += [[f"x{n}", "A", "5"] for n in range(5)]

    store = prepare(own_folder(tmp_path / "mine", spoil=lonely))
    assert store.users == ("u0", "u1")
    assert store.dropped == {"session of a person with too few pages to train on": 5}


def test_given_splits_are_taken_as_they_are(tmp_path: Path) -> None:
    def change(sessions: list[list[str]]) -> list[list[str]]:
        return [[*row[:4], "test" if row[1] == "u2" else row[4]] for row in sessions]

    store = prepare(own_folder(tmp_path / "mine", spoil=rows("sessions.csv", change)))
    assert {s.split for s in store.select(users=["u2"])} == {"test"} and len(store.sessions) == 12


# Store


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("gaze", ["dwell", "fixations"])
def test_preparing_again_gives_the_same_bytes(gaze: Literal["dwell", "fixations"], tmp_path: Path) -> None:
    folder = own_folder(tmp_path / "mine", gaze=gaze, spoil=both(NO_SPLIT, half("b.jpg")))
    first = prepare(folder, on_bad_row="skip").directory
    before = contents(first)
    shutil.rmtree(first)
    assert contents(prepare(folder, on_bad_row="skip").directory) == before


@pytest.mark.parametrize("change", ["pages/a.png", "sessions.csv", "slots.csv", "dwell.csv", "labels_drawn.txt"])
def test_a_change_of_any_file_gives_another_store(change: str, tmp_path: Path) -> None:
    folder = own_folder(tmp_path / "mine")
    first = prepare(folder).directory
    (folder / "notes.txt").write_text("Nothing to do with it.")
    (folder / "pages" / ".hidden.png").write_text("Nor this.")
    assert prepare(folder).directory == first
    if change == "pages/a.png":
        shutil.copy(folder / "pages" / "c.png", folder / change)
    elif change == "labels_drawn.txt":
        (folder / change).touch()
    else:
        (folder / change).write_text((folder / change).read_text() + "\n")
    assert prepare(folder).directory != first


def test_max_users_draws_only_what_they_see(tmp_path: Path) -> None:
    def change(sessions: list[list[str]]) -> list[list[str]]:
        return [[*row[:2], PAGES[0] if row[1] == "u1" else PAGES[1], *row[3:]] for row in sessions]

    folder = own_folder(tmp_path / "mine", spoil=both(rows("sessions.csv", change), half("b.jpg")))
    store = prepare(folder, max_users=1)
    assert store.users == ("u1",) and len(list((store.directory / "images").iterdir())) == 1


def test_a_bad_row_does_not_cost_what_another_session_needs(tmp_path: Path) -> None:
    spoil = both(put("dwell.csv", 3, fixation_ms="-1"), put("sessions.csv", 4, click="Z"))
    store = prepare(own_folder(tmp_path / "mine", spoil=spoil), on_bad_row="skip")
    assert [s.session_id for s in store.sessions] == ["s1", *(f"s{i}" for i in range(3, 12))]
    np.testing.assert_allclose(store.sessions[0].dwell_ms["fixation"], [101, 201, 301])
    assert sum(store.dropped.values()) == 3


def test_what_is_left_out_for_one_reason_is_not_counted_for_another(tmp_path: Path) -> None:
    # A session without a user on a page with a bad slot; and one whose fixations are off its slots, one of them bad.
    spoil = both(
        put("sessions.csv", 3, user_id=""),
        put("slots.csv", 6, x1="wide"),
        put("fixations.csv", 8, x="999"),
        put("fixations.csv", 9, duration_ms="-1"),
        put("fixations.csv", 10, x="-999"),
    )
    store = prepare(own_folder(tmp_path / "mine", gaze="fixations", spoil=spoil), on_bad_row="skip")
    assert store.dropped == {
        "sessions.csv: missing value": 1,
        "slots.csv: not a number": 1,
        "session on a page with a bad slot": 3,
        "fixations.csv: negative duration": 1,
        "session with a bad row of gaze": 1,
    }
    assert len(store.sessions) == 12 - 4 - 1
