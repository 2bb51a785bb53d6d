"""A bright square anywhere on a page is seen in the page cell where it is, for every tiling and page size.

The towers here are the library's own, with weights by hand: attention gives nothing, layers change nothing, and the
first number of a page token grows with the mean brightness of the token's own pixels. So the token that answers most
is the one whose pixels hold the square, and nothing but geometry decides which cell that is.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from safetensors.numpy import load_file, save_file

from fixate_jax.backbones import SessionEncoder, load_backbone, stack_pages
from fixate_jax.backbones.family import Family, PageProcessor
from fixate_jax.backbones.internvl import model as internvl
from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.backbones.qwen3_vl import model as qwen3_vl
from fixate_jax.backbones.qwen3_vl.vision import VisionConfig as QwenVision
from fixate_jax.backbones.tiny.random import TinySizes, write_tiny_random
from fixate_jax.data.session import StoredSession
from fixate_jax.probing import gather_visual, slot_attention, token_centres
from fixate_jax.probing.batches import SessionData
from tests.backbones.tiles import mark_ids, tile_config, write_page_files

WIDTH, PATCH, MERGE = 8, 4, 2
BATCH = {"tiled": 144, "whole": 96}
"""Pages with a square at a time: as many as the largest page has cells, so that each family compiles once."""
TILINGS = {  # Size of the page in pixels → rows and columns of tiles of 32 × 32 pixels.
    (40, 44): (1, 1),
    (70, 40): (1, 2),
    (31, 100): (3, 1),
    (100, 66): (2, 3),
    (66, 100): (3, 2),
    (60, 60): (2, 2),
    (220, 124): (2, 4),
    (30, 119): (4, 1),
    (97, 90): (3, 3),
    (200, 33): (1, 6),
}
GRIDS = {  # Size of the page in pixels → rows and columns of cells, in each family.
    "tiled": {size: (4 * rows, 4 * columns) for size, (rows, columns) in TILINGS.items()},
    "whole": {(64, 64): (8, 8), (70, 40): (5, 9), (31, 100): (12, 4), (140, 66): (6, 14), (220, 124): (7, 13)},
}


class Case(NamedTuple):
    """A family and what its tower answers, for each size of page, to a square in each cell."""

    family: Family
    config: Any
    processor: PageProcessor
    encoder: SessionEncoder
    answers: dict[tuple[int, int], np.ndarray]


def bright(model: nnx.Module, patch_values: int, projector: str, norm_width: int) -> Callable[[Any], Any]:
    """The model's first feature of every page token, which grows with the brightness of the token's pixels.

    Every weight is 0 but these: a patch is its mean brightness beside two constants, so large that norms hardly
    change it; the projector sums the four patches of a token.
    """
    anchor = 30.0
    average = np.zeros((patch_values, WIDTH))
    average[:, 0] = 1 / patch_values
    total = np.zeros((WIDTH * MERGE**2, 8 if projector == "projector" else WIDTH * MERGE**2))
    total[::WIDTH, 0] = anchor
    weights = {
        "vision.patch_embed.kernel": average,
        "vision.patch_embed.bias": np.array([3.0, anchor, -anchor, 0, 0, 0, 0, 0]),
        f"vision.{projector}.norm.scale": np.ones(norm_width),
        f"vision.{projector}.fc1.kernel": total,
        f"vision.{projector}.fc2.kernel": np.eye(total.shape[1], 8),
    }
    graph, state = nnx.split(model)
    flat: dict[Any, Any] = dict(nnx.to_flat_state(state))
    for path, leaf in flat.items():
        given = weights.pop(".".join(map(str, path)), np.zeros(leaf.shape))
        assert given.shape == leaf.shape, path
        flat[path] = leaf.replace(jnp.asarray(given, jnp.float32))
    assert not weights
    params = nnx.from_flat_state(flat)
    merge: Callable[[Any], Any] = partial(nnx.merge, graph)
    encode = jax.jit(lambda params, pages: merge(params).encode_pages(pages))
    return lambda pages: np.asarray(encode(params, pages))[:, :, 0, 0]


def squares(size: tuple[int, int], rows: int, columns: int) -> list[Image.Image]:
    """A black page with one white square in it for each cell, up to 30% of the cell off its centre."""
    width, height = size
    cell = np.array([width / columns, height / rows])
    shift = np.random.default_rng([width, height]).uniform(-0.3, 0.3, (rows * columns, 2))
    pages = []
    for i, (row, column) in enumerate(np.ndindex(rows, columns)):
        corner = (np.array([column, row]) + 0.5 + shift[i]) * cell - cell.min() / 2
        page = Image.new("RGB", size)
        page.paste((255, 255, 255), tuple(np.round([*corner, *(corner + cell.min())]).astype(int).tolist()))
        pages.append(page)
    return pages


def answers(
    kind: str, processor: PageProcessor, answer: Callable[[Any], np.ndarray], units: int
) -> dict[tuple[int, int], np.ndarray]:
    """What each page token answers to each page with a square, by size of the page; 0 where it is black."""
    found = {}
    for size, grid in GRIDS[kind].items():
        pages = [processor(page) for page in [Image.new("RGB", size), *squares(size, *grid)]]
        black, *seen = answer(stack_pages(pages + pages[:1] * (BATCH[kind] + 1 - len(pages)), units=units))
        found[size] = np.maximum(seen - black, 0)
    return found


@pytest.fixture(scope="module")
def tiled(tmp_path_factory: pytest.TempPathFactory) -> Case:
    directory, config = write_page_files(tmp_path_factory.mktemp("tiled") / "model"), tile_config()
    processor = internvl.page_processor(directory, BackboneConfig(), config)
    answer = bright(internvl.build(config, nnx.Rngs(0)), 3 * PATCH**2, "projector", WIDTH * MERGE**2)
    return Case(
        family=internvl,
        config=config,
        processor=processor,
        encoder=SessionEncoder(directory, internvl, config),
        answers=answers("tiled", processor, answer, 10),
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Case:
    limits = {"shortest_edge": 16 * 64, "longest_edge": BATCH["whole"] * 64}
    sizes = {"patch_size": PATCH, "merge_size": MERGE, "temporal_patch_size": 2}
    directory = write_page_files(tmp_path_factory.mktemp("whole") / "model", size=limits, **sizes)
    tower = QwenVision(layers=1, width=WIDTH, ff=8, heads=1, out_width=8, patch=PATCH, merge=MERGE, table=16)
    config = qwen3_vl.Qwen3VLConfig(
        decoder=tile_config().decoder, vision=tower, image_token=mark_ids()["<IMG_CONTEXT>"]
    )
    processor = qwen3_vl.page_processor(directory, BackboneConfig(), config)
    answer = bright(qwen3_vl.build(config, nnx.Rngs(0)), tower.patch_values, "merger", WIDTH)
    return Case(
        family=qwen3_vl,
        config=config,
        processor=processor,
        encoder=SessionEncoder(directory, qwen3_vl, config),
        answers=answers("whole", processor, answer, BATCH["whole"] * MERGE**2),
    )


def seen_cells(case: Case) -> dict[tuple[int, int], tuple[np.ndarray, np.ndarray]]:
    """Cell and slot (left or right half of the page) that answer most, all the way through batches of sessions."""
    sessions = [
        StoredSession(
            session_id=f"s{i}",
            user_id="u",
            page_id="p",
            boxes=np.array([[0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0]]),
            labels=("A", "B"),
            dwell_ms={"fixation": np.array([1.0, 2.0])},
            click=0,
        )
        for i in range(len(case.answers))
    ]
    grids = [case.processor.grid(*size) for size in case.answers]
    encoded = [case.encoder(profile="", labels=("A", "B"), rows=rows, columns=columns) for rows, columns in grids]
    data = SessionData(
        sessions,
        encoded,
        {"u": 0},
        features=lambda _: (None, None),
        prompt_tokens=3,
        signal="fixation",
        max_lengths=1,
    )
    found = {}
    for i, (size, answer) in enumerate(case.answers.items()):
        batch, count = data.batch([i]), grids[i][0] * grids[i][1]
        index = batch.inputs.visual_index[0]
        # Text answers louder than any page token: it must not matter.
        relevance = jnp.asarray(np.where(index < 0, np.float32(1e6), answer[:, index]))
        cells = gather_visual(relevance[:, None], jnp.asarray(batch.inputs.visual_position).repeat(len(answer), 0))
        attention = slot_attention(cells, jnp.asarray(batch.slot_matrix).repeat(len(answer), 0), 1e-4)
        loudest = np.asarray(cells)[:count, 0, :count].argmax(1)
        found[size] = loudest, np.asarray(attention)[:count, 0].argmax(1)
    return found


@pytest.mark.parametrize("kind", ["tiled", "whole"])
def test_a_bright_square_is_seen_in_its_cell(kind: str, request: pytest.FixtureRequest) -> None:
    case: Case = request.getfixturevalue(kind)
    for size, (loudest, slot) in seen_cells(case).items():
        rows, columns = GRIDS[kind][size]
        assert case.processor.grid(*size) == (rows, columns)
        cells = np.arange(rows * columns)
        np.testing.assert_array_equal(loudest, cells)
        np.testing.assert_array_equal(slot, (2 * (cells % columns) + 1) // columns)
        # Of all page tokens, the thumbnail's too, the loudest is that cell's.
        best = case.answers[size][: len(cells)].argmax(1)
        np.testing.assert_array_equal(best, case.family.cell_tokens(rows, columns, case.config))


@pytest.mark.parametrize("size", [(320, 192), (330, 150), (150, 301)])
def test_a_checkpoint_with_random_weights_sees_it_too(size: tuple[int, int], tmp_path: Path) -> None:
    """InternVL, loaded from files; only attention is left out, so that a page token depends on its own patches alone.
    The same for Qwen3-VL is in test_vision_geometry.py."""
    sizes = TinySizes(family="internvl", width=32, ff=32, layers=1, heads=2, kv_heads=1, head_dim=16, deepstack=())
    directory = write_tiny_random(tmp_path / "model", sizes=sizes)
    tensors = load_file(directory / "model.safetensors")
    tensors |= {n: np.zeros_like(x) for n, x in tensors.items() if ".projection_layer." in n}
    save_file(tensors, directory / "model.safetensors")
    backbone = load_backbone(BackboneConfig(path=str(directory)))
    (width, height), side = size, 50
    corners = [(0, 0), (width - side, 0), (0, height - side), (width // 2, height // 3), (width - side, height - side)]
    pages = [Image.new("RGB", size) for _ in range(6)]
    for page, (x, y) in zip(pages[1:], corners, strict=True):
        page.paste((255, 255, 255), (x, y, x + side, y + side))
    encoded = [backbone.page_processor(page) for page in pages]
    encode = jax.jit(lambda params, pages: backbone.merge(params).encode_pages(pages))
    features = np.asarray(encode(backbone.params, stack_pages(encoded)))[:, :, 0]
    rows, columns = encoded[0].rows, encoded[0].columns
    assert features.shape[1] > rows * columns, "a thumbnail"
    tokens = backbone.family.cell_tokens(rows, columns, backbone.config)
    centres = token_centres(rows, columns) * size
    for (x, y), seen in zip(corners, features[1:], strict=True):
        answer = np.linalg.norm((seen - features[0])[tokens], axis=-1)
        assert ([x, y] <= centres[answer.argmax()]).all() and (centres[answer.argmax()] <= [x + side, y + side]).all()
        # A cell that stays clear of the square by more than the resampling filter reaches does not answer.
        reach = np.array([width / columns, height / rows]) / 2 + 4
        far = ((centres + reach < [x, y]) | (centres - reach > [x + side, y + side])).any(1)
        assert far.any() and answer[far].max() < 1e-3 * answer.max()


def transposed(tokens: np.ndarray, rows: int, columns: int, side: int) -> np.ndarray:
    """Rows and columns exchanged within each tile."""
    within, first = tokens % side**2, tokens - tokens % side**2
    return first + within % side * side + within // side


def tile_columns(tokens: np.ndarray, rows: int, columns: int, side: int) -> np.ndarray:
    """Tiles counted down the page first."""
    tile, down, across = tokens // side**2, rows // side, columns // side
    return (tile % across * down + tile // across) * side**2 + tokens % side**2


def thumbnail_first(tokens: np.ndarray, rows: int, columns: int, side: int) -> np.ndarray:
    """One tile too late."""
    return tokens + (side**2 if rows * columns > side**2 else 0)


def one_raster(tokens: np.ndarray, rows: int, columns: int, side: int) -> np.ndarray:
    """Tokens in the order of the sequence."""
    return np.arange(rows * columns)


@pytest.mark.parametrize("mistake", [transposed, tile_columns, thumbnail_first, one_raster])
def test_every_wrong_geometry_is_noticed(tiled: Case, mistake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    right, side = internvl.cell_tokens, tiled.config.tile_side
    monkeypatch.setattr(internvl, "cell_tokens", lambda r, c, config: mistake(right(r, c, config), r, c, side))
    wrong = {
        TILINGS[size]: float((loudest != np.arange(len(loudest))).mean())
        for size, (loudest, _) in seen_cells(tiled).items()
    }
    print(f"\n{mistake.__name__}: share of squares in the wrong cell by tiling {wrong}")
    alike = {
        "transposed": set(),
        "tile_columns": {tiling for tiling in wrong if 1 in tiling},
        "thumbnail_first": {(1, 1)},
        "one_raster": {tiling for tiling in wrong if tiling[1] == 1},
    }[mistake.__name__]
    assert {tiling for tiling, share in wrong.items() if share == 0} == alike


def test_the_published_layout_sees_it_elsewhere(tiled: Case, tmp_path: Path) -> None:
    """DESIGN §6: the switch brings the defect back, and the same squares show it."""
    directory, config = write_page_files(tmp_path / "model"), tile_config(tile_layout="raster")
    published = tiled._replace(
        config=config,
        processor=internvl.page_processor(directory, BackboneConfig(), config),
        encoder=SessionEncoder(directory, internvl, config),
    )
    for size, (loudest, _) in seen_cells(published).items():
        rows, columns = (4 * n for n in TILINGS[size])
        assert published.processor.grid(*size) == (columns, rows)
        # Where the square is seen, in relative page coordinates, against where it is.
        seen = np.stack(np.divmod(loudest, rows), 1) / [columns, rows]
        true = np.stack(np.divmod(np.arange(rows * columns), columns), 1) / [rows, columns]
        assert (np.abs(seen - true).max() > 0.2) == (TILINGS[size] != (1, 1))
