"""Pages of one's own data: scaled screenshots with a label in every slot, unless they bear theirs already."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fixate_jax.data.options import DataConfig
from fixate_jax.data.readers.own.pages import draw_labels
from fixate_jax.data.readers.own.tables import BOX
from fixate_jax.data.registry import open_or_prepare
from tests.data.own.folder import own_folder, put


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stores go below the current folder."""
    monkeypatch.chdir(tmp_path)


def pages_of(folder: Path, width: int = 200) -> dict[str, np.ndarray]:
    """Pixels of the first three sessions' pages by name of the screenshot."""
    store = open_or_prepare(DataConfig(name="own", path=folder, page_width=width))
    names = ("a.png", "b.jpg", "c.png")
    return {n: np.asarray(store.image(s.page_id)) for n, s in zip(names, store.sessions[:3], strict=True)}


def changed(drawn: np.ndarray, plain: np.ndarray) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 around the pixels that differ."""
    y, x = np.nonzero((drawn != plain).any(axis=2))
    return int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1


def test_labels_are_drawn_unless_a_file_says_that_they_are_there(tmp_path: Path) -> None:
    folder = own_folder(tmp_path / "mine")
    drawn = pages_of(folder)
    (folder / "labels_drawn.txt").touch()
    plain = pages_of(folder)
    for name, image in plain.items():
        with Image.open(folder / "pages" / name) as raw:
            np.testing.assert_array_equal(image, np.asarray(raw.convert("RGB")))
        x0, y0, *_ = changed(drawn[name], image)
        assert (x0, y0) == (0, 0)
        for left, top, right, bottom in ((0, 0, 100, 100), (100, 0, 150, 50), (150, 50, 200, 100)):
            own = (slice(top, bottom), slice(left, right))
            _, _, x1, y1 = changed(drawn[name][own], image[own])
            assert x1 < 25 and y1 < 20
            assert drawn[name][top, left].max() == 0 and drawn[name][top + 1, left + 1].min() == 255


@pytest.mark.parametrize(("width", "height"), [(64, 32), (200, 100), (333, 166)])
def test_pages_are_as_wide_as_asked_for(width: int, height: int, tmp_path: Path) -> None:
    assert {page.shape for page in pages_of(own_folder(tmp_path / "mine"), width).values()} == {(height, width, 3)}


def test_an_image_is_seen_as_its_camera_says_and_transparent_parts_are_white(tmp_path: Path) -> None:
    folder = own_folder(tmp_path / "mine")
    (folder / "labels_drawn").touch()
    turned = Image.new("RGB", (100, 200), (255, 0, 0))
    turned.paste((0, 0, 255), (0, 0, 100, 100))
    exif = Image.Exif()
    exif[0x0112] = 6  # Turn by 90° clockwise to see it.
    turned.save(folder / "pages" / "b.jpg", exif=exif)
    glass = Image.new("RGBA", (200, 100), (0, 0, 0, 0))
    glass.paste((0, 200, 0, 255), (0, 0, 100, 100))
    glass.save(folder / "pages" / "a.png")
    glass.convert("P").save(folder / "pages" / "c.png", transparency=0)
    pages = pages_of(folder)
    assert pages["b.jpg"].shape == (100, 200, 3)
    assert pages["b.jpg"][50, 20].argmax() == 0 and pages["b.jpg"][50, 180].argmax() == 2
    assert pages["a.png"][50, 20].tolist() == [0, 200, 0] and pages["a.png"][50, 180].tolist() == [255, 255, 255]


def test_a_box_may_reach_off_the_page_by_a_pixel(tmp_path: Path) -> None:
    edges = dict(zip(BOX, ("-0.8", "-1", "100", "101"), strict=True))
    folder = own_folder(tmp_path / "mine", spoil=put("slots.csv", 2, **edges))
    store = open_or_prepare(DataConfig(name="own", path=folder, page_width=64))
    np.testing.assert_allclose(store.sessions[0].boxes[0], [0, 0, 0.5, 1])


def test_labels_do_not_hide_each_other() -> None:
    page = Image.new("RGB", (400, 200), (90, 90, 90))
    boxes = np.array([[0.1, 0.1, 0.9, 0.9], [0.1, 0.1, 0.5, 0.5], [0.1, 0.1, 0.3, 0.3]])
    draw_labels(page, ("AA", "BB", "CC"), boxes)
    white = (np.asarray(page) == 255).all(axis=2)
    one = Image.new("RGB", (400, 200), (90, 90, 90))
    draw_labels(one, ("AA",), boxes[:1])
    plate = (np.asarray(one) == 255).all(axis=2).sum()
    assert white.sum() == pytest.approx(3 * plate, rel=0.1)


def test_a_label_stays_in_a_small_box() -> None:
    page = Image.new("RGB", (400, 200), (90, 90, 90))
    draw_labels(page, ("123456",), np.array([[0.5, 0.5, 0.53, 0.53]]))
    x0, y0, x1, y1 = changed(np.asarray(page), np.full((200, 400, 3), 90, np.uint8))
    assert x0 >= 199 and y0 >= 99 and x1 <= 213 and y1 <= 107
