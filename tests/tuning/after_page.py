"""Worlds whose soft prompt stands behind the page, and functions of their models."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jax

from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.backbones.processing import EncodedSession
from fixate_jax.backbones.tiny.random import write_tiny_random
from fixate_jax.backbones.tiny.sizes import TinySizes
from fixate_jax.lab.config import ObjectiveConfig, OperatorConfig, PromptConfig, RunConfig
from fixate_jax.probing.batches import Batch, SessionData
from tests.worlds import USERS, World, letters, numbers

SOFT = 5
WORLDS: dict[str, tuple[TinySizes, int, Any]] = {
    "qwen3_vl, two of three layers, letters": (TinySizes(layers=3), 2, letters),
    "internvl, all layers, numbers (one and two tokens)": (TinySizes(family="internvl", layers=3), 3, numbers),
}
SIZES = ((3, 320, 192), (12, 192, 160), (5, 256, 256))


def make_world(folder: Path, sizes: TinySizes, tapped: int, labels: Any) -> World:
    config = RunConfig(
        backbone=BackboneConfig(
            path=str(write_tiny_random(folder / "model", sizes=sizes)), tapped_layers=tapped, attention_block=128
        ),
        prompt=PromptConfig(basis=3, tokens=SOFT, position="after_image"),
        operator=OperatorConfig(name="attn_lrp", normalise="abs"),
        objective=ObjectiveConfig(warmup=0),
    )
    return World(folder, sizes=SIZES, labels=labels, config=config, max_lengths=2)


def in_layout(world: World, encoded: Sequence[EncodedSession], **settings: Any) -> SessionData:
    """The world's sessions, put together in another way."""
    how: dict[str, Any] = {"prompt_tokens": SOFT, "position": "after_image", **settings}
    rows = {user: i for i, user in enumerate(USERS)}
    return SessionData(world.sessions, encoded, rows, features=world.features, signal="fixation", **how)


def batches(data: SessionData) -> list[Batch]:
    """All sessions, a batch for each bucket, on the device."""
    members = [[i for i, b in enumerate(data.bucket_of) if b == bucket] for bucket in range(len(data.buckets))]
    return [jax.device_put(data.batch(rows)) for rows in members if rows]


@cache
def keys_of(world: World) -> Any:
    return jax.jit(lambda params, inputs: world.backbone.merge(params).page_keys(inputs))


def with_keys(world: World, batch: Batch) -> Batch:
    """The same batch with the page's keys and values in place of its features."""
    keys = keys_of(world)(world.backbone.params, batch.inputs)
    return batch._replace(inputs=batch.inputs._replace(page_keys=keys, features=None))


def whole(model: Any, prompt: Any, batch: Batch, use_prompt: Any = True) -> jax.Array:
    """Log-probabilities at the tail by a plain forward pass."""
    logits, _ = model.decoder.forward(batch.inputs, prompt, use_prompt)
    return jax.nn.log_softmax(logits[:, -1])


def by_tail(model: Any, prompt: Any, batch: Batch, use_prompt: Any = True) -> jax.Array:
    """The same by prefill and tail."""
    return jax.nn.log_softmax(model.tail(model.prefill(batch.inputs, prompt, use_prompt)).logits[:, 0, -1])


def run(world: World, function: Any, *arguments: Any) -> Any:
    """A function of the model, compiled with the weights as an argument."""
    call = jax.jit(lambda params, *rest: function(world.backbone.merge(params), *rest))
    return jax.device_get(call(world.backbone.params, *arguments))
