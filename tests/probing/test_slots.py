"""Whose a visual token is, by its centre or by its area, and relevance as a picture of the page."""

import warnings
from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixate_jax.backbones import Backbone, load_backbone
from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.backbones.tiny.random import write_tiny_random
from fixate_jax.data.boxes import slot_at
from fixate_jax.errors import DataError
from fixate_jax.pipeline.pages import SlotWarning, warn_of_empty_slots
from fixate_jax.probing import assign_slots, heat_map, take_visual
from fixate_jax.probing.batches import SessionData
from tests.worlds import USERS, letters, made_up_session

GRID = (3, 5)
FINE = 60
"""Sub-cells along each side of the page in the count that areas are held against; a multiple of the grid's."""


def by_counting(boxes: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Shares of area, from small squares whose centres are counted, for boxes on multiples of 1 / FINE."""
    y, x = np.meshgrid((np.arange(FINE) + 0.5) / FINE, (np.arange(FINE) + 0.5) / FINE, indexing="ij")
    shares = []
    for x0, y0, x1, y1 in boxes:
        inside = (x0 < x) & (x < x1) & (y0 < y) & (y < y1)
        shares.append(inside.reshape(rows, FINE // rows, columns, FINE // columns).mean(axis=(1, 3)).ravel())
    return np.stack(shares)


@st.composite
def boxes_on_the_page(draw: st.DrawFn) -> np.ndarray:
    boxes = []
    for _ in range(draw(st.integers(1, 5))):
        x, y = (sorted(draw(st.lists(st.integers(0, FINE), min_size=2, max_size=2, unique=True))) for _ in range(2))
        boxes.append([x[0] / FINE, y[0] / FINE, x[1] / FINE, y[1] / FINE])
    return np.array(boxes)


@settings(max_examples=60, deadline=None)
@given(boxes_on_the_page())
def test_area_is_the_share_of_a_token_under_the_slot(boxes: np.ndarray) -> None:
    counted = by_counting(boxes, *GRID)
    found = assign_slots(boxes, *GRID, how="area")
    np.testing.assert_allclose(found, counted / np.maximum(counted.sum(axis=0), 1), atol=1e-6)
    assert (found.sum(axis=1) > 0).all(), "no slot is empty"
    assert (found.sum(axis=0) <= 1 + 1e-6).all()


@settings(max_examples=40, deadline=None)
@given(boxes_on_the_page(), st.randoms())
def test_area_does_not_depend_on_the_order_of_slots(boxes: np.ndarray, random) -> None:
    order = list(range(len(boxes)))
    random.shuffle(order)
    found = assign_slots(boxes, *GRID, how="area")
    np.testing.assert_allclose(assign_slots(boxes[order], *GRID, how="area"), found[order], atol=1e-7)


def test_a_token_under_two_slots() -> None:
    boxes = np.array([[0.0, 0.0, 0.75, 1.0], [0.5, 0.0, 1.0, 1.0], [0.0, 0.0, 0.25, 1.0]])
    # Two tokens, left and right. By centre, x = 0.25 is in the first slot and x = 0.75 in the second alone, as slots
    # are half-open; the third is left with none.
    np.testing.assert_array_equal(assign_slots(boxes, 1, 2), [[1, 0], [0, 1], [0, 0]])
    # By area the first slot covers all of the left token, of which the third covers half: 1 and ½, scaled to a sum
    # of 1. Of the right one the first covers half, the second all.
    np.testing.assert_allclose(assign_slots(boxes, 1, 2, how="area"), [[2 / 3, 1 / 3], [0, 2 / 3], [1 / 3, 0]])
    # A part under two slots counts for both while a token's shares stay within 1.
    twice = np.array([[0.0, 0.0, 0.2, 1.0], [0.0, 0.0, 0.2, 1.0]])
    np.testing.assert_allclose(assign_slots(twice, 1, 2, how="area"), [[0.4, 0], [0.4, 0]], rtol=1e-6)


def test_where_slots_overlap_a_token_is_the_smallest_ones() -> None:
    boxes = np.array([[0.0, 0.0, 1.0, 1.0], [0.2, 0.0, 1.0, 1.0], [0.0, 0.0, 0.5, 1.0]])
    # Four tokens with centres at 1/8, 3/8, 5/8 and 7/8: the first slot holds all, the second three, the third two.
    expected = np.array([[0, 0, 0, 0], [0, 0, 1, 1], [1, 1, 0, 0]])
    np.testing.assert_array_equal(assign_slots(boxes, 1, 4), expected)
    np.testing.assert_array_equal(assign_slots(boxes[::-1].copy(), 1, 4), expected[::-1])


def test_of_equal_slots_the_first_has_the_token_and_the_gaze() -> None:
    # In shares of the page these differ in the last digit, in pixels they do not.
    pixels = np.array([[10.0, 0.0, 40.0, 30.0], [13.0, 0.0, 43.0, 30.0]])
    shares = pixels / np.array([97.0, 31.0, 97.0, 31.0])
    point = np.array([[20.0, 10.0]])
    assert slot_at(point, pixels) == slot_at(point / np.array([97.0, 31.0]), shares) == 0


def test_visual_tokens_are_found_where_the_prefix_was_moved_to() -> None:
    relevance = jnp.arange(10.0)[None, None] * jnp.array([[[1.0]], [[-1.0]]])
    position = jnp.array([[4, 6, 0], [5, 7, 8]])
    np.testing.assert_array_equal(take_visual(relevance, position)[:, 0], [[4, 6, 0], [-5, -7, -8]])
    moved = take_visual(relevance, position, jnp.array([3, 0]))
    np.testing.assert_array_equal(moved[:, 0], [[1, 3, 0], [-5, -7, -8]])


def test_where_slots_end_between_tokens_both_ways_agree() -> None:
    boxes = np.array([[0.2, 0.0, 0.6, 1 / 3], [0.6, 1 / 3, 1.0, 1.0]])
    np.testing.assert_allclose(assign_slots(boxes, *GRID, how="area"), assign_slots(boxes, *GRID), atol=1e-6)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    directory = write_tiny_random(tmp_path_factory.mktemp("model") / "model")
    return load_backbone(BackboneConfig(path=str(directory)))


def as_assigned(
    backbone: Backbone, sizes: Sequence[tuple[int, int, int]], how: Literal["centre", "area"]
) -> SessionData:
    """Sessions on pages of some sizes, whose page tokens nobody looks at."""
    sessions, encoded = [], []
    for i, (slots, width, height) in enumerate(sizes):
        session, image = made_up_session(i, slots=slots, size=(width, height), labels=letters)
        page = backbone.page_processor(image)
        sessions.append(session)
        encoded.append(backbone.encoder(profile="", labels=session.labels, rows=page.rows, columns=page.columns))
    return SessionData(
        sessions,
        encoded,
        {user: i for i, user in enumerate(USERS)},
        features=lambda pages: (None, None),
        prompt_tokens=4,
        signal="fixation",
        max_lengths=1,
        assignment=how,
    )


def test_slots_without_a_token_are_counted_and_warned_of(backbone: Backbone) -> None:
    sizes = ((25, 96, 64), (3, 192, 128))
    centre, area = as_assigned(backbone, sizes, "centre"), as_assigned(backbone, sizes, "area")
    empty, slots = centre.empty_slots()
    expected = sum(
        int((centre.batch([i]).slot_matrix.sum(-1)[0][: s.slots] == 0).sum()) for i, s in enumerate(centre.sessions)
    )
    assert (empty, slots) == (expected, 28) and empty > 0
    with pytest.warns(SlotWarning, match=f"^{empty} of 28 slots hold no token's centre: .* operator.assignment area"):
        warn_of_empty_slots(centre)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_empty_slots(area)
    assert area.empty_slots() == (0, 28)


def test_batches_hold_the_matrix_that_was_asked_for(backbone: Backbone) -> None:
    # The last two have the same boxes on other grids.
    sizes, first = ((5, 96, 64), (3, 192, 128), (3, 96, 64)), {}
    for how in ("centre", "area"):
        data = as_assigned(backbone, sizes, how)
        for _ in range(2):  # The second time from memory.
            batch = data.batch([0, 1, 2])
            for row, (session, encoded) in enumerate(zip(data.sessions, data.encoded, strict=True)):
                rows, columns = encoded.rows, encoded.columns
                wanted = assign_slots(session.boxes, rows, columns, how=how)
                np.testing.assert_array_equal(batch.slot_matrix[row, : session.slots, : rows * columns], wanted)
        first[how] = batch.slot_matrix[0]
    assert not np.array_equal(first["centre"], first["area"])


def test_a_heat_map_is_linear_between_centres_and_flat_at_the_edge() -> None:
    grid = np.array([[1.0, -3.0], [2.0, 5.0]])
    found = heat_map(grid, 8, 4)
    assert found.shape == (4, 8)
    np.testing.assert_allclose(found[0], np.interp((np.arange(8) + 0.5) / 8, [0.25, 0.75], grid[0]), atol=1e-12)
    np.testing.assert_allclose(found[:, 0], np.interp((np.arange(4) + 0.5) / 4, [0.25, 0.75], grid[:, 0]), atol=1e-12)
    np.testing.assert_allclose(found.mean(), grid.mean(), atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 7), st.integers(1, 7), st.integers(1, 90), st.integers(1, 90))
def test_a_heat_map_has_the_pages_size_and_stays_within_the_relevance(rows: int, columns: int, w: int, h: int) -> None:
    grid = np.random.default_rng(rows * columns).normal(size=(rows, columns))
    found = heat_map(grid, w, h)
    assert found.shape == (h, w)
    assert found.min() >= grid.min() - 1e-9 and found.max() <= grid.max() + 1e-9
    multiple = heat_map(grid, 6 * columns, 4 * rows)
    np.testing.assert_allclose(multiple.mean(), grid.mean(), atol=1e-9)


def test_a_page_without_pixels_is_refused() -> None:
    with pytest.raises(DataError, match="0 × 4 pixels"):
        heat_map(np.ones((2, 2)), 0, 4)
