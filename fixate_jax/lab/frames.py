"""Predictions and their measures as tables: a row for each (session, method, mode)."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Array, Bool, Float

from fixate_jax.errors import DataError
from fixate_jax.evaluation.metrics import LOWER_IS_BETTER, accuracy, attention_metrics, click_metrics
from fixate_jax.evaluation.statistics import Interval, PairedTest, bootstrap_interval, paired_wilcoxon

KEYS = ("session_id", "user_id", "split", "method", "mode")
"""Columns that name a prediction; a frame of predictions holds one row for each (session, method, mode)."""
UNIFORM = "uniform"
"""The method that knows nothing."""
LEAST_ROWS = 256
"""Predictions that are measured at once, at least."""


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
        found = attention_metrics(*rows, ks=ks, top_k=top_k)
        columns |= {name: _spread(values, looks) for name, values in found.items()}
    clicks = frame["log_probs"].notna().to_numpy()
    if clicks.any():
        log_probs = _pad(frame[clicks], "log_probs", mask[clicks])
        _require(frame[clicks], "log_probs", np.isfinite(log_probs).all(1), "must be finite")
        found = click_metrics(*_filled_up(log_probs, click[clicks], mask[clicks]), ks=ks)
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


def reported_score(metrics: pd.DataFrame, *, looks: bool, clicks: bool) -> float:
    """What the best epoch is chosen by unless the paper's is asked for, more is better.

    Minus the mean of KL and log-loss, each divided by that of the uniform predictor on the same sessions, so that both
    count alike whatever the number of slots: -1 is the uniform predictor, 0 would be perfect. What that predictor does
    without error, as on pages of one slot, does not count.

    Args:
        metrics: from `session_metrics`, with a method `UNIFORM` next to the one that is scored.
        looks: KL counts.
        clicks: log-loss counts.
    """
    names = [name for name, counts in (("kl", looks), ("log_loss", clicks)) if counts]
    uniform = metrics["method"] == UNIFORM
    own, even = metrics[~uniform][names].mean(), metrics[uniform][names].mean()
    left = (own / even)[even > 0]
    return -float(left.mean()) if len(left) else 0.0


def with_uniform(frame: pd.DataFrame) -> pd.DataFrame:
    """Predictions, and below them what a predictor that knows nothing says of the same sessions."""
    even = [np.full(n, 1 / n) for n in frame["slots"]]
    nothing = frame.assign(method=UNIFORM, attention=even, log_probs=[np.log(share) for share in even])
    return pd.concat([frame, nothing], ignore_index=True)


def compare_methods(
    per_user: pd.DataFrame,
    metric: str,
    *,
    first: tuple[str, str],
    second: tuple[str, str],
    seed: int = 0,
) -> tuple[PairedTest, Interval]:
    """Test and interval of the difference first − second in one metric, over the users that both have.

    Args:
        per_user: from `metrics.user_means`.
        metric: a column of it.
        first: method and mode.
        second: method and mode.
        seed: of the bootstrap.

    Raises:
        DataError: a method and mode is not in the frame, or the two share no user.
    """
    both = pd.concat([_users_of(per_user, metric, key) for key in (first, second)], axis=1, join="inner").dropna()
    a, b = both.to_numpy(dtype=np.float64).T
    test = paired_wilcoxon(a, b, lower_is_better=metric in LOWER_IS_BETTER)
    return test, bootstrap_interval(a - b, seed=seed)


def _users_of(per_user: pd.DataFrame, metric: str, key: tuple[str, str]) -> pd.Series:
    rows = per_user[(per_user["method"] == key[0]) & (per_user["mode"] == key[1])]
    if rows.empty:
        known = sorted({(method, mode) for method, mode in zip(per_user["method"], per_user["mode"], strict=True)})
        raise DataError(f"there are no predictions of method {key[0]!r} in mode {key[1]!r}; there are {known}")
    return rows.set_index("user_id")[metric]


def over_seeds(summaries: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Mean and standard deviation over seeds of each metric.

    Args:
        summaries: from `metrics.summarise`, one of each seed.

    Returns:
        `method`, `mode`, `average`, `seeds` and for each metric the columns "<metric> mean" and "<metric> sd" (n − 1 in
        the denominator; NaN for a single seed).

    Raises:
        DataError: no summaries.
    """
    if not summaries:
        raise DataError("mean and deviation over seeds need at least one summary")
    keys = ["method", "mode", "average"]
    stacked = pd.concat(summaries).drop(columns=["sessions", "users"])
    groups = stacked.groupby(keys, sort=False)
    spread = groups.agg(["mean", "std"])
    spread.columns = [f"{metric} {'sd' if kind == 'std' else kind}" for metric, kind in spread.columns]
    return groups.size().rename("seeds").to_frame().join(spread).reset_index()
