"""Shared by all tests: how JAX compiles, what the suite costs, and the data folder next to the repository."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import environment

environment.set_up()
pytest_plugins = ["tests.counting"]

WITHOUT_TORCH = Path(__file__).with_name("without_torch")
SHARED = Path(__file__).parents[1] / ".." / "shared"


@pytest.fixture(scope="session", autouse=True)
def path_of_children() -> Iterator[None]:
    """Child processes find this checkout, and no torch. Set here since the workers that run tests do need torch."""
    inherited = os.environ.get("PYTHONPATH")
    with pytest.MonkeyPatch.context() as patch:
        path = [str(WITHOUT_TORCH), str(environment.ROOT), *filter(None, [inherited])]
        patch.setenv("PYTHONPATH", os.pathsep.join(path))
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the raw data sets, which are not part of the repository."""
    folder = (SHARED / "data").resolve()
    if not folder.is_dir():
        pytest.skip(f"the raw data sets are not here ({SHARED / 'data'} is no folder)")
    return folder
