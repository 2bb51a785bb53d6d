"""From relevance of visual tokens to a distribution over the page's slots."""

from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fixate_jax.data.boxes import slot_at


def token_centres(rows: int, columns: int) -> Float[np.ndarray, "visual 2"]:
    """Centres (x, y) of a grid of visual tokens in relative page coordinates, in raster order."""
    y, x = np.meshgrid((np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns, indexing="ij")
    return np.stack([x.ravel(), y.ravel()], axis=-1)


def assign_slots(
    boxes: Float[np.ndarray, "slots 4"], rows: int, columns: int, *, how: Literal["centre", "area"] = "centre"
) -> Float[np.ndarray, "slots visual"]:
    """M: how much of each visual token belongs to each slot.

    ``"centre"`` (FixATE): all of a token belongs to the smallest slot whose half-open box holds its centre, by the same
    rule as gaze and clicks (:func:`fixate_jax.data.boxes.slot_at`). A slot smaller than a token, or covered by smaller
    slots, can end up without any: its slot attention is then always 0.

    ``"area"``: the share of the token's area that lies under the slot. What lies under two slots counts for both; where
    a token's shares would then sum to more than 1, they are divided by their sum. No slot is empty.

    Images are resized unevenly, so boxes and token cells are compared in relative page coordinates.

    Args:
        boxes: (x0, y0, x1, y1) of each slot, relative to the page.
        rows: of the grid of visual tokens.
        columns: of that grid.
        how: which of the two.
    """
    if how == "area":
        along_x = _overlap(boxes[:, 0], boxes[:, 2], columns)
        along_y = _overlap(boxes[:, 1], boxes[:, 3], rows)
        share = (along_y[:, :, None] * along_x[:, None, :]).reshape(len(boxes), rows * columns)
        return (share / np.maximum(share.sum(axis=0), 1)).astype(np.float32)
    owner = slot_at(token_centres(rows, columns), boxes)
    return (owner == np.arange(len(boxes))[:, None]).astype(np.float32)


def _overlap(
    low: Float[np.ndarray, " slots"], high: Float[np.ndarray, " slots"], cells: int
) -> Float[np.ndarray, "slots cells"]:
    """Share of each of so many equal cells between 0 and 1 that lies between ``low`` and ``high``."""
    edges = np.arange(cells + 1) / cells
    covered = np.minimum(high[:, None], edges[1:]) - np.maximum(low[:, None], edges[:-1])
    return cells * np.maximum(covered, 0)


def take_visual(
    relevance: Float[Array, "batch branch keys"],
    visual_position: Int[Array, "batch visual"],
    moved: Int[Array, " batch"] | None = None,
) -> Float[Array, "batch branch visual"]:
    """R[src, j] of each visual token j, sign and all, from the relevance of all positions.

    Args:
        relevance: of an operator's :class:`Probe`.
        visual_position: where each visual token stands in the prefix that was put together on the host (0: none).
        moved: by how many places the model moved each prefix (None: by none).
    """
    position = visual_position if moved is None else jnp.maximum(visual_position - moved[:, None], 0)
    position = jnp.broadcast_to(position[:, None], (*relevance.shape[:2], position.shape[1]))
    return jnp.take_along_axis(relevance, position, axis=-1)


def gather_visual(
    relevance: Float[Array, "batch branch keys"],
    visual_position: Int[Array, "batch visual"],
    moved: Int[Array, " batch"] | None = None,
) -> Float[Array, "batch branch visual"]:
    """|R[src, j]| of each visual token j: the magnitude of :func:`take_visual`."""
    return jnp.abs(take_visual(relevance, visual_position, moved))


def slot_attention(
    token_relevance: Float[Array, "batch branch visual"],
    slot_matrix: Float[Array, "batch slots visual"],
    eps: float,
) -> Float[Array, "batch branch slots"]:
    """a = M·r / (Σ M·r + ε): the share of relevance that falls on each slot (FixATE)."""
    mass = jnp.einsum("bnv,bcv->bcn", slot_matrix, token_relevance)
    return mass / (mass.sum(-1, keepdims=True) + eps)
