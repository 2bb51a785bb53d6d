"""The drawn carousel page: genres can be told apart, labels can be read, and slots are where the posters are."""

from itertools import combinations

import numpy as np
import pytest

from fixate_jax.data.carousel import (
    BACKGROUND,
    COLUMNS,
    GENRES,
    ROWS,
    SHADES,
    Poster,
    draw_carousels,
    poster_boxes,
)
from fixate_jax.data.store import encode_image

PLACES = ROWS * COLUMNS
LABELS = tuple("ABCDEFGHIJKLMNO")
NO_LABELS = (None,) * PLACES
MIXED = tuple(Poster(list(GENRES)[i % len(GENRES)], i % SHADES) for i in range(PLACES))
WIDTHS = [64, 320, 1100]


def pixels(
    posters: tuple[Poster | None, ...], labels: tuple[str | None, ...] = LABELS, *, width: int = 320
) -> np.ndarray:
    return np.asarray(draw_carousels(posters, labels, width=width), np.int64)


def place(page: np.ndarray, slot: int) -> np.ndarray:
    """The part of a page inside a slot's box."""
    height, width, _ = page.shape
    x0, y0, x1, y1 = (round(v) for v in poster_boxes()[slot] * np.array([width, height, width, height]))
    return page[y0:y1, x0:x1]


def test_boxes_cover_the_page_in_reading_order_and_do_not_overlap() -> None:
    boxes = poster_boxes()
    assert boxes.shape == (PLACES, 4) and boxes.min() == 0 and boxes.max() == 1
    for a, b in combinations(boxes, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
    np.testing.assert_allclose(((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sum(), 1)
    assert [(y, x) for x, y, _, _ in boxes] == sorted((y, x) for x, y, _, _ in boxes)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_is_rgb_and_its_places_are_square(width: int) -> None:
    image = draw_carousels(MIXED, LABELS, width=width)
    assert image.mode == "RGB" and image.size == (width, round(0.6 * width))
    assert width / COLUMNS == pytest.approx(image.height / ROWS, abs=0.5)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_poster_stays_in_its_box_and_empty_places_are_background(width: int) -> None:
    empty = pixels((None,) * PLACES, width=width)
    assert (empty == BACKGROUND).all()
    for slot in range(PLACES):
        page = pixels(tuple(MIXED[i] if i == slot else None for i in range(PLACES)), width=width)
        # Where the box does not end on a pixel, the margin takes up the rounding.
        drawn = (page != BACKGROUND).any(axis=2)
        assert drawn.sum() == (place(page, slot) != BACKGROUND).any(axis=2).sum()
        assert 0.7 < drawn.sum() / (width / COLUMNS) ** 2 < 1


@pytest.mark.parametrize("width", [64, 320])
@pytest.mark.parametrize("labelled", [True, False])
def test_no_two_genres_look_alike_in_any_brightness(labelled: bool, width: int) -> None:
    looks = {}
    for shade in range(SHADES):
        for genre in GENRES:
            page = pixels(
                (Poster(genre, shade), *(None,) * (PLACES - 1)), LABELS if labelled else NO_LABELS, width=width
            )
            looks[genre, shade] = place(page, 0)
    for (a, one), (b, other) in combinations(looks.items(), 2):
        if a[0] != b[0]:
            assert np.abs(one - other).mean() > 10, f"{a} and {b}"
        else:
            assert (one != other).any(), f"{a} and {b}"


def test_colours_are_those_of_the_genre_in_its_shade() -> None:
    page = pixels(MIXED)
    for slot, poster in enumerate(MIXED):
        wanted = np.array(GENRES[poster.genre][0]) * (1 - 0.1 * poster.shade)
        np.testing.assert_allclose(place(page, slot)[-6, 6], wanted, atol=0.51)


def test_every_glyph_is_one_of_its_own_and_has_contrast() -> None:
    assert len({glyph for _, glyph in GENRES.values()}) == len(GENRES)
    masks = []
    for genre in GENRES:
        for shade in range(SHADES):
            poster = place(pixels((Poster(genre, shade), *(None,) * (PLACES - 1)), NO_LABELS), 0)
            fill = poster[-6, 6]
            ink = (np.abs(poster - fill).max(axis=2) > 60) & (poster != BACKGROUND).any(axis=2)
            assert 0.05 < ink.mean() < 0.5, f"{genre} {shade}"
        masks.append(ink)
    for one, other in combinations(masks, 2):
        assert (one != other).mean() > 0.02


@pytest.mark.parametrize("width", [160, 320, 1100])
def test_labels_are_black_on_white_in_the_corner_of_their_poster_clear_of_the_glyph(width: int) -> None:
    bare, page = pixels(MIXED, NO_LABELS, width=width), pixels(MIXED, width=width)
    for slot, poster in enumerate(MIXED):
        before, after = place(bare, slot), place(page, slot)
        changed = (before != after).any(axis=2)
        side = len(after)
        assert not changed[round(0.42 * side) :].any() and not changed[:, round(0.38 * side) :].any()
        label = after[changed]
        assert (label == 255).all(axis=1).mean() > 0.4, f"{LABELS[slot]}: white"
        assert (label.max(axis=1) < 100).mean() > 0.03, f"{LABELS[slot]}: black"
        fill = np.round(np.array(GENRES[poster.genre][0]) * (1 - 0.1 * poster.shade))
        covered = np.abs(before[changed] - fill).max(axis=1) > 1
        assert covered.mean() < 0.1, f"{LABELS[slot]} hides the {GENRES[poster.genre][1]}"


@pytest.mark.parametrize("width", [160, 320])
def test_all_labels_look_different(width: int) -> None:
    same = (Poster("drama"),) * PLACES
    corners = [place(pixels(same, (label,) * PLACES, width=width), 0) for label in LABELS]
    for (a, one), (b, other) in combinations(zip(LABELS, corners, strict=True), 2):
        assert (np.abs(one - other).max(axis=2) > 100).sum() >= 3, f"{a} and {b}"


def test_the_same_page_gives_the_same_bytes() -> None:
    first, second = (encode_image(draw_carousels(MIXED, LABELS, width=320)) for _ in range(2))
    assert first == second


def test_every_place_needs_a_poster_or_none() -> None:
    with pytest.raises(ValueError):
        draw_carousels(MIXED[:-1], LABELS, width=320)
