"""Worlds that several files share."""

import pytest

from tests.tuning.after_page import WORLDS, make_world
from tests.worlds import World


@pytest.fixture(scope="session")
def page_worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, World]:
    return {name: make_world(tmp_path_factory.mktemp("world"), *settings) for name, settings in WORLDS.items()}


@pytest.fixture(params=WORLDS)
def page_world(request: pytest.FixtureRequest, page_worlds: dict[str, World]) -> World:
    return page_worlds[request.param]


@pytest.fixture
def qwen(page_worlds: dict[str, World]) -> World:
    return next(iter(page_worlds.values()))
