"""Tuning and evaluation on sessions in memory: no files, any operator, loss and optimizer."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from fixate_jax.backbones.loading import Backbone
from fixate_jax.data.page import Session
from fixate_jax.errors import ConfigError, DataError
from fixate_jax.evaluation.metrics import page_metrics
from fixate_jax.objective import Alignment, BoundAlignment, weighted_kl
from fixate_jax.probing import Operator, attn_lrp
from fixate_jax.probing.batches import Batch
from fixate_jax.probing.encode import session_data, with_soft_position
from fixate_jax.probing.look import Look, look
from fixate_jax.prompts import (
    Position,
    PromptParams,
    init_prompt,
    population_prompt,
    private_prompts,
    soft_prompt,
)
from fixate_jax.tuning.optimizer import make_optimizer
from fixate_jax.tuning.step import Objective, session_losses

fixate_optimizer = functools.cache(make_optimizer)
"""FixATE's optimizer, the same one each time, so that a step is compiled once."""
FIXATE_ALIGNMENT = BoundAlignment(weighted_kl, (("gamma", 2.0),))
"""FixATE's alignment loss, the KL with importance weights."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Tuned:
    """Tuned soft prompts, and what it takes to use them.

    Attributes:
        prompt: basis and coefficients.
        users: whose the rows of the coefficients are.
        operator: how it was told where the model looks.
        position: where the soft prompt stands.
        assignment: how tokens were assigned to slots.
        history: means over the sessions of each epoch: loss, next_token, penalty, and alignment where there is one.
    """

    prompt: PromptParams
    users: tuple[str, ...]
    operator: Operator
    position: Position
    assignment: Literal["centre", "area"]
    history: dict[str, Float[np.ndarray, " epochs"]]

    def prompts(
        self, users: Sequence[str], *, unknown: Literal["error", "population"] = "error"
    ) -> Float[Array, "users tokens width"]:
        """Soft tokens of some users.

        Args:
            users: whose; may repeat.
            unknown: what to do with users who were not tuned: stop, or take the mean prompt.

        Raises:
            ConfigError: a user was not tuned.
        """
        row = {user: i for i, user in enumerate(self.users)}
        strangers = [user for user in users if user not in row]
        if strangers and unknown == "error":
            raise ConfigError(f"user {strangers[0]!r} was not tuned; there are {', '.join(self.users[:8])}")
        rows = np.array([row.get(user, len(self.users)) for user in users])
        own = soft_prompt(self.prompt, jnp.arange(len(self.users)))
        return jnp.concatenate([own, population_prompt(self.prompt)[None]])[rows]


def tune(
    backbone: Backbone,
    sessions: Sequence[Session],
    *,
    operator: Operator | None = None,
    alignment: Alignment | None = FIXATE_ALIGNMENT,
    optimizer: optax.GradientTransformation | None = None,
    prompt_tokens: int = 16,
    basis: int = 8,
    init_scale: float = 0.01,
    epochs: int = 30,
    batch: int = 8,
    ntp_weight: float = 0.5,
    attention_weight: float | Callable[[int], float] = 0.5,
    beta: float = 1e-3,
    relevance: Literal["click", "own"] = "click",
    position: Position = "before",
    assignment: Literal["centre", "area"] = "centre",
    seed: int = 0,
) -> Tuned:
    """Tune soft prompts of several people on sessions in memory: P_u = Σ_m softmax(z_u)_m B_m (FixATE).

    The weights stay as they are; only the basis B and one small vector z for each person are learned. Without
    `operator`, `alignment` and `optimizer` these are FixATE's AttnLRP, weighted KL, and AdamW with lazy updates. For a
    loop of your own, differentiate :func:`fixate_jax.probing.look.look`.

    Args:
        backbone: the frozen model.
        sessions: what people saw, looked at and clicked. To choose an epoch, keep some apart and tune for fewer epochs.
        operator: how to tell where the model looks.
        alignment: how that is compared with gaze, one number a page; None: next-token prediction alone.
        optimizer: of the `PromptParams`; the users of a step are given to `update` as ``present`` if it takes that.
        prompt_tokens: K, soft tokens of a prompt.
        basis: M, prompts that people mix theirs of.
        init_scale: standard deviation of the basis at the start.
        epochs: how often each session is seen.
        batch: sessions of an optimizer step.
        ntp_weight: weight of next-token prediction of the click.
        attention_weight: λ, or a schedule of it over the optimizer steps.
        beta: weight of mean‖z‖².
        relevance: whose answer's relevance is aligned, the clicked slot's label or the model's own answer.
        position: where the soft prompt stands.
        assignment: how tokens are assigned to slots.
        seed: of the basis and of the order of sessions.

    Raises:
        DataError: no session.
        LabelError: labels of a page do not suit the tokenizer.
        FloatingPointError: the loss is not finite.
    """
    if not sessions:
        raise DataError("tune: no session is given; give at least one")
    objective = Objective(
        operator=attn_lrp() if operator is None else operator,
        alignment=alignment,
        relevance=relevance,
        ntp_weight=ntp_weight,
        beta=beta,
    )
    users = tuple(dict.fromkeys(session.user for session in sessions))
    how: dict[str, Any] = {"prompt_tokens": prompt_tokens, "position": position, "assignment": assignment}
    data = session_data(backbone, sessions, signal="fixation", users=users, **how)
    sizes = {"basis": basis, "tokens": prompt_tokens, "users": len(users), "width": backbone.width}
    prompt = init_prompt(jax.random.key(seed), init_scale=init_scale, **sizes)
    rule = optax.with_extra_args_support(optimizer or fixate_optimizer())
    state, rng, taken, history = rule.init(prompt), np.random.default_rng(seed), 0, []
    schedule = attention_weight if callable(attention_weight) else lambda _: attention_weight
    for _ in range(epochs):
        order = rng.permutation(len(sessions))
        chosen = np.pad(order, (0, -len(order) % batch), constant_values=-1).reshape(-1, batch)
        epoch = []
        for indices in chosen:
            weight, rows = jnp.float32(schedule(taken)), data.batch([int(i) for i in indices])
            prompt, state, parts = _step(prompt, state, backbone, rows, weight, objective, rule, len(users))
            epoch.append((parts, (indices >= 0).mean()))
            taken += 1
        found, shares = jax.device_get([parts for parts, _ in epoch]), np.array([share for _, share in epoch])
        history.append({name: np.average([parts[name] for parts in found], weights=shares) for name in found[0]})
        if not np.isfinite(history[-1]["loss"]):
            raise FloatingPointError(f"tune: the loss of epoch {len(history)} is not finite; lower the learning rate")
    return Tuned(
        prompt=prompt,
        users=users,
        operator=objective.operator,
        position=position,
        assignment=assignment,
        history={name: np.array([epoch[name] for epoch in history]) for name in (history[0] if history else ())},
    )


@partial(jax.jit, static_argnames=("objective", "rule", "users"))
def _step(
    prompt: PromptParams,
    state: Any,
    backbone: Backbone,
    batch: Batch,
    weight: Float[Array, ""],
    objective: Objective,
    rule: optax.GradientTransformationExtraArgs,
    users: int,
) -> tuple[PromptParams, Any, dict[str, Float[Array, ""]]]:
    """One optimizer step of all users together."""
    losses = partial(session_losses, end_token=backbone.encoder.end_token)
    (_, parts), gradient = jax.value_and_grad(losses, has_aux=True)(prompt, backbone.model, batch, objective, weight)
    present = jnp.zeros(users, bool).at[batch.user].max(batch.weight > 0)
    updates, state = rule.update(gradient, state, prompt, present=present)
    return optax.apply_updates(prompt, updates), state, parts


def tune_users(
    backbone: Backbone,
    sessions: Sequence[Session],
    *,
    over: PromptParams | None = None,
    operator: Operator | None = None,
    alignment: Alignment | None = FIXATE_ALIGNMENT,
    optimizer: optax.GradientTransformation | None = None,
    prompt_tokens: int = 16,
    init_scale: float = 0.01,
    steps: int = 60,
    batch: int = 2,
    ntp_weight: float = 0.5,
    attention_weight: float | Callable[[int], float] = 0.5,
    beta: float = 1e-3,
    relevance: Literal["click", "own"] = "click",
    position: Position = "before",
    assignment: Literal["centre", "area"] = "centre",
    seed: int = 0,
) -> Tuned:
    """Tune each user alone, all of them side by side under `jax.vmap`: users do not affect one another.

    Each learns a private prompt, or where `over` is given the coefficients z_u of P_u = Σ_m softmax(z_u)_m B_m over its
    basis. Arguments are those of :func:`tune` but for the following.

    Args:
        backbone: the frozen model.
        sessions: what users saw, looked at and clicked; all are on the device at once.
        over: a trained basis, such as ``tuned.prompt``; users start with the mean of its coefficients.
        operator: how to tell where the model looks.
        alignment: how that is compared with gaze.
        optimizer: of one user's parameters, an array (None: AdamW with FixATE's rate and decay).
        prompt_tokens: K, soft tokens of a private prompt.
        init_scale: standard deviation of the private prompt that everybody starts with.
        steps: optimizer steps of each user.
        batch: sessions of a step, all of the same user.
        ntp_weight: weight of next-token prediction of the click.
        attention_weight: λ, or a schedule of it over the optimizer steps.
        beta: weight of ‖z‖².
        relevance: whose answer's relevance is aligned.
        position: where the soft prompt stands.
        assignment: how tokens are assigned to slots.
        seed: of the start and of each user's order of sessions.

    Returns:
        The tuned users; the history holds the loss of each step, a mean over users.

    Raises:
        DataError: no session.
        FloatingPointError: the loss of a user is not finite.
    """
    if not sessions:
        raise DataError("tune_users: no session is given; give at least one")
    objective = Objective(
        operator=attn_lrp() if operator is None else operator,
        alignment=alignment,
        relevance=relevance,
        ntp_weight=ntp_weight,
        beta=beta,
    )
    tokens = prompt_tokens if over is None else over.basis.shape[1]
    data = session_data(
        backbone, sessions, prompt_tokens=tokens, position=position, assignment=assignment, signal="fixation"
    )
    users = tuple(dict.fromkeys(session.user for session in sessions))
    if over is None:
        sizes = {"basis": 1, "tokens": tokens, "users": 1, "width": backbone.width}
        start = init_prompt(jax.random.key(seed), init_scale=init_scale, **sizes).basis[0]
    else:
        start = over.coefficients.mean(axis=0)
    schedule = attention_weight if callable(attention_weight) else lambda _: attention_weight
    own, losses = _tune_alone(
        jnp.broadcast_to(start, (len(users), *start.shape)),
        backbone,
        jax.device_put(data.batch(range(len(sessions)))),
        None if over is None else over.basis,
        jnp.array([_order(sessions, user, steps, batch, seed) for user in users]),
        jnp.array([schedule(taken) for taken in range(steps)], jnp.float32),
        objective,
        optax.with_extra_args_support(optimizer or _adamw()),
    )
    lost = [user for user, each in zip(users, np.asarray(losses), strict=True) if not np.isfinite(each).all()]
    if lost:
        raise FloatingPointError(f"tune_users: the loss of {lost[0]!r} is not finite; lower the learning rate")
    return Tuned(
        prompt=private_prompts(own) if over is None else PromptParams(over.basis, own),
        users=users,
        operator=objective.operator,
        position=position,
        assignment=assignment,
        history={"loss": np.asarray(losses).mean(axis=0)},
    )


@functools.cache
def _adamw() -> optax.GradientTransformation:
    return optax.adamw(1e-3, weight_decay=1e-3)


def _order(sessions: Sequence[Session], user: str, steps: int, batch: int, seed: int) -> Int[np.ndarray, "steps batch"]:
    """Which of a user's sessions each step sees: pass after pass over all of them, each in a new order."""
    own = np.array([i for i, session in enumerate(sessions) if session.user == user])
    rng, wanted = np.random.default_rng([seed, *user.encode()]), steps * batch
    passes = [rng.permutation(own) for _ in range(-(-wanted // len(own)))]
    return np.concatenate(passes)[:wanted].reshape(steps, batch)


@partial(jax.jit, static_argnames=("objective", "rule"))
def _tune_alone(
    own: Float[Array, "users ..."],
    backbone: Backbone,
    every: Batch,
    basis: Float[Array, "basis tokens width"] | None,
    orders: Int[Array, "users steps batch"],
    weights: Float[Array, " steps"],
    objective: Objective,
    rule: optax.GradientTransformationExtraArgs,
) -> tuple[Float[Array, "users ..."], Float[Array, "users steps"]]:
    """All steps of all users, and the losses on the way."""

    def loss(own: Float[Array, "..."], rows: Int[Array, " batch"], weight: Float[Array, ""]) -> Float[Array, ""]:
        alone = PromptParams(own[None], jnp.zeros((1, 1))) if basis is None else PromptParams(basis, own[None])
        batch = jax.tree.map(lambda x: x[rows], every)._replace(user=jnp.zeros_like(rows))
        return session_losses(alone, backbone.model, batch, objective, weight, end_token=backbone.encoder.end_token)[0]

    def tuned(own: Float[Array, "..."], order: Int[Array, "steps batch"]) -> Any:
        def step(carry: Any, at: Any) -> Any:
            own, state = carry
            value, gradient = jax.value_and_grad(loss)(own, *at)
            updates, state = rule.update(gradient, state, own)
            return (optax.apply_updates(own, updates), state), value

        (own, _), losses = jax.lax.scan(step, (own, rule.init(own)), (order, weights))
        return own, losses

    return jax.vmap(tuned)(own, orders)


@partial(jax.jit, static_argnames=("operator", "own"))
def _look(backbone: Backbone, batch: Batch, prompt: Any, operator: Operator, *, own: bool) -> Look:
    return look(backbone, batch, prompt, operator, answer="own" if own else batch.click)


def evaluate(
    backbone: Backbone,
    tuned: Tuned | None,
    sessions: Sequence[Session],
    *,
    operator: Operator | None = None,
    relevance: Literal["own", "click"] = "own",
    unknown: Literal["error", "population"] = "error",
    batch: int = 16,
    ks: tuple[int, ...] = (1, 3),
    top_k: int = 5,
) -> dict[str, Float[np.ndarray, " sessions"]]:
    """How close a model comes to people, session by session.

    Args:
        backbone: the frozen model.
        tuned: their prompts; None for the backbone alone.
        sessions: what they saw, looked at and clicked.
        operator: how to tell where it looks (None: as it was tuned, or FixATE's AttnLRP for the backbone alone).
        relevance: for which answer, the model's own (free-running) or the click (teacher-forced).
        unknown: what to do with people who were not tuned: stop, or take the mean prompt for them.
        batch: sessions at a time.
        ks: the k of csh_k, tgo_k and recall_k.
        top_k: slots that top-k JS keeps apart.

    Returns:
        Arrays by name, one number a session: what :func:`fixate_jax.evaluation.metrics.page_metrics` returns.

    Raises:
        DataError: no session.
        ConfigError: a user was not tuned.
    """
    if not sessions:
        raise DataError("evaluate: no session is given; give at least one")
    operator = operator or (attn_lrp() if tuned is None else tuned.operator)
    tokens = 0 if tuned is None else tuned.prompt.basis.shape[1]
    data = session_data(
        backbone,
        sessions,
        prompt_tokens=tokens,
        position="before" if tuned is None else tuned.position,
        assignment="centre" if tuned is None else tuned.assignment,
        signal="fixation",
    )
    soft = None if tuned is None else tuned.prompts([session.user for session in sessions], unknown=unknown)
    parts: list[dict[str, np.ndarray]] = []
    for first in range(0, len(sessions), batch):
        indices = list(range(first, min(first + batch, len(sessions))))
        filled = indices + [-1] * (batch - len(indices))
        rows = with_soft_position(data.batch(filled), tokens)
        prompt = None if soft is None else soft[np.maximum(filled, 0)]
        seen = _look(backbone, rows, prompt, operator, own=relevance == "own")
        found = page_metrics(
            rows.gaze,
            seen.slot_attention,
            seen.label_log_probs,
            rows.click,
            rows.slot_mask,
            ks=ks,
            top_k=top_k,
        )
        parts.append({name: np.asarray(value)[: len(indices)] for name, value in found.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
