"""The optimizer: AdamW as in optax for those who are present, nothing at all for those who are not."""

import doctest
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fixate_jax.tuning.optimizer as optimizer_module
from fixate_jax.lab.config import OptimizerConfig
from fixate_jax.lab.parts import optimizer_of
from fixate_jax.prompts import PromptParams
from fixate_jax.tuning.optimizer import per_row, rate_factor

CONFIG = OptimizerConfig(basis_lr=0.03, user_lr=0.1, basis_weight_decay=0.01, user_weight_decay=0.2)
USERS = 6


def random_params(seed: int, scale: float = 1.0) -> PromptParams:
    rng = np.random.default_rng(seed)
    arrays = (scale * rng.standard_normal(shape, np.float32) for shape in ((4, 3, 5), (USERS, 4)))
    return PromptParams(*map(jax.device_put, arrays))


def run(
    optimizer: optax.GradientTransformationExtraArgs,
    start: PromptParams,
    presents: list[list[bool]],
    scale: float = 1.0,
) -> list[tuple[PromptParams, Any]]:
    """Parameters and optimizer state at the start and after each step."""

    @jax.jit
    def step(params: PromptParams, state: Any, grads: PromptParams, present: jax.Array) -> tuple[PromptParams, Any]:
        updates, state = optimizer.update(grads, state, params, present=present)
        new: PromptParams = optax.apply_updates(params, updates)
        return new, state

    history = [(start, optimizer.init(start))]
    for index, present in enumerate(presents):
        grads = random_params(100 + index, scale)
        history.append(step(*history[-1], grads, np.array(present)))
    return history


def user_rows(tree: Any) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def bits(array: np.ndarray) -> bytes:
    return array.tobytes()


def test_with_everybody_present_it_is_plain_adamw() -> None:
    start = random_params(0)
    (params, _), *_ = reversed(run(optimizer_of(CONFIG, personal=True), start, [[True] * USERS] * 5))
    plain = {
        "basis": optax.chain(optax.clip_by_global_norm(100.0), optax.adamw(0.03, weight_decay=0.01)),
        "coefficients": optax.chain(optax.clip_by_global_norm(5.0), optax.adamw(0.1, weight_decay=0.2)),
    }
    for name, rule in plain.items():
        value = getattr(start, name)
        state, update = rule.init(value), jax.jit(rule.update)
        for index in range(5):
            updates, state = update(getattr(random_params(100 + index), name), state, value)
            value = np.asarray(value) + np.asarray(updates)
        np.testing.assert_allclose(getattr(params, name), value, rtol=2e-6, atol=1e-7)


def test_absent_users_and_their_moments_do_not_move_by_a_bit() -> None:
    # Minus zero is in it, since adding plus zero would change its sign.
    start = random_params(1)
    coefficients = np.array(start.coefficients)
    coefficients[:, 0] = -0.0
    start = start._replace(coefficients=jax.device_put(coefficients))
    everybody, some = [True] * USERS, [True, False, True, False, False, True]
    history = run(optimizer_of(CONFIG, personal=True), start, [everybody, some, some, everybody])
    for before, after in ((1, 2), (2, 3)):
        for old, new in zip(
            user_rows((history[before][0].coefficients, history[before][1].coefficients)),
            user_rows((history[after][0].coefficients, history[after][1].coefficients)),
            strict=True,
        ):
            assert old.shape[0] == USERS
            for user, present in enumerate(some):
                assert (bits(old[user]) == bits(new[user])) is not present
    assert all((a != b).all() for a, b in [(history[3][0].coefficients, history[4][0].coefficients)])


def test_a_user_who_was_never_there_stays_as_at_the_start_though_weights_decay() -> None:
    start = random_params(2)
    present = [False] + [True] * (USERS - 1)
    (params, _), *_ = reversed(run(optimizer_of(CONFIG, personal=True), start, [present] * 10))
    assert bits(np.asarray(params.coefficients[0])) == bits(np.asarray(start.coefficients[0]))


def test_a_user_ends_where_a_run_of_their_own_steps_ends() -> None:
    """Two users with the same gradients, one of them absent in between, take the same steps, bit for bit."""
    rule = per_row(optax.adamw(0.1, weight_decay=0.1))
    rng = np.random.default_rng(0)
    start = jax.device_put(np.tile(rng.standard_normal(4, np.float32), (2, 1)))
    grads = rng.standard_normal((3, 4), np.float32)
    update = jax.jit(rule.update)

    def go(plan: list[tuple[int, int]]) -> tuple[jax.Array, Any]:
        params, state = start, rule.init(start)
        for first, second in plan:
            present = np.array([first >= 0, second >= 0])
            updates, state = update(grads[[first, second]], state, params, present=present)
            params = optax.apply_updates(params, updates)
        return params, state

    params, state = go([(0, 0), (1, -1), (-1, -1), (2, 1), (-1, 2)])
    assert bits(np.asarray(params[0])) == bits(np.asarray(params[1]))
    assert optax.tree.get(state, "count").tolist() == [3, 3]


def test_each_user_has_a_step_count() -> None:
    presents = [[user <= step for user in range(USERS)] for step in range(4)]
    _, state = run(optimizer_of(CONFIG, personal=True), random_params(3), presents)[-1]
    assert optax.tree.get(state.coefficients, "count").tolist() == [4, 3, 2, 1, 0, 0]
    assert optax.tree.get(state.basis, "count") == 4


def test_moments_are_float32() -> None:
    _, state = run(optimizer_of(CONFIG, personal=True), random_params(3), [[True] * USERS])[-1]
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(state)} == {"float32", "int32"}


def adam_input(state: Any) -> np.ndarray:
    """The gradient that Adam saw in the first step, from its first moment (1 - 0.9) g."""
    return np.asarray(optax.tree.get(state, "mu")) / 0.1


def test_groups_are_clipped_apart_and_users_together() -> None:
    config = OptimizerConfig(basis_clip=2.0, user_clip=0.5)
    present = [True, True, False, True, False, True]
    _, state = run(optimizer_of(config, personal=True), random_params(4), [present], scale=50.0)[-1]
    assert np.linalg.norm(adam_input(state.basis)) == pytest.approx(2.0, rel=1e-4)
    # The absent users' gradients do not count: the present ones alone reach the norm.
    seen = adam_input(state.coefficients)
    assert np.linalg.norm(seen) == pytest.approx(0.5, rel=1e-4)
    # One factor for all users, not one each.
    factors = (seen / np.asarray(random_params(100, 50.0).coefficients))[np.array(present)]
    np.testing.assert_allclose(factors, factors[0, 0], rtol=1e-4)


def test_small_gradients_are_not_clipped() -> None:
    grads = random_params(100, 0.1)
    _, state = run(optimizer_of(OptimizerConfig(), personal=True), random_params(4), [[True] * USERS], scale=0.1)[-1]
    np.testing.assert_allclose(adam_input(state.basis), grads.basis, rtol=1e-5)
    np.testing.assert_allclose(adam_input(state.coefficients), grads.coefficients, rtol=1e-5)


def test_weight_decay_alone_shrinks_those_present() -> None:
    start = random_params(5)
    present = [True] * 3 + [False] * 3
    params, _ = run(optimizer_of(CONFIG, personal=True), start, [present], scale=0.0)[-1]
    np.testing.assert_allclose(params.basis, start.basis * (1 - 0.03 * 0.01), rtol=1e-6)
    factor = np.where(present, 1 - 0.1 * 0.2, 1.0)[:, None]
    np.testing.assert_allclose(params.coefficients, start.coefficients * factor, rtol=1e-6)


def test_without_personalisation_only_the_basis_moves() -> None:
    start = random_params(6)
    params, _ = run(optimizer_of(CONFIG, personal=False), start, [[True] * USERS] * 3)[-1]
    assert bits(np.asarray(params.coefficients)) == bits(np.asarray(start.coefficients))
    assert (params.basis != start.basis).all()


def test_donated_state_in_jit() -> None:
    optimizer = optimizer_of(CONFIG, personal=True)
    params = random_params(7)
    state = optimizer.init(params)
    traces = []

    def step(params: PromptParams, state: Any, grads: PromptParams, present: jax.Array) -> tuple[PromptParams, Any]:
        traces.append(present)
        updates, state = optimizer.update(grads, state, params, present=present)
        new: PromptParams = optax.apply_updates(params, updates)
        return new, state

    present = jnp.array([True, False] * 3)
    wanted = step(params, state, random_params(8), present)
    donating = jax.jit(step, donate_argnums=(0, 1))
    got = donating(params, state, random_params(8), present)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), got, wanted)
    assert params.basis.is_deleted()
    donating(*got, random_params(9), present)
    # Once without jit, once for it: other users present is no reason to compile anew.
    assert len(traces) == 2


def test_parameters_are_needed_for_decay() -> None:
    optimizer = optimizer_of(CONFIG, personal=True)
    params = random_params(7)
    with pytest.raises(ValueError, match="with the parameters"):
        optimizer.update(params, optimizer.init(params), present=jnp.ones(USERS, bool))


def test_docstring_example() -> None:
    assert doctest.testmod(optimizer_module).failed == 0


def test_cosine_decay_brings_both_rates_to_zero() -> None:
    config = OptimizerConfig(decay="cosine")
    factors = [float(rate_factor(config.decay, jnp.asarray(step), 8)) for step in (0, 4, 8)]
    np.testing.assert_allclose(factors, [1.0, 0.5, 0.0], atol=1e-6)
    assert float(rate_factor("none", jnp.asarray(8), 8)) == 1.0
