"""Ways to spoil a folder of files, drawn by hypothesis: bytes, types, sizes, encodings, links."""

import csv
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

ODD_VALUES: tuple[Any, ...] = (None, -1, 0, 1.5, True, "", "x", [], {}, [1], 10**9, 1e308, "NaN", "../x")
ODD_FIELDS = ("", "NaN", "-1", "1e999", "0x10", "١", "=1+1", "\x1b[31m", "a\nb", "x" * 200_000, "9" * 400, "NA", "1.0")
DEEP = "[" * 30_000
Draw = Callable[[Any], Any]


def files_of(folder: Path) -> list[Path]:
    """All files below, in order."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def spoil(draw: Draw, folder: Path) -> str:
    """Spoil one file of a folder in one way; says which and how."""
    path = draw(st.sampled_from(files_of(folder)))
    kinds = dict(ANY)
    if path.suffix == ".json":
        kinds |= {"odd value": _odd_json, "nested": lambda draw, path: path.write_text(DEEP)}
    if path.suffix == ".csv":
        kinds |= {"odd field": _odd_field, "odd column": _odd_column}
    name = draw(st.sampled_from(sorted(kinds)))
    kinds[name](draw, path)
    return f"{path.relative_to(folder)}: {name}"


def _place(draw: Draw, size: int) -> int:
    # Headers and first lines are as likely as all the rest.
    return draw(st.integers(0, min(size, 200)) | st.integers(0, size))


def _flip(draw: Draw, path: Path) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(draw(st.integers(1, 3))):
        at = _place(draw, max(len(data) - 1, 0))
        data[at : at + 1] = bytes([draw(st.integers(0, 255))])
    path.write_bytes(bytes(data))


def _cut(draw: Draw, path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: _place(draw, len(data))])


def _insert(draw: Draw, path: Path) -> None:
    data = path.read_bytes()
    at = _place(draw, len(data))
    path.write_bytes(data[:at] + draw(st.binary(max_size=20)) + data[at:])


def _repeat(draw: Draw, path: Path) -> None:
    data = path.read_bytes()
    at = _place(draw, len(data))
    path.write_bytes(data[:at] + data[at : at + 4000] * 2 + data[at + 4000 :])


def _recode(draw: Draw, path: Path) -> None:
    text = path.read_bytes().decode("latin-1")
    path.write_bytes(text.encode(draw(st.sampled_from(["utf-16", "utf-32", "utf-8", "utf-7"]))))


def _instead(make: Callable[[Path], object]) -> Callable[[Draw, Path], None]:
    def change(_: Draw, path: Path) -> None:
        path.unlink()
        make(path)

    return change


ANY: dict[str, Callable[[Draw, Path], Any]] = {
    "flipped bytes": _flip,
    "cut": _cut,
    "inserted bytes": _insert,
    "repeated bytes": _repeat,
    "another encoding": _recode,
    "empty": lambda _, path: path.write_bytes(b""),
    "zeros": lambda _, path: path.write_bytes(bytes(5000)),
    "gone": _instead(lambda path: None),
    "a folder": _instead(Path.mkdir),
    "a pipe": _instead(os.mkfifo),
    "a device": _instead(lambda path: path.symlink_to("/dev/zero")),
    "a link to nothing": _instead(lambda path: path.symlink_to("nowhere")),
    "a link to itself": _instead(lambda path: path.symlink_to(path.name)),
}


def _odd_json(draw: Draw, path: Path) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    holder, key = draw(st.sampled_from(list(_nodes(content))[:400]))
    holder[key] = draw(st.sampled_from(ODD_VALUES))
    path.write_text(json.dumps(content), encoding="utf-8")


def _nodes(value: Any) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        yield value, key
        yield from _nodes(child)


def _rows(path: Path) -> list[list[str]]:
    return list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"))))


def _write(path: Path, rows: list[list[str]]) -> None:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    path.write_text(out.getvalue(), encoding="utf-8")


def _odd_field(draw: Draw, path: Path) -> None:
    rows = _rows(path)
    row = draw(st.sampled_from(rows))
    row[draw(st.integers(0, len(row) - 1))] = draw(st.sampled_from(ODD_FIELDS))
    _write(path, rows)


def _odd_column(draw: Draw, path: Path) -> None:
    rows = _rows(path)
    column, odd = draw(st.integers(0, len(rows[0]) - 1)), draw(st.sampled_from([f for f in ODD_FIELDS if len(f) < 500]))
    for row in rows[1:]:
        row[column] = odd
    _write(path, rows)


# What says the same


def _bom(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())


def _crlf(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))


def _quoted(path: Path) -> None:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows(_rows(path))
    path.write_text(out.getvalue(), encoding="utf-8")


def _moved(path: Path) -> None:
    elsewhere = path.parent.parent / f"kept-{path.parent.name}-{path.name}"
    shutil.move(path, elsewhere)
    path.symlink_to(elsewhere)


def _further_column(path: Path) -> None:
    head, *rows = _rows(path)
    _write(path, [[*head, "further"], *([*row, "?"] for row in rows)])


SAME: dict[str, tuple[str, Callable[[Path], None]]] = {
    # name: (ending of the files that it is for, what is done)
    "a byte order mark": (".csv", _bom),
    "ends of lines as on Windows": (".csv", _crlf),
    "everything quoted": (".csv", _quoted),
    "a further column": (".csv", _further_column),
    "a file elsewhere": ("", _moved),
}
