"""InternVL's two layouts: the same model from either, and what is refused with which message."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from fixate_jax.backbones import Backbone, load_backbone
from fixate_jax.backbones.internvl import model as internvl
from fixate_jax.backbones.loading import FAMILIES, family_of
from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.backbones.weights.checkpoint import TensorFiles, export_tensors
from fixate_jax.errors import CheckpointError
from tests.backbones.tiles import mark_ids
from tests.backbones.tiny_internvl import (
    SYSTEM_MESSAGE,
    VISION_6B,
    make_internvl_checkpoint,
    rewrite_as_original,
)

FUSED = "vision_model.encoder.layers.1.attn.qkv.weight"
SETTINGS = BackboneConfig(tapped_layers=2)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_internvl_checkpoint(tmp_path_factory.mktemp("layouts") / "transformers", seed=5)


@pytest.fixture(scope="module")
def own(theirs: Path) -> Path:
    return rewrite_as_original(theirs, theirs.parent / "original")


@pytest.fixture
def directory(own: Path, tmp_path: Path) -> Path:
    return shutil.copytree(own, tmp_path / "model")


@pytest.fixture
def their_directory(theirs: Path, tmp_path: Path) -> Path:
    return shutil.copytree(theirs, tmp_path / "theirs")


def load(directory: Path, **settings: Any) -> Backbone:
    return load_backbone(BackboneConfig(path=str(directory), tapped_layers=2, **settings))


def change_json(directory: Path, change: Callable[[dict[str, Any]], Any], name: str = "config.json") -> None:
    content = json.loads((directory / name).read_text())
    change(content)
    (directory / name).write_text(json.dumps(content))


def change_weights(directory: Path, change: Callable[[dict[str, np.ndarray]], Any]) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


def equal(first: Backbone, second: Backbone) -> None:
    jax.tree.map(np.testing.assert_array_equal, first.params, second.params)


@pytest.mark.parametrize(
    "checkpoint",
    [{}, {"vision": VISION_6B, "tie": False, "text": {"num_hidden_layers": 1, "attention_bias": True}}],
    ids=["as InternViT-300M", "as InternViT-6B, untied"],
)
def test_both_layouts_give_the_same_parameters(tmp_path: Path, checkpoint: dict[str, Any]) -> None:
    source = make_internvl_checkpoint(tmp_path / "transformers", **checkpoint)
    original = rewrite_as_original(source, tmp_path / "original")
    first, second = load(source), load(original)
    equal(first, second)
    assert first.config.decoder == second.config.decoder and first.config.vision == second.config.vision
    assert (first.config.layout, second.config.layout) == ("transformers", "original")
    assert first.family is second.family is FAMILIES["internvl"] is FAMILIES["internvl_chat"]


@pytest.mark.parametrize("layout", ["theirs", "own"])
def test_export_is_the_inverse_of_loading(layout: str, request: pytest.FixtureRequest) -> None:
    directory = request.getfixturevalue(layout)
    backbone = load(directory)
    with TensorFiles(directory) as files:
        shapes = {name: files.shape(name) for name in files.names}
    tensors = export_tensors(backbone.params, internvl.rules(backbone.config), shapes)
    expected = load_file(directory / "model.safetensors")
    assert set(tensors) == set(expected)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(tensors[name], tensor, err_msg=name)


def test_queries_keys_and_values_stand_in_this_order(own: Path, theirs: Path) -> None:
    fused = load_file(own / "model.safetensors")[FUSED]
    apart = load_file(theirs / "model.safetensors")
    ours = np.asarray(load(own).params["vision"]["layers"]["qkv"]["kernel"][...])[1]
    for i, name in enumerate(("q_proj", "k_proj", "v_proj")):
        expected = apart[f"vision_tower.encoder.layer.1.attention.{name}.weight"]
        np.testing.assert_array_equal(fused[32 * i : 32 * (i + 1)], expected)
        np.testing.assert_array_equal(ours[:, 32 * i : 32 * (i + 1)], expected.T)


def test_settings_of_the_original_layout(own: Path, directory: Path) -> None:
    config = internvl.read_config(own, SETTINGS)
    assert config.image_token == mark_ids()["<IMG_CONTEXT>"]
    assert (config.min_tiles, config.max_tiles, config.thumbnail) == (1, 12, True)
    assert (config.template, config.system_message) == ("internvl2_5", SYSTEM_MESSAGE)
    assert config.decoder.mrope_section is None and config.decoder.deepstack_levels == 0
    assert config.decoder.rope_theta == 1_000_000.0 and config.decoder.tied
    assert (config.tile_side, config.merge, config.vision.side) == (4, 2, 8)

    def forget(fields: dict[str, Any]) -> None:
        for name in ("use_thumbnail", "max_dynamic_patch", "min_dynamic_patch", "system_message", "downsample_ratio"):
            fields.pop(name)
        for name in ("qkv_bias", "qk_normalization", "norm_type"):
            fields["vision_config"].pop(name)
        fields["vision_config"]["layer_norm_eps"] = 1e-4

    change_json(directory, forget)
    config = internvl.read_config(directory, SETTINGS)
    assert (config.max_tiles, config.thumbnail, config.system_message, config.downsample) == (6, False, None, 0.5)
    tower = config.vision
    assert (tower.norm, tower.qkv_bias, tower.qk_norm, tower.qk_norm_eps) == ("rms_norm", False, True, 1e-4)
    change_json(directory, lambda c: c.update(dynamic_image_size=False, max_dynamic_patch=9))
    assert internvl.read_config(directory, SETTINGS).max_tiles == 1


@pytest.mark.parametrize("name", ["added_tokens.json", "tokenizer_config.json"])
def test_image_token_from_other_files_of_the_tokenizer(directory: Path, name: str) -> None:
    (directory / "tokenizer.json").unlink()
    content: dict[str, Any] = {"<img>": 5, "<IMG_CONTEXT>": 7}
    if name == "tokenizer_config.json":
        content = {"added_tokens_decoder": {str(i): {"content": text} for text, i in content.items()}}
    (directory / "tokenizer_config.json").unlink()
    (directory / name).write_text(json.dumps(content))
    assert internvl.read_config(directory, SETTINGS).image_token == 7
    (directory / name).unlink()
    refused(directory, str(directory), "tokenizer.json, added_tokens.json", "<IMG_CONTEXT>")


def test_a_head_that_is_there_counts(own: Path, directory: Path, their_directory: Path) -> None:
    """transformers 5 saves an untied model, whose config.json never said so, with tie_word_embeddings true."""
    for folder in (directory, their_directory):
        head = load_file(folder / "model.safetensors")["language_model.model.embed_tokens.weight"] + 1
        change_weights(folder, partial(dict.update, **{"language_model.lm_head.weight": head}))
        backbone = load(folder)
        assert not backbone.config.decoder.tied
        np.testing.assert_array_equal(backbone.params["decoder"]["head"]["kernel"][...], head.T)
    assert load(own).config.decoder.tied


def test_ties_by_layout(their_directory: Path, directory: Path) -> None:
    """transformers goes by the top level; InternVL's own code by the language model's part, its top level is idle."""

    def tied(folder: Path, top: bool | None, text: bool | None) -> bool:
        section = "text_config" if folder == their_directory else "llm_config"
        change_json(folder, lambda c: (c.update(tie_word_embeddings=top), c[section].update(tie_word_embeddings=text)))
        return internvl.read_config(folder, SETTINGS).decoder.tied

    for folder in (their_directory, directory):
        (folder / "model.safetensors").unlink()
    cases = [(True, False), (False, True), (None, True), (True, None), (None, None)]
    assert [tied(their_directory, *case) for case in cases] == [True, False, True, True, False]
    assert [tied(directory, *case) for case in cases] == [False, True, True, True, False]


def test_mask_token_of_pretraining_is_passed_over(their_directory: Path) -> None:
    plain = load(their_directory)
    token = {"vision_tower.embeddings.mask_token": np.ones((1, 1, 32), np.float32)}
    change_weights(their_directory, lambda t: t.update(token))
    equal(load(their_directory), plain)


def test_dynamic_rope_is_plain_rope_on_pages(directory: Path) -> None:
    plain = internvl.read_config(directory, SETTINGS)
    change_json(directory, lambda c: c["llm_config"].update(rope_scaling={"type": "dynamic", "factor": 2.0}))
    assert internvl.read_config(directory, SETTINGS) == plain


def test_no_module_of_the_checkpoint_is_ever_run(directory: Path) -> None:
    for name in ("configuration", "modeling"):
        (directory / f"{name}_internvl_chat.py").write_text("raise SystemExit('remote code ran')")
    load(directory)


def refused(directory: Path, *parts: str) -> None:
    """The directory is refused, with a message that holds all of ``parts``."""
    with pytest.raises(CheckpointError) as caught:
        family_of(directory).read_config(directory, SETTINGS)
    for part in parts:
        assert part in str(caught.value)


QWEN3_MOE = {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe"}
GPT_OSS = {"architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss"}


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda c: c["llm_config"].update(QWEN3_MOE), ("llm_config.architectures ['Qwen3MoeForCausalLM']", "dense")),
        (lambda c: c["llm_config"].update(GPT_OSS), ("llm_config.architectures", "dense", "no mixture of experts")),
        (lambda c: c["llm_config"].update(QWEN3_MOE, num_experts=128), ("llm_config.", "dense")),
        (lambda c: c["llm_config"].update(architectures=["Qwen2ForCausalLM"]), ("'Qwen2ForCausalLM'",)),
        (lambda c: c.pop("llm_config"), ("field 'llm_config' is missing",)),
        (lambda c: c["llm_config"].pop("rope_theta"), ("field 'rope_theta' is missing",)),
        (
            lambda c: c["vision_config"].pop("num_hidden_layers"),
            ("field 'vision_config.num_hidden_layers' is missing",),
        ),
        (lambda c: c.update(select_layer=-4), ("select_layer -4", "-1")),
        (lambda c: c.update(ps_version="v1"), ("ps_version 'v1'", "'v2'")),
        (lambda c: c.pop("ps_version"), ("ps_version 'v1'", "'v2'")),
        (lambda c: c.update(force_image_size=64), ("force_image_size 64", "32")),
        (lambda c: c.update(template="Hermes-2"), ("template 'Hermes-2' is not supported", "'internvl2_5'")),
        (lambda c: c.pop("template"), ("template None is not supported", "'internvl2_5'")),
        (lambda c: c["vision_config"].update(num_attention_heads=5), ("no multiple of num_attention_heads 5",)),
        (lambda c: c["vision_config"].update(norm_type="group_norm"), ("vision_config.norm_type 'group_norm'",)),
        (lambda c: c["vision_config"].update(hidden_act="relu"), ("vision_config.hidden_act 'relu'",)),
    ],
)
def test_unsupported_original_config(directory: Path, change: Callable, parts: tuple[str, ...]) -> None:
    change_json(directory, change)
    refused(directory, str(directory / "config.json"), *parts)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda c: c["text_config"].update(QWEN3_MOE), ("text_config.model_type 'qwen3_moe'", "dense", "'qwen3'")),
        (lambda c: c["text_config"].update(model_type="qwen2"), ("text_config.model_type 'qwen2'",)),
        (lambda c: c.pop("image_token_id"), ("field 'image_token_id' is missing",)),
        (lambda c: c.update(vision_feature_layer=-2), ("vision_feature_layer -2",)),
        (lambda c: c.update(vision_feature_select_strategy="full"), ("vision_feature_select_strategy 'full'",)),
        (lambda c: c.update(projector_hidden_act="relu"), ("projector_hidden_act 'relu'",)),
        (lambda c: c["vision_config"].update(use_absolute_position_embeddings=False), ("use_absolute_position",)),
        (lambda c: c["vision_config"].update(use_mean_pooling=False), ("vision_config.use_mean_pooling False",)),
        (lambda c: c["vision_config"].update(image_size=[32, 64]), ("vision_config.image_size [32, 64]", "a square")),
        (lambda c: c["vision_config"].update(patch_size=[5, 5]), ("image_size 32 is no multiple of patch_size 5 × 2",)),
    ],
)
def test_unsupported_transformers_config(their_directory: Path, change: Callable, parts: tuple[str, ...]) -> None:
    change_json(their_directory, change)
    refused(their_directory, str(their_directory / "config.json"), *parts)


def test_tensors_of_the_other_layout_are_named(theirs: Path, directory: Path) -> None:
    shutil.copy(theirs / "model.safetensors", directory)
    with pytest.raises(CheckpointError, match=r"missing tensors: vision_model\..*not have: multi_modal_projector\."):
        load(directory)


def test_a_fused_tensor_of_another_size_is_named(directory: Path) -> None:
    change_weights(directory, lambda t: t.update({FUSED: t[FUSED][:-1]}))
    with pytest.raises(CheckpointError, match=rf"{FUSED}.*has shape \(95, 32\)"):
        load(directory)


def test_published_shapes_are_built_without_weights(directory: Path) -> None:
    """InternViT-6B's tower beside a small decoder: abstract, so nothing is allocated."""

    def enlarge(config: dict[str, Any]) -> None:
        config["vision_config"] |= {"hidden_size": 3200, "intermediate_size": 12800, "num_hidden_layers": 45}
        config["vision_config"] |= {"num_attention_heads": 25, "image_size": 448, "patch_size": 14}
        config["force_image_size"] = 448

    change_json(directory, enlarge)
    config = internvl.read_config(directory, SETTINGS)
    state = nnx.state(nnx.eval_shape(lambda: internvl.build(config, nnx.Rngs(0))))
    layers = state["vision"]["layers"]
    assert layers["qkv"]["kernel"].shape == (45, 3200, 9600)
    assert state["vision"]["positions"].shape == (1025, 3200) and config.tile_side == 16
