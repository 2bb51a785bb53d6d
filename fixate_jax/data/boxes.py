"""Boxes of slots: which of them a point belongs to, one rule for gaze, clicks and visual tokens."""

import numpy as np
from jaxtyping import Float, Int

from fixate_jax.errors import DataError


def slot_at(points: Float[np.ndarray, "points 2"], boxes: Float[np.ndarray, "slots 4"]) -> Int[np.ndarray, " points"]:
    """Index of the smallest box that holds each point, the first of equal ones; −1 where none does.

    A box holds its upper and left edge and not its lower and right one.

    Args:
        points: (x, y) in the units of the boxes.
        boxes: (x0, y0, x1, y1) of each slot.
    """
    x, y = points[:, :1], points[:, 1:]
    x0, y0, x1, y1 = boxes.T
    inside = (x >= x0) & (x < x1) & (y >= y0) & (y < y1)
    areas = (x1 - x0) * (y1 - y0)
    # Boxes of equal size stay equal in pixels and in shares of the page, whatever the last digit says.
    areas = np.where(inside, np.round(areas / areas.max(), 9), np.inf)
    return np.where(inside.any(axis=1), np.argmin(areas, axis=1), -1)


def require_pixels(boxes: Float[np.ndarray, "slots 4"], size: tuple[int, int], where: str) -> None:
    """Refuse boxes that are meant as shares of the page.

    Args:
        boxes: of all slots of a page.
        size: of the page in pixels.
        where: what they are the boxes of, for the message.

    Raises:
        DataError: no box reaches beyond the page's first pixel.
    """
    if boxes.size and boxes.max() <= 1 and min(size) > 2:
        raise DataError(
            f"{where}: all boxes lie between 0 and 1, on a page of {size[0]} × {size[1]} pixels; are these shares of "
            "the page? Multiply x by its width and y by its height"
        )
