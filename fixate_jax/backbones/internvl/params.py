"""The two layouts of InternVL checkpoints, transformers' and InternVL's own: settings and tensors of each.

They hold the same numbers under other names. Queries, keys and values are one tensor in InternVL's own, as in our
model, and three in transformers'.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fixate_jax.backbones.decoder.layers import ACTIVATIONS
from fixate_jax.backbones.decoder.params import MOST_LAYERS, decoder_rules, is_tied, known_tensors, read_decoder
from fixate_jax.backbones.internvl.config import InternVLConfig, VisionConfig
from fixate_jax.backbones.internvl.pages import MOST_TILES, SYSTEM_MESSAGES
from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.backbones.weights.checkpoint import Rule, Transform, flatten_transpose, keep, read_json, transpose
from fixate_jax.backbones.weights.config_json import Section
from fixate_jax.errors import CheckpointError

NORMS = ("layer_norm", "rms_norm")
DENSE = "a dense Qwen3 decoder ({}), no other and no mixture of experts"


def read_transformers(root: Section, settings: BackboneConfig) -> InternVLConfig:
    """Read transformers' ``config.json`` (model_type internvl).

    Raises:
        CheckpointError: naming the field that is missing or not supported.
    """
    text, vision = root.section("text_config"), root.section("vision_config")
    if text.get("model_type") != "qwen3":
        raise text.refusal("model_type", text.get("model_type"), DENSE.format("'qwen3'"))
    root.one_of("vision_feature_layer", (-1,), -1)
    root.one_of("vision_feature_select_strategy", ("default",), "default")
    vision.one_of("use_absolute_position_embeddings", (True,), True)
    vision.one_of("use_mean_pooling", (True,), True)
    names = known_tensors(root.path.parent)
    prefix = "model." if any(name.startswith("model.vision_tower.") for name in names) else ""
    tower = VisionConfig(
        norm=vision.one_of("norm_type", NORMS, "layer_norm"),
        qkv_bias=vision.flag("attention_bias", False),
        qk_norm=vision.flag("use_qk_norm", False),
        image_size=_side(vision, "image_size", 448),
        **_vision_shape(vision, settings),
    )
    config = InternVLConfig(
        decoder=read_decoder(text, settings, tied=is_tied((root, text), names, _HEADS)),
        vision=tower,
        image_token=root.whole("image_token_id"),
        downsample=root.real("downsample_ratio", 0.5),
        projector_activation=root.one_of("projector_hidden_act", tuple(ACTIVATIONS), "gelu"),
        layout="transformers",
        prefix=prefix,
        tile_layout=settings.tile_layout,
    )
    return _checked(config, root.path)


def read_original(root: Section, settings: BackboneConfig) -> InternVLConfig:
    """Read InternVL's own ``config.json`` (model_type internvl_chat), and the page's token from the tokenizer's files.

    What a missing field means is what InternVL's own classes take it to mean.

    Raises:
        CheckpointError: naming the field that is missing or not supported.
    """
    text, vision = root.section("llm_config"), root.section("vision_config")
    if text.get("architectures") != ["Qwen3ForCausalLM"]:
        raise text.refusal("architectures", text.get("architectures"), DENSE.format("['Qwen3ForCausalLM']"))
    root.one_of("select_layer", (-1,), -1)
    root.one_of("ps_version", ("v2",), "v1")
    side = _side(vision, "image_size", 224)
    root.one_of("force_image_size", (side,), side)
    dynamic = root.flag("dynamic_image_size", False)
    tower = VisionConfig(
        norm=vision.one_of("norm_type", NORMS, "rms_norm"),
        qkv_bias=vision.flag("qkv_bias", False),
        qk_norm=vision.flag("qk_normalization", True),
        qk_norm_eps=vision.real("layer_norm_eps", 1e-6),
        image_size=side,
        **_vision_shape(vision, settings),
    )
    config = InternVLConfig(
        decoder=read_decoder(text, settings, tied=is_tied((text, root), known_tensors(root.path.parent), _HEADS)),
        vision=tower,
        image_token=_image_token(root.path.parent),
        downsample=root.real("downsample_ratio", 0.5),
        layout="original",
        tile_layout=settings.tile_layout,
        thumbnail=root.flag("use_thumbnail", False),
        min_tiles=root.whole("min_dynamic_patch", 1, most=MOST_TILES) if dynamic else 1,
        max_tiles=root.whole("max_dynamic_patch", 6, most=MOST_TILES) if dynamic else 1,
        system_message=root.get("system_message"),
        template=root.one_of("template", tuple(SYSTEM_MESSAGES), None),
    )
    return _checked(config, root.path)


def _vision_shape(vision: Section, settings: BackboneConfig) -> dict[str, Any]:
    """What both layouts call the same."""
    return {
        "layers": vision.whole("num_hidden_layers", most=MOST_LAYERS),
        "width": vision.whole("hidden_size"),
        "ff": vision.whole("intermediate_size"),
        "heads": vision.whole("num_attention_heads"),
        "patch": _side(vision, "patch_size", 14),
        "channels": vision.whole("num_channels", 3),
        "activation": vision.one_of("hidden_act", tuple(ACTIVATIONS), "gelu"),
        "norm_eps": vision.real("layer_norm_eps", 1e-6),
        "dtype": np.dtype(settings.dtype),
        "attention_block": settings.attention_block,
    }


def _side(vision: Section, name: str, default: int) -> int:
    """A square's side, given as one number or as two."""
    value = vision.get(name, default)
    sides = value if isinstance(value, list) else [value]
    if not all(type(side) is int and 0 < side < 2**16 for side in sides) or len(set(sides)) != 1:
        raise vision.refusal(name, value, "the side of a square in pixels")
    return int(sides[0])


def _checked(config: InternVLConfig, path: Path) -> InternVLConfig:
    vision = config.vision
    if vision.width % vision.heads:
        raise CheckpointError(
            f"{path}: vision_config.hidden_size {vision.width} is no multiple of num_attention_heads {vision.heads}"
        )
    if config.tile_side * config.merge * vision.patch != vision.image_size:
        raise CheckpointError(
            f"{path}: vision_config.image_size {vision.image_size} is no multiple of patch_size {vision.patch} × "
            f"{config.merge} (1 / downsample_ratio)"
        )
    return config


def _image_token(directory: Path) -> int:
    """The token that stands for a page token, which the original layout names in the tokenizer's files only."""
    word = InternVLConfig.image_word
    for name, tokens in (
        ("tokenizer.json", lambda file: {t["content"]: t["id"] for t in file.get("added_tokens", [])}),
        ("added_tokens.json", lambda file: file),
        ("tokenizer_config.json", lambda f: {t["content"]: i for i, t in f.get("added_tokens_decoder", {}).items()}),
    ):
        if (directory / name).exists():
            token = tokens(read_json(directory / name)).get(word)
            if token is not None:
                return int(token)
    raise CheckpointError(
        f"{directory}: none of tokenizer.json, added_tokens.json and tokenizer_config.json has the token {word}; "
        "download the tokenizer's files too"
    )


def _first(x: np.ndarray) -> np.ndarray:
    """The tensor without its first axis, which has one entry."""
    return x[0]


@dataclass(frozen=True, kw_only=True)
class _Names:
    """What a layout calls our modules.

    Attributes:
        vision, layers, projector: prefixes.
        qkv: queries, keys and values, joined where they are several tensors.
        modules: our name of any other module → theirs.
    """

    vision: str
    layers: str
    projector: str
    qkv: tuple[str, ...]
    modules: Mapping[str, str]


_TRANSFORMERS = _Names(
    vision="vision_tower.",
    layers="encoder.layer.{layer}.",
    projector="multi_modal_projector.",
    qkv=("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    modules={
        "patch_embed": "embeddings.patch_embeddings.projection",
        "class_token": "embeddings.cls_token",
        "positions": "embeddings.position_embeddings",
        "attention_norm": "layernorm_before",
        "mlp_norm": "layernorm_after",
        "q_norm": "attention.q_norm",
        "k_norm": "attention.k_norm",
        "proj": "attention.projection_layer",
        "fc1": "mlp.fc1",
        "fc2": "mlp.fc2",
        "attention_scale": "lambda_1",
        "mlp_scale": "lambda_2",
        "projector.norm": "layer_norm",
        "projector.fc1": "linear_1",
        "projector.fc2": "linear_2",
    },
)
_ORIGINAL = _Names(
    vision="vision_model.",
    layers="encoder.layers.{layer}.",
    projector="mlp1.",
    qkv=("attn.qkv",),
    modules={
        "patch_embed": "embeddings.patch_embedding",
        "class_token": "embeddings.class_embedding",
        "positions": "embeddings.position_embedding",
        "attention_norm": "norm1",
        "mlp_norm": "norm2",
        "q_norm": "attn.q_norm",
        "k_norm": "attn.k_norm",
        "proj": "attn.proj",
        "fc1": "mlp.fc1",
        "fc2": "mlp.fc2",
        "attention_scale": "ls1",
        "mlp_scale": "ls2",
        "projector.norm": "0",
        "projector.fc1": "1",
        "projector.fc2": "3",
    },
)
_HEAD = "language_model.lm_head.weight"
_HEADS = (_HEAD, "lm_head.weight")


def rules(config: InternVLConfig) -> list[Rule]:
    """The mapping of a whole InternVL checkpoint."""
    names = _ORIGINAL if config.layout == "original" else _TRANSFORMERS
    language, head = ("model.language_model.", "lm_head.weight") if config.prefix else ("language_model.model.", _HEAD)
    vision, layers = config.prefix + names.vision, range(config.vision.layers)
    table = list(decoder_rules(config.decoder, language, head))
    for ours, theirs, transform in _outer_tensors(names):
        prefix = config.prefix + names.projector if ours.startswith("projector.") else vision
        table.append(Rule(f"vision.{ours}", prefix + theirs, transform))
    for ours, parts, transform in _layer_tensors(config.vision, names):
        tensors = tuple(vision + names.layers + part for part in parts)
        table.append(Rule(f"vision.layers.{ours}", tensors, transform, layers))
    return table


def _outer_tensors(names: _Names) -> Iterator[tuple[str, str, Transform]]:
    """Our name, theirs and the transform of what is no layer's."""
    theirs = names.modules
    for name in ("class_token", "positions"):
        yield name, theirs[name], _first
    for name, kernel in (
        ("patch_embed", flatten_transpose),
        ("projector.fc1", transpose),
        ("projector.fc2", transpose),
    ):
        yield f"{name}.kernel", f"{theirs[name]}.weight", kernel
        yield f"{name}.bias", f"{theirs[name]}.bias", keep
    yield "projector.norm.scale", f"{theirs['projector.norm']}.weight", keep
    yield "projector.norm.bias", f"{theirs['projector.norm']}.bias", keep


def _layer_tensors(vision: VisionConfig, names: _Names) -> Iterator[tuple[str, tuple[str, ...], Transform]]:
    """Our name, theirs (several are joined) and the transform of each of a layer's tensors."""
    parts = {name: (theirs,) for name, theirs in names.modules.items()} | {"qkv": names.qkv}

    def tensors(name: str, ours: str, theirs: str, transform: Transform) -> tuple[str, tuple[str, ...], Transform]:
        return f"{name}.{ours}", tuple(f"{part}.{theirs}" for part in parts[name]), transform

    norms = ("attention_norm", "mlp_norm")
    for name in (*norms, *(("q_norm", "k_norm") if vision.qk_norm else ())):
        yield tensors(name, "scale", "weight", keep)
    for name in norms if vision.norm == "layer_norm" else ():
        yield tensors(name, "bias", "bias", keep)
    for name in ("qkv", "proj", "fc1", "fc2"):
        yield tensors(name, "kernel", "weight", transpose)
    for name in (*(("qkv",) if vision.qkv_bias else ()), "proj", "fc1", "fc2"):
        yield tensors(name, "bias", "bias", keep)
    for name in ("attention_scale", "mlp_scale"):
        yield name, parts[name], keep
