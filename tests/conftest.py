"""Shared by all tests: how JAX compiles, what the suite costs, and the data folder next to the repository."""

from pathlib import Path

import pytest

from tests import environment

environment.set_up()
pytest_plugins = ["tests.counting"]

SHARED = Path(__file__).parents[1] / ".." / "shared"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the raw data sets, which are not part of the repository."""
    folder = (SHARED / "data").resolve()
    if not folder.is_dir():
        pytest.skip(f"the raw data sets are not here ({SHARED / 'data'} is no folder)")
    return folder
