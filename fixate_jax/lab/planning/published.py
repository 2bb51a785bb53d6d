"""Published sizes by name: what stands in the JSON files of their model directories, without the weights.

For planning, benchmarks and tests. A checkpoint's own files always win; nothing here is read when one is loaded.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from fixate_jax.errors import ConfigError


class _Decoder(NamedTuple):
    """A Qwen3 decoder; head width, key/value heads and vocabulary are the same in all."""

    layers: int
    width: int
    ff: int
    heads: int
    tied: bool


class _Tower(NamedTuple):
    """A vision tower."""

    layers: int
    width: int
    ff: int
    heads: int
    deepstack: tuple[int, ...] = ()


_DECODERS = {
    "0.6b": _Decoder(28, 1024, 3072, 16, True),
    "1.7b": _Decoder(28, 2048, 6144, 16, True),
    "4b": _Decoder(36, 2560, 9728, 32, True),
    "8b": _Decoder(36, 4096, 12288, 32, False),
    "14b": _Decoder(40, 5120, 17408, 40, False),
    "32b": _Decoder(64, 5120, 25600, 64, False),
}
_QWEN_SMALL = _Tower(24, 1024, 4096, 16, (5, 11, 17))
_QWEN_LARGE = _Tower(27, 1152, 4304, 16, (8, 16, 24))
_VIT_300M = _Tower(24, 1024, 4096, 16)
_VIT_6B = _Tower(45, 3200, 12800, 25)

_SIZES: dict[str, tuple[str, _Tower]] = {
    "qwen3-vl-2b": ("1.7b", _QWEN_SMALL),
    "qwen3-vl-4b": ("4b", _QWEN_SMALL),
    "qwen3-vl-8b": ("8b", _QWEN_LARGE),
    "qwen3-vl-32b": ("32b", _QWEN_LARGE),
    "internvl3.5-1b": ("0.6b", _VIT_300M),
    "internvl3.5-2b": ("1.7b", _VIT_300M),
    "internvl3.5-4b": ("4b", _VIT_300M),
    "internvl3.5-8b": ("8b", _VIT_300M),
    "internvl3.5-14b": ("14b", _VIT_300M),
    "internvl3.5-38b": ("32b", _VIT_6B),
}
PUBLISHED = tuple(_SIZES)
"""Names of the published sizes."""

_HALVES = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def _text(decoder: _Decoder) -> dict[str, Any]:
    return {
        "vocab_size": 151_936,
        "hidden_size": decoder.width,
        "intermediate_size": decoder.ff,
        "num_hidden_layers": decoder.layers,
        "num_attention_heads": decoder.heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rms_norm_eps": 1e-6,
    }


def _qwen3_vl(decoder: _Decoder, tower: _Tower) -> dict[str, Any]:
    return {
        "model_type": "qwen3_vl",
        "tie_word_embeddings": decoder.tied,
        "image_token_id": 151_655,
        "text_config": {
            **_text(decoder),
            "model_type": "qwen3_vl_text",
            "rope_theta": 5e6,
            "rope_scaling": {"rope_type": "default", "mrope_section": [24, 20, 20], "mrope_interleaved": True},
        },
        "vision_config": {
            "model_type": "qwen3_vl",
            "depth": tower.layers,
            "hidden_size": tower.width,
            "intermediate_size": tower.ff,
            "num_heads": tower.heads,
            "out_hidden_size": decoder.width,
            "patch_size": 16,
            "temporal_patch_size": 2,
            "spatial_merge_size": 2,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": list(tower.deepstack),
        },
    }


def _internvl(decoder: _Decoder, tower: _Tower) -> dict[str, Any]:
    large = tower is _VIT_6B
    return {
        "model_type": "internvl",
        "tie_word_embeddings": decoder.tied,
        "image_token_id": 151_671,
        "downsample_ratio": 0.5,
        "projector_hidden_act": "gelu",
        "text_config": {**_text(decoder), "model_type": "qwen3", "rope_theta": 1e6},
        "vision_config": {
            "model_type": "internvl_vision",
            "num_hidden_layers": tower.layers,
            "hidden_size": tower.width,
            "intermediate_size": tower.ff,
            "num_attention_heads": tower.heads,
            "hidden_act": "gelu",
            "image_size": [448, 448],
            "patch_size": [14, 14],
            "attention_bias": not large,
            "use_qk_norm": large,
            "norm_type": "rms_norm" if large else "layer_norm",
        },
    }


_QWEN3_VL_PROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "size": {"shortest_edge": 65_536, "longest_edge": 16_777_216},
    **_HALVES,
}
_INTERNVL_PROCESSOR = {
    "image_processor_type": "GotOcr2ImageProcessor",
    "crop_to_patches": True,
    "min_patches": 1,
    "max_patches": 12,
    "size": {"height": 448, "width": 448},
    **_HALVES,
}


def published_files(name: str) -> dict[str, dict[str, Any]]:
    """The JSON files of a published size, by file name, in transformers' layout.

    Args:
        name: one of :data:`PUBLISHED`.

    Raises:
        ConfigError: naming the sizes there are.
    """
    if name not in _SIZES:
        raise ConfigError(f"{name!r} is no published size; there are {', '.join(PUBLISHED)}")
    decoder, tower = _SIZES[name]
    qwen = name.startswith("qwen3-vl")
    return {
        "config.json": (_qwen3_vl if qwen else _internvl)(_DECODERS[decoder], tower),
        "preprocessor_config.json": dict(_QWEN3_VL_PROCESSOR if qwen else _INTERNVL_PROCESSOR),
    }


def write_published(name: str, directory: Path) -> Path:
    """Write the JSON files of a published size into a directory that exists; returns the directory.

    Raises:
        ConfigError: naming the sizes there are.
    """
    for file, content in published_files(name).items():
        (directory / file).write_text(json.dumps(content), encoding="utf-8")
    return directory
