"""Vision-language models in Flax NNX behind one small interface."""

from fixate_jax.backbones.inputs import PageInputs, Prefix, SequenceInputs, TailOutput, take_branches
from fixate_jax.backbones.loading import EMBEDDED, FAMILIES, Backbone, load_backbone, resolve
from fixate_jax.backbones.processing import EncodedPage, EncodedSession, PageProcessor, SessionEncoder

__all__ = [
    "EMBEDDED",
    "FAMILIES",
    "Backbone",
    "EncodedPage",
    "EncodedSession",
    "PageInputs",
    "PageProcessor",
    "Prefix",
    "SequenceInputs",
    "SessionEncoder",
    "TailOutput",
    "load_backbone",
    "resolve",
    "take_branches",
]
