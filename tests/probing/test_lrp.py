"""AttnLRP through the whole decoder, against relevance sent back by hand."""

import pytest

from fixate_jax.config import OperatorConfig
from tests.probing.embeddings import check_against_definition
from tests.probing.whole_model import CASES, small_world
from tests.worlds import World

LRP = OperatorConfig(name="lrp")


@pytest.fixture(scope="module", params=CASES)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    return small_world(tmp_path_factory.mktemp("world"), request.param)


def test_values_and_gradients_equal_the_definition(world: World) -> None:
    check_against_definition(world, LRP)
