"""The model, the batch and the jitted functions that are timed."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw

from benchmarks import BENCH_SIZES
from fixate_jax.backbones import Backbone, load_backbone, take_branches
from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.backbones.tiny.random import write_tiny_random
from fixate_jax.data.session import StoredSession
from fixate_jax.lab.config import ObjectiveConfig, OperatorConfig, RunConfig
from fixate_jax.lab.parts import objective_of
from fixate_jax.objective import next_token_loss
from fixate_jax.pipeline.features import FeatureStore
from fixate_jax.pipeline.kept import CacheConfig
from fixate_jax.probing.batches import Batch, SessionData
from fixate_jax.probing.passes import with_features
from fixate_jax.prompts import PromptParams, init_prompt, soft_prompt
from fixate_jax.tuning.step import session_losses

BATCH, SLOTS, PAGE, PROFILE_WORDS = 4, 15, (1100, 619), 36
"""Sessions a batch; slots and pixels of a page; words of the profile, so that a sequence is about 900 tokens."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A loaded model with one batch."""

    directory: Path
    config: RunConfig
    backbone: Backbone
    cached: Batch
    uncached: Batch
    prompt: PromptParams


def draw_page(seed: int) -> tuple[Image.Image, np.ndarray]:
    """A carousel-like page: three rows of five coloured boxes on grey, and the boxes."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", PAGE, (40, 40, 44))
    draw = ImageDraw.Draw(image)
    boxes = []
    for slot in range(SLOTS):
        x0, y0 = 0.03 + (slot % 5) * 0.195, 0.06 + (slot // 5) * 0.32
        box = np.array([x0, y0, x0 + 0.16, y0 + 0.26])
        boxes.append(box)
        corner = (box * np.array([*PAGE, *PAGE])).tolist()
        draw.rectangle(corner, fill=tuple(int(c) for c in rng.integers(30, 256, 3)))
        draw.text((corner[0] + 8, corner[1] + 8), chr(ord("A") + slot), fill="white")
    return image, np.array(boxes)


def make_case(directory: Path) -> Case:
    """Write the benchmark's model and put one batch together, with features cached and without."""
    model = write_tiny_random(directory / "model", sizes=BENCH_SIZES)
    config = RunConfig(
        backbone=BackboneConfig(path=str(model)),
        operator=OperatorConfig(name="attn_lrp", normalise="abs"),
        objective=ObjectiveConfig(alignment="weighted_kl", warmup=0),
    )
    backbone = load_backbone(config.backbone)
    rng = np.random.default_rng(0)
    sessions, images = [], {}
    for i in range(BATCH):
        images[f"page{i}"], boxes = draw_page(i)
        sessions.append(
            StoredSession(
                session_id=str(i),
                user_id=f"user{i}",
                page_id=f"page{i}",
                boxes=boxes,
                labels=tuple(chr(ord("A") + n) for n in range(SLOTS)),
                dwell_ms={"fixation": rng.gamma(1.0, 400.0, SLOTS) + 1},
                click=int(rng.integers(SLOTS)),
                profile="likes " + " ".join(["films"] * PROFILE_WORDS),
            )
        )

    def batch(cache: CacheConfig) -> Batch:
        features = FeatureStore(
            backbone, images.__getitem__, list(images), cache, directory=directory / "features", batch=BATCH
        )
        encoded = []
        for s in sessions:
            rows, columns = features.grids[s.page_id]
            encoded.append(backbone.encoder(profile=s.profile, labels=s.labels, rows=rows, columns=columns))
        rows_of = {s.user_id: i for i, s in enumerate(sessions)}
        data = SessionData(
            sessions, encoded, rows_of, features=features, prompt_tokens=config.prompt.tokens, signal="fixation"
        )
        return jax.device_put(data.batch(range(BATCH)))

    prompt = init_prompt(jax.random.key(0), **config.prompt.sizes, users=BATCH, width=backbone.width)
    noise = jax.random.normal(jax.random.key(1), prompt.coefficients.shape)
    return Case(
        directory=model,
        config=config,
        backbone=backbone,
        cached=batch(CacheConfig()),
        uncached=batch(CacheConfig(device_bytes=0, host_bytes=0, disk_bytes=0)),
        prompt=prompt._replace(coefficients=noise),
    )


def aligned_step(case: Case, operator: OperatorConfig) -> Any:
    """The jitted loss and gradient with an operator."""
    objective = objective_of(replace(case.config, operator=operator))

    def step(prompt: PromptParams, params: Any, batch: Batch) -> Any:
        model = case.backbone.merge(params)
        losses = lambda p: session_losses(p, model, batch, objective, jnp.float32(0.5))  # noqa: E731
        return jax.value_and_grad(losses, has_aux=True)(prompt)

    return jax.jit(step)


def functions(case: Case) -> dict[str, Any]:
    """What is timed, each a jitted function of prompt, frozen weights and batch."""
    merge = case.backbone.merge

    def plain_loss(prompt: PromptParams, params: Any, batch: Batch) -> Any:
        """Next-token prediction by a plain forward pass through every layer: soft-prompt tuning without FixATE."""
        model, click = merge(params), batch.click[:, None]
        inputs = take_branches(with_features(model, batch), click)
        logits, _ = model.decoder.forward(inputs, soft_prompt(prompt, batch.user))
        rows = jnp.arange(len(batch.click))
        ids, mask = batch.answer_ids[rows, batch.click], batch.answer_mask[rows, batch.click]
        return next_token_loss(logits, ids, mask, batch.weight)

    return {
        "step, AttnLRP": aligned_step(case, case.config.operator),
        "step, NTP (plain soft-prompt tuning)": jax.jit(jax.value_and_grad(plain_loss)),
        "forward pass": jax.jit(plain_loss),
    }
