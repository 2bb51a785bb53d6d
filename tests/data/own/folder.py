"""A small folder of one's own data, and ways to spoil it.

Three pages of 200 × 100 pixels with slots A, B, C: A and B side by side, C within B. Two people see each page twice.
Sessions s0 to s5 are of user u1, the rest of u2; the page is a.png, b.jpg, c.png, a.png, …
"""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from PIL import Image

Tables = dict[str, list[list[str]]]
Spoil = Callable[[Path, Tables], None]
PAGES = ("a.png", "b.jpg", "c.png")
BOXES = {"A": (0, 0, 100, 100), "B": (100, 0, 200, 100), "C": (150, 50, 200, 100)}
SPLITS = ("train", "validation", "test")


def tables(gaze: Literal["dwell", "fixations"]) -> Tables:
    """The tables by file name, headers first."""
    slots = [
        [page, label, *map(str, box), str(10 * i)] for page in PAGES for i, (label, box) in enumerate(BOXES.items())
    ]
    sessions = [[f"s{i}", f"u{1 + i // 6}", PAGES[i % 3], "ABC"[i % 3], SPLITS[i % 3]] for i in range(12)]
    dwell = [[f"s{i}", label, str(100 * (n + 1) + i)] for i in range(12) for n, label in enumerate("ABC")]
    fixations = [[f"s{i}", x, "60", ms] for i in range(12) for x, ms in (("50", "100"), ("120", "200"), ("160", "300"))]
    return {
        "slots.csv": [["page", "label", "x0", "y0", "x1", "y1", "price"], *slots],
        "sessions.csv": [["session_id", "user_id", "page", "click", "split"], *sessions],
        "dwell.csv": [["session_id", "label", "fixation_ms"], *dwell],
        "fixations.csv": [["session_id", "x", "y", "duration_ms"], *fixations],
    } | {"fixations.csv" if gaze == "dwell" else "dwell.csv": []}


def own_folder(path: Path, *, gaze: Literal["dwell", "fixations"] = "dwell", spoil: Spoil | None = None) -> Path:
    """Write the folder; ``spoil`` changes it and the tables in place first. Returns the folder."""
    (path / "pages").mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(PAGES):
        Image.effect_noise((200, 100), 60 + i).convert("RGB").save(path / "pages" / name)
    content = tables(gaze)
    if spoil is not None:
        spoil(path, content)
    for name, rows in content.items():
        if rows:
            with (path / name).open("w", encoding="utf-8", newline="") as handle:
                csv.writer(handle, lineterminator="\n").writerows(rows)
    return path


def put(table: str, line: int, **values: str) -> Spoil:
    """Set fields of a line (1: the header, as an editor counts)."""

    def spoil(_: Path, content: Tables) -> None:
        rows = content[table]
        for column, value in values.items():
            rows[line - 1][rows[0].index(column)] = value

    return spoil


def drop_column(table: str, column: str) -> Spoil:
    """Remove a column."""

    def spoil(_: Path, content: Tables) -> None:
        place = content[table][0].index(column)
        for row in content[table]:
            del row[place]

    return spoil


def add_column(table: str, column: str, values: Callable[[int], str]) -> Spoil:
    """Add a column; ``values`` gives what stands in the n-th row, from 0."""

    def spoil(_: Path, content: Tables) -> None:
        header, *rows = content[table]
        header.append(column)
        for n, row in enumerate(rows):
            row.append(values(n))

    return spoil


def repeat(table: str, line: int) -> Spoil:
    """Give a line again at the end."""

    def spoil(_: Path, content: Tables) -> None:
        content[table].append(list(content[table][line - 1]))

    return spoil


def cut(table: str, line: int) -> Spoil:
    """Take the last field of a line away."""

    def spoil(_: Path, content: Tables) -> None:
        del content[table][line - 1][-1]

    return spoil


def empty_image(path: Path, _: Tables) -> None:
    """No image has no bytes."""
    (path / "pages" / "b.jpg").write_bytes(b"")


def half(name: str) -> Spoil:
    """Keep the first half of an image's bytes."""

    def spoil(path: Path, _: Tables) -> None:
        file = path / "pages" / name
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    return spoil
