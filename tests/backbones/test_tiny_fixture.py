"""The tiny random models are what they claim to be: ordinary directories that transformers itself can use."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from transformers import AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from fixate_jax.backbones.tiny.random import SPECIAL_TOKENS, TinySizes, write_tiny_random
from fixate_jax.errors import CheckpointError, ConfigError
from tests.backbones.tiny import bench_checkpoint, make_torch_checkpoint
from tests.backbones.torch_parity import left_pad, load_torch_model, page_token_rows, torch_hidden_states


def _bytes(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    first = _bytes(write_tiny_random(tmp_path / "a", seed=3))
    assert first == _bytes(write_tiny_random(tmp_path / "b", seed=3))
    assert first["model.safetensors"] != _bytes(write_tiny_random(tmp_path / "c", seed=4))["model.safetensors"]
    assert first == _bytes(write_tiny_random(tmp_path / "a", seed=3)), "writing twice is writing once"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "c"], "nothing half-written may stay behind"


def test_existing_files_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("mine")
    with pytest.raises(CheckpointError, match="new or an empty directory"):
        write_tiny_random(tmp_path)
    assert _bytes(tmp_path) == {"config.json": b"mine"}
    write_tiny_random(tmp_path / "model", seed=1)
    with pytest.raises(CheckpointError, match="new or an empty directory"):
        write_tiny_random(tmp_path / "model", seed=2)


@pytest.mark.parametrize(
    ("sizes", "field"),
    [
        ({"heads": 3}, "heads"),
        ({"head_dim": 20}, "head_dim"),
        ({"vision_width": 60}, "vision_width"),
        ({"deepstack": (0, 2)}, "deepstack"),
        ({"vocab": 300}, "vocab"),
    ],
)
def test_contradicting_sizes_name_the_field(sizes: dict, field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        TinySizes(**sizes)


def test_writing_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from fixate_jax.backbones.tiny.random import write_tiny_random\n"
        "write_tiny_random(Path(sys.argv[1]))\n"
        "from transformers import AutoTokenizer\n"
        "from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil\n"
        "AutoTokenizer.from_pretrained(sys.argv[1]), Qwen2VLImageProcessorPil.from_pretrained(sys.argv[1])\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "model")], check=True, cwd=Path(__file__).parents[2])


def test_tokenizer(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(write_tiny_random(tmp_path / "model"))
    assert 400 <= len(tokenizer) <= TinySizes().vocab
    for label in (*"ABCDEFGHIJKLMNOPQRSTUVWXYZ", *"0123456789"):
        assert len(tokenizer(label).input_ids) == 1
    assert len(tokenizer("10").input_ids) == 2
    for special in SPECIAL_TOKENS:
        assert len(tokenizer(special).input_ids) == 1
    text = "Which slot would Zoë click?\n\n  12% – 東京"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token == "<|endoftext|>"


def test_chat_template(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(write_tiny_random(tmp_path / "model"))
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which?"}]},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Which?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_image_processor(tmp_path: Path) -> None:
    processor = Qwen2VLImageProcessorPil.from_pretrained(write_tiny_random(tmp_path / "model"))
    out = processor(np.zeros((619, 1100, 3), np.uint8), return_tensors="np")
    assert out["image_grid_thw"].tolist() == [[1, 38, 68]]
    assert out["pixel_values"].shape == (38 * 68, 3 * 2 * 16 * 16)
    assert np.all(out["pixel_values"] == -1)


@pytest.mark.parametrize("sizes", [TinySizes(), TinySizes(tied=False, deepstack=(1,), layers=2)])
def test_transformers_saves_the_same_tensors(tmp_path: Path, sizes: TinySizes) -> None:
    model = load_torch_model(write_tiny_random(tmp_path / "ours", sizes=sizes))
    model.save_pretrained(tmp_path / "theirs")
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    written, read = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("ours", "theirs"))
    for part in ("text_config", "vision_config"):
        for key, value in written[part].items():
            # transformers keeps the top-level entry alone.
            assert key == "tie_word_embeddings" or read[part][key] == value, (part, key)


def test_every_tensor_of_the_torch_checkpoint_is_random(tmp_path: Path) -> None:
    make_torch_checkpoint(tmp_path / "model", seed=1)
    for name, tensor in load_file(tmp_path / "model" / "model.safetensors").items():
        assert tensor.std() > 0.01, name


def test_sharded_untied_and_resized(tmp_path: Path) -> None:
    directory = make_torch_checkpoint(
        tmp_path / "model",
        text={"hidden_size": 64, "num_hidden_layers": 3, "attention_bias": True},
        vision={"depth": 3, "deepstack_visual_indexes": [0, 2]},
        tie=False,
        sharded=True,
    )
    index = json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) > 1
    assert "lm_head.weight" in index and "model.visual.blocks.2.attn.qkv.weight" in index
    assert not (directory / "model.safetensors").exists()
    assert load_torch_model(directory).model.language_model.layers[0].self_attn.q_proj.bias is not None


def test_bench_checkpoint_has_the_bench_shape(tmp_path: Path) -> None:
    config = json.loads((bench_checkpoint(tmp_path / "model") / "config.json").read_text())
    text, vision = config["text_config"], config["vision_config"]
    names = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    assert [text[name] for name in names] == [12, 512, 1536, 8, 2]
    assert (text["head_dim"], text["vocab_size"]) == (64, 600)
    assert [vision[n] for n in ("depth", "hidden_size", "intermediate_size", "num_heads")] == [6, 256, 1024, 4]


def test_hidden_states_do_not_depend_on_batching(tmp_path: Path) -> None:
    directory = make_torch_checkpoint(tmp_path / "model")
    model = load_torch_model(directory)
    processor = Qwen2VLImageProcessorPil.from_pretrained(directory)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((96, 160), (128, 64))]
    pages = [processor(image, return_tensors="np") for image in images]
    grids = np.concatenate([page["image_grid_thw"] for page in pages])
    rows = page_token_rows(grids, config=model.config)
    ids, mask = left_pad(rows, pad=0)
    both = torch_hidden_states(
        directory,
        pixel_values=np.concatenate([page["pixel_values"] for page in pages]),
        image_grid_thw=grids,
        input_ids=ids,
        attention_mask=mask,
        model=model,
    )
    assert not mask.all(), "one of the rows should be padded"
    levels = len(model.config.vision_config.deepstack_visual_indexes)
    is_image = ids == model.config.image_token_id
    added = both["states"][1:] - both["layer_outputs"]
    assert np.all(added[levels:] == 0) and np.all(added[:, ~is_image] == 0)
    for i, page in enumerate(pages):
        alone = torch_hidden_states(
            directory,
            pixel_values=page["pixel_values"],
            image_grid_thw=page["image_grid_thw"],
            input_ids=rows[i][None],
            attention_mask=np.ones_like(rows[i][None]),
            model=model,
        )
        valid = mask[i] == 1
        np.testing.assert_array_equal(both["position_ids"][:, i, valid], alone["position_ids"][:, 0])
        for name in ("states", "layer_outputs"):
            np.testing.assert_allclose(both[name][:, i, valid], alone[name][:, 0], atol=1e-4)
        np.testing.assert_allclose(both["logits"][i, valid], alone["logits"][0], atol=1e-4)
        np.testing.assert_allclose(both["visual_features"][i], alone["visual_features"][0], atol=1e-4)
        np.testing.assert_allclose(added[:levels, i, is_image[i]], both["deepstack_features"][i], atol=1e-4)
        np.testing.assert_allclose(both["states"][0, i, is_image[i]], both["visual_features"][i], atol=1e-6)
