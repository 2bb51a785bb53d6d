"""Vision-language models in Flax NNX behind one small interface."""

from fixate_jax.backbones.family import ChatTurn, Family, Model, PageProcessor
from fixate_jax.backbones.inputs import EncodedPage, Prefix, SequenceInputs, TailOutput, stack_pages, take_branches
from fixate_jax.backbones.loading import EMBEDDED, FAMILIES, Backbone, load_backbone, resolve
from fixate_jax.backbones.processing import EncodedSession, SessionEncoder

__all__ = [
    "EMBEDDED",
    "FAMILIES",
    "Backbone",
    "ChatTurn",
    "EncodedPage",
    "EncodedSession",
    "Family",
    "Model",
    "PageProcessor",
    "Prefix",
    "SequenceInputs",
    "SessionEncoder",
    "TailOutput",
    "load_backbone",
    "resolve",
    "stack_pages",
    "take_branches",
]
