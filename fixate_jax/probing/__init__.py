"""Operators that read off a model where it looks, and the assignment of visual tokens to slots."""

from fixate_jax.probing.heat_map import heat_map
from fixate_jax.probing.lrp import conservation_error
from fixate_jax.probing.registry import (
    OPERATORS,
    attention,
    attention_gradient,
    attn_lrp,
    find_operator,
    glimpse,
    input_gradient,
    integrated_gradients,
    lrp,
    operator_of,
    rollout,
)
from fixate_jax.probing.slots import assign_slots, gather_visual, slot_attention, take_visual, token_centres
from fixate_jax.probing.trace import Operator, Probe, Tail, Trace, operator, reads_source_row

__all__ = [
    "OPERATORS",
    "Operator",
    "Probe",
    "Tail",
    "Trace",
    "assign_slots",
    "attention",
    "attention_gradient",
    "attn_lrp",
    "conservation_error",
    "find_operator",
    "gather_visual",
    "glimpse",
    "heat_map",
    "input_gradient",
    "integrated_gradients",
    "lrp",
    "operator",
    "operator_of",
    "reads_source_row",
    "rollout",
    "slot_attention",
    "take_visual",
    "token_centres",
]
