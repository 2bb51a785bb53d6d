"""The switches that bring defects of the published implementation back (DESIGN §6), against numbers written by hand."""

from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from fixate_jax.backbones import EncodedSession, SequenceInputs, SessionEncoder, load_backbone
from fixate_jax.backbones.family import Family
from fixate_jax.backbones.internvl import model as internvl
from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.backbones.qwen3_vl import model as qwen3_vl
from fixate_jax.backbones.tiny.random import TinySizes, write_tiny_random
from fixate_jax.data.session import StoredSession
from fixate_jax.errors import ConfigError
from fixate_jax.probing import gather_visual, slot_attention
from fixate_jax.probing.batches import SessionData
from tests.backbones.tiles import tile_config, vision_config, write_page_files

WIDTH = 32
SMALL: dict[str, Any] = {
    "width": WIDTH,
    "ff": 32,
    "layers": 3,
    "heads": 2,
    "kv_heads": 2,
    "head_dim": 16,
    "vision_width": 16,
    "vision_ff": 16,
}
INSTRUCTION = (
    "likes films\n"
    "This page shows items with the labels A, B. Which item does this user choose? Answer with the label alone."
)
DEFAULT_SYSTEM = (
    "<|im_start|>system\n"
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
    "<|im_end|>\n"
)


@pytest.fixture(scope="module")
def qwen_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Layers that change nothing, and values that are the normed residual stream itself."""
    directory = write_tiny_random(tmp_path_factory.mktemp("qwen") / "model", sizes=TinySizes(**SMALL))
    tensors = load_file(directory / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith(("self_attn.o_proj.weight", "mlp.down_proj.weight")):
            tensors[name] = np.zeros_like(tensor)
        elif name.endswith("self_attn.v_proj.weight"):
            tensors[name] = np.eye(WIDTH, dtype=np.float32)
        elif name.endswith("input_layernorm.weight"):
            tensors[name] = np.ones_like(tensor)
    save_file(tensors, directory / "model.safetensors")
    return directory


@pytest.fixture(scope="module")
def internvl_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiles of 64 × 64 pixels and 2 × 2 cells."""
    sizes = TinySizes(family="internvl", **SMALL)
    return write_tiny_random(tmp_path_factory.mktemp("internvl") / "model", sizes=sizes)


def encode(directory: Path, family: Family, settings: BackboneConfig, size: tuple[int, int]) -> EncodedSession:
    """A question about a page of this many pixels."""
    config = family.read_config(directory, settings)
    rows, columns = family.page_processor(directory, settings, config).grid(*size)
    return SessionEncoder(directory, family, config)(profile="", labels=("A", "B"), rows=rows, columns=columns)


def page_positions(encoded: EncodedSession, before: int = 1, after: int = 1) -> list[list[int]]:
    """Positions of the page tokens, and of some tokens around them."""
    place = np.flatnonzero(encoded.visual_index >= 0)
    positions: list[list[int]] = encoded.positions[place[0] - before : place[-1] + 1 + after].tolist()
    return positions


@pytest.mark.parametrize(
    ("positions", "expected"),
    [
        (
            "mrope",
            [[3, 3, 3], [4, 4, 4], [4, 4, 5], [4, 4, 6], [4, 5, 4], [4, 5, 5], [4, 5, 6], [7, 7, 7]],
        ),
        (
            "flat",
            [[3, 3, 3], [4, 4, 4], [5, 5, 5], [6, 6, 6], [7, 7, 7], [8, 8, 8], [9, 9, 9], [10, 10, 10]],
        ),
    ],
)
def test_positions_of_qwen(qwen_directory: Path, positions: Any, expected: list[list[int]]) -> None:
    """A page of 2 rows and 3 columns whose first token is the sequence's fifth."""
    encoded = encode(qwen_directory, qwen3_vl, BackboneConfig(positions=positions), (96, 64))
    assert (encoded.rows, encoded.columns) == (2, 3)
    assert page_positions(encoded) == expected


@pytest.mark.parametrize("positions", ["mrope", "flat"])
def test_positions_of_internvl_are_flat_anyway(internvl_directory: Path, positions: Any) -> None:
    encoded = encode(internvl_directory, internvl, BackboneConfig(positions=positions), (64, 64))
    assert page_positions(encoded) == [[3, 3, 3], [4, 4, 4], [5, 5, 5], [6, 6, 6], [7, 7, 7], [8, 8, 8]]


@pytest.mark.parametrize(("layout", "grid"), [("spatial", (16, 32)), ("raster", (32, 16))])
def test_the_designs_page_in_published_tiles(layout: Any, grid: tuple[int, int]) -> None:
    """A 1100×619 page is 2×1 tiles of 16 × 16 cells, and was read as 32×16 tokens."""
    config = tile_config(
        vision=vision_config(image_size=448, patch=14), layout="original", template="internvl2_5", tile_layout=layout
    )
    processor = internvl.page_processor(Path(), BackboneConfig(), config)
    assert processor.grid(1100, 619) == grid
    page = processor(Image.new("RGB", (1100, 619)))
    assert (page.rows, page.columns) == grid and page.inputs.pixels.shape == (1, 3, 3, 448, 448)
    assert internvl.page_units(*grid, config) == 3


@pytest.mark.parametrize(
    ("layout", "grid", "left", "right", "fourth"),
    [
        ("spatial", (2, 4), [0, 1, 2, 3], [4, 5, 6, 7], [0.0, 1.0]),
        ("raster", (4, 2), [0, 2, 4, 6], [1, 3, 5, 7], [1.0, 0.0]),
    ],
)
def test_tile_layout(
    internvl_directory: Path, layout: Any, grid: tuple[int, int], left: list[int], right: list[int], fourth: list[float]
) -> None:
    """Two tiles side by side, four tokens each. The left half of the page is the first tile, whatever its tokens are
    taken for; relevance of the second tile's first token belongs to the right half."""
    settings = BackboneConfig(tile_layout=layout, max_tiles=2)
    encoded = encode(internvl_directory, internvl, settings, (1100, 619))
    assert (encoded.rows, encoded.columns) == grid and encoded.page_tokens == 12
    session = StoredSession(
        session_id="s",
        user_id="u",
        page_id="p",
        boxes=np.array([[0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0]]),
        labels=("A", "B"),
        dwell_ms={"fixation": np.array([1.0, 2.0])},
        click=0,
    )
    data = SessionData(
        [session], [encoded], {"u": 0}, features=lambda _: (None, None), prompt_tokens=2, signal="fixation"
    )
    batch = data.batch([0])
    token_of_cell = batch.inputs.visual_index[0, batch.inputs.visual_position[0]]
    assert [sorted(token_of_cell[row > 0].tolist()) for row in batch.slot_matrix[0]] == [left, right]
    relevance = jnp.asarray(batch.inputs.visual_index == 4, jnp.float32)[:, None]
    cells = gather_visual(relevance, jnp.asarray(batch.inputs.visual_position))
    np.testing.assert_allclose(slot_attention(cells, jnp.asarray(batch.slot_matrix), 1e-6)[0, 0], fourth, atol=1e-5)


def one_page_token(levels: int) -> SequenceInputs:
    """Four positions, the second a page token whose features are 3, 4 and 12 on an axis each."""
    features = np.zeros((1, 1, levels, WIDTH), np.float32)
    for level, value in enumerate((3.0, 4.0, 12.0)[:levels]):
        features[0, 0, level, level] = value
    zeros = np.zeros((1, 1, 1), np.int32)
    arrays: tuple[Any, ...] = (
        np.arange(4, dtype=np.int32)[None],
        np.zeros(1, np.int32),
        np.repeat(np.arange(4, dtype=np.int32)[None, :, None], 3, 2),
        np.array([[-1, 0, -1, -1]], np.int32),
        zeros,
        np.full((1, 1, 1, 3), 4, np.int32),
        np.ones((1, 1, 1), bool),
        np.ones((1, 1), np.int32),
        features,
    )
    return SequenceInputs(*jax.device_put(arrays))


@pytest.mark.parametrize(
    ("deepstack", "levels", "value"),
    [
        # (3, 4, 12, 0, …) has the norm 13, so its root mean square is 13 / √32, and 3 √32 / 13 = 1.3054.
        (True, 3, [1.305428, 1.740570, 5.221711, 0.0]),
        # (3, 0, 0, 0, …): 3 √32 / 3.
        (False, 1, [5.656854, 0.0, 0.0, 0.0]),
    ],
)
def test_deepstack(qwen_directory: Path, deepstack: bool, levels: int, value: list[float]) -> None:
    """What the last layer sees at a page token, where the layers before it add nothing but DeepStack."""
    backbone = load_backbone(BackboneConfig(path=str(qwen_directory), deepstack=deepstack, tapped_layers=1))
    assert backbone.image_levels == levels
    model = backbone.merge(backbone.params)
    prefix = jax.jit(model.prefill)(one_page_token(levels), np.zeros((1, 0, WIDTH), np.float32))
    np.testing.assert_allclose(np.asarray(prefix.value)[0, 0, 1].reshape(-1)[:4], value, atol=1e-4)
    page = jax.device_put(backbone.page_processor(Image.new("RGB", (64, 64), (200, 100, 50))).inputs)
    assert jax.eval_shape(model.encode_pages, page).shape == (1, 4, levels, WIDTH)


@pytest.mark.parametrize(
    ("kind", "role", "expected"),
    [
        (
            "qwen",
            "user",
            f"<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{INSTRUCTION}<|im_end|>\n"
            "<|im_start|>assistant\n",
        ),
        (
            "qwen",
            "system",
            f"<|im_start|>system\n{INSTRUCTION}<|im_end|>\n"
            "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|><|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            "internvl",
            "user",
            f"<|im_start|>user\n<img><IMG_CONTEXT></img>\n{INSTRUCTION}<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            "internvl",
            "system",
            f"<|im_start|>system\n{INSTRUCTION}<|im_end|>\n"
            "<|im_start|>user\n<img><IMG_CONTEXT></img>\n<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            "original",
            "user",
            f"{DEFAULT_SYSTEM}<|im_start|>user\n<img><IMG_CONTEXT></img>\n{INSTRUCTION}<|im_end|>\n"
            "<|im_start|>assistant\n",
        ),
        (
            "original",
            "system",
            f"<|im_start|>system\n{INSTRUCTION}<|im_end|>\n"
            "<|im_start|>user\n<img><IMG_CONTEXT></img>\n<|im_end|>\n<|im_start|>assistant\n",
        ),
    ],
)
def test_instruction_role(
    kind: str,
    role: Literal["user", "system"],
    expected: str,
    qwen_directory: Path,
    internvl_directory: Path,
    tmp_path: Path,
) -> None:
    if kind == "original":
        config = tile_config(layout="original", template="internvl2_5")
        encoder = SessionEncoder(write_page_files(tmp_path / "model"), internvl, config, instruction_role=role)
    else:
        directory = {"qwen": qwen_directory, "internvl": internvl_directory}[kind]
        encoder = load_backbone(BackboneConfig(path=str(directory), instruction_role=role)).encoder
    assert encoder.chat_text("likes films", ("A", "B")) == expected
    with_persona = encoder.chat_text("likes films", ("A", "B"), persona="Be somebody.")
    told = f"Be somebody.\n{INSTRUCTION}" if role == "system" else "Be somebody."
    assert with_persona.startswith(f"<|im_start|>system\n{told}<|im_end|>\n<|im_start|>user\n")
    assert with_persona.endswith(expected[expected.index("<|im_start|>user") :])


def test_features_of_another_switch_are_not_taken_from_the_cache(
    qwen_directory: Path, internvl_directory: Path
) -> None:
    """Page features on disk are found by the backbone's fingerprint."""

    def fingerprint(directory: Path, **changes: Any) -> str:
        return load_backbone(BackboneConfig(path=str(directory), **changes)).fingerprint

    first = fingerprint(qwen_directory)
    assert fingerprint(qwen_directory, deepstack=False) != first
    assert fingerprint(qwen_directory, instruction_role="system", positions="flat") == first
    assert fingerprint(internvl_directory, max_tiles=3) != fingerprint(internvl_directory, tile_layout="raster")
    assert fingerprint(internvl_directory) == fingerprint(internvl_directory, tile_layout="raster")


def test_a_limit_of_the_other_family_is_refused(qwen_directory: Path, internvl_directory: Path) -> None:
    with pytest.raises(ConfigError, match=r"backbone\.max_tiles is not for Qwen3-VL.* set backbone\.max_pixels"):
        load_backbone(BackboneConfig(path=str(qwen_directory), max_tiles=3))
    for limits in ({"min_pixels": 10_000}, {"max_pixels": 10_000}):
        settings: dict[str, Any] = {"path": str(internvl_directory), **limits}
        with pytest.raises(ConfigError, match=r"not for InternVL.* set backbone\.max_tiles"):
            load_backbone(BackboneConfig(**settings))
