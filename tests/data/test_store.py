"""The session store: whole or not there, the same bytes again, and nothing damaged gets in."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fixate_jax.data.session import StoredSession
from fixate_jax.data.store import MANIFEST, SESSIONS, SessionStore, StoreWriter, encode_image, natural_order
from fixate_jax.errors import DataError, DiskError, StoreError

NAMES = ("price", "place")


def png(shade: int) -> bytes:
    return encode_image(Image.new("RGB", (8, 6), (shade, shade, shade)))


def session(
    number: int, page: str, *, slots: int = 3, user: str = "u1", signals: Iterable[str] = ("fixation",)
) -> StoredSession:
    edges = np.linspace(0, 1, slots + 1)
    return StoredSession(
        session_id=f"s{number}",
        user_id=user,
        page_id=page,
        boxes=np.stack([edges[:-1], np.zeros(slots), edges[1:], np.ones(slots)], axis=1),
        labels=tuple("ABCDEFGH"[:slots]),
        dwell_ms={name: np.arange(1.0, slots + 1) * (number + 1) / 3 for name in signals},
        click=number % slots,
        profile=f"A person “{user}” who likes cafés.",
        split=("train", "validation", "test")[number % 3],
        slot_features=np.arange(2.0 * slots).reshape(slots, 2) / 7,
    )


def write(directory: Path) -> Path:
    """Six sessions of three users on two pages, of 2 to 4 slots and one or two signals."""
    with StoreWriter(directory, name="toy", settings={"seed": 3}, slot_feature_names=NAMES) as writer:
        pages = [writer.add_image(png(shade)) for shade in (10, 20, 10)]
        assert pages[0] == pages[2]
        for i in range(6):
            signals = ("fixation", "cursor") if i % 2 else ("fixation",)
            writer.add(session(i, pages[i % 2], slots=2 + i % 3, user=f"u{(10, 2, 1)[i % 3]}", signals=signals))
        writer.dropped = {"no dwell": 4}
    return directory


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    store = SessionStore.open(write(tmp_path / "store"))
    assert [s.session_id for s in store.sessions] == [f"s{i}" for i in range(6)]
    for i, found in enumerate(store.sessions):
        wanted = session(i, found.page_id, slots=2 + i % 3, user=found.user_id, signals=found.dwell_ms)
        for name in ("labels", "click", "profile", "split"):
            assert getattr(found, name) == getattr(wanted, name)
        assert set(found.dwell_ms) == ({"fixation", "cursor"} if i % 2 else {"fixation"})
        for signal_name, dwell in found.dwell_ms.items():
            np.testing.assert_array_equal(dwell, wanted.dwell_ms[signal_name])
        np.testing.assert_array_equal(found.boxes, wanted.boxes)
        np.testing.assert_array_equal(found.slot_features, wanted.slot_features)
        assert store.image(found.page_id).getpixel((0, 0)) == ((10,) * 3 if i % 2 == 0 else (20,) * 3)
    assert store.users == ("u1", "u2", "u10")
    assert store.slot_feature_names == NAMES and dict(store.dropped) == {"no dwell": 4}
    counts = {k: store.manifest[k] for k in ("sessions", "users", "pages", "splits", "signals")}
    assert counts == {
        "sessions": 6,
        "users": 3,
        "pages": 2,
        "splits": {"test": 2, "train": 2, "validation": 2},
        "signals": ["cursor", "fixation"],
    }


def test_select(tmp_path: Path) -> None:
    store = SessionStore.open(write(tmp_path / "store"))
    assert [s.session_id for s in store.select(split="test")] == ["s2", "s5"]
    assert [s.session_id for s in store.select(split="train", users=["u10"])] == ["s0", "s3"]
    assert store.select(split="test", users=["u10"]) == []
    with pytest.raises(StoreError, match="no user 'u3'; it has u1, u2, u10"):
        store.select(users=["u1", "u3"])


def test_writing_again_gives_the_same_bytes(tmp_path: Path) -> None:
    assert contents(write(tmp_path / "a")) == contents(write(tmp_path / "b"))


def test_numbers_in_names_are_compared_as_numbers_and_ties_are_settled() -> None:
    assert natural_order({"u10", "u2", "10", "9", "u²", "a"}) == ["9", "10", "a", "u2", "u10", "u²"]
    assert natural_order(["1", "01"]) == natural_order(["01", "1"])


def test_an_error_leaves_nothing_behind(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path / "store", name="toy", settings={}, slot_feature_names=NAMES)
    with pytest.raises(RuntimeError, match="in the middle"), writer:
        writer.add(session(0, writer.add_image(png(1))))
        raise RuntimeError("in the middle")
    assert list(tmp_path.iterdir()) == []


def test_an_error_at_the_very_end_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(DiskError, match="store: could not be written: No space left on device; free some space"):
        write(tmp_path / "store")
    assert list(tmp_path.iterdir()) == []


def test_a_killed_run_leaves_no_store_and_the_next_one_tidies_up(tmp_path: Path) -> None:
    program = """
        import os, signal, sys
        from pathlib import Path
        from tests.data.test_store import NAMES, png, session
        from fixate_jax.data.store import StoreWriter
        with StoreWriter(Path(sys.argv[1]), name="toy", settings={}, slot_feature_names=NAMES) as writer:
            writer.add(session(0, writer.add_image(png(1))))
            os.kill(os.getpid(), signal.SIGKILL)
    """
    directory = tmp_path / "store"
    command = [sys.executable, "-c", textwrap.dedent(program), str(directory)]
    killed = subprocess.run(command, timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not directory.exists()
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(StoreError, match="no session store there"):
        SessionStore.open(directory)
    write(directory)
    assert list(tmp_path.iterdir()) == [directory]


def test_two_writers_do_not_disturb_each_other(tmp_path: Path) -> None:
    directory = tmp_path / "store"
    # A process that runs, and is not this one: what it writes must stay.
    others = directory.with_name(StoreWriter(directory, name="", settings={}, slot_feature_names=()).temporary.name)
    others = others.with_name(others.name.replace(f"-{os.getpid()}.", f"-{os.getppid()}."))
    others.mkdir()
    slow = StoreWriter(directory, name="toy", settings={}, slot_feature_names=NAMES)
    write(directory)
    assert others.exists()
    with pytest.raises(StoreError, match="another run has written it meanwhile"), slow as writer:
        writer.add(session(0, writer.add_image(png(1))))
    assert sorted(tmp_path.iterdir()) == sorted([directory, others])
    assert len(SessionStore.open(directory).sessions) == 6


def test_an_existing_store_is_not_overwritten(tmp_path: Path) -> None:
    directory = write(tmp_path / "store")
    before = contents(directory)
    with pytest.raises(StoreError, match="exists already; remove it or choose another place"):
        write(directory)
    assert contents(directory) == before


def add_twice(writer: StoreWriter) -> None:
    for _ in range(2):
        writer.add(session(0, writer.add_image(png(1))))


BAD_SESSIONS: dict[str, tuple[Callable[[StoreWriter], None], str]] = {
    "no image": (lambda w: w.add(session(0, "0" * 64)), r"session 's0', field 'page_id': add the page's image first"),
    "features": (
        lambda w: w.add(
            StoredSession(
                session_id="s0",
                user_id="u",
                page_id=w.add_image(png(1)),
                boxes=np.array([[0.0, 0, 1, 1]]),
                labels=("A",),
                dwell_ms={"fixation": np.ones(1)},
                click=0,
            )
        ),
        r"session 's0', field 'slot_features': 0 columns for the 2 names",
    ),
    "twice": (
        add_twice,
        r"toy: session_id 's0' is given more than once",
    ),
    "none": (lambda w: None, r"toy: no session is left; dropped by reason: \{\}"),
}


@pytest.mark.parametrize("name", BAD_SESSIONS)
def test_a_session_that_does_not_fit_the_store_is_refused(name: str, tmp_path: Path) -> None:
    add, message = BAD_SESSIONS[name]
    writer = StoreWriter(tmp_path / "store", name="toy", settings={}, slot_feature_names=NAMES)
    with pytest.raises(DataError, match=message), writer:
        add(writer)
    assert list(tmp_path.iterdir()) == []


def change_manifest(directory: Path, **changes: object) -> None:
    path = directory / MANIFEST
    manifest = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({k: v for k, v in manifest.items() if v is not None}), encoding="utf-8")


def rewrite(directory: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Change the table and make the manifest agree, as a careless tool would."""
    path = directory / SESSIONS
    pq.write_table(change(pq.read_table(path)), path)
    change_manifest(directory, sessions_sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def with_value(column: str, row: int, value: object) -> Callable[[Path], None]:
    def spoil(directory: Path) -> None:
        def change(table: pa.Table) -> pa.Table:
            values = table.column(column).to_pylist()
            values[row] = value
            field = table.schema.field(column)
            return table.set_column(table.schema.names.index(column), field, pa.array(values, field.type))

        rewrite(directory, change)

    return spoil


def cut(name: str) -> Callable[[Path], None]:
    def spoil(directory: Path) -> None:
        path = next(directory.glob(name))
        path.write_bytes(path.read_bytes()[:-7])

    return spoil


def turn_into_a_file(directory: Path) -> None:
    shutil.rmtree(directory)
    directory.write_bytes(b"")


def no_parquet(directory: Path) -> None:
    (directory / SESSIONS).write_bytes(b"text")
    change_manifest(directory, sessions_sha256=hashlib.sha256(b"text").hexdigest())


BAD_STORES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no manifest": (lambda d: (d / MANIFEST).unlink(), r"store: no session store there \(manifest\.json is missing\)"),
    "manifest cut": (cut(MANIFEST), r"manifest\.json: not valid JSON"),
    "manifest a list": (lambda d: (d / MANIFEST).write_text("[]"), r"store format None, this release reads 1"),
    "other version": (lambda d: change_manifest(d, format=2), r"manifest\.json: store format 2, this release reads 1"),
    "no version": (lambda d: change_manifest(d, format=None), r"manifest\.json: store format None"),
    "manifest field": (lambda d: change_manifest(d, dropped=None), r"manifest\.json: fields dropped are missing"),
    "no table": (lambda d: (d / SESSIONS).unlink(), r"sessions\.parquet: not found; prepare the store again"),
    "table cut": (cut(SESSIONS), r"sessions\.parquet: altered or truncated since it was written"),
    "no parquet": (
        no_parquet,
        r"sessions\.parquet: not readable as parquet",
    ),
    "a file": (turn_into_a_file, r"store: no session store there"),
    "manifest type": (
        lambda d: change_manifest(d, slot_feature_names="price"),
        r"manifest\.json: fields slot_feature_names are of another type",
    ),
    "no column": (lambda d: rewrite(d, lambda t: t.drop_columns(["click"])), r"columns click are missing, unknown or"),
    "one column more": (
        lambda d: rewrite(d, lambda t: t.append_column("colour", t.column("click"))),
        r"sessions\.parquet: columns colour are missing, unknown or of another type",
    ),
    "columns moved": (lambda d: rewrite(d, lambda t: t.select(t.schema.names[::-1])), r"parquet: columns moved"),
    "column type": (
        lambda d: rewrite(d, lambda t: t.set_column(6, "click", t.column("click").cast(pa.float64()))),
        r"sessions\.parquet: columns click are missing, unknown or of another type",
    ),
    "empty": (with_value("user_id", 1, None), r"sessions\.parquet, row 2, field 'user_id': is empty"),
    "click": (with_value("click", 2, 9), r"sessions\.parquet, row 3: session 's2', field 'click': slot 9 is not on"),
    "split": (with_value("split", 0, "dev"), r"row 1, field 'split': 'dev' is not one of"),
    "negative dwell": (with_value("dwell_ms", 0, [("fixation", [-1.0, 2.0])]), r"field 'dwell_ms\[fixation\]'"),
    "box off the page": (
        with_value("boxes", 0, [[0, 0, 1, 1], [0, 0, 1, 1.5]]),
        r"field 'boxes': reaches off the page",
    ),
    "box of three": (with_value("boxes", 0, [[0, 0, 1], [0, 0, 1]]), r"row 1, field 'boxes': a box is four numbers"),
    "empty coordinate": (with_value("boxes", 0, [[0, 0, 1, 1], [0, 0, 1, None]]), r"field 'boxes': holds NaN"),
    "features": (with_value("slot_features", 3, [[1.0], [2.0]]), r"row 4, field 'slot_features': the manifest names 2"),
    "labels": (with_value("labels", 0, ["A", "A"]), r"field 'labels': labels must be unique"),
    "repeated": (with_value("session_id", 4, "s1"), r"row 5, field 'session_id': 's1' is given twice"),
    "page id": (with_value("page_id", 0, "../../secret"), r"row 1, field 'page_id': '../../secret' is no SHA-256"),
    "other page": (with_value("page_id", 0, "0" * 64), r"row 1, field 'page_id': image .*0\.png is missing"),
    "no image": (lambda d: next(d.glob("images/*")).unlink(), r"field 'page_id': image .*\.png is missing"),
}


@pytest.mark.parametrize("name", BAD_STORES)
def test_a_damaged_store_is_refused(name: str, tmp_path: Path) -> None:
    spoil, message = BAD_STORES[name]
    directory = write(tmp_path / "store")
    spoil(directory)
    with pytest.raises(StoreError, match=message):
        SessionStore.open(directory)


@pytest.mark.parametrize("damage", ["cut", "flipped", "swapped", "gone"])
def test_a_damaged_image_is_refused(damage: str, tmp_path: Path) -> None:
    store = SessionStore.open(write(tmp_path / "store"))
    pages = sorted({s.page_id for s in store.sessions})
    path = store.directory / "images" / f"{pages[0]}.png"
    data = path.read_bytes()
    if damage == "cut":
        path.write_bytes(data[:-20])
    elif damage == "flipped":
        path.write_bytes(data[:40] + bytes([data[40] ^ 1]) + data[41:])
    elif damage == "swapped":
        path.write_bytes((store.directory / "images" / f"{pages[1]}.png").read_bytes())
    else:
        path.unlink()
    message = "not found" if damage == "gone" else "truncated or altered"
    with pytest.raises(StoreError, match=rf"{pages[0]}\.png: {message}"):
        store.image(pages[0])
