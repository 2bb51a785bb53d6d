"""AttnLRP as it is defined, on whole attention matrices in JAX: what the fast path is timed against."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fixate_jax.backbones import Backbone, SequenceInputs
from fixate_jax.backbones.decoder.rope import rotate


def unstack(backbone: Backbone, params: nnx.State) -> list[Any]:
    """Every decoder layer on its own."""
    decoder = backbone.merge(params).decoder
    layers = []
    for name, indices in backbone.config.decoder.groups.items():
        for i in range(len(indices)):
            graph, weights = nnx.split(getattr(decoder, name))
            layers.append(nnx.merge(graph, jax.tree.map(lambda w, i=i: w[i], weights)))
    return layers


def norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    return x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale


def layer(module: Any, x: jax.Array, angles: jax.Array, mask: jax.Array, tap: jax.Array | None) -> tuple:
    """One decoder layer with its whole attention matrix (batch, heads, seq, seq), a tap added to it."""
    b, s, _ = x.shape
    normed = norm(x, module.input_norm.scale[...])
    split = lambda y: y.reshape(b, s, -1, module.head_dim)  # noqa: E731
    q = rotate(norm(split(normed @ module.q_proj.kernel[...]), module.q_norm.scale[...]), angles)
    k = rotate(norm(split(normed @ module.k_proj.kernel[...]), module.k_norm.scale[...]), angles)
    v = split(normed @ module.v_proj.kernel[...])
    k, v = (jnp.repeat(y, q.shape[2] // y.shape[2], axis=2) for y in (k, v))
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(module.head_dim)
    attention = jax.nn.softmax(jnp.where(mask[:, None], scores, -1e30), axis=-1)
    used = attention if tap is None else attention + tap
    x = x + jnp.einsum("bhqk,bkhd->bqhd", used, v).reshape(b, s, -1) @ module.o_proj.kernel[...]
    normed = norm(x, module.post_attention_norm.scale[...])
    gated = jax.nn.silu(normed @ module.gate_proj.kernel[...]) * (normed @ module.up_proj.kernel[...])
    return x + gated @ module.down_proj.kernel[...], attention


def run(
    backbone: Backbone, params: nnx.State, inputs: SequenceInputs, prompt: jax.Array, taps: list[jax.Array | None]
) -> tuple[jax.Array, list[jax.Array]]:
    """Full forward pass of prefix and first branch; logits at every position and every layer's matrix."""
    decoder = backbone.merge(params).decoder
    embed = decoder.embed.embedding[...]
    x = embed[inputs.token_ids]
    seen = inputs.visual_index >= 0
    rows = jnp.arange(len(x))[:, None]
    visual = inputs.features[rows, jnp.maximum(inputs.visual_index, 0)]
    x = jnp.where(seen[..., None], visual[:, :, 0], x)
    columns = inputs.start[:, None] + jnp.arange(prompt.shape[1])
    x = x.at[rows, columns].set(prompt)
    x = jnp.concatenate([x, embed[inputs.tail_ids[:, 0]]], axis=1)
    seq = x.shape[1]
    angles = decoder.angles(jnp.concatenate([inputs.positions, inputs.tail_positions[:, 0]], axis=1))
    valid = jnp.arange(seq - inputs.tail_ids.shape[2])[None] >= inputs.start[:, None]
    valid = jnp.concatenate([valid, inputs.tail_valid[:, 0]], axis=1)
    mask = jnp.tril(jnp.ones((seq, seq), bool))[None] & valid[:, None, :]
    matrices = []
    for i, (module, tap) in enumerate(zip(unstack(backbone, params), taps, strict=True)):
        x, attention = layer(module, x, angles, mask, tap)
        matrices.append(attention)
        if i < inputs.features.shape[2] - 1:
            term = jnp.where(seen[..., None], visual[:, :, 1 + i], 0)
            x = x.at[:, : term.shape[1]].add(term)
    head = embed.T if decoder.head is None else decoder.head.kernel[...]
    return norm(x, decoder.norm.scale[...]) @ head, matrices


def tapped_matrices(
    backbone: Backbone,
    params: nnx.State,
    inputs: SequenceInputs,
    prompt: jax.Array,
    ids: jax.Array,
    mask: jax.Array,
) -> tuple[jax.Array, list[jax.Array], list[jax.Array]]:
    """Logits at the tail, and A and ∂ℓ/∂A of the last m layers, whole matrices."""
    config = backbone.config.decoder
    below = [None] * (config.layers - config.tapped)
    shape = (len(ids), config.heads, *(inputs.positions.shape[1] + ids.shape[1],) * 2)

    def target(taps: list[jax.Array]) -> tuple[jax.Array, tuple]:
        logits, matrices = run(backbone, params, inputs, prompt, [*below, *taps])
        tail = logits[:, -ids.shape[1] :]
        score = jnp.take_along_axis(tail, ids[..., None], -1)[..., 0]
        return jnp.where(mask, score, 0).sum(), (tail, matrices[len(below) :])

    gradient, (logits, matrices) = jax.grad(target, has_aux=True)([jnp.zeros(shape)] * config.tapped)
    return logits, matrices, gradient


def attn_lrp(matrices: list, gradients: list, *, how: str, scale: float, eps: float) -> jax.Array:
    """R = I + Σ w_l E_l, whole."""
    m = len(matrices)
    total = jnp.eye(matrices[0].shape[-1])[None]
    for i, (a, g) in enumerate(zip(matrices, gradients, strict=True), start=1):
        w = a * (scale * g)
        if how == "positive":
            w = jnp.maximum(w, 0)
            d = w.sum(-1, keepdims=True) + eps
        elif how == "abs":
            d = jnp.abs(w).sum(-1, keepdims=True) + eps
        else:
            d = w.sum(-1, keepdims=True)
            d = d + eps * jnp.sign(d)
            d = jnp.where(jnp.abs(d) < eps, eps, d)
        total = total + i / (m * (m + 1) / 2) * (w / d).mean(1)
    return total
