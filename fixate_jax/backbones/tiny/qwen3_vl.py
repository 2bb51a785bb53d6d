"""What is Qwen3-VL's own in a tiny model of that architecture."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fixate_jax.backbones.tiny.sizes import TinySizes

_SPECIAL_NAMES = ("endoftext", "im_start", "im_end", "vision_start", "vision_end", "image_pad", "video_pad")
SPECIAL_TOKENS = tuple(f"<|{name}|>" for name in _SPECIAL_NAMES)
DECODER = "model.language_model"
"""What the names of the decoder's tensors start with."""
HEAD = "lm_head.weight"
TOKENIZER_SETTINGS: dict[str, Any] = {}

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif part['type'] == 'text' -%}
{{- part['text'] -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def mrope_section(sizes: "TinySizes") -> tuple[int, int, int]:
    """Rotary frequencies for time, height and width, in the proportions of Qwen3-VL (24, 20, 20)."""
    half = sizes.head_dim // 2
    side = half * 5 // 16
    return half - 2 * side, side, side


def vision_shapes(sizes: "TinySizes") -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the vision tower."""
    vision, merged = sizes.vision_width, sizes.vision_width * sizes.merge**2
    shapes: dict[str, tuple[int, ...]] = {
        "model.visual.patch_embed.proj.weight": (vision, 3, 2, sizes.patch, sizes.patch),
        "model.visual.patch_embed.proj.bias": (vision,),
        "model.visual.pos_embed.weight": (sizes.grid_side**2, vision),
    }
    for block in range(sizes.vision_layers):
        shapes |= _vision_block_shapes(f"model.visual.blocks.{block}", sizes)
    mergers = {"model.visual.merger": vision}
    mergers |= {f"model.visual.deepstack_merger_list.{i}": merged for i in range(len(sizes.deepstack))}
    for prefix, normed in mergers.items():
        shapes |= affine(f"{prefix}.norm", (normed,))
        shapes |= affine(f"{prefix}.linear_fc1", (merged, merged))
        shapes |= affine(f"{prefix}.linear_fc2", (sizes.width, merged))
    return shapes


def affine(prefix: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Weight and bias of one layer."""
    return {f"{prefix}.weight": shape, f"{prefix}.bias": shape[:1]}


def _vision_block_shapes(prefix: str, sizes: "TinySizes") -> dict[str, tuple[int, ...]]:
    width = sizes.vision_width
    return {
        **affine(f"{prefix}.norm1", (width,)),
        **affine(f"{prefix}.norm2", (width,)),
        **affine(f"{prefix}.attn.qkv", (3 * width, width)),
        **affine(f"{prefix}.attn.proj", (width, width)),
        **affine(f"{prefix}.mlp.linear_fc1", (sizes.vision_ff, width)),
        **affine(f"{prefix}.mlp.linear_fc2", (width, sizes.vision_ff)),
    }


def config_files(sizes: "TinySizes") -> dict[str, dict[str, Any]]:
    """Content of the JSON files but the tokenizer's, by name."""
    first_special = sizes.first_special
    token = {name: first_special + i for i, name in enumerate(SPECIAL_TOKENS)}
    rope = {"mrope_section": list(mrope_section(sizes)), "mrope_interleaved": True}
    config = {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "dtype": sizes.dtype,
        "tie_word_embeddings": sizes.tied,
        "image_token_id": token["<|image_pad|>"],
        "video_token_id": token["<|video_pad|>"],
        "vision_start_token_id": token["<|vision_start|>"],
        "vision_end_token_id": token["<|vision_end|>"],
        "text_config": text_config(sizes, model_type="qwen3_vl_text", rope=rope),
        "vision_config": _vision_config(sizes),
    }
    preprocessor = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "patch_size": sizes.patch,
        "merge_size": sizes.merge,
        "temporal_patch_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "size": {"shortest_edge": sizes.min_pixels, "longest_edge": sizes.max_pixels},
    }
    return {
        "config.json": config,
        "preprocessor_config.json": preprocessor,
        "generation_config.json": generation_config(token),
    }


def generation_config(token: dict[str, int]) -> dict[str, Any]:
    """How the model answers: always its best guess, up to the end of its turn."""
    return {
        "do_sample": False,
        "eos_token_id": [token["<|im_end|>"], token["<|endoftext|>"]],
        "pad_token_id": token["<|endoftext|>"],
    }


def text_config(sizes: "TinySizes", *, model_type: str, rope: dict[str, Any]) -> dict[str, Any]:
    """The decoder's part of config.json, with more fields for its rotary positions."""
    return {
        "model_type": model_type,
        "vocab_size": sizes.vocab,
        "hidden_size": sizes.width,
        "intermediate_size": sizes.ff,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "head_dim": sizes.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": 131_072,
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-6,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_cache": True,
        "tie_word_embeddings": sizes.tied,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": sizes.rope_theta,
            **rope,
        },
    }


def _vision_config(sizes: "TinySizes") -> dict[str, Any]:
    return {
        "model_type": "qwen3_vl_vision",
        "depth": sizes.vision_layers,
        "hidden_size": sizes.vision_width,
        "intermediate_size": sizes.vision_ff,
        "num_heads": sizes.vision_heads,
        "hidden_act": "gelu_pytorch_tanh",
        "in_channels": 3,
        "patch_size": sizes.patch,
        "spatial_merge_size": sizes.merge,
        "temporal_patch_size": 2,
        "out_hidden_size": sizes.width,
        "num_position_embeddings": sizes.grid_side**2,
        "deepstack_visual_indexes": list(sizes.deepstack),
        "initializer_range": 0.02,
    }
