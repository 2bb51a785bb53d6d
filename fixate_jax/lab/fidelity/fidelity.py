"""Is an emulator any good: its users beside the people they emulate, on sessions that were held out.

All of it is free-running: a method says where it looks and what it would click before it is told. Where a method says
nothing about clicks, or nothing about attention, it has no rows there. Values are means over seeds of the prompts, with
95% bootstrap intervals over users, every method on the same draws, so that differences are paired.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Float, Int

from fixate_jax.errors import DataError
from fixate_jax.evaluation import metrics
from fixate_jax.evaluation.statistics import holm, paired_wilcoxon, resamples, widening
from fixate_jax.lab.fidelity.measures import (
    bins_of,
    calibration_error,
    jensen_shannon,
    likeness,
    likeness_p,
    or_nan,
    spread,
    sums_by_user,
)

REFERENCE = "fixate"
"""The method that the others are compared with."""
UNIFORM = "uniform"
SAMPLES = 4000
"""Bootstrap samples of users."""
SIMULATIONS = 200
"""Rounds of clicks drawn from a method's own probabilities, for what it would reach if it were right."""
Kind = Literal["clicks", "attention"]


@dataclass(frozen=True, kw_only=True)
class Measure:
    """What is measured.

    Attributes:
        kind: of clicks or of attention.
        best: which way is better: lower, higher, or closer to 1.
        why: in a few words, for tables.
    """

    kind: Kind
    best: Literal["lower", "higher", "one"]
    why: str


MEASURES: Mapping[str, Measure] = {
    "ece": Measure(kind="clicks", best="lower", why="calibration error of the likeliest slot's probability"),
    "slot ece": Measure(kind="clicks", best="lower", why="calibration error of every slot's probability"),
    "log loss": Measure(kind="clicks", best="lower", why="−log p(clicked slot), nats"),
    "brier": Measure(kind="clicks", best="lower", why="squared error of the probabilities, summed over slots"),
    "click share js": Measure(kind="clicks", best="lower", why="clicks by slot, everybody together, nats"),
    "user click share js": Measure(kind="clicks", best="lower", why="clicks by slot, person by person, nats"),
    "click spread": Measure(kind="clicks", best="one", why="how much users differ ÷ how much people do"),
    "click likeness": Measure(kind="clicks", best="higher", why="do users differ as their own people do: correlation"),
    "kl": Measure(kind="attention", best="lower", why="KL(gaze ‖ attention) of a session, nats"),
    "js": Measure(kind="attention", best="lower", why="Jensen–Shannon of a session, nats"),
    "cosine": Measure(kind="attention", best="higher", why="of gaze and attention in a session"),
    "gaze share js": Measure(kind="attention", best="lower", why="attention by slot, everybody together, nats"),
    "user gaze share js": Measure(kind="attention", best="lower", why="attention by slot, person by person, nats"),
    "gaze spread": Measure(kind="attention", best="one", why="how much users differ ÷ how much people do"),
    "gaze likeness": Measure(
        kind="attention", best="higher", why="do users differ as their own people do: correlation"
    ),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Humans:
    """What people did in held-out sessions that all have the same number of slots.

    Attributes:
        users: their names.
        owner: row of the user of each session.
        click: slot clicked in each.
        gaze: g, share of the dwell time on each slot.
        left_out: sessions of pages with another number of slots.
    """

    users: tuple[str, ...]
    owner: Int[np.ndarray, " sessions"]
    click: Int[np.ndarray, " sessions"]
    gaze: Float[np.ndarray, "sessions slots"]
    left_out: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Predicted:
    """What one method predicts of the same sessions, for each seed; None where it says nothing.

    Attributes:
        attention: scaled to a sum of 1 on each page.
        clicks: probability of a click on each slot.
    """

    attention: Float[np.ndarray, "seeds sessions slots"] | None
    clicks: Float[np.ndarray, "seeds sessions slots"] | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """One measure of one method.

    Attributes:
        value: mean over seeds.
        sampled: the same in each bootstrap sample of users.
        sd: over seeds, NaN for one.
        per_user: of each user, mean over seeds; None where the measure is of everybody together.
        floor: what the method would reach on so many sessions if its click probabilities were right; NaN for attention.
    """

    value: float
    sampled: Float[np.ndarray, " samples"]
    sd: float
    per_user: Float[np.ndarray, " users"] | None
    floor: float


def gather(frames: Sequence[pd.DataFrame]) -> tuple[Humans, dict[str, Predicted]]:
    """Held-out sessions and what each method predicts of them, from frames of predictions.

    Sessions with the most common number of slots are kept, so that places can be compared, and of them those of people
    with at least two. A method "uniform" is given uniform click probabilities too.

    Args:
        frames: of each seed, as `fixate train` writes them (``seed-N/predictions-SPLIT.parquet``); of rows that are
            told the click nothing is read.

    Raises:
        DataError: the frames are not of the same sessions, fewer than two people or no ``fixate`` are in them.
    """
    free = [frame[frame["mode"] == "FR"] for frame in frames]
    if not free or any(frame.empty for frame in free):
        raise DataError("fidelity needs free-running predictions of at least one seed")
    first = free[0].drop_duplicates("session_id")
    slots = int(first["slots"].mode().iloc[0])
    kept = first[first["slots"] == slots]
    kept = kept[kept.groupby("user_id")["session_id"].transform("size") >= 2]
    names = kept["session_id"].tolist()
    users = tuple(dict.fromkeys(kept["user_id"]))
    if len(users) < 2:
        raise DataError(
            f"{len(users)} users have two sessions or more on pages of {slots} slots; fidelity needs two such users"
        )
    humans = Humans(
        users=users,
        owner=np.array([users.index(user) for user in kept["user_id"]]),
        click=kept["click"].to_numpy(np.int64),
        gaze=np.stack(kept["gaze"].to_list()).astype(np.float64),
        left_out=len(first) - len(kept),
    )
    found: dict[str, Predicted] = {}
    for method in dict.fromkeys(free[0]["method"]):
        rows = [_rows_of(frame, method, names) for frame in free]
        attention, log_probs = (_stack(rows, column) for column in ("attention", "log_probs"))
        clicks = None
        if log_probs is not None:
            odds = np.exp(log_probs - log_probs.max(axis=2, keepdims=True))
            clicks = odds / odds.sum(axis=2, keepdims=True)
        if attention is not None:
            # As in the metrics, none at all says nothing.
            attention = np.where(attention.sum(axis=2, keepdims=True) > 0, attention, 1.0)
            attention = attention / attention.sum(axis=2, keepdims=True)
        if method == UNIFORM:
            clicks = np.full((1, *humans.gaze.shape), 1 / slots)
        found[method] = Predicted(attention=attention, clicks=clicks)
    if REFERENCE not in found:
        raise DataError(f"there are no predictions of {REFERENCE!r}; there are {', '.join(found)}")
    return humans, found


def _rows_of(frame: pd.DataFrame, method: str, sessions: Sequence[str]) -> pd.DataFrame:
    rows = frame[frame["method"] == method].set_index("session_id")
    lacking = [name for name in sessions if name not in rows.index]
    if lacking:
        raise DataError(f"method {method!r}: no prediction of session {lacking[0]!r}; evaluate the run again")
    return rows.loc[list(sessions)]


def _stack(rows: Sequence[pd.DataFrame], column: str) -> Float[np.ndarray, "seeds sessions slots"] | None:
    if rows[0][column].isna().any():
        return None
    stacked = np.stack([np.stack(frame[column].to_list()) for frame in rows]).astype(np.float64)
    return stacked[:1] if len(stacked) > 1 and (stacked == stacked[:1]).all() else stacked


def measure(humans: Humans, predicted: Predicted, *, seed: int = 0) -> dict[str, Found]:
    """Every measure that a method can be put to.

    Args:
        humans: what people did.
        predicted: what the method says.
        seed: of the bootstrap and of the simulated clicks.
    """
    counts = _counts(humans, seed)
    found: dict[str, Found] = {}
    if predicted.clicks is not None:
        own = [_click_measures(humans, p, humans.click, counts) for p in predicted.clicks]
        floors = _floors(humans, predicted.clicks[0], seed)
        found |= {name: _over_seeds([one[name] for one in own], floors.get(name, np.nan)) for name in own[0]}
    if predicted.attention is not None:
        own = [_attention_measures(humans, a, counts) for a in predicted.attention]
        found |= {name: _over_seeds([one[name] for one in own], np.nan) for name in own[0]}
    return found


Values = tuple[Float[np.ndarray, " samples"], Float[np.ndarray, " users"] | None]
"""A measure in each sample of users, the first being everybody once; and of each user where it is a mean of these."""


def _counts(humans: Humans, seed: int) -> Int[np.ndarray, "samples users"]:
    drawn = resamples(len(humans.users), seed=seed, samples=SAMPLES)
    return np.concatenate([np.ones((1, len(humans.users)), drawn.dtype), drawn])


def _over_seeds(values: Sequence[Values], floor: float) -> Found:
    sampled = np.mean([one for one, _ in values], axis=0)
    known = [each for _, each in values if each is not None]
    return Found(
        value=float(sampled[0]),
        sampled=sampled[1:],
        sd=float(np.std([one[0] for one, _ in values], ddof=1)) if len(values) > 1 else float("nan"),
        per_user=np.mean(known, axis=0) if known else None,
        floor=floor,
    )


def _click_measures(
    humans: Humans,
    probabilities: Float[np.ndarray, "sessions slots"],
    click: Int[np.ndarray, " sessions"],
    counts: Int[np.ndarray, "samples users"],
) -> dict[str, Values]:
    owner, clicked = humans.owner, np.eye(probabilities.shape[1])[click]
    of_click = probabilities[np.arange(len(click)), click]
    return {
        "ece": (calibration_error(*_top(probabilities, clicked), owner, counts), None),
        "slot ece": (calibration_error(*_every(probabilities, clicked), _repeat(owner, clicked), counts), None),
        "log loss": _by_user(-np.log(np.maximum(of_click, 1e-300)), owner, counts),
        "brier": _by_user(((probabilities - clicked) ** 2).sum(axis=1), owner, counts),
        **_share_measures("click", clicked, probabilities, owner, counts),
    }


def _attention_measures(
    humans: Humans, attention: Float[np.ndarray, "sessions slots"], counts: Int[np.ndarray, "samples users"]
) -> dict[str, Values]:
    g, a = jnp.asarray(humans.gaze, jnp.float32), jnp.asarray(attention, jnp.float32)
    mask = jnp.ones(g.shape, bool)

    def each(metric: Callable[..., Float[Array, " sessions"]]) -> Values:
        return _by_user(np.asarray(metric(g, a, mask), np.float64), humans.owner, counts)

    return {
        "kl": each(metrics.kl),
        "js": each(metrics.js),
        "cosine": each(metrics.cosine),
        **_share_measures("gaze", humans.gaze, attention, humans.owner, counts),
    }


def _share_measures(
    name: str,
    theirs: Float[np.ndarray, "sessions slots"],
    ours: Float[np.ndarray, "sessions slots"],
    owner: Int[np.ndarray, " sessions"],
    counts: Int[np.ndarray, "samples users"],
) -> dict[str, Values]:
    sessions = np.bincount(owner)[:, None]
    their_sums, our_sums = (sums_by_user(x, owner) for x in (theirs, ours))
    each = jensen_shannon(their_sums / sessions, our_sums / sessions)
    return {
        f"{name} share js": (jensen_shannon(counts @ their_sums, counts @ our_sums), None),
        f"user {name} share js": (counts @ each / counts.sum(axis=1), each),
        f"{name} spread": (spread(ours, owner, counts) / or_nan(spread(theirs, owner, counts)), None),
        f"{name} likeness": (likeness(their_sums / sessions, our_sums / sessions, counts), None),
    }


def _floors(humans: Humans, probabilities: Float[np.ndarray, "sessions slots"], seed: int) -> dict[str, float]:
    rng = np.random.default_rng(seed + 1)
    everybody = np.ones((1, len(humans.users)), np.int64)
    edges = np.cumsum(probabilities, axis=1)[:, :-1]
    rounds: dict[str, list[float]] = {}
    for _ in range(SIMULATIONS):
        click = (edges <= rng.random(len(edges))[:, None]).sum(axis=1)
        for name, (value, _) in _click_measures(humans, probabilities, click, everybody).items():
            if MEASURES[name].best == "lower":
                rounds.setdefault(name, []).append(float(value[0]))
    return {name: float(np.mean(values)) for name, values in rounds.items()}


def measures_table(humans: Humans, predicted: Mapping[str, Predicted], *, seed: int = 0) -> pd.DataFrame:
    """A row for each measure and method.

    Calibration errors and shares are above 0 by chance alone: compare them with the floor.

    Columns: ``measure``, ``kind``, ``best``, ``method``, ``value``, ``low`` and ``high`` (95% over users), ``sd`` over
    seeds, ``floor`` (what the method would reach if it were right, clicks only), ``difference`` (FixATE − method),
    ``difference low``, ``difference high``, ``p`` (paired Wilcoxon over users, where the measure is a mean over users;
    likeness: FixATE's own users against users handed out at random) and ``p holm``, corrected over the table.

    Args:
        humans: what people did.
        predicted: method → what it says, ``fixate`` among them.
        seed: of everything drawn.
    """
    found = {method: measure(humans, what, seed=seed) for method, what in predicted.items()}
    rows: list[dict[str, Any]] = []
    for name, about in MEASURES.items():
        ours = found[REFERENCE].get(name)
        for method in (method for method in found if name in found[method]):
            value = found[method][name]
            low, high = _interval(value.value, value.sampled, len(humans.users))
            low = max(low, 0.0) if about.best != "higher" else low  # Distances, errors and spreads cannot be below.
            row = {"measure": name, "kind": about.kind, "best": about.best, "method": method, "value": value.value}
            row |= {"low": low, "high": high, "sd": value.sd, "floor": value.floor}
            if method != REFERENCE and ours is not None:
                lower, tested = about.best == "lower", about.best != "one"
                row |= _difference(ours, value, users=len(humans.users), lower=lower, tested=tested)
            elif method == REFERENCE and name.endswith("likeness"):
                row["p"] = likeness_p(*_means(humans, predicted[method], about.kind), seed=seed)
            rows.append(row)
    table = pd.DataFrame(rows).round(9)
    tested = table["p"].notna()
    table.loc[tested, "p holm"] = holm(table.loc[tested, "p"].to_numpy(np.float64))
    return table


def _difference(ours: Found, theirs: Found, *, users: int, lower: bool, tested: bool) -> dict[str, float]:
    difference = ours.value - theirs.value
    low, high = _interval(difference, ours.sampled - theirs.sampled, users)
    row = {"difference": difference, "difference low": low, "difference high": high}
    if tested and ours.per_user is not None and theirs.per_user is not None:
        row["p"] = paired_wilcoxon(ours.per_user, theirs.per_user, lower_is_better=lower).p_value
    return row


def _interval(value: float, sampled: Float[np.ndarray, " samples"], users: int) -> tuple[float, float]:
    """95% of the samples, moved to lie about the value and as much wider as so few users ask for.

    Drawing people with replacement adds noise, and noise makes calibration errors and distances larger; without moving
    them the samples would lie beside the value.
    """
    known = sampled[np.isfinite(sampled)]
    if not np.isfinite(value) or not len(known):
        return float("nan"), float("nan")
    low, high = widening(users) * (np.quantile(known, [0.025, 0.975]) - known.mean()) + value
    return float(low), float(high)


def _means(
    humans: Humans, predicted: Predicted, kind: Kind
) -> tuple[Float[np.ndarray, "users slots"], Float[np.ndarray, "users slots"]]:
    ours = predicted.clicks if kind == "clicks" else predicted.attention
    assert ours is not None
    theirs = np.eye(humans.gaze.shape[1])[humans.click] if kind == "clicks" else humans.gaze
    sessions = np.bincount(humans.owner)[:, None]
    return sums_by_user(theirs, humans.owner) / sessions, sums_by_user(ours.mean(axis=0), humans.owner) / sessions


def reliability_table(humans: Humans, predicted: Mapping[str, Predicted], *, seed: int = 0) -> pd.DataFrame:
    """The reliability curve of every slot's click probability: a row for each method and bin.

    Columns: ``method``, ``bin``, ``predictions``, ``predicted`` (mean), ``observed`` (share that was clicked), ``low``
    and ``high`` of it (95% over users); all seeds together.
    """
    counts = _counts(humans, seed)
    rows: list[dict[str, Any]] = []
    for method, what in predicted.items():
        if what.clicks is None:
            continue
        seeds = len(what.clicks)
        clicked = np.tile(np.eye(humans.gaze.shape[1])[humans.click], (seeds, 1))
        p, happened = _every(what.clicks.reshape(clicked.shape), clicked)
        owner = _repeat(np.tile(humans.owner, seeds), clicked)
        bins = bins_of(p)
        for b in range(int(bins.max()) + 1):
            here = bins == b
            sums, hits = (np.bincount(owner[here], x[here], len(humans.users)) for x in (np.ones_like(p), happened))
            sampled = (counts[1:] @ hits) / or_nan(counts[1:] @ sums)
            low, high = np.nanquantile(sampled, [0.025, 0.975])
            row = {"method": method, "bin": b, "predictions": int(here.sum()), "predicted": float(p[here].mean())}
            rows.append(row | {"observed": float(happened[here].mean()), "low": low, "high": high})
    return pd.DataFrame(rows)


def slots_table(humans: Humans, predicted: Mapping[str, Predicted], *, seed: int = 0) -> pd.DataFrame:
    """The position curves: share of clicks and of attention on each slot, of people and of every method.

    Columns: ``kind``, ``method`` ("people" first), ``slot`` (from 0, in the order of the page's labels), ``share``,
    ``low`` and ``high`` (95% over users); everybody together, means over seeds.
    """
    counts = _counts(humans, seed)
    curves: list[tuple[Kind, str, Float[np.ndarray, "sessions slots"]]] = [
        ("clicks", "people", np.eye(humans.gaze.shape[1])[humans.click]),
        *(("clicks", name, what.clicks.mean(axis=0)) for name, what in predicted.items() if what.clicks is not None),
        ("attention", "people", humans.gaze),
        *(
            ("attention", name, what.attention.mean(axis=0))
            for name, what in predicted.items()
            if what.attention is not None
        ),
    ]
    rows: list[dict[str, Any]] = []
    for kind, method, values in curves:
        sampled = counts @ sums_by_user(values, humans.owner)
        sampled = sampled / sampled.sum(axis=1, keepdims=True)
        low, high = np.quantile(sampled[1:], [0.025, 0.975], axis=0)
        for slot, share in enumerate(sampled[0]):
            row = {"kind": kind, "method": method, "slot": slot, "share": share}
            rows.append(row | {"low": low[slot], "high": high[slot]})
    return pd.DataFrame(rows)


def _top(
    probabilities: Float[np.ndarray, "sessions slots"], clicked: Float[np.ndarray, "sessions slots"]
) -> tuple[Float[np.ndarray, " sessions"], Float[np.ndarray, " sessions"]]:
    """The highest probability of each session, and whether it was that slot; ties share the click."""
    highest = probabilities.max(axis=1)
    tied = probabilities == highest[:, None]
    return highest, (clicked * tied).sum(axis=1) / tied.sum(axis=1)


def _every(
    probabilities: Float[np.ndarray, "sessions slots"], clicked: Float[np.ndarray, "sessions slots"]
) -> tuple[Float[np.ndarray, " predictions"], Float[np.ndarray, " predictions"]]:
    return probabilities.ravel(), clicked.ravel()


def _repeat(
    owner: Int[np.ndarray, " sessions"], like: Float[np.ndarray, "sessions slots"]
) -> Int[np.ndarray, " predictions"]:
    return np.repeat(owner, like.shape[1])


def _by_user(
    values: Float[np.ndarray, " sessions"],
    owner: Int[np.ndarray, " sessions"],
    counts: Int[np.ndarray, "samples users"],
) -> Values:
    each = np.bincount(owner, values) / np.bincount(owner)
    return counts @ each / counts.sum(axis=1), each
