"""Files that are whole or not there, on disk when we say so, and checksums that tell whether they still are."""

import errno
import hashlib
import os
import re
import shutil
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from fixate_jax.errors import DiskError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says when a disk or a quota is full, or a file too large."""
_FULL_TEXT = re.compile("|".join(re.escape(os.strerror(code)) for code in FULL))
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


def is_full(error: BaseException) -> bool:
    """Whether an error means that there is no space; libraries may tell it in their text alone."""
    return getattr(error, "errno", None) in FULL or _FULL_TEXT.search(str(error)) is not None


def advice(error: BaseException) -> str:
    """What went wrong with a file, and what to do."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    remedy = "free some space" if is_full(error) else "fix that"
    return f"{reason}; {remedy} and run the same command again"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """While active, what the system says against a file becomes an error that names it and says what to do.

    Raises:
        DiskError: in place of any ``OSError``.
    """
    try:
        yield
    except OSError as error:
        raise DiskError(f"{path}: could not be written: {advice(error)}") from error


def unfinished_name(path: Path) -> Path:
    """Where a file is written before it is moved to its place."""
    return path.with_name(f".{path.name}.unfinished")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file written beside its place, and moved there once it is whole and on disk.

    What was there stays until then. The other name is always the same one, so a killed writer's remains go with the
    next writing; one process writes a file at a time.

    Args:
        path: the file; missing folders are made.

    Yields:
        Where to write it.

    Raises:
        DiskError: it cannot be written; what was there before is as it was.
    """
    temporary = unfinished_name(path)
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            flush_entry(temporary)
            os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file in one go, see `replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def staging_name(directory: Path) -> Path:
    """Where to put a folder together that is moved to ``directory`` once it is whole.

    The name tells whose it is: runs that start together, as in a sweep, must not remove each other's.
    """
    return directory.with_name(f".{directory.name}.{socket.gethostname()}-{os.getpid()}.unfinished")


def remove_leftovers(directory: Path) -> None:
    """Remove unfinished copies of a folder whose writers, on this machine, are gone."""
    pattern = re.compile(rf"\.{re.escape(f'{directory.name}.{socket.gethostname()}')}-(\d+)\.unfinished")
    for path in directory.parent.iterdir():
        match = pattern.fullmatch(path.name)
        if match and (int(match[1]) == os.getpid() or not _is_running(int(match[1]))):
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def staging(directory: Path) -> Iterator[Path]:
    """A folder beside ``directory``, made now and removed in the end; those of writers that were killed go as well.

    Raises:
        DiskError: there is no space for what is put into it.
    """
    folder = staging_name(directory)
    try:
        with writing(directory):
            directory.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(directory)
            folder.mkdir()
        try:
            yield folder
        except OSError as error:
            if not is_full(error):
                raise
            raise DiskError(f"{directory}: could not be written: {advice(error)}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def mapped_array(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.memmap:
    """A new ``.npy`` file as a memory-mapped array to fill, whose space on disk is its own from the start.

    Without that, writing to it on a full disk would kill the process instead of raising an error.
    """
    mapped: np.memmap = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    with path.open("r+b") as file:
        size = path.stat().st_size
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.seek(mapped.offset)
            for start in range(mapped.offset, size, 2**20):
                file.write(bytes(min(2**20, size - start)))
    return mapped


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
