"""The errors that users can cause, each named after what they have to fix."""

import difflib
import re
from collections.abc import Iterable, Sequence


class FixateError(Exception):
    """Base of every error that bad input, a bad setting or a bad file can raise."""


class ConfigError(FixateError, ValueError):
    """A setting has a wrong name, type or value; the message names the field."""


class DataError(FixateError, ValueError):
    """A data file is unusable; the message names the file, the row and the field."""


class DataWarning(UserWarning):
    """Data can be used, but are not what one would expect of them."""


class StoreError(FixateError, ValueError):
    """A session store on disk is missing, incomplete or of another version."""


class CheckpointError(FixateError, ValueError):
    """A model directory or a training checkpoint cannot be used; the message names the file or tensor."""


class LabelError(FixateError, ValueError):
    """Slot labels do not tokenise in a way that lets the model answer with them."""


class DiskError(FixateError):
    """A file could not be written: no space, quota or permission; the message names it and says what to do."""


class DivergedError(FixateError):
    """Loss, gradient or parameters are not finite; the message names step, sessions and where the batch is."""


def require(condition: bool, name: str, value: object, wanted: str) -> None:
    """Check a setting.

    Raises:
        ConfigError: naming it, its value and what was wanted.
    """
    if not condition:
        raise ConfigError(f"{name} = {value!r}: {wanted}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint for a message where a name is not among those known: "; did you mean 'x'?", or nothing."""
    names = set(known)
    whole = re.fullmatch(r"(-?\d+)\.0*", name)
    found = [whole[1]] if whole and whole[1] in names else difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {found[0]!r}?" if found else ""


def listed(names: Sequence[str], most: int = 8) -> str:
    """Names for a message: the first ones, and how many there are where those are not all."""
    return ", ".join(names[:most]) + (f", … ({len(names)} in all)" if len(names) > most else "")
