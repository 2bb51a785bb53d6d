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
    """A mean with its confidence interval, all in the metric's unit."""

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


FEWEST = 8
"""People from whom on a bootstrap of their spread is of any use."""


def bootstrap_interval(
    values: Float[np.ndarray, " users"], *, seed: int, samples: int = 10_000, level: float = 0.95
) -> Interval:
    """Studentised interval of the mean over users, see :func:`studentised_bounds`; of one user there is none (NaN).

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
    counts = resamples(values.size, seed=seed, samples=samples)
    low, high = studentised_bounds(np.asarray(values, np.float64)[:, None], counts, level=level)
    return Interval(mean=float(values.mean()), low=float(low[0]), high=float(high[0]))


def studentised_bounds(
    values: Float[np.ndarray, "users things"], counts: Int[np.ndarray, "samples users"], *, level: float = 0.95
) -> tuple[Float[np.ndarray, " things"], Float[np.ndarray, " things"]]:
    """Bounds of means over users that hold for few of them: Student's interval, or the bootstrap-t if that is wider.

    The percentiles of resampled means are too near each other by √((n − 1)/n) and do not know that the spread is itself
    guessed: for pure noise of 3 users they leave out 0 in a quarter of all cases. Student's interval is right for
    normal noise of any number of users; the bootstrap-t (Efron 1982; Hesterberg 2015) also knows a skewed one, but
    needs some users to learn it from.

    Args:
        values: of every user, for any number of things.
        counts: how often each user is drawn in each sample, from :func:`resamples`.
        level: coverage of each interval.

    Returns:
        Lower and upper bounds, NaN for a single user.
    """
    users, alpha = len(values), (1 - level) / 2
    if users < 2:
        return np.full(values.shape[1], np.nan), np.full(values.shape[1], np.nan)
    mean = values.mean(axis=0)
    # From the mean, so that squares of values that are alike do not cancel; what rounding leaves of equal ones is 0.
    apart = np.where(np.ptp(values, axis=0) > 1e-12 * np.abs(values).max(axis=0), values - mean, 0.0)
    error = np.sqrt((apart**2).sum(axis=0) / (users - 1) / users)
    reach = scipy.stats.t.ppf(1 - alpha, users - 1)
    low, high = np.full_like(mean, -reach), np.full_like(mean, reach)
    if users >= FEWEST:
        moved = counts @ apart / users
        spread = np.sqrt(np.maximum(counts @ apart**2 / users - moved**2, 0.0) / (users - 1))
        # Samples of equal values, as where few users differ at all, tell nothing of the spread.
        told = spread > 1e-9 * np.abs(apart).max(axis=0)
        ratio = np.divide(moved, spread, out=np.full_like(moved, np.nan), where=told)
        enough = told.mean(axis=0) > 0.5
        ratio[:, ~enough] = 0.0
        least, most = np.nanquantile(ratio, [alpha, 1 - alpha], axis=0, method="nearest")
        low, high = np.minimum(low, -most), np.maximum(high, -least)
    return mean + low * error, mean + high * error


def resamples(size: int, *, seed: int, samples: int = 10_000) -> Int[np.ndarray, "samples size"]:
    """How often each of some users is drawn in each bootstrap sample: all that the mean of a sample depends on.

    Args:
        size: how many there are to draw from, and how many draws make a sample.
        seed: of the draws.
        samples: bootstrap samples.
    """
    return np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), size=samples)


def widening(users: int, *, level: float = 0.95) -> float:
    """By how much percentile intervals of a bootstrap over so few users have to be wider (Hesterberg 2015).

    Student's quantile over the normal's, times √(n/(n − 1)); NaN for a single user.
    """
    if users < 2:
        return float("nan")
    upper = (1 + level) / 2
    student = scipy.stats.t.ppf(upper, users - 1) / scipy.stats.norm.ppf(upper)
    return float(student * np.sqrt(users / (users - 1)))


def crossed_interval(values: Float[np.ndarray, "users pages"], *, level: float = 0.95) -> Interval:
    """Interval of a mean that is to hold for other users on other pages of the same kind.

    The variances of the users' means and of the pages' means add up (as in the pigeonhole bootstrap, Owen 2007), and
    Student's quantile has as many degrees of freedom as the fewer of the two allow. Where only noise of single visits
    is in the values it is wider than it had to be, never narrower.

    Args:
        values: of every user on every page; there must be two of each at least.
        level: coverage of the interval.

    Raises:
        DataError: a value is not finite, or there is only one user or one page.
    """
    if not np.isfinite(values).all():
        raise DataError("an interval over users and pages needs a finite value of each user on each page")
    if min(values.shape) < 2:
        raise DataError(
            f"an interval over users and pages needs two of each, got {values.shape[0]} × {values.shape[1]}"
        )
    values = np.asarray(values, np.float64)
    sizes = np.array([values.shape[0], values.shape[1]])
    variances = np.array([values.mean(axis=1).var(ddof=1), values.mean(axis=0).var(ddof=1)]) / sizes
    mean, total = float(values.mean()), variances.sum()
    half = float(scipy.stats.t.ppf((1 + level) / 2, sizes.min() - 1) * np.sqrt(total))
    return Interval(mean=mean, low=mean - half, high=mean + half)


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
