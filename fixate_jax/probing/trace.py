"""What an operator gets to see, and what it returns."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Float

from fixate_jax.backbones.inputs import Prefix
from fixate_jax.config import OperatorConfig


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


@runtime_checkable
class Operator(Protocol):
    """How an operator is called: a plain function of two arguments.

    It is called inside jit, for a batch of sequences that share no state. What it must keep to:

    * finish the forward pass (``trace.model.tail(trace.prefix)``) and return its logits, so that one pass serves
      relevance and next-token prediction;
    * return relevance of all positions, the prefix's in the order of ``trace.prefix.below`` and then the tail's, of
      shape (batch, branch, keys). A branch is one answer; ``trace.target`` says which logit each of them is about;
    * be differentiable once more: training takes the gradient of a loss of the relevance with respect to the soft
      prompt, which reaches the operator through ``trace.prefix``;
    * give no session a value that depends on the others of its batch or on padding.

    Magnitude, visual tokens and slots are the same for all operators and come after it.
    """

    def __call__(self, trace: Trace, config: OperatorConfig, /) -> Probe:
        """Logits and relevance.

        Args:
            trace: the model, stopped before its tapped layers.
            config: the settings; an operator reads those that mean something to it.
        """
