"""Checkpoints with odd templates and settings: loaded as transformers would, or one error that names file and field."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from fixate_jax.backbones import chat, load_backbone
from fixate_jax.backbones.loading import SHIPPED
from fixate_jax.errors import CheckpointError

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    ignored = shutil.ignore_patterns("*.png", "*.md", "*.csv")
    return shutil.copytree(SHIPPED / "tiny-qwen3-vl", tmp_path / "model", ignore=ignored)


def change(path: Path, how: Change) -> None:
    content = json.loads(path.read_text())
    how(content)
    path.write_text(json.dumps(content))


def put(place: str, value: Any) -> Change:
    def change(content: dict[str, Any]) -> None:
        *sections, name = place.split(".")
        for section in sections:
            content = content[section]
        content[name] = value

    return change


ENDLESS = 3 * "{% for i in range(99999) %}" + 3 * "{% endfor %}"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no images here') }}", "cannot write a chat .* no images here"),
        ("{% for m in messages %}{{ m }}", "cannot write a chat.*TemplateSyntaxError"),
        ("{{ messages[0].content.nothing.at_all }}", "cannot write a chat.*UndefinedError"),
        ("{{ ''.__class__.__mro__ }}", "cannot write a chat.*SecurityError"),
        (ENDLESS, "the chat template does not end"),
    ],
)
def test_a_template_that_does_not_write_a_chat(
    template: str, message: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat, "LIMIT_S", 0.5)
    (model / "chat_template.jinja").write_text(template)
    start = time.monotonic()
    with pytest.raises(CheckpointError, match=message) as caught:
        load_backbone(model)
    assert str(model) in str(caught.value) and time.monotonic() - start < 15


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("text_config", []),
        ("text_config.num_hidden_layers", "3"),
        ("text_config.num_hidden_layers", 10**9),
        ("text_config.hidden_size", -1),
        ("text_config.hidden_size", 96.5),
        ("text_config.rms_norm_eps", "small"),
        ("text_config.attention_bias", "no"),
        ("text_config.rope_parameters", 7),
        ("vision_config.depth", True),
        ("vision_config.deepstack_visual_indexes", [99]),
        ("vision_config.patch_size", [16]),
        ("image_token_id", "<image>"),
        ("tie_word_embeddings", "yes"),
    ],
)
def test_a_field_of_another_kind_is_named(field: str, value: Any, model: Path) -> None:
    change(model / "config.json", put(field, value))
    with pytest.raises(CheckpointError, match=rf"config\.json: {field.replace('.', '.*')} .* is not supported"):
        load_backbone(model)


@pytest.mark.parametrize(("field", "value"), [("size", {"shortest_edge": 10**12, "longest_edge": 10**13}), ("size", 5)])
def test_a_processor_with_odd_values_is_named(field: str, value: Any, model: Path) -> None:
    change(model / "preprocessor_config.json", put(field, value))
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json"):
        load_backbone(model)


def test_both_spellings_of_rotary_settings(model: Path) -> None:
    def both(theta: float) -> Change:
        def add(content: dict[str, Any]) -> None:
            rope = content["text_config"]["rope_parameters"]
            old = {("type" if k == "rope_type" else k): v for k, v in rope.items()}
            content["text_config"]["rope_scaling"] = old | {"rope_theta": theta}

        return add

    wanted = load_backbone(model).config
    theta = wanted.decoder.rope_theta
    change(model / "config.json", both(theta))
    assert load_backbone(model).config == wanted
    change(model / "config.json", both(2 * theta))
    with pytest.raises(CheckpointError, match=r"config\.json: text_config\.rope_theta is given twice"):
        load_backbone(model)


@pytest.mark.parametrize("where", ["root", "text_config"])
def test_a_head_that_is_not_there_is_the_embedding_if_any_part_says_tied(where: str, model: Path) -> None:
    weights = model / "model.safetensors"
    with safe_open(weights, framework="numpy") as tensors:
        kept = {name: tensors.get_tensor(name) for name in tensors.keys() if "lm_head" not in name}  # noqa: SIM118
    save_file(kept, weights)
    change(model / "config.json", put("tie_word_embeddings", where == "root"))
    change(model / "config.json", put("text_config.tie_word_embeddings", where == "text_config"))
    assert load_backbone(model).config.decoder.tied
    change(model / "config.json", put("tie_word_embeddings", False))
    change(model / "config.json", put("text_config.tie_word_embeddings", False))
    with pytest.raises(CheckpointError, match=r"missing tensors: lm_head\.weight"):
        load_backbone(model)


def test_a_head_that_is_there_counts_whatever_is_said(model: Path) -> None:
    weights = model / "model.safetensors"
    with safe_open(weights, framework="numpy") as tensors:
        kept = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    embedding = next(value for name, value in kept.items() if name.endswith("embed_tokens.weight"))
    kept["lm_head.weight"] = np.ascontiguousarray(embedding[::-1])
    save_file(kept, weights)
    change(model / "config.json", put("text_config.tie_word_embeddings", True))
    backbone = load_backbone(model)
    assert not backbone.config.decoder.tied


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "preprocessor_config.json", "model.safetensors"])
def test_a_device_in_place_of_a_file_is_refused_unread(name: str, model: Path) -> None:
    (model / name).unlink()
    (model / name).symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match=rf"{name}: is no ordinary file"):
        load_backbone(model)
