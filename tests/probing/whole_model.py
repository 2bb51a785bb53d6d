"""Relevance at the embeddings as it is defined: whole matrices, layer after layer, backward steps written out."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fixate_jax.backbones import Backbone, SequenceInputs
from fixate_jax.backbones.rope import rotate
from fixate_jax.backbones.tiny_random import TinySizes, write_tiny_random
from fixate_jax.config import BackboneConfig, PromptConfig, RunConfig
from tests.probing.whole_matrix import layer, norm, unstack
from tests.worlds import World, letters, numbers

QWEN, INTERN = "qwen3_vl, one and two tokens", "internvl, letters"
CASES: dict[str, Any] = {
    QWEN: ("qwen3_vl", 3, numbers, ((12, 128, 96), (3, 96, 64), (11, 64, 128))),
    INTERN: ("internvl", 2, letters, ((4, 128, 64), (25, 64, 64))),
}
"""Family, decoder layers, labels, pages."""


def small_world(directory: Path, case: str) -> World:
    """A model of which all layers but the first are tapped, small enough for float64 and whole matrices."""
    family, layers, labels, pages = CASES[case]
    sizes = TinySizes(
        family=family, layers=layers, width=48, ff=64, heads=4, kv_heads=2, head_dim=16, vision_width=32, vision_ff=32
    )
    path = write_tiny_random(directory / family, sizes=sizes)
    backbone = BackboneConfig(path=str(path), tapped_layers=layers - 1, attention_block=32)
    config = RunConfig(backbone=backbone, prompt=PromptConfig(basis=2, tokens=3))
    return World(directory, sizes=pages, labels=labels, config=config)


def in_double(backbone: Backbone) -> Backbone:
    """The structure with float64 activations (call it where float64 is switched on)."""
    decoder = replace(backbone.config.decoder, dtype=jnp.float64)
    vision = replace(backbone.config.vision, dtype=jnp.float64)
    config = replace(backbone.config, decoder=decoder, vision=vision)
    graph, _ = nnx.split(nnx.eval_shape(lambda: backbone.family.build(config, nnx.Rngs(0))))
    return replace(backbone, graph=graph, config=config)


class Sequence(NamedTuple):
    """Prefix and one branch's tail as one sequence.

    Attributes:
        x: (batch, seq, width), what enters the first layer.
        deep: the same shape for each DeepStack level, zero where there is nothing.
        page: True at page tokens.
        angles, mask: of all layers.
    """

    x: jax.Array
    deep: list[jax.Array]
    page: jax.Array
    angles: jax.Array
    mask: jax.Array


def sequence(backbone: Backbone, params: Any, inputs: SequenceInputs, prompt: jax.Array, branch: Any) -> Sequence:
    """Embeddings of the whole sequence, padding where the host left it."""
    decoder = backbone.merge(params).decoder
    embed = decoder.embed.embedding[...]
    rows, tail = jnp.arange(len(prompt))[:, None], inputs.tail_ids.shape[2]
    page = inputs.visual_index >= 0
    visual = inputs.features[rows, jnp.maximum(inputs.visual_index, 0)]
    x = jnp.where(page[..., None], visual[:, :, 0], embed[inputs.token_ids])
    x = x.at[rows, inputs.start[:, None] + jnp.arange(prompt.shape[1])].set(prompt)
    deep = [jnp.where(page[..., None], visual[:, :, i], 0) for i in range(1, visual.shape[2])]
    valid = jnp.arange(x.shape[1])[None] >= inputs.start[:, None]
    valid = jnp.concatenate([valid, inputs.tail_valid[:, branch]], axis=1)
    seq = valid.shape[1]
    positions = jnp.concatenate([inputs.positions, inputs.tail_positions[:, branch]], axis=1)
    return Sequence(
        jnp.concatenate([x, embed[inputs.tail_ids[:, branch]]], axis=1),
        [jnp.pad(term, ((0, 0), (0, tail), (0, 0))) for term in deep],
        jnp.pad(page, ((0, 0), (0, tail))),
        decoder.angles(positions),
        jnp.tril(jnp.ones((seq, seq), bool))[None] & valid[:, None, :],
    )


def head_of(decoder: Any) -> jax.Array:
    """The output head as one matrix, (width, vocab)."""
    return decoder.embed.embedding[...].T if decoder.head is None else decoder.head.kernel[...]


def target(logits: jax.Array, ids: jax.Array, mask: jax.Array) -> jax.Array:
    """ℓ of one branch."""
    chosen = jnp.take_along_axis(logits[:, -ids.shape[1] :], ids[..., None], axis=-1)[..., 0]
    return jnp.where(mask, chosen, 0).sum(-1)


def run(backbone: Backbone, params: Any, at: Sequence) -> tuple[jax.Array, list[jax.Array]]:
    """Logits at every position, and what enters each layer and the final norm."""
    decoder, x, states = backbone.merge(params).decoder, at.x, [at.x]
    for i, module in enumerate(unstack(backbone, params)):
        x, _ = layer(module, x, at.angles, at.mask, None)
        x = x + at.deep[i] if i < len(at.deep) else x
        states.append(x)
    return norm(x, decoder.norm.scale[...]) @ head_of(decoder), states


def plain_relevance(
    backbone: Backbone, params: Any, at: Sequence, ids: jax.Array, mask: jax.Array, *, steps: int | None
) -> tuple[jax.Array, jax.Array]:
    """Logits, and input × gradient or (with ``steps``) integrated gradients of the page."""

    def score(x: jax.Array, deep: list[jax.Array]) -> jax.Array:
        return target(run(backbone, params, at._replace(x=x, deep=deep))[0], ids, mask).sum()

    logits, _ = run(backbone, params, at)
    derive = jax.grad(score, argnums=(0, 1))
    if steps is None:
        values, (x_gradient, deep_gradient) = at.x, derive(at.x, at.deep)
    else:
        values = jnp.where(at.page[..., None], at.x, 0)
        points = (jnp.arange(steps) + 0.5) / steps
        x_gradient, deep_gradient = jax.tree.map(
            lambda g: g.mean(0),
            jax.lax.map(lambda a: derive(at.x - values + a * values, [a * d for d in at.deep]), points),
        )
    relevance = (values * x_gradient).sum(-1)
    return logits, relevance + sum((d * g).sum(-1) for d, g in zip(at.deep, deep_gradient, strict=True))


def gain(x: jax.Array, scale: jax.Array) -> jax.Array:
    """What a norm multiplies its input by."""
    return scale / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)


def lrp_coefficients(
    backbone: Backbone, params: Any, at: Sequence, ids: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array, list[jax.Array]]:
    """Logits, and what relevance is per unit of ``at.x`` and of each of ``at.deep``.

    Relevance is sent back layer by layer by AttnLRP's rules, no automatic differentiation being used. ``c`` is
    relevance per unit of the activation that it belongs to: R = Σ activation · c.
    """
    decoder = backbone.merge(params).decoder
    logits, states = run(backbone, params, at)
    tail = ids.shape[1]
    c = jnp.where(mask[..., None], head_of(decoder).T[ids], 0)
    c = jnp.pad(c, ((0, 0), (at.x.shape[1] - tail, 0), (0, 0))) * gain(states[-1], decoder.norm.scale[...])
    deep: list[jax.Array] = []
    for i, module in reversed(list(enumerate(unstack(backbone, params)))):
        if i < len(at.deep):
            deep.insert(0, c)
        c = back_through_layer(module, states[i], at.angles, at.mask, c)
    return logits, c, deep


def lrp_relevance(
    backbone: Backbone, params: Any, at: Sequence, ids: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Logits, and every position's relevance."""
    logits, c, deep = lrp_coefficients(backbone, params, at, ids, mask)
    return logits, (at.x * c).sum(-1) + sum((x * c).sum(-1) for x, c in zip(at.deep, deep, strict=True))


def back_through_layer(module: Any, x: jax.Array, angles: jax.Array, mask: jax.Array, c: jax.Array) -> jax.Array:
    """c at a layer's input from c at its output."""
    b, s, _ = x.shape
    split = lambda y: y.reshape(b, s, -1, module.head_dim)  # noqa: E731
    weight = lambda name: getattr(module, name).kernel[...]  # noqa: E731
    input_gain = gain(x, module.input_norm.scale[...])
    q_in, k_in, v = (split(x * input_gain @ weight(name)) for name in ("q_proj", "k_proj", "v_proj"))
    q_gain, k_gain = gain(q_in, module.q_norm.scale[...]), gain(k_in, module.k_norm.scale[...])
    q, k = rotate(q_in * q_gain, angles), rotate(k_in * k_gain, angles)
    group = q.shape[2] // k.shape[2]
    k, v = (jnp.repeat(y, group, axis=2) for y in (k, v))
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(module.head_dim)
    a = jax.nn.softmax(jnp.where(mask[:, None], scores, -1e30), axis=-1)
    middle = x + jnp.einsum("bhqk,bkhd->bqhd", a, v).reshape(b, s, -1) @ weight("o_proj")
    middle_gain = gain(middle, module.post_attention_norm.scale[...])
    gate, up = (middle * middle_gain @ weight(name) for name in ("gate_proj", "up_proj"))
    opened = 1 / (1 + jnp.exp(-gate))

    c_product = c @ weight("down_proj").T
    c_gate, c_up = 0.5 * c_product * up * opened, 0.5 * c_product * gate * opened
    c = c + middle_gain * (c_gate @ weight("gate_proj").T + c_up @ weight("up_proj").T)

    c_out = split(c @ weight("o_proj").T)
    c_a = 0.5 * jnp.einsum("bqhd,bkhd->bhqk", c_out, v)
    c_v = 0.5 * jnp.einsum("bhqk,bqhd->bkhd", a, c_out)
    c_scores = a * (c_a - (a * c_a).sum(-1, keepdims=True)) / np.sqrt(module.head_dim)
    c_q = 0.5 * jnp.einsum("bhqk,bkhd->bqhd", c_scores, k)
    c_k = 0.5 * jnp.einsum("bhqk,bqhd->bkhd", c_scores, q)
    c_k, c_v = (y.reshape(b, s, -1, group, module.head_dim).sum(3) for y in (c_k, c_v))
    c_q, c_k = rotate(c_q, -angles) * q_gain, rotate(c_k, -angles) * k_gain
    parts = zip((c_q, c_k, c_v), ("q_proj", "k_proj", "v_proj"), strict=True)
    return c + input_gain * sum(y.reshape(b, s, -1) @ weight(name).T for y, name in parts)
