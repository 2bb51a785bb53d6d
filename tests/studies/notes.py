"""Work for other processes, in a module that they import in no time."""

import os
import signal
from pathlib import Path

from fixate_jax.errors import DataError


def note(item: int, folder: Path) -> None:
    """Leave a file with the process's number; it fails at −1, and dies at 99."""
    if item < 0:
        raise DataError(f"item {item} is bad")
    if item == 99:
        os.kill(os.getpid(), signal.SIGKILL)
    (folder / f"{item}-{os.getpid()}").touch()
