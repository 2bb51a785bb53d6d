"""The Qwen3 decoder: grouped-query attention with q/k norm, SwiGLU, RoPE or M-RoPE, DeepStack.

Layers are stacked and scanned in three groups, split when the model is built and not inside a jitted function
(slicing a stack there copies it): ``lower`` below the tap, ``upper`` the tapped layers but the last, ``last`` on its
own, because of the last layer the prefix needs keys and values only.

``prefill`` runs the prefix through everything the tail depends on; ``tail`` runs the few last positions through the
tapped layers over the prefix's keys and values. In a causal decoder that is the same computation as a full forward
pass, and only the tail has to be differentiated twice. The prefill's three steps, ``start``, ``below`` and ``tapped``,
can be called by operators that look at the whole sequence.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Shaped

from fixate_jax.backbones.attention import blocked_attention, tail_attention
from fixate_jax.backbones.decoder_layer import PLAIN, DecoderConfig, DecoderLayer, Remat, Rules
from fixate_jax.backbones.flash import prefill_attention
from fixate_jax.backbones.inputs import Prefix, SequenceInputs, Stream, TailOutput, WholeRows
from fixate_jax.backbones.products import LOW, SAVED, multiply_frozen, packed, unpacked
from fixate_jax.backbones.rope import rotary_angles

_KEPT = jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    jax.checkpoint_policies.save_only_these_names(SAVED),
)
"""Products without batch dimensions: those with weights."""


def _rematerialised(body: Any, how: Remat) -> Any:
    if how == "none":
        return body
    policy = _KEPT if how == "dots" else None
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
        """Graph definition, stacked weights (packed) and layer indices of each named stack that is not empty."""
        for name in names:
            indices = self.config.groups[name]
            if len(indices):
                graph, weights = nnx.split(getattr(self, name))
                yield graph, packed(weights), jnp.arange(indices.start, indices.stop)

    def angles(self, positions: Int[Array, "*dims 3"]) -> Float[Array, "*dims half"]:
        """Rotary angles at some positions."""
        c = self.config
        return rotary_angles(positions, head_dim=c.head_dim, theta=c.rope_theta, mrope_section=c.mrope_section)

    def logits(self, hidden: Float[Array, "*dims width"], rules: Rules = PLAIN) -> Float[Array, "*dims vocab"]:
        """Final norm and output head, in float32."""
        normed = rules.norm(self.norm, hidden)
        if self.head is None:
            return multiply_frozen("...d,vd->...v", normed, self.embed.embedding[...])
        return multiply_frozen("...d,dv->...v", normed, self.head.kernel[...])

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

    def start(
        self,
        inputs: SequenceInputs,
        prompt: Float[Array, "batch tokens width"],
        use_prompt: Bool[Array, ""] | bool = True,
    ) -> Stream:
        """Embeddings: what enters the first layer.

        Args:
            inputs: the sequences.
            prompt: soft prompt P_u of each, put at ``inputs.start``.
            use_prompt: False hides the soft prompt from every position: the backbone alone.
        """
        seq, first = inputs.token_ids.shape[1], _first_seen(inputs, prompt, use_prompt)
        if self.config.attention == "blocked":
            moved, valid = jnp.zeros_like(first), jnp.arange(seq)[None, :] >= first[:, None]
        else:
            inputs, moved = _padding_last(inputs, first), first
            valid = jnp.arange(seq)[None, :] < seq - first[:, None]
        hidden, deep = self._prefix_start(inputs, prompt)
        return Stream(
            hidden=hidden,
            deep=deep,
            angles=self.angles(inputs.positions),
            valid=valid,
            visual=inputs.visual_index >= 0,
            moved=moved,
            tail_hidden=self.embed(inputs.tail_ids),
            tail_angles=self.angles(inputs.tail_positions),
            tail_valid=inputs.tail_valid,
        )

    def _attend(self, query: Array, key: Array, value: Array, valid: Array, rules: Rules) -> Array:
        """Causal attention of the prefix."""
        config = self.config
        how = "blocked" if rules.twice else config.attention
        mask = valid if config.attention == "blocked" else None
        return prefill_attention(query, key, value, how=how, block=config.attention_block, valid=mask)

    def below(self, stream: Stream, rules: Rules = PLAIN) -> Stream:
        """Prefix and tail through the layers below the first tapped one."""
        batch, branch, tail = stream.tail_hidden.shape[:3]
        seq = stream.hidden.shape[1]
        flat, angles = (
            jnp.concatenate([p, t.reshape(batch, branch * tail, -1)], axis=1)
            for p, t in ((stream.hidden, stream.tail_hidden), (stream.angles, stream.tail_angles))
        )

        def split(x: Array) -> tuple[Array, Array]:
            return x[:, :seq], x[:, seq:].reshape(batch, branch, tail, *x.shape[2:])

        def body(graph: Any, x: Array, xs: tuple) -> tuple[Array, None]:
            weights, index = xs
            layer = nnx.merge(graph, unpacked(weights))
            query, tail_query = split(layer.query(x, angles, rules))
            (key, tail_key), (value, tail_value) = map(split, layer.key_value(x, angles, rules))
            attended = self._attend(query, key, value, stream.valid, rules)
            tail_attended, _ = tail_attention(
                tail_query, key, value, stream.valid, tail_key, tail_value, stream.tail_valid
            )
            attended = jnp.concatenate(
                [attended, tail_attended.reshape(batch, branch * tail, *attended.shape[2:])], axis=1
            )
            return self._add_deepstack(layer.finish(x, attended, rules), stream.deep, index), None

        x = flat
        for graph, weights, indices in self._stacks("lower"):
            scanned = _rematerialised(partial(body, graph), self.config.remat)
            x, _ = jax.lax.scan(scanned, x, (weights, indices), unroll=self.config.unroll)
        hidden, tail_hidden = split(x)
        return stream._replace(hidden=hidden, tail_hidden=tail_hidden)

    def whole_rows(
        self,
        below: Stream,
        rules: Rules = PLAIN,
        taps: Float[Array, "upper batch seq heads head"] | None = None,
        *,
        queries: bool = True,
    ) -> WholeRows:
        """The prefix through the tapped layers; the last one computes nothing but keys and values.

        Args:
            below: the sequence as it enters the first tapped layer.
            rules: how the layers are computed.
            taps: added to what the prefix's heads attended to, in every tapped layer but the last; zeros to
                differentiate with respect to.
            queries: whether they are wanted.
        """
        hidden, keys, values, asked = below.hidden, [], [], None

        def upper(graph: Any, x: Array, xs: tuple) -> tuple[Array, tuple]:
            weights, index, tap = xs
            layer = nnx.merge(graph, unpacked(weights))
            # Queries last: the order in which gradients are added up decides their last bits, and recipes note those.
            key, value = layer.key_value(x, below.angles, rules)
            query = layer.query(x, below.angles, rules)
            attended = self._attend(query, key, value, below.valid, rules)
            attended = attended if tap is None else attended + tap
            x = self._add_deepstack(layer.finish(x, attended, rules), below.deep, index)
            return x, (query if queries else None, key, value)

        for graph, weights, indices in self._stacks("upper"):
            body = _rematerialised(partial(upper, graph), self.config.remat)
            hidden, (asked, key, value) = jax.lax.scan(
                body, hidden, (weights, indices, taps), unroll=self.config.unroll
            )
            keys.append(key)
            values.append(value)
        graph, weights = nnx.split(self.last)
        key, value = jax.vmap(lambda w: nnx.merge(graph, w).key_value(hidden, below.angles, rules))(weights)
        return WholeRows(asked, jnp.concatenate([*keys, key]), jnp.concatenate([*values, value]))

    def tapped(self, start: Stream, below: Stream, rules: Rules = PLAIN) -> Prefix:
        """Keys and values of the tapped layers for the prefix, and the tail as it enters the first of them.

        Args:
            start: from :meth:`start`.
            below: from :meth:`below`.
            rules: how the layers are computed.
        """
        rows = self.whole_rows(below, rules, queries=False)
        return Prefix(rows.key, rows.value, start, below)

    def prefill(
        self,
        inputs: SequenceInputs,
        prompt: Float[Array, "batch tokens width"],
        use_prompt: Bool[Array, ""] | bool = True,
    ) -> Prefix:
        """Run the prefix, and the tail as far as the first tapped layer: start, lower and tapped layers.

        Args:
            inputs: the sequences.
            prompt: soft prompt P_u of each, put at ``inputs.start``.
            use_prompt: False hides the soft prompt from every position: the backbone alone.

        Returns:
            The tapped layers' keys and values for the prefix, and the tail's state below them.
        """
        start = self.start(inputs, prompt, use_prompt)
        return self.tapped(start, self.below(start))

    def tail(
        self,
        prefix: Prefix,
        taps: Float[Array, "layers batch branch heads tail keys"] | None = None,
        rules: Rules = PLAIN,
    ) -> TailOutput:
        """Run the tail through the tapped layers, over the prefix's keys and values.

        Args:
            prefix: from :meth:`prefill`, or a part of its branches.
            taps: added to every tapped layer's attention after the softmax; zeros to differentiate with respect to.
            rules: how the layers are computed.

        Returns:
            Logits at every tail position, and attention and values of the tapped layers.
        """
        below = prefix.below

        def step(graph: Any, hidden: Array, xs: tuple) -> tuple[Array, tuple[Array, Array]]:
            weights, prefix_key, prefix_value, tap = xs
            layer = nnx.merge(graph, unpacked(weights))
            key, value = layer.key_value(hidden, below.tail_angles, rules)
            query = layer.query(hidden, below.tail_angles, rules)
            attended, rows = tail_attention(
                query, prefix_key, prefix_value, below.valid, key, value, below.tail_valid, tap
            )
            return layer.finish(hidden, attended, rules), (rows, value)

        hidden, rows, values, done = below.tail_hidden, [], [], 0
        for graph, weights, indices in self._stacks("upper", "last"):
            part = slice(done, done + len(indices))
            tap = None if taps is None else taps[part]
            xs = (weights, prefix.key[part], prefix.value[part], tap)
            body = partial(step, graph)
            if self.config.dtype == LOW:
                # Or else the backward pass would keep a copy of the weights: those that are unpacked already.
                body = _rematerialised(body, self.config.remat)
            hidden, (row, value) = jax.lax.scan(body, hidden, xs, unroll=self.config.unroll)
            rows.append(row)
            values.append(value)
            done += len(indices)
        return TailOutput(self.logits(hidden, rules), jnp.concatenate(rows), jnp.concatenate(values))

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
            layer = nnx.merge(graph, unpacked(weights))
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
