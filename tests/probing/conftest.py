"""The small worlds, made once for all tests of a process that need them."""

from collections.abc import Callable
from functools import cache

import pytest

from tests.probing.both_ways import ARCHITECTURES, Subject, small_world


@pytest.fixture(scope="session")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Subject]:
    """The small world of each architecture, by its name."""
    return cache(lambda name: Subject(small_world(tmp_path_factory.mktemp("world"), name)))


@pytest.fixture(scope="session", params=ARCHITECTURES)
def subject(request: pytest.FixtureRequest, subjects: Callable[[str], Subject]) -> Subject:
    """Each of them."""
    return subjects(request.param)
