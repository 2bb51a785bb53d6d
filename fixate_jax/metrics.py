"""How close a method comes to people: where it looks, and what it clicks.

The array functions are JAX, batched and masked. Slot attention is first scaled to a sum of 1 over the page's slots, for
every method alike: a = M·r / (Σ M·r + ε) falls short of 1 by an amount that depends on the operator. Places in a
ranking that ties leave open count by their chance under random tie-breaking, so that a method that says nothing gains
nothing from the order of the slots; without ties these are the usual hits.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Bool, Float, Int

from fixate_jax import objective
from fixate_jax.backbones.inputs import HostOrDevice
from fixate_jax.errors import DataError

KEYS = ("session_id", "user_id", "split", "method", "mode")
"""Columns that name a prediction; a frame of predictions holds one row for each (session, method, mode)."""

LOWER_IS_BETTER = frozenset({"kl", "js", "top_k_js", "log_loss"})
"""Metrics where less is better; of all others, more is."""

LEAST_ROWS = 256
"""Predictions that are measured at once, at least."""


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
def _attention_metrics(
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
def _click_metrics(
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
    found = _attention_metrics(gaze, attention, click, mask, ks=ks, top_k=top_k)
    found |= _click_metrics(log_probs, click, mask, ks=ks)
    right = jnp.argmax(jnp.where(mask, log_probs, -jnp.inf), axis=-1) == click
    return {name.replace("@", "_"): value for name, value in found.items()} | {"accuracy": right.astype(jnp.float32)}


def session_metrics(frame: pd.DataFrame, *, ks: tuple[int, ...] = (1, 3), top_k: int = 5) -> pd.DataFrame:
    """Every metric of every prediction.

    Slot attention that is 0 everywhere, an operator having found nothing on any slot, says nothing and counts as
    uniform.

    Args:
        frame: one row for each (session, method, mode) with the columns `session_id`, `user_id`, `split`, `method`,
            `mode`, `slots`, `click`, `answer` (-1: no click predicted), `gaze`, `attention` and `log_probs` (a value
            for each slot; None where the method predicts none).
        ks: the k of CSH@k, TGO@k and recall@k.
        top_k: slots that top-k JS keeps apart.

    Returns:
        `KEYS` and a column for each metric; NaN where a method does not predict what the metric needs.

    Raises:
        DataError: naming the first session and field that cannot be used.
    """
    missing = {*KEYS, "slots", "click", "answer", "gaze", "attention", "log_probs"} - set(frame.columns)
    if missing:
        raise DataError(f"predictions lack the columns {sorted(missing)}")
    if frame.empty:
        raise DataError("there are no predictions; at least one row is needed")
    slots = frame["slots"].to_numpy(dtype=np.int32)
    click = frame["click"].to_numpy(dtype=np.int32)
    _require(frame, "click", (click >= 0) & (click < slots), "must be a slot of the page")
    mask = np.arange(slots.max())[None, :] < slots[:, None]
    columns: dict[str, Float[np.ndarray, " rows"]] = {}

    looks = frame["attention"].notna().to_numpy()
    if looks.any():
        gaze, attention = (_pad(frame[looks], name, mask[looks]) for name in ("gaze", "attention"))
        for name, values in (("gaze", gaze), ("attention", attention)):
            good = np.isfinite(values).all(1) & (values >= 0).all(1)
            _require(frame[looks], name, good, "must be finite and not negative")
        _require(frame[looks], "gaze", gaze.sum(1) > 0, "must be above 0 on some slot")
        attention = np.where(attention.sum(1, keepdims=True) > 0, attention, mask[looks])
        rows = _filled_up(gaze, attention, click[looks], mask[looks])
        found = _attention_metrics(*rows, ks=ks, top_k=top_k)
        columns |= {name: _spread(values, looks) for name, values in found.items()}
    clicks = frame["log_probs"].notna().to_numpy()
    if clicks.any():
        log_probs = _pad(frame[clicks], "log_probs", mask[clicks])
        _require(frame[clicks], "log_probs", np.isfinite(log_probs).all(1), "must be finite")
        found = _click_metrics(*_filled_up(log_probs, click[clicks], mask[clicks]), ks=ks)
        columns |= {name: _spread(values, clicks) for name, values in found.items()}
    answer = frame["answer"].to_numpy(dtype=np.int32)
    # In float64 as all others: pandas 2 keeps float32 in means, pandas 3 does not.
    right = np.asarray(accuracy(answer, click), np.float64)
    columns["accuracy"] = np.where(answer >= 0, right, np.nan)
    return pd.concat([frame[list(KEYS)].reset_index(drop=True), pd.DataFrame(columns)], axis=1)


def _require(frame: pd.DataFrame, name: str, good: Bool[np.ndarray, " rows"], wanted: str) -> None:
    if not good.all():
        row = frame.iloc[int(np.argmin(good))]
        raise DataError(
            f"prediction of {row['method']!r} ({row['mode']}) for session {row['session_id']!r}, "
            f"field {name!r} = {row[name]}: {wanted}"
        )


def _pad(frame: pd.DataFrame, name: str, mask: Bool[np.ndarray, "rows slots"]) -> Float[np.ndarray, "rows slots"]:
    values = frame[name].to_list()
    lengths = np.array([len(row) for row in values])
    _require(frame, name, lengths == mask.sum(axis=1), "needs one value for each slot")
    padded = np.zeros(mask.shape, np.float32)
    padded[mask] = np.concatenate([np.asarray(row, np.float32) for row in values])
    return padded


def _spread(values: Float[Array, " filled"], rows: Bool[np.ndarray, " rows"]) -> Float[np.ndarray, " rows"]:
    spread = np.full(rows.shape, np.nan)
    spread[rows] = np.asarray(values)[: rows.sum()]
    return spread


def _filled_up(*arrays: np.ndarray) -> list[np.ndarray]:
    """Rows repeated up to a power of two, so that few numbers of predictions need a compilation of their own."""
    rows = len(arrays[0])
    size = max(LEAST_ROWS, 1 << (rows - 1).bit_length())
    return [array[np.arange(size) % rows] for array in arrays]


def metric_columns(metrics: pd.DataFrame) -> list[str]:
    """The metrics of a frame made by `session_metrics`."""
    return [name for name in metrics.columns if name not in KEYS]


def user_means(metrics: pd.DataFrame, names: Sequence[str] | None = None) -> pd.DataFrame:
    """Mean over each user's sessions, per method and mode.

    Args:
        metrics: from `session_metrics`.
        names: the metrics wanted (None: all).

    Returns:
        `method`, `mode`, `user_id` and the metrics, methods in order of first appearance.
    """
    names = metric_columns(metrics) if names is None else list(names)
    return metrics.groupby(["method", "mode", "user_id"], sort=False)[names].mean().reset_index()


def summarise(metrics: pd.DataFrame) -> pd.DataFrame:
    """Means over sessions and over users of every metric, per method and mode.

    Args:
        metrics: from `session_metrics`, usually of one split.

    Returns:
        `method`, `mode`, `average` ("micro": over sessions; "macro": over the means of users), `sessions`, `users`
        and the metrics; two rows for each method and mode, methods in order of first appearance.
    """
    names = metric_columns(metrics)
    groups = ["method", "mode"]
    by_method = metrics.groupby(groups, sort=False)
    counts = by_method.agg(sessions=("session_id", "nunique"), users=("user_id", "nunique"))
    micro = counts.join(by_method[names].mean()).assign(average="micro")
    macro = counts.join(user_means(metrics).groupby(groups, sort=False)[names].mean()).assign(average="macro")
    both = pd.concat([micro, macro]).loc[counts.index].reset_index()
    return both[[*groups, "average", "sessions", "users", *names]]


def selection_score(means: Mapping[str, float], *, free_running: bool) -> float:
    """What the best epoch is chosen by (FixATE), more is better.

    0.10 cos + 0.20 CSH@1 + 0.25 CSH@3 + 0.20 TGO@3 − 0.10 top-k JS, and + 0.25 accuracy when free-running.

    Args:
        means: mean of each metric over the validation sessions, e.g. a row of `summarise`.
        free_running: relevance was taken for the model's own answer, whose accuracy then counts too.

    Raises:
        DataError: a metric is missing or NaN.
    """
    weights = {"cosine": 0.10, "csh@1": 0.20, "csh@3": 0.25, "tgo@3": 0.20, "top_k_js": -0.10}
    if free_running:
        weights["accuracy"] = 0.25
    unknown = [name for name in weights if name not in means or np.isnan(means[name])]
    if unknown:
        raise DataError(f"the selection score needs {unknown}, which are missing or NaN in the validation metrics")
    return float(sum(weight * means[name] for name, weight in weights.items()))
