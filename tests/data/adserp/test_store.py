"""AdSERP's pages as drawn, and its way into a store."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fixate_jax.data.options import DataConfig
from fixate_jax.data.readers.adserp import store as adserp_store
from fixate_jax.data.readers.adserp.files import check_screenshot, file_of
from fixate_jax.data.readers.adserp.pages import PLATE, draw_viewport
from fixate_jax.data.readers.adserp.store import FEATURES, prepare
from fixate_jax.data.readers.adserp.tables import BadTrial
from fixate_jax.data.store import SessionStore, StoreWriter
from fixate_jax.errors import DataError
from tests.data.adserp.trials import CLICK, LOAD, png, scroll, write_participants, write_trial


def striped(path: Path) -> Path:
    """A screenshot of 1280×2000 whose rows tell their height: grey level y // 8."""
    rows = np.repeat((np.arange(2000) // 8).astype(np.uint8)[:, None], 1280, axis=1)
    Image.fromarray(rows).save(path)
    return path


def plates(page: Image.Image) -> np.ndarray:
    return (np.asarray(page) == PLATE).all(axis=-1)


def test_the_page_is_the_crop_scaled_down(tmp_path: Path) -> None:
    page = draw_viewport(striped(tmp_path / "a.png"), (640, 1562), np.zeros((0, 4)), width=320)
    assert page.size == (320, 230)  # 922/4 = 230.5, to even
    shades = np.asarray(page)[[0, 115, 229], 160, 0].astype(float)
    np.testing.assert_allclose(shades, [640 / 8, (640 + 462) / 8, 1560 / 8], atol=1)
    assert draw_viewport(tmp_path / "a.png", (640, 1562), np.zeros((0, 4)), width=2000).size == (1280, 922)


@pytest.mark.parametrize("width", [200, 320, 1100])
def test_every_slot_bears_its_number_apart_from_others(width: int, tmp_path: Path) -> None:
    # Two results, an ad within the second in its upper right corner, and a sliver at the page's end.
    boxes = np.array([[0.1, 0.1, 0.5, 0.3], [0.1, 0.4, 0.5, 0.6], [0.3, 0.4, 0.5, 0.6], [0.1, 0.999, 0.5, 1.0]])
    path = tmp_path / "a.png"
    path.write_bytes(png(1280, 922))
    page = draw_viewport(path, (0, 922), boxes, width=width)
    single = [plates(draw_viewport(path, (0, 922), boxes[[i]], width=width)) for i in range(4)]
    together = plates(page)
    # A plate of its own for each: as much colour as four single pages have (digits differ a little in their ink).
    assert together.sum() == pytest.approx(sum(one.sum() for one in single), rel=0.15)
    height = page.height
    for x0, y0, x1, y1 in boxes[:3]:
        inside = together[round(y0 * height) : round(y1 * height), round(x0 * width) : round(x1 * width)]
        assert inside.sum() > 20
    assert together[-round(0.06 * height) :].sum() > 20


def test_labels_are_digits_that_differ(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(1280, 922))
    boxes = np.array([[0.1, 0.05 + 0.08 * i, 0.5, 0.12 + 0.08 * i] for i in range(11)])
    page = np.asarray(draw_viewport(path, (0, 922), boxes, width=1100))
    height = page.shape[0]
    inks = [(page[round(y0 * height) : round(y1 * height)] == 255).all(axis=-1).sum() for _, y0, _, y1 in boxes]
    assert len(set(inks[:10])) >= 8 and inks[10] > inks[1]


def test_pixels_that_cannot_be_decoded_name_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(_undecodable())
    assert check_screenshot(path) == (1280, 2000)
    with pytest.raises(BadTrial, match=r"a\.png: not readable as a PNG image"):
        draw_viewport(path, (0, 922), np.zeros((0, 4)), width=320)


def _undecodable() -> bytes:
    """A PNG whose parts all have their checksums, while the pixels in them end too early."""
    import struct
    import zlib

    def part(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 1280, 2000, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1281))[:-6]
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", pixels) + part(b"IEND", b"")


def raw_trials(folder: Path) -> Path:
    """Two people with ten trials each; one trial has no click, and one person scrolls."""
    write_participants(_made(folder), ["p004", "p010"])
    for user in ("p004", "p010"):
        for trial in range(1, 11):
            events = [LOAD, scroll(2000, 711), (5000, 200, 811, "click", "/")] if user == "p010" else [LOAD, CLICK]
            fixations = [(3000, 400, 750 if user == "p010" else 150, 100 + trial)]
            write_trial(folder, f"{user}-b1-t{trial}", events=events, fixations=fixations, task=f"buy-thing-{trial}")
    write_trial(folder, "p004-b2-t1", events=[LOAD])
    return folder


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def prepared(raw: Path, store: Path, config: DataConfig | None = None) -> SessionStore:
    def writer_of(names: tuple[str, ...]) -> StoreWriter:
        return StoreWriter(store, name="adserp", settings={}, slot_feature_names=names)

    prepare(config or DataConfig(name="adserp", path=raw, page_width=128), writer_of)
    return SessionStore.open(store)


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def test_a_prepared_store_is_whole_and_the_same_again(tmp_path: Path) -> None:
    raw = raw_trials(tmp_path / "raw")
    store = prepared(raw, tmp_path / "store")
    assert store.users == ("p004", "p010") and len(store.sessions) == 20
    assert store.dropped == {"no click": 1} and store.slot_feature_names == FEATURES
    # Of ten trials a fifth is 2, and 15% of the other 8 is 1.
    assert store.manifest["splits"] == {"train": 14, "validation": 2, "test": 4}
    # Everybody's page from one offset is the same picture.
    assert store.manifest["pages"] == 2
    assert store.image(store.sessions[0].page_id).size == (128, 102)
    prepared(raw, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tmp_path / "store")


def test_the_first_people_and_another_seed(tmp_path: Path) -> None:
    raw = raw_trials(tmp_path / "raw")
    whole = prepared(raw, tmp_path / "whole")
    first = prepared(raw, tmp_path / "first", DataConfig(path=raw, page_width=128, max_users=1))
    splits = {s.session_id: s.split for s in whole.sessions}
    assert first.users == ("p004",) and all(splits[s.session_id] == s.split for s in first.sessions)
    other = prepared(raw, tmp_path / "other", DataConfig(path=raw, page_width=128, split_seed=1))
    assert splits != {s.session_id: s.split for s in other.sessions}


def test_an_image_that_breaks_when_drawn_leaves_no_store_or_is_counted(tmp_path: Path) -> None:
    raw = raw_trials(tmp_path / "raw")
    file = file_of(raw, "screenshot", "p004-b1-t7")
    file.write_bytes(_undecodable())
    with pytest.raises(DataError, match=r"p004-b1-t7\.png: not readable as a PNG image"):
        prepared(raw, tmp_path / "store")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["raw"]
    skipping = DataConfig(path=raw, page_width=128, on_bad_row="skip")
    store = prepared(raw, tmp_path / "store", skipping)
    assert store.dropped == {"no click": 1, "broken image": 1} and len(store.sessions) == 19


def test_a_bad_file_is_counted_on_the_way_to_the_store(tmp_path: Path) -> None:
    raw = raw_trials(tmp_path / "raw")
    file_of(raw, "ads", "p010-b1-t2").write_text("{")
    store = prepared(raw, tmp_path / "store", DataConfig(path=raw, page_width=128, on_bad_row="skip"))
    assert store.dropped == {"no click": 1, "broken JSON": 1}


KILLED = """
import os, sys
from pathlib import Path
from fixate_jax.data.readers.adserp.tables import BadTrial
from fixate_jax.data.store import StoreWriter
from tests.data.adserp.test_store import prepared
add, added = StoreWriter.add, []
def dying(self, session):
    added.append(add(self, session))
    if len(added) == 5:
        os._exit(9)
StoreWriter.add = dying
prepared(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_killed_half_way_it_leaves_no_store_and_does_it_again(tmp_path: Path) -> None:
    raw = raw_trials(tmp_path / "raw")
    root = Path(__file__).parents[3]
    arguments = [sys.executable, "-c", KILLED, str(raw), str(tmp_path / "store")]
    run = subprocess.run(arguments, cwd=root, capture_output=True)
    assert run.returncode == 9, run.stderr.decode()
    left = [p.name for p in tmp_path.iterdir() if p.name != "raw"]
    assert len(left) == 1 and left[0].endswith(".unfinished")
    prepared(raw, tmp_path / "store")
    prepared(raw, tmp_path / "other")
    assert contents(tmp_path / "store") == contents(tmp_path / "other")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other", "raw", "store"]


def test_pages_are_drawn_in_the_order_of_sessions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Batches smaller than the data, and every trial its own picture.
    monkeypatch.setattr(adserp_store, "BATCH", 3)
    raw = raw_trials(tmp_path / "raw")
    for trial in range(1, 11):
        file_of(raw, "screenshot", f"p004-b1-t{trial}").write_bytes(_shade(20 * trial))
    store = prepared(raw, tmp_path / "store")
    own = [s for s in store.sessions if s.user_id == "p004"]
    shades = [np.asarray(store.image(s.page_id))[-1, 0, 0] for s in own]
    assert shades == [20 * trial for trial in range(1, 11)]


def _shade(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (1280, 2000), level).save(buffer, format="PNG")
    return buffer.getvalue()
