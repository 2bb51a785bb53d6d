"""How close a method comes to people: where it looks, and what it clicks.

The array functions are JAX, batched and masked. Slot attention is first scaled to a sum of 1 over the page's slots, for
every method alike: a = M·r / (Σ M·r + ε) falls short of 1 by an amount that depends on the operator. Places in a
ranking that ties leave open count by their chance under random tie-breaking, so that a method that says nothing gains
nothing from the order of the slots; without ties these are the usual hits.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fixate_jax import objective
from fixate_jax.backbones.inputs import HostOrDevice

LOWER_IS_BETTER = frozenset({"kl", "js", "top_k_js", "log_loss"})
"""Metrics where less is better; of all others, more is."""


def normalise(attention: Float[Array, "batch slots"], mask: Bool[Array, "batch slots"]) -> Float[Array, "batch slots"]:
    """Attention scaled to a sum of 1 over the slots of the page; a page without any attention stays at 0."""
    attention = jnp.where(mask, attention, 0.0)
    return attention / jnp.maximum(attention.sum(axis=-1, keepdims=True), 1e-12)


def kl(
    gaze: Float[Array, "batch slots"], attention: Float[Array, "batch slots"], mask: Bool[Array, "batch slots"]
) -> Float[Array, " batch"]:
    """KL(g ‖ a) in nats with the ε = 1e-4 of the loss in both logarithms, so that a = 0 on a seen slot stays finite."""
    return objective.kl(gaze, normalise(attention, mask), mask)


def js(
    gaze: Float[Array, "batch slots"], attention: Float[Array, "batch slots"], mask: Bool[Array, "batch slots"]
) -> Float[Array, " batch"]:
    """Squared Jensen–Shannon distance in nats, 0 to log 2: the mean KL of g and a to their middle; exact, no ε."""
    gaze, attention = jnp.where(mask, gaze, 0.0), normalise(attention, mask)
    middle = jnp.where((gaze + attention) > 0, (gaze + attention) / 2, 1.0)

    def to_middle(share: Float[Array, "batch slots"]) -> Float[Array, "batch slots"]:
        return share * (jnp.log(jnp.where(share > 0, share, 1.0)) - jnp.where(share > 0, jnp.log(middle), 0.0))

    return jnp.maximum((to_middle(gaze) + to_middle(attention)).sum(axis=-1) / 2, 0.0)


def top_k_js(
    gaze: Float[Array, "batch slots"],
    attention: Float[Array, "batch slots"],
    mask: Bool[Array, "batch slots"],
    top_k: int,
) -> Float[Array, " batch"]:
    """`js` after both are coarsened to the top k slots of the gaze and one tail bin for all others."""
    return js(*objective.coarsen(gaze, normalise(attention, mask), mask, top_k))


def cosine(
    gaze: Float[Array, "batch slots"], attention: Float[Array, "batch slots"], mask: Bool[Array, "batch slots"]
) -> Float[Array, " batch"]:
    """Cosine similarity of g and a, 0 to 1."""
    gaze, attention = jnp.where(mask, gaze, 0.0), normalise(attention, mask)
    norms = jnp.linalg.norm(gaze, axis=-1) * jnp.linalg.norm(attention, axis=-1)
    return (gaze * attention).sum(axis=-1) / jnp.maximum(norms, 1e-12)


def top_k_chance(
    scores: Float[Array, "batch slots"], mask: Bool[Array, "batch slots"], k: int
) -> Float[Array, "batch slots"]:
    """Chance of each slot to be among the k highest scores when ties are broken at random: 1 or 0 without ties."""
    scores = jnp.where(mask, scores, -jnp.inf)
    pairs = mask[:, :, None] & mask[:, None, :]
    above = (pairs & (scores[:, None, :] > scores[:, :, None])).sum(axis=-1)
    equal = (pairs & (scores[:, None, :] == scores[:, :, None])).sum(axis=-1)
    return jnp.where(mask, jnp.clip((k - above) / jnp.maximum(equal, 1), 0.0, 1.0), 0.0)


def hit_at_k(
    scores: Float[Array, "batch slots"], click: Int[Array, " batch"], mask: Bool[Array, "batch slots"], k: int
) -> Float[Array, " batch"]:
    """Is the clicked slot among the k highest scores: CSH@k of attention, recall@k of candidate probabilities."""
    return _at(top_k_chance(scores, mask, k), click)


def tgo_at_k(
    gaze: Float[Array, "batch slots"], attention: Float[Array, "batch slots"], mask: Bool[Array, "batch slots"], k: int
) -> Float[Array, " batch"]:
    """Top-gaze overlap |top-k(a) ∩ top-k(g)| / k, with k held to the number of slots of the page."""
    both = top_k_chance(gaze, mask, k) * top_k_chance(attention, mask, k)
    return both.sum(axis=-1) / jnp.minimum(k, mask.sum(axis=-1))


def candidate_log_probs(
    log_probs: Float[Array, "batch slots"], mask: Bool[Array, "batch slots"]
) -> Float[Array, "batch slots"]:
    """Log-probabilities of the answers, softmaxed over the candidates of the page; -inf on masked slots."""
    return jax.nn.log_softmax(jnp.where(mask, log_probs, -jnp.inf), axis=-1)


def log_loss(
    log_probs: Float[Array, "batch slots"], click: Int[Array, " batch"], mask: Bool[Array, "batch slots"]
) -> Float[Array, " batch"]:
    """−log p(clicked slot) in nats."""
    return -_at(candidate_log_probs(log_probs, mask), click)


def auc(
    log_probs: Float[Array, "batch slots"], click: Int[Array, " batch"], mask: Bool[Array, "batch slots"]
) -> Float[Array, " batch"]:
    """Share of the other slots that are less probable than the clicked one, ties ½; NaN on a page of one slot."""
    others = mask & (jnp.arange(mask.shape[-1]) != click[:, None])
    clicked = _at(log_probs, click)[:, None]
    below = jnp.where(log_probs < clicked, 1.0, jnp.where(log_probs == clicked, 0.5, 0.0))
    return jnp.where(others, below, 0.0).sum(axis=-1) / others.sum(axis=-1)


def accuracy(answer: Int[np.ndarray, " batch"], click: Int[np.ndarray, " batch"]) -> Float[np.ndarray, " batch"]:
    """1 where the slot that the method would click is the one the person clicked; on the host, for any number of them.

    As a JAX function it would be compiled anew for each number of predictions.
    """
    return (answer == click).astype(np.float32)


def _at(values: Float[Array, "batch slots"], index: Int[Array, " batch"]) -> Float[Array, " batch"]:
    return jnp.take_along_axis(values, index[:, None], axis=-1)[:, 0]


@partial(jax.jit, static_argnames=("ks", "top_k"))
def attention_metrics(
    gaze: Float[Array, "batch slots"],
    attention: Float[Array, "batch slots"],
    click: Int[Array, " batch"],
    mask: Bool[Array, "batch slots"],
    *,
    ks: tuple[int, ...],
    top_k: int,
) -> dict[str, Float[Array, " batch"]]:
    rows = {
        "kl": kl(gaze, attention, mask),
        "js": js(gaze, attention, mask),
        "cosine": cosine(gaze, attention, mask),
        "top_k_js": top_k_js(gaze, attention, mask, top_k),
    }
    rows |= {f"csh@{k}": hit_at_k(attention, click, mask, k) for k in ks}
    return rows | {f"tgo@{k}": tgo_at_k(gaze, attention, mask, k) for k in ks}


@partial(jax.jit, static_argnames="ks")
def click_metrics(
    log_probs: Float[Array, "batch slots"],
    click: Int[Array, " batch"],
    mask: Bool[Array, "batch slots"],
    *,
    ks: tuple[int, ...],
) -> dict[str, Float[Array, " batch"]]:
    rows = {"log_loss": log_loss(log_probs, click, mask), "auc": auc(log_probs, click, mask)}
    return rows | {f"recall@{k}": hit_at_k(log_probs, click, mask, k) for k in ks}


@partial(jax.jit, static_argnames=("ks", "top_k"))
def page_metrics(
    gaze: Float[HostOrDevice, "batch slots"],
    attention: Float[HostOrDevice, "batch slots"],
    log_probs: Float[HostOrDevice, "batch slots"],
    click: Int[HostOrDevice, " batch"],
    mask: Bool[HostOrDevice, "batch slots"],
    *,
    ks: tuple[int, ...] = (1, 3),
    top_k: int = 5,
) -> dict[str, Float[Array, " batch"]]:
    """Every metric of each page, from arrays.

    Args:
        gaze: g.
        attention: a; a page without any counts as uniform.
        log_probs: of each slot's label as the answer.
        click: the clicked slot.
        mask: False at padding slots.
        ks: the k of csh_k, tgo_k and recall_k.
        top_k: slots that top-k JS keeps apart.

    Returns:
        kl, js, cosine, top_k_js, csh_k, tgo_k; log_loss, auc, recall_k; accuracy.
    """
    attention = jnp.where((attention.sum(-1, keepdims=True) > 0) | ~mask, attention, 1.0)
    found = attention_metrics(gaze, attention, click, mask, ks=ks, top_k=top_k)
    found |= click_metrics(log_probs, click, mask, ks=ks)
    right = jnp.argmax(jnp.where(mask, log_probs, -jnp.inf), axis=-1) == click
    return {name.replace("@", "_"): value for name, value in found.items()} | {"accuracy": right.astype(jnp.float32)}
