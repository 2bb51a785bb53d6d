"""Operators that read off a model where it looks, and the assignment of visual tokens to slots."""

from fixate_jax.probing.heat_map import heat_map
from fixate_jax.probing.operators.attention import attention
from fixate_jax.probing.operators.attn_lrp import attention_gradient, attn_lrp
from fixate_jax.probing.operators.glimpse import glimpse
from fixate_jax.probing.operators.input_gradient import input_gradient, integrated_gradients
from fixate_jax.probing.operators.lrp import conservation_error, lrp
from fixate_jax.probing.operators.rollout import rollout
from fixate_jax.probing.slots import assign_slots, gather_visual, slot_attention, take_visual, token_centres
from fixate_jax.probing.trace import Operator, Probe, Tail, Trace, operator, reads_source_row

__all__ = [
    "Operator",
    "Probe",
    "Tail",
    "Trace",
    "assign_slots",
    "attention",
    "attention_gradient",
    "attn_lrp",
    "conservation_error",
    "gather_visual",
    "glimpse",
    "heat_map",
    "input_gradient",
    "integrated_gradients",
    "lrp",
    "operator",
    "reads_source_row",
    "rollout",
    "slot_attention",
    "take_visual",
    "token_centres",
]
