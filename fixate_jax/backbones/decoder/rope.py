"""Rotary position embeddings: plain, interleaved multi-axis (M-RoPE), and the vision tower's two axes."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fixate_jax.backbones.decoder.attention import precise


def frequency_axes(head_dim: int, mrope_section: tuple[int, ...] | None) -> Int[np.ndarray, " half"]:
    """Which position axis (0 time, 1 height, 2 width) turns each rotary frequency.

    Qwen3-VL interleaves: time, height, width, time, … as far as each section reaches, time for the rest.
    Without sections every frequency follows axis 0, which is plain RoPE.
    """
    axes = np.zeros(head_dim // 2, np.int32)
    if mrope_section is not None:
        for axis in (1, 2):
            axes[axis : mrope_section[axis] * 3 : 3] = axis
    return axes


def rotary_angles(
    positions: Int[Array, "*dims 3"], *, head_dim: int, theta: float, mrope_section: tuple[int, ...] | None
) -> Float[Array, "*dims half"]:
    """Angle of every rotary frequency at every position, in radians (Su et al. 2021; Qwen3-VL report, 2025)."""
    inverse = 1.0 / (theta ** (np.arange(0, head_dim, 2, dtype=np.float32) / head_dim))
    chosen = jnp.take(positions, frequency_axes(head_dim, mrope_section), axis=-1)
    return chosen.astype(jnp.float32) * inverse.astype(np.float32)


def vision_angles(
    positions: Int[Array, "*dims 2"], *, head_dim: int, theta: float = 10000.0
) -> Float[Array, "*dims half"]:
    """Angles in the vision tower: the first half of the frequencies follows the row, the second the column."""
    spatial = head_dim // 2
    inverse = 1.0 / (theta ** (np.arange(0, spatial, 2, dtype=np.float32) / spatial))
    angles = positions[..., None].astype(jnp.float32) * inverse.astype(np.float32)
    return angles.reshape(*positions.shape[:-1], spatial)


def rotate(
    vectors: Float[Array, "*dims heads width"], angles: Float[Array, "*dims half"]
) -> Float[Array, "*dims heads width"]:
    """Turn each pair (i, i + width/2) of a head by its angle; float32 inside, the input's type outside."""
    cos, sin = jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]
    first, second = jnp.split(vectors.astype(precise(vectors)), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(vectors.dtype)
