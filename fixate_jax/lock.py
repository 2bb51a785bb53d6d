"""One run in a directory at a time."""

import errno
import json
import os
import shlex
import socket
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from fixate_jax.durable import writing
from fixate_jax.errors import ConfigError

LOCK_FILE = ".lock"
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)

if sys.platform != "win32":
    import fcntl


class LockWarning(UserWarning):
    """A directory cannot be locked; the message says why and what that means."""


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keep other runs out of a directory; it is made if need be, and removed if it stays empty.

    The lock is the system's (``flock`` on ``.lock``), so it goes with the process, however that ends. On NFS it holds
    between machines where the server keeps locks; mounted with ``nolock`` or ``local_lock=flock``, it holds on one
    machine only. File systems without locks are named in a warning, and nothing is guarded there.

    Args:
        directory: to write to.

    Raises:
        ConfigError: another run has it; says which process on which machine, since when, with which command.
        DiskError: the directory cannot be made or written to.
    """
    if sys.platform == "win32":  # It has no flock.
        yield
        return
    path, made = directory / LOCK_FILE, [folder for folder in directory.parents if not folder.exists()]
    descriptor = _take(path)
    try:
        yield
    finally:
        # Removed while it is held, so that nobody else can have it by then; see `_take`.
        with suppress(OSError):
            path.unlink()
            for folder in (directory, *made):
                folder.rmdir()
        os.close(descriptor)


def _take(path: Path) -> int:
    """An open descriptor of the lock file that holds the lock."""
    while True:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            except FileNotFoundError:  # The one before has just removed the empty directory.
                continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise ConfigError(
                f"{path.parent} is in use by another run: {holder}; wait for it, stop it, or choose another directory"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(descriptor)
                raise
            message = f"{path.parent} cannot be locked ({error.strerror}): see to it that no other run writes there"
            warnings.warn(message, LockWarning, stacklevel=4)
        if _is_the_file(descriptor, path):
            _sign(descriptor)
            return descriptor
        os.close(descriptor)  # The one before has removed this file meanwhile: it is no longer what others lock.


def _is_the_file(descriptor: int, path: Path) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    mine = os.fstat(descriptor)
    return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)


def _sign(descriptor: int) -> None:
    """Write down who has the lock; without space on the disk it is held all the same."""
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": now, "command": command}
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)


def _holder(descriptor: int) -> str:
    try:
        holder = json.loads(os.pread(descriptor, 2**16, 0))
        return "process {pid} on {host}, since {since} ({command})".format(**holder)
    except (OSError, ValueError, KeyError, TypeError):
        return "it has not said which"
