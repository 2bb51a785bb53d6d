"""The jitted computations: one training step, one evaluation of a batch. Everything they use is an argument."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, ParamSpec, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from fixate_jax.backbones.inputs import Prefix, take_branches
from fixate_jax.backbones.sharding import sharing_rows
from fixate_jax.config import PromptConfig, RunConfig
from fixate_jax.objective import (
    Alignment,
    alignment_of,
    attention_weight_schedule,
    coefficient_penalty,
    next_token_loss,
    session_mean,
    total_loss,
)
from fixate_jax.probing import Operator, operator_of
from fixate_jax.probing.batches import Batch
from fixate_jax.probing.passes import EPS, branches_of, label_log_probs, look_for, pick, ready_inputs
from fixate_jax.prompts import PromptParams, soft_prompt
from fixate_jax.tuning.optimizer import make_optimizer, rate_factor
from fixate_jax.tuning.placement import Placement

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result", covariant=True)
PROGRAMS = 32
"""Jitted steps, and evaluations, that a process keeps; the one used longest ago goes first."""


@runtime_checkable
class Jitted(Protocol[Arguments, Result]):
    """A jitted function, which can be looked into."""

    def __call__(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        """Run it, compiled once per combination of shapes."""

    def lower(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Any:
        """What the compiler gets for these arguments."""

    def _cache_size(self) -> int: ...


class TrainState(NamedTuple):
    """All that changes during training."""

    prompt: PromptParams
    optimizer: Any
    step: Int[Array, ""]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What a step minimises, ntp_weight · L_NTP + λ · L_attn + beta · mean‖z‖²; λ is given step by step.

    Attributes:
        operator: how to tell where the model looks.
        alignment: how that is compared with gaze; None: next-token prediction alone.
        relevance: whose answer's relevance is aligned: the clicked slot's label (FixATE), or the model's own answer.
        ntp_weight: weight of next-token prediction.
        beta: weight of the penalty on z.
        eps: ε of slot attention.
    """

    operator: Operator
    alignment: Alignment | None
    relevance: Literal["click", "own"] = "click"
    ntp_weight: float = 0.5
    beta: float = 1e-3
    eps: float = EPS


def objective_of(config: RunConfig) -> Objective:
    """The objective that a run's settings describe."""
    settings = config.objective
    return Objective(
        operator=operator_of(config.operator),
        alignment=alignment_of(settings),
        relevance=settings.relevance,
        ntp_weight=settings.ntp_weight,
        beta=settings.beta,
        eps=config.operator.eps,
    )


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


def _own_answer(model: Any, prefix: Prefix, batch: Batch, end_token: int) -> Int[Array, " batch"]:
    """Slot with the most probable label; nothing is differentiated through the choice."""
    logits = jax.lax.stop_gradient(model.tail(prefix).logits)
    return jnp.argmax(label_log_probs(logits, batch, end_token), axis=-1)


def session_losses(
    prompt: PromptParams,
    model: Any,
    batch: Batch,
    objective: Objective,
    attention_weight: Float[Array, ""],
    *,
    end_token: int = 0,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The objective on one micro-batch: prefill, tail, relevance, slots, loss.

    The relevance that is aligned is that of the clicked slot's label (FixATE) or of the model's own answer, as
    ``objective.relevance`` says; `end_token` is needed for the latter where a label begins another one.

    Returns:
        The loss and its parts, each a mean over the real sessions.
    """
    chosen, inputs = batch.click[:, None], ready_inputs(model, batch, objective.operator)
    own = objective.alignment is not None and objective.relevance == "own"
    inputs = inputs if own else take_branches(inputs, chosen)
    prefix = model.prefill(inputs, soft_prompt(prompt, batch.user))
    if own:
        chosen = jnp.stack([batch.click, _own_answer(model, prefix, batch, end_token)], axis=1)
        prefix = branches_of(prefix, chosen)
    ids, mask = pick(batch.answer_ids, chosen), pick(batch.answer_mask, chosen)
    alignment = None
    if objective.alignment is None:
        logits = model.tail(prefix).logits
    else:
        logits, _, attention = look_for(objective.operator, model, prefix, batch, chosen, objective.eps)
        each = objective.alignment(batch.gaze, attention[:, -1], batch.slot_mask)
        alignment = session_mean(each, batch.weight)
    return total_loss(
        ntp_weight=objective.ntp_weight,
        beta=objective.beta,
        next_token=next_token_loss(logits[:, 0], ids[:, 0], mask[:, 0], batch.weight),
        penalty=coefficient_penalty(prompt.coefficients[batch.user], batch.weight),
        alignment=alignment,
        attention_weight=attention_weight,
    )


def loss_and_gradient(
    prompt: PromptParams,
    model: Any,
    batch: Batch,
    objective: Objective,
    attention_weight: Float[Array, ""],
    *,
    end_token: int = 0,
) -> tuple[dict[str, Float[Array, ""]], PromptParams]:
    """Loss parts and gradient over the micro-batches of an optimizer step, as one mean over their real sessions."""
    total = jnp.maximum(batch.weight.sum(), 1.0)

    def one(carry: PromptParams, micro: Batch) -> tuple[PromptParams, dict[str, Float[Array, ""]]]:
        (_, parts), gradient = jax.value_and_grad(session_losses, has_aux=True)(
            prompt, model, micro, objective, attention_weight, end_token=end_token
        )
        share = micro.weight.sum() / total
        return jax.tree.map(lambda c, x: c + share * x, carry, gradient), jax.tree.map(lambda x: share * x, parts)

    gradient, parts = jax.lax.scan(one, jax.tree.map(jnp.zeros_like, prompt), batch)
    return jax.tree.map(lambda x: x.sum(), parts), gradient


def train_step_of(
    graph: nnx.GraphDef,
    config: RunConfig,
    *,
    users: int,
    steps: int,
    end_token: int = 0,
    placement: Placement | None = None,
) -> Callable[[TrainState, nnx.State, Batch], tuple[TrainState, dict[str, Float[Array, ""]]]]:
    """The optimizer step as a pure function, see `make_train_step`."""
    optimizer = make_optimizer(config.optimizer, personal=config.prompt.personal)
    objective = objective_of(config)

    def step(state: TrainState, params: nnx.State, batch: Batch) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
        weight = attention_weight_schedule(config.objective, state.step)
        with sharing_rows(placement and placement.mesh):
            model = nnx.merge(graph, params)
            parts, gradient = loss_and_gradient(state.prompt, model, batch, objective, weight, end_token=end_token)
        present = jnp.zeros(users, bool).at[batch.user.ravel()].max(batch.weight.ravel() > 0)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.prompt, present=present)
        factor = rate_factor(config.optimizer, state.step, steps)
        prompt = optax.apply_updates(state.prompt, jax.tree.map(lambda update: factor * update, updates))
        parts |= {
            "basis_gradient": optax.global_norm(gradient.basis),
            "user_gradient": optax.global_norm(gradient.coefficients),
        }
        return TrainState(prompt, optimizer_state, state.step + 1), parts

    return step


def make_train_step(
    graph: nnx.GraphDef,
    config: RunConfig,
    *,
    users: int,
    steps: int,
    end_token: int = 0,
    placement: Placement | None = None,
) -> Jitted[[TrainState, nnx.State, Batch], tuple[TrainState, dict[str, Float[Array, ""]]]]:
    """The jitted optimizer step; the state is donated, the frozen weights are an argument.

    Runs with the same backbone and settings in one process share it, so that it is compiled once for them all.

    Args:
        graph: the backbone's structure.
        config: the run's settings.
        users: number of rows of z.
        steps: planned optimizer steps, over which `optimizer.decay` brings the rates down.
        end_token: of the tokenizer; needed where ``objective.relevance`` is "own" and a label begins another one.
        placement: where on which mesh the arguments are and results go (None: where the arguments happen to be).
    """
    planned = 0 if config.optimizer.decay == "none" else steps
    return _train_program(graph, _computed(config), users, planned, end_token, placement)


def _computed(config: RunConfig) -> RunConfig:
    """The settings that programs are made of, the others at their defaults: equal ones share a program."""
    prompt = PromptConfig(personal=config.prompt.personal)
    return RunConfig(operator=config.operator, objective=config.objective, optimizer=config.optimizer, prompt=prompt)


@functools.lru_cache(maxsize=PROGRAMS)
def _train_program(
    graph: nnx.GraphDef, config: RunConfig, users: int, steps: int, end_token: int, placement: Placement | None
) -> Any:
    step = train_step_of(graph, config, users=users, steps=steps, end_token=end_token, placement=placement)
    if placement is None:
        return jax.jit(step, donate_argnums=0)
    places = (placement.state, placement.params, placement.micro_rows)
    results = (placement.state, placement.whole)
    return jax.jit(step, donate_argnums=0, in_shardings=places, out_shardings=results)


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


def make_evaluate(
    graph: nnx.GraphDef,
    config: RunConfig,
    end_token: int,
    *,
    operator: Operator | None = None,
    placement: Placement | None = None,
) -> Jitted[[Float[Array, "batch tokens width"], bool, nnx.State, Batch], Evaluation]:
    """The jitted evaluation of a batch under given soft prompts; one compilation with and without prompt.

    Everything in one process that evaluates the same backbone with the same operator shares it. `operator` takes the
    place of the settings' one.
    """
    operator = operator_of(config.operator) if operator is None else operator
    return _evaluate_program(graph, operator, config.operator.eps, end_token, placement)


@functools.lru_cache(maxsize=PROGRAMS)
def _evaluate_program(
    graph: nnx.GraphDef, operator: Operator, eps: float, end_token: int, placement: Placement | None
) -> Any:
    def evaluate(
        prompt: Float[Array, "batch tokens width"], use_prompt: Bool[Array, ""], params: nnx.State, batch: Batch
    ) -> Evaluation:
        with sharing_rows(placement and placement.mesh):
            return evaluate_batch(prompt, use_prompt, nnx.merge(graph, params), batch, operator, end_token, eps=eps)

    if placement is None:
        return jax.jit(evaluate)
    places = (placement.rows, placement.whole, placement.params, placement.rows)
    return jax.jit(evaluate, in_shardings=places, out_shardings=placement.whole)
