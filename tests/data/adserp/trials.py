"""Trials of AdSERP written by hand: a small result page, and what a test wants done on it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from fixate_jax.data.readers.adserp.files import FOLDERS, file_of

TRIAL = "p004-b1-t3"
Event = tuple[int, float, float, str, str]
Box = tuple[float, float, float, float]

# On a page of 1280×2000 px, of which 1,024 are seen at once. 711 CSS px are 640 px, so offset 711 shows 640 to 1664:
# results 3 and 4 alone. From the top 1 to 3 are seen.
ORGANIC: tuple[Box, ...] = (
    (100, 100, 700, 200),
    (100, 300, 700, 400),
    (100, 700, 700, 800),
    (100, 1100, 700, 1200),
)
RIGHT: tuple[Box, ...] = ((800, 100, 1100, 500),)
LOAD: Event = (1000, 0, 0, "load", "/")
# 180, 135 px on the page: result 1.
CLICK: Event = (5000, 200, 150, "click", "//*[@id='rcnt']")
ON_FIRST = (3000, 400, 150, 200)
"""A fixation on result 1."""


@lru_cache
def png(width: int, height: int) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (width, height), (250, 250, 250)).save(buffer, format="PNG")
    return buffer.getvalue()


def scroll(time: int, offset: float) -> Event:
    return time, 0, offset, "scroll", "/"


def write_participants(folder: Path, names: Iterable[str] = ("p004",)) -> None:
    header = "participant_id,gender,age,english,education,pref_device,pref_website,online_shopping_freq"
    rows = [f"{name},Female,40,Advanced,Graduate,Computers or laptops,Amazon,Monthly" for name in names]
    (folder / "participants.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")


def write_trial(
    folder: Path,
    trial_id: str = TRIAL,
    *,
    events: Sequence[Event] = (LOAD, CLICK),
    fixations: Sequence[tuple[float, float, float, float]] = (ON_FIRST,),
    organic: Sequence[Box] | None = ORGANIC,
    ads: Mapping[str, Sequence[Box]] | None = None,
    height: int = 2000,
    task: str = "batch_20_trial_3 | buy-oil-filter",
    window: str = "1422x1137",
) -> Path:
    """Write the files of a trial, and participants.csv if it is not there; returns the folder.

    Without ``organic`` there is no folder for the places of results, as in the published files.
    """
    for kind, (name, _) in FOLDERS.items():
        if kind == "organic" and organic is None:
            continue
        (folder / name).mkdir(parents=True, exist_ok=True)
    if not (folder / "participants.csv").exists():
        write_participants(folder)
    file_of(folder, "screenshot", trial_id).write_bytes(png(1280, height))
    document = f"1403x{round(height * 1422 / 1280)}"
    xml = f"<data>\n <window>{window}</window>\n <document>{document}</document>\n <task>{task}</task>\n</data>\n"
    file_of(folder, "metadata", trial_id).write_text(xml, encoding="utf-8")
    _csv(file_of(folder, "fixations", trial_id), "timestamp,FPOGX,FPOGY,FPOGD", fixations)
    _csv(file_of(folder, "mouse", trial_id), "timestamp,xpos,ypos,event,xpath", events)
    corners = ("x_left", "y_top", "x_right", "y_bot")
    if organic is not None:
        results = [
            {"rank": i, "title": f"Title {i}", "site": f"site{i}.example"} | dict(zip(corners, box, strict=True))
            for i, box in enumerate(organic, start=1)
        ]
        dump(file_of(folder, "organic", trial_id), {"organic": results})
    boxes = {"native_ad": (), "dd_top": (), "dd_right": ()} | dict({"dd_right": RIGHT} if ads is None else ads)
    dump(file_of(folder, "ads", trial_id), {kind: [_ad(box) for box in boxes[kind]] for kind in boxes})
    return folder


def dump(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data), encoding="utf-8")


def _ad(box: Box) -> dict[str, dict[str, float]]:
    x0, y0, x1, y1 = box
    return {"location": {"x": x0, "y": y0}, "size": {"width": x1 - x0, "height": y1 - y0}}


def _csv(path: Path, header: str, rows: Iterable[Sequence[object]]) -> None:
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n", encoding="utf-8")
