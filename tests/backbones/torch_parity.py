"""What transformers computes, layer by layer, to compare our backbones with."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jaxtyping import Float, Int, Shaped


def load_torch_model(model_dir: Path) -> Any:
    """Load Qwen3-VL in float32 with eager attention; skips the test where torch is not installed."""
    torch = pytest.importorskip("torch")
    import transformers

    model = transformers.Qwen3VLForConditionalGeneration.from_pretrained(
        model_dir, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval().requires_grad_(False)


def torch_hidden_states(
    model_dir: Path,
    *,
    pixel_values: Float[np.ndarray, "patches pixels"],
    image_grid_thw: Int[np.ndarray, "images 3"],
    input_ids: Int[np.ndarray, "batch seq"],
    attention_mask: Int[np.ndarray, "batch seq"],
    position_ids: Int[np.ndarray, "3 batch seq"] | None = None,
    model: Any = None,
) -> dict[str, Any]:
    """Run Qwen3-VL in torch and keep everything on the way.

    Rows where ``attention_mask`` is 0 hold numbers without meaning.

    Args:
        model_dir: checkpoint.
        pixel_values: patches of all pages in the batch, as the image processor gives them.
        image_grid_thw: patches of each page along time, height and width.
        input_ids: left-padded tokens, with as many image pads as a page has visual tokens.
        attention_mask: 0 at padding.
        position_ids: rotary positions (None: M-RoPE's, as transformers counts them).
        model: from :func:`load_torch_model` (None: load it).

    Returns:
        ``position_ids`` [3, batch, seq]; ``layer_outputs`` [layers, batch, seq, width], each decoder layer's output;
        ``states`` [layers + 1, batch, seq, width], the residual stream as it enters each layer and the final norm
        (what DeepStack adds is in ``states[i + 1]``, not in ``layer_outputs[i]``); ``normed`` [batch, seq, width];
        ``logits`` [batch, seq, vocab]; ``patch_embeddings`` [patches, vision width], with positions added;
        ``vision_blocks`` [blocks, patches, vision width]; ``visual_features``, one [tokens, width] a page; and
        ``deepstack_features``, one [levels, tokens, width] a page.
    """
    torch = pytest.importorskip("torch")
    model = load_torch_model(model_dir) if model is None else model
    language, vision = model.model.language_model, model.model.visual
    ids, mask, grid = (torch.from_numpy(np.asarray(x, np.int64)) for x in (input_ids, attention_mask, image_grid_thw))
    if position_ids is None:
        kinds = (ids == model.config.image_token_id).int()
        positions, _ = model.model.get_rope_index(ids, kinds, image_grid_thw=grid, attention_mask=mask)
    else:
        positions = torch.from_numpy(np.asarray(position_ids, np.int64))

    entering: list[Any] = []
    leaving: list[Any] = []
    blocks: list[Any] = []
    pages: list[Any] = []
    hooks = [
        *(layer.register_forward_pre_hook(lambda _, args: entering.append(args[0])) for layer in language.layers),
        language.norm.register_forward_pre_hook(lambda _, args: entering.append(args[0])),
        *(layer.register_forward_hook(lambda *call: leaving.append(call[2])) for layer in language.layers),
        vision.blocks[0].register_forward_pre_hook(lambda _, args: blocks.append(args[0])),
        *(block.register_forward_hook(lambda *call: blocks.append(call[2])) for block in vision.blocks),
        language.register_forward_hook(lambda *call: leaving.append(call[2].last_hidden_state)),
        vision.register_forward_hook(lambda *call: pages.append((call[2].pooler_output, *call[2].deepstack_features))),
    ]
    try:
        with torch.no_grad():
            logits = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                pixel_values=torch.from_numpy(np.asarray(pixel_values, np.float32)),
                image_grid_thw=grid,
                use_cache=False,
            ).logits
    finally:
        for hook in hooks:
            hook.remove()

    tokens = (grid.prod(-1) // vision.spatial_merge_size**2).tolist()
    features = [level.split(tokens) for level in pages[0]]
    return {
        "position_ids": positions.numpy(),
        "layer_outputs": torch.stack(leaving[:-1]).numpy(),
        "states": torch.stack(entering).numpy(),
        "normed": leaving[-1].numpy(),
        "logits": logits.numpy(),
        "patch_embeddings": blocks[0].numpy(),
        "vision_blocks": torch.stack(blocks[1:]).numpy(),
        "visual_features": [page.numpy() for page in features[0]],
        "deepstack_features": [torch.stack(page).numpy() for page in zip(*features[1:], strict=True)],
    }


def left_pad(
    rows: list[Int[np.ndarray, " length"]], *, pad: int
) -> tuple[Int[np.ndarray, "batch seq"], Int[np.ndarray, "batch seq"]]:
    """Stack token rows of different lengths, aligned at their ends.

    Returns:
        The tokens, and a mask that is 0 at padding.
    """
    longest = max(len(row) for row in rows)
    ids = np.stack([np.pad(row, (longest - len(row), 0), constant_values=pad) for row in rows])
    mask = np.stack([np.arange(longest) >= longest - len(row) for row in rows]).astype(np.int64)
    return ids, mask


def page_token_rows(
    grids: Int[np.ndarray, "images 3"], *, config: Any, merge: int = 2, seed: int = 0, text: tuple[int, ...] = (7, 11)
) -> list[Shaped[np.ndarray, " length"]]:
    """Random text around the image pads of one page a row; ``text[i]`` random tokens before and after row ``i``'s."""
    rng = np.random.default_rng(seed)
    rows = []
    for i, grid in enumerate(grids):
        count = text[i % len(text)]
        before, after = rng.integers(0, 400, (2, count))
        pads = np.full(int(np.prod(grid)) // merge**2, config.image_token_id)
        rows.append(np.concatenate([before, [config.vision_start_token_id], pads, [config.vision_end_token_id], after]))
    return rows
