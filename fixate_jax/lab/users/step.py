"""The jitted tuning of a chunk of users: each by themselves, side by side under vmap."""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from fixate_jax.backbones.sharding import BATCH_AXES
from fixate_jax.evaluation.forward import PROGRAMS, Jitted
from fixate_jax.lab.config import ObjectiveConfig, OptimizerConfig, PromptConfig, RunConfig
from fixate_jax.lab.parts import attention_weight_of, objective_of
from fixate_jax.lab.users.data import PageTable, UserSessions, take_batch
from fixate_jax.objective import loss_parts
from fixate_jax.prompts import PromptParams
from fixate_jax.tuning.optimizer import rate_factor
from fixate_jax.tuning.step import Objective, objective_gradient, session_losses

Mode = Literal["coefficients", "private"]


class UserState(NamedTuple):
    """All that changes while a user is tuned; with a first axis of users, a chunk's.

    Attributes:
        own: the user's coefficients z_u over a frozen basis, or the private prompt P_u.
        optimizer: AdamW's state.
        best: ``own`` where the validation score was lowest.
        best_score: that score; infinite before the first validation, and for users who have no validation sessions.
        start_score: score before the first step.
        best_step: optimizer steps taken at ``best``.
        without_gain: validations since then.
        steps: optimizer steps taken.
        stopped: True once there were as many validations without gain as patience allows; nothing changes after that.
    """

    own: Float[Array, "*own"]
    optimizer: Any
    best: Float[Array, "*own"]
    best_score: Float[Array, ""]
    start_score: Float[Array, ""]
    best_step: Int[Array, ""]
    without_gain: Int[Array, ""]
    steps: Int[Array, ""]
    stopped: Bool[Array, ""]


class Frozen(NamedTuple):
    """What all users of a chunk share and nobody changes.

    Attributes:
        params: the backbone's weights.
        basis: B, where coefficients are tuned.
        table: page features.
    """

    params: nnx.State
    basis: Float[Array, "basis tokens width"] | None
    table: PageTable


Parts = dict[str, Float[Array, "..."]]


def user_sharding(mesh: Mesh) -> NamedSharding:
    """A chunk's first axis, shared like the rows of a batch."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


Advance = Jitted[[UserState, UserSessions, Frozen, Int[Array, ""], Int[Array, ""]], tuple[UserState, Parts]]


def user_prompt(
    mode: Mode, own: Float[Array, "*own"], basis: Float[Array, "basis tokens width"] | None
) -> PromptParams:
    """One user's prompt as a basis with one row of coefficients; a private prompt is a basis of its own."""
    if mode == "coefficients":
        assert basis is not None
        return PromptParams(basis, own[None])
    return PromptParams(own[None], jnp.zeros((1, 1), jnp.float32))


def user_rule(config: OptimizerConfig, mode: Mode) -> optax.GradientTransformation:
    """AdamW for one user, with the settings of z for coefficients and those of B for a private prompt."""
    if mode == "coefficients":
        rate, decay, clip = config.user_lr, config.user_weight_decay, config.user_clip
    else:
        rate, decay, clip = config.basis_lr, config.basis_weight_decay, config.basis_clip
    return optax.chain(optax.clip_by_global_norm(clip), optax.adamw(rate, weight_decay=decay, mu_dtype=jnp.float32))


def start_states(config: RunConfig, mode: Mode, start: Float[Array, "*own"], users: int) -> UserState:
    """Everybody at the start.

    Args:
        config: the settings.
        mode: what is tuned.
        start: coefficients or prompt that everybody begins with.
        users: how many.
    """
    infinity = jnp.asarray(jnp.inf, jnp.float32)
    none = jnp.zeros((), jnp.int32)
    one = UserState(
        own=start,
        optimizer=user_rule(config.optimizer, mode).init(start),
        best=start,
        best_score=infinity,
        start_score=infinity,
        best_step=none,
        without_gain=none,
        steps=none,
        stopped=jnp.asarray(False),
    )
    state: UserState = jax.tree.map(lambda x: jnp.repeat(jnp.asarray(x)[None], users, axis=0), one)
    return state


def fit_score(config: ObjectiveConfig, parts: dict[str, Float[Array, ""]]) -> Float[Array, ""]:
    """The objective with full λ and without the penalty on z: how well unseen sessions are met, lower being better."""
    score = config.ntp_weight * parts["next_token"]
    return score + config.attention_weight * parts["alignment"] if "alignment" in parts else score


def make_advance(graph: nnx.GraphDef, config: RunConfig, mode: Mode, *, mesh: Mesh, end_token: int = 0) -> Advance:
    """The jitted work between two validations, and the validation after it, for a chunk of users; the state is donated.

    It is called with the state, the users' sessions, what they share, the number of steps taken so far and of steps
    to take; with 0 steps to take it is the validation before the first one. The users have nothing to do with each
    other: there is no sum over them anywhere. Runs with the same backbone and settings share one jitted function.

    Args:
        graph: the backbone's structure.
        config: the run's settings.
        mode: what is tuned.
        mesh: the devices; users are shared among them like the rows of a batch.
        end_token: see :func:`fixate_jax.tuning.step.make_train_step`.

    Returns:
        The new state; and for every user the validation score and the means over the steps of loss, its parts and
        the gradient's norm (0 where no step was taken).
    """
    steps = 0 if config.optimizer.decay == "none" else config.users.steps
    computed = RunConfig(
        operator=config.operator,
        objective=config.objective,
        optimizer=config.optimizer,
        prompt=PromptConfig(tokens=config.prompt.tokens),
    )
    return _advance_program(graph, computed, mode, steps, config.users.patience, mesh, end_token)


@functools.lru_cache(maxsize=PROGRAMS)
def _advance_program(
    graph: nnx.GraphDef, config: RunConfig, mode: Mode, planned: int, patience: int, mesh: Mesh, end_token: int
) -> Any:
    rule = user_rule(config.optimizer, mode)
    full, objective = jnp.float32(config.objective.attention_weight), objective_of(config)

    def one_user(
        state: UserState, sessions: UserSessions, frozen: Frozen, first: Int[Array, ""], count: Int[Array, ""]
    ) -> tuple[UserState, dict[str, Float[Array, ""]]]:
        model = nnx.merge(graph, frozen.params)

        def losses(
            own: Float[Array, "*own"], what: Objective, where: Int[Array, " batch"], weight: Float[Array, ""]
        ) -> Any:
            prompt, batch = user_prompt(mode, own, frozen.basis), take_batch(sessions, frozen.table, where)
            return session_losses(prompt, model, batch, what, weight, end_token=end_token)

        def step(i: Int[Array, ""], carry: Any) -> Any:
            own, optimizer, sums = carry
            at = first + i
            weight = attention_weight_of(config.objective, at)
            here = functools.partial(losses, where=sessions.order[at], weight=weight)
            parts, gradient = objective_gradient(here, own, objective)
            updates, optimizer = rule.update(gradient, optimizer, own)
            own = own + rate_factor(config.optimizer.decay, at, planned) * updates
            parts |= {"gradient": optax.global_norm(gradient)}
            return own, optimizer, {name: sums[name] + parts[name] for name in sums}

        def validate(own: Float[Array, "*own"]) -> Float[Array, ""]:
            def one(total: Float[Array, ""], where: Int[Array, " batch"]) -> tuple[Float[Array, ""], None]:
                score = fit_score(config.objective, losses(own, objective, where, full)[1])
                return total + (where >= 0).sum() * score, None

            total, _ = jax.lax.scan(one, jnp.float32(0), sessions.validation)
            return total / jnp.maximum((sessions.validation >= 0).sum(), 1)

        zeros = {name: jnp.float32(0) for name in (*loss_parts(aligned=objective.alignment is not None), "gradient")}
        own, optimizer, sums = jax.lax.fori_loop(0, count, step, (state.own, state.optimizer, zeros))
        held = (sessions.validation >= 0).any()
        score = jnp.where(held, validate(own), jnp.inf)
        new = _judge(state, own, optimizer, score, first + count, held=held, patience=patience)
        kept: UserState = jax.tree.map(lambda old, now: jnp.where(state.stopped, old, now), state, new)
        return kept, {"score": score} | {name: x / jnp.maximum(count, 1) for name, x in sums.items()}

    side_by_side = jax.vmap(one_user, in_axes=(0, 0, None, None, None))
    return jax.jit(side_by_side, donate_argnums=0, out_shardings=user_sharding(mesh))


def _judge(
    state: UserState,
    own: Float[Array, "*own"],
    optimizer: Any,
    score: Float[Array, ""],
    steps: Int[Array, ""],
    *,
    held: Bool[Array, ""],
    patience: int,
) -> UserState:
    """The state after a validation: is this the best so far, and is it time to stop?

    A score that is no number is no gain. Without validation sessions there is nothing to choose by: the last finite
    parameters are kept, and nobody stops early.
    """
    better = jnp.where(held, score < state.best_score, jnp.isfinite(own).all())
    without_gain = jnp.where(better, 0, state.without_gain + 1)
    return UserState(
        own=own,
        optimizer=optimizer,
        best=jnp.where(better, own, state.best),
        best_score=jnp.where(better, score, state.best_score),
        start_score=jnp.where(steps == 0, score, state.start_score),
        best_step=jnp.where(better, steps, state.best_step),
        without_gain=without_gain,
        steps=steps,
        stopped=held & (without_gain >= patience),
    )
