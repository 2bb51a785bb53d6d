"""Do slots with much attention carry the answer: deletion, insertion and the pointing game, operator by operator.

Deletion (Petsiuk et al., RISE, 2018; there with pixels, here with slots): slots are masked in order of slot attention,
the most relevant first, and the probability of the model's own answer is watched. Where relevance is faithful it falls
fast: the area under the curve is small. Insertion shows slots in the same order on a page that is masked: a large area
is good. Insertion is deletion in reverse order read backwards, so one area is also the baseline of the other.

The pointing game (Zhang et al., 2016): is the slot with most attention that of the answer.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Array, Float, Int

from fixate_jax.backbones import Backbone
from fixate_jax.data.session import StoredSession
from fixate_jax.errors import ConfigError
from fixate_jax.evaluation.statistics import bootstrap_interval, paired_wilcoxon
from fixate_jax.lab.analysis.masking import masked_log_probs
from fixate_jax.lab.config import OperatorConfig
from fixate_jax.lab.experiments.probe import probe_data
from fixate_jax.lab.parts import OPERATORS
from fixate_jax.probing.batches import Batch, SessionData, evaluation_batches
from fixate_jax.runtime.progress import Track, silent

RANDOM, ANSWER_FIRST = "random order", "answer first"
"""Orders that look at nothing: any, and the answer's own slot before all others, those in any order. An operator that
does no better than the second says no more than what was answered."""
COMMONEST, UNIFORM = "commonest slot", "any slot"
"""Pointing without looking: at the slot that is right most often in these very sessions, and at any."""
AREAS = ("deletion", "insertion")
GRID = np.linspace(0, 1, 21)
"""Shares of masked slots at which curves of pages with different numbers of slots are averaged."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is examined.

    Attributes:
        backbone: the model.
        data: the sessions.
        soft: from a batch on the host to its soft tokens; None for the backbone alone.
        batch: sessions at a time.
    """

    backbone: Backbone
    data: SessionData
    soft: Callable[[Batch], Float[Array, "batch tokens width"]] | None
    batch: int


def variants(config: OperatorConfig) -> dict[str, OperatorConfig]:
    """Every operator of the registry with the given settings, AttnLRP with both normalisations."""
    found: dict[str, OperatorConfig] = {}
    for name in OPERATORS:
        if name == "attn_lrp":
            found |= {f"{name} {how}": replace(config, name=name, normalise=how) for how in ("signed", "abs")}
        else:
            found[name] = replace(config, name=name)
    return found


def choose_variants(config: OperatorConfig, names: Sequence[str]) -> dict[str, OperatorConfig]:
    """Those of `variants` that are named; all of them where none is.

    Raises:
        ConfigError: naming the ones there are.
    """
    every = variants(config)
    unknown = [name for name in names if name not in every]
    if unknown:
        raise ConfigError(f"--operators {unknown[0]}: choose among {', '.join(every)}")
    return {name: every[name] for name in names or every}


def choose_sessions(sessions: Sequence[StoredSession], count: int, *, seed: int) -> list[StoredSession]:
    """So many sessions, as evenly from all users as can be, in random order within each.

    Args:
        sessions: to choose from.
        count: how many; all where there are fewer.
        seed: of the order.
    """
    rng = np.random.default_rng(seed)
    turns: dict[str, int] = {}
    keyed: list[tuple[int, int, int]] = []
    for place in rng.permutation(len(sessions)):
        user = sessions[place].user_id
        turns[user] = turns.get(user, -1) + 1
        keyed.append((turns[user], len(keyed), int(place)))
    return [sessions[i] for i in sorted(place for _, _, place in sorted(keyed)[:count])]


def random_curves(
    subject: Subject, *, draws: int, seed: int, first: Sequence[int] | None = None, track: Track = silent
) -> pd.DataFrame:
    """Deletion and insertion in random order, the mean over some orders: the baselines of `operator_curves`.

    Args:
        subject: model and sessions.
        draws: how many orders.
        seed: of the orders.
        first: the slot that comes before all others in each session, the model's answer (None: none does).
        track: wraps the batches in a progress bar.

    Returns:
        As `operator_curves`, of `RANDOM` or `ANSWER_FIRST`; `top` is `first`, or -1.
    """
    rng, name = np.random.default_rng(seed), RANDOM if first is None else ANSWER_FIRST
    frames = []
    for draw in range(draws):
        orders = [rng.permutation(session.slots) for session in subject.data.sessions]
        if first is not None:
            orders = [np.array([a, *order[order != a]]) for a, order in zip(first, orders, strict=True)]
        frames.append(_curves(subject, orders, first, f"{name}, {draw + 1} of {draws}", track))
    together = frames[0].assign(operator=name, top=-1 if first is None else list(first))
    for name in AREAS:
        together[name] = np.mean([frame[name] for frame in frames], axis=0)
        each = zip(*(frame[f"{name} curve"] for frame in frames), strict=True)
        together[f"{name} curve"] = [np.mean(curves, axis=0).tolist() for curves in each]
    return together


def operator_curves(
    subject: Subject,
    name: str,
    operator: OperatorConfig,
    answers: Sequence[int],
    *,
    seed: int,
    track: Track = silent,
) -> pd.DataFrame:
    """Deletion, insertion and the top slot for one operator.

    Args:
        subject: model and sessions.
        name: of the operator in the table.
        operator: its settings.
        answers: the slot that the model answers in each session; its relevance is asked for and its probability
            watched.
        seed: of the order among slots with equal attention.
        track: wraps the batches in a progress bar.

    Returns:
        A row per session: `session_id`, `user_id`, `operator`, `slots`, `click`, `answer`, `top` (slot with most
        attention), the areas `deletion` and `insertion` and the curves they belong to, with N + 1 probabilities of the
        answer among the page's labels.
    """
    looked = probe_data(
        subject.backbone,
        subject.backbone.params,
        subject.data,
        range(len(subject.data.sessions)),
        operator=operator,
        targets=dict(enumerate(answers)),
        soft=subject.soft,
        batch=subject.batch,
    )
    rng = np.random.default_rng(seed)
    # Among equal slots chance decides, not their place on the page.
    orders = [np.lexsort((rng.random(len(r.slot_attention)), -r.slot_attention)) for r in looked]
    frame = _curves(subject, orders, answers, name, track)
    return frame.assign(operator=name, top=[int(order[0]) for order in orders])


def _curves(
    subject: Subject,
    orders: Sequence[Int[np.ndarray, " _slots"]],
    answers: Sequence[int] | None,
    title: str,
    track: Track,
) -> pd.DataFrame:
    """Both curves for an order of each session's slots; of the model's own answer where none is given."""
    forward = _masked(subject, orders, f"{title}, deletion", track)
    backward = _masked(subject, [order[::-1] for order in orders], f"{title}, insertion", track)
    if answers is None:
        answers = [int(shares[0].argmax()) for shares in forward]
    rows: list[dict[str, Any]] = []
    for index, (session, answer) in enumerate(zip(subject.data.sessions, answers, strict=True)):
        curves = {"deletion": forward[index][:, answer], "insertion": backward[index][::-1, answer]}
        rows.append(
            {
                "session_id": session.session_id,
                "user_id": session.user_id,
                "slots": session.slots,
                "click": int(session.click),
                "answer": answer,
                **{name: area(curve) for name, curve in curves.items()},
                **{f"{name} curve": curve.tolist() for name, curve in curves.items()},
            }
        )
    return pd.DataFrame(rows)


def _masked(
    subject: Subject, orders: Sequence[Int[np.ndarray, " _slots"]], title: str, track: Track
) -> list[Float[np.ndarray, "_steps _slots"]]:
    """Per session the probability of every label of the page, from no slot masked to all."""
    data, found = subject.data, {}
    for rows in track(evaluation_batches(data, range(len(data.sessions)), subject.batch), title):
        batch = data.batch(rows)
        rank = np.full(batch.slot_mask.shape, batch.slot_mask.shape[1], np.int32)
        for row, index in enumerate(rows):
            if index >= 0:
                rank[row, orders[index]] = np.arange(len(orders[index]))
        log_probs = masked_log_probs(subject.backbone, subject.backbone.params, data, batch, rank, subject.soft)
        for row, index in enumerate(rows):
            slots = data.sessions[index].slots
            if index >= 0:
                odds = log_probs[: slots + 1, row, :slots].astype(np.float64)
                odds = np.exp(odds - odds.max(axis=1, keepdims=True))
                found[index] = odds / odds.sum(axis=1, keepdims=True)
    return [found[index] for index in range(len(data.sessions))]


def area(curve: Sequence[float] | Float[np.ndarray, " steps"]) -> float:
    """Area under a curve over the share of slots, 0 to 1, by the trapezoid rule; in units of probability."""
    return float(np.trapezoid(curve, dx=1 / (len(curve) - 1)))


def faithfulness_table(curves: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    """Means over users with what chance makes of them.

    Args:
        curves: the rows of `random_curves` and of `operator_curves` for some operators.
        seed: of the bootstrap.

    Returns:
        A row per operator: `sessions`, `users`; for each area the mean over users, `low` and `high` of its 95%
        bootstrap interval, and, against random order over users, `p` (Wilcoxon, paired, two-sided) and `better` (for
        how many users), and the same against the answer first where its rows are there; `points at answer` and
        `points at click`, the share of sessions whose top slot is that. Then the rows that look at nothing, for the
        pointing game alone.
    """
    baselines = {name: curves[curves["operator"] == name] for name in (RANDOM, ANSWER_FIRST)}
    rows = []
    for name, frame in curves.groupby("operator", sort=False):
        row: dict[str, Any] = {"operator": name, "sessions": len(frame), "users": frame["user_id"].nunique()}
        for kind in AREAS:
            row |= _area_columns(kind, frame, {k: other for k, other in baselines.items() if k != name}, seed=seed)
        for kind in ("answer", "click"):
            row[f"points at {kind}"] = np.nan if name == RANDOM else float((frame["top"] == frame[kind]).mean())
        rows.append(row)
    random = baselines[RANDOM]
    for name, right in _trivial(random):
        rows.append({"operator": name, "sessions": len(random), "users": random["user_id"].nunique(), **right})
    return pd.DataFrame(rows)


def _area_columns(
    kind: str, frame: pd.DataFrame, baselines: Mapping[str, pd.DataFrame], *, seed: int
) -> dict[str, Any]:
    users = frame.groupby("user_id")[kind].mean()
    interval = bootstrap_interval(users.to_numpy(float), seed=seed)
    found: dict[str, Any] = {kind: interval.mean, f"{kind} low": interval.low, f"{kind} high": interval.high}
    for name, rows in baselines.items():
        if not rows.empty:
            other = rows.groupby("user_id")[kind].mean().loc[users.index]
            test = paired_wilcoxon(users.to_numpy(float), other.to_numpy(float), lower_is_better=kind == "deletion")
            suffix = "" if name == RANDOM else f", {name}"
            found |= {f"{kind} p{suffix}": test.p_value, f"{kind} better{suffix}": float(test.better)}
    return found


def _trivial(frame: pd.DataFrame) -> Iterator[tuple[str, dict[str, float]]]:
    """What pointing comes to without looking."""
    kinds = ("answer", "click")
    yield UNIFORM, {f"points at {kind}": float((1 / frame["slots"]).mean()) for kind in kinds}
    yield COMMONEST, {f"points at {kind}": float(frame[kind].value_counts(normalize=True).max()) for kind in kinds}


def mean_curves(curves: pd.DataFrame) -> dict[str, dict[str, Float[np.ndarray, " shares"]]]:
    """Per operator both curves at `GRID`, the mean over users of the means over their sessions."""
    found: dict[str, dict[str, Float[np.ndarray, " shares"]]] = {}
    for name, frame in curves.groupby("operator", sort=False):
        found[str(name)] = {}
        for kind in AREAS:
            at = [np.interp(GRID, np.linspace(0, 1, len(curve)), curve) for curve in frame[f"{kind} curve"]]
            found[str(name)][kind] = pd.DataFrame(at).groupby(frame["user_id"].to_numpy()).mean().mean().to_numpy()
    return found
