"""AdamW for the prompt, where a user who is not in the batch stays exactly as they were."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from fixate_jax.prompts import PromptParams


def per_row(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Run `inner` on every row of a parameter by itself, and only on the rows that are present.

    Each row has a state of its own, so moments and step count of a user advance only when that user was in the batch.
    Plain AdamW would move absent users too: their moments decay, their weights decay, and the bias correction counts
    steps that they never took.

    The update takes an extra argument `present: Bool[Array, " rows"]`. Absent rows get a zero update and keep their
    state bit for bit, whatever their gradient.

    Args:
        inner: any transformation of one row, e.g. ``optax.adamw(1e-3)``.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> rule = per_row(optax.adamw(0.1))
        >>> z = jnp.zeros((2, 3))
        >>> state = rule.init(z)
        >>> updates, state = rule.update(jnp.ones((2, 3)), state, z, present=jnp.array([True, False]))
        >>> updates[:, 0].round(3).tolist()
        [-0.10000000149011612, -0.0]
    """

    def init(params: PyTree[Array]) -> optax.OptState:
        return jax.vmap(inner.init)(params)

    def update(
        updates: PyTree[Array],
        state: optax.OptState,
        params: PyTree[Array] | None = None,
        *,
        present: Bool[Array, " rows"],
        **extra: Any,
    ) -> tuple[PyTree[Array], optax.OptState]:
        del extra
        new_updates, new_state = jax.vmap(inner.update)(updates, state, params)
        # Minus zero is the one number that changes nothing when added, not even the sign of a zero.
        updates = jax.tree.map(lambda new: _where_row(present, new, jnp.full_like(new, -0.0)), new_updates)
        state = jax.tree.map(lambda new, old: _where_row(present, new, old), new_state, state)
        return updates, state

    return optax.GradientTransformationExtraArgs(init, update)


class PromptOptState(NamedTuple):
    """Optimizer state of the two groups."""

    basis: optax.OptState
    coefficients: optax.OptState


def make_optimizer(
    *,
    basis_lr: float = 1e-3,
    user_lr: float = 1e-3,
    basis_weight_decay: float = 1e-3,
    user_weight_decay: float = 1e-3,
    basis_clip: float = 100.0,
    user_clip: float = 5.0,
    personal: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """AdamW on `PromptParams`, with rate, decay and clipping of its own for each group.

    B: gradient clipped to global norm `basis_clip`, then AdamW. z: gradients of the present users clipped together to
    global norm `user_clip`, then AdamW by rows (`per_row`). Gradients of absent users are dropped before the clipping,
    so that they cannot shrink anybody else's.

    The update takes an extra argument `present: Bool[Array, " users"]`: the users in the accumulated batch.

    Args:
        basis_lr: learning rate of B.
        user_lr: learning rate of z.
        basis_weight_decay: decoupled weight decay of B.
        user_weight_decay: decoupled weight decay of z.
        basis_clip: largest global gradient norm of B.
        user_clip: largest global gradient norm of all z together.
        personal: False leaves z as it is, so that all users share one prompt (the "no personalisation" ablation).
    """
    basis_rule = optax.chain(
        optax.clip_by_global_norm(basis_clip),
        optax.adamw(basis_lr, weight_decay=basis_weight_decay, mu_dtype=jnp.float32),
    )
    user_rule: optax.GradientTransformationExtraArgs
    if personal:
        rows = per_row(optax.adamw(user_lr, weight_decay=user_weight_decay, mu_dtype=jnp.float32))
        user_rule = optax.chain(optax.clip_by_global_norm(user_clip), rows)
    else:
        user_rule = optax.with_extra_args_support(optax.set_to_zero())

    def init(params: PromptParams) -> PromptOptState:
        return PromptOptState(basis_rule.init(params.basis), user_rule.init(params.coefficients))

    def update(
        updates: PromptParams,
        state: PromptOptState,
        params: PromptParams | None = None,
        *,
        present: Bool[Array, " users"],
        **extra: Any,
    ) -> tuple[PromptParams, PromptOptState]:
        del extra
        if params is None:
            raise ValueError("AdamW decays weights: call update(grads, state, params, present=…) with the parameters")
        basis, basis_state = basis_rule.update(updates.basis, state.basis, params.basis)
        own = jnp.where(present[:, None], updates.coefficients, 0.0)
        users, user_state = user_rule.update(own, state.coefficients, params.coefficients, present=present)
        return PromptParams(basis, users), PromptOptState(basis_state, user_state)

    return optax.GradientTransformationExtraArgs(init, update)  # type: ignore[arg-type]


def rate_factor(decay: Literal["none", "cosine"], step: Int[Array, ""], steps: int) -> Float[Array, ""]:
    """What both rates are multiplied by in step `step` of `steps`, counted from 0; 1 without decay.

    Adam's update is proportional to its rate, decoupled decay included, so that scaling the update scales the rate.
    One count serves all users: decay follows the run, not how often a person came up.
    """
    if decay == "none":
        return jnp.ones(())
    return jnp.asarray(optax.cosine_decay_schedule(1.0, steps)(step))


def _where_row(present: Bool[Array, " rows"], new: Array, old: Array) -> Array:
    return jnp.where(present.reshape(present.shape + (1,) * (new.ndim - 1)), new, old)
