"""Input × gradient and integrated gradients against their definitions on whole matrices."""

import pytest

from fixate_jax.config import OperatorConfig
from tests.probing.embeddings import check_against_definition
from tests.probing.whole_model import CASES, small_world
from tests.worlds import World


@pytest.fixture(scope="module", params=CASES)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    return small_world(tmp_path_factory.mktemp("world"), request.param)


@pytest.mark.parametrize(
    "config", [OperatorConfig(name="input_gradient"), OperatorConfig(name="integrated_gradients", steps=3)]
)
def test_values_and_gradients_equal_the_definition(world: World, config: OperatorConfig) -> None:
    check_against_definition(world, config)
