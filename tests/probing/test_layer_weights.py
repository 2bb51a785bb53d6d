"""Weights of the tapped layers: the default, chosen ones, and single layers that add up to the default."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest

from fixate_jax.errors import ConfigError
from fixate_jax.lab.config import OperatorConfig
from fixate_jax.lab.parts import operator_of
from fixate_jax.probing.layer_weights import depth_weights
from fixate_jax.prompts import PromptParams
from tests.probing.both_ways import QWEN, TAPPED, Asked, Subject, in_host_order, trace_of

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
def relevance(subjects: Callable[[str], Subject]) -> dict[str, list[np.ndarray]]:
    """By operator the relevance of each tapped layer alone; and the layers' mean attention."""
    subject = subjects(QWEN)
    single = [tuple(float(i == layer) for i in range(TAPPED)) for layer in range(TAPPED)]

    @jax.jit
    def run(params: Any, prompt: PromptParams, asked: Asked) -> dict[str, list[jax.Array]]:
        trace = trace_of(subject.backbone, params, prompt, asked)
        rows = trace.model.tail(trace.prefix).rows[..., -1, :].mean(3)
        found = {"rows": list(rows)}
        for name, operator in OPERATORS.items():
            found[name] = [operator_of(replace(operator, layer_weights=weights))(trace).relevance for weights in single]
        seq = subject.asked.batch.inputs.token_ids.shape[1]
        return jax.tree.map(lambda x: in_host_order(x, trace.prefix.start.moved, seq), found)

    found: dict[str, list[np.ndarray]] = jax.device_get(run(subject.backbone.params, subject.prompts[0], subject.asked))
    return found


@pytest.mark.parametrize("operator", OPERATORS)
def test_single_layers_add_up_to_the_default(
    relevance: dict[str, list[np.ndarray]], subjects: Callable[[str], Subject], operator: str
) -> None:
    """The default being the definition, which ``test_operators`` holds the operators against."""
    single = relevance[operator]
    weighted = sum(weight * layer for weight, layer in zip((1 / 3, 2 / 3), single, strict=True))
    default = subjects(QWEN).defined({operator: OPERATORS[operator]}, 0)[operator].relevance
    np.testing.assert_allclose(weighted, default, rtol=1e-4, atol=1e-6)
    assert np.linalg.norm(single[0] - single[1]) > 0.01 * np.linalg.norm(single[0])


def test_a_single_layer_is_that_layers_attention(relevance: dict[str, list[np.ndarray]]) -> None:
    for layer, rows in enumerate(relevance["rows"]):
        np.testing.assert_allclose(relevance["attention"][layer], rows, rtol=1e-6)
        np.testing.assert_allclose(rows.sum(-1), 1, rtol=1e-5)
