"""The passes of a model over a batch: what is prefilled, what is answered, relevance and slots. All pure."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fixate_jax.backbones.inputs import Prefix, SequenceInputs
from fixate_jax.errors import ConfigError
from fixate_jax.probing.batches import Batch
from fixate_jax.probing.slots import slot_attention, take_visual
from fixate_jax.probing.trace import Operator, Trace, reads_source_row

EPS = 1e-4
"""ε of slot attention (FixATE)."""


def target_logit(
    answer_ids: Int[Array, "batch branch tail"], answer_mask: Bool[Array, "batch branch tail"]
) -> Callable[[Float[Array, "batch branch tail vocab"]], Float[Array, "batch branch"]]:
    """ℓ: the sum of the answer tokens' logits, each at the position that predicts it (FixATE)."""

    def target(logits: Float[Array, "batch branch tail vocab"]) -> Float[Array, "batch branch"]:
        chosen = jnp.take_along_axis(logits, answer_ids[..., None], axis=-1)[..., 0]
        return jnp.where(answer_mask, chosen, 0).sum(-1)

    return target


def with_features(model: Any, batch: Batch) -> SequenceInputs:
    """The batch's sequences, the vision tower being run where features are not cached."""
    if batch.pages is None:
        return batch.inputs
    return batch.inputs._replace(features=model.encode_pages(batch.pages))


def ready_inputs(model: Any, batch: Batch, operator: Operator) -> SequenceInputs:
    """The batch's sequences as an operator wants them.

    Where the soft prompt follows the page and the operator looks at row ``src`` alone, the page's keys and values are
    computed first if they are not cached: nothing trained has a part in them, so no gradient passes through the page.

    Raises:
        ConfigError: when they are cached, but the operator looks at other rows.
    """
    if batch.inputs.page_keys is not None:
        if not reads_source_row(operator):
            raise ConfigError(
                f"operator {operator!r} looks at the page's own rows, of which only keys and values are here; give the "
                "page's features, or choose an operator that reads the answering row alone (attn_lrp, attention, "
                "attention_gradient)"
            )
        return batch.inputs
    inputs = with_features(model, batch)
    if inputs.page_valid is None or not reads_source_row(operator):
        return inputs
    return inputs._replace(page_keys=model.page_keys(inputs))


def pick(x: Array, slot: Int[Array, "batch chosen"]) -> Array:
    """The chosen rows of each page."""
    return jax.vmap(lambda row, s: row[s])(x, slot)


def branches_of(prefix: Prefix, slots: Int[Array, "batch chosen"]) -> Prefix:
    """The prefix with the branches of some slots' labels, from one that has all of them, or one for all."""
    return prefix.take_branches(slots if prefix.start.tail_hidden.shape[1] > 1 else jnp.zeros_like(slots))


def look_for(
    operator: Operator,
    model: Any,
    prefix: Prefix,
    batch: Batch,
    chosen: Int[Array, "batch chosen"],
    eps: float = EPS,
) -> tuple[
    Float[Array, "batch chosen tail vocab"], Float[Array, "batch chosen visual"], Float[Array, "batch chosen slots"]
]:
    """Where a model looks for the labels of some slots.

    Args:
        operator: how to tell.
        model: the backbone.
        prefix: with one branch for each chosen slot, see :func:`branches_of`.
        batch: the sessions.
        chosen: the slots.
        eps: ε of slot attention.

    Returns:
        The tail's logits, signed relevance of each visual token, and slot attention.
    """
    target = target_logit(pick(batch.answer_ids, chosen), pick(batch.answer_mask, chosen))
    logits, relevance = operator(Trace(model, prefix, target))
    tokens = take_visual(relevance, batch.inputs.visual_position, prefix.start.moved)
    return logits, tokens, slot_attention(jnp.abs(tokens), batch.slot_matrix, eps)


def label_log_probs(
    logits: Float[Array, "batch branch tail vocab"], batch: Batch, end_token: int
) -> Float[Array, "batch slots"]:
    """Exact log-probability of every slot's label, from logits that share one prefix.

    A label that begins another one also has to stop: the end token's log-probability is added, read off the longer
    label's branch.
    """
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    slots = batch.answer_ids.shape[1]
    every = jnp.broadcast_to(log_probs, (log_probs.shape[0], slots, *log_probs.shape[2:]))
    each = jnp.take_along_axis(every, batch.answer_ids[..., None], axis=-1)[..., 0]
    score = jnp.where(batch.answer_mask, each, 0).sum(-1)
    branch, place = jnp.maximum(batch.stop, 0)[..., 0], jnp.maximum(batch.stop, 0)[..., 1]
    stop = jax.vmap(lambda row, b, t: row[b, t])(every[..., end_token], branch, place)
    score = score + jnp.where(batch.stop[..., 0] >= 0, stop, 0)
    return jnp.where(batch.slot_mask, score, -jnp.inf)
