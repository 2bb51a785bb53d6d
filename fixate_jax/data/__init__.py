"""Pages and sessions, in memory and on disk, and a reader for each data set.

Each data set is a function of the same name: ``fixate_jax.data.human_choice("path/to/folder")``, see
:func:`fixate_jax.data.registry.read_sessions`.
"""

from functools import partial
from typing import Any

READERS = ("human_choice", "snacks", "recgaze", "adserp", "own", "synthetic_choice", "synthetic_carousel")


def __getattr__(name: str) -> Any:
    if name not in READERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; its readers are {', '.join(READERS)}")
    from fixate_jax.data.registry import read_sessions

    return partial(read_sessions, name)


def __dir__() -> list[str]:
    return [*READERS, "READERS"]
