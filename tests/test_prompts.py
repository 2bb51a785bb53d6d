"""The soft prompt and its parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixate_jax.lab.config import PromptConfig
from fixate_jax.prompts import PromptParams, init_prompt, population_prompt, soft_prompt

CONFIG = PromptConfig(basis=4, tokens=3, init_scale=0.5)


def params(seed: int, users: int = 5, width: int = 64) -> PromptParams:
    start = init_prompt(jax.random.key(seed), **CONFIG.sizes, users=users, width=width)
    return start._replace(coefficients=jax.random.normal(jax.random.key(seed + 1), (users, CONFIG.basis)))


def test_start() -> None:
    start = init_prompt(jax.random.key(0), **PromptConfig(init_scale=0.01).sizes, users=7, width=256)
    assert start.basis.shape == (8, 16, 256)
    assert start.coefficients.shape == (7, 8)
    assert start.basis.dtype == start.coefficients.dtype == jnp.float32
    assert not start.coefficients.any()
    assert float(start.basis.std()) == pytest.approx(0.01, rel=0.02)
    assert abs(float(start.basis.mean())) < 2e-4
    again = init_prompt(jax.random.key(0), **PromptConfig(init_scale=0.01).sizes, users=7, width=256)
    assert (again.basis == start.basis).all()


def test_everybody_begins_with_the_mean_of_the_basis() -> None:
    start = init_prompt(jax.random.key(1), **CONFIG.sizes, users=3, width=64)
    prompts = soft_prompt(start, jnp.arange(3))
    assert (prompts == prompts[:1]).all()
    np.testing.assert_allclose(prompts[0], start.basis.mean(axis=0), rtol=1e-5, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), user=st.lists(st.integers(0, 4), min_size=1, max_size=4))
def test_formula(seed: int, user: list[int]) -> None:
    given_params = params(seed)
    z = np.asarray(given_params.coefficients, np.float64)[user]
    weights = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    wanted = np.einsum("bm,mkd->bkd", weights, np.asarray(given_params.basis, np.float64))
    prompts = soft_prompt(given_params, jnp.array(user))
    assert prompts.dtype == jnp.float32
    np.testing.assert_allclose(prompts, wanted, rtol=1e-5, atol=1e-6)


def test_adding_a_constant_to_z_changes_nothing() -> None:
    given_params = params(3)
    moved = given_params._replace(coefficients=given_params.coefficients + 2.0)
    np.testing.assert_allclose(
        soft_prompt(moved, jnp.arange(5)), soft_prompt(given_params, jnp.arange(5)), rtol=1e-5, atol=1e-6
    )


def test_population_prompt_is_the_mean_over_users() -> None:
    given_params = params(4)
    wanted = soft_prompt(given_params, jnp.arange(5)).mean(axis=0)
    np.testing.assert_allclose(population_prompt(given_params), wanted, rtol=1e-5, atol=1e-6)


def test_only_the_batch_users_have_a_gradient() -> None:
    def loss(p: PromptParams) -> jax.Array:
        return jnp.sum(soft_prompt(p, jnp.array([1, 3])) ** 2)

    gradient = jax.jit(jax.grad(loss))(params(5))
    assert gradient.basis.any()
    assert np.asarray(gradient.coefficients).any(axis=1).tolist() == [False, True, False, True, False]
