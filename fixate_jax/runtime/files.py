"""Files that others give us: only ordinary ones are opened, and none is read without an end."""

import json
from pathlib import Path
from typing import Any

from fixate_jax.errors import FixateError

LARGEST_JSON = 2**28
"""Bytes of a JSON file; no settings, index or list of slots comes near."""


def require_ordinary(path: Path, kind: type[FixateError]) -> None:
    """Refuse what is there but is no ordinary file; reading a pipe or a device may never end.

    Raises:
        FixateError: of this kind, naming the path.
    """
    if not path.is_file() and (path.exists() or path.is_symlink()):
        what = "a link to nothing" if not path.exists() else "a folder, a pipe or a device"
        raise kind(f"{path}: is no ordinary file but {what}; put the file itself there")


def read_json(path: Path, kind: type[FixateError], remedy: str) -> Any:
    """What a JSON file holds.

    Args:
        path: the file.
        kind: of the error.
        remedy: what to do about a file that cannot be read.

    Raises:
        FileNotFoundError, NotADirectoryError: nothing is there.
        FixateError: of this kind, naming the path.
    """
    require_ordinary(path, kind)
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise kind(f"{path}: is larger than {LARGEST_JSON:,} bytes; {remedy}")
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (FileNotFoundError, NotADirectoryError):
        raise
    except RecursionError as error:
        raise kind(f"{path}: not valid JSON (nested too deeply); {remedy}") from error
    except (OSError, ValueError) as error:
        raise kind(f"{path}: not valid JSON ({error}); {remedy}") from error
