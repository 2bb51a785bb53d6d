"""Operators by name, for settings and the command line; in Python, call the factories themselves."""

import importlib
import inspect
import json
from collections.abc import Callable
from typing import Any

from fixate_jax.config import OperatorConfig
from fixate_jax.errors import ConfigError
from fixate_jax.probing.attention_row import attention
from fixate_jax.probing.attn_lrp import attention_gradient, attn_lrp
from fixate_jax.probing.glimpse import glimpse
from fixate_jax.probing.input_gradient import input_gradient, integrated_gradients
from fixate_jax.probing.lrp import lrp
from fixate_jax.probing.rollout import rollout
from fixate_jax.probing.trace import Operator

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


def find_operator(name: str) -> Callable[..., Any]:
    """The factory of that name, or whatever a name like ``my_module:sharpest`` imports.

    Raises:
        ConfigError: there is none; naming the ones there are.
    """
    if name in OPERATORS:
        return OPERATORS[name]
    module, _, attribute = name.partition(":")
    if not attribute:
        raise ConfigError(
            f"operator.name = {name!r}: choose one of {', '.join(OPERATORS)}, or import one of your own (module:name)"
        )
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"operator.name = {name!r} cannot be imported: {error}") from error
    return found


def operator_of(config: OperatorConfig) -> Operator:
    """The operator that settings describe.

    A factory gets those settings whose names it knows, and all of ``operator.settings``; a plain function of a trace is
    an operator as it is.

    Raises:
        ConfigError: no such operator, or it lacks one of ``operator.settings``.
    """
    factory = find_operator(config.name)
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
