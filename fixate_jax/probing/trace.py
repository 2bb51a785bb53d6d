"""What an operator gets to see, what it returns, and how it is made from its settings."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Concatenate, NamedTuple, ParamSpec, Protocol, runtime_checkable

from jaxtyping import Array, Float

from fixate_jax.backbones.inputs import Prefix

Settings = ParamSpec("Settings")


class Probe(NamedTuple):
    """What an operator returns.

    Attributes:
        logits: the tail's logits, from the same forward pass.
        relevance: row ``src`` of the operator's R over prefix and tail positions (the prefix in the order of
            ``Stream``), sign and all.
    """

    logits: Float[Array, "batch branch tail vocab"]
    relevance: Float[Array, "batch branch keys"]


class Tail(NamedTuple):
    """The answering positions after the last layer.

    Attributes:
        logits: scores of the vocabulary at each tail position.
        rows: post-softmax attention of each tail position in each tapped layer, over prefix then tail; the last is
            that of ``src``.
        value: the tail's values in each tapped layer.
    """

    logits: Float[Array, "batch branch tail vocab"]
    rows: Float[Array, "layers batch branch heads tail keys"]
    value: Float[Array, "layers batch branch tail kv head"]

    def with_relevance(self, relevance: Float[Array, "batch branch keys"]) -> Probe:
        """What an operator returns that found this relevance of all positions."""
        return Probe(self.logits, relevance)


class Trace(NamedTuple):
    """A model stopped just before its tapped layers.

    Attributes:
        model: the backbone; ``model.decoder`` holds the steps of the prefill.
        prefix: state of the sequence below and next to the tail; ``prefix.below`` is the whole sequence as it enters
            the first tapped layer, ``prefix.start`` its embeddings.
        target: from the tail's logits to ℓ, the value whose relevance is asked for, per sequence and branch.
    """

    model: Any
    prefix: Prefix
    target: Callable[[Float[Array, "batch branch tail vocab"]], Float[Array, "batch branch"]]

    def tail(self, taps: Float[Array, "layers batch branch heads tail keys"] | None = None) -> Tail:
        """Finish the forward pass.

        Args:
            taps: added to every tapped layer's attention after the softmax; zeros to differentiate with respect to.
        """
        return Tail(*self.model.tail(self.prefix, taps))


@runtime_checkable
class Operator(Protocol):
    """How an operator is called: any function of a trace.

    It is called inside jit, for a batch of sequences that share no state. What it must keep to:

    * finish the forward pass (:meth:`Trace.tail`) and return its logits, so that one pass serves relevance and
      next-token prediction;
    * return relevance of all positions, the prefix's in the order of ``trace.prefix.below`` and then the tail's, of
      shape (batch, branch, keys). A branch is one answer; ``trace.target`` says which logit each of them is about;
    * be differentiable once more: training takes the gradient of a loss of the relevance with respect to the soft
      prompt, which reaches the operator through ``trace.prefix``;
    * give no session a value that depends on the others of its batch or on padding;
    * be hashable, so that jit can take it as a static argument: a function, or what a factory made by
      :func:`operator` returns. A lambda written anew at each call is compiled at each call.

    Magnitude, visual tokens and slots are the same for all operators and come after it.
    """

    def __call__(self, trace: Trace, /) -> Probe:
        """Logits and relevance."""

    def __hash__(self) -> int: ...


@dataclass(frozen=True)
class BoundOperator:
    """An operator with its settings; two with the same settings are equal and share compiled programs.

    Attributes:
        function: from a trace and the settings to logits and relevance.
        settings: names and values.
        source_row: whether it reads nothing but the answering row, see :func:`reads_source_row`.
    """

    function: Callable[..., Probe]
    settings: tuple[tuple[str, Any], ...]
    source_row: bool

    def __call__(self, trace: Trace, /) -> Probe:
        return self.function(trace, **dict(self.settings))

    def __repr__(self) -> str:
        return f"{self.function.__name__}({', '.join(f'{name}={value!r}' for name, value in self.settings)})"


def operator(
    *, source_row: bool = False
) -> Callable[[Callable[Concatenate[Trace, Settings], Probe]], Callable[Settings, BoundOperator]]:
    """Make a factory of operators from a function of a trace and keyword settings.

    Args:
        source_row: it reads nothing but the answering row, see :func:`reads_source_row`.

    Example:
        >>> @operator(source_row=True)
        ... def last_layer(trace: Trace, *, power: float = 1.0) -> Probe:
        ...     out = trace.tail()
        ...     return out.with_relevance(out.rows[-1, ..., -1, :].mean(axis=2) ** power)
        >>> last_layer(power=2.0)
        last_layer(power=2.0)
    """

    def factory_of(function: Callable[Concatenate[Trace, Settings], Probe]) -> Callable[Settings, BoundOperator]:
        signature = inspect.Signature(list(inspect.signature(function).parameters.values())[1:])

        def factory(*args: Settings.args, **settings: Settings.kwargs) -> BoundOperator:
            bound = signature.bind(*args, **settings)
            bound.apply_defaults()
            values = {name: tuple(x) if isinstance(x, list) else x for name, x in bound.arguments.items()}
            return BoundOperator(function, tuple(values.items()), source_row)

        functools.update_wrapper(factory, function)
        factory.__signature__ = signature  # type: ignore[attr-defined]
        factory.__annotations__ = {}
        return factory

    return factory_of


def reads_source_row(operator: Operator) -> bool:
    """Whether an operator asks for nothing but row ``src`` of the tapped layers: the tail's, over keys and values.

    Those may come from anywhere, so such an operator works over cached keys and values of the page. All others look at
    the sequence's other rows, which must then be computed. An operator of one's own says so by an attribute
    ``source_row = True``, or is made by :func:`operator`.
    """
    return bool(getattr(operator, "source_row", False))
