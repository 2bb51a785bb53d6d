"""InternVL's pages and chats: tiles, the grid put together from them, what the model is told."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from fixate_jax.backbones import EncodedPage, EncodedSession, SessionEncoder, stack_pages
from fixate_jax.backbones.internvl import model as internvl
from fixate_jax.backbones.internvl.config import InternVLConfig
from fixate_jax.backbones.internvl.pages import (
    PageProcessor,
    cell_tokens,
    image_positions,
    page_processor,
    page_units,
)
from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.data.session import StoredSession
from fixate_jax.errors import CheckpointError, ConfigError
from fixate_jax.probing import gather_visual, slot_attention
from fixate_jax.probing.batches import SessionData
from tests.backbones.tiles import CELLS, SIDE, tile_config, vision_config, write_page_files

PAGES = ((40, 40), (64, 32), (70, 40), (31, 100), (100, 61), (250, 90), (33, 380), (96, 96), (128, 96), (1, 50))
GREETING = "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page_files(tmp_path_factory.mktemp("pages") / "model")


def noise(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng([width, height])
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))


def normalised(image: Image.Image) -> np.ndarray:
    """Channels first, ImageNet's mean and deviation taken out, as InternVL's own code prepares a tile."""
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    return ((np.asarray(image) / 255 - mean) / deviation).transpose(2, 0, 1)


@pytest.mark.parametrize(
    ("size", "most", "tiles"),
    [
        ((1100, 619), 12, (1, 2)),
        ((448, 448), 12, (1, 1)),
        ((900, 900), 12, (2, 2)),  # Of grids of one shape, the larger while the page is over half of its area.
        ((1000, 1000), 12, (3, 3)),
        ((1000, 1000), 8, (2, 2)),
        ((448, 1344), 12, (3, 1)),
        ((600, 400), 12, (2, 3)),
        ((1600, 1200), 12, (3, 4)),
        ((600, 400), 5, (1, 2)),  # 1:1 and 2:1 are as close; the page is over half of two tiles, but not of four.
        ((1000, 100), 12, (1, 10)),
        ((1000, 100), 4, (1, 4)),
        ((1000, 100), 1, (1, 1)),
    ],
)
def test_grid_of_tiles_by_hand(size: tuple[int, int], most: int, tiles: tuple[int, int]) -> None:
    """Tiles of the published size, 448 pixels and 16 × 16 cells."""
    config = tile_config(
        vision=vision_config(image_size=448, patch=14), layout="original", template="internvl2_5", min_tiles=1
    )
    processor = page_processor(Path(), BackboneConfig(max_tiles=most), config)
    assert processor.grid(*size) == (16 * tiles[0], 16 * tiles[1])


@pytest.mark.parametrize("layout", ["transformers", "original"])
@pytest.mark.parametrize("most", [None, 1, 3, 6])
@pytest.mark.parametrize("size", PAGES)
def test_tiles_are_the_processors_and_cover_the_page(
    directory: Path, size: tuple[int, int], most: int | None, layout: Any
) -> None:
    """The page put together from its tiles is the resized page, and the last tile is all of it."""
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    config, page = tile_config(layout=layout, template="internvl2_5"), noise(*size)
    processor = page_processor(directory, BackboneConfig(max_tiles=most), config)
    encoded = processor(page)
    pixels = encoded.inputs.pixels[0]
    assert pixels.dtype == np.float32 and encoded.inputs.valid.all() and encoded.inputs.valid.shape == (1, len(pixels))
    assert (encoded.rows, encoded.columns) == processor.grid(*size)
    theirs = GotOcr2ImageProcessorPil.from_pretrained(directory)
    limit = {} if most is None else {"max_patches": most}
    np.testing.assert_array_equal(pixels, np.stack(theirs([page], crop_to_patches=True, **limit)["pixel_values"]))
    rows, columns = encoded.rows // CELLS, encoded.columns // CELLS
    tiles = pixels[: rows * columns].reshape(rows, columns, 3, SIDE, SIDE)
    whole = tiles.transpose(2, 0, 3, 1, 4).reshape(3, rows * SIDE, columns * SIDE)
    resized = page.resize((columns * SIDE, rows * SIDE), Image.Resampling.BICUBIC)
    np.testing.assert_allclose(whole, normalised(resized), atol=1e-6)
    if rows * columns > 1:
        thumbnail = page.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        np.testing.assert_allclose(pixels[rows * columns :], normalised(thumbnail)[None], atol=1e-6)


def test_pages_of_any_mode_and_without_thumbnail(directory: Path) -> None:
    page = noise(64, 32)
    full = page_processor(directory, BackboneConfig(), tile_config())
    for mode in ("RGBA", "P", "L"):
        one = page.convert(mode)
        np.testing.assert_array_equal(full(one).inputs.pixels, full(one.convert("RGB")).inputs.pixels)
    bare = page_processor(directory, BackboneConfig(), tile_config(thumbnail=False))
    np.testing.assert_array_equal(bare(page).inputs.pixels, full(page).inputs.pixels[:, :2])
    np.testing.assert_array_equal(bare(page.crop((0, 0, 32, 32))).inputs.pixels[0].shape, (1, 3, 32, 32))


def test_the_checkpoints_limits_hold_unless_the_settings_say_otherwise(tmp_path: Path) -> None:
    directory = write_page_files(tmp_path / "model", min_patches=4, max_patches=6)
    limits = {"min_tiles": 4, "max_tiles": 6, "template": "internvl2_5"}
    for config in (tile_config(), tile_config(layout="original", **limits)):
        grids = {
            most: page_processor(directory, BackboneConfig(max_tiles=most), config).grid(300, 30)
            for most in (None, 8, 2)
        }
        assert grids == {None: (4, 24), 8: (4, 32), 2: (4, 8)}
        assert page_processor(directory, BackboneConfig(), config).grid(30, 30) == (8, 8)


def test_pages_are_stacked_along_their_tiles(directory: Path) -> None:
    processor = page_processor(directory, BackboneConfig(), tile_config())
    pages: list[EncodedPage] = [processor(noise(*size)) for size in ((40, 40), (64, 32))]
    stacked = stack_pages(pages, units=4)
    np.testing.assert_array_equal(stacked.valid, [[True, False, False, False], [True, True, True, False]])
    np.testing.assert_array_equal(stacked.pixels[1, :3], pages[1].inputs.pixels[0])
    assert not stacked.pixels[0, 1:].any()


TWO_CELLS: dict[str, Any] = {"vision": vision_config(image_size=16)}
"""Tiles of 2 × 2 cells, few enough to write down."""


@pytest.mark.parametrize(
    ("tiles", "units", "tokens"),
    [
        ((1, 1), 1, [0, 1, 2, 3]),
        ((1, 2), 3, [0, 1, 4, 5, 2, 3, 6, 7]),
        ((3, 1), 4, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
        (
            (2, 3),
            7,
            [0, 1, 4, 5, 8, 9, 2, 3, 6, 7, 10, 11, 12, 13, 16, 17, 20, 21, 14, 15, 18, 19, 22, 23],
        ),
    ],
)
def test_cells_by_hand(tiles: tuple[int, int], units: int, tokens: list[int]) -> None:
    config, rows, columns = tile_config(**TWO_CELLS), 2 * tiles[0], 2 * tiles[1]
    assert cell_tokens(rows, columns, config).tolist() == tokens
    assert cell_tokens(columns, rows, tile_config(tile_layout="raster", **TWO_CELLS)).tolist() == sorted(tokens)
    assert page_units(rows, columns, config) == units
    positions, after = image_positions(rows, columns, 5, config)
    assert positions.tolist() == [[p, p, p] for p in range(5, 5 + 4 * units)] and after == 5 + 4 * units
    bare = tile_config(thumbnail=False, **TWO_CELLS)
    assert page_units(rows, columns, bare) == tiles[0] * tiles[1]
    assert len(image_positions(rows, columns, 0, bare)[0]) == rows * columns


def encoder(directory: Path, config: InternVLConfig) -> SessionEncoder:
    return SessionEncoder(directory, internvl, config)


@pytest.mark.parametrize("size", PAGES[:6])
def test_session_equals_transformers_processor(
    directory: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same token ids as the InternVL processor of transformers makes of the same chat."""
    from transformers import AutoTokenizer, InternVLProcessor
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    # Its check of the video processor, which we do not give, imports packages that need not be there.
    monkeypatch.setattr(InternVLProcessor, "check_argument_for_proper_class", lambda *_: None)
    theirs = InternVLProcessor(
        image_processor=GotOcr2ImageProcessorPil.from_pretrained(directory),
        tokenizer=AutoTokenizer.from_pretrained(directory),
        image_seq_length=CELLS**2,
    )
    config = tile_config()
    page = page_processor(directory, BackboneConfig(), config)(noise(*size))
    ours = encoder(directory, config)(profile="likes films", labels=("A", "B"), rows=page.rows, columns=page.columns)
    question = (
        "This page shows items with the labels A, B. Which item does this user choose? Answer with the label alone."
    )
    content = [{"type": "image"}, {"type": "text", "text": f"likes films\n{question}"}]
    text = theirs.tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    out = theirs(images=[noise(*size)], text=text, return_tensors="np")
    np.testing.assert_array_equal([*ours.token_ids, ours.last_token], out["input_ids"][0])
    np.testing.assert_array_equal(page.inputs.pixels[0], out["pixel_values"])
    # Page tokens are the ones whose place the vision tower's output takes, in its order, right after <img>.
    place = np.flatnonzero(ours.visual_index >= 0)
    np.testing.assert_array_equal(ours.visual_index[place], np.arange(len(page.inputs.pixels[0]) * CELLS**2))
    words = theirs.tokenizer.convert_ids_to_tokens(ours.token_ids[[place[0] - 1, place[0], place[-1], place[-1] + 1]])
    assert words == ["<img>", "<IMG_CONTEXT>", "<IMG_CONTEXT>", "</img>"]
    np.testing.assert_array_equal(ours.positions, np.repeat(np.arange(len(ours.token_ids))[:, None], 3, 1))
    assert ours.last_position == len(ours.token_ids)


def test_conversation_of_the_original_layout(directory: Path) -> None:
    """As InternVL's own chat code writes it, whatever template the tokenizer has."""
    own = encoder(directory, tile_config(layout="original", template="internvl2_5"))
    question = "<|im_start|>user\n<img><IMG_CONTEXT></img>\nWhich?<|im_end|>\n<|im_start|>assistant\n"
    assert own.chat_text("", (), question="Which?") == f"<|im_start|>system\n{GREETING}<|im_end|>\n{question}"
    persona = own.chat_text("", (), question="Which?", persona="Be somebody.")
    assert persona == f"<|im_start|>system\nBe somebody.<|im_end|>\n{question}"
    other = tile_config(layout="original", template="internvl2_5", system_message="")
    assert encoder(directory, other).chat_text("", (), question="Which?") == (
        f"<|im_start|>system\n<|im_end|>\n{question}"
    )


def test_original_layout_needs_no_template_and_no_image_processor(directory: Path, tmp_path: Path) -> None:
    bare = write_page_files(tmp_path / "model")
    (bare / "chat_template.jinja").unlink()
    (bare / "preprocessor_config.json").unlink()
    config = tile_config(layout="original", template="internvl2_5")
    assert encoder(bare, config).chat_text("p", ("A",)) == encoder(directory, config).chat_text("p", ("A",))
    page = page_processor(bare, BackboneConfig(), config)(noise(64, 32))
    same = page_processor(directory, BackboneConfig(), tile_config())(noise(64, 32))
    np.testing.assert_array_equal(page.inputs.pixels, same.inputs.pixels)
    with pytest.raises(CheckpointError, match="no usable image processor"):
        page_processor(bare, BackboneConfig(), tile_config())
    with pytest.raises(CheckpointError, match=r"model: the tokenizer has no chat template"):
        encoder(bare, tile_config())


def test_what_is_refused(directory: Path, tmp_path: Path) -> None:
    wrong = write_page_files(tmp_path / "model", size={"height": 64, "width": 64})
    with pytest.raises(CheckpointError, match=r"size is .*64.*image_size is 32; both must be the side of a tile"):
        page_processor(wrong, BackboneConfig(), tile_config())
    with pytest.raises(ConfigError, match=r"backbone\.max_tiles = 0: at least 1"):
        BackboneConfig(max_tiles=0)
    with pytest.raises(CheckpointError, match="gives 2 image placeholders"):
        encode(encoder(directory, tile_config()), profile="a page <IMG_CONTEXT>", rows=4, columns=4)


def encode(encode_with: SessionEncoder, *, profile: str, rows: int, columns: int) -> EncodedSession:
    return encode_with(profile=profile, labels=("A", "B"), rows=rows, columns=columns)


@pytest.mark.parametrize("layout", ["spatial", "raster"])
@pytest.mark.parametrize("size", [(64, 32), (31, 100), (96, 64)])
def test_thumbnail_tokens_never_count(directory: Path, size: tuple[int, int], layout: Any) -> None:
    """Whatever relevance falls on them, slot attention stays; on any other page token it does not."""
    config = tile_config(tile_layout=layout)
    processor: PageProcessor = page_processor(directory, BackboneConfig(), config)
    rows, columns = processor.grid(*size)
    encoded = encode(encoder(directory, config), profile="", rows=rows, columns=columns)
    session = StoredSession(
        session_id="s",
        user_id="u",
        page_id="p",
        boxes=np.array([[0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 0.8]]),
        labels=("A", "B"),
        dwell_ms={"fixation": np.array([1.0, 2.0])},
        click=0,
    )
    features = np.zeros((1, encoded.page_tokens, 1, 8), np.float32)
    data = SessionData(
        [session], [encoded], {"u": 0}, features=lambda _: (features, None), prompt_tokens=3, signal="fixation"
    )
    batch = data.batch([0])
    token_at = batch.inputs.visual_index[0]
    tiles = rows * columns // CELLS**2
    assert token_at.max() + 1 == (tiles + 1) * CELLS**2 == batch.inputs.features.shape[1]

    place = jnp.asarray(batch.inputs.visual_position)

    def attention(relevance: np.ndarray) -> np.ndarray:
        """Slot attention for each row of relevance."""
        cells = gather_visual(jnp.asarray(relevance[:, None]), place.repeat(len(relevance), 0))
        return np.asarray(slot_attention(cells, jnp.asarray(batch.slot_matrix).repeat(len(relevance), 0), 1e-4))[:, 0]

    relevance = np.random.default_rng(0).random(len(token_at)).astype(np.float32)
    loud = np.where(token_at >= tiles * CELLS**2, np.float32(1e6), relevance)
    words = np.where(token_at < 0, np.float32(1e6), relevance)
    assert (loud != relevance).sum() == CELLS**2
    before, *after = attention(np.stack([relevance, loud, words]))
    np.testing.assert_array_equal(after, [before, before])
    one_by_one = np.where(token_at == np.arange(tiles * CELLS**2)[:, None], np.float32(99), relevance)
    counted = (attention(one_by_one) != before).any(1).sum()
    in_a_slot = int((batch.slot_matrix[0].sum(0) > 0).sum())
    assert counted == in_a_slot > tiles * CELLS**2 / 2
