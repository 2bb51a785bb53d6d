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

from fixate_jax.backbones.decoder.after_page import attend_over_page, behind_page, page_alone, seen_rows, without_gap
from fixate_jax.backbones.decoder.attention import blocked_attention, tail_attention
from fixate_jax.backbones.decoder.decoder_layer import PLAIN, DecoderConfig, DecoderLayer, Remat, Rules
from fixate_jax.backbones.decoder.flash import prefill_attention
from fixate_jax.backbones.decoder.products import LOW, SAVED, multiply_frozen, packed, unpacked
from fixate_jax.backbones.decoder.rope import rotary_angles
from fixate_jax.backbones.inputs import Prefix, SequenceInputs, Stream, TailOutput, WholeRows
from fixate_jax.backbones.sharding import by_rows, by_width

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


def _page_in(stream: Stream, layers: range) -> Float[Array, "layers both batch page kv head"] | None:
    """The page's keys and values in some layers, where they are known."""
    return None if stream.page is None else stream.page[layers.start : layers.stop]


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
        normed = by_width(rules.norm(self.norm, hidden))
        if self.head is None:
            scores = multiply_frozen("...d,vd->...v", normed, self.embed.embedding[...])
        else:
            scores = multiply_frozen("...d,dv->...v", normed, self.head.kernel[...])
        return by_rows(scores, "tensor")

    def _embedded(self, ids: Int[Array, "*dims"]) -> Float[Array, "*dims width"]:
        """Input embeddings of tokens."""
        return by_rows(by_width(self.embed(ids)))

    def _prefix_start(
        self, inputs: SequenceInputs, prompt: Float[Array, "batch tokens width"]
    ) -> tuple[Float[Array, "batch seq width"], Float[Array, "levels batch seq width"]]:
        """Input embeddings with visual tokens and soft prompt in place, and DeepStack terms."""
        hidden = self._embedded(inputs.token_ids)
        deep = jnp.zeros((0, *hidden.shape), hidden.dtype)
        if inputs.features is not None:
            visual = inputs.visual_index[..., None] >= 0
            features = jax.vmap(lambda f, i: f[i])(inputs.features, jnp.maximum(inputs.visual_index, 0))
            features = features.astype(self.config.dtype)
            hidden = jnp.where(visual, features[:, :, 0], hidden)
            deep = jnp.moveaxis(jnp.where(visual[..., None, :], features[:, :, 1:], 0), 2, 0)
        hidden = jax.vmap(lambda h, p, s: jax.lax.dynamic_update_slice_in_dim(h, p, s, axis=0))(
            hidden, prompt.astype(hidden.dtype), inputs.start
        )
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
        soft, moved, page = prompt.shape[1], None, None
        inputs, valid = without_gap(inputs, soft, use_prompt), seen_rows(inputs, soft, use_prompt)
        if inputs.page_keys is not None:
            page, inputs = jnp.moveaxis(inputs.page_keys, 0, 2).swapaxes(0, 1), behind_page(inputs)
        elif inputs.page_valid is None and self.config.attention != "blocked":
            seq, moved = inputs.token_ids.shape[1], inputs.start + jnp.where(jnp.asarray(use_prompt), 0, soft)
            inputs, valid = _padding_last(inputs, moved), jnp.arange(seq)[None, :] < seq - moved[:, None]
        hidden, deep = self._prefix_start(inputs, prompt)
        return Stream(
            hidden=by_rows(hidden),
            deep=deep,
            angles=self.angles(inputs.positions),
            valid=valid,
            visual=inputs.visual_index >= 0,
            moved=moved,
            tail_hidden=self._embedded(inputs.tail_ids),
            tail_angles=self.angles(inputs.tail_positions),
            tail_valid=inputs.tail_valid,
            page=page,
        )

    def _attend(
        self, query: Array, key: Array, value: Array, page: Array | None, stream: Stream, rules: Rules
    ) -> tuple[Array, Array, Array]:
        """Causal attention of the prefix, and its keys and values together with the page's where those are known."""
        block = self.config.attention_block
        if page is not None:
            attended = attend_over_page(query, key, value, page[0], page[1], stream.valid, block=block)
            return attended, jnp.concatenate([page[0], key], axis=1), jnp.concatenate([page[1], value], axis=1)
        mask = stream.valid if stream.moved is None else None
        how = "blocked" if rules.twice or mask is not None else self.config.attention
        return prefill_attention(query, key, value, how=how, block=block, valid=mask), key, value

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
            weights, index, page = xs
            layer = nnx.merge(graph, unpacked(weights))
            query, tail_query = split(layer.query(x, angles, rules))
            (key, tail_key), (value, tail_value) = map(split, layer.key_value(x, angles, rules))
            attended, key, value = self._attend(query, key, value, page, stream, rules)
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
            xs = (weights, indices, _page_in(stream, self.config.groups["lower"]))
            x, _ = jax.lax.scan(scanned, x, xs, unroll=self.config.unroll)
        hidden, tail_hidden = split(x)
        return stream._replace(hidden=hidden, tail_hidden=tail_hidden)

    def whole_rows(
        self,
        below: Stream,
        rules: Rules = PLAIN,
        taps: Float[Array, "upper batch seq heads head"] | None = None,
        *,
        queries: bool = True,
        stacks: tuple[str, ...] = ("upper",),
    ) -> WholeRows:
        """The prefix through the tapped layers; the last one computes nothing but keys and values.

        Args:
            below: the sequence as it enters the first tapped layer.
            rules: how the layers are computed.
            taps: added to what the prefix's heads attended to, in every tapped layer but the last; zeros to
                differentiate with respect to.
            queries: whether they are wanted.
            stacks: the layers before the last that it has still to go through.
        """
        hidden, keys, values, asked = below.hidden, [], [], None

        def upper(graph: Any, x: Array, xs: tuple) -> tuple[Array, tuple]:
            weights, index, tap, page = xs
            layer = nnx.merge(graph, unpacked(weights))
            # Queries last: the order in which gradients are added up decides their last bits, and recipes note those.
            key, value = layer.key_value(x, below.angles, rules)
            query = layer.query(x, below.angles, rules)
            attended, key, value = self._attend(query, key, value, page, below, rules)
            attended = attended if tap is None else attended + tap
            x = self._add_deepstack(layer.finish(x, attended, rules), below.deep, index)
            return x, (query if queries else None, key, value)

        for graph, weights, indices in self._stacks(*stacks):
            body = _rematerialised(partial(upper, graph), self.config.remat)
            xs = (weights, indices, taps, _page_in(below, self.config.groups["upper"]))
            hidden, (asked, key, value) = jax.lax.scan(body, hidden, xs, unroll=self.config.unroll)
            keys.append(key)
            values.append(value)
        graph, weights = nnx.split(self.last)
        key, value = jax.vmap(lambda w: nnx.merge(graph, w).key_value(hidden, below.angles, rules))(weights)
        page = _page_in(below, self.config.groups["last"])
        if page is not None:
            key, value = (jnp.concatenate([page[:, i], part], axis=2) for i, part in enumerate((key, value)))
        return WholeRows(asked, jnp.concatenate([*keys, key]), jnp.concatenate([*values, value]))

    def page_keys(self, inputs: SequenceInputs) -> Float[Array, "batch both layers page kv head"]:
        """Keys and values of the chat up to the page's end in every layer: no soft prompt has a part in them.

        Args:
            inputs: sequences whose soft prompt follows the page; what comes behind the page plays no part.

        Returns:
            Rotated keys, then values, for ``SequenceInputs.page_keys``.
        """
        inputs = page_alone(inputs)
        hidden, deep = self._prefix_start(inputs, jnp.zeros((len(inputs.start), 0, self.config.width)))
        assert inputs.page_valid is not None
        stream = Stream(
            hidden=by_rows(hidden),
            deep=deep,
            angles=self.angles(inputs.positions),
            valid=inputs.page_valid,
            visual=inputs.visual_index >= 0,
            moved=inputs.start,
            tail_hidden=hidden[:, None, :0],
            tail_angles=self.angles(inputs.tail_positions[:, :, :0]),
            tail_valid=inputs.tail_valid[:, :, :0],
        )
        rows = self.whole_rows(stream, queries=False, stacks=("lower", "upper"))
        return jnp.moveaxis(jnp.stack([rows.key, rows.value]), 2, 0)

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
                # Or else the backward pass would keep all of the unpacked weights; some it keeps still, for the second
                # order.
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
        inputs = without_gap(inputs, prompt.shape[1], use_prompt)
        hidden, deep = self._prefix_start(inputs, prompt)
        tail = inputs.tail_ids.shape[2]
        x = jnp.concatenate([hidden, self.embed(inputs.tail_ids[:, 0])], axis=1)
        angles = self.angles(jnp.concatenate([inputs.positions, inputs.tail_positions[:, 0]], axis=1))
        seen = seen_rows(inputs, prompt.shape[1], use_prompt)
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
