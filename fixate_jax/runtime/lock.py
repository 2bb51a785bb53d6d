"""One run in a directory at a time."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from fixate_jax.errors import ConfigError
from fixate_jax.runtime.durable import writing

LOCK_FILE = ".lock"


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keep other runs out of a directory; it is made if need be, and removed if it stays empty.

    The lock is the system's, so it goes with the process, however that ends; see the package filelock.

    Args:
        directory: to write to.

    Raises:
        ConfigError: another run has it.
        DiskError: the directory cannot be made or written to.
    """
    path, made = directory / LOCK_FILE, [folder for folder in directory.parents if not folder.exists()]
    lock = FileLock(path)
    with writing(path):
        directory.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise ConfigError(
                f"{directory} is in use by another run; wait for it, stop it, or choose another directory"
            ) from None
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()  # While it is held, so that nobody else can have it by then.
        lock.release()
        with suppress(OSError):
            for folder in (directory, *made):
                folder.rmdir()
