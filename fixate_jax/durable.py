"""Files that are on disk when we say so, and checksums that tell whether they still are what was written."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

THREADS = min(8, os.cpu_count() or 1)


def sha256(path: Path) -> str:
    """SHA-256 sum of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_all(paths: Sequence[Path]) -> list[str]:
    """SHA-256 sums of many files, several at a time."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(sha256, paths))


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 sum of every file below a folder, by its path within."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return dict(zip((path.relative_to(folder).as_posix() for path in files), sha256_all(files), strict=True))


def flush(folder: Path) -> None:
    """Make sure that all files and folder entries below are on disk, not in the system's memory only."""
    for path in folder.rglob("*"):
        flush_entry(path)
    flush_entry(folder)


def flush_entry(path: Path) -> None:
    """The same for one file, or for a folder's list of entries."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
