"""Weights of the tapped layers: the default, chosen ones, and single layers that add up to the default."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fixate_jax.backbones.tiny_random import TinySizes, write_tiny_random
from fixate_jax.config import BackboneConfig, OperatorConfig, PromptConfig, RunConfig
from fixate_jax.errors import ConfigError
from fixate_jax.probing import Trace, get_operator
from fixate_jax.probing.layer_weights import depth_weights
from fixate_jax.prompts import soft_prompt
from fixate_jax.tuning.batches import Batch
from fixate_jax.tuning.step import target_logit
from tests.worlds import World

LAYERS = 2
OPERATORS = {
    "attention": OperatorConfig(name="attention"),
    "attn_lrp": OperatorConfig(name="attn_lrp", normalise="abs"),
}


def test_by_default_deeper_layers_count_more() -> None:
    np.testing.assert_allclose(depth_weights(4), [0.1, 0.2, 0.3, 0.4], rtol=1e-6)
    np.testing.assert_allclose(depth_weights(1), [1.0])


def test_chosen_weights_are_divided_by_their_sum() -> None:
    np.testing.assert_allclose(depth_weights(3, (0.0, 1.0, 3.0)), [0.0, 0.25, 0.75], rtol=1e-6)
    np.testing.assert_allclose(depth_weights(3, (5.0, 5.0, 5.0)), np.full(3, 1 / 3), rtol=1e-6)
    np.testing.assert_allclose(depth_weights(4, (1.0, 2.0, 3.0, 4.0)), depth_weights(4), rtol=1e-6)


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 1.0), (1.0, 1.0, 1.0, 1.0)])
def test_there_is_one_weight_a_tapped_layer(weights: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match=r"operator\.layer_weights = \(1\.0,.*: 3 layers are tapped, give one weight"):
        depth_weights(3, weights)


@pytest.mark.parametrize("weights", [(), (0.0, 0.0), (1.0, -1.0, 1.0)])
def test_weights_without_sense_are_no_settings(weights: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match=r"operator\.layer_weights = .*: weights must not be negative, and not all 0"):
        OperatorConfig(layer_weights=weights)


@pytest.fixture(scope="module")
def relevance(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """By operator the relevance with default weights, then of each layer alone; and the layers' mean attention."""
    directory = tmp_path_factory.mktemp("world")
    sizes = TinySizes(layers=LAYERS, width=32, ff=32, vision_width=16, vision_ff=16, deepstack=(0,))
    backbone = BackboneConfig(path=str(write_tiny_random(directory / "model", sizes=sizes)), tapped_layers=LAYERS)
    config = RunConfig(backbone=backbone, prompt=PromptConfig(basis=2, tokens=2))
    world = World(directory, sizes=((3, 128, 96),), config=config)
    single = [tuple(float(i == layer) for i in range(LAYERS)) for layer in range(LAYERS)]

    @jax.jit
    def run(params: Any, batch: Batch) -> dict[str, jax.Array]:
        model = world.backbone.merge(params)
        prefix = model.prefill(batch.inputs, soft_prompt(world.prompt(), batch.user))
        trace = Trace(model, prefix, target_logit(batch.answer_ids[:, :1], batch.answer_mask[:, :1]))
        found = {"rows": model.tail(prefix).rows[..., -1, :].mean(3)}
        for name, operator in OPERATORS.items():
            configs = [operator, *(replace(operator, layer_weights=weights) for weights in single)]
            found[name] = jnp.stack([get_operator(c.name)(trace, c).relevance for c in configs])
        return found

    return jax.device_get(run(world.backbone.params, world.batch()))


@pytest.mark.parametrize("operator", OPERATORS)
def test_single_layers_add_up_to_the_default(relevance: dict[str, np.ndarray], operator: str) -> None:
    default, *single = relevance[operator]
    weighted = sum(weight * layer for weight, layer in zip((1 / 3, 2 / 3), single, strict=True))
    np.testing.assert_allclose(weighted, default, rtol=1e-5, atol=1e-7)
    assert np.linalg.norm(single[0] - single[1]) > 0.01 * np.linalg.norm(single[0])


def test_a_single_layer_is_that_layers_attention(relevance: dict[str, np.ndarray]) -> None:
    for layer, rows in enumerate(relevance["rows"]):
        np.testing.assert_allclose(relevance["attention"][1 + layer], rows, rtol=1e-6)
        np.testing.assert_allclose(rows.sum(-1), 1, rtol=1e-5)
