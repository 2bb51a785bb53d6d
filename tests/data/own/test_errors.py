"""Bad files and rows: one error that names file, line and field, or left out and counted with what needs them."""

import shutil
from pathlib import Path

import pytest

from fixate_jax.data.options import DataConfig
from fixate_jax.data.registry import open_or_prepare
from fixate_jax.errors import ConfigError, DataError
from tests.data.own.folder import (
    Spoil,
    Tables,
    add_column,
    cut,
    drop_column,
    empty_image,
    half,
    own_folder,
    put,
    repeat,
)

SKIP = "--data.on-bad-row skip"
BAD_SLOT, BAD_GAZE = {"session on a page with a bad slot": 4}, {"session with a bad row of gaze": 1}
BAD_PAGE = {"session on a page that was left out": 4}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stores go below the current folder."""
    monkeypatch.chdir(tmp_path)


def config(path: Path, **changes: object) -> DataConfig:
    return DataConfig(name="own", path=path, page_width=64, **changes)  # type: ignore[arg-type]


def rename_page(path: Path, content: Tables) -> None:
    """A session on a page that slots.csv does not know, though the image is there."""
    (path / "pages" / "d.png").write_bytes((path / "pages" / "a.png").read_bytes())
    put("sessions.csv", 3, page="d.png")(path, content)


def title(n: int) -> str:
    return "many" if n == 4 else str(n)


DWELL: dict[str, tuple[Spoil, str, dict[str, int]]] = {
    # name: (what is spoilt, the message, what "skip" counts)
    "session without id": (
        put("sessions.csv", 3, session_id=""),
        r"sessions\.csv, line 3, field 'session_id' = '': is empty; fill it in",
        # Gaze of s1 is nobody's then.
        {"sessions.csv: missing value": 1, "dwell.csv: unknown session": 3},
    ),
    "session without user": (
        put("sessions.csv", 3, user_id=""),
        r"sessions\.csv, line 3, field 'user_id' = '': is empty",
        {"sessions.csv: missing value": 1},
    ),
    "repeated session": (
        repeat("sessions.csv", 5),
        r"sessions\.csv, line 5, field 'session_id' = 's3': is given twice",
        {"sessions.csv: repeated row": 2},
    ),
    "page without slots": (
        rename_page,
        r"sessions\.csv, line 3, field 'page' = 'd\.png': has no slots in slots\.csv",
        {"sessions.csv: page without slots": 1},
    ),
    "page that is not there": (
        put("sessions.csv", 3, page="z.png"),
        r"sessions\.csv, line 3, field 'page' = 'z\.png': has no slots in slots\.csv",
        {"sessions.csv: page without slots": 1},
    ),
    "click": (
        put("sessions.csv", 3, click="D"),
        r"sessions\.csv, line 3, field 'click' = 'D': is no label of the page's slots",
        {"sessions.csv: click on no slot": 1},
    ),
    "split": (
        put("sessions.csv", 3, split="dev"),
        r"sessions\.csv, line 3, field 'split' = 'dev': must be one of train, validation, test",
        {"sessions.csv: unknown split": 1},
    ),
    "no split": (
        put("sessions.csv", 3, split=""),
        r"sessions\.csv, line 3, field 'split' = '': is empty",
        {"sessions.csv: missing value": 1},
    ),
    "session cut short": (
        cut("sessions.csv", 3),
        r"sessions\.csv, line 3: has another number of fields than the header",
        {"sessions.csv: wrong number of fields": 1, "dwell.csv: unknown session": 3},
    ),
    "no label": (
        put("slots.csv", 3, label=""),
        r"slots\.csv, line 3, field 'label' = '': is empty",
        {"slots.csv: missing value": 1, **BAD_SLOT},
    ),
    "edge is text": (
        put("slots.csv", 3, x1="right"),
        r"slots\.csv, line 3, field 'x1' = 'right': is not a number",
        {"slots.csv: not a number": 1, **BAD_SLOT},
    ),
    "edge is NaN": (
        put("slots.csv", 3, y0="nan"),
        r"slots\.csv, line 3, field 'y0' = 'nan': is empty",
        {"slots.csv: missing value": 1, **BAD_SLOT},
    ),
    "repeated slot": (
        repeat("slots.csv", 3),
        r"slots\.csv, line 3, field 'label' = 'B': \(page, label\) is given twice",
        {"slots.csv: repeated row": 2, **BAD_SLOT},
    ),
    "no width": (
        put("slots.csv", 3, x1="100"),
        r"slots\.csv, line 3, field 'x1' = '100': must be above x0",
        {"slots.csv: box without area": 1, **BAD_SLOT},
    ),
    "upside down": (
        put("slots.csv", 3, y0="100", y1="0"),
        r"slots\.csv, line 3, field 'y1' = '0': must be above y0",
        {"slots.csv: box without area": 1, **BAD_SLOT},
    ),
    "off the page": (
        put("slots.csv", 6, x1="202"),
        r"slots\.csv, line 6, field 'x1' = '202': is off the screenshot of 200 × 100 pixels",
        {"box off the screenshot": 1, **BAD_PAGE},
    ),
    "above the page": (
        put("slots.csv", 6, y0="-1.5"),
        r"slots\.csv, line 6, field 'y0' = '-1.5': is off the screenshot",
        {"box off the screenshot": 1, **BAD_PAGE},
    ),
    "beside the page": (
        put("slots.csv", 6, x0="200", x1="201"),
        r"slots\.csv, line 6, field 'x1' = '201': is off the screenshot",
        {"box off the screenshot": 1, **BAD_PAGE},
    ),
    "feature is text": (
        put("slots.csv", 3, price="cheap"),
        r"slots\.csv, line 3, field 'price' = 'cheap': is not a number",
        {"slots.csv: not a number": 1, **BAD_SLOT},
    ),
    "feature is infinite": (
        put("slots.csv", 3, price="inf"),
        r"slots\.csv, line 3, field 'price' = 'inf': is not a number",
        {"slots.csv: not a number": 1, **BAD_SLOT},
    ),
    "feature is missing": (
        put("slots.csv", 3, price=""),
        r"slots\.csv, line 3, field 'price' = '': is empty",
        {"slots.csv: missing value": 1, **BAD_SLOT},
    ),
    "one of a column of numbers is a text": (
        add_column("slots.csv", "rank", title),
        r"slots\.csv, line 6, field 'rank' = 'many': is not a number",
        {"slots.csv: not a number": 1, **BAD_SLOT},
    ),
    "missing image": (
        lambda path, _: (path / "pages" / "b.jpg").unlink(),
        r"slots\.csv, line 5, field 'page' = 'b\.jpg': no such PNG or JPEG file in .*pages",
        {"slots.csv: missing image": 3, **BAD_SLOT},
    ),
    "image without bytes": (
        empty_image,
        r"pages/b\.jpg: not readable as a PNG or JPEG image",
        {"broken image": 1, **BAD_PAGE},
    ),
    "truncated JPEG": (
        half("b.jpg"),
        r"pages/b\.jpg: not readable as a PNG or JPEG image \(.*trunc.*\); save it again",
        {"broken image": 1, **BAD_PAGE},
    ),
    "truncated PNG": (
        half("c.png"),
        r"pages/c\.png: not readable as a PNG or JPEG image \(.*trunc.*\); save it again",
        {"broken image": 1, **BAD_PAGE},
    ),
    "dwell is text": (
        put("dwell.csv", 6, fixation_ms="long"),
        r"dwell\.csv, line 6, field 'fixation_ms' = 'long': is not a number",
        {"dwell.csv: not a number": 1, **BAD_GAZE},
    ),
    "dwell is NaN": (
        put("dwell.csv", 6, fixation_ms="NaN"),
        r"dwell\.csv, line 6, field 'fixation_ms' = 'NaN': is empty",
        {"dwell.csv: missing value": 1, **BAD_GAZE},
    ),
    "dwell is infinite": (
        put("dwell.csv", 6, fixation_ms="inf"),
        r"dwell\.csv, line 6, field 'fixation_ms' = 'inf': is not a number",
        {"dwell.csv: not a number": 1, **BAD_GAZE},
    ),
    "negative dwell": (
        put("dwell.csv", 6, fixation_ms="-1"),
        r"dwell\.csv, line 6, field 'fixation_ms' = '-1': must not be negative",
        {"dwell.csv: negative dwell": 1, **BAD_GAZE},
    ),
    "negative cursor": (
        add_column("dwell.csv", "cursor_ms", lambda n: "-5" if n == 4 else "5"),
        r"dwell\.csv, line 6, field 'cursor_ms' = '-5': must not be negative",
        {"dwell.csv: negative dwell": 1, **BAD_GAZE},
    ),
    "dwell of no session": (
        put("dwell.csv", 6, session_id="s99"),
        r"dwell\.csv, line 6, field 'session_id' = 's99': is no session of sessions\.csv",
        {"dwell.csv: unknown session": 1},
    ),
    "dwell on no slot": (
        put("dwell.csv", 6, label="Z"),
        r"dwell\.csv, line 6, field 'label' = 'Z': is no label of the session's page in slots\.csv",
        {"dwell.csv: unknown label": 1, **BAD_GAZE},
    ),
    "dwell without label": (
        put("dwell.csv", 6, label=""),
        r"dwell\.csv, line 6, field 'label' = '': is empty",
        {"dwell.csv: missing value": 1, **BAD_GAZE},
    ),
    "repeated dwell": (
        repeat("dwell.csv", 6),
        r"dwell\.csv, line 6, field 'label' = 'B': \(session_id, label\) is given twice",
        {"dwell.csv: repeated row": 2, **BAD_GAZE},
    ),
}
FIXATIONS: dict[str, tuple[Spoil, str, dict[str, int]]] = {
    "place is text": (
        put("fixations.csv", 6, x="left"),
        r"fixations\.csv, line 6, field 'x' = 'left': is not a number",
        {"fixations.csv: not a number": 1, **BAD_GAZE},
    ),
    "place is missing": (
        put("fixations.csv", 6, y=""),
        r"fixations\.csv, line 6, field 'y' = '': is empty",
        {"fixations.csv: missing value": 1, **BAD_GAZE},
    ),
    "negative duration": (
        put("fixations.csv", 6, duration_ms="-80"),
        r"fixations\.csv, line 6, field 'duration_ms' = '-80': must not be negative",
        {"fixations.csv: negative duration": 1, **BAD_GAZE},
    ),
    "duration is NaN": (
        put("fixations.csv", 6, duration_ms="nan"),
        r"fixations\.csv, line 6, field 'duration_ms' = 'nan': is empty",
        {"fixations.csv: missing value": 1, **BAD_GAZE},
    ),
    "fixation of no session": (
        put("fixations.csv", 6, session_id="s99"),
        r"fixations\.csv, line 6, field 'session_id' = 's99': is no session of",
        {"fixations.csv: unknown session": 1},
    ),
}
CASES = {("dwell", name): case for name, case in DWELL.items()} | {("fixations", k): c for k, c in FIXATIONS.items()}


@pytest.mark.parametrize(("gaze", "name"), CASES)
def test_what_is_bad_is_named_or_left_out_and_counted(gaze: str, name: str, tmp_path: Path) -> None:
    spoil, message, counts = CASES[gaze, name]
    folder = own_folder(tmp_path / "mine", gaze=gaze, spoil=spoil)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=message) as caught:
        open_or_prepare(config(folder))
    assert str(folder) in str(caught.value)
    assert SKIP in str(caught.value)
    assert not list(Path("stores").glob("*"))
    store = open_or_prepare(config(folder, on_bad_row="skip"))
    assert dict(store.dropped) == counts
    # What is counted in sessions is what is missing; rows of other tables are counted beside it.
    lost = sum(n for reason, n in counts.items() if reason.startswith("session"))
    assert len(store.sessions) == 12 - (lost - (name == "repeated session"))


@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (drop_column("sessions.csv", "click"), r"sessions\.csv: columns click are missing; its header is 'session_id,"),
        (drop_column("slots.csv", "y1"), r"slots\.csv: columns y1 are missing"),
        (drop_column("dwell.csv", "label"), r"dwell\.csv: columns label are missing"),
        (put("slots.csv", 1, label=" label"), r"columns label are missing; .*; remove the spaces around the names"),
        (put("slots.csv", 1, price="x0"), r"slots\.csv: columns x0 are given twice"),
        # Nobody knows whose these are, so they cannot be left out with what needs them.
        (put("slots.csv", 3, page=""), r"slots\.csv, line 3, field 'page' = '': is empty; fill it in$"),
        (put("dwell.csv", 6, session_id=""), r"dwell\.csv, line 6, field 'session_id' = '': is empty; fill it in$"),
        (cut("slots.csv", 3), r"slots\.csv, line 3: has another number of fields than the header; fix the row$"),
        (cut("dwell.csv", 6), r"dwell\.csv, line 6: has another number of fields than the header; fix the row$"),
        (
            lambda path, _: (path / "fixations.csv").write_text("session_id,x,y,duration_ms\n"),
            r"both dwell\.csv and fixations\.csv are there; keep one of them",
        ),
        (lambda path, _: shutil.rmtree(path / "pages"), r"mine/pages: holds no PNG or JPEG file; put the screenshots"),
        (lambda _, content: content.update({"dwell.csv": []}), r"neither dwell\.csv nor fixations\.csv is there; give"),
        (
            lambda _, content: content.update({"dwell.csv": content["dwell.csv"][:1]}),
            r"dwell\.csv: holds no rows",
        ),
    ],
)
def test_what_no_skipping_mends(spoil: Spoil, message: str, on_bad_row: str, tmp_path: Path) -> None:
    folder = own_folder(tmp_path / "mine", spoil=spoil)
    with pytest.raises(DataError, match=message):
        open_or_prepare(config(folder, on_bad_row=on_bad_row))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace(b",", b";"), r"separate fields by commas, not semicolons, and write 0\.5, not 0,5"),
        (lambda text: text.replace(b",", b"\t"), r"separate fields by commas, not tabs"),
        (
            lambda text: text + "s99,Jürgen,a.png,A,train\n".encode("cp1252"),
            r"is not in UTF-8 .*; save it as CSV in UTF",
        ),
        (lambda text: b"", r"columns session_id, user_id, page, click are missing"),
        (lambda text: text.splitlines(keepends=True)[0], r"holds no rows"),
    ],
)
def test_what_spreadsheets_do_to_tables(change: object, message: str, tmp_path: Path) -> None:
    file = own_folder(tmp_path / "mine") / "sessions.csv"
    file.write_bytes(change(file.read_bytes()))  # type: ignore[operator]
    with pytest.raises(DataError, match=rf"sessions\.csv: .*{message}"):
        open_or_prepare(config(file.parent))


@pytest.mark.parametrize("name", ["sessions.csv", "slots.csv"])
def test_a_missing_table_is_named(name: str, tmp_path: Path) -> None:
    folder = own_folder(tmp_path / "mine")
    (folder / name).unlink()
    with pytest.raises(ConfigError, match=rf"{name} is not there; give the folder of own"):
        open_or_prepare(config(folder))


def test_where_nothing_is_left_the_reasons_are_told(tmp_path: Path) -> None:
    def spoil(path: Path, content: Tables) -> None:
        for line in range(2, 14):
            put("sessions.csv", line, click="D")(path, content)

    folder = own_folder(tmp_path / "mine", spoil=spoil)
    with pytest.raises(
        DataError, match=r"no session is left; left out by reason: \{'sessions.csv: click on no slot': 12"
    ):
        open_or_prepare(config(folder, on_bad_row="skip"))
