"""Folders of one's own pages without people: screenshots, and a table or a JSON file of where their slots are."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from fixate_jax.data.boxes import require_pixels
from fixate_jax.data.images import tell_of_small_text
from fixate_jax.data.page import Page
from fixate_jax.data.readers.own.files import ENDINGS, PAGES, SLOTS, find_image, labels_drawn, read_header
from fixate_jax.data.readers.own.pages import EDGE, draw_labels, read_image
from fixate_jax.data.readers.own.tables import PROFILE
from fixate_jax.errors import DataError
from fixate_jax.runtime.files import read_json

SLOTS_JSON = "slots.json"
BOX = ("x0", "y0", "x1", "y1")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, kw_only=True)
class Slot:
    """One row of the table of slots.

    Attributes:
        where: file and line, for messages.
        box: x0, y0, x1, y1 in pixels of the screenshot.
        label: "" where none was given.
        item: what stands there; "" where nothing was said.
    """

    where: str
    box: tuple[float, float, float, float]
    label: str = ""
    item: str = ""


def read_page_set(folder: Path, *, width: int, profile: str = PROFILE) -> list[Page]:
    """Read a folder of screenshots and their slots.

    The screenshots lie in ``pages/`` or beside the table, which is ``slots.csv`` with the columns ``page``, ``x0``,
    ``y0``, ``x1``, ``y1`` and if wanted ``label`` and ``item``, or ``slots.json`` with the same names:
    ``{"shop.png": [{"x0": 10, "y0": 20, "x1": 200, "y1": 150, "item": "red shoes"}, …], …}``. Pages without labels get
    the letters A, B, … in the order of their slots, or numbers from 1 if there are more slots than letters.

    Args:
        folder: the folder.
        width: of the drawn pages in pixels; their height follows from the screenshots' shapes.
        profile: what the model is told about the task.

    Returns:
        The pages in the order of the table.

    Raises:
        DataError: naming file, line and field.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give the folder with the screenshots and {SLOTS} or {SLOTS_JSON}")
    table, listing = folder / SLOTS, folder / SLOTS_JSON
    if table.exists() == listing.exists():
        problem = "both are there; keep one" if table.exists() else "neither is there; write one"
        raise DataError(
            f"{folder}: {SLOTS} or {SLOTS_JSON}: {problem} (page, x0, y0, x1, y1 and if wanted label, item)"
        )
    found = _from_csv(table) if table.exists() else _from_json(listing)
    if not found:
        raise DataError(f"{table if table.exists() else listing}: holds no slot; add a row for each thing to click")
    drawn = bool(labels_drawn(folder))
    pages, widest = [], 0
    for name, slots in found.items():
        page, wide = _page(folder, name, slots, width=width, drawn=drawn, profile=profile)
        pages.append(page)
        widest = max(widest, wide)
    tell_of_small_text(widest, width, "--page-width")
    return pages


def _from_csv(path: Path) -> dict[str, list[Slot]]:
    read_header(path, ["page", *BOX])
    found: dict[str, list[Slot]] = {}
    with path.open(encoding="utf-8-sig", newline="") as handle:
        reader = csv.DictReader(handle)
        try:
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                if None in row or None in row.values():
                    raise DataError(f"{where}: has another number of fields than the header; fix the row")
                name, slot = _slot(row, where)
                found.setdefault(name, []).append(slot)
        except csv.Error as error:
            raise DataError(
                f"{path}, line {reader.line_num + 1}: not readable as CSV ({error}); fix the row"
            ) from error
    return found


def _from_json(path: Path) -> dict[str, list[Slot]]:
    content = read_json(path, DataError, "write it again")
    if not isinstance(content, dict):
        raise DataError(f'{path}: must be {{"shop.png": [{{"x0": …, "y0": …, "x1": …, "y1": …}}, …], …}}')
    found: dict[str, list[Slot]] = {}
    for name, rows in content.items():
        where = f"{path}, page {name!r}"
        if not isinstance(rows, list) or not rows:
            raise DataError(f"{where}: must be a list of slots, got {rows!r}")
        for i, row in enumerate(rows):
            if not isinstance(row, dict):
                raise DataError(f'{where}, slot {i}: must be {{"x0": …, "y0": …, "x1": …, "y1": …}}, got {row!r}')
            found.setdefault(name, []).append(_slot({**row, "page": name}, f"{where}, slot {i}")[1])
    return found


def _slot(row: Mapping[str, Any], where: str) -> tuple[str, Slot]:
    """The page's name, and the slot."""
    name = row["page"].strip()
    if not name:
        raise DataError(f"{where}, field 'page': is empty; give the screenshot's name with its ending")
    box = []
    for side in BOX:
        value = row.get(side)
        try:
            box.append(float("nan" if value is None or isinstance(value, bool) else value))
        except (TypeError, ValueError):
            box.append(np.nan)
        if not np.isfinite(box[-1]):
            raise DataError(f"{where}, field {side!r}: {value!r} is no number; give pixels of the screenshot")
    for low, high in ((0, 2), (1, 3)):
        if box[high] <= box[low]:
            raise DataError(f"{where}, field {BOX[high]!r}: {box[high]:g} must be above {BOX[low]} = {box[low]:g}")
    texts = {field: "" if row.get(field) is None else str(row[field]).strip() for field in ("label", "item")}
    return name, Slot(where=where, box=(box[0], box[1], box[2], box[3]), **texts)


def _page(folder: Path, name: str, slots: list[Slot], *, width: int, drawn: bool, profile: str) -> tuple[Page, int]:
    """Draw a page; and how wide its screenshot is."""
    labels = _labels(slots, drawn=drawn)
    image = read_image(_screenshot(folder, name, slots[0]))
    boxes = _relative(slots, image.size)
    shown = image.resize((width, max(1, round(image.height * width / image.width))), Image.Resampling.LANCZOS)
    if not drawn:
        draw_labels(shown, labels, boxes)
    items = tuple(slot.item for slot in slots)
    page = Page(
        name=name,
        image=shown,
        boxes=boxes,
        relative=True,
        labels=labels,
        labelled=True,
        items=items if any(items) else (),
        profile=profile,
    )
    return page, image.width


def _labels(slots: list[Slot], *, drawn: bool) -> tuple[str, ...]:
    labels = tuple(slot.label for slot in slots)
    if not any(labels):
        if drawn:
            raise DataError(f"{slots[0].where}, field 'label': is missing, but the screenshots are said to bear labels")
        return tuple(LETTERS[: len(slots)]) if len(slots) <= len(LETTERS) else tuple(map(str, range(1, len(slots) + 1)))
    for i, slot in enumerate(slots):
        if not slot.label:
            raise DataError(f"{slot.where}, field 'label': is empty; give a label to every slot of a page, or to none")
        if slot.label in labels[:i]:
            raise DataError(f"{slot.where}, field 'label': {slot.label!r} is given twice on its page")
    return labels


def _screenshot(folder: Path, name: str, first: Slot) -> Path:
    for path in (find_image(folder / PAGES, name), find_image(folder, name)):
        if path is not None and path.suffix.lower() in ENDINGS and folder.resolve() in path.resolve().parents:
            return path
    raise DataError(
        f"{first.where}, field 'page': no PNG or JPEG file {name!r} in {folder / PAGES} or {folder}; put it there, or "
        "give its name with the ending"
    )


def _relative(slots: list[Slot], size: tuple[int, int]) -> Float[np.ndarray, "slots 4"]:
    limit = np.array([*size, *size], np.float64)
    boxes = np.array([slot.box for slot in slots])
    require_pixels(boxes, size, slots[0].where)
    bad = (boxes < -EDGE) | (boxes > limit + EDGE)
    inside = boxes.clip(0, limit)
    bad[:, 2:] |= inside[:, 2:] <= inside[:, :2]
    if bad.any():
        row, side = (int(i) for i in np.argwhere(bad)[0])
        raise DataError(
            f"{slots[row].where}, field {BOX[side]!r}: {boxes[row, side]:g} is off the screenshot of {size[0]} × "
            f"{size[1]} pixels; fix the box"
        )
    return inside / limit
