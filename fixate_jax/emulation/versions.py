"""Versions of drawn carousel pages: the same films in another order, in other rows, in places of other sizes.

A slate is what one page offers: its posters in reading order. Every function here draws all slates in one version, as
pages of the same names with items of the same names, for :func:`fixate_jax.lab.comparison.compare_versions`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
from jaxtyping import Float

from fixate_jax.data.carousel import COLUMNS, GENRES, ROWS, SHADES, Poster, draw_carousels, poster_boxes
from fixate_jax.data.readers.synthetic.carousel import LABELS, PROFILE
from fixate_jax.emulation.pages import Page
from fixate_jax.errors import ConfigError

Slate = tuple[Poster, ...]
"""Posters of one page in reading order."""
CATALOGUE: Slate = tuple(Poster(genre, shade) for genre in GENRES for shade in range(SHADES))
"""Every poster that can be drawn, each once."""
PLACES = ROWS * COLUMNS
WIDTH = 320
"""Pixels across a page, unless told otherwise: what the shipped users were tuned on."""


def item_name(poster: Poster) -> str:
    """What a poster is called, e.g. "action-3" for the third brightness of action."""
    return f"{poster.genre}-{poster.shade + 1}"


def draw_slates(catalogue: Sequence[Poster] = CATALOGUE, *, pages: int, seed: int) -> list[Slate]:
    """Draw what stands on each page: posters of a catalogue, none twice on a page, in random order.

    Args:
        catalogue: to draw from, each poster once.
        pages: how many slates; the first ones are the same whatever the number.
        seed: of the draws.

    Raises:
        ConfigError: the catalogue is too small or holds a poster twice, or no page is wanted.
    """
    if len(catalogue) < PLACES or len(set(catalogue)) < len(catalogue):
        raise ConfigError(
            f"catalogue: {len(catalogue)} posters, {len(set(catalogue))} of them different; a page wants {PLACES}, and "
            "none may be in the catalogue twice"
        )
    if pages < 1:
        raise ConfigError(f"pages = {pages}: at least 1 is needed")
    rng = np.random.default_rng(seed)
    return [tuple(catalogue[i] for i in rng.permutation(len(catalogue))[:PLACES]) for _ in range(pages)]


def as_drawn(slates: Sequence[Slate], *, width: int = WIDTH, profile: str = PROFILE) -> list[Page]:
    """The slates as they are, in places of one size: what other versions are compared with.

    Args:
        slates: posters of each page.
        width: of the pages in pixels.
        profile: what the model is told about the task.
    """
    return _draw(slates, boxes=None, width=width, profile=profile)


def item_order(
    slates: Sequence[Slate],
    score: Callable[[Poster], float] | None = None,
    *,
    width: int = WIDTH,
    profile: str = PROFILE,
) -> list[Page]:
    """The same posters in another order on every page.

    Args:
        slates: posters of each page.
        score: the posters with the highest come first, equals in the order of the slate; None: back to front.
        width: of the pages in pixels.
        profile: what the model is told about the task.
    """

    def ordered(slate: Slate) -> Slate:
        return slate[::-1] if score is None else tuple(sorted(slate, key=lambda poster: -score(poster)))

    return as_drawn([ordered(slate) for slate in slates], width=width, profile=profile)


def row_order(
    slates: Sequence[Slate],
    rows: Sequence[int] = tuple(range(ROWS))[::-1],
    *,
    width: int = WIDTH,
    profile: str = PROFILE,
) -> list[Page]:
    """Whole rows in another order; within a row nothing moves.

    Args:
        slates: posters of each page.
        rows: which row of the slate comes first, second, … (from 0).
        width: of the pages in pixels.
        profile: what the model is told about the task.

    Raises:
        ConfigError: not every row is named once.
    """
    if sorted(rows) != list(range(ROWS)):
        raise ConfigError(f"rows = {tuple(rows)}: name each of {', '.join(map(str, range(ROWS)))} once")
    moved = [tuple(poster for row in rows for poster in slate[row * COLUMNS : (row + 1) * COLUMNS]) for slate in slates]
    return as_drawn(moved, width=width, profile=profile)


def slot_sizes(
    slates: Sequence[Slate],
    heights: Sequence[float] = (2.0, 1.0, 1.0),
    *,
    width: int = WIDTH,
    profile: str = PROFILE,
) -> list[Page]:
    """The same order in rows of other heights, on a page of the same size.

    The heights need not fit the model's visual tokens, but then `operator.assignment` should be "area": by its centre a
    token that two rows share counts for one of them alone.

    Args:
        slates: posters of each page.
        heights: of the rows, in any unit; unless told otherwise the first row is as high as the others together.
        width: of the pages in pixels.
        profile: what the model is told about the task.

    Raises:
        ConfigError: not a height above 0 for each row.
    """
    if len(heights) != ROWS or not all(height > 0 for height in heights):
        raise ConfigError(f"heights = {tuple(heights)}: give {ROWS} numbers above 0, one for each row")
    return _draw(slates, boxes=poster_boxes(heights), width=width, profile=profile)


VERSIONS: Mapping[str, Callable[..., list[Page]]] = {
    "order": item_order,
    "genres": partial(item_order, score=lambda poster: -CATALOGUE.index(poster)),
    "rows": row_order,
    "sizes": slot_sizes,
}
"""Versions by name: back to front; by genre, action first and science last; rows from below; the first row enlarged."""


def _draw(
    slates: Sequence[Slate], *, boxes: Float[np.ndarray, "slots 4"] | None, width: int, profile: str
) -> list[Page]:
    """Pages named by the place of their slate, the same in all versions."""
    return [
        Page(
            relative=True,
            labelled=True,
            name=f"page {i + 1}",
            image=draw_carousels(slate, LABELS, width=width, boxes=boxes),
            boxes=poster_boxes() if boxes is None else boxes,
            labels=LABELS,
            items=tuple(map(item_name, slate)),
            profile=profile,
        )
        for i, slate in enumerate(slates)
    ]
