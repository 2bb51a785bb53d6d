"""The jitted computations: one training step, one evaluation of a batch. Everything they use is an argument."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from fixate_jax.backbones.inputs import Prefix, take_branches
from fixate_jax.objective import (
    Alignment,
    coefficient_penalty,
    next_token_loss,
    session_mean,
    total_loss,
)
from fixate_jax.probing import Operator
from fixate_jax.probing.batches import Batch
from fixate_jax.probing.passes import EPS, branches_of, label_log_probs, look_for, pick, ready_inputs
from fixate_jax.prompts import PromptParams, soft_prompt


class TrainState(NamedTuple):
    """All that changes during training."""

    prompt: PromptParams
    optimizer: Any
    step: Int[Array, ""]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What a step minimises, ntp_weight · L_NTP + λ · L_attn + beta · mean‖z‖²; λ is given step by step.

    Attributes:
        operator: how to tell where the model looks.
        alignment: how that is compared with gaze; None: next-token prediction alone.
        relevance: whose answer's relevance is aligned: the clicked slot's label (FixATE), or the model's own answer.
        ntp_weight: weight of next-token prediction.
        beta: weight of the penalty on z.
        eps: ε of slot attention.
        aligned_tokens: the first soft tokens, which learn from L_attn alone; the others then learn from L_NTP alone.
            None: all learn from both.
        part: which of the two the soft tokens learn from, where they are told apart; see :func:`objective_gradient`.
    """

    operator: Operator
    alignment: Alignment | None
    relevance: Literal["click", "own"] = "click"
    ntp_weight: float = 0.5
    beta: float = 1e-3
    eps: float = EPS
    aligned_tokens: int | None = None
    part: Literal["both", "alignment", "next_token"] = "both"

    def routed(self, soft: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
        """The soft tokens, those constant that do not learn from this part."""
        if self.part == "both":
            return soft
        assert self.aligned_tokens is not None
        aligned = jnp.arange(soft.shape[1]) < self.aligned_tokens
        learns = aligned if self.part == "alignment" else ~aligned
        return jnp.where(learns[:, None], soft, jax.lax.stop_gradient(soft))


T = TypeVar("T")
Losses = Callable[[T, Objective], tuple[Float[Array, ""], dict[str, Float[Array, ""]]]]


def objective_gradient(losses: Losses[T], own: T, objective: Objective) -> tuple[dict[str, Float[Array, ""]], T]:
    """Parts of the loss and its gradient; where soft tokens learn from one part each, that of each part's tokens.

    Args:
        losses: of parameters and objective, as :func:`session_losses` gives them.
        own: what is differentiated.
        objective: what is minimised.
    """
    gradient = jax.grad(losses, has_aux=True)
    if objective.aligned_tokens is None or objective.alignment is None:
        found, parts = gradient(own, objective)
        return parts, found
    aligned, parts = gradient(own, replace(objective, part="alignment"))
    answered, _ = gradient(own, replace(objective, part="next_token", alignment=None))
    return parts, jax.tree.map(jnp.add, aligned, answered)


def _own_answer(model: Any, prefix: Prefix, batch: Batch, end_token: int) -> Int[Array, " batch"]:
    """Slot with the most probable label; nothing is differentiated through the choice."""
    logits = jax.lax.stop_gradient(model.tail(prefix).logits)
    return jnp.argmax(label_log_probs(logits, batch, end_token), axis=-1)


def session_losses(
    prompt: PromptParams,
    model: Any,
    batch: Batch,
    objective: Objective,
    attention_weight: Float[Array, ""],
    *,
    end_token: int = 0,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The objective on one micro-batch: prefill, tail, relevance, slots, loss.

    The relevance that is aligned is that of the clicked slot's label (FixATE) or of the model's own answer, as
    ``objective.relevance`` says; `end_token` is needed for the latter where a label begins another one.

    Returns:
        The loss and its parts, each a mean over the real sessions.
    """
    chosen, inputs = batch.click[:, None], ready_inputs(model, batch, objective.operator)
    own = objective.alignment is not None and objective.relevance == "own"
    inputs = inputs if own else take_branches(inputs, chosen)
    prefix = model.prefill(inputs, objective.routed(soft_prompt(prompt, batch.user)))
    if own:
        chosen = jnp.stack([batch.click, _own_answer(model, prefix, batch, end_token)], axis=1)
        prefix = branches_of(prefix, chosen)
    ids, mask = pick(batch.answer_ids, chosen), pick(batch.answer_mask, chosen)
    alignment = None
    if objective.alignment is None:
        logits = model.tail(prefix).logits
    else:
        logits, _, attention = look_for(objective.operator, model, prefix, batch, chosen, objective.eps)
        each = objective.alignment(batch.gaze, attention[:, -1], batch.slot_mask)
        alignment = session_mean(each, batch.weight)
    total, parts = total_loss(
        ntp_weight=objective.ntp_weight,
        beta=objective.beta,
        next_token=next_token_loss(logits[:, 0], ids[:, 0], mask[:, 0], batch.weight),
        penalty=coefficient_penalty(prompt.coefficients[batch.user], batch.weight),
        alignment=alignment,
        attention_weight=attention_weight,
    )
    if objective.part == "alignment":
        assert alignment is not None
        return attention_weight * alignment, parts
    return total, parts


def loss_and_gradient(
    prompt: PromptParams,
    model: Any,
    batch: Batch,
    objective: Objective,
    attention_weight: Float[Array, ""],
    *,
    end_token: int = 0,
) -> tuple[dict[str, Float[Array, ""]], PromptParams]:
    """Loss parts and gradient over the micro-batches of an optimizer step, as one mean over their real sessions."""
    total = jnp.maximum(batch.weight.sum(), 1.0)

    def one(carry: PromptParams, micro: Batch) -> tuple[PromptParams, dict[str, Float[Array, ""]]]:
        def losses(own: PromptParams, what: Objective) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
            return session_losses(own, model, micro, what, attention_weight, end_token=end_token)

        parts, gradient = objective_gradient(losses, prompt, objective)
        share = micro.weight.sum() / total
        return jax.tree.map(lambda c, x: c + share * x, carry, gradient), jax.tree.map(lambda x: share * x, parts)

    gradient, parts = jax.lax.scan(one, jax.tree.map(jnp.zeros_like, prompt), batch)
    return jax.tree.map(lambda x: x.sum(), parts), gradient


def train_step(
    state: TrainState,
    model: Any,
    batch: Batch,
    objective: Objective,
    optimizer: optax.GradientTransformationExtraArgs,
    *,
    attention_weight: Float[Array, ""],
    rate: Float[Array, ""] | float = 1.0,
    users: int,
    end_token: int = 0,
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """One optimizer step over the micro-batches of a batch.

    Args:
        state: prompts, optimizer state and step count.
        model: the frozen model.
        batch: micro-batches along the first axis.
        objective: what to minimise.
        optimizer: of the prompts; it is told which users are ``present``.
        attention_weight: λ in this step.
        rate: factor of the updates.
        users: number of rows of z.
        end_token: see :func:`session_losses`.

    Returns:
        The next state, and the parts of the loss with the gradient norms of B and z.
    """
    parts, gradient = loss_and_gradient(state.prompt, model, batch, objective, attention_weight, end_token=end_token)
    present = jnp.zeros(users, bool).at[batch.user.ravel()].max(batch.weight.ravel() > 0)
    updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.prompt, present=present)
    prompt = optax.apply_updates(state.prompt, jax.tree.map(lambda update: rate * update, updates))
    parts |= {
        "basis_gradient": optax.global_norm(gradient.basis),
        "user_gradient": optax.global_norm(gradient.coefficients),
    }
    return TrainState(prompt, optimizer_state, state.step + 1), parts
