"""The answer-label contract, rotary positions, and the grid of visual tokens."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fixate_jax.backbones import EncodedSession, SessionEncoder, stack_pages
from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.backbones.qwen3_vl import model as qwen3_vl
from fixate_jax.backbones.qwen3_vl.pages import PageProcessor
from fixate_jax.backbones.tiny.random import CHAT_TEMPLATE, TinySizes, write_tiny_random
from fixate_jax.errors import CheckpointError, LabelError
from tests.backbones.torch_parity import load_torch_model

GENERATION = "{{- '<|im_start|>assistant\\n' -}}"
LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = TinySizes(width=32, ff=32, layers=2, heads=2, kv_heads=1, head_dim=16, vision_width=16, vision_ff=16)
    return write_tiny_random(tmp_path_factory.mktemp("processing") / "model", sizes=sizes)


@pytest.fixture(scope="module")
def encoder(directory: Path) -> SessionEncoder:
    return SessionEncoder(directory, qwen3_vl, qwen3_vl.read_config(directory, BackboneConfig()))


@pytest.fixture
def template(encoder: SessionEncoder) -> Iterator[Any]:
    """Replaces what the chat template writes where the answer starts."""

    def replace(end: str, image: str = "<|image_pad|>") -> None:
        encoder.tokenizer.chat_template = CHAT_TEMPLATE.replace(GENERATION, end).replace("<|image_pad|>", image)

    yield replace
    encoder.tokenizer.chat_template = CHAT_TEMPLATE


def encode(encoder: SessionEncoder, *labels: str, profile: str = "") -> EncodedSession:
    return encoder(profile=profile, labels=labels, rows=2, columns=3)


@pytest.mark.parametrize("labels", [LETTERS, tuple(str(i) for i in range(25)), ("Right", "left", "é")])
def test_answers_are_the_tokens_after_the_chat(encoder: SessionEncoder, labels: tuple[str, ...]) -> None:
    encoded = encode(encoder, *labels, profile="likes films")
    text = encoder.chat_text("likes films", labels)
    chat = encoder.tokenizer(text, add_special_tokens=False)["input_ids"]
    for label, answer in zip(labels, encoded.answers, strict=True):
        whole = encoder.tokenizer(text + label, add_special_tokens=False)["input_ids"]
        assert whole == [*chat, *answer]
        assert encoder.tokenizer.decode(answer) == label
    # The chat, its one placeholder replaced by 2 × 3 visual tokens, is the same for every answer.
    image = encoder.config.image_token
    ids = [*encoded.token_ids, encoded.last_token]
    at = chat.index(image)
    assert ids == [*chat[:at], *[image] * 6, *chat[at + 1 :]]
    np.testing.assert_array_equal(encoded.visual_index[at : at + 6], np.arange(6))
    assert (np.delete(encoded.visual_index, range(at, at + 6)) == -1).all()
    assert ", ".join(labels) in text and text.count("likes films") == 1
    assert text.endswith("<|im_start|>assistant\n")


def test_numbers_of_two_digits_have_two_tokens(encoder: SessionEncoder) -> None:
    one, ten = encode(encoder, "1", "10").answers
    assert len(one) == 1 and len(ten) == 2 and ten[:1] == one


def test_label_that_begins_another_has_to_stop(encoder: SessionEncoder) -> None:
    assert encode(encoder, "0", "1", "10", "11").stops == ((-1, -1), (2, 1), (-1, -1), (-1, -1))
    assert encode(encoder, "101", "10", "1").stops == ((-1, -1), (0, 2), (0, 1))
    assert encode(encoder, *LETTERS).stops == ((-1, -1),) * 26
    assert encoder.tokenizer.decode([encoder.end_token]) == "<|im_end|>"


def test_label_that_merges_with_the_template_is_refused(encoder: SessionEncoder, template: Any) -> None:
    template("{{- '<|im_start|>assistant\\nAnswer: ' -}}")
    assert encode(encoder, "7", "8").answers != ()
    with pytest.raises(LabelError, match=r"label 'the' merges with the chat template's text"):
        encode(encoder, "7", "the")


@pytest.mark.parametrize(
    ("labels", "message"),
    [(("A", "B", "A"), "same tokens"), (("\u00e9", "e\u0301"), "same tokens"), (("A", ""), "label '' merges")],
)
def test_labels_that_cannot_be_told_apart(encoder: SessionEncoder, labels: tuple[str, ...], message: str) -> None:
    with pytest.raises(LabelError, match=message):
        encode(encoder, *labels)


def test_thinking_is_switched_off(encoder: SessionEncoder, template: Any) -> None:
    switch = (
        "{%- if enable_thinking is defined and not enable_thinking -%}"
        "{{- '<think>\\n\\n</think>\\n\\n' -}}{%- else -%}{{- '<think>\\n' -}}{%- endif -%}"
    )
    template(GENERATION + switch)
    assert encoder.chat_text("", ("A",)).endswith("assistant\n<think>\n\n</think>\n\n")
    assert len(encode(encoder, "A").answers[0]) == 1
    template("{{- '<|im_start|>assistant\\n<think>\\n' -}}")
    with pytest.raises(CheckpointError, match="opens a thinking block even with thinking off; use an Instruct"):
        encode(encoder, "A")


@pytest.mark.parametrize(("image", "count"), [("", 0), ("<|image_pad|><|image_pad|>", 2), ("<|video_pad|>", 0)])
def test_wrong_number_of_image_placeholders(encoder: SessionEncoder, template: Any, image: str, count: int) -> None:
    template(GENERATION, image)
    with pytest.raises(CheckpointError, match=f"gives {count} image placeholders"):
        encode(encoder, "A")


def test_encoding_is_deterministic(directory: Path, encoder: SessionEncoder) -> None:
    again = SessionEncoder(directory, qwen3_vl, encoder.config)
    arrays = {"token_ids", "positions", "visual_index", "cell_tokens"}
    for a, b in ((encoder, encoder), (encoder, again)):
        first, second = (vars(encode(e, "A", "10", profile="p")) for e in (a, b))
        for name in first:
            assert np.array_equal(first[name], second[name]) if name in arrays else first[name] == second[name]


@pytest.mark.parametrize("grid", [(3, 5), (6, 2), (1, 1)])
def test_positions_equal_transformers(directory: Path, encoder: SessionEncoder, grid: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    model = load_torch_model(directory)
    encoded = encoder(profile="a user", labels=("A", "B"), rows=grid[0], columns=grid[1])
    ids = torch.tensor([[*encoded.token_ids, encoded.last_token]])
    theirs, _ = model.model.get_rope_index(
        ids,
        (ids == encoder.config.image_token).int(),
        image_grid_thw=torch.tensor([[1, 2 * grid[0], 2 * grid[1]]]),
        attention_mask=torch.ones_like(ids),
    )
    np.testing.assert_array_equal(encoded.positions, theirs[:, 0, :-1].T)
    np.testing.assert_array_equal(np.repeat(encoded.last_position, 3), theirs[:, 0, -1])


@pytest.mark.parametrize("limits", [None, (20_000, 60_000)])
@pytest.mark.parametrize("size", [(1100, 619), (320, 192), (333, 77), (30, 30), (64, 700)])
def test_grid_is_the_image_processors(directory: Path, size: tuple[int, int], limits: tuple[int, int] | None) -> None:
    config = qwen3_vl.read_config(directory, BackboneConfig())
    least, most = limits or (None, None)
    processor = PageProcessor(directory, config.vision, min_pixels=least, max_pixels=most)
    page = processor(Image.new("L", size))
    assert (page.rows, page.columns) == processor.grid(*size)
    visual = page.rows * page.columns
    assert page.inputs.patches.shape == (1, 4 * visual, config.vision.patch_values)
    if limits is not None:
        # Sides are rounded to whole tokens, area limits hold all the same.
        assert limits[0] <= visual * 32**2 <= limits[1]


def test_pages_are_padded_at_the_end(directory: Path) -> None:
    config = qwen3_vl.read_config(directory, BackboneConfig())
    processor = PageProcessor(directory, config.vision, min_pixels=None, max_pixels=None)
    rng = np.random.default_rng(0)
    pages = [processor(Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8))) for w, h in ((96, 64), (64, 64))]
    for stacked in (stack_pages(pages), stack_pages(pages, units=40)):
        for i, page in enumerate(pages):
            real = page.inputs.patches.shape[1]
            assert stacked.valid[i, :real].all() and not stacked.valid[i, real:].any()
            for ours, alone in zip(stacked, page.inputs, strict=True):
                np.testing.assert_array_equal(ours[i, :real], alone[0])
    assert stack_pages(pages).valid.shape == (2, 24) and stack_pages(pages, units=40).valid.shape == (2, 40)
