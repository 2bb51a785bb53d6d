"""`verify` passes a checkpoint that we read rightly, and fails one that we read wrongly."""

import sys
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from fixate_jax.backbones.internvl import model as internvl
from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.backbones.qwen3_vl import model as qwen3_vl
from fixate_jax.backbones.tiny.random import write_tiny_random
from fixate_jax.backbones.weights.checkpoint import Rule
from fixate_jax.errors import CheckpointError, FixateError
from fixate_jax.lab.verify import torch_side as verify_torch
from fixate_jax.lab.verify import verify
from tests.backbones.tiny import make_torch_checkpoint
from tests.backbones.tiny_internvl import VISION_6B, make_internvl_checkpoint, rewrite_as_original

SETTINGS = {dtype: BackboneConfig(dtype=dtype, tapped_layers=2) for dtype in ("float32", "bfloat16")}
PAGE = Image.radial_gradient("L").resize((192, 128))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("verify") / "model"
    return make_torch_checkpoint(directory, seed=7, text={"num_hidden_layers": 3})


def failed(table: pd.DataFrame) -> set[str]:
    return set(table.loc[~table["ok"], "what"])


def swap_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the mapping table read each decoder layer's q norm as its k norm, and the other way round."""
    original = qwen3_vl.rules

    def rules(config: Any) -> list[Rule]:
        other = {"q_norm": "k_norm", "k_norm": "q_norm"}
        table = []
        for rule in original(config):
            assert isinstance(rule.tensor, str)
            name = next((n for n in other if n in rule.tensor), None)
            tensor = rule.tensor.replace(name, other[name]) if name else rule.tensor
            table.append(Rule(rule.path, tensor, rule.transform, rule.layers))
        return table

    monkeypatch.setattr(qwen3_vl, "rules", rules)


@pytest.mark.parametrize("dtype", SETTINGS)
def test_a_good_checkpoint_passes(checkpoint: Path, dtype: str) -> None:
    table = verify.verify(checkpoint, settings=SETTINGS[dtype], image=PAGE)
    assert tuple(table.columns) == verify.COLUMNS
    assert failed(table) == set()
    assert (table["relative"] <= verify.TOLERANCES[dtype]).all()
    what = list(table["what"])
    assert what[:3] == ["rotary positions", "vision layer 0", "vision layer 1"]
    assert what[3:6] == ["visual tokens", "DeepStack features 0", "DeepStack features 1"]
    assert what[6:9] == [f"decoder layer {i}" for i in range(3)]
    assert sum(w.startswith("answer token") for w in what) == 5


def test_a_wrong_mapping_fails_from_the_mistake_on(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    swap_norms(monkeypatch)
    # In bfloat16, whose tolerance is the larger one.
    table = verify.verify(checkpoint, settings=SETTINGS["bfloat16"], image=PAGE)
    what, wrong = list(table["what"]), failed(table)
    assert {*what[6:11]} <= wrong, "every decoder layer and the logits have to fail"
    assert not wrong & {*what[:6]}, "what stands before the mistake still passes"


def swap_layer_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the mapping table read the second layer scale as the first, and the other way round."""
    original = internvl.rules

    def rules(config: Any) -> list[Rule]:
        scales = {"vision.layers.attention_scale", "vision.layers.mlp_scale"}
        table = original(config)
        first, second = (r for r in table if r.path in scales)
        return [r for r in table if r.path not in scales] + [
            replace(first, path=second.path),
            replace(second, path=first.path),
        ]

    monkeypatch.setattr(internvl, "rules", rules)


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    small = {"num_hidden_layers": 2}
    directory = tmp_path_factory.mktemp("verify") / "transformers"
    make_internvl_checkpoint(directory, seed=8, text=small, vision={**VISION_6B, **small}, tie=False)
    return {"transformers": directory, "original": rewrite_as_original(directory, directory.parent / "original")}


@pytest.mark.parametrize(("layout", "dtype"), [("transformers", "bfloat16"), ("original", "float32")])
def test_internvl_passes_in_either_layout(tiles: dict[str, Path], layout: str, dtype: str) -> None:
    table = verify.verify(tiles[layout], settings=SETTINGS[dtype], image=PAGE)
    assert failed(table) == set()
    assert (table["relative"] <= verify.TOLERANCES[dtype]).all()
    vision, decoder = [f"vision layer {i}" for i in range(2)], [f"decoder layer {i}" for i in range(2)]
    assert list(table["what"])[:6] == ["rotary positions", *vision, "visual tokens", *decoder]


def test_a_wrong_mapping_of_the_original_layout_fails(tiles: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    swap_layer_scales(monkeypatch)
    table = verify.verify(tiles["original"], settings=SETTINGS["float32"], image=PAGE)
    assert set(table["what"][:1]) == set(table["what"]) - failed(table), "only the positions are right"


def test_a_model_that_transformers_does_not_have(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    (tmp_path / "config.json").write_text('{"model_type": "toy"}')
    with pytest.raises(FixateError, match="no model to compare model_type 'toy' with"):
        verify_torch.load_torch_model(tmp_path)


def test_noise_page_untied_head_and_no_deepstack(tmp_path: Path) -> None:
    directory = make_torch_checkpoint(
        tmp_path / "model",
        text={"num_hidden_layers": 1},
        vision={"depth": 1, "deepstack_visual_indexes": []},
        tie=False,
        sharded=True,
    )
    table = verify.verify(directory, settings=BackboneConfig(max_pixels=40_000), tolerance=1e-12)
    assert table["relative"].max() <= verify.TOLERANCES["float32"]
    assert failed(table) and "rotary positions" not in failed(table), "the given tolerance is the one that counts"
    assert not table["what"].str.contains("DeepStack").any()


def test_torch_is_freed_before_ours_is_loaded(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = []

    def load_theirs(*args: Any, original: Any = verify.load_torch_model, **settings: Any) -> Any:
        model = original(*args, **settings)
        models.append(weakref.ref(model))
        return model

    class ReachedOurs(Exception):
        pass

    def load_ours(settings: BackboneConfig) -> None:
        assert [model() for model in models] == [None]
        raise ReachedOurs

    monkeypatch.setattr(verify, "load_torch_model", load_theirs)
    monkeypatch.setattr(verify, "load_backbone", load_ours)
    with pytest.raises(ReachedOurs):
        verify.verify(checkpoint, settings=SETTINGS["float32"], image=PAGE)


def test_without_torch_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(FixateError, match=r"needs PyTorch.*pip install '\.\[torch\]'"):
        verify.verify(write_tiny_random(tmp_path / "model"), settings=BackboneConfig())


def test_unusable_files_are_named_before_torch_reads_them(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    directory = write_tiny_random(tmp_path / "model")
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: truncated"):
        verify.verify(directory, settings=BackboneConfig())
