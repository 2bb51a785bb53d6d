"""Folders of screenshots without people: what is read, and how mistakes are named."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fixate_jax.emulation.page_sets import read_page_set
from fixate_jax.errors import DataError

ROWS = [
    "shop.png,10,20,200,150,red shoes",
    "shop.png,210,20,400,150,blue shoes",
    "other.png,0,0,100,100,hat",
]
HEADER = "page,x0,y0,x1,y1,item"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pages").mkdir()
    Image.new("RGB", (400, 300), "navy").save(tmp_path / "pages" / "shop.png")
    Image.new("RGB", (200, 300), "green").save(tmp_path / "other.png")
    write(tmp_path)
    return tmp_path


def write(folder: Path, rows: list[str] = ROWS, header: str = HEADER) -> None:
    (folder / "slots.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")


def test_pages_come_in_the_order_of_the_table(folder: Path) -> None:
    shop, other = read_page_set(folder, width=200)
    assert (shop.name, other.name) == ("shop.png", "other.png")
    assert shop.image.size == (200, 150) and other.image.size == (200, 300)
    assert shop.labels == ("A", "B") and other.labels == ("A",)
    assert shop.items == ("red shoes", "blue shoes")
    np.testing.assert_allclose(shop.relative_boxes, [[0.025, 1 / 15, 0.5, 0.5], [0.525, 1 / 15, 1, 0.5]])


def test_labels_are_drawn_where_the_screenshots_bear_none(folder: Path) -> None:
    plain = np.asarray(Image.new("RGB", (400, 300), "navy").resize((200, 150)))
    assert (np.asarray(read_page_set(folder, width=200)[0].image) != plain).any()
    write(folder, [row + ",Z" + str(i) for i, row in enumerate(ROWS)], HEADER + ",label")
    (folder / "labels_drawn.txt").touch()
    shop = read_page_set(folder, width=200)[0]
    assert shop.labels == ("Z0", "Z1")
    assert (np.asarray(shop.image) == plain).all()


def test_json_says_the_same_as_the_table(folder: Path) -> None:
    wanted = read_page_set(folder, width=200)
    listing: dict[str, list[dict[str, object]]] = {}
    for row in ROWS:
        page, *box, item = row.split(",")
        slot: dict[str, object] = dict(zip(("x0", "y0", "x1", "y1"), map(float, box), strict=True))
        slot["item"] = item
        listing.setdefault(page, []).append(slot)
    (folder / "slots.csv").unlink()
    (folder / "slots.json").write_text(json.dumps(listing), encoding="utf-8")
    for found, own in zip(read_page_set(folder, width=200), wanted, strict=True):
        assert (found.labels, found.items) == (own.labels, own.items)
        assert (np.asarray(found.image) == np.asarray(own.image)).all()
        np.testing.assert_array_equal(found.relative_boxes, own.relative_boxes)


def test_an_item_may_be_the_number_0(folder: Path) -> None:
    slots = [{"x0": 0, "y0": 0, "x1": 50, "y1": 50, "item": 0}, {"x0": 60, "y0": 0, "x1": 90, "y1": 50, "item": 1}]
    (folder / "slots.csv").unlink()
    (folder / "slots.json").write_text(json.dumps({"shop.png": slots}), encoding="utf-8")
    (page,) = read_page_set(folder, width=200)
    assert page.items == ("0", "1")


def test_more_slots_than_letters_are_numbered(folder: Path) -> None:
    write(folder, [f"shop.png,{i},0,{i + 1},10," for i in range(27)])
    (page,) = read_page_set(folder, width=200)
    assert page.labels == tuple(str(i) for i in range(1, 28))
    assert page.items == ()


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        ([ROWS[0].replace("200", "wide")], HEADER, r"slots\.csv, line 2, field 'x1': 'wide' is no number"),
        ([ROWS[0].replace(",200,", ",,")], HEADER, r"line 2, field 'x1': '' is no number"),
        ([ROWS[0].replace("200", "5")], HEADER, r"line 2, field 'x1': 5 must be above x0 = 10"),
        ([ROWS[0], "shop.png,0,0,500,9,x"], HEADER, r"line 3, field 'x1': 500 is off the screenshot of 400 × 300"),
        (["no.png,0,0,5,9,x"], HEADER, r"line 2, field 'page': no PNG or JPEG file 'no\.png'"),
        (["../slots.csv,0,0,5,9,x"], HEADER, r"line 2, field 'page': no PNG or JPEG file"),
        ([",0,0,5,9,x"], HEADER, "line 2, field 'page': is empty"),
        (["shop.png,0,0,5,9"], HEADER, "line 2: has another number of fields"),
        ([ROWS[0] + ",A", ROWS[1] + ",A"], HEADER + ",label", "line 3, field 'label': 'A' is given twice"),
        ([ROWS[0] + ",A", ROWS[1] + ","], HEADER + ",label", "line 3, field 'label': is empty"),
        ([], HEADER, "holds no slot"),
        (ROWS, HEADER.replace("x0", "left"), "columns x0 are missing"),
    ],
)
def test_mistakes_are_named_by_line_and_field(folder: Path, rows: list[str], header: str, message: str) -> None:
    write(folder, rows, header)
    with pytest.raises(DataError, match=message):
        read_page_set(folder, width=200)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "must be"),
        ("{", "not valid JSON"),
        ('{"shop.png": []}', "page 'shop.png': must be a list of slots"),
        ('{"shop.png": [3]}', "page 'shop.png', slot 0: must be"),
        ('{"shop.png": [{"x0": 0, "y0": 0, "x1": true, "y1": 1}]}', "slot 0, field 'x1': True is no number"),
        ("{}", "holds no slot"),
    ],
)
def test_mistakes_in_json_are_named(folder: Path, content: str, message: str) -> None:
    (folder / "slots.csv").unlink()
    (folder / "slots.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_page_set(folder, width=200)


def test_a_folder_needs_one_table_and_whole_images(folder: Path, tmp_path: Path) -> None:
    (folder / "slots.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match="both are there"):
        read_page_set(folder, width=200)
    (folder / "slots.json").unlink()
    (folder / "other.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"other\.png: not readable as a PNG or JPEG"):
        read_page_set(folder, width=200)
    (folder / "slots.csv").unlink()
    with pytest.raises(DataError, match="neither is there"):
        read_page_set(folder, width=200)
    with pytest.raises(DataError, match="no such folder"):
        read_page_set(tmp_path / "nothing", width=200)
    write(folder)
    (folder / "labels_drawn").touch()
    with pytest.raises(DataError, match="field 'label': is missing, but the screenshots are said to bear labels"):
        read_page_set(folder, width=200)
