"""The CSV files of RecGaze: read fast, checked row by row, each fault under its line and field.

The logs are read by pyarrow, only the columns that are used. A file that it does not take (a text among numbers, a row
longer or shorter than the header, an empty line) is read again by Python's own reader, which knows every row's line.
"""

import csv
from array import array
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.csv
from jaxtyping import Bool, Float, Integer

from fixate_jax.data.readers.recgaze.geometry import MOVIES
from fixate_jax.errors import DataError
from fixate_jax.runtime.files import require_ordinary

PUBLIC, NON_PUBLIC = "summary_feedback.csv", "non_public_feedback_dataset.csv"
ITEMS, USERS = "item_features.csv", "user_features.csv"
MISSING = ("", "NA", "N/A", "NaN", "nan", "<NA>", "None", "null")
"""What stands in a field without a value."""
MAX_TASK = 40
OnBadRow = Literal["error", "skip"]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Columns of a CSV file.

    Attributes:
        path: the file.
        lines: line of every row, the header being line 1.
        numbers: columns of numbers by name; NaN where there is none, infinite where it cannot be read as one.
        codes: columns of texts by name, each row an index into ``texts``, -1 where there is none.
        texts: the texts of every such column.
        odd: lines that are longer or shorter than the header; they are no rows here.
    """

    path: Path
    lines: Sequence[int]
    numbers: dict[str, Float[np.ndarray, " rows"]]
    codes: dict[str, Integer[np.ndarray, " rows"]]
    texts: dict[str, list[str]]
    odd: Sequence[int] = ()

    def __len__(self) -> int:
        return len(self.lines)

    def words(self, column: str) -> list[str]:
        """The texts of a column without blanks around them, empty where there is none."""
        known = [*(text.strip() for text in self.texts[column]), ""]
        return [known[code] for code in self.codes[column]]

    def error(self, row: int, column: str, wanted: str) -> DataError:
        """The error that names a row's line and field, with what stands there."""
        line = int(self.lines[row])
        fields: list[str] = []
        with self.path.open(encoding="utf-8-sig", errors="replace", newline="") as handle:
            header = next(csv.reader(handle))
        with self.path.open(encoding="utf-8-sig", errors="replace", newline="") as handle, suppress(csv.Error):
            fields = next(csv.reader(islice(handle, line - 1, line)), [])
        value = f" = {fields[header.index(column)]!r:.80}" if len(fields) == len(header) else ""
        return DataError(f"{self.path}, line {line}, field {column!r}{value}: {wanted}")


def read_table(path: Path, *, numbers: Sequence[str], texts: Sequence[str], gaps: Sequence[str] = MISSING) -> Table:
    """Read columns of a large file.

    Args:
        path: the file.
        numbers: columns of numbers.
        texts: columns of texts.
        gaps: what stands in a field without a text.

    Raises:
        DataError: when the file is not there, is no CSV, holds no rows or lacks a column.
    """
    _check_header(path, [*numbers, *texts])
    types = {name: pa.float64() for name in numbers} | {name: pa.dictionary(pa.int32(), pa.string()) for name in texts}
    try:
        found = pa.csv.read_csv(
            path,
            parse_options=pa.csv.ParseOptions(ignore_empty_lines=False),
            convert_options=pa.csv.ConvertOptions(
                column_types=types, include_columns=list(types), null_values=list(gaps), strings_can_be_null=True
            ),
        )
    except pa.ArrowInvalid:
        return read_small_table(path, numbers=numbers, texts=texts, gaps=gaps)
    if any(found.column(name).null_count for name in texts[:1]):
        return read_small_table(path, numbers=numbers, texts=texts, gaps=gaps)  # An empty line looks like that.
    if not len(found):
        raise DataError(f"{path}: holds no rows")
    found = found.unify_dictionaries()
    codes, words = dict[str, np.ndarray](), dict[str, list[str]]()
    for name in texts:
        column = found.column(name)
        words[name] = column.chunk(0).dictionary.to_pylist()
        codes[name] = pa.chunked_array([part.indices.fill_null(-1) for part in column.chunks]).to_numpy()
    return Table(
        path=path,
        lines=range(2, 2 + len(found)),
        numbers={name: found.column(name).to_numpy() for name in numbers},
        codes=codes,
        texts=words,
    )


def read_small_table(
    path: Path, *, numbers: Sequence[str], texts: Sequence[str], gaps: Sequence[str] = MISSING
) -> Table:
    """Like :func:`read_table`, slower and whatever the rows hold.

    Raises:
        DataError: when the file is not there, is no CSV, holds no rows or lacks a column.
    """
    header = _check_header(path, [*numbers, *texts])
    places = {name: header.index(name) for name in (*numbers, *texts)}
    lines, odd = array("q"), array("q")
    values = {name: array("d") for name in numbers}
    codes, words = {name: array("i") for name in texts}, {name: dict.fromkeys(gaps, -1) for name in texts}
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            reader = csv.reader(handle)
            next(reader)
            for row in reader:
                if len(row) != len(header):
                    if row:
                        odd.append(reader.line_num)
                    continue
                lines.append(reader.line_num)
                for name in numbers:
                    values[name].append(_number(row[places[name]]))
                for name in texts:
                    known = words[name]
                    codes[name].append(known.setdefault(row[places[name]], len(known) - len(gaps)))
    except (csv.Error, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable as CSV ({error})") from error
    if not lines and not odd:
        raise DataError(f"{path}: holds no rows")
    return Table(
        path=path,
        lines=lines,
        numbers={name: np.frombuffer(values[name], np.float64) for name in numbers},
        codes={name: np.frombuffer(codes[name], np.int32) for name in texts},
        texts={name: list(words[name])[len(gaps) :] for name in texts},
        odd=odd,
    )


def _check_header(path: Path, columns: Sequence[str]) -> list[str]:
    require_ordinary(path, DataError)
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            header = next(csv.reader(handle), [])
    except FileNotFoundError:
        raise DataError(f"{path}: not found; data.path must be the folder of RecGaze") from None
    except (csv.Error, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable as CSV ({error})") from error
    missing = [column for column in columns if column not in header]
    if missing:
        raise DataError(f"{path}: columns {', '.join(missing)} are missing")
    repeated = [column for column in columns if header.count(column) > 1]
    if repeated:
        raise DataError(f"{path}: columns {', '.join(repeated)} are given twice; keep one of each")
    return header


def _number(text: str) -> float:
    if text in MISSING:
        return np.nan
    try:
        return np.inf if "_" in text else float(text)
    except ValueError:
        return np.inf


class Sieve:
    """Holds the rules of a table against its rows: a bad one stops everything, or is left out and counted.

    Attributes:
        table: the table.
        good: rows that no rule has left out; clear a row here to leave it out silently.
    """

    def __init__(self, table: Table, *, on_bad_row: OnBadRow, dropped: dict[str, int]) -> None:
        self.table, self.good = table, np.ones(len(table), bool)
        self._on_bad_row, self._dropped = on_bad_row, dropped
        if table.odd and on_bad_row == "error":
            raise DataError(f"{table.path}, line {table.odd[0]}: has another number of fields than the header; {_FIX}")
        if table.odd:
            self._count("wrong number of fields", len(table.odd))

    def refuse(self, bad: Bool[np.ndarray, " rows"], *, column: str, reason: str, wanted: str) -> None:
        """Leave rows out, or stop at the first.

        Args:
            bad: the rows; those left out before do not matter.
            column: the field to name.
            reason: what they are counted under.
            wanted: how the field should be, for the message.

        Raises:
            DataError: naming file, line and field, unless bad rows are to be skipped.
        """
        bad = bad & self.good
        if not bad.any():
            return
        if self._on_bad_row == "error":
            raise self.table.error(int(np.argmax(bad)), column, f"{wanted}; {_FIX}")
        self._count(reason, int(bad.sum()))
        self.good &= ~bad

    def refuse_texts(self) -> None:
        """Leave out rows with a text where a number should be."""
        for column, values in self.table.numbers.items():
            self.refuse(np.isinf(values), column=column, reason="not a number", wanted="is not a number")

    def refuse_missing(self, column: str, needed: Bool[np.ndarray, " rows"] | Literal[True] = True) -> None:
        """Leave out rows without a value, where one is needed."""
        numbers, codes = self.table.numbers, self.table.codes
        absent = codes[column] < 0 if column in codes else np.isnan(numbers[column])
        self.refuse(absent & needed, column=column, reason="missing value", wanted="is empty; fill it in")

    def refuse_outside(
        self, column: str, low: int, high: int, *, needed: Bool[np.ndarray, " rows"] | Literal[True] = True, reason: str
    ) -> None:
        """Leave out rows whose number is not whole or not from ``low`` to ``high``."""
        values = self.table.numbers[column]
        wanted = f"must be a whole number from {low} to {high}"
        bad = ~((values >= low) & (values <= high) & (np.floor(values) == values))
        self.refuse(bad & needed, column=column, reason=reason, wanted=wanted)

    def _count(self, reason: str, rows: int) -> None:
        self._dropped[reason] = self._dropped.get(reason, 0) + rows


_FIX = "fix the row or pass --data.on-bad-row skip"


def read_users(path: Path) -> list[str]:
    """The people of ``user_features.csv``.

    Raises:
        DataError: naming the line of a person without a name or given twice, or a column that is missing.
    """
    table = read_small_table(path, numbers=[], texts=["UserID", "Top_genre", "Preferred_genres"])
    no_odd_lines(table)
    codes = table.codes["UserID"]
    stop_at(table, codes < 0, "UserID", "is empty; fill it in")
    stop_at(table, _repeats(codes), "UserID", "is given twice")
    return [table.texts["UserID"][code] for code in codes]


def poster_code(carousel: Any, place: Any) -> Any:
    """Posters of a screen counted row by row from 0, given carousels and places from 1."""
    return (carousel - 1) * MOVIES + place - 1


def poster_of(code: int) -> tuple[int, int]:
    """Carousel and place of a poster."""
    return code // MOVIES + 1, code % MOVIES + 1


def _repeats(values: np.ndarray) -> Bool[np.ndarray, " rows"]:
    """Values that stand further up already."""
    _, first = np.unique(values, return_index=True)
    seen = np.ones(len(values), bool)
    seen[first] = False
    return seen


def stop_at(table: Table, bad: Bool[np.ndarray, " rows"], column: str, wanted: str) -> None:
    """Raise the error of the first bad row.

    Raises:
        DataError: naming file, line and field.
    """
    if bad.any():
        raise table.error(int(np.argmax(bad)), column, wanted)


def no_odd_lines(table: Table) -> None:
    """Stop at a line with more or fewer fields than the header.

    Raises:
        DataError: naming file and line.
    """
    if table.odd:
        raise DataError(f"{table.path}, line {table.odd[0]}: has another number of fields than the header")
