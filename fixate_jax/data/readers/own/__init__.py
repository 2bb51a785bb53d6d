"""A researcher's own data: tables of sessions, slots and gaze, and a folder of screenshots."""

from fixate_jax.data.readers.own.files import source_files
from fixate_jax.data.readers.own.store import prepare

__all__ = ["prepare", "source_files"]
