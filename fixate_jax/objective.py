"""What tuning minimises: next-token prediction of the click, alignment of slot attention with gaze, a penalty on z.

All functions are pure JAX, work on a batch and are masked, since pages differ in their number of slots. In every
signature `gaze` is the human distribution g, `slot_attention` the model's a (it sums to 1 or slightly less),
`slot_mask` is True on slots that the page has, and `weight` is 1 for real sessions and 0 for the rows that pad a batch.

The objective (FixATE) is L = ntp_weight · L_NTP + λ(t) · L_attn + β · mean‖z‖².
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

EPS = 1e-4
"""ε inside the logarithms of the alignment losses."""
WEIGHT_EPS = 1e-8
"""Added to g before it is raised to the power γ."""


def session_mean(values: Float[Array, " batch"], weight: Float[Array, " batch"]) -> Float[Array, ""]:
    """Mean over the real sessions of a batch; 0 for a batch without any."""
    kept = jnp.where(weight > 0, values * weight, 0.0)
    return kept.sum() / jnp.maximum(weight.sum(), 1.0)


def importance_weights(
    gaze: Float[Array, "batch slots"], slot_mask: Bool[Array, "batch slots"], gamma: float
) -> Float[Array, "batch slots"]:
    """Importance of each slot, ω_n ∝ (g_n + 1e-8)^γ, Σω = 1 over the page (FixATE); γ = 0 means none, ω = 1.

    At small γ the weights are therefore about 1/N on a page of N slots, and not 1 as at γ = 0. The scale moves the
    balance with the other losses, never an alignment loss's minimiser.

    Returns:
        Weights, 0 on masked slots.
    """
    if gamma == 0:
        return jnp.where(slot_mask, 1.0, 0.0)
    # Through a softmax, since powers of small shares leave the range of float32 when γ is large.
    exponents = gamma * jnp.log(jnp.where(slot_mask, gaze, 0.0) + WEIGHT_EPS)
    return jnp.where(slot_mask, jax.nn.softmax(jnp.where(slot_mask, exponents, -1e30), axis=-1), 0.0)


def weighted_kl(
    gaze: Float[Array, "batch slots"],
    slot_attention: Float[Array, "batch slots"],
    slot_mask: Bool[Array, "batch slots"],
    gamma: float,
) -> Float[Array, " batch"]:
    """Importance-weighted KL, Σ_n ω_n g_n (log(g_n + ε) − log(a_n + ε)), per session in nats (FixATE objective).

    For γ > 0 it is no proper score: over Σa = 1 it is smallest at a ∝ ω·g, which is sharper than g, and it can be
    negative there. `i_divergence` has no such bias.
    """
    gaze, slot_attention = jnp.where(slot_mask, gaze, 0.0), jnp.where(slot_mask, slot_attention, 0.0)
    terms = gaze * (jnp.log(gaze + EPS) - jnp.log(slot_attention + EPS))
    return (importance_weights(gaze, slot_mask, gamma) * terms).sum(axis=-1)


def kl(
    gaze: Float[Array, "batch slots"],
    slot_attention: Float[Array, "batch slots"],
    slot_mask: Bool[Array, "batch slots"],
) -> Float[Array, " batch"]:
    """Plain KL(g ‖ a) = Σ_n g_n (log(g_n + ε) − log(a_n + ε)), per session in nats: `weighted_kl` with γ = 0."""
    return weighted_kl(gaze, slot_attention, slot_mask, 0.0)


def coarsen(
    gaze: Float[Array, "batch slots"],
    slot_attention: Float[Array, "batch slots"],
    slot_mask: Bool[Array, "batch slots"],
    top_k: int,
) -> tuple[Float[Array, "batch slots+1"], Float[Array, "batch slots+1"], Bool[Array, "batch slots+1"]]:
    """Keep the k slots with the most gaze apart and pool all others in one tail bin.

    Returns:
        Gaze, attention and mask over slots + 1 bins: the top k at their own places, the tail last. Pooled slots are
        masked and 0, and so is the tail of a page with at most k slots. Equal gaze at the border is decided by slot
        order.
    """
    order = jnp.argsort(jnp.where(slot_mask, -gaze, jnp.inf), axis=-1, stable=True)
    rank = jnp.argsort(order, axis=-1)
    top = slot_mask & (rank < top_k)
    rest = slot_mask & ~top

    def pool(share: Float[Array, "batch slots"]) -> Float[Array, "batch bins"]:
        tail = jnp.where(rest, share, 0.0).sum(axis=-1, keepdims=True)
        return jnp.concatenate([jnp.where(top, share, 0.0), tail], axis=-1)

    mask = jnp.concatenate([top, rest.any(axis=-1, keepdims=True)], axis=-1)
    return pool(gaze), pool(slot_attention), mask


def coarse_kl(
    gaze: Float[Array, "batch slots"],
    slot_attention: Float[Array, "batch slots"],
    slot_mask: Bool[Array, "batch slots"],
    gamma: float,
    top_k: int,
) -> Float[Array, " batch"]:
    """`weighted_kl` over the top k slots of the gaze plus one tail bin, with weights from the coarsened gaze."""
    return weighted_kl(*coarsen(gaze, slot_attention, slot_mask, top_k), gamma)


def i_divergence(
    gaze: Float[Array, "batch slots"],
    slot_attention: Float[Array, "batch slots"],
    slot_mask: Bool[Array, "batch slots"],
    gamma: float,
) -> Float[Array, " batch"]:
    """Weighted I-divergence, Σ_n ω_n (g_n log(g_n/a_n) − g_n + a_n), per session in nats.

    ε is added to g and a alike, so it is never negative, and zero only at a = g whatever the weights, also when a is
    not held to Σa = 1 (generalised KL; Csiszár 1975). With γ > 0 slots that were never looked at weigh next to
    nothing: attention leaves them because it is drawn to the others.
    """
    seen, attended = jnp.where(slot_mask, gaze, 0.0) + EPS, jnp.where(slot_mask, slot_attention, 0.0) + EPS
    terms = seen * (jnp.log(seen) - jnp.log(attended)) - seen + attended
    return (importance_weights(gaze, slot_mask, gamma) * terms).sum(axis=-1)


@runtime_checkable
class Alignment(Protocol):
    """How slot attention is compared with gaze: one number a page.

    Any function of these three arrays. It has to be hashable: a function, or an object that is equal to others with the
    same settings. Padding slots are False in the mask and must not count.
    """

    def __call__(
        self,
        gaze: Float[Array, "batch slots"],
        slot_attention: Float[Array, "batch slots"],
        slot_mask: Bool[Array, "batch slots"],
        /,
    ) -> Float[Array, " batch"]:
        """The loss of each page."""

    def __hash__(self) -> int: ...


@dataclass(frozen=True)
class BoundAlignment:
    """An alignment loss with its settings; two with the same settings are equal.

    Attributes:
        function: of gaze, slot attention, mask and the settings.
        settings: names and values.
    """

    function: Callable[..., Float[Array, " batch"]]
    settings: tuple[tuple[str, Any], ...] = ()

    def __call__(
        self,
        gaze: Float[Array, "batch slots"],
        slot_attention: Float[Array, "batch slots"],
        slot_mask: Bool[Array, "batch slots"],
        /,
    ) -> Float[Array, " batch"]:
        return self.function(gaze, slot_attention, slot_mask, **dict(self.settings))


def next_token_loss(
    logits: Float[Array, "batch answer vocab"],
    target_ids: Int[Array, "batch answer"],
    target_mask: Bool[Array, "batch answer"],
    weight: Float[Array, " batch"],
) -> Float[Array, ""]:
    """L_NTP: cross-entropy of the answer tokens, mean over a session's tokens, then over the real sessions, in nats.

    Args:
        logits: at the positions that predict the answer tokens; any float type, the loss is taken in float32.
        target_ids: the answer tokens, without an end token; any valid id where masked.
        target_mask: True on answer tokens.
        weight: 1 for real sessions.
    """
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    picked = jnp.take_along_axis(log_probs, target_ids[..., None], axis=-1)[..., 0]
    tokens = jnp.maximum(target_mask.sum(axis=-1), 1)
    return session_mean(-jnp.where(target_mask, picked, 0.0).sum(axis=-1) / tokens, weight)


def attention_weight_schedule(step: Int[Array, ""] | int, *, final: float, warmup: int) -> Float[Array, ""]:
    """λ(t): 0 for the first w optimizer steps, then linear over w steps up to the final weight (FixATE objective).

    Args:
        step: number of optimizer steps already taken; λ is full from step 2w on.
        final: λ in the end.
        warmup: w; 0 means that λ is constant.
    """
    if warmup == 0:
        return jnp.asarray(final, jnp.float32)
    ramp = (jnp.asarray(step, jnp.float32) - warmup) / warmup
    return final * jnp.clip(ramp, 0.0, 1.0)


def coefficient_penalty(z_rows: Float[Array, "batch basis"], weight: Float[Array, " batch"]) -> Float[Array, ""]:
    """Mean over the real sessions of ‖z_u‖², with one row of user coefficients a session."""
    return session_mean(jnp.square(z_rows).sum(axis=-1), weight)


def loss_parts(*, aligned: bool) -> tuple[str, ...]:
    """Names of the parts that `total_loss` returns."""
    return ("loss", "next_token", "penalty", *(("alignment", "attention_weight") if aligned else ()))


def total_loss(
    *,
    ntp_weight: float,
    beta: float,
    next_token: Float[Array, ""],
    penalty: Float[Array, ""],
    alignment: Float[Array, ""] | None,
    attention_weight: Float[Array, ""],
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """L = ntp_weight · L_NTP + λ · L_attn + β · mean‖z‖² (FixATE objective).

    Args:
        ntp_weight: weight of next-token prediction.
        beta: β.
        next_token: from `next_token_loss`.
        penalty: from `coefficient_penalty`.
        alignment: mean over the sessions of an `Alignment`; None when tuning without alignment.
        attention_weight: λ at this step, from `attention_weight_schedule`.

    Returns:
        The loss, and its parts before weighting, named as `loss_parts` says.
    """
    loss = ntp_weight * next_token + beta * penalty
    parts = {"next_token": next_token, "penalty": penalty}
    if alignment is not None:
        loss = loss + attention_weight * alignment
        parts |= {"alignment": alignment, "attention_weight": attention_weight}
    return loss, {"loss": loss} | parts
