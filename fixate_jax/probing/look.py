"""From arrays to where a model looks and what it answers: one pure function, for jit, grad and vmap."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fixate_jax.backbones.loading import Backbone
from fixate_jax.errors import DataError
from fixate_jax.probing.batches import Batch
from fixate_jax.probing.passes import EPS, branches_of, label_log_probs, look_for, ready_inputs
from fixate_jax.probing.trace import Operator


class Look(NamedTuple):
    """Where a model looks on pages, and what it answers.

    Attributes:
        slot_attention: a, the share of relevance on each slot; it sums to just under 1 over a page, or to 0 where no
            slot holds a visual token. 0 at padding slots.
        label_log_probs: log-probability of each slot's label as the answer, among everything that the model could say;
            −∞ at padding slots.
        answer: the slot with the most probable label, the model's own answer.
        relevance: of each visual token, sign and all, in raster order of the page's grid; 0 at padding.
    """

    slot_attention: Float[Array, "pages slots"]
    label_log_probs: Float[Array, "pages slots"]
    answer: Int[Array, " pages"]
    relevance: Float[Array, "pages visual"]


def look(
    backbone: Backbone,
    batch: Batch,
    prompt: Float[Array, "tokens width"] | Float[Array, "pages tokens width"] | None,
    operator: Operator,
    *,
    answer: Literal["own"] | Int[Array, " pages"] = "own",
    eps: float = EPS,
) -> Look:
    """Where a frozen model looks under a soft prompt.

    Pure: jit, grad and vmap it. Give jit the backbone as an argument to keep large weights out of the program, and the
    operator as a static one.

    Args:
        backbone: the model.
        batch: pages, from :func:`encode`.
        prompt: soft tokens for all pages, or for each; None for the backbone alone.
        operator: how to tell where it looks.
        answer: whose relevance is asked for: that of the model's own answer (no gradient passes through the choice), or
            of given slots.
        eps: ε of slot attention.

    Raises:
        DataError: the batch is not of `encode`, or has no room for so many soft tokens.
        ConfigError: the operator looks at rows that the batch does not hold.
    """
    if batch.soft_position is None:
        raise DataError("look: the batch does not say where soft tokens stand; make it with encode")
    pages, tokens = batch.soft_position.shape
    shape = (pages, tokens, backbone.width)
    if prompt is not None and prompt.shape not in (shape, shape[1:]):
        raise DataError(
            f"look: a prompt of shape {prompt.shape}, where the batch has room for {shape[1:]}, or {shape} one for "
            "each page; give encode the same prompt_tokens"
        )
    soft = jnp.zeros(shape) if prompt is None else jnp.broadcast_to(prompt, shape)
    model = backbone.model
    prefix = model.prefill(ready_inputs(model, batch, operator), soft, prompt is not None)
    scores = label_log_probs(model.tail(prefix).logits, batch, backbone.encoder.end_token)
    own = jnp.argmax(jax.lax.stop_gradient(scores), axis=-1)
    chosen = (own if isinstance(answer, str) else answer)[:, None]
    _, relevance, attention = look_for(operator, model, branches_of(prefix, chosen), batch, chosen, eps)
    # Page tokens never stand at the very beginning: position 0 says that there is no such cell.
    held = batch.inputs.visual_position > 0
    return Look(attention[:, 0], scores, own, jnp.where(held, relevance[:, 0], 0))
