"""Tables of an AdSERP trial: the texts of a CSV file, and its columns as checked numbers."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from fixate_jax.errors import DataError

_REMEDY = "fix the file or pass --data.on-bad-row skip"
_LARGEST = 2.0**53
"""Whole numbers up to here are exact in float64."""


class BadTrial(DataError):
    """A trial's files cannot be used.

    Attributes:
        problem: the message without what to do.
        reason: what such trials are counted under when they are left out.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(f"{message}; {_REMEDY}")
        self.problem = message
        self.reason = reason


def bytes_of(path: Path) -> bytes:
    """What a file holds.

    Raises:
        BadTrial: naming the file.
    """
    if path.exists() and not path.is_file():
        raise BadTrial(f"{path}: is no ordinary file", "unreadable file")
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise BadTrial(f"{path}: not found", "missing file") from None
    except OSError as error:
        raise BadTrial(f"{path}: not readable ({error})", "unreadable file") from error


class Table:
    """The texts of a CSV file by column, with their line numbers as an editor counts.

    Raises:
        BadTrial: naming the file, and the column or line.
    """

    def __init__(self, path: Path, columns: Sequence[str], *, commas_in: str | None = None) -> None:
        """Read the columns; ``commas_in`` is a last column whose texts may hold commas though nothing quotes them."""
        self.path = path
        try:
            reader = csv.reader(io.StringIO(bytes_of(path).decode("utf-8-sig"), newline=""))
            header = [name.strip() for name in next(reader, [])]
            rows = [(reader.line_num, row) for row in reader if row]
        except (csv.Error, UnicodeDecodeError) as error:
            raise BadTrial(f"{path}: not readable as CSV ({error})", "unreadable file") from error
        missing = [column for column in columns if column not in header]
        if missing:
            raise BadTrial(f"{path}: columns {', '.join(missing)} are missing", "missing column")
        if repeated := sorted({name for name in header if header.count(name) > 1}):
            raise BadTrial(f"{path}: columns {', '.join(repeated)} are given twice", "repeated column")
        if commas_in is not None and header[-1] == commas_in:
            n = len(header)
            rows = [(line, [*row[: n - 1], ",".join(row[n - 1 :])] if len(row) > n else row) for line, row in rows]
        for line, row in rows:
            if len(row) != len(header):
                problem = "has another number of fields than the header"
                raise BadTrial(f"{path}, line {line}: {problem}", "wrong number of fields")
        self.lines = [line for line, _ in rows]
        self.texts = {name: [row[i].strip() for _, row in rows] for i, name in enumerate(header)}

    def fail(self, row: int, column: str, wanted: str, reason: str) -> BadTrial:
        """The error about a field."""
        return BadTrial(
            f"{self.path}, line {self.lines[row]}, field {column!r} = {self.texts[column][row]!r}: {wanted}", reason
        )

    def filled(self, column: str) -> list[str]:
        """Texts of a column, none of them empty."""
        if "" in self.texts[column]:
            raise self.fail(self.texts[column].index(""), column, "is empty; fill it in", "missing value")
        return self.texts[column]

    def numbers(self, column: str) -> Float[np.ndarray, " rows"]:
        """A column of finite numbers."""
        values = np.empty(len(self.lines))
        for row, text in enumerate(self.texts[column]):
            try:
                values[row] = float(text)
            except ValueError:
                if text == "":
                    raise self.fail(row, column, "is empty; fill it in", "missing value") from None
                raise self.fail(row, column, "is not a number", "not a number") from None
        self._require(np.isfinite(values), column, "is not a number", "not a number")
        return values

    def not_negative(self, column: str) -> Float[np.ndarray, " rows"]:
        """A column of numbers from 0."""
        values = self.numbers(column)
        self._require(values >= 0, column, "must not be negative", "negative value")
        return values

    def whole(self, column: str) -> Int[np.ndarray, " rows"]:
        """A column of whole numbers from 0."""
        values = self.not_negative(column)
        good = (values % 1 == 0) & (values <= _LARGEST)
        self._require(good, column, "must be a whole number", "no whole number")
        return values.astype(np.int64)

    def _require(self, good: np.ndarray, column: str, wanted: str, reason: str) -> None:
        if not good.all():
            raise self.fail(int(np.argmin(good)), column, wanted, reason)
