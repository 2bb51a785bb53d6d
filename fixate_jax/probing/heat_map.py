"""From relevance of visual tokens to a picture over the whole page."""

import numpy as np
import scipy
from jaxtyping import Float

from fixate_jax.errors import DataError


def heat_map(
    relevance: Float[np.ndarray, "rows columns"], width: int, height: int
) -> Float[np.ndarray, "{height} {width}"]:
    """Relevance at every pixel of a page: linear between the centres of the tokens' cells, flat beyond the last.

    A pixel's value is relevance per token, not per pixel: it stays between the smallest and the largest of the grid,
    and the mean over the page is the mean over the tokens (to rounding where width and height are multiples of the
    grid's). Multiply by tokens / pixels for a map that sums to the relevance of the page.

    Args:
        relevance: of each token in its place on the page, with sign or without.
        width: of the page in pixels.
        height: likewise.

    Raises:
        DataError: a page without pixels.
    """
    if width < 1 or height < 1:
        raise DataError(f"a heat map of {width} × {height} pixels cannot be drawn; give the size of the page")
    rows, columns = relevance.shape
    return scipy.ndimage.zoom(relevance, (height / rows, width / columns), order=1, mode="nearest", grid_mode=True)
