"""The Qwen3 decoder: grouped-query attention with q/k norm, SwiGLU, RoPE or M-RoPE, DeepStack.

Layers are stacked and scanned in three groups, split when the model is built and not inside a jitted function
(slicing a stack there copies it): ``lower`` below the tap, ``upper`` the tapped layers but the last, ``last`` on its
own, because of the last layer the prefix needs keys and values only.

``prefill`` runs the prefix through everything the tail depends on; ``tail`` runs the few last positions through the
tapped layers over the prefix's keys and values. In a causal decoder that is the same computation as a full forward
pass, and only the tail has to be differentiated twice.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Shaped

from fixate_jax.backbones.attention import blocked_attention, precise, tail_attention
from fixate_jax.backbones.flash import Attention, prefill_attention
from fixate_jax.backbones.inputs import Prefix, SequenceInputs, TailOutput
from fixate_jax.backbones.rope import rotary_angles, rotate

Remat = Literal["dots", "full", "none"]


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Shape of a Qwen3 decoder, and how to run it.

    ``attention``, ``attention_block``, ``remat`` and ``unroll`` change speed and memory, never results.
    """

    vocab: int
    layers: int
    width: int
    ff: int
    heads: int
    kv_heads: int
    head_dim: int
    rope_theta: float
    mrope_section: tuple[int, ...] | None = None
    norm_eps: float = 1e-6
    attention_bias: bool = False
    tied: bool = False
    deepstack_levels: int = 0
    tapped_layers: int = 6
    dtype: Any = jnp.float32
    attention: Attention = "auto"
    attention_block: int = 256
    remat: Remat = "dots"
    unroll: bool = False

    @property
    def tapped(self) -> int:
        """Number of layers that the tail runs through (never more than there are)."""
        return min(self.tapped_layers, self.layers)

    @property
    def groups(self) -> dict[str, range]:
        """Layer indices of each stack."""
        first = self.layers - self.tapped
        return {
            "lower": range(0, first),
            "upper": range(first, self.layers - 1),
            "last": range(self.layers - 1, self.layers),
        }


def _rematerialised(body: Any, how: Remat) -> Any:
    if how == "none":
        return body
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if how == "dots" else None
    return jax.checkpoint(body, policy=policy, prevent_cse=False)


def _first_seen(
    inputs: SequenceInputs, prompt: Float[Array, "batch tokens width"], use_prompt: Bool[Array, ""] | bool
) -> Int[Array, " batch"]:
    """The first position of each prefix that anybody may look at."""
    return inputs.start + jnp.where(jnp.asarray(use_prompt), 0, prompt.shape[1])


def _turned(rows: Shaped[Array, "batch seq *dims"], by: Int[Array, " batch"]) -> Shaped[Array, "batch seq *dims"]:
    """Every row moved forward by so many places, what falls off at the front coming last."""
    places = jnp.arange(rows.shape[1])
    # Saying that no place is read twice lets the gradient be a write, not a sum.
    return jax.vmap(lambda row, n: row.at[(places + n) % len(places)].get(unique_indices=True))(rows, by)


def _padding_last(inputs: SequenceInputs, first: Int[Array, " batch"]) -> SequenceInputs:
    """The same prefixes with what stands before ``first`` moved to their ends, where causality alone hides it."""
    return inputs._replace(
        token_ids=_turned(inputs.token_ids, first),
        positions=_turned(inputs.positions, first),
        visual_index=_turned(inputs.visual_index, first),
        start=(inputs.start - first) % inputs.token_ids.shape[1],
    )


class DecoderLayer(nnx.Module):
    """One layer, in pieces, so that prefix and tail can attend differently with the same weights."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        """Make a layer with random weights (checkpoints replace them)."""
        dtype = config.dtype

        def norm(width: int) -> nnx.RMSNorm:
            return nnx.RMSNorm(width, epsilon=config.norm_eps, dtype=dtype, param_dtype=dtype, rngs=rngs)

        def linear(inputs: int, outputs: int, bias: bool = False) -> nnx.Linear:
            return nnx.Linear(inputs, outputs, use_bias=bias, dtype=dtype, param_dtype=dtype, rngs=rngs)

        heads, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.head_dim = config.head_dim
        self.input_norm = norm(config.width)
        self.q_proj = linear(config.width, heads, config.attention_bias)
        self.k_proj = linear(config.width, kv, config.attention_bias)
        self.v_proj = linear(config.width, kv, config.attention_bias)
        self.q_norm = norm(config.head_dim)
        self.k_norm = norm(config.head_dim)
        self.o_proj = linear(heads, config.width, config.attention_bias)
        self.post_attention_norm = norm(config.width)
        self.gate_proj = linear(config.width, config.ff)
        self.up_proj = linear(config.width, config.ff)
        self.down_proj = linear(config.ff, config.width)

    def _heads(self, x: Float[Array, "*dims flat"]) -> Float[Array, "*dims heads head"]:
        return x.reshape(*x.shape[:-1], -1, self.head_dim)

    def query(
        self, hidden: Float[Array, "*dims width"], angles: Float[Array, "*dims half"]
    ) -> Float[Array, "*dims heads head"]:
        """Normed and rotated queries of a residual stream."""
        return rotate(self.q_norm(self._heads(self.q_proj(self.input_norm(hidden)))), angles)

    def key_value(
        self, hidden: Float[Array, "*dims width"], angles: Float[Array, "*dims half"]
    ) -> tuple[Float[Array, "*dims kv head"], Float[Array, "*dims kv head"]]:
        """Normed and rotated keys, and values, of a residual stream."""
        normed = self.input_norm(hidden)
        return rotate(self.k_norm(self._heads(self.k_proj(normed))), angles), self._heads(self.v_proj(normed))

    def finish(
        self, hidden: Float[Array, "*dims width"], attended: Float[Array, "*dims heads head"]
    ) -> Float[Array, "*dims width"]:
        """Output projection, residuals and the gated feed-forward half."""
        hidden = hidden + self.o_proj(attended.reshape(*attended.shape[:-2], -1))
        normed = self.post_attention_norm(hidden)
        return hidden + self.down_proj(jax.nn.silu(self.gate_proj(normed)) * self.up_proj(normed))


class Decoder(nnx.Module):
    """Embedding, layers in three stacks, final norm, output head."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        """Make a decoder with random weights (checkpoints replace them)."""
        self.config = config
        self.embed = nnx.Embed(config.vocab, config.width, dtype=config.dtype, param_dtype=config.dtype, rngs=rngs)
        sizes = {name: len(indices) for name, indices in config.groups.items()}
        self.lower = self._stack(sizes["lower"], rngs)
        self.upper = self._stack(sizes["upper"], rngs)
        self.last = self._stack(sizes["last"], rngs)
        self.norm = nnx.RMSNorm(
            config.width, epsilon=config.norm_eps, dtype=config.dtype, param_dtype=config.dtype, rngs=rngs
        )
        self.head = (
            None
            if config.tied
            else nnx.Linear(
                config.width, config.vocab, use_bias=False, dtype=config.dtype, param_dtype=config.dtype, rngs=rngs
            )
        )

    def _stack(self, size: int, rngs: nnx.Rngs) -> DecoderLayer | None:
        if size == 0:
            return None
        make = nnx.vmap(lambda r: DecoderLayer(self.config, r), in_axes=0, out_axes=0)
        return make(rngs.split(size))

    def _stacks(self, *names: str) -> Iterator[tuple[Any, Any, Int[Array, " layers"]]]:
        """Graph definition, stacked weights and layer indices of each named stack that is not empty."""
        for name in names:
            indices = self.config.groups[name]
            if len(indices):
                graph, weights = nnx.split(getattr(self, name))
                yield graph, weights, jnp.arange(indices.start, indices.stop)

    def angles(self, positions: Int[Array, "*dims 3"]) -> Float[Array, "*dims half"]:
        """Rotary angles at some positions."""
        c = self.config
        return rotary_angles(positions, head_dim=c.head_dim, theta=c.rope_theta, mrope_section=c.mrope_section)

    def logits(self, hidden: Float[Array, "*dims width"]) -> Float[Array, "*dims vocab"]:
        """Final norm and output head, in float32."""
        normed = self.norm(hidden)
        if self.head is None:
            return jnp.einsum(
                "...d,vd->...v", normed, self.embed.embedding[...], preferred_element_type=precise(normed)
            )
        return jnp.einsum("...d,dv->...v", normed, self.head.kernel[...], preferred_element_type=precise(normed))

    def _prefix_start(
        self, inputs: SequenceInputs, prompt: Float[Array, "batch tokens width"]
    ) -> tuple[Float[Array, "batch seq width"], Float[Array, "levels batch seq width"]]:
        """Input embeddings with visual tokens and soft prompt in place, and DeepStack terms."""
        visual = inputs.visual_index[..., None] >= 0
        features = jax.vmap(lambda f, i: f[i])(inputs.features, jnp.maximum(inputs.visual_index, 0))
        features = features.astype(self.config.dtype)
        hidden = jnp.where(visual, features[:, :, 0], self.embed(inputs.token_ids))
        hidden = jax.vmap(lambda h, p, s: jax.lax.dynamic_update_slice_in_dim(h, p, s, axis=0))(
            hidden, prompt.astype(hidden.dtype), inputs.start
        )
        deep = jnp.moveaxis(jnp.where(visual[..., None, :], features[:, :, 1:], 0), 2, 0)
        return hidden, deep

    def _add_deepstack(
        self, hidden: Float[Array, "batch rows width"], deep: Float[Array, "levels batch seq width"], layer: Array
    ) -> Float[Array, "batch rows width"]:
        levels = deep.shape[0]
        if levels == 0:
            return hidden
        term = jnp.where(layer < levels, deep[jnp.minimum(layer, levels - 1)], 0)
        rest = hidden.shape[1] - term.shape[1]
        return hidden + jnp.pad(term, ((0, 0), (0, rest), (0, 0)))

    def prefill(
        self,
        inputs: SequenceInputs,
        prompt: Float[Array, "batch tokens width"],
        use_prompt: Bool[Array, ""] | bool = True,
    ) -> Prefix:
        """Run the prefix, and the tail as far as the first tapped layer.

        Args:
            inputs: the sequences.
            prompt: soft prompt P_u of each, put at ``inputs.start``.
            use_prompt: False hides the soft prompt from every position: the backbone alone.

        Returns:
            The tapped layers' keys and values for the prefix, and the tail's state below them.
        """
        config = self.config
        batch, branch, tail = inputs.tail_ids.shape
        seq = inputs.token_ids.shape[1]
        first = _first_seen(inputs, prompt, use_prompt)
        turned = config.attention != "blocked"
        if turned:
            inputs = _padding_last(inputs, first)
            valid = jnp.arange(seq)[None, :] < seq - first[:, None]
        else:
            valid = jnp.arange(seq)[None, :] >= first[:, None]
        mask = None if turned else valid
        hidden, deep = self._prefix_start(inputs, prompt)
        prefix_angles, tail_angles = self.angles(inputs.positions), self.angles(inputs.tail_positions)
        flat = jax.tree.map(
            lambda p, t: jnp.concatenate([p, t.reshape(batch, branch * tail, -1)], axis=1),
            (hidden, prefix_angles),
            (self.embed(inputs.tail_ids), tail_angles),
        )

        def split(x: Array) -> tuple[Array, Array]:
            return x[:, :seq], x[:, seq:].reshape(batch, branch, tail, *x.shape[2:])

        def lower(graph: Any, x: Array, xs: tuple) -> tuple[Array, None]:
            weights, index = xs
            layer = nnx.merge(graph, weights)
            query, tail_query = split(layer.query(x, flat[1]))
            (key, tail_key), (value, tail_value) = map(split, layer.key_value(x, flat[1]))
            attended = prefill_attention(
                query, key, value, how=config.attention, block=config.attention_block, valid=mask
            )
            tail_attended, _ = tail_attention(tail_query, key, value, valid, tail_key, tail_value, inputs.tail_valid)
            attended = jnp.concatenate(
                [attended, tail_attended.reshape(batch, branch * tail, *attended.shape[2:])], axis=1
            )
            return self._add_deepstack(layer.finish(x, attended), deep, index), None

        x = flat[0]
        for graph, weights, indices in self._stacks("lower"):
            body = _rematerialised(partial(lower, graph), config.remat)
            x, _ = jax.lax.scan(body, x, (weights, indices), unroll=config.unroll)
        hidden, tail_hidden = split(x)
        key, value = self._tapped_keys_values(hidden, deep, mask, prefix_angles)
        if turned:
            back = partial(_turned, by=-first)
            key, value, valid = jax.vmap(back)(key), jax.vmap(back)(value), back(valid)
        return Prefix(key, value, valid, tail_hidden, tail_angles, inputs.tail_valid)

    def _tapped_keys_values(
        self,
        hidden: Float[Array, "batch seq width"],
        deep: Float[Array, "levels batch seq width"],
        mask: Bool[Array, "batch seq"] | None,
        angles: Float[Array, "batch seq half"],
    ) -> tuple[Float[Array, "tapped batch seq kv head"], Float[Array, "tapped batch seq kv head"]]:
        """Keys and values of the prefix in the tapped layers; the last layer computes nothing else."""
        config = self.config
        keys, values = [], []

        def upper(graph: Any, x: Array, xs: tuple) -> tuple[Array, tuple[Array, Array]]:
            weights, index = xs
            layer = nnx.merge(graph, weights)
            key, value = layer.key_value(x, angles)
            attended = prefill_attention(
                layer.query(x, angles), key, value, how=config.attention, block=config.attention_block, valid=mask
            )
            return self._add_deepstack(layer.finish(x, attended), deep, index), (key, value)

        for graph, weights, indices in self._stacks("upper"):
            body = _rematerialised(partial(upper, graph), config.remat)
            hidden, (key, value) = jax.lax.scan(body, hidden, (weights, indices), unroll=config.unroll)
            keys.append(key)
            values.append(value)
        graph, weights = nnx.split(self.last)
        key, value = jax.vmap(lambda w: nnx.merge(graph, w).key_value(hidden, angles))(weights)
        keys.append(key)
        values.append(value)
        return jnp.concatenate(keys), jnp.concatenate(values)

    def tail(self, prefix: Prefix, taps: Float[Array, "layers batch branch heads keys"] | None = None) -> TailOutput:
        """Run the tail through the tapped layers, over the prefix's keys and values.

        Args:
            prefix: from :meth:`prefill`, or a part of its branches.
            taps: added to the ``src`` row of every tapped layer's attention after the softmax; zeros to
                differentiate with respect to.

        Returns:
            Logits at every tail position, and the ``src`` rows of the tapped layers.
        """
        valid, tail_valid, angles = prefix.valid, prefix.tail_valid, prefix.angles

        def step(graph: Any, hidden: Array, xs: tuple) -> tuple[Array, Array]:
            weights, prefix_key, prefix_value, tap = xs
            layer = nnx.merge(graph, weights)
            key, value = layer.key_value(hidden, angles)
            attended, row = tail_attention(
                layer.query(hidden, angles), prefix_key, prefix_value, valid, key, value, tail_valid, tap
            )
            return layer.finish(hidden, attended), row

        hidden, rows, done = prefix.hidden, [], 0
        for graph, weights, indices in self._stacks("upper", "last"):
            part = slice(done, done + len(indices))
            tap = None if taps is None else taps[part]
            xs = (weights, prefix.key[part], prefix.value[part], tap)
            hidden, row = jax.lax.scan(partial(step, graph), hidden, xs, unroll=self.config.unroll)
            rows.append(row)
            done += len(indices)
        return TailOutput(self.logits(hidden), jnp.concatenate(rows))

    def forward(
        self,
        inputs: SequenceInputs,
        prompt: Float[Array, "batch tokens width"],
        use_prompt: Bool[Array, ""] | bool = True,
    ) -> tuple[Float[Array, "batch tail vocab"], Float[Array, "layers batch seq_tail width"]]:
        """Plain forward pass of prefix and first branch through every layer: what the fast path is compared with.

        Returns:
            Logits at the tail, and the residual stream after every layer (DeepStack added), before the final norm.
        """
        hidden, deep = self._prefix_start(inputs, prompt)
        tail = inputs.tail_ids.shape[2]
        x = jnp.concatenate([hidden, self.embed(inputs.tail_ids[:, 0])], axis=1)
        angles = self.angles(jnp.concatenate([inputs.positions, inputs.tail_positions[:, 0]], axis=1))
        seen = jnp.arange(hidden.shape[1])[None, :] >= _first_seen(inputs, prompt, use_prompt)[:, None]
        valid = jnp.concatenate([seen, inputs.tail_valid[:, 0]], axis=1)

        def layer_step(graph: Any, x: Array, xs: tuple) -> tuple[Array, Array]:
            weights, index = xs
            layer = nnx.merge(graph, weights)
            key, value = layer.key_value(x, angles)
            attended = blocked_attention(
                layer.query(x, angles), key, value, valid, causal=True, block=self.config.attention_block
            )
            x = self._add_deepstack(layer.finish(x, attended), deep, index)
            return x, x

        states = []
        for graph, weights, indices in self._stacks("lower", "upper", "last"):
            body = _rematerialised(partial(layer_step, graph), self.config.remat)
            x, state = jax.lax.scan(body, x, (weights, indices))
            states.append(state)
        return self.logits(x[:, -tail:]), jnp.concatenate(states)
