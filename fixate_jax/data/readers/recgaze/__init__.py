"""Gaze, cursor and clicks on carousels of films: RecGaze."""

from fixate_jax.data.readers.recgaze.reader import Definition, RecGaze, read_recgaze, split_of_task
from fixate_jax.data.readers.recgaze.store import prepare, source_files

__all__ = ["Definition", "RecGaze", "prepare", "read_recgaze", "source_files", "split_of_task"]
