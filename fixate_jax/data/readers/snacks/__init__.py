"""Gaze and clicks on grids of snack photographs: Thomas, Molter and Krajbich (2021)."""

from fixate_jax.data.readers.snacks.reader import GRIDS, Snacks, read_snacks
from fixate_jax.data.readers.snacks.store import prepare, source_files

__all__ = ["GRIDS", "Snacks", "prepare", "read_snacks", "source_files"]
