"""Input × gradient and integrated gradients against their definitions on whole matrices."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fixate_jax.config import OperatorConfig
from fixate_jax.errors import ConfigError
from fixate_jax.probing.input_gradient import integrated_gradients
from tests.probing.embeddings import check_against_definition, relative, trace_of
from tests.probing.whole_model import CASES, INTERN, small_world
from tests.worlds import World


@pytest.fixture(scope="module", params=CASES)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    return small_world(tmp_path_factory.mktemp("world"), request.param)


@pytest.mark.parametrize(
    "config", [OperatorConfig(name="input_gradient"), OperatorConfig(name="integrated_gradients", steps=3)]
)
def test_values_and_gradients_equal_the_definition(world: World, config: OperatorConfig) -> None:
    check_against_definition(world, config)


@pytest.mark.parametrize("world", [INTERN], indirect=True)
def test_integrated_gradients_add_up_to_what_the_page_changes(world: World) -> None:
    """In a model with a large ε in its norms: with the usual one all happens where the page is next to black."""
    batch, prompt = world.batch(), world.prompt()
    config = replace(world.backbone.config, decoder=replace(world.backbone.config.decoder, norm_eps=1.0))
    graph, _ = nnx.split(nnx.eval_shape(lambda: world.backbone.family.build(config, nnx.Rngs(0))))
    backbone = replace(world.backbone, graph=graph, config=config)

    def run(params: Any) -> tuple[jax.Array, ...]:
        trace = trace_of(backbone, params, prompt, batch)
        few, many = (integrated_gradients(trace, OperatorConfig(steps=steps)) for steps in (1, 48))
        no_page = batch._replace(inputs=batch.inputs._replace(features=jnp.zeros_like(batch.inputs.features)))
        dark = trace_of(backbone, params, prompt, no_page)
        without = dark.target(dark.model.tail(dark.prefix).logits)
        outside = jnp.where(trace.prefix.start.visual[:, None], 0, many.relevance[..., : -trace_tail(trace)])
        return trace.target(many.logits) - without, few.relevance, many.relevance, outside

    changed, few, many, outside = jax.jit(run)(world.backbone.params)
    error = relative(many.sum(-1), changed)
    print(f"\ncompleteness error: {error:.1e} with 48 points, {relative(few.sum(-1), changed):.1e} with 1")
    assert error < 1e-2
    assert relative(few, many) > 1e-2, "more points make a difference"
    assert not np.asarray(outside).any(), "the text has no relevance"


def trace_tail(trace: Any) -> int:
    """Positions of the tail."""
    return trace.prefix.start.tail_hidden.shape[2]


def test_no_points_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"operator\.steps = 0: at least 1"):
        replace(OperatorConfig(), steps=0)
