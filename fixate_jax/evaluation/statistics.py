"""Is a difference between two methods more than chance: over users, and over seeds."""

from dataclasses import dataclass

import numpy as np
import scipy
from jaxtyping import Float, Int

from fixate_jax.errors import DataError


@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """Outcome of a paired, two-sided Wilcoxon signed-rank test over users.

    Attributes:
        users: number of pairs.
        better: users for whom the first method is better.
        worse: users for whom it is worse; the others are equal.
        mean_difference: mean over users of first − second, in the metric's unit.
        p_value: 1 when no user differs at all.
        smallest_p: the p-value that so few differing users could reach at best; when it is above the level wanted, the
            test cannot decide, whatever the data.
    """

    users: int
    better: int
    worse: int
    mean_difference: float
    p_value: float
    smallest_p: float


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean with its bootstrap confidence interval, all in the metric's unit."""

    mean: float
    low: float
    high: float


def paired_wilcoxon(
    first: Float[np.ndarray, " users"], second: Float[np.ndarray, " users"], *, lower_is_better: bool = False
) -> PairedTest:
    """Compare two methods on the same users with the Wilcoxon signed-rank test (Wilcoxon 1945).

    Users who are equal under both are left out of the ranks. The exact distribution is used for up to 50 users without
    equal differences, the normal approximation otherwise.

    Args:
        first: mean metric of each user under the first method.
        second: the same users under the second.
        lower_is_better: decides who counts as better.

    Raises:
        DataError: no users, or a value that is not finite.
    """
    if first.size == 0:
        raise DataError("a paired test needs at least one user who has predictions of both methods")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise DataError("a paired test needs a finite value of every user; leave out users without one")
    difference = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    moved = difference[difference != 0]
    better = int((moved < 0).sum() if lower_is_better else (moved > 0).sum())
    return PairedTest(
        users=difference.size,
        better=better,
        worse=moved.size - better,
        mean_difference=float(difference.mean()),
        p_value=float(scipy.stats.wilcoxon(moved).pvalue) if moved.size else 1.0,
        smallest_p=float(min(1.0, 2.0 ** (1 - moved.size))),
    )


def bootstrap_interval(
    values: Float[np.ndarray, " users"], *, seed: int, samples: int = 10_000, level: float = 0.95
) -> Interval:
    """Percentile bootstrap interval of the mean over users (Efron 1979).

    Args:
        values: one value per user, e.g. the difference between two methods.
        seed: of the resampling; the same seed gives the same interval.
        samples: bootstrap samples.
        level: coverage of the interval.

    Raises:
        DataError: no users, or a value that is not finite.
    """
    if values.size == 0 or not np.isfinite(values).all():
        raise DataError("a bootstrap interval needs at least one user, and a finite value of each")
    values = np.asarray(values, np.float64)
    counts = resamples(values.size, seed=seed, samples=samples)
    low, high = np.quantile(counts @ values / values.size, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean=float(values.mean()), low=float(low), high=float(high))


def resamples(size: int, *, seed: int, samples: int = 10_000) -> Int[np.ndarray, "samples size"]:
    """How often each of some users is drawn in each bootstrap sample: all that the mean of a sample depends on.

    Args:
        size: how many there are to draw from, and how many draws make a sample.
        seed: of the draws.
        samples: bootstrap samples.
    """
    return np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), size=samples)


def crossed_interval(
    values: Float[np.ndarray, "users pages"],
    *,
    users: Int[np.ndarray, "samples users"],
    pages: Int[np.ndarray, "samples pages"],
    level: float = 0.95,
) -> Interval:
    """Percentile interval of the mean where users and pages are both drawn anew (the pigeonhole bootstrap, Owen 2007).

    It says how the mean may differ for other users on other pages of the same kind. Where only noise of single visits
    is in the values it is wider than it had to be, never narrower.

    Args:
        values: of every user on every page.
        users: how often each is drawn in each sample, from `resamples`.
        pages: likewise, of another seed.
        level: coverage of the interval.

    Raises:
        DataError: a value is not finite.
    """
    if not np.isfinite(values).all():
        raise DataError("an interval over users and pages needs a finite value of each user on each page")
    values = np.asarray(values, np.float64)
    means = ((users @ values) * pages).sum(axis=1) / values.size
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean=float(values.mean()), low=float(low), high=float(high))


def holm(p_values: Float[np.ndarray, " tests"]) -> Float[np.ndarray, " tests"]:
    """p-values of a family of tests, corrected so that even one false finding is as rare as the level (Holm 1979).

    Args:
        p_values: of the tests; with m of them the smallest is multiplied by m, the next one by m − 1, and so on, none
            ending below one that was smaller.
    """
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values), np.float64)
    corrected[order] = np.minimum(np.maximum.accumulate(p_values[order] * factors), 1.0)
    return corrected
