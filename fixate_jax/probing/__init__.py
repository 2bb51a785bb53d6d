"""Operators that read off a model where it looks, and the assignment of visual tokens to slots."""

from fixate_jax.errors import ConfigError
from fixate_jax.probing.attention_row import attention_row
from fixate_jax.probing.attn_lrp import attention_gradient, attn_lrp
from fixate_jax.probing.glimpse import glimpse
from fixate_jax.probing.heat_map import heat_map
from fixate_jax.probing.input_gradient import input_gradient, integrated_gradients
from fixate_jax.probing.lrp import conservation_error, lrp
from fixate_jax.probing.rollout import rollout
from fixate_jax.probing.slots import assign_slots, gather_visual, slot_attention, take_visual, token_centres
from fixate_jax.probing.trace import Operator, Probe, Trace

OPERATORS: dict[str, Operator] = {
    "attn_lrp": attn_lrp,
    "attention": attention_row,
    "attention_gradient": attention_gradient,
    "rollout": rollout,
    "glimpse": glimpse,
    "input_gradient": input_gradient,
    "integrated_gradients": integrated_gradients,
    "lrp": lrp,
}
"""Every operator by name; a new one is a file and a line here."""

SOURCE_ROW = {"attn_lrp", "attention", "attention_gradient"}
"""Operators that ask for nothing but row ``src`` of the tapped layers, by name: the tail's, over keys and values that
may come from anywhere. All others look at the sequence's other rows, which must then be computed."""


def get_operator(name: str) -> Operator:
    """The operator of that name.

    Raises:
        ConfigError: naming the ones there are.
    """
    if name not in OPERATORS:
        raise ConfigError(f"operator.name = {name!r}: choose one of {', '.join(OPERATORS)}")
    return OPERATORS[name]


__all__ = [
    "OPERATORS",
    "SOURCE_ROW",
    "Operator",
    "Probe",
    "Trace",
    "assign_slots",
    "conservation_error",
    "gather_visual",
    "get_operator",
    "heat_map",
    "slot_attention",
    "take_visual",
    "token_centres",
]
