"""What a model does with a batch of sessions: its answers, and where it looks for the true one and for its own."""

import functools
from typing import Any, NamedTuple, ParamSpec, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from fixate_jax.backbones.sharding import sharing_rows
from fixate_jax.pipeline.placement import Placement
from fixate_jax.probing.batches import Batch
from fixate_jax.probing.passes import EPS, branches_of, label_log_probs, look_for, ready_inputs
from fixate_jax.probing.trace import Operator

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result", covariant=True)
PROGRAMS = 32
"""Jitted functions of a kind that a process keeps; the one used longest ago goes first."""


@runtime_checkable
class Jitted(Protocol[Arguments, Result]):
    """A jitted function, which can be looked into."""

    def __call__(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        """Run it, compiled once per combination of shapes."""

    def lower(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Any:
        """What the compiler gets for these arguments."""

    def _cache_size(self) -> int: ...


class Evaluation(NamedTuple):
    """What the model does with a batch of sessions.

    Attributes:
        log_probs: log-probability of every slot's label as the answer, -inf at padding slots.
        answer: slot with the most probable label (the constrained answer).
        teacher_forced: slot attention a for the true answer.
        free_running: slot attention a for the model's own answer.
        tokens_forced, tokens_free: relevance of each visual token, likewise.
    """

    log_probs: Float[Array, "batch slots"]
    answer: Int[Array, " batch"]
    teacher_forced: Float[Array, "batch slots"]
    free_running: Float[Array, "batch slots"]
    tokens_forced: Float[Array, "batch visual"]
    tokens_free: Float[Array, "batch visual"]


def evaluate_batch(
    prompt: Float[Array, "batch tokens width"],
    use_prompt: Bool[Array, ""] | bool,
    model: Any,
    batch: Batch,
    operator: Operator,
    end_token: int,
    *,
    eps: float = EPS,
) -> Evaluation:
    """Answer probabilities, and slot attention for the true and for the model's own answer, from one prefill."""
    inputs = ready_inputs(model, batch, operator)
    prefix = model.prefill(inputs, prompt, use_prompt)
    log_probs = label_log_probs(model.tail(prefix).logits, batch, end_token)
    answer = jnp.argmax(log_probs, axis=-1)
    chosen = jnp.stack([batch.click, answer], axis=1)
    _, signed, attention = look_for(operator, model, branches_of(prefix, chosen), batch, chosen, eps)
    tokens = jnp.abs(signed)
    return Evaluation(log_probs, answer, attention[:, 0], attention[:, 1], tokens[:, 0], tokens[:, 1])


@functools.lru_cache(maxsize=PROGRAMS)
def jitted_evaluation(
    graph: nnx.GraphDef, operator: Operator, end_token: int, *, eps: float = EPS, placement: Placement | None = None
) -> Any:
    """The jitted :func:`evaluate_batch` under given soft prompts; one compilation with and without prompt.

    Everything in one process that evaluates the same backbone with the same operator shares it.

    Args:
        graph: the backbone's structure.
        operator: how to tell where the model looks.
        end_token: of the tokenizer.
        eps: ε of slot attention.
        placement: where on which mesh the arguments are and results go (None: where the arguments happen to be).

    Returns:
        A function of soft prompts, whether to use them, weights and batch.
    """

    def evaluate(
        prompt: Float[Array, "batch tokens width"], use_prompt: Bool[Array, ""], params: nnx.State, batch: Batch
    ) -> Evaluation:
        with sharing_rows(placement and placement.mesh):
            return evaluate_batch(prompt, use_prompt, nnx.merge(graph, params), batch, operator, end_token, eps=eps)

    if placement is None:
        return jax.jit(evaluate)
    places = (placement.rows, placement.whole, placement.params, placement.rows)
    return jax.jit(evaluate, in_shardings=places, out_shardings=placement.whole)
