"""Human gaze and choice among three gambles (Molter et al. 2022, PLOS Computational Biology 18(7), e1010283).

One row of ``trials.csv`` is one trial, and the page can be drawn exactly from it. Slots are the three alternatives
(labels A, B, C from left to right) or the six texts (labels A to F: upper and lower text of each column from left to
right). The letters of the study are not used as labels: people choose its alternative A more often than C wherever it
stands on the screen, so a model could answer without looking.

With six slots the click counts for the upper text of the chosen column; which text of it was looked at longer is not
asked, because that would tell the label something about the gaze.
"""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float
from PIL import Image

from fixate_jax.data.render import Alternative, alternative_boxes, draw_page, text_boxes
from fixate_jax.data.session import Split, StoredSession
from fixate_jax.errors import DataError
from fixate_jax.runtime.files import require_ordinary

FILE = "trials.csv"
_REMEDY = "fix the row or pass --data.on-bad-row skip"
LETTERS = ("A", "B", "C")
KEY = ["subject", "block", "trial"]
DWELL = [f"dwell_{letter}{attribute}" for letter in LETTERS for attribute in "pm"]
NUMERIC = [*KEY, *(f"{a}{x}" for a in "pm" for x in LETTERS), *(f"pos_{x}" for x in LETTERS), *DWELL, "dwell_total"]
BOOLEAN = [f"p{letter}_top" for letter in LETTERS]
COLUMNS = [*NUMERIC, *BOOLEAN, "choice"]
SHARE_TOLERANCE = 1e-3
MAX_AMOUNT = 9999
"""Euro; more would not fit into a box."""
SPLIT_SHARES: tuple[tuple[Split, float], ...] = (("train", 0.70), ("validation", 0.15), ("test", 0.15))
PROFILE = "Each box is a gamble: a chance to win and an amount in euro. The user picks the gamble to play."
FEATURES: dict[str, tuple[str, ...]] = {
    "alternatives": ("probability", "amount", "expected_value", "probability_on_top", "left", "middle", "right"),
    "texts": ("is_probability", "probability", "amount", "expected_value", "upper", "left", "middle", "right"),
}


def _problems(raw: pd.DataFrame, frame: pd.DataFrame) -> Iterator[tuple[str, str, pd.Series, str]]:
    """Field, reason (for the counts), rows that are bad, and what is wanted, one rule after the other.

    ``raw`` holds the texts of the file; in ``frame`` the numeric columns are numbers, NaN where the text is none.
    """
    for column in COLUMNS:
        yield column, "missing value", raw[column].isna(), "is empty; fill it in"
    for column in NUMERIC:
        yield column, "not a number", raw[column].notna() & frame[column].isna(), "is not a number"
    for column in KEY:
        whole = (frame[column] >= 0) & (frame[column] % 1 == 0)
        yield column, "no whole number", ~whole, "must be a whole number from 0"
    for column in BOOLEAN:
        known = frame[column].astype(str).isin(["True", "False"])
        yield column, "neither True nor False", ~known, "must be True or False"
    yield "choice", "unknown choice", ~frame["choice"].isin(LETTERS), f"must be one of {', '.join(LETTERS)}"
    yield "trial", "repeated trial", frame.duplicated(KEY, keep=False), "(subject, block, trial) is given twice"
    for letter in LETTERS:
        p = frame[f"p{letter}"]
        yield f"p{letter}", "probability out of range", ~p.between(0, 1), "must lie in 0..1"
        m = frame[f"m{letter}"]
        shown_whole = m.between(0, MAX_AMOUNT) & (m % 1 == 0)
        yield f"m{letter}", "amount out of range", ~shown_whole, f"must be a whole number of euro in 0..{MAX_AMOUNT}"
    positions = np.sort(frame[[f"pos_{x}" for x in LETTERS]].to_numpy(float), axis=1)
    bad = pd.Series((positions != np.arange(3)).any(axis=1), index=frame.index)
    yield "pos_A", "positions no permutation", bad, "pos_A, pos_B, pos_C must be 0, 1 and 2 in some order"
    for column in DWELL:
        yield column, "negative dwell", frame[column] < 0, "must not be negative"
    total = frame[DWELL].sum(axis=1)
    yield (
        DWELL[0],
        "dwell shares do not sum to 1",
        ~total.between(1 - SHARE_TOLERANCE, 1 + SHARE_TOLERANCE),
        "the six dwell shares must sum to 1",
    )
    yield "dwell_total", "no dwell", ~(frame["dwell_total"] > 0), "must be above 0 ms"


def read_trials(path: Path, *, on_bad_row: Literal["error", "skip"] = "error") -> tuple[pd.DataFrame, dict[str, int]]:
    """Read and check ``trials.csv``.

    Args:
        path: the file, or the folder that holds it.
        on_bad_row: stop at the first bad row, or leave bad rows out and count them.

    Returns:
        The good rows, and how many were left out by reason.

    Raises:
        DataError: naming the file, the line and the field.
    """
    (path,) = source_files(path)
    raw, odd_line, odd_rows = _read_csv(path)
    if odd_rows and on_bad_row == "error":
        raise DataError(f"{path}, line {odd_line}: has another number of fields than the header; {_REMEDY}")
    frame = raw.copy()
    for column in NUMERIC:
        frame[column] = pd.to_numeric(raw[column], errors="coerce").replace([np.inf, -np.inf], np.nan)
    good = pd.Series(True, index=frame.index)
    dropped = {"wrong number of fields": odd_rows} if odd_rows else {}
    for column, reason, bad, wanted in _problems(raw, frame):
        bad = bad & good
        if not bad.any():
            continue
        if on_bad_row == "error":
            _fail(path, raw, bad, column, wanted)
        dropped[reason] = dropped.get(reason, 0) + int(bad.sum())
        good &= ~bad
    if not good.any():
        raise DataError(f"{path}: no row is left; left out by reason: {dropped}")
    frame = frame[good].reset_index(drop=True)
    for column in BOOLEAN:
        frame[column] = frame[column].astype(str) == "True"
    return frame, dropped


def _read_csv(path: Path) -> tuple[pd.DataFrame, int, int]:
    """Rows as text under their line numbers; of rows longer or shorter than the header: the first's line, the count."""
    lines, rows, odd = list[int](), list[list[str]](), list[int]()
    require_ordinary(path, DataError)
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            reader = csv.reader(handle, strict=True)
            header = [name.strip() for name in next(reader, [])]
            missing = [column for column in COLUMNS if column not in header]
            if missing:
                raise DataError(f"{path}: columns {', '.join(missing)} are missing")
            repeated = sorted({column for column in header if header.count(column) > 1})
            if repeated:
                raise DataError(f"{path}: columns {', '.join(repeated)} are given twice; keep one of each")
            for row in reader:
                if row and len(row) == len(header):
                    lines.append(reader.line_num)
                    rows.append(row)
                elif row:
                    odd.append(reader.line_num)
    except FileNotFoundError:
        raise DataError(f"{path}: not found; data.path must be the folder of human_choice") from None
    except (csv.Error, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable as CSV ({error})") from error
    if not rows and not odd:
        raise DataError(f"{path}: holds no rows")
    frame = pd.DataFrame(rows, columns=header, index=lines, dtype=object)
    return frame.replace({"": None, "NaN": None, "nan": None, "NA": None}), odd[0] if odd else 0, len(odd)


def _fail(path: Path, raw: pd.DataFrame, bad: pd.Series, column: str, wanted: str) -> None:
    row = int(np.argmax(bad.to_numpy()))
    value = raw[column].iloc[row]
    raise DataError(f"{path}, line {raw.index[row]}, field {column!r} = {value!r}: {wanted}; {_REMEDY}")


def source_files(path: Path) -> list[Path]:
    """The raw files that the sessions are made of."""
    return [path / FILE if path.is_dir() else path]


def assign_splits(frame: pd.DataFrame, seed: int) -> list[Split]:
    """Split every person's trials 70/15/15 at random, whatever order the rows come in.

    Args:
        frame: rows with ``subject``, ``block`` and ``trial``.
        seed: of the shuffle.
    """
    splits = pd.Series("train", index=frame.index, dtype=object)
    for subject, rows in frame.groupby("subject"):
        ordered = rows.sort_values(KEY).index.to_numpy()
        shuffled = np.random.default_rng([seed, int(subject)]).permutation(ordered)
        ends = np.round(np.cumsum([share for _, share in SPLIT_SHARES]) * len(shuffled)).astype(int)
        for (name, _), part in zip(SPLIT_SHARES, np.split(shuffled, ends[:-1]), strict=True):
            splits.loc[part] = name
    return list(splits)


def shown(row: Any) -> list[tuple[str, Alternative]]:
    """The alternatives of a trial from left to right, with their letters."""
    by_column = sorted(LETTERS, key=lambda letter: getattr(row, f"pos_{letter}"))
    return [
        (x, Alternative(getattr(row, f"p{x}"), int(getattr(row, f"m{x}")), bool(getattr(row, f"p{x}_top"))))
        for x in by_column
    ]


def slot_boxes(slots: Literal["alternatives", "texts"]) -> Float[np.ndarray, "slots 4"]:
    """Boxes of the slots, in relative page coordinates."""
    return alternative_boxes() if slots == "alternatives" else text_boxes()


def slot_labels(slots: Literal["alternatives", "texts"]) -> tuple[str, ...]:
    """Labels of the slots."""
    return tuple("ABCDEF"[: 3 if slots == "alternatives" else 6])


def draw_trial(row: Any, *, slots: Literal["alternatives", "texts"], width: int) -> Image.Image:
    """The page of a trial."""
    return draw_page([a for _, a in shown(row)], slot_labels(slots), slot_boxes(slots), width=width)


def make_session(row: Any, *, slots: Literal["alternatives", "texts"], page: str, split: Split) -> StoredSession:
    """A trial as a session."""
    columns = shown(row)
    chosen = [letter for letter, _ in columns].index(row.choice)
    dwell, features = [], []
    for column, (letter, a) in enumerate(columns):
        place = [float(column == c) for c in range(3)]
        share = {attribute: getattr(row, f"dwell_{letter}{attribute}") * row.dwell_total for attribute in "pm"}
        value = a.probability * a.amount
        if slots == "alternatives":
            dwell.append(share["p"] + share["m"])
            features.append([a.probability, a.amount, value, float(a.probability_on_top), *place])
            continue
        for upper in (True, False):
            is_probability = upper == a.probability_on_top
            dwell.append(share["p" if is_probability else "m"])
            own = [a.probability, 0.0] if is_probability else [0.0, a.amount]
            features.append([float(is_probability), *own, value, float(upper), *place])
    return StoredSession(
        session_id=f"{int(row.subject)}/{int(row.block)}/{int(row.trial)}",
        user_id=str(int(row.subject)),
        page_id=page,
        boxes=slot_boxes(slots),
        labels=slot_labels(slots),
        dwell_ms={"fixation": np.array(dwell, np.float64)},
        click=chosen if slots == "alternatives" else 2 * chosen,
        profile=PROFILE,
        split=split,
        slot_features=np.array(features, np.float64),
    )


def rearranged(session: StoredSession, order: Sequence[int], *, width: int) -> Image.Image:
    """A session's page of three slots with the gambles in other columns, the labels where they were.

    Args:
        session: whose page.
        order: for each column, the column that its gamble comes from.
        width: of the page in pixels.
    """
    shown = [Alternative(p, int(m), bool(top)) for p, m, _, top, *_ in session.slot_features[list(order)].tolist()]
    return draw_page(shown, session.labels, session.boxes, width=width)


def first_users(frame: pd.DataFrame, users: int | None) -> pd.DataFrame:
    """Rows of the first so many people (None: all)."""
    subjects: Sequence[Any] = sorted(frame["subject"].unique())
    return frame[frame["subject"].isin(subjects[:users])].reset_index(drop=True)
