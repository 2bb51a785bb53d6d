"""What AdSERP's reader refuses: each bad file gives one error that names it, or is counted."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fixate_jax.data.readers.adserp.files import FOLDERS, file_of
from fixate_jax.data.readers.adserp.reader import read_adserp, source_files, trial_ids
from fixate_jax.errors import DataError
from tests.data.adserp.trials import TRIAL, dump, png, write_participants, write_trial

Spoil = Callable[[Path], object]
"""Spoils one file."""


def text(old: str, new: str) -> Spoil:
    def spoil(path: Path) -> None:
        content = path.read_text(encoding="utf-8")
        assert old in content
        path.write_text(content.replace(old, new, 1), encoding="utf-8")

    return spoil


def data(change: Callable[[Any], Any]) -> Spoil:
    """Changes what a JSON file holds in place, or gives what it is to hold."""

    def spoil(path: Path) -> None:
        content = json.loads(path.read_text(encoding="utf-8"))
        changed = change(content)
        dump(path, content if changed is None else changed)

    return spoil


def result(values: dict[str, Any]) -> Spoil:
    """Changes fields of the second organic result."""
    return data(lambda content: content["organic"][1].update(values))


def without(kind: str, place: int, name: str) -> Spoil:
    return data(lambda content: content[kind][place].pop(name) and None)


def content(new: bytes) -> Spoil:
    return lambda path: path.write_bytes(new)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


BOMB = b'<!DOCTYPE d [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><data><task>&b;</task><document>1x1</document></data>'
BAD: dict[str, tuple[str, Spoil, str, str]] = {
    # name: (kind of file, what is done to it, the message after the file's name, the reason in the counts)
    "no fixations": ("fixations", Path.unlink, ": not found", "missing file"),
    "no log": ("mouse", Path.unlink, ": not found", "missing file"),
    "no metadata": ("metadata", Path.unlink, ": not found", "missing file"),
    "no image": ("screenshot", Path.unlink, ": not found", "missing file"),
    "no results": ("organic", Path.unlink, ": not found", "missing file"),
    "no ads": ("ads", Path.unlink, ": not found", "missing file"),
    "no column": ("fixations", text("FPOGD", "FPOG"), ": columns FPOGD are missing", "missing column"),
    "column twice": ("fixations", text("FPOGD", "FPOGD,FPOGD"), ": columns FPOGD are given twice", "repeated column"),
    "no header": ("mouse", content(b""), ": columns timestamp, xpos, ypos, event, xpath are", "missing column"),
    "not text": ("mouse", content(b"\xff\xfe\x00"), ": not readable as CSV", "unreadable file"),
    "short row": ("fixations", text(",200", ""), ", line 2: has another number", "wrong number of fields"),
    "long row": ("fixations", text(",200", ",200,1"), ", line 2: has another number", "wrong number of fields"),
    "word": ("fixations", text("400", "left"), ", line 2, field 'FPOGX' = 'left': is not a number", "not a number"),
    "NaN": ("fixations", text(",200", ",NaN"), ", line 2, field 'FPOGD' = 'NaN': is not a number", "not a number"),
    "infinite": ("mouse", text("200,150", "200,inf"), ", line 3, field 'ypos' = 'inf': is not", "not a number"),
    "empty": ("fixations", text(",200", ","), ", line 2, field 'FPOGD' = '': is empty", "missing value"),
    "no event": ("mouse", text("click", ""), ", line 3, field 'event' = '': is empty", "missing value"),
    "negative": ("fixations", text(",200", ",-200"), ", line 2, field 'FPOGD' = '-200': must not", "negative value"),
    "before 1970": ("mouse", text("1000", "-1"), ", line 2, field 'timestamp' = '-1': must not", "negative value"),
    "half a ms": (
        "mouse",
        text("1000", "1000.5"),
        ", line 2, field 'timestamp' = '1000.5': must be",
        "no whole number",
    ),
    "scrolled up": (
        "mouse",
        text("0,0,load", "0,-9,scroll"),
        ", line 2, field 'ypos' = '-9': a scroll",
        "negative value",
    ),
    "broken XML": ("metadata", text("</data>", ""), ": not valid XML", "broken XML"),
    "empty XML": ("metadata", content(b""), ": not valid XML", "broken XML"),
    "entities": ("metadata", content(BOMB), ": holds a document type (DTD); remove it", "broken XML"),
    "no task": ("metadata", text("task>", "job>"), ": not valid XML", "broken XML"),
    "other task": (
        "metadata",
        content(b"<data><document>1x1</document></data>"),
        ", field 'task': is miss",
        "missing field",
    ),
    "no query": ("metadata", text("buy-oil-filter", ""), ", field 'task' = 'batch_20_trial_3 |': holds", "no query"),
    "no size": ("metadata", text("1403x", "wide"), ", field 'document' = 'wide2222': must be", "no document size"),
    "size 0": ("metadata", text("1403x2222", "1403x0"), ", field 'document' = '1403x0': must be", "no document size"),
    "no window": (
        "metadata",
        text("<window>1422x1137</window>", ""),
        ", field 'window': is missing",
        "missing field",
    ),
    "flat window": ("metadata", text("1422x1137", "1422x0"), ", field 'window' = '1422x0': must be", "no window size"),
    "broken JSON": ("organic", cut, ": not valid JSON", "broken JSON"),
    "a list": ("ads", content(b"[]"), ": must hold an object", "broken JSON"),
    "no list": ("organic", content(b"{}"), ", field 'organic': is missing", "missing field"),
    "no right ads": (
        "ads",
        data(lambda d: d.pop("dd_right") and None),
        ", field 'dd_right': is missing",
        "missing field",
    ),
    "an object": ("organic", content(b'{"organic": {}}'), ", field 'organic': must be a list", "wrong type"),
    "a number": ("organic", content(b'{"organic": [1]}'), ", field 'organic[0]': must be an object", "wrong type"),
    "no edge": ("organic", without("organic", 1, "y_bot"), ", field 'organic[1].y_bot': is missing", "missing field"),
    "no place": ("ads", without("dd_right", 0, "location"), ", field 'dd_right[0].location': is miss", "missing field"),
    "size a number": (
        "ads",
        data(lambda d: d["dd_right"][0].update(size=5)),
        ", field 'dd_right[0].size': must be an object",
        "wrong type",
    ),
    "edge a text": ("organic", result({"x_left": "7"}), ", field 'organic[1].x_left' = '7': is not", "not a number"),
    "edge true": ("organic", result({"x_left": True}), ", field 'organic[1].x_left' = True: is not", "not a number"),
    "edge NaN": ("organic", result({"x_left": float("nan")}), ", field 'organic[1].x_left' = nan: is", "not a number"),
    "rank 0": ("organic", result({"rank": 0}), ", field 'organic[1].rank' = 0.0: must be a whole", "bad rank"),
    "no area": (
        "organic",
        result({"x_right": 100}),
        ", field 'organic[1]' = (100.0, 300.0, 100.0,",
        "box without area",
    ),
    "upside down": ("organic", result({"y_bot": 200}), ", field 'organic[1]' = (100.0, 300.0", "box without area"),
    "no width": (
        "ads",
        data(lambda d: d["dd_right"][0]["size"].update(width=0)),
        ", field 'dd_right[0]' = (800.0, 100.0, 800.0, 500.0): the box has no area",
        "box without area",
    ),
    "off the left": ("organic", result({"x_left": -1.5}), ", field 'organic[1]' = (-1.5, 300.0", "box off the page"),
    "off the end": ("organic", result({"y_bot": 2001.5}), ", field 'organic[1]' = (100.0, 300.0", "box off the page"),
    "cut image": ("screenshot", cut, ": not readable as a PNG image", "broken image"),
    "half an image": (
        "screenshot",
        lambda path: path.write_bytes(path.read_bytes()[:400]),
        ": not readable as a PNG image",
        "broken image",
    ),
    "empty image": ("screenshot", content(b""), ": not readable as a PNG image", "broken image"),
    "no PNG": ("screenshot", content(b"GIF89a" + bytes(50)), ": not readable as a PNG image", "broken image"),
    "narrow image": (
        "screenshot",
        content(png(640, 2000)),
        ": the screenshot is 640 pixels wide, must be 1280",
        "screenshot of another width",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_named_or_its_trial_left_out_and_counted(name: str, tmp_path: Path) -> None:
    kind, spoil, message, reason = BAD[name]
    write_trial(tmp_path, "p004-b2-t1")
    file = file_of(write_trial(tmp_path), kind, TRIAL)
    spoil(file)
    with pytest.raises(DataError, match=re.escape(f"{file}{message}")) as caught:
        read_adserp(tmp_path)
    assert str(caught.value).endswith("; fix the file or pass --data.on-bad-row skip")
    data = read_adserp(tmp_path, on_bad_row="skip")
    assert data.dropped == {reason: 1} and list(data.sessions["session_id"]) == ["p004-b2-t1"]


def test_a_flipped_bit_in_an_image_is_found(tmp_path: Path) -> None:
    file = file_of(write_trial(tmp_path), "screenshot", TRIAL)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(DataError, match="not readable as a PNG image"):
        read_adserp(tmp_path)


def test_a_box_off_by_rounding_is_cut(tmp_path: Path) -> None:
    write_trial(tmp_path)
    result({"x_left": -0.7, "x_right": 1280.4})(file_of(tmp_path, "organic", TRIAL))
    assert read_adserp(tmp_path).sessions["boxes"].iloc[0][1] == (0, 300, 1280, 400)


def test_lines_are_counted_as_an_editor_counts_them(tmp_path: Path) -> None:
    file = file_of(write_trial(tmp_path), "fixations", TRIAL)
    text("\n", "\n\n")(file)
    text(",200", ",many")(file)
    with pytest.raises(DataError, match="line 3, field 'FPOGD'"):
        read_adserp(tmp_path)


@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
def test_what_no_skipping_mends(on_bad_row: Any, tmp_path: Path) -> None:
    def message() -> str:
        with pytest.raises(DataError) as caught:
            read_adserp(tmp_path, on_bad_row=on_bad_row)
        assert "on-bad-row" not in str(caught.value)
        return str(caught.value)

    assert "participants.csv: not found; data.path must be the folder of AdSERP" in message()
    write_trial(tmp_path)
    write_participants(tmp_path, ["p004", "p004"])
    assert "participants.csv, line 3, field 'participant_id' = 'p004': is given twice; fix the file" in message()
    write_participants(tmp_path)
    text("gender", "sex")(tmp_path / "participants.csv")
    assert "participants.csv: columns gender are missing; fix the file" in message()
    write_participants(tmp_path)
    odd = tmp_path / "fixation-data" / "trial7.csv"
    odd.write_text("")
    assert f"{odd}: is named after no trial such as p004-b1-t3" in message()
    odd.unlink()
    (tmp_path / "ad-boundary-data").rename(tmp_path / "ads")
    assert "ad-boundary-data: not found; data.path must be the folder of AdSERP" in message()


def test_the_raw_files_are_listed_whatever_else_is_there(tmp_path: Path) -> None:
    write_trial(tmp_path, "p004-b1-t10")
    write_trial(tmp_path)
    (tmp_path / "fixation-data" / "README.md").write_text("Notes")
    (tmp_path / "fixation-data" / "._p004-b1-t3.csv").write_text("left by a file manager")
    files = source_files(tmp_path)
    assert files[0] == tmp_path / "participants.csv" and len(files) == 1 + 2 * len(FOLDERS)
    assert [file.name for file in files[1:3]] == ["p004-b1-t3.xml", "p004-b1-t10.xml"]
    assert trial_ids(tmp_path) == ["p004-b1-t3", "p004-b1-t10"]
