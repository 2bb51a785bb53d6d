"""Sequences whose soft prompt follows the page: ``[chat and page | padding | soft prompt | rest of the chat]``.

Nothing up to the page's end depends on the soft prompt, so keys and values there can be computed once and kept. The
padding of both parts lies between them, where the mask hides it; positions say how far apart things are.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fixate_jax.backbones.decoder.attention import MASKED, group_heads, precise
from fixate_jax.backbones.decoder.row_blocks import join_blocks, rows_of
from fixate_jax.backbones.inputs import SequenceInputs


def seen_rows(inputs: SequenceInputs, tokens: int, use_prompt: Bool[Array, ""] | bool) -> Bool[Array, "batch seq"]:
    """Which rows of each prefix anybody may look at, wherever its soft prompt stands.

    Args:
        inputs: the sequences.
        tokens: soft tokens, K.
        use_prompt: False hides those.
    """
    first = inputs.start + jnp.where(jnp.asarray(use_prompt), 0, tokens)
    behind = jnp.arange(inputs.token_ids.shape[1])[None, :] >= first[:, None]
    if inputs.page_valid is None:
        return behind
    return jnp.concatenate([inputs.page_valid, behind[:, inputs.page_valid.shape[1] :]], axis=1)


def without_gap(inputs: SequenceInputs, tokens: int, use_prompt: Bool[Array, ""] | bool) -> SequenceInputs:
    """The same with what follows the page moved up to it where the soft prompt between them is hidden.

    A soft prompt that comes first needs nothing of the kind: rotary positions are relative.
    """
    if inputs.page_valid is None:
        return inputs
    gap = jnp.where(jnp.asarray(use_prompt), 0, tokens)
    behind = jnp.arange(inputs.token_ids.shape[1]) >= inputs.page_valid.shape[1]
    return inputs._replace(
        positions=inputs.positions - jnp.where(behind[:, None], gap, 0), tail_positions=inputs.tail_positions - gap
    )


def page_alone(inputs: SequenceInputs) -> SequenceInputs:
    """The rows up to the page's end, without soft prompt and tail; their padding comes last."""
    assert inputs.page_valid is not None
    rows = inputs.page_valid.shape[1]
    return inputs._replace(
        token_ids=inputs.token_ids[:, :rows],
        positions=inputs.positions[:, :rows],
        visual_index=inputs.visual_index[:, :rows],
        start=jnp.zeros_like(inputs.start),
    )


def behind_page(inputs: SequenceInputs) -> SequenceInputs:
    """The rows behind the page, which hold no page token."""
    assert inputs.page_valid is not None
    rows = inputs.page_valid.shape[1]
    return inputs._replace(
        token_ids=inputs.token_ids[:, rows:],
        positions=inputs.positions[:, rows:],
        visual_index=inputs.visual_index[:, rows:],
        start=inputs.start - rows,
        features=None,
    )


def attend_over_page(
    query: Float[Array, "batch rows heads width"],
    key: Float[Array, "batch rows kv width"],
    value: Float[Array, "batch rows kv width"],
    page_key: Float[Array, "batch page kv width"],
    page_value: Float[Array, "batch page kv width"],
    valid: Bool[Array, "batch keys"],
    *,
    block: int,
) -> Float[Array, "batch rows heads width"]:
    """Causal attention of the rows behind a page over the page and over themselves, ``block`` rows at a time.

    Kept apart from each other, so that the way back computes no gradient of the page's keys and values.

    Args:
        query: rotated queries.
        key: rotated keys.
        value: values.
        page_key: the page's.
        page_value: the page's.
        valid: False at keys that nobody may see, the page's first.
        block: rows of scores held at a time.
    """
    page, heads, scale = page_key.shape[1], query.shape[2], query.shape[-1] ** -0.5
    grouped, kind = group_heads(query, key.shape[2]), precise(query)

    def one(first: Array | int, size: int, keys: int) -> Float[Array, "batch some kv group width"]:
        asked = rows_of(grouped, first, size)
        scores = [
            jnp.einsum("bqhgd,bkhd->bhgqk", asked, seen, preferred_element_type=kind)
            for seen in (page_key, key[:, :keys])
        ]
        causal = jnp.arange(keys)[None, :] <= (first + jnp.arange(size))[:, None]
        causal = jnp.concatenate([jnp.ones((size, page), bool), causal], axis=1)
        mask = valid[:, None, None, None, : page + keys] & causal
        weights = jax.nn.softmax(jnp.where(mask, jnp.concatenate(scores, axis=-1) * scale, MASKED), axis=-1)
        weights = weights.astype(value.dtype)
        parts = ((weights[..., :page], page_value), (weights[..., page:], value[:, :keys]))
        out = sum(jnp.einsum("bhgqk,bkhd->bqhgd", w, v, preferred_element_type=precise(value)) for w, v in parts)
        return jnp.asarray(out).astype(value.dtype)

    out = join_blocks(one, query.shape[1], block, causal=True)
    return out.reshape(*out.shape[:2], heads, out.shape[-1])
