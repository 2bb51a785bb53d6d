"""Our backbones against transformers' own, layer by layer, for whoever has the real weights and torch."""

import gc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from flax import nnx
from jaxtyping import Array, Float, Int, Num
from PIL import Image

from fixate_jax.backbones.checkpoint import TensorFiles
from fixate_jax.backbones.inputs import EncodedPage, SequenceInputs
from fixate_jax.backbones.loading import Backbone, family_of, load_backbone
from fixate_jax.backbones.processing import EncodedSession, SessionEncoder
from fixate_jax.config import BackboneConfig
from fixate_jax.errors import FixateError

TOLERANCES = {"float32": 2e-4, "bfloat16": 0.1}
"""Largest relative difference that passes. bfloat16 keeps 8 bits, and two implementations round at different places;
a wrong weight or position moves a layer by about its own size."""
COLUMNS = ("what", "max_abs_difference", "scale", "relative", "ok")
LABELS = ("A", "B", "C", "D")
TOP = 5


def verify(
    directory: Path, *, settings: BackboneConfig, image: Image.Image | None = None, tolerance: float | None = None
) -> pd.DataFrame:
    """Run one page and one question through transformers' model and through ours, and compare everything on the way.

    Both run in ``settings.dtype``, one after the other: at no time are there two models in memory.

    Args:
        directory: the Hugging Face model directory.
        settings: how to run our model; its ``path`` is not used.
        image: the page (None: noise).
        tolerance: largest relative difference that passes (None: the type's entry in :data:`TOLERANCES`).

    Returns:
        One row a comparison: ``what``; ``max_abs_difference``; ``scale``, the reference's largest magnitude;
        ``relative``, the difference over the reference's largest magnitude *at the same position*, at the worst
        position (so that one position with huge numbers hides nothing); ``ok``.

    Raises:
        FixateError: when torch is not installed.
        CheckpointError: naming the file, field or tensor that is wrong.
    """
    settings = replace(settings, path=str(directory))
    limit = TOLERANCES[settings.dtype] if tolerance is None else tolerance
    require_torch()
    family = family_of(directory)
    config = family.read_config(directory, settings)
    with TensorFiles(directory):
        pass  # Our messages about unusable files are the better ones.
    page = family.page_processor(directory, settings, config)(_noise_page() if image is None else image)
    encoded = SessionEncoder(directory, family, config)(profile="", labels=LABELS, rows=page.rows, columns=page.columns)
    theirs = _run_theirs(directory, page, encoded, merge=config.vision.merge, dtype=settings.dtype)
    gc.collect()
    backbone = load_backbone(settings)
    ours = _run_ours(backbone, page, encoded)
    table = pd.DataFrame(list(_compare(ours, theirs, limit)), columns=list(COLUMNS))
    answers = pd.DataFrame(
        list(_top_answers(ours["logits"], theirs["logits"], backbone.encoder.tokenizer, limit)), columns=list(COLUMNS)
    )
    return pd.concat([table, answers], ignore_index=True)


def _noise_page() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (320, 480, 3), np.uint8))


def _whole(encoded: EncodedSession) -> tuple[Int[np.ndarray, "1 seq"], Int[np.ndarray, "1 seq 3"]]:
    """Tokens and positions of a whole chat, the last token included."""
    ids = np.append(encoded.token_ids, encoded.last_token)
    positions = np.concatenate([encoded.positions, np.full((1, 3), encoded.last_position)])
    return ids[None].astype(np.int64), positions[None].astype(np.int64)


def _run_theirs(
    directory: Path, page: EncodedPage, encoded: EncodedSession, *, merge: int, dtype: str
) -> dict[str, Any]:
    ids, _ = _whole(encoded)
    states = torch_states(
        load_torch_model(directory, dtype=dtype),
        pixel_values=np.asarray(page.inputs.patches[0]),
        image_grid_thw=np.array([[1, page.rows * merge, page.columns * merge]]),
        input_ids=ids,
        attention_mask=np.ones_like(ids),
        logits_to_keep=1,
    )
    return {
        "positions": np.moveaxis(states["position_ids"], 0, -1)[0],
        "vision": states["vision_blocks"],
        "features": np.stack([states["visual_features"][0], *(states["deepstack_features"] or [()])[0]], axis=1),
        "decoder": states["states"][1:, 0],
        "logits": states["logits"][0, -1],
    }


def _run_ours(backbone: Backbone, page: EncodedPage, encoded: EncodedSession) -> dict[str, Any]:
    ids, positions = _whole(encoded)

    @jax.jit
    def run(params: nnx.State, pages: Any) -> tuple[Array, ...]:
        model = backbone.merge(params)
        features, vision = model.vision.with_states(pages)
        inputs = plain_inputs(ids, np.ones_like(ids), positions, backbone.config.image_token, features)
        no_prompt = jnp.zeros((1, 0, backbone.width))
        logits, states = model.decoder.forward(inputs, no_prompt)
        fast = model.tail(model.prefill(inputs, no_prompt)).logits
        return vision[:, 0], features[0], states[:, 0], logits[0, -1], fast[0, 0, -1]

    # An accelerator would otherwise multiply float32 in a shorter type.
    with jax.default_matmul_precision("highest"):
        out = run(backbone.params, jax.tree.map(jnp.asarray, page.inputs))
    vision, features, decoder, logits, fast = (np.asarray(x, np.float32) for x in out)
    return {
        "positions": positions[0],
        "vision": vision,
        "features": features,
        "decoder": decoder,
        "logits": logits,
        "fast": fast,
    }


def _compare(ours: dict[str, Any], theirs: dict[str, Any], tolerance: float) -> Iterator[tuple]:
    yield _row("rotary positions", ours["positions"], theirs["positions"], 0.0)
    for i, (a, b) in enumerate(zip(ours["vision"], theirs["vision"], strict=True)):
        yield _row(f"vision layer {i}", a, b, tolerance)
    for i, (a, b) in enumerate(zip(ours["features"].swapaxes(0, 1), theirs["features"].swapaxes(0, 1), strict=True)):
        yield _row(f"DeepStack features {i - 1}" if i else "visual tokens", a, b, tolerance)
    for i, (a, b) in enumerate(zip(ours["decoder"], theirs["decoder"], strict=True)):
        yield _row(f"decoder layer {i}", a, b, tolerance)
    yield _row("logits at the answer, whole forward pass", ours["logits"][None], theirs["logits"][None], tolerance)
    yield _row("logits at the answer, prefill and tail", ours["fast"][None], theirs["logits"][None], tolerance)


def _row(
    what: str, ours: Num[np.ndarray, "rows width"], theirs: Num[np.ndarray, "rows width"], tolerance: float
) -> tuple[str, float, float, float, bool]:
    difference = np.abs(ours.astype(np.float64) - theirs)
    magnitude = np.abs(theirs.astype(np.float64))
    at_position = np.maximum(magnitude.max(1), np.finfo(np.float32).tiny)
    relative = float((difference.max(1) / at_position).max())
    return what, float(difference.max()), float(magnitude.max()), relative, relative <= tolerance


def _top_answers(
    ours: Float[np.ndarray, " vocab"], theirs: Float[np.ndarray, " vocab"], tokenizer: Any, tolerance: float
) -> Iterator[tuple[str, float, float, float, bool]]:
    """The most probable answer tokens of either model, rank by rank; a swap passes where it is a tie."""
    scale = float(np.abs(theirs).max())
    for rank, (a, b) in enumerate(zip(*(np.argsort(-x, kind="stable")[:TOP] for x in (ours, theirs)), strict=True), 1):
        said, reference = (repr(tokenizer.decode([int(token)])) for token in (a, b))
        difference = float(abs(ours[a] - theirs[b]))
        ok = difference <= tolerance * scale and (a == b or abs(theirs[a] - theirs[b]) <= 2 * tolerance * scale)
        what = f"answer token {rank}: {reference}" + ("" if a == b else f", ours {said}")
        yield what, difference, scale, difference / scale, bool(ok)


def plain_inputs(
    ids: Int[np.ndarray, "batch seq"],
    mask: Int[np.ndarray, "batch seq"],
    positions: Int[np.ndarray, "batch seq 3"],
    image_token: int,
    features: Float[Array, "batch visual levels width"],
) -> SequenceInputs:
    """Left-padded token rows as our decoder reads them: no soft prompt, the last token as a tail of one.

    Args:
        ids: tokens, one image token per visual token.
        mask: 0 at padding.
        positions: rotary positions.
        image_token: the image token.
        features: each row's visual tokens, padded at the end.
    """
    image = ids == image_token
    index = np.where(image, np.cumsum(image, axis=1) - 1, -1)
    place = np.stack([np.pad(np.flatnonzero(row), (0, features.shape[1] - row.sum())) for row in image])
    return SequenceInputs(
        token_ids=jnp.asarray(ids[:, :-1], jnp.int32),
        start=jnp.asarray((mask == 0).sum(1), jnp.int32),
        positions=jnp.asarray(positions[:, :-1], jnp.int32),
        visual_index=jnp.asarray(index[:, :-1], jnp.int32),
        tail_ids=jnp.asarray(ids[:, None, -1:], jnp.int32),
        tail_positions=jnp.asarray(positions[:, None, -1:], jnp.int32),
        tail_valid=jnp.ones((len(ids), 1, 1), bool),
        visual_position=jnp.asarray(place, jnp.int32),
        features=features,
    )


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
            f"({error}); install it: pip install 'fixate-jax[torch]' (the CPU build is enough)"
        ) from error
    if not is_torch_available():
        raise FixateError(
            f"this transformers does not work with torch {torch.__version__}; install a newer one: "
            "pip install --upgrade torch"
        )
    return torch


def load_torch_model(directory: Path, *, dtype: str = "float32") -> Any:
    """transformers' Qwen3-VL on the CPU, with plain attention.

    Raises:
        FixateError: when torch is not installed.
    """
    torch = require_torch()
    import transformers

    model = transformers.Qwen3VLForConditionalGeneration.from_pretrained(
        directory, dtype=getattr(torch, dtype), attn_implementation="eager"
    )
    return model.eval().requires_grad_(False)


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
                logits_to_keep=logits_to_keep,
            ).logits
    finally:
        for hook in hooks:
            hook.remove()

    tokens = (grid.prod(-1) // vision.spatial_merge_size**2).tolist()
    features = [level.float().split(tokens) for level in pages[0]]
    return {
        "position_ids": positions.numpy(),
        "layer_outputs": torch.stack(leaving[:-1]).float().numpy(),
        "states": torch.stack(entering).float().numpy(),
        "normed": leaving[-1].float().numpy(),
        "logits": logits.float().numpy(),
        "patch_embeddings": blocks[0].float().numpy(),
        "vision_blocks": torch.stack(blocks[1:]).float().numpy(),
        "visual_features": [page.numpy() for page in features[0]],
        "deepstack_features": [torch.stack(page).numpy() for page in zip(*features[1:], strict=True)],
    }
