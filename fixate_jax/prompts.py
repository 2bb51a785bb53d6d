"""The soft prompt: a basis shared by all people and one small vector of coefficients for each."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

Position = Literal["before", "after_image"]
"""Where a soft prompt can stand."""


class PromptParams(NamedTuple):
    """All that is ever trained, in float32.

    Attributes:
        basis: B, the shared prompts of `tokens` soft tokens each.
        coefficients: z, one row per user; softmax(z_u) says how user u mixes the basis.
    """

    basis: Float[Array, "basis tokens width"]
    coefficients: Float[Array, "users basis"]


def init_prompt(
    key: PRNGKeyArray, *, basis: int, tokens: int, users: int, width: int, init_scale: float = 0.01
) -> PromptParams:
    """Parameters at the start: B ~ N(0, init_scale²), z = 0, so that everybody begins with the same prompt.

    Args:
        key: random key of the basis.
        basis: M, number of shared prompts.
        tokens: K, soft tokens of each.
        users: number of rows of z.
        width: size of the decoder's embeddings.
        init_scale: standard deviation of B.
    """
    prompts = init_scale * jax.random.normal(key, (basis, tokens, width), jnp.float32)
    return PromptParams(basis=prompts, coefficients=jnp.zeros((users, basis), jnp.float32))


@jax.jit
def soft_prompt(params: PromptParams, user: Int[Array, " batch"]) -> Float[Array, "batch tokens width"]:
    """Prompt of each user, P_u = Σ_m softmax(z_u)_m B_m, in float32 (FixATE, prompt basis).

    Args:
        params: basis and coefficients.
        user: row of z for each sample; must lie in 0..users-1 (jit clips a larger one to the last row).
    """
    return _mix(jax.nn.softmax(params.coefficients[user], axis=-1), params.basis)


@jax.jit
def population_prompt(params: PromptParams) -> Float[Array, "tokens width"]:
    """Mean of all users' prompts: the prompt for somebody who is not among them."""
    weights = jnp.mean(jax.nn.softmax(params.coefficients, axis=-1), axis=0, keepdims=True)
    return _mix(weights, params.basis)[0]


def _mix(
    weights: Float[Array, "batch basis"], basis: Float[Array, "basis tokens width"]
) -> Float[Array, "batch tokens width"]:
    # Accelerators multiply float32 in a shorter type unless told not to; this product is tiny.
    return jnp.einsum("bm,mkd->bkd", weights, basis, precision=jax.lax.Precision.HIGHEST)


def private_prompts(prompts: Float[Array, "users tokens width"]) -> PromptParams:
    """Prompts that users share nothing of, as the evaluation takes them: a basis of which each mixes in only their own.

    Args:
        prompts: each user's soft tokens.
    """
    return PromptParams(prompts, jnp.where(jnp.eye(len(prompts), dtype=bool), 0.0, -jnp.inf))
