"""Text that leaves the program. A name that somebody gave to a person, a page or a file stays a name: it is no formula
in a spreadsheet, no command to a terminal, no link in a page."""

import re
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console

if TYPE_CHECKING:
    import pandas as pd

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""What moves a cursor, colours a terminal or turns the direction of writing; tabs and ends of lines are left."""
_MARKDOWN = re.compile(r"[\\`*\[\]<>|]")
_FORMULA = re.compile(r"\s*[=+\-@].")
_NUMBER = re.compile(r"\s*[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?\s*", re.IGNORECASE)


def visible(text: object) -> str:
    r"""A text with its control characters written out, as in ``\x1b[31m``."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], str(text))


def say(text: object, *, error: bool = False, wrap: bool = False) -> None:
    """Print a text as it is, on stderr if it is an error, broken to lines if wanted; none of it is taken for markup."""
    Console(stderr=error, soft_wrap=not wrap).print(visible(text), markup=False, highlight=False)


def markdown(text: object) -> str:
    """A text for a Markdown page, on one line, in which nothing is a link, a tag or the end of a table's cell."""
    return _MARKDOWN.sub(lambda found: f"\\{found[0]}", " ".join(visible(text).split()))


def code(text: object) -> str:
    """A text as code in a Markdown page or in a cell of one."""
    return f"`{visible(text).replace('`', chr(39)).replace('|', '/')}`"


def csv_text(frame: "pd.DataFrame") -> str:
    """A frame as CSV without its index. A text that a spreadsheet would take for a formula gets a ' before it, so that
    a name like "@bob" is "'@bob" there; Parquet files hold names as they are."""
    texts = frame.select_dtypes(exclude=["number", "bool"]).columns
    # As objects, so that whole numbers beside an empty cell stay whole.
    safe = {str(name): np.array([*map(_cell, frame[name]), None], object)[:-1] for name in texts}
    return frame.assign(**safe).rename(columns=_cell).to_csv(index=False)


def _cell(value: object) -> object:
    formula = isinstance(value, str) and _FORMULA.match(value) and not _NUMBER.fullmatch(value)
    return f"'{value}" if formula else value
