"""The parts of a run by name, for settings and the command line; in Python, call the functions themselves."""

import importlib
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import optax
from jaxtyping import Array, Float, Int

from fixate_jax.errors import ConfigError
from fixate_jax.lab.config import ObjectiveConfig, OperatorConfig, OptimizerConfig, RunConfig
from fixate_jax.objective import (
    Alignment,
    BoundAlignment,
    attention_weight_schedule,
    coarse_kl,
    i_divergence,
    kl,
    weighted_kl,
)
from fixate_jax.probing.operators.attention import attention
from fixate_jax.probing.operators.attn_lrp import attention_gradient, attn_lrp
from fixate_jax.probing.operators.glimpse import glimpse
from fixate_jax.probing.operators.input_gradient import input_gradient, integrated_gradients
from fixate_jax.probing.operators.lrp import lrp
from fixate_jax.probing.operators.rollout import rollout
from fixate_jax.probing.trace import Operator
from fixate_jax.tuning.optimizer import make_optimizer
from fixate_jax.tuning.step import Objective

T = TypeVar("T")

OPERATORS: dict[str, Callable[..., Any]] = {
    "attn_lrp": attn_lrp,
    "attention": attention,
    "attention_gradient": attention_gradient,
    "rollout": rollout,
    "glimpse": glimpse,
    "input_gradient": input_gradient,
    "integrated_gradients": integrated_gradients,
    "lrp": lrp,
}
"""Every operator's factory by name. A new one is a file and a line here, or in your own module (`module:name`)."""


ALIGNMENTS: dict[str, Callable[..., Float[Array, " batch"]]] = {
    "kl": kl,
    "weighted_kl": weighted_kl,
    "coarse_kl": coarse_kl,
    "i_divergence": i_divergence,
}
"""The alignment losses by their name in `ObjectiveConfig.alignment`; what comes after the three arrays is a setting."""


def imported(name: str, known: Mapping[str, T], setting: str) -> T:
    """The part of that name, or whatever a name like ``my_module:sharpest`` imports.

    Raises:
        ConfigError: there is none; naming those there are.
    """
    if name in known:
        return known[name]
    module, _, attribute = name.partition(":")
    try:
        found: T | None = getattr(importlib.import_module(module), attribute) if attribute else None
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{setting} = {name!r} cannot be imported: {error}") from error
    if found is None:
        raise ConfigError(
            f"{setting} = {name!r}: choose one of {', '.join(known)}, or import one of your own (module:name)"
        )
    return found


def operator_of(config: OperatorConfig) -> Operator:
    """The operator that settings describe.

    A factory gets those settings whose names it knows, and all of ``operator.settings``; a plain function of a trace is
    an operator as it is.

    Raises:
        ConfigError: no such operator, or it lacks one of ``operator.settings``.
    """
    factory = imported(config.name, OPERATORS, "operator.name")
    parameters = inspect.signature(factory).parameters
    if "trace" in parameters:
        if config.settings:
            raise ConfigError(f"operator.settings = {config.settings}: {config.name} has no settings")
        return factory
    known = {name: getattr(config, name) for name in parameters if hasattr(config, name)}
    for setting in config.settings:
        name, equals, value = setting.partition("=")
        if not equals or name not in parameters:
            raise ConfigError(
                f"operator.settings = {setting!r}: give name=value; {config.name} has {', '.join(parameters)}"
            )
        known[name] = _value(value)
    made: Operator = factory(**known)
    return made


def _value(text: str) -> Any:
    """A number, true, false, null or a list as JSON writes it; anything else is a text."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def alignment_of(config: ObjectiveConfig) -> Alignment | None:
    """The alignment loss that settings describe, with those settings whose names it knows.

    Raises:
        ConfigError: there is no such loss.
    """
    if config.alignment == "none":
        return None
    function = imported(config.alignment, ALIGNMENTS, "objective.alignment")
    parameters = list(inspect.signature(function).parameters)[3:]
    return BoundAlignment(
        function, tuple((name, getattr(config, name)) for name in parameters if hasattr(config, name))
    )


def objective_of(config: RunConfig) -> Objective:
    """The objective that a run's settings describe."""
    settings = config.objective
    return Objective(
        operator=operator_of(config.operator),
        alignment=alignment_of(settings),
        relevance=settings.relevance,
        ntp_weight=settings.ntp_weight,
        beta=settings.beta,
        aligned_tokens=settings.aligned_tokens,
        eps=config.operator.eps,
    )


def attention_weight_of(config: ObjectiveConfig, step: Int[Array, ""] | int) -> Float[Array, ""]:
    """λ after so many steps."""
    return attention_weight_schedule(step, final=config.attention_weight, warmup=config.warmup)


def optimizer_of(config: OptimizerConfig, *, personal: bool) -> optax.GradientTransformationExtraArgs:
    """The optimizer that settings describe."""
    rates = {name: value for name, value in vars(config).items() if name != "decay"}
    return make_optimizer(**rates, personal=personal)
