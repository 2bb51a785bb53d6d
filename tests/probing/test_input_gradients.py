"""Input × gradient and integrated gradients against their definitions, differentiated through the whole model."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fixate_jax.errors import ConfigError
from fixate_jax.lab.config import OperatorConfig
from fixate_jax.probing.operators.input_gradient import integrated_gradients
from fixate_jax.prompts import PromptParams
from tests.probing.both_ways import (
    INTERN,
    Asked,
    Subject,
    check_against_definition,
    check_company_and_order,
    relative,
    trace_of,
)

CONFIGS = [OperatorConfig(name="input_gradient"), OperatorConfig(name="integrated_gradients", steps=2)]
HOW: dict[str, dict[str, Any]] = {
    "input_gradient": {"remat": "none"},
    "integrated_gradients": {"remat": "none", "tapped_layers": 1},
}
"""Settings of the decoder: layers of every kind, or several below the last."""


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_values_and_gradients_equal_the_definition(subject: Subject, config: OperatorConfig) -> None:
    check_against_definition(subject, {config.name: config}, HOW[config.name])


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_company_order_and_padding_change_nothing(subject: Subject, config: OperatorConfig) -> None:
    check_company_and_order(subject, {config.name: config}, HOW[config.name])


def test_integrated_gradients_add_up_to_what_the_page_changes(subjects: Callable[[str], Subject]) -> None:
    """In a model with a large ε in its norms: with the usual one all happens where the page is next to black."""
    subject = subjects(INTERN)
    config = subject.backbone.config
    config = replace(config, decoder=replace(config.decoder, norm_eps=1.0))
    graph, _ = nnx.split(nnx.eval_shape(lambda: subject.backbone.family.build(config, nnx.Rngs(0))))
    backbone = replace(subject.backbone, graph=graph, config=config)

    def run(params: Any, prompt: PromptParams, asked: Asked) -> tuple[jax.Array, ...]:
        trace = trace_of(backbone, params, prompt, asked)
        probe = integrated_gradients(steps=48)(trace)
        outside = jnp.where(trace.prefix.start.visual[:, None], 0, probe.relevance[..., : trace.prefix.key.shape[2]])
        return trace.target(probe.logits), probe.relevance, outside

    score, relevance, outside = jax.device_get(jax.jit(run)(backbone.params, subject.prompts[0], subject.asked))
    dark, few = by_one_point(subject)
    error = relative(relevance.sum(-1), score - dark)
    print(f"\ncompleteness error: {error:.1e} with 48 points, {relative(few.sum(-1), score - dark):.1e} with 1")
    assert error < 1e-2
    assert relative(few, relevance) > 1e-2, "more points make a difference"
    assert not outside.any(), "the text has no relevance"


def by_one_point(subject: Subject) -> tuple[np.ndarray, np.ndarray]:
    """By definition, in a model with that ε: ℓ with a page of zeros, and relevance from a single point."""
    from tests.probing.definition import by_definition
    from tests.probing.whole_model import WholeModel

    model, asked = WholeModel(subject.backbone, eps=1.0), subject.asked
    inputs, name = asked.batch.inputs, "integrated_gradients"
    dark = asked.batch._replace(inputs=inputs._replace(features=np.zeros_like(inputs.features)))
    configs = {name: OperatorConfig(name=name, steps=1)}
    few, without = (
        by_definition(model, configs, asked._replace(batch=b), subject.prompts[0])[name] for b in (asked.batch, dark)
    )
    chosen = np.take_along_axis(without.logits, asked.ids[..., None], axis=-1)[..., 0]
    return np.where(asked.mask, chosen, 0).sum(-1), few.relevance


def test_no_points_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"operator\.steps = 0: at least 1"):
        replace(OperatorConfig(), steps=0)
