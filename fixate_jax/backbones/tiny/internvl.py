"""What is InternVL's own in a tiny model of that architecture, in the layout of transformers."""

from typing import TYPE_CHECKING, Any

from fixate_jax.backbones.tiny import qwen3_vl as tiny_qwen3_vl
from fixate_jax.backbones.tiny.qwen3_vl import affine, generation_config, text_config

if TYPE_CHECKING:
    from fixate_jax.backbones.tiny.sizes import TinySizes

MARKS = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
"""Role of each token around a page → its text."""
SPECIAL_TOKENS = (*tiny_qwen3_vl.SPECIAL_TOKENS, *MARKS.values())
DECODER = "language_model.model"
"""What the names of the decoder's tensors start with."""
HEAD = "language_model.lm_head.weight"
TOKENIZER_SETTINGS = {"extra_special_tokens": MARKS | {"video_token": "<|video_pad|>"}}
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{{- '<IMG_CONTEXT>\\n' if part['type'] == 'image' else part['text'] -}}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def vision_shapes(sizes: "TinySizes") -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the vision tower and the projector."""
    vision, joined, patches = sizes.vision_width, sizes.vision_width * sizes.merge**2, (sizes.tile // sizes.patch) ** 2
    shapes: dict[str, tuple[int, ...]] = {
        "vision_tower.embeddings.cls_token": (1, 1, vision),
        "vision_tower.embeddings.patch_embeddings.projection.weight": (vision, 3, sizes.patch, sizes.patch),
        "vision_tower.embeddings.patch_embeddings.projection.bias": (vision,),
        "vision_tower.embeddings.position_embeddings": (1, patches + 1, vision),
    }
    for layer in range(sizes.vision_layers):
        shapes |= _vision_layer_shapes(f"vision_tower.encoder.layer.{layer}", sizes)
    return {
        **shapes,
        **affine("multi_modal_projector.layer_norm", (joined,)),
        **affine("multi_modal_projector.linear_1", (sizes.width, joined)),
        **affine("multi_modal_projector.linear_2", (sizes.width, sizes.width)),
    }


def _vision_layer_shapes(prefix: str, sizes: "TinySizes") -> dict[str, tuple[int, ...]]:
    width, ff = sizes.vision_width, sizes.vision_ff
    shapes = affine(f"{prefix}.layernorm_before", (width,)) | affine(f"{prefix}.layernorm_after", (width,))
    for name in ("q_proj", "k_proj", "v_proj", "projection_layer"):
        shapes |= affine(f"{prefix}.attention.{name}", (width, width))
    shapes |= affine(f"{prefix}.mlp.fc1", (ff, width)) | affine(f"{prefix}.mlp.fc2", (width, ff))
    return shapes | {f"{prefix}.lambda_1": (width,), f"{prefix}.lambda_2": (width,)}


def config_files(sizes: "TinySizes") -> dict[str, dict[str, Any]]:
    """Content of the JSON files but the tokenizer's, by name."""
    token = {name: sizes.first_special + i for i, name in enumerate(SPECIAL_TOKENS)}
    config = {
        "architectures": ["InternVLForConditionalGeneration"],
        "model_type": "internvl",
        "dtype": sizes.dtype,
        "tie_word_embeddings": sizes.tied,
        "image_token_id": token["<IMG_CONTEXT>"],
        "image_seq_length": (sizes.tile // sizes.patch // sizes.merge) ** 2,
        "downsample_ratio": 1 / sizes.merge,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "text_config": text_config(sizes, model_type="qwen3", rope={}),
        "vision_config": _vision_config(sizes),
    }
    preprocessor = {
        "image_processor_type": "GotOcr2ImageProcessor",
        "crop_to_patches": True,
        "min_patches": 1,
        "max_patches": sizes.max_tiles,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "size": {"height": sizes.tile, "width": sizes.tile},
    }
    return {
        "config.json": config,
        "preprocessor_config.json": preprocessor,
        "generation_config.json": generation_config(token),
    }


def _vision_config(sizes: "TinySizes") -> dict[str, Any]:
    return {
        "model_type": "internvl_vision",
        "num_hidden_layers": sizes.vision_layers,
        "hidden_size": sizes.vision_width,
        "intermediate_size": sizes.vision_ff,
        "num_attention_heads": sizes.vision_heads,
        "hidden_act": "gelu",
        "num_channels": 3,
        "image_size": [sizes.tile, sizes.tile],
        "patch_size": [sizes.patch, sizes.patch],
        "attention_bias": True,
        "use_qk_norm": False,
        "norm_type": "layer_norm",
        "layer_norm_eps": 1e-6,
        "layer_scale_init_value": 1.0,
        "use_absolute_position_embeddings": True,
        "use_mask_token": False,
        "use_mean_pooling": True,
        "initializer_range": 0.02,
    }
