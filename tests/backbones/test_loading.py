"""Reading checkpoints: what loads, and what is refused with which message."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fixate_jax.backbones import load_backbone, loading, resolve
from fixate_jax.backbones.loading import FAMILIES, family_of
from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.backbones.qwen3_vl.model import read_config
from fixate_jax.backbones.tiny.random import TinySizes, write_tiny_random
from fixate_jax.backbones.weights.checkpoint import INDEX_FILE, SINGLE_FILE
from fixate_jax.errors import CheckpointError, ConfigError

SIZES = TinySizes(width=32, ff=48, layers=3, heads=2, kv_heads=1, head_dim=16, vision_width=32, vision_ff=48)
Q_NORM = "model.language_model.layers.1.self_attn.q_norm.weight"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_random(tmp_path_factory.mktemp("loading") / "model", sizes=SIZES)


@pytest.fixture
def directory(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "model")


def load(directory: Path, **settings: Any) -> Any:
    return load_backbone(BackboneConfig(path=str(directory), tapped_layers=2, **settings))


def change_weights(directory: Path, change: Callable[[dict[str, np.ndarray]], Any]) -> None:
    tensors = load_file(directory / SINGLE_FILE)
    change(tensors)
    save_file(tensors, directory / SINGLE_FILE)


def change_json(directory: Path, change: Callable[[dict[str, Any]], Any], name: str = "config.json") -> None:
    content = json.loads((directory / name).read_text())
    change(content)
    (directory / name).write_text(json.dumps(content))


def shard(directory: Path) -> None:
    """Spread the weights over two files."""
    tensors = load_file(directory / SINGLE_FILE)
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({n: tensors[n] for n in part}, directory / file)
    index = {"metadata": {}, "weight_map": {n: file for file, part in parts.items() for n in part}}
    (directory / INDEX_FILE).write_text(json.dumps(index))
    (directory / SINGLE_FILE).unlink()


def refused(directory: Path, *parts: str, **settings: Any) -> None:
    """Loading fails, and the message holds all of ``parts``."""
    with pytest.raises(CheckpointError) as caught:
        load(directory, **settings)
    for part in parts:
        assert part in str(caught.value)


def equal(first: Any, second: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, first.params, second.params)


def test_tensor_names_are_checked_both_ways(directory: Path) -> None:
    change_weights(directory, lambda t: t.update({"model.extra.weight": t.pop(Q_NORM)}))
    refused(directory, str(directory), f"missing tensors: {Q_NORM}", "does not have: model.extra.weight")


def test_long_lists_of_tensors_are_cut_and_counted(directory: Path) -> None:
    change_weights(directory, lambda t: [t.pop(n) for n in list(t) if "layers.0" in n])
    refused(directory, "model.language_model.layers.0.", "(11 in all)")


@pytest.mark.parametrize(
    "name", [Q_NORM, "model.language_model.embed_tokens.weight", "model.visual.patch_embed.proj.weight"]
)
def test_misshapen_tensor_is_named(directory: Path, name: str) -> None:
    change_weights(directory, lambda t: t.update({name: t[name][:-1]}))
    refused(directory, repr(name), "has shape", "config.json and weights disagree")


def test_a_tensor_that_would_broadcast_is_misshapen_too(directory: Path) -> None:
    change_weights(directory, lambda t: t.update({Q_NORM: t[Q_NORM][:1]}))
    refused(directory, repr(Q_NORM), "has shape (1,)")


@pytest.mark.parametrize("size", [0, 5, 200, 20_000])
def test_truncated_file_is_named(directory: Path, size: int) -> None:
    file = directory / SINGLE_FILE
    file.write_bytes(file.read_bytes()[:size])
    refused(directory, str(file), "truncated or not a safetensors file")


def test_pickled_weights_are_refused(directory: Path) -> None:
    (directory / SINGLE_FILE).rename(directory / "pytorch_model.bin")
    refused(directory, "pytorch_model.bin", "pickled weights are never loaded", "safe_serialization=True")


def test_no_weights(directory: Path) -> None:
    (directory / SINGLE_FILE).unlink()
    refused(directory, str(directory), SINGLE_FILE, INDEX_FILE)


def test_missing_shard_is_named(directory: Path) -> None:
    shard(directory)
    (directory / "b.safetensors").unlink()
    refused(directory, str(directory / "b.safetensors"), "not found", INDEX_FILE)


def test_index_without_a_map(directory: Path) -> None:
    (directory / SINGLE_FILE).unlink()
    (directory / INDEX_FILE).write_text("{}")
    refused(directory, INDEX_FILE, "weight_map")


def test_not_a_directory(tmp_path: Path) -> None:
    refused(
        tmp_path / "nothing",
        "nothing",
        "neither a directory nor an embedded backbone (tiny-qwen3-vl, tiny-internvl, tiny-random)",
    )
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", str(tmp_path / "empty" / "config.json"), "not found")


@pytest.mark.parametrize(
    ("text", "message"), [("{", "not valid JSON"), ("[1]", "an object is needed"), ("\xff", "JSON")]
)
def test_config_that_is_no_json_object(directory: Path, text: str, message: str) -> None:
    (directory / "config.json").write_bytes(text.encode("latin-1"))
    refused(directory, str(directory / "config.json"), message)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda c: c.update(model_type="llava"), ("model_type 'llava' is not supported", "qwen3_vl")),
        (lambda c: c.update(model_type="qwen3_vl_moe"), ("'qwen3_vl_moe'", "dense models only")),
        (lambda c: c.pop("text_config"), ("field 'text_config' is missing",)),
        (lambda c: c.pop("image_token_id"), ("field 'image_token_id' is missing",)),
        (lambda c: c["text_config"].pop("hidden_size"), ("field 'text_config.hidden_size' is missing",)),
        (lambda c: c["vision_config"].pop("depth"), ("field 'vision_config.depth' is missing",)),
        (
            lambda c: c["text_config"]["rope_parameters"].update(rope_type="yarn"),
            ("rope type 'yarn' is not supported",),
        ),
        (lambda c: c["text_config"]["rope_parameters"].pop("rope_theta"), ("field 'rope_theta' is missing",)),
        (lambda c: c["text_config"]["rope_parameters"].update(mrope_interleaved=False), ("not interleaved",)),
        (lambda c: c["text_config"].update(hidden_act="relu"), ("text_config.hidden_act 'relu'",)),
        (lambda c: c["vision_config"].update(hidden_act="relu"), ("vision_config.hidden_act 'relu'",)),
        (lambda c: c["vision_config"].update(out_hidden_size=7), ("vision_config.out_hidden_size 7",)),
    ],
)
def test_unsupported_config_names_the_field(directory: Path, change: Callable, parts: tuple[str, ...]) -> None:
    change_json(directory, change)
    refused(directory, str(directory / "config.json"), *parts)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("preprocessor_config.json", "no usable image processor"),
        ("tokenizer.json", "no usable tokenizer"),
        ("chat_template.jinja", "has no chat template"),
    ],
)
def test_missing_companion_files(directory: Path, name: str, message: str) -> None:
    for file in directory.glob(name.replace("tokenizer.json", "tokenizer*")):
        file.unlink()
    refused(directory, str(directory), message)


def test_small_files_and_settings_are_looked_at_before_the_weights(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "load_parameters", lambda *_, **__: pytest.fail("weights were read"))
    with pytest.raises(ConfigError, match=r"backbone\.max_tiles is not for Qwen3-VL"):
        load(directory, max_tiles=2)
    for file in directory.glob("tokenizer*"):
        file.unlink()
    refused(directory, str(directory), "no usable tokenizer")
    (directory / "preprocessor_config.json").unlink()
    refused(directory, str(directory), "no usable image processor")


def test_old_rope_spelling_equals_new(directory: Path) -> None:
    new = read_config(directory, BackboneConfig())

    def old_spelling(config: dict[str, Any]) -> None:
        rope = config["text_config"].pop("rope_parameters")
        config["text_config"]["rope_theta"] = rope.pop("rope_theta")
        config["text_config"]["rope_scaling"] = {**rope, "type": rope["rope_type"]}

    change_json(directory, old_spelling)
    assert read_config(directory, BackboneConfig()) == new
    change_json(directory, lambda c: c["text_config"].update(rope_scaling={"type": "linear", "factor": 2.0}))
    refused(directory, "rope type 'linear'")


@pytest.mark.parametrize("tied", [True, False])
def test_top_level_tie_wins(tmp_path: Path, tied: bool) -> None:
    directory = write_tiny_random(tmp_path / "model", sizes=TinySizes(tied=tied))
    (directory / SINGLE_FILE).unlink()
    change_json(directory, lambda c: c["text_config"].update(tie_word_embeddings=not tied))
    assert read_config(directory, BackboneConfig()).decoder.tied is tied
    change_json(directory, lambda c: c.pop("tie_word_embeddings"))
    assert read_config(directory, BackboneConfig()).decoder.tied is not tied


@pytest.mark.parametrize("other", [0.0, 1.0], ids=["as the embedding", "another"])
def test_a_head_that_is_there_counts(directory: Path, other: float) -> None:
    """config.json says tied all the same; transformers too keeps a head that differs from the embedding."""
    embedding = load_file(directory / SINGLE_FILE)["model.language_model.embed_tokens.weight"]
    assert load(directory).config.decoder.tied
    change_weights(directory, lambda t: t.update({"lm_head.weight": embedding + other}))
    backbone = load(directory)
    assert not backbone.config.decoder.tied
    np.testing.assert_array_equal(backbone.params["decoder"]["head"]["kernel"][...], (embedding + other).T)
    np.testing.assert_array_equal(backbone.params["decoder"]["embed"]["embedding"][...], embedding)
    pytest.importorskip("torch")
    import transformers

    theirs = transformers.Qwen3VLForConditionalGeneration.from_pretrained(directory)
    np.testing.assert_array_equal(theirs.lm_head.weight.detach().numpy(), embedding + other)
    np.testing.assert_array_equal(theirs.get_input_embeddings().weight.detach().numpy(), embedding)


def test_sharded_equals_single(directory: Path) -> None:
    single = load(directory)
    before = single.fingerprint
    shard(directory)
    sharded = load(directory)
    equal(sharded, single)
    assert sharded.fingerprint != before


def test_bfloat16_checkpoint_and_bfloat16_settings(directory: Path) -> None:
    rounded = load(directory, dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(rounded.params)} == {jnp.dtype(jnp.bfloat16)}
    change_weights(directory, lambda t: t.update({n: x.astype(ml_dtypes.bfloat16) for n, x in t.items()}))
    widened = load(directory)
    assert {leaf.dtype for leaf in jax.tree.leaves(widened.params)} == {jnp.dtype(jnp.float32)}
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(a.dtype)), widened.params, rounded.params)
    equal(load(directory, dtype="bfloat16"), rounded)


def test_fingerprint_follows_what_features_depend_on(directory: Path) -> None:
    first = load(directory).fingerprint
    assert load(directory).fingerprint == first
    assert load(directory, max_pixels=50_000).fingerprint != first
    assert load(directory, dtype="bfloat16").fingerprint != first
    change_weights(directory, lambda t: t.update({Q_NORM: t[Q_NORM] + 1}))
    assert load(directory).fingerprint != first


def test_embedded_backbone_is_written_once(tmp_path: Path) -> None:
    directory = resolve("tiny-random", work=tmp_path)
    assert directory == tmp_path / "tiny-random" == resolve("tiny-random", work=tmp_path)
    assert family_of(directory) is FAMILIES["qwen3_vl"]
