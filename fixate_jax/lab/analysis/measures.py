"""Array functions of the analysis: halves of people's sessions, means of other sessions, gaze beside the click.

Nothing is measured on what it was taken from: means come from the other half of the sessions, or from all others.
"""

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from fixate_jax.errors import DataError
from fixate_jax.evaluation.statistics import Interval, bootstrap_interval, paired_wilcoxon, widening
from fixate_jax.objective import EPS

SHUFFLES = 999
"""Of the permutation test; its p-value is at least 1 / (SHUFFLES + 1)."""
RESAMPLES = 2_000
"""Bootstrap samples of people for the split-half correlation."""
NO_SPREAD = 1e-20
"""Sums of squares of shares below this are rounding errors."""


def random_halves(
    gaze: Float[np.ndarray, "sessions slots"], user: Int[np.ndarray, " sessions"], *, halvings: int, seed: int
) -> tuple[Float[np.ndarray, "halvings users slots"], Float[np.ndarray, "halvings users slots"]]:
    """Mean gaze of each person in two random halves of their sessions, many times.

    Args:
        gaze: share of the dwell time on each slot.
        user: 0 to users − 1, the person of each session.
        halvings: how often; a person's odd session goes to the second half.
        seed: the same seed gives the same halves.

    Raises:
        DataError: a person has fewer than 2 sessions.
    """
    sizes = np.bincount(user)
    if sizes.min() < 2:
        raise DataError(f"person {int(sizes.argmin())} has {sizes.min()} session(s), two halves need at least 2")
    starts = np.cumsum(sizes) - sizes
    cuts = np.stack([starts, starts + sizes // 2], axis=1).ravel()
    counts = np.stack([sizes // 2, sizes - sizes // 2], axis=1).reshape(-1, 1)
    rng = np.random.default_rng(seed)
    means = np.empty((halvings, cuts.size, gaze.shape[1]))
    for halving in means:
        order = np.lexsort((rng.random(user.size), user))
        halving[:] = np.add.reduceat(gaze[order], cuts) / counts
    return means[:, 0::2], means[:, 1::2]


def split_half_correlation(
    first: Float[np.ndarray, "halvings users slots"], second: Float[np.ndarray, "halvings users slots"]
) -> Float[np.ndarray, " halvings"]:
    """Pearson correlation over people × slots of what each half has beyond the mean over people of that half.

    1: each person's pattern is the same in both halves; 0: no more alike than two people's; NaN: people do not differ.
    """
    first, second = first - first.mean(axis=1, keepdims=True), second - second.mean(axis=1, keepdims=True)
    # Both have mean 0 over people for each slot, and so over all of them.
    norm = np.sqrt((first**2).sum(axis=(1, 2)) * (second**2).sum(axis=(1, 2)))
    return np.where(norm > NO_SPREAD, (first * second).sum(axis=(1, 2)) / np.where(norm > 0, norm, 1.0), np.nan)


def correlation_interval(
    first: Float[np.ndarray, "halvings users slots"],
    second: Float[np.ndarray, "halvings users slots"],
    *,
    seed: int,
    level: float = 0.95,
) -> Interval:
    """Mean over halvings of the split-half correlation, with a bootstrap interval over people: percentiles, as much
    further from the mean as so few people ask for (:func:`fixate_jax.evaluation.statistics.widening`).

    Centred anew in each sample of people. A sample that is one person many times has no correlation and is left out.
    """
    mean = float(split_half_correlation(first, second).mean())
    if np.isnan(mean):
        return Interval(mean=mean, low=mean, high=mean)
    users = first.shape[1]
    # How often each person is drawn is all that a sample's moments depend on.
    drawn = np.random.default_rng(seed).multinomial(users, np.full(users, 1 / users), size=RESAMPLES) / users
    total = np.zeros(RESAMPLES)
    for a, b in zip(first, second, strict=True):
        a, b = a - a.mean(axis=0), b - b.mean(axis=0)
        mean_a, mean_b = drawn @ a, drawn @ b
        cross, square_a, square_b = (
            drawn @ (x * y).sum(axis=1) - (mean_x * mean_y).sum(axis=1)
            for x, y, mean_x, mean_y in ((a, b, mean_a, mean_b), (a, a, mean_a, mean_a), (b, b, mean_b, mean_b))
        )
        spread = (square_a > 1e-9 * (a**2).sum()) & (square_b > 1e-9 * (b**2).sum())
        total += np.where(spread, cross / np.sqrt(np.where(spread, square_a * square_b, 1.0)), np.nan)
    bounds = np.nanquantile(total / len(first), [(1 - level) / 2, (1 + level) / 2])
    low, high = np.clip(mean + widening(users, level=level) * (bounds - mean), -1.0, 1.0)
    return Interval(mean=mean, low=float(low), high=float(high))


def spearman_brown(correlation: float) -> float:
    """Reliability of the mean over all sessions from the correlation of halves, 2r / (1 + r) (Spearman, Brown 1910).

    Below 0 with |r| in the denominator, which keeps it in −1..1 (Krus and Helmstadter 1993).
    """
    return 2 * correlation / (1 + abs(correlation))


def identified(
    first: Float[np.ndarray, "halvings users slots"], second: Float[np.ndarray, "halvings users slots"]
) -> Float[np.ndarray, "halvings users"]:
    """Is a person's other half the nearest of all people's: share of the two searches, first → second and back.

    Nearest is the smallest KL(half ‖ other half). Ties count by their chance, so people who are alike get 1/users.
    """
    return (_found(first, second) + _found(second, first)) / 2


def _found(
    seeking: Float[np.ndarray, "halvings users slots"], sought: Float[np.ndarray, "halvings users slots"]
) -> Float[np.ndarray, "halvings users"]:
    found = np.empty(seeking.shape[:2])
    for row, a, b in zip(found, seeking, sought, strict=True):
        # KL less the entropy of a, which is the same for every candidate.
        distance = -(a @ np.log(b + EPS).T)
        best = distance <= distance.min(axis=1, keepdims=True) + 1e-12
        row[:] = np.diag(best) / best.sum(axis=1)
    return found


def people_differ(gaze: Float[np.ndarray, "sessions slots"], user: Int[np.ndarray, " sessions"], *, seed: int) -> float:
    """p-value of the permutation test that everybody's gaze comes from one and the same distribution.

    The share of shufflings of the sessions among people (each keeps their number of sessions) whose people differ as
    much: Σ_u ‖mean of u − mean over people‖², as in Anderson (2001), Austral Ecology 26.
    """
    sizes = np.bincount(user)
    starts = np.cumsum(sizes) - sizes
    rows = gaze[np.argsort(user, kind="stable")]

    def spread(rows: Float[np.ndarray, "sessions slots"]) -> float:
        means = np.add.reduceat(rows, starts) / sizes[:, None]
        return float(((means - means.mean(axis=0)) ** 2).sum())

    found, rng = spread(rows), np.random.default_rng(seed)
    least = found * (1 - 1e-9) - NO_SPREAD
    as_much = sum(spread(rng.permutation(rows)) >= least for _ in range(SHUFFLES))
    return (1 + as_much) / (1 + SHUFFLES)


def click_relation(
    gaze: Float[np.ndarray, "sessions slots"],
    click: Int[np.ndarray, " sessions"],
    mask: Bool[np.ndarray, "sessions slots"],
) -> pd.DataFrame:
    """How gaze goes with the click, session by session.

    Args:
        gaze: share of the dwell time on each slot.
        click: the clicked slot.
        mask: True on slots that the page has.

    Returns:
        `longest_clicked`: the slot watched longest is the clicked one, 0 or 1 (1/k where k slots tie);
        `clicked_gaze`: share of gaze on the clicked slot; `auc`: share of the other slots watched for less time than
        the clicked one, ties ½; `chance`: 1/slots, for the first two.

    Raises:
        DataError: a page has fewer than 2 slots.
    """
    slots = mask.sum(axis=1)
    if slots.min() < 2:
        raise DataError("how gaze goes with the click can only be asked of pages with at least 2 slots")
    own = np.take_along_axis(gaze, click[:, None], axis=1)
    others = mask & (np.arange(mask.shape[1]) != click[:, None])
    longest = np.where(mask, gaze, -np.inf).max(axis=1, keepdims=True)
    tied = (mask & (gaze == longest)).sum(axis=1, keepdims=True)
    below = ((others & (gaze < own)) + 0.5 * (others & (gaze == own))).sum(axis=1)
    return pd.DataFrame(
        {
            "longest_clicked": np.where(own == longest, 1 / tied, 0.0)[:, 0],
            "clicked_gaze": own[:, 0],
            "auc": below / (slots - 1),
            "chance": 1 / slots,
        }
    )


def over_users(
    values: Float[np.ndarray, " users"],
    sessions: Int[np.ndarray, " users"],
    *,
    against: Float[np.ndarray, " users"] | None,
    seed: int,
    lower_is_better: bool = False,
) -> dict[str, float | int | None]:
    """Means of a measure over sessions and over people, and whether it beats another, person by person.

    Args:
        values: mean over each person's sessions.
        sessions: of each person.
        against: what it is compared with, person by person; None: with nothing.
        seed: of the bootstrap.
        lower_is_better: decides for whom it is better.

    Returns:
        `micro`, the mean over sessions; `macro`, the mean over people, with its 95% bootstrap interval `low` and
        `high`; `better`, for how many people it is better, and `p` of the paired Wilcoxon test over people (None and
        NaN without `against`); `users` and `sessions`, their numbers.
    """
    interval = bootstrap_interval(values, seed=seed)
    row: dict[str, float | int | None] = {
        "micro": float(values @ sessions / sessions.sum()),
        "macro": interval.mean,
        "low": interval.low,
        "high": interval.high,
        "better": None,
        "p": np.nan,
    }
    if against is not None:
        # Means that differ by rounding alone are equal.
        same = np.isclose(values, against, rtol=0, atol=1e-12)
        test = paired_wilcoxon(values, np.where(same, values, against), lower_is_better=lower_is_better)
        row |= {"better": test.better, "p": test.p_value}
    return row | {"users": values.size, "sessions": int(sessions.sum())}


def user_means(
    values: Float[np.ndarray, "sessions ..."], user: Int[np.ndarray, " sessions"]
) -> Float[np.ndarray, "users ..."]:
    """Mean over each person's sessions."""
    sums = np.zeros((int(user.max()) + 1, *values.shape[1:]))
    np.add.at(sums, user, values)
    return (sums.T / np.bincount(user)).T


def mean_of_others(
    values: Float[np.ndarray, "sessions slots"], group: Int[np.ndarray, " sessions"]
) -> Float[np.ndarray, "sessions slots"]:
    """For each session the mean over all other sessions of its group; NaN where there is none."""
    counts = np.bincount(group)[group][:, None] - 1
    sums = np.zeros((int(group.max()) + 1, values.shape[1]))
    np.add.at(sums, group, values)
    # Rounding must not push a share below 0.
    return np.where(counts > 0, np.maximum(sums[group] - values, 0.0) / np.maximum(counts, 1), np.nan)
