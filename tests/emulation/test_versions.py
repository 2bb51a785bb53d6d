"""Versions of carousel pages: the same films, each found where the version puts it."""

import numpy as np
import pytest

from fixate_jax.data.carousel import COLUMNS, ROWS, Poster, draw_carousels, poster_boxes
from fixate_jax.data.readers.synthetic.carousel import LABELS
from fixate_jax.emulation import Page
from fixate_jax.emulation.versions import (
    CATALOGUE,
    PLACES,
    VERSIONS,
    as_drawn,
    draw_slates,
    item_name,
    item_order,
    row_order,
    slot_sizes,
)
from fixate_jax.errors import ConfigError

SLATES = draw_slates(pages=3, seed=1)
FIRST = as_drawn(SLATES)


def sign(page: Page, item: str) -> np.ndarray:
    """The lower right of an item's place, where no letter is."""
    x0, y0, x1, y1 = page.relative_boxes[page.items.index(item)]
    pixels = np.asarray(page.image, np.int64)
    rows = slice(round((y0 + y1) / 2 * len(pixels)), round(y1 * len(pixels)))
    return pixels[rows, round((x0 + x1) / 2 * page.image.width) : round(x1 * page.image.width)]


def test_slates_are_drawn_again_and_hold_no_poster_twice() -> None:
    assert draw_slates(pages=5, seed=1)[:3] == SLATES != draw_slates(pages=3, seed=2)
    assert all(len(set(slate)) == PLACES == ROWS * COLUMNS for slate in SLATES)
    assert len({item_name(poster) for poster in CATALOGUE}) == len(CATALOGUE) == 40
    assert item_name(Poster("action", 2)) == "action-3"


def test_as_drawn_is_what_the_users_were_tuned_on() -> None:
    for page, slate in zip(FIRST, SLATES, strict=True):
        assert page.image.tobytes() == draw_carousels(slate, LABELS, width=320).tobytes()
        np.testing.assert_array_equal(page.relative_boxes, poster_boxes())
        assert page.labels == LABELS and page.items == tuple(map(item_name, slate))


@pytest.mark.parametrize("version", sorted(VERSIONS))
def test_every_film_stands_where_its_page_says(version: str) -> None:
    pages = VERSIONS[version](SLATES)
    assert [page.name for page in pages] == [page.name for page in FIRST]
    for page, first in zip(pages, FIRST, strict=True):
        assert set(page.items) == set(first.items)
        assert page.labels == first.labels, "letters keep their places"
        assert page.image.tobytes() != first.image.tobytes()
        for item in page.items:
            here, there = sign(page, item), sign(first, item)
            if version == "sizes":
                # The middle of the sign's edge: of the poster's own colour.
                np.testing.assert_array_equal(here[-5, 2], there[-5, 2])
            else:
                np.testing.assert_array_equal(here, there)


def test_orders_are_as_asked() -> None:
    assert item_order(SLATES)[0].items == FIRST[0].items[::-1]
    by_shade = item_order(SLATES, lambda poster: poster.shade)[0].items
    assert [item[-1] for item in by_shade] == sorted((item[-1] for item in by_shade), reverse=True)
    fours = [item for item in FIRST[0].items if item.endswith("4")]
    assert list(by_shade[: len(fours)]) == fours, "equals stay in the order of the slate"
    genres = VERSIONS["genres"](SLATES)[0].items
    assert list(genres) == [item for item in map(item_name, CATALOGUE) if item in genres]
    rows = np.reshape(FIRST[0].items, (ROWS, COLUMNS))
    np.testing.assert_array_equal(np.reshape(row_order(SLATES, (1, 2, 0))[0].items, (ROWS, COLUMNS)), rows[[1, 2, 0]])


def test_sizes_fill_the_page() -> None:
    page = slot_sizes(SLATES, (4.0, 1.0, 1.0), width=640)[0]
    assert page.image.size == (640, 384)
    heights = (page.relative_boxes[:, 3] - page.relative_boxes[:, 1]).reshape(ROWS, COLUMNS)
    np.testing.assert_allclose(heights, np.repeat([[4 / 6], [1 / 6], [1 / 6]], COLUMNS, axis=1))
    assert page.items == FIRST[0].items
    even = slot_sizes(SLATES, (1.0, 1.0, 1.0))[0]
    difference = np.asarray(even.image, np.int64) - np.asarray(FIRST[0].image, np.int64)
    assert (difference != 0).mean() < 0.01, "but for rounding, equal heights change nothing"


def test_what_cannot_be_drawn_is_named() -> None:
    with pytest.raises(ConfigError, match="catalogue: 14 posters, 14 of them different; a page wants 15"):
        draw_slates(CATALOGUE[:14], pages=1, seed=0)
    with pytest.raises(ConfigError, match="41 posters, 40 of them different"):
        draw_slates((*CATALOGUE, CATALOGUE[0]), pages=1, seed=0)
    with pytest.raises(ConfigError, match="pages = 0: at least 1"):
        draw_slates(pages=0, seed=0)
    with pytest.raises(ConfigError, match=r"rows = \(0, 1, 1\): name each of 0, 1, 2 once"):
        row_order(SLATES, (0, 1, 1))
    with pytest.raises(ConfigError, match=r"heights = \(1\.0, 0\.0, 1\.0\): give 3 numbers above 0"):
        slot_sizes(SLATES, (1.0, 0.0, 1.0))
