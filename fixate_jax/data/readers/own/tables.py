"""Sessions and slots of one's own data, checked row by row.

A bad row stops everything, or is left out and counted together with the sessions that need it: those of its page, if
it is a slot's; its own, if it is one of gaze.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from fixate_jax.data.readers.own.files import PAGES, SESSIONS, SLOTS, read_header, same_text, screenshots
from fixate_jax.data.readers.recgaze.tables import OnBadRow, Sieve, Table, read_small_table
from fixate_jax.data.session import SPLITS
from fixate_jax.errors import DataError, did_you_mean

BOX = ("x0", "y0", "x1", "y1")
PROFILE = "The page shows several items, each with its label. The user picks one of them."
BAD_SLOT = "session on a page with a bad slot"


@dataclass(frozen=True, kw_only=True)
class Log:
    """What becomes of bad rows.

    Attributes:
        on_bad_row: stop at the first, or leave them out and count them.
        dropped: what was left out, by reason.
    """

    on_bad_row: OnBadRow
    dropped: Counter[str] = field(default_factory=Counter)

    def count(self, reason: str, rows: int) -> None:
        """Note that so many were left out."""
        if rows:
            self.dropped[reason] += rows


class Rules(Sieve):
    """Holds rules against a table; counts carry the name of its file."""

    def __init__(self, table: Table, log: Log) -> None:
        self._counts: dict[str, int] = {}
        self._log = log
        super().__init__(table, on_bad_row=log.on_bad_row, dropped=self._counts)

    def finish(self) -> Bool[np.ndarray, " rows"]:
        """Hand the counts on; the rows that are left."""
        for reason, rows in self._counts.items():
            self._log.count(f"{self.table.path.name}: {reason}", rows)
        return self.good

    def texts(self, column: str) -> list[str]:
        """Texts of a column, "" where there is none."""
        words = [*self.table.texts[column], ""]
        return [words[code] for code in self.table.codes[column]]

    def refuse_unknown(
        self, column: str, names: Sequence[str], known: Iterable[str], *, reason: str, wanted: str
    ) -> None:
        """Leave out rows whose name is not known, with the name that the first may have meant."""
        among = set(known)
        bad = np.array([name not in among for name in names], bool)
        first = next((name for name, is_bad, good in zip(names, bad, self.good, strict=True) if is_bad and good), "")
        self.refuse(bad, column=column, reason=reason, wanted=f"{wanted}{did_you_mean(first, among)}")

    def refuse_repeats(self, *columns: str) -> None:
        """Leave out rows that say the same in all these columns; which of them is right cannot be known."""
        codes = pd.DataFrame({column: self.table.codes[column] for column in columns})[self.good]
        bad = np.zeros(len(self.table), bool)
        bad[self.good] = codes.duplicated(keep=False)
        name = f"({', '.join(columns)})" if len(columns) > 1 else ""
        self.refuse(bad, column=columns[-1], reason="repeated row", wanted=f"{name} is given twice".strip())


def require_owner(table: Table, column: str) -> None:
    """Stop at a row that does not say whose it is: it could be anybody's, so nobody's data are whole without it.

    Raises:
        DataError: naming the line.
    """
    if table.odd:
        problem = "has another number of fields than the header"
        raise DataError(f"{table.path}, line {table.odd[0]}: {problem}; fix the row")
    empty = table.codes[column] < 0
    if empty.any():
        raise table.error(int(np.argmax(empty)), column, "is empty; fill it in")


@dataclass(frozen=True, kw_only=True, eq=False)
class Page:
    """The slots of a screenshot, in the order of the rows of ``slots.csv``.

    Attributes:
        labels: of the slots.
        boxes: x0, y0, x1, y1 of each, in pixels of the screenshot; whether they lie on it is not checked yet.
        features: what is displayed in each, as numbers.
        rows: where each stands in the table.
    """

    labels: tuple[str, ...]
    boxes: Float[np.ndarray, "slots 4"]
    features: Float[np.ndarray, "slots features"]
    rows: tuple[int, ...]

    def slot_of(self, label: str) -> int:
        """Index of the slot with this label, −1 if there is none."""
        return self.labels.index(label) if label in self.labels else -1


@dataclass(frozen=True, kw_only=True, eq=False)
class Slots:
    """What ``slots.csv`` says.

    Attributes:
        table: the table, to name its lines.
        pages: by name of the screenshot.
        broken: screenshots with a bad row.
        feature_names: columns of ``Page.features``.
    """

    table: Table
    pages: Mapping[str, Page]
    broken: frozenset[str]
    feature_names: tuple[str, ...]


def read_slots(path: Path, log: Log) -> Slots:
    """Read and check ``slots.csv``. A further column is a slot feature if most of what stands in it are numbers.

    Raises:
        DataError: naming file, line and field.
    """
    header = read_header(path / SLOTS, ["page", "label", *BOX])
    further = [name for name in header if name and name not in ("page", "label", *BOX)]
    table = read_small_table(path / SLOTS, numbers=[*BOX, *further], texts=["page", "label"], gaps=("",))
    features = tuple(name for name in further if _holds_numbers(table.numbers[name]))
    table = replace(table, numbers={name: table.numbers[name] for name in (*BOX, *features)})
    require_owner(table, "page")
    rules = Rules(table, log)
    page = np.array([same_text(name) for name in rules.texts("page")], object)
    images = {same_text(file.name) for file in screenshots(path)}
    if not images:
        raise DataError(f"{path / PAGES}: holds no PNG or JPEG file; put the screenshots there")
    wanted = f"no such PNG or JPEG file in {path / PAGES}; put it there, or give its name with the ending"
    rules.refuse_unknown("page", page.tolist(), images, reason="missing image", wanted=wanted)
    rules.refuse_texts()
    for name in ("label", *BOX, *features):
        rules.refuse_missing(name)
    rules.refuse_repeats("page", "label")
    for low, high in (("x0", "x1"), ("y0", "y1")):
        flat = table.numbers[high] <= table.numbers[low]
        rules.refuse(flat, column=high, reason="box without area", wanted=f"must be above {low}")
    broken = frozenset(page[~rules.finish()])
    return Slots(table=table, pages=_pages(table, page, features, broken), broken=broken, feature_names=features)


def _holds_numbers(values: Float[np.ndarray, " rows"]) -> bool:
    """Whether most of what stands in a column are numbers; what is none is then a mistake, not a title."""
    return bool(np.isfinite(values).sum() > np.isinf(values).sum())


def _pages(table: Table, names: np.ndarray, features: tuple[str, ...], broken: frozenset[str]) -> dict[str, Page]:
    boxes = np.stack([table.numbers[name] for name in BOX], axis=1)
    columns = np.zeros((len(table), len(features)))
    for place, name in enumerate(features):
        columns[:, place] = table.numbers[name]
    found = {}
    for name, rows in pd.Series(names).groupby(names, sort=False).indices.items():
        if name not in broken:
            found[name] = Page(
                labels=tuple(table.texts["label"][label] for label in table.codes["label"][rows]),
                boxes=boxes[rows],
                features=columns[rows],
                rows=tuple(rows.tolist()),
            )
    return found


def read_sessions(path: Path, slots: Slots, log: Log) -> tuple[pd.DataFrame, set[str]]:
    """Read and check ``sessions.csv``.

    Returns:
        The good rows, and the ids of all. Columns: ``session_id``, ``user_id``, ``page`` (name of the screenshot),
        ``click`` (index of the slot), ``profile``, ``split`` (None in all rows where the table has no such column).

    Raises:
        DataError: naming file, line and field.
    """
    needed = ["session_id", "user_id", "page", "click"]
    given = [name for name in read_header(path / SESSIONS, needed) if name in ("split", "profile")]
    rules = Rules(read_small_table(path / SESSIONS, numbers=[], texts=[*needed, *given], gaps=("",)), log)
    for name in (*needed, *(name for name in given if name == "split")):
        rules.refuse_missing(name)
    rules.refuse_repeats("session_id")
    frame = pd.DataFrame({name: rules.texts(name) for name in (*needed, *given)})
    frame["page"] = [same_text(name) for name in frame["page"]]
    on_broken = frame["page"].isin(slots.broken).to_numpy()
    wanted = f"has no slots in {SLOTS}; add a row for each"
    known_pages = [*slots.pages, *slots.broken]
    rules.refuse_unknown("page", list(frame["page"]), known_pages, reason="page without slots", wanted=wanted)
    log.count(BAD_SLOT, int((on_broken & rules.good).sum()))
    rules.good &= ~on_broken
    pages = [slots.pages.get(name) for name in frame["page"]]
    click = np.array([-1 if p is None else p.slot_of(c) for p, c in zip(pages, frame["click"], strict=True)], np.int64)
    wanted = f"is no label of the page's slots in {SLOTS}"
    rules.refuse(click < 0, column="click", reason="click on no slot", wanted=wanted)
    if "split" in given:
        unknown = ~frame["split"].isin(SPLITS).to_numpy()
        rules.refuse(unknown, column="split", reason="unknown split", wanted=f"must be one of {', '.join(SPLITS)}")
    known = set(frame["session_id"])
    frame = frame.assign(click=click, split=frame.get("split"), profile=frame.get("profile", ""))
    frame["profile"] = [text or PROFILE for text in frame["profile"]]
    return frame[rules.finish()].reset_index(drop=True), known
