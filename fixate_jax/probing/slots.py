"""From relevance of visual tokens to a distribution over the page's slots."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def token_centres(rows: int, columns: int) -> Float[np.ndarray, "visual 2"]:
    """Centres (x, y) of a grid of visual tokens in relative page coordinates, in raster order."""
    y, x = np.meshgrid((np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns, indexing="ij")
    return np.stack([x.ravel(), y.ravel()], axis=-1)


def assign_slots(boxes: Float[np.ndarray, "slots 4"], rows: int, columns: int) -> Float[np.ndarray, "slots visual"]:
    """The 0/1 matrix M: a visual token belongs to the first slot whose half-open box holds its centre.

    Images are resized unevenly, so boxes and token cells are compared in relative page coordinates. A slot smaller
    than a token can end up without any; its slot attention is then 0.

    Args:
        boxes: (x0, y0, x1, y1) of each slot, relative to the page.
        rows, columns: the grid of visual tokens.
    """
    x, y = token_centres(rows, columns).T
    x0, y0, x1, y1 = boxes.T[:, :, None]
    inside = (x0 <= x) & (x < x1) & (y0 <= y) & (y < y1)
    first = inside & (np.cumsum(inside, axis=0) == 1)
    return first.astype(np.float32)


def gather_visual(
    relevance: Float[Array, "batch branch keys"],
    visual_position: Int[Array, "batch visual"],
    moved: Int[Array, " batch"] | None = None,
) -> Float[Array, "batch branch visual"]:
    """|R[src, j]| of each visual token j, from the relevance of all positions.

    Args:
        relevance: of an operator's :class:`Probe`.
        visual_position: where each visual token stands in the prefix that was put together on the host (0: none).
        moved: by how many places the model moved each prefix (None: by none).
    """
    position = visual_position if moved is None else jnp.maximum(visual_position - moved[:, None], 0)
    position = jnp.broadcast_to(position[:, None], (*relevance.shape[:2], position.shape[1]))
    return jnp.abs(jnp.take_along_axis(relevance, position, axis=-1))


def slot_attention(
    token_relevance: Float[Array, "batch branch visual"],
    slot_matrix: Float[Array, "batch slots visual"],
    eps: float,
) -> Float[Array, "batch branch slots"]:
    """a = M·r / (Σ M·r + ε): the share of relevance that falls on each slot (FixATE)."""
    mass = jnp.einsum("bnv,bcv->bcn", slot_matrix, token_relevance)
    return mass / (mass.sum(-1, keepdims=True) + eps)
