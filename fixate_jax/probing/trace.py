"""What an operator gets to see, and what it returns."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, Float

from fixate_jax.backbones.inputs import Prefix


class Trace(NamedTuple):
    """A model stopped just before its tapped layers.

    Attributes:
        model: the backbone; ``model.tail(prefix, taps)`` finishes the forward pass, and ``model.decoder`` holds the
            steps of the prefill.
        prefix: state of the sequence below and beside the tail; ``prefix.below`` is the whole sequence as it enters
            the first tapped layer, ``prefix.start`` its embeddings.
        target: from the tail's logits to ℓ, the value whose relevance is asked for, per sequence and branch.
    """

    model: Any
    prefix: Prefix
    target: Callable[[Float[Array, "batch branch tail vocab"]], Float[Array, "batch branch"]]


class Probe(NamedTuple):
    """What an operator returns.

    Attributes:
        logits: the tail's logits, from the same forward pass.
        relevance: row ``src`` of the operator's R over prefix and tail positions (the prefix in the order of
            ``Stream``), sign and all.
    """

    logits: Float[Array, "batch branch tail vocab"]
    relevance: Float[Array, "batch branch keys"]
