"""Small random InternVL checkpoints: made by transformers itself, and the same rewritten into InternVL's own layout."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.backbones.tiles import SIDE, SIZES, mark_ids, write_page_files

TEXT = {
    "model_type": "qwen3",
    "vocab_size": SIZES.vocab,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": [SIDE, SIDE],
    "patch_size": [4, 4],
    "attention_bias": True,
}
VISION_6B = {"norm_type": "rms_norm", "use_qk_norm": True, "attention_bias": False}
"""What InternViT-6B has, and InternViT-300M has not."""

SYSTEM_MESSAGE = "Be brief."
_OUTER_NAMES = {
    "vision_tower.embeddings.cls_token": "vision_model.embeddings.class_embedding",
    "vision_tower.embeddings.position_embeddings": "vision_model.embeddings.position_embedding",
    "vision_tower.embeddings.patch_embeddings.projection": "vision_model.embeddings.patch_embedding",
    "multi_modal_projector.layer_norm": "mlp1.0",
    "multi_modal_projector.linear_1": "mlp1.1",
    "multi_modal_projector.linear_2": "mlp1.3",
}
_LAYER_NAMES = {
    "attention.projection_layer": "attn.proj",
    "attention.": "attn.",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "lambda_": "ls",
}


def make_internvl_checkpoint(
    directory: Path,
    *,
    seed: int = 0,
    text: Mapping[str, Any] | None = None,
    vision: Mapping[str, Any] | None = None,
    tie: bool = True,
    **saving: Any,
) -> Path:
    """Save a tiny torch InternVL whose every tensor is random; skips the test where torch is not installed.

    Norm weights and layer scales are N(1, 0.3²), biases N(0, 0.2²), class token and positions N(0, 0.5²), matrices
    N(0, 1/fan_in).

    Args:
        directory: where to save.
        seed: of the weights.
        text: settings of ``text_config`` that differ from :data:`TEXT`.
        vision: settings of ``vision_config`` that differ from :data:`VISION`.
        tie: whether the output head is the embedding.
        saving: for ``save_pretrained``.

    Returns:
        ``directory``, with image processor, tokenizer and chat template.
    """
    torch = pytest.importorskip("torch")
    import transformers

    config = transformers.InternVLConfig(
        text_config=TEXT | dict(text or {}),
        vision_config=VISION | dict(vision or {}),
        image_token_id=mark_ids()["<IMG_CONTEXT>"],
        tie_word_embeddings=tie,
    )
    model = transformers.InternVLForConditionalGeneration(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            if name.endswith("bias"):
                values = values * 0.2
            elif parameter.ndim == 1:
                values = 1.0 + 0.3 * values
            elif name.endswith(("cls_token", "position_embeddings")):
                values = values * 0.5
            else:
                values = values / parameter[0].numel() ** 0.5
            parameter.copy_(values)
    write_page_files(directory)
    model.save_pretrained(directory, **saving)
    return directory


def rewrite_as_original(source: Path, directory: Path, **settings: Any) -> Path:
    """Rewrite a checkpoint in transformers' layout into InternVL's own: rename, and join queries, keys and values.

    Args:
        source: from :func:`make_internvl_checkpoint`.
        directory: where to write; must not exist.
        settings: fields of ``config.json`` that differ.

    Returns:
        ``directory``.
    """
    shutil.copytree(source, directory)
    for name in ("preprocessor_config.json", "chat_template.jinja", "generation_config.json"):
        (directory / name).unlink(missing_ok=True)
    tensors = {original_name(name): x for name, x in load_file(source / "model.safetensors").items()}
    for name in [n for n in tensors if ".q_proj." in n and n.startswith("vision_model.")]:
        parts = [tensors.pop(name.replace("q_proj", part)) for part in ("q_proj", "k_proj", "v_proj")]
        tensors[name.replace("q_proj", "qkv")] = np.concatenate(parts)
    save_file(tensors, directory / "model.safetensors")
    config = original_config(json.loads((source / "config.json").read_text()))
    (directory / "config.json").write_text(json.dumps(config | settings))
    return directory


def original_name(name: str) -> str:
    """What InternVL calls a tensor of transformers', queries, keys and values still apart."""
    layer = re.fullmatch(r"vision_tower\.encoder\.layer\.(\d+)\.(.*)", name)
    if layer:
        rest = layer[2]
        for theirs, ours in _LAYER_NAMES.items():
            rest = rest.replace(theirs, ours)
        return f"vision_model.encoder.layers.{layer[1]}.{rest}"
    outer = next((n for n in _OUTER_NAMES if name.startswith(n)), None)
    return name if outer is None else name.replace(outer, _OUTER_NAMES[outer])


def original_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same settings as InternVL's own ``config.json`` has them."""
    text, vision = config["text_config"], config["vision_config"]
    rope = text["rope_parameters"]
    kept = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "norm_type", "num_channels")
    return {
        "model_type": "internvl_chat",
        "architectures": ["InternVLChatModel"],
        "auto_map": {
            "AutoConfig": "configuration_internvl_chat.InternVLChatConfig",
            "AutoModel": "modeling_internvl_chat.InternVLChatModel",
        },
        "llm_config": {
            **{k: v for k, v in text.items() if k != "rope_parameters"},
            "architectures": ["Qwen3ForCausalLM"],
            "rope_theta": rope["rope_theta"],
            "rope_scaling": None,
            "tie_word_embeddings": config["tie_word_embeddings"],
        },
        "vision_config": {
            **{k: vision[k] for k in (*kept, "hidden_act", "layer_norm_eps")},
            "model_type": "intern_vit_6b",
            "image_size": vision["image_size"][0],
            "patch_size": vision["patch_size"][0],
            "qkv_bias": vision["attention_bias"],
            "qk_normalization": vision["use_qk_norm"],
            "num_experts": 8,
            "use_moe": False,
        },
        "downsample_ratio": config["downsample_ratio"],
        "force_image_size": vision["image_size"][0],
        "dynamic_image_size": True,
        "use_thumbnail": True,
        "min_dynamic_patch": 1,
        "max_dynamic_patch": 12,
        "pad2square": False,
        "ps_version": "v2",
        "select_layer": -1,
        "template": "internvl2_5",
        "system_message": SYSTEM_MESSAGE,
        "tie_word_embeddings": False,
    }
