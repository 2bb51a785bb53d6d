"""The jitted step and evaluation that settings describe; runs with the same backbone and settings share them."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

from fixate_jax.backbones.sharding import sharing_rows
from fixate_jax.evaluation.forward import PROGRAMS, Evaluation, Jitted, jitted_evaluation
from fixate_jax.lab.config import PromptConfig, RunConfig
from fixate_jax.lab.parts import attention_weight_of, objective_of, operator_of, optimizer_of
from fixate_jax.pipeline.placement import Placement
from fixate_jax.probing.batches import Batch
from fixate_jax.tuning.optimizer import rate_factor
from fixate_jax.tuning.step import TrainState, train_step


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
    optimizer, objective = optimizer_of(config.optimizer, personal=config.prompt.personal), objective_of(config)

    def step(state: TrainState, params: nnx.State, batch: Batch) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
        with sharing_rows(placement and placement.mesh):
            return train_step(
                state,
                nnx.merge(graph, params),
                batch,
                objective,
                optimizer,
                attention_weight=attention_weight_of(config.objective, state.step),
                rate=rate_factor(config.optimizer.decay, state.step, steps),
                users=users,
                end_token=end_token,
            )

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

    Args:
        graph: the backbone's structure.
        config: the run's settings.
        users: number of rows of z.
        steps: planned optimizer steps, over which `optimizer.decay` brings the rates down.
        end_token: of the tokenizer; needed where ``objective.relevance`` is "own" and a label begins another one.
        placement: where on which mesh the arguments are and results go (None: where the arguments happen to be).
    """
    planned = 0 if config.optimizer.decay == "none" else steps
    # The settings that programs are made of, the others at their defaults: equal ones share a program.
    same = RunConfig(
        operator=config.operator,
        objective=replace(config.objective, gaze="session"),
        optimizer=config.optimizer,
        prompt=PromptConfig(personal=config.prompt.personal, tokens=config.prompt.tokens),
    )
    return _train_program(graph, same, users, planned, end_token, placement)


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


def make_evaluate(
    graph: nnx.GraphDef, config: RunConfig, end_token: int, *, placement: Placement | None = None
) -> Jitted[[Float[Array, "batch tokens width"], bool, nnx.State, Batch], Evaluation]:
    """The jitted evaluation with the settings' operator."""
    operator, eps = operator_of(config.operator), config.operator.eps
    found: Any = jitted_evaluation(graph, operator, end_token, eps=eps, placement=placement)
    return found
