"""What lies in the folder of one's own data, and the first look at a table's header."""

import csv
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from fixate_jax.errors import DataError, did_you_mean

SESSIONS, SLOTS, DWELL, FIXATIONS = "sessions.csv", "slots.csv", "dwell.csv", "fixations.csv"
PAGES = "pages"
ENDINGS = (".png", ".jpg", ".jpeg")
SIZES = (("w", "h"), ("width", "height"))
"""Columns of those who give a box by its corner and size."""
DRAWN = "labels_drawn"
"""A file whose name begins so says that the screenshots bear their labels already."""


def labels_drawn(path: Path) -> list[Path]:
    """The files that say so, if any; an editor may have added an ending."""
    return sorted(p for p in path.glob(f"{DRAWN}*") if p.is_file())


def screenshots(path: Path) -> list[Path]:
    """The page images, hidden ones left out."""
    files = (path / PAGES).glob("*") if (path / PAGES).is_dir() else ()
    return sorted(p for p in files if p.suffix.lower() in ENDINGS and not p.name.startswith("."))


def same_text(text: str) -> str:
    """One spelling of what looks the same: macOS takes letters and their accents apart in file names."""
    return unicodedata.normalize("NFC", text)


def find_image(folder: Path, name: str) -> Path | None:
    """The PNG or JPEG file of that name, however its accents are written; None where there is none."""
    if os.path.isfile(folder / name):  # False, too, for a name that no file can have.
        return folder / name
    alike = (path for path in sorted(folder.glob("*")) if same_text(path.name) == same_text(name))
    return next((path for path in alike if path.is_file()), None)


def source_files(path: Path) -> list[Path]:
    """The raw files that the sessions are made of."""
    gaze = [path / name for name in (DWELL, FIXATIONS) if (path / name).exists()]
    return [path / SESSIONS, path / SLOTS, *gaze, *labels_drawn(path), *screenshots(path)]


def gaze_file(path: Path) -> Path:
    """The table of gaze.

    Raises:
        DataError: when there is none, or one of each kind.
    """
    dwell, fixations = path / DWELL, path / FIXATIONS
    if dwell.exists() == fixations.exists():
        both = dwell.exists()
        problem = f"both {DWELL} and {FIXATIONS} are there" if both else f"neither {DWELL} nor {FIXATIONS} is there"
        raise DataError(f"{path}: {problem}; {'keep' if both else 'give'} one of them")
    return dwell if dwell.exists() else fixations


def read_header(path: Path, columns: Sequence[str]) -> list[str]:
    """Names of a table's columns, with a word about what spreadsheets tend to do to tables.

    Raises:
        DataError: when the file is missing, not in UTF-8, or lacks one of the columns.
    """
    if not path.is_file():
        raise DataError(f"{path}: not found; data.path must be the folder with {SESSIONS}, {SLOTS} and {PAGES}/")
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            line = handle.readline()
            for _ in handle:
                pass
        header = next(csv.reader([line]), [])
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not in UTF-8 ({error}); save it as CSV in UTF-8") from None
    except (csv.Error, OSError) as error:
        raise DataError(f"{path}: not readable as CSV ({error})") from error
    missing = [name for name in columns if name not in header]
    if not missing:
        return header
    problem = f"columns {', '.join(missing)} are missing; its header is {line.strip()!r}"
    if {"x1", "y1"} & set(missing) and any(set(sizes) <= set(header) for sizes in SIZES):
        raise DataError(f"{path}: {problem}; give the lower right corner, x1 = x0 + width and y1 = y0 + height")
    if not set(missing) - {name.strip() for name in header}:
        raise DataError(f"{path}: {problem}; remove the spaces around the names")
    for separator, name in ((";", "semicolons"), ("\t", "tabs")):
        if separator in line:
            raise DataError(f"{path}: {problem}; separate fields by commas, not {name}, and write 0.5, not 0,5")
    spare = [name for name in header if name not in columns]
    raise DataError(f"{path}: {problem}{did_you_mean(missing[0], spare) or '; add them'}")
