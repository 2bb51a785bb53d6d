"""Where things are on a page: patches, visual tokens, slots."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import load_file, save_file

from fixate_jax.backbones import Backbone, load_backbone
from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.backbones.qwen3_vl.vision import VisionConfig, patch_geometry
from fixate_jax.backbones.tiny.random import write_tiny_random
from fixate_jax.probing import assign_slots, token_centres

GRIDS = ((2, 2), (2, 26), (26, 2), (4, 6), (24, 24), (38, 68))


def tower(merge: int, side: int = 12) -> VisionConfig:
    return VisionConfig(layers=1, width=8, ff=8, heads=1, out_width=8, table=side**2, merge=merge)


@pytest.mark.parametrize(
    ("grid", "merge"), [*((grid, 2) for grid in GRIDS), ((1, 7), 1), ((7, 1), 1), ((1, 1), 1), ((9, 6), 3)]
)
def test_patch_geometry_equals_transformers(grid: tuple[int, int], merge: int) -> None:
    torch = pytest.importorskip("torch")
    from transformers.models.qwen3_vl import modeling_qwen3_vl as theirs

    side, thw = 12, torch.tensor([[1, *grid]])
    index, weight, position = patch_geometry(*grid, config=tower(merge, side))
    np.testing.assert_array_equal(position, theirs.get_vision_position_ids(thw, merge))
    their_index, their_weight = theirs.get_vision_interpolation_indices_and_weights(
        thw, side, align_corners=True, spatial_merge_size=merge
    )

    def dense(index: np.ndarray, weight: np.ndarray) -> np.ndarray:
        # Entries of weight 0 may be listed under any index.
        table = np.zeros((len(index), side**2), np.float32)
        np.add.at(table, (np.arange(len(index))[:, None], index), weight)
        return table

    np.testing.assert_allclose(
        dense(index, weight), dense(their_index.numpy(), their_weight.float().numpy()), atol=2e-6
    )
    np.testing.assert_allclose(weight.sum(1), 1, atol=1e-6)


@pytest.fixture(scope="module")
def local_backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """A vision tower without attention: each visual token depends on its own patches alone."""
    directory = write_tiny_random(tmp_path_factory.mktemp("local") / "model")
    tensors = load_file(directory / "model.safetensors")
    for name in tensors:
        if ".attn.proj." in name:
            tensors[name] = np.zeros_like(tensors[name])
    save_file(tensors, directory / "model.safetensors")
    return load_backbone(BackboneConfig(path=str(directory)))


@pytest.mark.parametrize("size", [(320, 192), (330, 150), (150, 301)])
def test_a_bright_square_is_seen_where_it_is(local_backbone: Backbone, size: tuple[int, int]) -> None:
    """The visual token that answers most lies in the square, in relative page coordinates, resized unevenly or not."""
    width, height = size
    side = 50
    black = Image.new("RGB", size)
    corners = [(0, 0), (width - side, 0), (0, height - side), (width // 2, height // 3), (width - side, height - side)]
    pages = [black]
    for x, y in corners:
        page = black.copy()
        page.paste((255, 255, 255), (x, y, x + side, y + side))
        pages.append(page)
    encoded = [local_backbone.page_processor(page) for page in pages]
    batch = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *(e.inputs for e in encoded))
    encode = jax.jit(lambda params, pages: local_backbone.merge(params).encode_pages(pages))
    features = np.asarray(encode(local_backbone.params, batch))
    rows, columns = encoded[0].rows, encoded[0].columns
    centres = token_centres(rows, columns)
    for (x, y), seen in zip(corners, features[1:], strict=True):
        answer = np.linalg.norm((seen - features[0]).reshape(rows * columns, -1), axis=-1)
        brightest = centres[answer.argmax()] * [width, height]
        assert (np.array([x, y]) <= brightest).all() and (brightest <= np.array([x, y]) + side).all()
        # A token whose cell stays clear of the square by more than the resampling filter reaches does not answer.
        cell = np.array([width / columns, height / rows]) / 2 + 4
        far = (
            (centres * [width, height] + cell < [x, y]) | (centres * [width, height] - cell > np.array([x, y]) + side)
        ).any(1)
        assert far.any() and answer[far].max() < 1e-3 * answer.max()
        box = np.array([[x / width, y / height, (x + side) / width, (y + side) / height]])
        assert assign_slots(box, rows, columns)[0, answer.argmax()] == 1


def test_boxes_are_half_open() -> None:
    # Two rows and two columns: centres at 0.25 and 0.75.
    left = [0.0, 0.0, 0.25, 1.0]
    right = [0.25, 0.0, 0.75, 1.0]
    np.testing.assert_array_equal(assign_slots(np.array([left, right]), 2, 2), [[0, 0, 0, 0], [1, 0, 1, 0]])
    above, below = [0.0, 0.0, 1.0, 0.75], [0.0, 0.75, 1.0, 1.0]
    np.testing.assert_array_equal(assign_slots(np.array([above, below]), 2, 2), [[1, 1, 0, 0], [0, 0, 1, 1]])


def test_the_first_slot_wins_where_boxes_overlap() -> None:
    boxes = np.array([[0.0, 0.0, 0.5, 1.0], [0.0, 0.0, 1.0, 0.5], [0.0, 0.0, 1.0, 1.0]])
    np.testing.assert_array_equal(assign_slots(boxes, 2, 2), [[1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])


def test_a_tokens_centre_decides() -> None:
    most_of_the_first_cell_but_its_centre = [0.0, 0.0, 0.49, 1.0]
    hardly_more_than_the_centre = [0.49, 0.4, 0.51, 0.6]
    np.testing.assert_array_equal(
        assign_slots(np.array([most_of_the_first_cell_but_its_centre, hardly_more_than_the_centre]), 1, 1), [[0], [1]]
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9), st.integers(0, 1000))
def test_a_token_belongs_to_one_slot_at_most(slots: int, rows: int, columns: int, seed: int) -> None:
    corners = np.sort(np.random.default_rng(seed).random((slots, 2, 2)), axis=1)
    boxes = corners.reshape(slots, 4)
    matrix = assign_slots(boxes, rows, columns)
    assert matrix.shape == (slots, rows * columns) and matrix.dtype == np.float32
    assert set(np.unique(matrix)) <= {0.0, 1.0} and matrix.sum(0).max() <= 1
    centres = token_centres(rows, columns)
    for slot, token in np.argwhere(matrix):
        assert (boxes[slot, :2] <= centres[token]).all() and (centres[token] < boxes[slot, 2:]).all()
