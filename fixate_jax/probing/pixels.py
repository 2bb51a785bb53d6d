"""AttnLRP on through the vision tower: relevance of the page's pixels."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fixate_jax.backbones.inputs import EncodedPage, SequenceInputs
from fixate_jax.backbones.internvl import pages as internvl_pages
from fixate_jax.backbones.qwen3_vl import vision as qwen3_vl_vision
from fixate_jax.errors import ConfigError
from fixate_jax.probing.operators.input_gradient import Embeddings, embedding_gradient
from fixate_jax.probing.rules import LrpRules
from fixate_jax.probing.trace import Trace


class PixelRelevance(NamedTuple):
    """Relevance before and after the vision tower, sign and all.

    Attributes:
        tokens: of each page token, summed over its levels.
        pixels: of each number that the tower reads, in the order in which it reads them.
    """

    tokens: Float[Array, "batch branch tokens"]
    pixels: Float[Array, "batch branch unit *values"]


def pixel_relevance(trace: Trace, inputs: SequenceInputs, pages: Any) -> PixelRelevance:
    """R = pixel · ∂ℓ/∂pixel, the gradient under AttnLRP's rules in decoder and vision tower alike.

    Pixels are as the tower reads them, normalised: one of the mean colour has no relevance. The tower's biases, class
    token and learned positions keep their share of relevance and its softmaxes change the sum, so that pixels add up
    to something else than tokens do.

    Args:
        trace: the stopped model.
        inputs: the sequences that the trace was made from.
        pages: their pages, as the vision tower reads them.
    """
    rules = LrpRules()
    _, gradient = embedding_gradient(trace, Embeddings.of(trace), rules)
    levels = jnp.concatenate([gradient.hidden[:, None], gradient.deep], axis=1)
    at_tokens = _at_tokens(levels, inputs, trace.prefix.start.moved)
    field = pages._fields[0]

    def encode(pixels: Array) -> Array:
        return trace.model.vision(pages._replace(**{field: pixels}), rules)[:, :, : levels.shape[1]]

    features, pullback = jax.vjp(encode, getattr(pages, field))
    (to_pixels,) = jax.vmap(pullback)(at_tokens.astype(features.dtype))
    tokens = jnp.einsum("btld,cbtld->bct", features, at_tokens)
    return PixelRelevance(tokens, jnp.moveaxis(getattr(pages, field) * to_pixels, 0, 1))


def _at_tokens(
    levels: Float[Array, "branch levels batch seq width"], inputs: SequenceInputs, moved: Int[Array, " batch"] | None
) -> Float[Array, "branch batch tokens levels width"]:
    """Gradient at the page's tokens, from that at the places of the sequence where they stand."""
    count, seq = inputs.features.shape[1], inputs.visual_index.shape[1]
    index = inputs.visual_index if moved is None else jax.vmap(jnp.roll)(inputs.visual_index, -moved)
    index = jnp.where(index < 0, count, index)

    def one(rows: Float[Array, "seq branch levels width"], index: Int[Array, " seq"]) -> Array:
        return jnp.zeros((count, *rows.shape[1:]), rows.dtype).at[index].add(rows, mode="drop")

    assert levels.shape[3] == seq
    return jnp.moveaxis(jax.vmap(one)(jnp.moveaxis(levels, (2, 3), (0, 1)), index), 2, 0)


def page_map(
    relevance: Float[np.ndarray, "unit value *more"], page: EncodedPage, config: Any
) -> Float[np.ndarray, "height width"]:
    """A picture of one page's pixel relevance, as large as the page was resized to; its sum is the relevance's.

    Args:
        relevance: of one page and branch, its padding cut off or not.
        page: the page.
        config: of the backbone.

    Raises:
        ConfigError: for a backbone of whose pages it is not known here how they lie.
    """
    kind = type(page.inputs)
    if kind not in LAYOUTS:
        raise ConfigError(f"{kind.__module__}.{kind.__name__}: say in fixate_jax.probing.pixels.LAYOUTS how pages lie")
    return LAYOUTS[kind](relevance[: page.inputs.valid.shape[1]], page, config)


def _from_patches(relevance: np.ndarray, page: EncodedPage, config: Any) -> np.ndarray:
    """Qwen3-VL: patches, each of so many channels and frames."""
    vision = config.vision
    patches = relevance.reshape(len(relevance), -1, vision.patch, vision.patch).sum(1)
    rows, columns = page.rows * vision.merge, page.columns * vision.merge
    grid = np.zeros((rows, columns, vision.patch, vision.patch), patches.dtype)
    row, column = page.inputs.position[0].T
    grid[row, column] = patches
    return grid.swapaxes(1, 2).reshape(rows * vision.patch, columns * vision.patch)


def _from_tiles(relevance: np.ndarray, page: EncodedPage, config: Any) -> np.ndarray:
    """InternVL: tiles in raster order; a thumbnail's pixel stands for one of every tile's size, and is shared out."""
    rows, columns = page.rows // config.tile_side, page.columns // config.tile_side
    if config.tile_layout == "raster":
        rows, columns = columns, rows
    tiles = relevance.sum(1)
    side = tiles.shape[-1]
    whole = tiles[: rows * columns].reshape(rows, columns, side, side)
    whole = whole.swapaxes(1, 2).reshape(rows * side, columns * side)
    for thumbnail in tiles[rows * columns :]:
        whole = whole + thumbnail.repeat(rows, 0).repeat(columns, 1) / (rows * columns)
    return whole


LAYOUTS: dict[type, Callable[[np.ndarray, EncodedPage, Any], np.ndarray]] = {
    qwen3_vl_vision.PageInputs: _from_patches,
    internvl_pages.PageInputs: _from_tiles,
}
"""How each family's pages lie."""
