"""Every published size from its ``config.json`` alone: number of parameters, output head, shapes of grouped queries."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from flax import nnx

from fixate_jax.backbones.loading import family_of
from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.errors import CheckpointError

VOCAB, HEAD_DIM, KV_HEADS = 151_936, 128, 8


@dataclass(frozen=True)
class Decoder:
    """A Qwen3 decoder as published."""

    layers: int
    hidden: int
    ff: int
    heads: int
    tied: bool

    @property
    def parameters(self) -> int:
        attention = 2 * self.hidden * self.heads * HEAD_DIM + 2 * self.hidden * KV_HEADS * HEAD_DIM + 2 * HEAD_DIM
        layer = attention + 3 * self.hidden * self.ff + 2 * self.hidden
        return (1 if self.tied else 2) * VOCAB * self.hidden + self.layers * layer + self.hidden


@dataclass(frozen=True)
class Tower:
    """A vision tower as published."""

    layers: int
    hidden: int
    ff: int
    heads: int
    deepstack: tuple[int, ...] = ()
    """Qwen3-VL: layers whose output goes into the decoder's first layers."""
    large: bool = False
    """InternViT: q/k norm, RMSNorm and no qkv bias, as in the 6B; else as in the 300M."""


DECODERS = {
    "0.6B": Decoder(28, 1024, 3072, 16, True),
    "1.7B": Decoder(28, 2048, 6144, 16, True),
    "4B": Decoder(36, 2560, 9728, 32, True),
    "8B": Decoder(36, 4096, 12288, 32, False),
    "14B": Decoder(40, 5120, 17408, 40, False),
    "32B": Decoder(64, 5120, 25600, 64, False),
}
QWEN_SMALL = Tower(24, 1024, 4096, 16, (5, 11, 17))
QWEN_LARGE = Tower(27, 1152, 4304, 16, (8, 16, 24))
VIT_300M = Tower(24, 1024, 4096, 16)
VIT_6B = Tower(45, 3200, 12800, 25, large=True)

QWEN = {
    "Qwen3-VL-2B": ("1.7B", QWEN_SMALL, 2.1),
    "Qwen3-VL-4B": ("4B", QWEN_SMALL, 4.4),
    "Qwen3-VL-8B": ("8B", QWEN_LARGE, 8.8),
    "Qwen3-VL-32B": ("32B", QWEN_LARGE, 33.4),
}
INTERNVL = {
    "InternVL3.5-1B": ("0.6B", VIT_300M, 1.1),
    "InternVL3.5-2B": ("1.7B", VIT_300M, 2.3),
    "InternVL3.5-4B": ("4B", VIT_300M, 4.7),
    "InternVL3.5-8B": ("8B", VIT_300M, 8.5),
    "InternVL3.5-14B": ("14B", VIT_300M, 15.1),
    "InternVL3.5-38B": ("32B", VIT_6B, 38.4),
}
"""Decoder, vision tower, and the number of parameters in billions as the model's page gives it (InternVL's count a tied
output head as one more matrix)."""


def text_config(decoder: Decoder) -> dict[str, Any]:
    return {
        "vocab_size": VOCAB,
        "hidden_size": decoder.hidden,
        "intermediate_size": decoder.ff,
        "num_hidden_layers": decoder.layers,
        "num_attention_heads": decoder.heads,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "attention_bias": False,
        "rms_norm_eps": 1e-6,
    }


def qwen_config(decoder: Decoder, tower: Tower) -> dict[str, Any]:
    rope = {"rope_type": "default", "mrope_section": [24, 20, 20], "mrope_interleaved": True}
    return {
        "model_type": "qwen3_vl",
        "tie_word_embeddings": decoder.tied,
        "image_token_id": 151_655,
        "video_token_id": 151_656,
        "vision_start_token_id": 151_652,
        "vision_end_token_id": 151_653,
        "text_config": text_config(decoder) | {"rope_theta": 5_000_000, "rope_scaling": rope},
        "vision_config": {
            "depth": tower.layers,
            "hidden_size": tower.hidden,
            "intermediate_size": tower.ff,
            "num_heads": tower.heads,
            "out_hidden_size": decoder.hidden,
            "hidden_act": "gelu_pytorch_tanh",
            "patch_size": 16,
            "temporal_patch_size": 2,
            "spatial_merge_size": 2,
            "in_channels": 3,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": list(tower.deepstack),
        },
    }


def internvl_config(decoder: Decoder, tower: Tower) -> dict[str, Any]:
    """transformers' layout."""
    return {
        "model_type": "internvl",
        "tie_word_embeddings": decoder.tied,
        "image_token_id": 151_671,
        "downsample_ratio": 0.5,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "text_config": text_config(decoder)
        | {"model_type": "qwen3", "rope_theta": 1_000_000, "tie_word_embeddings": decoder.tied},
        "vision_config": {
            "model_type": "internvl_vision",
            "hidden_size": tower.hidden,
            "intermediate_size": tower.ff,
            "num_hidden_layers": tower.layers,
            "num_attention_heads": tower.heads,
            "hidden_act": "gelu",
            "image_size": [448, 448],
            "patch_size": [14, 14],
            "num_channels": 3,
            "attention_bias": not tower.large,
            "use_qk_norm": tower.large,
            "norm_type": "rms_norm" if tower.large else "layer_norm",
            "use_absolute_position_embeddings": True,
            "use_mean_pooling": True,
        },
    }


def original_config(decoder: Decoder, tower: Tower) -> dict[str, Any]:
    """InternVL's own layout."""
    return {
        "model_type": "internvl_chat",
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": 448,
        "max_dynamic_patch": 12,
        "min_dynamic_patch": 1,
        "use_thumbnail": True,
        "select_layer": -1,
        "ps_version": "v2",
        "template": "internvl2_5",
        "llm_config": text_config(decoder)
        | {
            "model_type": "qwen3",
            "architectures": ["Qwen3ForCausalLM"],
            "rope_theta": 1_000_000,
            "tie_word_embeddings": decoder.tied,
        },
        "vision_config": {
            "model_type": "intern_vit_6b",
            "hidden_size": tower.hidden,
            "intermediate_size": tower.ff,
            "num_hidden_layers": tower.layers,
            "num_attention_heads": tower.heads,
            "hidden_act": "gelu",
            "image_size": 448,
            "patch_size": 14,
            "qkv_bias": not tower.large,
            "qk_normalization": tower.large,
            "norm_type": "rms_norm" if tower.large else "layer_norm",
        },
    }


def linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def qwen_tower(tower: Tower, out: int) -> int:
    hidden, joined = tower.hidden, 4 * tower.hidden
    attention = linear(hidden, 3 * hidden) + linear(hidden, hidden)
    layer = 2 * (2 * hidden) + attention + linear(hidden, tower.ff) + linear(tower.ff, hidden)
    start = linear(3 * 2 * 16 * 16, hidden) + 2304 * hidden
    mergers = (1 + len(tower.deepstack)) * (linear(joined, joined) + linear(joined, out))
    # The main merger norms each patch, the others the four joined ones.
    return start + tower.layers * layer + mergers + 2 * hidden + len(tower.deepstack) * 2 * joined


def internvl_tower(tower: Tower, out: int) -> int:
    hidden, joined = tower.hidden, 4 * tower.hidden
    norms = 2 * (hidden if tower.large else 2 * hidden) + (2 * hidden if tower.large else 0)
    attention = hidden * 3 * hidden + (0 if tower.large else 3 * hidden) + linear(hidden, hidden)
    layer = norms + attention + linear(hidden, tower.ff) + linear(tower.ff, hidden) + 2 * hidden
    start = linear(3 * 14 * 14, hidden) + hidden + (32 * 32 + 1) * hidden
    return start + tower.layers * layer + 2 * joined + linear(joined, out) + linear(out, out)


def shapes_of(directory: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter, by path, without making any; each has a place in the mapping table."""
    settings = BackboneConfig(tapped_layers=6)
    family = family_of(directory)
    config = family.read_config(directory, settings)
    state = nnx.state(nnx.eval_shape(lambda: family.build(config, nnx.Rngs(0))), nnx.Param)
    shapes = {".".join(map(str, path)): tuple(leaf.shape) for path, leaf in nnx.to_flat_state(state)}
    assert {rule.path for rule in family.rules(config)} == set(shapes)
    return shapes


def published() -> Iterator[Any]:
    for name, size in QWEN.items():
        yield pytest.param(qwen_config, qwen_tower, *size, id=name)
    for name, size in INTERNVL.items():
        yield pytest.param(internvl_config, internvl_tower, *size, id=name)


def write(directory: Path, config: dict[str, Any]) -> None:
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (directory / "added_tokens.json").write_text(json.dumps({"<IMG_CONTEXT>": 151_671}), encoding="utf-8")


@pytest.mark.parametrize(("layout", "tower_parameters", "decoder_name", "tower", "billions"), published())
def test_published_size(
    layout: Any, tower_parameters: Any, decoder_name: str, tower: Tower, billions: float, tmp_path: Path
) -> None:
    decoder = DECODERS[decoder_name]
    write(tmp_path, layout(decoder, tower))
    shapes = shapes_of(tmp_path)
    count = sum(math.prod(shape) for shape in shapes.values())
    assert count == decoder.parameters + tower_parameters(tower, decoder.hidden)
    again = VOCAB * decoder.hidden if decoder.tied and layout is internvl_config else 0
    assert (count + again) / 1e9 == pytest.approx(billions, abs=0.06)

    assert shapes["decoder.embed.embedding"] == (VOCAB, decoder.hidden)
    assert shapes.get("decoder.head.kernel") == (None if decoder.tied else (decoder.hidden, VOCAB))

    for group, layers in (("lower", decoder.layers - 6), ("upper", 5), ("last", 1)):
        for name, heads in (("q_proj", decoder.heads), ("k_proj", KV_HEADS), ("v_proj", KV_HEADS)):
            assert shapes[f"decoder.{group}.{name}.kernel"] == (layers, decoder.hidden, heads * HEAD_DIM)
        assert shapes[f"decoder.{group}.o_proj.kernel"] == (layers, decoder.heads * HEAD_DIM, decoder.hidden)
        assert shapes[f"decoder.{group}.q_norm.scale"] == shapes[f"decoder.{group}.k_norm.scale"] == (layers, HEAD_DIM)


@pytest.mark.parametrize(("decoder_name", "tower", "billions"), INTERNVL.values(), ids=INTERNVL)
def test_internvls_own_layout_says_the_same(decoder_name: str, tower: Tower, billions: float, tmp_path: Path) -> None:
    del billions
    found = []
    for layout in (internvl_config, original_config):
        write(tmp_path, layout(DECODERS[decoder_name], tower))
        family = family_of(tmp_path)
        config = family.read_config(tmp_path, BackboneConfig())
        found.append((config.decoder, config.vision, config.image_token, {rule.path for rule in family.rules(config)}))
    assert found[0] == found[1]


def refused(directory: Path, config: dict[str, Any], *parts: str) -> None:
    write(directory, config)
    with pytest.raises(CheckpointError) as caught:
        shapes_of(directory)
    for part in (str(directory / "config.json"), *parts):
        assert part in str(caught.value)


EXPERTS = {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768}


def test_mixtures_of_experts_are_refused(tmp_path: Path) -> None:
    decoder = DECODERS["4B"]
    qwen, original = qwen_config(decoder, QWEN_SMALL), original_config(decoder, VIT_300M)
    refused(tmp_path, qwen | {"model_type": "qwen3_vl_moe"}, "model_type 'qwen3_vl_moe'", "dense models only")
    text = {"text_config": qwen["text_config"] | EXPERTS}
    refused(tmp_path, qwen | text, "text_config.num_experts", "mixture of experts", "dense models only")
    internvl = internvl_config(decoder, VIT_300M)
    text = {"text_config": internvl["text_config"] | EXPERTS | {"model_type": "qwen3_moe"}}
    refused(tmp_path, internvl | text, "text_config.num_experts", "dense models only")
    text = {"llm_config": original["llm_config"] | EXPERTS | {"architectures": ["Qwen3MoeForCausalLM"]}}
    refused(tmp_path, original | text, "llm_config.num_experts", "dense models only")
    text = {"llm_config": {"model_type": "gpt_oss", "architectures": ["GptOssForCausalLM"], "num_local_experts": 32}}
    refused(tmp_path, original | text, "llm_config.num_local_experts", "dense models only")
