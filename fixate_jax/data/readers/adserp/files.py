"""The raw files of one AdSERP trial, each read and checked: CSV, XML, JSON, PNG.

Lengths are pixels of the full-page screenshot unless said otherwise; the browser's log, its window and the document
are in CSS pixels. What is checked is what is used: further columns and fields are ignored.
"""

import json
import math
import re
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from fixate_jax.data.readers.adserp.tables import BadTrial, Table, bytes_of

SCREENSHOT_WIDTH = 1280
FOLDERS = {
    "metadata": ("trial-metadata", ".xml"),
    "screenshot": ("full-page-screenshots", ".png"),
    "fixations": ("fixation-data", ".csv"),
    "mouse": ("mouse-movement-data", ".csv"),
    "organic": ("organic-aoi-data", ".json"),
    "ads": ("ad-boundary-data", ".json"),
}
"""Folder and file ending of each kind of file."""
ADS = ("native_ad", "dd_top", "dd_right")
"""Kinds of ads: among the results, above them, to their right."""
TRIAL_ID = re.compile(r"(p\d+)-b(\d+)-t(\d+)")
BOX_TOLERANCE = 1.0
"""A box may reach off the screenshot by this much, for rounding; it is cut there."""


class Aoi(NamedTuple):
    """An area of interest.

    Attributes:
        kind: "organic", or one of ``ADS``.
        rank: of an organic result, from 1; 0 for an ad.
        box: x0, y0, x1, y1 on the screenshot.
    """

    kind: str
    rank: int
    box: tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class MouseLog:
    """The browser's log of a trial, in the order of time.

    Attributes:
        time: of each event, in ms.
        position: x and y on the page (``pageX``, ``pageY``) in CSS pixels; of a scroll event, y is the scroll offset.
        event: its name, such as "mousemove", "scroll", "click".
        xpath: the element it happened on.
    """

    time: Int[np.ndarray, " events"]
    position: Float[np.ndarray, "events 2"]
    event: tuple[str, ...]
    xpath: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Trial:
    """What the files of a trial say.

    Attributes:
        query: what was searched for, hyphens as in the file.
        document_height: in CSS pixels.
        window: width and height of what the browser's window shows, in whole CSS pixels.
        size: width and height of the screenshot.
        fixations: timestamp in ms, x, y on the screenshot, duration in ms.
        mouse: the browser's log.
        aois: organic results by rank, then ads in the order of ``ADS``.
        organic: the places of organic results are known.
    """

    query: str
    document_height: int
    window: tuple[int, int]
    size: tuple[int, int]
    fixations: Float[np.ndarray, "fixations 4"]
    mouse: MouseLog
    aois: tuple[Aoi, ...]
    organic: bool

    @property
    def scale(self) -> float:
        """Pixels of the screenshot in a CSS pixel."""
        return SCREENSHOT_WIDTH / self.window[0]

    @property
    def rows(self) -> int:
        """Rows of the screenshot that are seen at once; browsers round a window's size down."""
        return math.ceil(self.window[1] * self.scale)


def file_of(path: Path, kind: str, trial_id: str) -> Path:
    """Where a trial's file of a kind in ``FOLDERS`` is."""
    folder, ending = FOLDERS[kind]
    return path / folder / f"{trial_id}{ending}"


def has_organic(path: Path) -> bool:
    """Whether the places of organic results are there; the published files are without."""
    return (path / FOLDERS["organic"][0]).is_dir()


def read_trial(path: Path, trial_id: str) -> Trial:
    """Read and check the files of a trial.

    Raises:
        BadTrial: naming the file, and the line or field.
    """
    query, document_height, window = read_metadata(file_of(path, "metadata", trial_id))
    size = check_screenshot(file_of(path, "screenshot", trial_id))
    organic = read_organic(file_of(path, "organic", trial_id), size) if has_organic(path) else []
    return Trial(
        query=query,
        document_height=document_height,
        window=window,
        size=size,
        fixations=read_fixations(file_of(path, "fixations", trial_id)),
        mouse=read_mouse(file_of(path, "mouse", trial_id)),
        aois=(*organic, *read_ads(file_of(path, "ads", trial_id), size)),
        organic=has_organic(path),
    )


# CSV


def read_fixations(path: Path) -> Float[np.ndarray, "fixations 4"]:
    """Timestamp, x, y and duration of the fixations; places off the page are allowed, since eyes do look there."""
    table = Table(path, ["timestamp", "FPOGX", "FPOGY", "FPOGD"])
    columns = [table.whole("timestamp"), table.numbers("FPOGX"), table.numbers("FPOGY"), table.not_negative("FPOGD")]
    return np.stack(columns, axis=1).astype(np.float64)


def read_mouse(path: Path) -> MouseLog:
    """The browser's log; events of the same time stay in the order of the file."""
    table = Table(path, ["timestamp", "xpos", "ypos", "event", "xpath"], commas_in="xpath")
    time, event = table.whole("timestamp"), table.filled("event")
    position = np.stack([table.numbers("xpos"), table.numbers("ypos")], axis=1)
    for row, name in enumerate(event):
        if name == "scroll" and position[row, 1] < 0:
            raise table.fail(row, "ypos", "a scroll offset must not be negative", "negative value")
    order = np.argsort(time, kind="stable")
    return MouseLog(
        time=time[order],
        position=position[order],
        event=tuple(event[i] for i in order),
        xpath=tuple(table.texts["xpath"][i] for i in order),
    )


# XML


def read_metadata(path: Path) -> tuple[str, int, tuple[int, int]]:
    """The query, the document's height, and the window's size, in CSS pixels.

    ``task`` is the query, with or without "batch_20_trial_3 | " before it; ``document`` is like "1403x2642", and
    ``window``, the browser's ``innerWidth`` and ``innerHeight``, like "1422x1137".
    """
    content = bytes_of(path)
    try:
        _refuse_declarations(path, content)
        root = ElementTree.fromstring(content)
    except (expat.ExpatError, ElementTree.ParseError, ValueError, LookupError) as error:
        if isinstance(error, BadTrial):
            raise
        raise BadTrial(f"{path}: not valid XML ({error})", "broken XML") from error
    task = _element(path, root, "task")
    query = task.rpartition("|")[2].strip()
    if not query:
        raise BadTrial(f"{path}, field 'task' = {task!r}: holds no query", "no query")
    document, window = (_size(path, root, name) for name in ("document", "window"))
    return query, document[1], window


def _size(path: Path, root: ElementTree.Element, name: str) -> tuple[int, int]:
    text = _element(path, root, name)
    size = re.fullmatch(r"(\d{1,6})\s*x\s*(\d{1,6})", text)
    if size is None or int(size[1]) == 0 or int(size[2]) == 0:
        raise BadTrial(f"{path}, field {name!r} = {text!r}: must be like 1422x1137", f"no {name} size")
    return int(size[1]), int(size[2])


def _refuse_declarations(path: Path, content: bytes) -> None:
    """A document type can make a small file expand without end, or read other files; no trial needs one."""

    def refuse(*_: object) -> None:
        raise BadTrial(f"{path}: holds a document type (DTD); remove it", "broken XML")

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    parser.Parse(content, True)


def _element(path: Path, root: ElementTree.Element, name: str) -> str:
    text = root.findtext(name)
    if text is None or not text.strip():
        raise BadTrial(f"{path}, field {name!r}: is missing or empty", "missing field")
    return text.strip()


# JSON


def read_organic(path: Path, size: tuple[int, int]) -> list[Aoi]:
    """Organic results by rank; those of the same rank in the order of the file."""
    aois = []
    for field, entry in _entries(path, _json_of(path), "organic"):
        rank = _number(path, entry, field, "rank")
        if rank < 1 or rank % 1:
            raise BadTrial(f"{path}, field '{field}.rank' = {rank!r}: must be a whole number from 1", "bad rank")
        x0, y0, x1, y1 = (_number(path, entry, field, name) for name in ("x_left", "y_top", "x_right", "y_bot"))
        aois.append(Aoi("organic", int(rank), _box(path, field, (x0, y0, x1, y1), size)))
    return sorted(aois, key=lambda aoi: aoi.rank)


def read_ads(path: Path, size: tuple[int, int]) -> list[Aoi]:
    """Ads in the order of ``ADS``, then of the file."""
    data = _json_of(path)
    aois = []
    for kind in ADS:
        for field, entry in _entries(path, data, kind):
            place, extent = (_part(path, entry, field, name) for name in ("location", "size"))
            x, y = (_number(path, place, f"{field}.location", name) for name in "xy")
            width, height = (_number(path, extent, f"{field}.size", name) for name in ("width", "height"))
            aois.append(Aoi(kind, 0, _box(path, field, (x, y, x + width, y + height), size)))
    return aois


def _json_of(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(bytes_of(path).decode("utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadTrial(f"{path}: not valid JSON ({error})", "broken JSON") from error
    if not isinstance(data, dict):
        raise BadTrial(f"{path}: must hold an object", "broken JSON")
    return data


def _entries(path: Path, data: dict[str, Any], name: str) -> list[tuple[str, dict[str, Any]]]:
    """The objects of a list, each with its name in messages."""
    if name not in data:
        raise BadTrial(f"{path}, field {name!r}: is missing", "missing field")
    entries = data[name]
    if not isinstance(entries, list):
        raise BadTrial(f"{path}, field {name!r}: must be a list", "wrong type")
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise BadTrial(f"{path}, field '{name}[{i}]': must be an object", "wrong type")
    return [(f"{name}[{i}]", entry) for i, entry in enumerate(entries)]


def _part(path: Path, entry: dict[str, Any], field: str, name: str) -> dict[str, Any]:
    value = entry.get(name)
    if not isinstance(value, dict):
        problem, reason = ("is missing", "missing field") if name not in entry else ("must be an object", "wrong type")
        raise BadTrial(f"{path}, field '{field}.{name}': {problem}", reason)
    return value


def _number(path: Path, entry: dict[str, Any], field: str, name: str) -> float:
    if name not in entry:
        raise BadTrial(f"{path}, field '{field}.{name}': is missing", "missing field")
    value = entry[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadTrial(f"{path}, field '{field}.{name}' = {value!r}: is not a number", "not a number")
    return float(value)


def _box(
    path: Path, field: str, box: tuple[float, float, float, float], size: tuple[int, int]
) -> tuple[float, float, float, float]:
    """The box, cut at the screenshot's edges."""
    x0, y0, x1, y1 = box
    if x1 <= x0 or y1 <= y0:
        raise BadTrial(f"{path}, field '{field}' = {box}: the box has no area", "box without area")
    (width, height), slack = size, BOX_TOLERANCE
    if min(x0, y0) < -slack or x1 > width + slack or y1 > height + slack:
        problem = f"the box reaches off the screenshot of {width}×{height}"
        raise BadTrial(f"{path}, field '{field}' = {box}: {problem}", "box off the page")
    return max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))


# PNG


def check_screenshot(path: Path) -> tuple[int, int]:
    """Width and height of a screenshot whose file is whole; pixels are decoded only when the page is drawn."""
    if not path.is_file():
        raise BadTrial(f"{path}: not found", "missing file")
    try:
        with Image.open(path, formats=["PNG"]) as image:
            size = image.size
            image.verify()
    except IMAGE_ERRORS as error:
        raise bad_image(path, error) from error
    if size[0] != SCREENSHOT_WIDTH:
        problem = f"the screenshot is {size[0]} pixels wide, must be {SCREENSHOT_WIDTH}"
        raise BadTrial(f"{path}: {problem}", "screenshot of another width")
    return size


IMAGE_ERRORS = (OSError, SyntaxError, ValueError, struct.error, zlib.error, Image.DecompressionBombError)
"""What Pillow raises on a file that is no whole PNG."""


def bad_image(path: Path, error: Exception) -> BadTrial:
    """The error about a screenshot that Pillow cannot read."""
    return BadTrial(f"{path}: not readable as a PNG image ({error})", "broken image")
