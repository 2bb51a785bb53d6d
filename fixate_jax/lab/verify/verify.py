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

from fixate_jax.backbones.inputs import EncodedPage, SequenceInputs
from fixate_jax.backbones.loading import Backbone, family_of, load_backbone
from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.backbones.processing import EncodedSession, SessionEncoder
from fixate_jax.backbones.weights.checkpoint import TensorFiles
from fixate_jax.lab.verify.torch_side import load_torch_model, page_states, require_torch

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
        FixateError: when torch is not installed, or transformers has no such model.
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
    theirs = page_states(load_torch_model(directory, dtype=settings.dtype), page, _whole(encoded)[0])
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
        vision = vision[:, 0].reshape(len(vision), -1, vision.shape[-1])
        return vision, features[0], states[:, 0], logits[0, -1], fast[0, 0, -1]

    # An accelerator would otherwise multiply float32 in a shorter type.
    with jax.default_matmul_precision("highest"):
        out = run(backbone.params, jax.device_put(page.inputs))
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
