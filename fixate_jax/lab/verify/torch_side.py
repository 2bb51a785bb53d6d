"""transformers' models in torch, and all that happens on their way: what our backbones are compared with."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from fixate_jax.backbones.inputs import EncodedPage
from fixate_jax.backbones.weights.checkpoint import TensorFiles, read_json
from fixate_jax.errors import FixateError


def require_torch() -> Any:
    """The module torch.

    Raises:
        FixateError: saying what to install, when torch or transformers' part for it is not there.
    """
    try:
        import torch
        from transformers.utils import is_torch_available
    except ImportError as error:
        raise FixateError(
            "comparing with transformers' model needs PyTorch, which cannot be imported "
            f"({error}); install it: pip install '.[torch]' (the CPU build is enough)"
        ) from error
    if not is_torch_available():
        raise FixateError(
            f"this transformers does not work with torch {torch.__version__}; install a newer one: "
            "pip install --upgrade torch"
        )
    return torch


def load_torch_model(directory: Path, *, dtype: str = "float32") -> Any:
    """transformers' model of a checkpoint on the CPU, with plain attention.

    Raises:
        FixateError: when torch is not installed, or transformers has no such model.
    """
    torch = require_torch()
    import transformers

    how = {"dtype": getattr(torch, dtype), "attn_implementation": "eager"}
    kind = read_json(directory / "config.json").get("model_type")
    if kind == "qwen3_vl":
        model = transformers.Qwen3VLForConditionalGeneration.from_pretrained(directory, **how)
    elif kind == "internvl":
        model = transformers.InternVLForConditionalGeneration.from_pretrained(directory, **how)
    elif kind == "internvl_chat":
        config, tensors = internvl_from_original(directory)
        model = transformers.InternVLForConditionalGeneration.from_pretrained(
            None, config=config, state_dict=tensors, **how
        )
    else:
        raise FixateError(f"{directory}: transformers has no model to compare model_type {kind!r} with")
    return model.eval().requires_grad_(False)


_ORIGINAL_NAMES = (
    (r"^vision_model\.embeddings\.class_embedding", "vision_tower.embeddings.cls_token"),
    (r"^vision_model\.embeddings\.position_embedding", "vision_tower.embeddings.position_embeddings"),
    (r"^vision_model\.embeddings\.patch_embedding", "vision_tower.embeddings.patch_embeddings.projection"),
    (r"^vision_model\.encoder\.layers", "vision_tower.encoder.layer"),
    (r"\.attn\.proj\.", ".attention.projection_layer."),
    (r"\.attn\.", ".attention."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.ls([12])$", r".lambda_\1"),
    (r"^mlp1\.0\.", "multi_modal_projector.layer_norm."),
    (r"^mlp1\.1\.", "multi_modal_projector.linear_1."),
    (r"^mlp1\.3\.", "multi_modal_projector.linear_2."),
)


def internvl_from_original(directory: Path) -> tuple[Any, dict[str, Any]]:
    """An InternVL checkpoint in its own layout as transformers' configuration and tensors.

    transformers reads that layout by running the checkpoint's code only, which we never do. This mapping owes nothing
    to the one that we load with, so that a mistake in either shows.
    """
    torch = require_torch()
    import transformers

    raw = read_json(directory / "config.json")
    text, vision = dict(raw["llm_config"]), raw["vision_config"]
    text.pop("architectures", None)
    same = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act", "norm_type")
    tower = {key: vision[key] for key in (*same, "layer_norm_eps", "image_size", "patch_size") if key in vision}
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    config = transformers.InternVLConfig(
        text_config={"model_type": "qwen3", **text},
        vision_config={**tower, "attention_bias": vision["qkv_bias"], "use_qk_norm": vision["qk_normalization"]},
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        downsample_ratio=raw.get("downsample_ratio", 0.5),
        tie_word_embeddings=text.get("tie_word_embeddings", raw.get("tie_word_embeddings", False)),
    )
    tensors: dict[str, Any] = {}
    for name, tensor in _torch_tensors(directory, torch):
        for pattern, replacement in _ORIGINAL_NAMES:
            name = re.sub(pattern, replacement, name)
        if ".attention.qkv." in name:
            parts = zip(("q_proj", "k_proj", "v_proj"), tensor.chunk(3), strict=True)
            tensors |= {name.replace("qkv", part): piece.clone() for part, piece in parts}
        else:
            tensors[name] = tensor
    return config, tensors


def _torch_tensors(directory: Path, torch: Any) -> Iterator[tuple[str, Any]]:
    from safetensors import safe_open

    for file in TensorFiles(directory).files:
        with safe_open(directory / file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (a safetensors handle, no dict)
                yield name, tensors.get_tensor(name)


@dataclass
class _Record:
    """What went through a model.

    Attributes:
        positions: of the decoder's tokens.
        entering: the residual stream as it enters each decoder layer and the final norm.
        leaving: each decoder layer's output, then the decoder's.
        blocks: the vision tower's state as it enters the first layer, and after each.
        features: page tokens, and their DeepStack features.
    """

    features: list[Any] = field(default_factory=list)
    positions: list[Any] = field(default_factory=list)
    entering: list[Any] = field(default_factory=list)
    leaving: list[Any] = field(default_factory=list)
    blocks: list[Any] = field(default_factory=list)


@contextmanager
def _recording(
    language: Any, blocks: Any, source: Any, features: Callable[[Any], tuple[Any, ...]] = lambda output: (output,)
) -> Iterator[_Record]:
    """Record what goes through; ``features`` takes page tokens out of what the module ``source`` returns."""
    seen = _Record()
    hooks = [
        source.register_forward_hook(lambda *call: seen.features.extend(features(call[2]))),
        language.rotary_emb.register_forward_pre_hook(
            lambda _, args, named: seen.positions.append(args[1] if len(args) > 1 else named["position_ids"]),
            with_kwargs=True,
        ),
        *(layer.register_forward_pre_hook(lambda _, args: seen.entering.append(args[0])) for layer in language.layers),
        language.norm.register_forward_pre_hook(lambda _, args: seen.entering.append(args[0])),
        *(layer.register_forward_hook(lambda *call: seen.leaving.append(call[2])) for layer in language.layers),
        language.register_forward_hook(lambda *call: seen.leaving.append(call[2].last_hidden_state)),
        blocks[0].register_forward_pre_hook(lambda _, args: seen.blocks.append(args[0])),
        *(block.register_forward_hook(lambda *call: seen.blocks.append(call[2])) for block in blocks),
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _arrays(seen: _Record, logits: Any, torch: Any) -> dict[str, Any]:
    return {
        "position_ids": seen.positions[0].numpy(),
        "layer_outputs": torch.stack(seen.leaving[:-1]).float().numpy(),
        "states": torch.stack(seen.entering).float().numpy(),
        "normed": seen.leaving[-1].float().numpy(),
        "logits": logits.float().numpy(),
        "patch_embeddings": seen.blocks[0].float().numpy(),
        "vision_blocks": torch.stack(seen.blocks[1:]).float().numpy(),
    }


def torch_states(
    model: Any,
    *,
    pixel_values: Float[np.ndarray, "patches pixels"],
    image_grid_thw: Int[np.ndarray, "images 3"],
    input_ids: Int[np.ndarray, "batch seq"],
    attention_mask: Int[np.ndarray, "batch seq"],
    position_ids: Int[np.ndarray, "3 batch seq"] | None = None,
    logits_to_keep: int = 0,
) -> dict[str, Any]:
    """Run Qwen3-VL in torch and keep everything on the way, as float32 arrays.

    Rows where ``attention_mask`` is 0 hold numbers without meaning.

    Args:
        model: from :func:`load_torch_model`.
        pixel_values: patches of all pages in the batch, as the image processor gives them.
        image_grid_thw: patches of each page along time, height and width.
        input_ids: left-padded tokens, with as many image pads as a page has visual tokens.
        attention_mask: 0 at padding.
        position_ids: rotary positions (None: M-RoPE's, as transformers counts them).
        logits_to_keep: logits of so many last positions only (0: of all).

    Returns:
        ``position_ids`` [3, batch, seq]; ``layer_outputs`` [layers, batch, seq, width], each decoder layer's output;
        ``states`` [layers + 1, batch, seq, width], the residual stream as it enters each layer and the final norm
        (what DeepStack adds is in ``states[i + 1]``, not in ``layer_outputs[i]``); ``normed`` [batch, seq, width];
        ``logits`` [batch, seq, vocab]; ``patch_embeddings`` [patches, vision width], with positions added;
        ``vision_blocks`` [blocks, patches, vision width]; ``visual_features``, one [tokens, width] a page; and
        ``deepstack_features``, one [levels, tokens, width] a page (an empty list without DeepStack).
    """
    torch = require_torch()
    vision = model.model.visual
    ids, mask, grid = (torch.from_numpy(np.asarray(x, np.int64)) for x in (input_ids, attention_mask, image_grid_thw))
    if position_ids is None:
        kinds = (ids == model.config.image_token_id).int()
        positions, _ = model.model.get_rope_index(ids, kinds, image_grid_thw=grid, attention_mask=mask)
    else:
        positions = torch.from_numpy(np.asarray(position_ids, np.int64))
    recording = _recording(
        model.model.language_model, vision.blocks, vision, lambda out: (out.pooler_output, *out.deepstack_features)
    )
    with torch.no_grad(), recording as seen:
        logits = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            pixel_values=torch.from_numpy(np.asarray(pixel_values, np.float32)),
            image_grid_thw=grid,
            use_cache=False,
            logits_to_keep=logits_to_keep,
        ).logits
    tokens = (grid.prod(-1) // vision.spatial_merge_size**2).tolist()
    features = [level.float().split(tokens) for level in seen.features]
    return _arrays(seen, logits, torch) | {
        "visual_features": [page.numpy() for page in features[0]],
        "deepstack_features": [torch.stack(page).numpy() for page in zip(*features[1:], strict=True)],
    }


def internvl_states(
    model: Any,
    *,
    pixel_values: Float[np.ndarray, "tiles channels height width"],
    input_ids: Int[np.ndarray, "batch seq"],
    attention_mask: Int[np.ndarray, "batch seq"],
    position_ids: Int[np.ndarray, "batch seq"] | None = None,
    logits_to_keep: int = 0,
) -> dict[str, Any]:
    """Run InternVL in torch and keep everything on the way, as float32 arrays.

    Args:
        model: from :func:`load_torch_model`.
        pixel_values: tiles of all pages in the batch, page after page.
        input_ids: left-padded tokens, with as many image tokens as a page's tiles have.
        attention_mask: 0 at padding.
        position_ids: rotary positions (None: counted from 0, padding included).
        logits_to_keep: logits of so many last positions only (0: of all).

    Returns:
        What :func:`torch_states` does, but ``position_ids`` [batch, seq]; ``patch_embeddings`` [tiles, rows, width] and
        ``vision_blocks`` [layers, tiles, rows, width], the class token being row 0; ``visual_features`` [tiles,
        tokens, decoder width].
    """
    torch = require_torch()
    ids, mask = (torch.from_numpy(np.asarray(x, np.int64)) for x in (input_ids, attention_mask))
    inner = model.model
    blocks, projector = inner.vision_tower.encoder.layer, inner.multi_modal_projector
    with torch.no_grad(), _recording(inner.language_model, blocks, projector) as seen:
        logits = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=None if position_ids is None else torch.from_numpy(np.asarray(position_ids, np.int64)),
            pixel_values=torch.from_numpy(np.asarray(pixel_values, np.float32)),
            use_cache=False,
            logits_to_keep=logits_to_keep,
        ).logits
    return _arrays(seen, logits, torch) | {"visual_features": seen.features[0].float().numpy()}


def page_states(model: Any, page: EncodedPage, ids: Int[np.ndarray, "1 seq"]) -> dict[str, Any]:
    """Run one page and one chat, and keep what `fixate verify` compares.

    Returns:
        ``positions`` [seq, 3]; ``vision`` [layers, rows, width]; ``features`` [tokens, levels, width]; ``decoder``
        [layers, seq, width]; ``logits`` [vocab] of the last position.
    """
    states = _PAGES[model.config.model_type](model, page, ids)
    return {"decoder": states["states"][1:, 0], "logits": states["logits"][0, -1]} | states["page"]


def _qwen3_vl_page(model: Any, page: EncodedPage, ids: Int[np.ndarray, "1 seq"]) -> dict[str, Any]:
    merge = model.model.visual.spatial_merge_size
    states = torch_states(
        model,
        pixel_values=np.asarray(page.inputs.patches[0]),
        image_grid_thw=np.array([[1, page.rows * merge, page.columns * merge]]),
        input_ids=ids,
        attention_mask=np.ones_like(ids),
        logits_to_keep=1,
    )
    features = np.stack([states["visual_features"][0], *(states["deepstack_features"] or [()])[0]], axis=1)
    positions = np.moveaxis(states["position_ids"], 0, -1)[0]
    return states | {"page": {"positions": positions, "vision": states["vision_blocks"], "features": features}}


def _internvl_page(model: Any, page: EncodedPage, ids: Int[np.ndarray, "1 seq"]) -> dict[str, Any]:
    states = internvl_states(
        model,
        pixel_values=np.asarray(page.inputs.pixels[0]),
        input_ids=ids,
        attention_mask=np.ones_like(ids),
        logits_to_keep=1,
    )
    vision, features = states["vision_blocks"], states["visual_features"]
    return states | {
        "page": {
            "positions": np.repeat(states["position_ids"][0][:, None], 3, axis=1),
            "vision": vision.reshape(len(vision), -1, vision.shape[-1]),
            "features": features.reshape(-1, 1, features.shape[-1]),
        }
    }


_PAGES: dict[str, Callable[[Any, EncodedPage, Any], dict[str, Any]]] = {
    "qwen3_vl": _qwen3_vl_page,
    "internvl": _internvl_page,
}
