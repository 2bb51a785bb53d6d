"""What fidelity is measured by, over samples of users: calibration, shares by slot, how much users differ."""

import numpy as np
from jaxtyping import Float, Int

BINS = 10
"""Of the reliability curve; each holds as many predictions, where equal ones do not keep them together."""
PERMUTATIONS = 10_000


def calibration_error(
    predicted: Float[np.ndarray, " predictions"],
    happened: Float[np.ndarray, " predictions"],
    owner: Int[np.ndarray, " predictions"],
    counts: Int[np.ndarray, "samples users"],
) -> Float[np.ndarray, " samples"]:
    """Expected calibration error Σ_b n_b/n · |mean predicted − mean happened|, over bins of equally many predictions.

    The bins are those of all predictions together; a sample weights each prediction by how often its user is drawn
    (Naeini et al. 2015; equal counts after Nguyen and O'Connor 2015).

    Args:
        predicted: probabilities.
        happened: 1 where it came true, 0 where not.
        owner: row of the user of each prediction.
        counts: how often each user is in each sample.
    """
    bins, users = bins_of(predicted), counts.shape[1]
    places = owner * (int(bins.max()) + 1) + bins
    gap = np.bincount(places, predicted - happened, users * (int(bins.max()) + 1)).reshape(users, -1)
    error: Float[np.ndarray, " samples"] = np.abs(counts @ gap).sum(axis=1) / (counts @ np.bincount(owner))
    return error


def bins_of(predicted: Float[np.ndarray, " predictions"]) -> Int[np.ndarray, " predictions"]:
    """Which of up to `BINS` bins each prediction is in, by quantiles; equal predictions share one."""
    edges = np.unique(np.quantile(predicted, np.linspace(0, 1, BINS + 1)[1:-1]))
    return np.unique(np.searchsorted(edges, predicted, side="right"), return_inverse=True)[1]


def jensen_shannon(
    first: Float[np.ndarray, "*rows slots"], second: Float[np.ndarray, "*rows slots"]
) -> Float[np.ndarray, "*rows"]:
    """Squared Jensen–Shannon distance in nats of rows that are scaled to a sum of 1; 0 to log 2."""
    p, q = (x / x.sum(axis=-1, keepdims=True) for x in (first, second))
    middle = (p + q) / 2

    def to_middle(share: Float[np.ndarray, "*rows slots"]) -> Float[np.ndarray, "*rows slots"]:
        return share * np.log(np.where(share > 0, share, 1.0) / np.where(share > 0, middle, 1.0))

    distance: Float[np.ndarray, "*rows"] = np.maximum((to_middle(p) + to_middle(q)).sum(axis=-1) / 2, 0.0)
    return distance


def spread(
    values: Float[np.ndarray, "sessions slots"],
    owner: Int[np.ndarray, " sessions"],
    counts: Int[np.ndarray, "samples users"],
) -> Float[np.ndarray, " samples"]:
    """How much users differ in their mean share by slot, with what a few sessions differ by chance taken off.

    The square root of Σ_slots (variance of the users' means − mean over users of s²_u / n_u), the between-user
    component of an analysis of variance; 0 where users differ less than chance would have it. What is taken off is
    unbiased, so that few sessions do not pass for differences between people.

    Args:
        values: shares by slot of each session.
        owner: row of the user of each session; each has two sessions at least.
        counts: how often each user is in each sample.
    """
    sessions = np.bincount(owner)[:, None]
    means = sums_by_user(values, owner) / sessions
    noise = (sums_by_user((values - means[owner]) ** 2, owner) / (sessions * (sessions - 1))).sum(axis=1)
    weights = counts / counts.sum(axis=1, keepdims=True)
    users = counts.shape[1]
    variance = (weights @ means**2 - (weights @ means) ** 2).sum(axis=1) * users / (users - 1)
    between: Float[np.ndarray, " samples"] = np.sqrt(np.maximum(variance - weights @ noise, 0.0))
    return between


def likeness(
    theirs: Float[np.ndarray, "users slots"],
    ours: Float[np.ndarray, "users slots"],
    counts: Int[np.ndarray, "samples users"],
) -> Float[np.ndarray, " samples"]:
    """Correlation of users' deviations from the mean user with those of their own people, over users and slots.

    0 where users do not differ. Noise of the people's means is not taken off: even a perfect emulator stays below 1.

    Args:
        theirs: people's mean shares.
        ours: users' mean shares.
        counts: how often each user is in each sample.
    """
    weights = counts / counts.sum(axis=1, keepdims=True)

    def product(a: Float[np.ndarray, "users slots"], b: Float[np.ndarray, "users slots"]) -> np.ndarray:
        return (weights @ (a * b) - (weights @ a) * (weights @ b)).sum(axis=1)

    scale = np.sqrt(np.maximum(product(theirs, theirs) * product(ours, ours), 0.0))
    r: Float[np.ndarray, " samples"] = np.where(scale > 1e-12, product(theirs, ours) / np.maximum(scale, 1e-12), 0.0)
    return r


def likeness_p(theirs: Float[np.ndarray, "users slots"], ours: Float[np.ndarray, "users slots"], *, seed: int) -> float:
    """One-sided p of the likeness where users are handed to people at random, own pairs among them."""
    rng = np.random.default_rng(seed)
    a, b = theirs - theirs.mean(axis=0), ours - ours.mean(axis=0)
    products = a @ b.T
    rows = np.arange(len(a))
    drawn = np.array([products[rows, rng.permutation(len(a))].sum() for _ in range(PERMUTATIONS)])
    return float((1 + (drawn >= np.trace(products) - 1e-12).sum()) / (1 + PERMUTATIONS))


def sums_by_user(
    values: Float[np.ndarray, "sessions slots"], owner: Int[np.ndarray, " sessions"]
) -> Float[np.ndarray, "users slots"]:
    """Sum over each user's sessions."""
    sums = np.stack([np.bincount(owner, column) for column in values.T], axis=1)
    return sums


def or_nan(values: Float[np.ndarray, " samples"]) -> Float[np.ndarray, " samples"]:
    """NaN in place of 0, to divide by."""
    return np.where(values > 0, values, np.nan)
