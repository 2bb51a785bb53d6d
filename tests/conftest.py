"""Shared by all tests: the platform and the data folder beside the repository."""

import os

# Before jax is imported anywhere: numbers are compared to the bit, and only the CPU promises that everywhere.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the time goes into compiling small programs; the lowest effort halves that and computes the same formulas.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

from pathlib import Path

import pytest

SHARED = Path(__file__).parents[1] / ".." / "shared"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the raw data sets, which are not part of the repository."""
    folder = (SHARED / "data").resolve()
    if not folder.is_dir():
        pytest.skip(f"the raw data sets are not here ({SHARED / 'data'} is no folder)")
    return folder
