"""Snack choices on grids of photographs (Thomas, Molter and Krajbich 2021, eLife 10:e57012).

Each person chose a snack on screens of 9, 16, 25 or 36 photographs, after rating all of them. A row of a table is a
screen, shown once to one person. Two layouts are read: that of the published repository (a clone of it, or its folder
``data``), whose gaze is in shares of the time until the choice, and one with a table ``trials_N.csv`` for each grid,
whose gaze is in ms. Items are counted from left to right and from top to bottom, from 0.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from fixate_jax.data.readers.recgaze.tables import OnBadRow, Sieve, Table, no_odd_lines, read_small_table, stop_at
from fixate_jax.errors import DataError

Grid = Literal[9, 16, 25, 36]
GRIDS: tuple[Grid, ...] = (9, 16, 25, 36)
"""Photographs on a screen, in as many rows as columns."""
RATINGS = (-3, 3)
"""Least and greatest liking."""
SHARE_TOLERANCE = 1e-3
PHOTO = re.compile(r"nr(\d{1,6})\.(?:png|jpg)")
STIMULI = "stimuli.csv"


@dataclass(frozen=True, kw_only=True)
class Snacks:
    """What was read.

    Attributes:
        trials: a row a screen, by person, grid and trial: ``subject``, ``grid``, ``trial``, ``choice`` (index of the
            clicked item), and for each item ``products``, ``ratings`` (the person's own) and ``gaze_ms``.
        boxes: for each grid x0, y0, x1, y1 of every item, in pixels of the screen of 1280×1024.
        names: of products, by number, where the folder says them.
        dropped: how many rows were left out by reason.
    """

    trials: pd.DataFrame
    boxes: dict[Grid, Float[np.ndarray, "items 4"]]
    names: dict[int, str]
    dropped: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where a grid's files are, and what their columns are called; ``{}`` stands for the number of the item.

    Attributes:
        trials, positions: the files.
        product, rating, gaze: columns of an item.
        shares: gaze is in shares of ``rt``, not in ms.
    """

    trials: Path
    positions: Path
    product: str
    rating: str
    gaze: str
    shares: bool


def layout_of(path: Path, grid: Grid) -> Layout:
    """The layout of a folder.

    Raises:
        DataError: naming what is missing.
    """
    trimmed = path / f"trials_{grid}.csv"
    if trimmed.exists():
        how = {"product": "s{}", "rating": "v{}", "gaze": "d{}"}
        return Layout(trials=trimmed, positions=path / "positions.csv", shares=False, **how)
    root = path / "data" if (path / "data").is_dir() else path
    how = {"product": "stimulus_{}", "rating": "item_value_{}"}
    for name, positions, gaze in (
        (f"setsize-{grid}_desc-data.csv", f"setsize-{grid}_desc-stimulus_positions.csv", "cumulative_gaze_{}"),
        (f"{grid}_data.csv", f"{grid}_stimulus_positions.csv", "gaze_{}"),
    ):
        file = root / "summary_files" / name
        if file.exists():
            place = root / "stimulus_positions" / positions
            return Layout(trials=file, positions=place, gaze=gaze, shares=True, **how)
    raise DataError(
        f"{path}: holds neither data/summary_files/setsize-{grid}_desc-data.csv nor trials_{grid}.csv; give the clone "
        f"of github.com/athms/many-item-choice, or leave {grid} out of data.grids"
    )


def read_snacks(path: Path, *, grids: Sequence[Grid] = GRIDS, on_bad_row: OnBadRow = "error") -> Snacks:
    """Read and check the screens of some grids.

    Args:
        path: the folder.
        grids: numbers of photographs.
        on_bad_row: stop at the first bad row, or leave bad rows out and count them.

    Raises:
        DataError: naming file, line and field.
    """
    dropped: dict[str, int] = {}
    frames, boxes = [], {}
    for grid in grids:
        layout = layout_of(path, grid)
        frames.append(_read_trials(layout, grid, on_bad_row, dropped))
        boxes[grid] = read_positions(layout.positions, grid)
    trials = pd.concat(frames).sort_values(["subject", "grid", "trial"], ignore_index=True)
    if trials.empty:
        raise DataError(f"{path}: no screen is left; left out by reason: {dropped}")
    return Snacks(trials=trials, boxes=boxes, names=read_names(path / STIMULI), dropped=dropped)


def _read_trials(layout: Layout, grid: Grid, on_bad_row: OnBadRow, dropped: dict[str, int]) -> pd.DataFrame:
    items = range(grid)
    products, ratings, gazes = (
        [column.format(i) for i in items] for column in (layout.product, layout.rating, layout.gaze)
    )
    key, time = ["subject", "trial", "choice"], ["rt"] if layout.shares else []
    numbers = [*key, *time, *ratings, *gazes, *([] if layout.shares else products)]
    table = read_small_table(layout.trials, numbers=numbers, texts=products if layout.shares else [])
    sieve = Sieve(table, on_bad_row=on_bad_row, dropped=dropped)
    sieve.refuse_texts()
    for column in numbers:
        sieve.refuse_missing(column)
    for column in ("subject", "trial"):
        sieve.refuse_outside(column, 0, 10**6, reason="no number of a person or a trial")
    sieve.refuse_outside("choice", 0, grid - 1, reason="choice of no item")
    for column in time:
        sieve.refuse(table.numbers[column] <= 0, column=column, reason="no time", wanted="must be above 0 ms")
    for column in ratings:
        sieve.refuse_outside(column, *RATINGS, reason="rating off the scale")
    most = 1.0 if layout.shares else np.inf
    for column in gazes:
        bad = (table.numbers[column] < 0) | (table.numbers[column] > most)
        wanted = "must be a share of rt, from 0 to 1" if layout.shares else "must not be negative"
        sieve.refuse(bad, column=column, reason="impossible gaze", wanted=wanted)
    numbered = np.stack([_products(sieve, column) for column in products], axis=1)
    gaze = np.stack([table.numbers[column] for column in gazes], axis=1)
    if layout.shares:
        more = gaze.sum(axis=1) > 1 + SHARE_TOLERANCE
        sieve.refuse(more, column=gazes[0], reason="impossible gaze", wanted="the shares of rt sum to more than 1")
        gaze = gaze * table.numbers["rt"][:, None]
    sieve.refuse(~(gaze.sum(axis=1) > 0), column=gazes[0], reason="no gaze on an item", wanted="nothing was looked at")
    repeated = pd.DataFrame({name: table.numbers[name] for name in ("subject", "trial")}).duplicated(keep=False)
    sieve.refuse(repeated.to_numpy(), column="trial", reason="repeated trial", wanted="is given twice for this person")
    rating = np.stack([table.numbers[column] for column in ratings], axis=1)
    good = sieve.good
    columns = {name: table.numbers[name][good].astype(np.int64) for name in key}
    lists = {"products": numbered[good], "ratings": rating[good], "gaze_ms": gaze[good]}
    return pd.DataFrame({**columns, "grid": grid, **{name: list(values) for name, values in lists.items()}})


def _products(sieve: Sieve, column: str) -> Int[np.ndarray, " rows"]:
    """Numbers of the products in a column: as they are, or from the names of their pictures."""
    table = sieve.table
    if column in table.numbers:
        sieve.refuse_outside(column, 1, 10**6, reason="no product")
        return np.where(sieve.good, table.numbers[column], 0).astype(np.int64)
    sieve.refuse_missing(column)
    found = [PHOTO.fullmatch(text) for text in table.texts[column]]
    numbers = np.array([*(0 if match is None else int(match[1]) for match in found), 0])[table.codes[column]]
    sieve.refuse(numbers == 0, column=column, reason="no product", wanted="must be a picture such as nr12.png")
    return numbers


def read_positions(path: Path, grid: Grid) -> Float[np.ndarray, "items 4"]:
    """Boxes of a grid's items, in pixels of the screen; the file may hold all grids, and may be without a header.

    Raises:
        DataError: naming the file, and the line of a box that has no area or is off the screen.
    """
    if path.name == "positions.csv":
        table = read_small_table(path, numbers=["setsize", "item", "x0", "y0", "x1", "y1"], texts=[])
        rows = np.flatnonzero(table.numbers["setsize"] == grid)
        rows = rows[np.argsort(table.numbers["item"][rows], kind="stable")]
        misnumbered = np.zeros(len(table), bool)
        misnumbered[rows] = table.numbers["item"][rows] != np.arange(len(rows))
        stop_at(table, misnumbered, "item", f"items of a grid must be numbered 0, 1, … up to {grid - 1}, each once")
        names = ["x0", "y0", "x1", "y1"]
    else:
        names = ["x_left", "y_top", "x_right", "y_lower"]
        table = _with_header(path, names)
        rows = np.arange(len(table))
    no_odd_lines(table)
    boxes = np.stack([table.numbers[name][rows] for name in names], axis=1)
    if len(boxes) != grid:
        raise DataError(f"{path}: has {len(boxes)} places for the grid of {grid}; there must be one for each item")
    inside = (boxes >= 0) & (boxes <= np.array([1280.0, 1024.0] * 2))
    for side, name in enumerate(names):
        low = side - 2
        bad = ~inside[:, side] | ((boxes[:, side] <= boxes[:, low]) if low >= 0 else False)
        marked = np.zeros(len(table), bool)
        marked[rows] = bad
        stop_at(table, marked, name, "is off the screen of 1280×1024, or the box has no area")
    return boxes


def _with_header(path: Path, names: list[str]) -> Table:
    try:
        return read_small_table(path, numbers=names, texts=[])
    except DataError:
        values = _plain_numbers(path)
        if values is None or values.shape[1] != len(names):
            raise
    lines = range(1, 1 + len(values))
    return Table(path=path, lines=lines, numbers=dict(zip(names, values.T, strict=True)), codes={}, texts={})


def _plain_numbers(path: Path) -> Float[np.ndarray, "rows columns"] | None:
    """A file of nothing but numbers."""
    try:
        return np.loadtxt(path, delimiter=",", ndmin=2)
    except (OSError, ValueError):
        return None


def read_names(path: Path) -> dict[int, str]:
    """Names of products by number; none where there is no such file.

    Raises:
        DataError: naming the file and the line.
    """
    if not path.exists():
        return {}
    table = read_small_table(path, numbers=["stimulus"], texts=["name_as_read_off_the_photo"], gaps=("",))
    no_odd_lines(table)
    numbers = table.numbers["stimulus"]
    stop_at(table, ~(np.isfinite(numbers) & (numbers % 1 == 0)), "stimulus", "must be a whole number")
    names = zip(numbers.tolist(), table.words("name_as_read_off_the_photo"), strict=True)
    return {int(number): name for number, name in names if name}
