"""The decoder against its formulas written out in NumPy: small, every tensor random, and without torch."""

from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fixate_jax.backbones.decoder.decoder import Decoder
from fixate_jax.backbones.decoder.decoder_layer import DecoderConfig
from fixate_jax.backbones.decoder.rope import frequency_axes
from fixate_jax.backbones.inputs import SequenceInputs
from fixate_jax.backbones.qwen3_vl.model import Qwen3VLConfig, image_positions

CONFIG = DecoderConfig(
    vocab=13,
    layers=3,
    width=8,
    ff=12,
    heads=4,
    kv_heads=2,
    head_dim=12,
    rope_theta=50.0,
    mrope_section=(2, 2, 2),
    norm_eps=0.1,
    deepstack_levels=2,
    tapped_layers=2,
    attention_block=4,
)
BATCH, SEQ, TAIL, SOFT, VISUAL = 2, 9, 2, 2, 4
HALF = CONFIG.head_dim // 2
AXES = [0, 1, 2, 0, 1, 2]
"""Which position turns which frequency: time, height and width by turns."""


def drawn() -> tuple[Decoder, SequenceInputs, jax.Array]:
    """A decoder, sequences of which the second is padded, and soft prompts."""
    decoder = Decoder(CONFIG, nnx.Rngs(0))
    rng = np.random.default_rng(1)
    graph, state = nnx.split(decoder)
    state = jax.tree.map(lambda x: jnp.asarray(0.5 * rng.normal(size=x.shape), x.dtype), state)
    positions = rng.integers(0, 9, (BATCH, SEQ, 3))
    start = np.array([0, 2])
    visual = np.full((BATCH, SEQ), -1)
    visual[0, 3:7], visual[1, 5:8] = [0, 1, 2, 3], [2, 0, 1]
    inputs = SequenceInputs(
        token_ids=jnp.asarray(rng.integers(0, 13, (BATCH, SEQ))),
        start=jnp.asarray(start),
        positions=jnp.asarray(positions),
        visual_index=jnp.asarray(visual),
        tail_ids=jnp.asarray(rng.integers(0, 13, (BATCH, 1, TAIL))),
        tail_positions=jnp.asarray(rng.integers(9, 12, (BATCH, 1, TAIL, 3))),
        tail_valid=jnp.ones((BATCH, 1, TAIL), bool),
        visual_position=jnp.zeros((BATCH, VISUAL), int),
        features=jnp.asarray(rng.normal(size=(BATCH, VISUAL, 3, CONFIG.width)), jnp.float32),
    )
    return nnx.merge(graph, state), inputs, jnp.asarray(rng.normal(size=(BATCH, SOFT, CONFIG.width)), jnp.float32)


def norm(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + CONFIG.norm_eps) * scale


def turned(x: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Heads (seq, heads, width) turned, a pair (i, i + half) at a time."""
    out = x.copy()
    for i in range(HALF):
        angle = positions[:, AXES[i], None] * CONFIG.rope_theta ** (-2 * i / CONFIG.head_dim)
        first, second = x[..., i], x[..., i + HALF]
        out[..., i] = first * np.cos(angle) - second * np.sin(angle)
        out[..., i + HALF] = second * np.cos(angle) + first * np.sin(angle)
    return out


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Heads attended to, and the matrix of each head; two query heads read one key head."""
    out, matrices = np.zeros_like(q), []
    for head in range(CONFIG.heads):
        shared = head // (CONFIG.heads // CONFIG.kv_heads)
        scores = np.where(seen, q[:, head] @ k[:, shared].T / np.sqrt(CONFIG.head_dim), -1e30)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        out[:, head] = weights @ v[:, shared]
        matrices.append(weights)
    return out, np.stack(matrices)


def weights_of(decoder: Decoder) -> list[dict[str, np.ndarray]]:
    """The tensors of each layer by name."""
    layers = []
    for stack in ("lower", "upper", "last"):
        flat = {
            ".".join(map(str, path)): np.asarray(x[...])
            for path, x in nnx.to_flat_state(nnx.state(getattr(decoder, stack)))
        }
        count = len(next(iter(flat.values())))
        layers += [{name: x[i].astype(np.float64) for name, x in flat.items()} for i in range(count)]
    return layers


def by_hand(decoder: Decoder, inputs: SequenceInputs, prompt: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Logits at the tail, and the tail's rows of attention in the tapped layers."""
    embedding = np.asarray(decoder.embed.embedding[...], np.float64)
    assert decoder.head is not None
    head = np.asarray(decoder.head.kernel[...], np.float64)
    logits, rows = [], []
    for b in range(BATCH):
        ids = np.concatenate([inputs.token_ids[b], inputs.tail_ids[b, 0]])
        positions = np.concatenate([inputs.positions[b], inputs.tail_positions[b, 0]])
        index, start = np.append(inputs.visual_index[b], [-1] * TAIL), int(inputs.start[b])
        features = np.asarray(inputs.features[b], np.float64)
        x = embedding[ids]
        x[index >= 0] = features[index[index >= 0], 0]
        x[start : start + SOFT] = prompt[b]
        seen = np.tril(np.ones((len(x), len(x)), bool)) & (np.arange(len(x)) >= start)
        matrices = []
        for i, w in enumerate(weights_of(decoder)):
            normed = norm(x, w["input_norm.scale"])
            q, k, v = (
                (normed @ w[f"{n}_proj.kernel"]).reshape(len(x), -1, CONFIG.head_dim).astype(np.float64) for n in "qkv"
            )
            q, k = (turned(norm(y, w[f"{n}_norm.scale"]), positions) for y, n in ((q, "q"), (k, "k")))
            attended, matrix = attend(q, k, v, seen)
            matrices.append(matrix)
            x = x + attended.reshape(len(x), -1) @ w["o_proj.kernel"]
            normed = norm(x, w["post_attention_norm.scale"])
            gate = normed @ w["gate_proj.kernel"]
            x = x + (gate / (1 + np.exp(-gate)) * (normed @ w["up_proj.kernel"])) @ w["down_proj.kernel"]
            if i < CONFIG.deepstack_levels:
                x[index >= 0] += features[index[index >= 0], 1 + i]
        assert decoder.norm.scale is not None
        logits.append(norm(x[-TAIL:], np.asarray(decoder.norm.scale[...])) @ head)
        rows.append(np.stack(matrices[-CONFIG.tapped :])[:, :, -TAIL:])
    return np.stack(logits), np.stack(rows, axis=1)


@pytest.mark.parametrize("attention", ["auto", "blocked"])
def test_the_decoder_is_its_formulas(attention: Any) -> None:
    decoder, inputs, prompt = drawn()
    decoder.config = replace(CONFIG, attention=attention)
    logits, rows = by_hand(decoder, inputs, prompt)

    def run(decoder: Decoder) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        prefix = decoder.prefill(inputs, prompt)
        out = decoder.tail(prefix)
        moved = jnp.zeros(BATCH, int) if prefix.start.moved is None else prefix.start.moved
        return decoder.forward(inputs, prompt)[0], out.logits[:, 0], out.rows[:, :, 0], moved

    whole, tail, found, moved = nnx.jit(run)(decoder)
    np.testing.assert_allclose(whole, logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(tail, logits, rtol=1e-4, atol=1e-4)
    for b in range(BATCH):
        prefix = np.roll(np.asarray(found[:, b, ..., :SEQ]), int(moved[b]), axis=-1)
        both = np.concatenate([prefix, found[:, b, ..., SEQ:]], axis=-1)
        np.testing.assert_allclose(both, rows[:, b], rtol=1e-4, atol=1e-5)
        assert (both[..., : int(inputs.start[b])] < 1e-9).all(), "padding is not seen"


def test_positions_take_turns_as_far_as_each_reaches() -> None:
    assert frequency_axes(12, (2, 2, 2)).tolist() == AXES
    assert frequency_axes(16, (4, 3, 1)).tolist() == [0, 1, 2, 0, 1, 0, 0, 1]
    assert frequency_axes(8, None).tolist() == [0, 0, 0, 0]


def test_a_pages_tokens_are_counted_by_row_and_column() -> None:
    positions, after = image_positions(2, 3, 4, Mock(spec=Qwen3VLConfig, flat_positions=False))
    assert positions.tolist() == [[4, 4, 4], [4, 4, 5], [4, 4, 6], [4, 5, 4], [4, 5, 5], [4, 5, 6]] and after == 7
    flat, after = image_positions(2, 3, 4, Mock(spec=Qwen3VLConfig, flat_positions=True))
    assert flat.tolist() == [[p, p, p] for p in range(4, 10)] and after == 10
