"""Gaze, cursor and clicks on search result pages: AdSERP."""

from fixate_jax.data.readers.adserp.reader import AdSerp, read_adserp, source_files
from fixate_jax.data.readers.adserp.store import prepare

__all__ = ["AdSerp", "prepare", "read_adserp", "source_files"]
