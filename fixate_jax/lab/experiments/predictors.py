"""Predictors that need no model: what a tuned model has to beat.

Each is fit on training sessions only. Predictors of gaze say nothing about the click and the other way round. Those
told the true click stand beside teacher-forced relevance, which is told it too (mode "TF"); all others are "FR".
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy
from jaxtyping import Bool, Float, Int

from fixate_jax.data.session import StoredSession
from fixate_jax.errors import DataError

EXPECTED_VALUE = "expected_value"
"""Slot feature that `highest_expected_value` clicks by."""
RIDGE = 1e-3
"""Half the factor of the squared coefficients in the regressions, per session; features have unit variance."""
PRIOR_SESSIONS = 3.0
"""Strength of the population's click frequencies and mean gaze in a user's, counted in sessions."""
SHARE_FLOOR = 1e-4
"""Added to mean gaze before its logarithm is taken."""
TINY = 1e-300
"""Smallest probability whose logarithm is taken."""


@dataclass(frozen=True, kw_only=True)
class _Table:
    """Sessions as padded arrays; 0 on masked slots."""

    users: list[str]
    gaze: Float[np.ndarray, "sessions slots"]
    click: Int[np.ndarray, " sessions"]
    mask: Bool[np.ndarray, "sessions slots"]
    features: Float[np.ndarray, "sessions slots features"]

    @property
    def width(self) -> int:
        return self.mask.shape[1]


def trivial_predictions(
    train: Sequence[StoredSession],
    test: Sequence[StoredSession],
    *,
    slot_feature_names: Sequence[str],
    signal: str = "fixation",
    gaze_temperature: float = 1.0,
) -> pd.DataFrame:
    """Predictions of every model-free predictor for some sessions.

    Gaze: `uniform`; `population_mean`; `user_mean`; `user_mean_shrunk`, the user's sessions together with 3 sessions'
    worth of the population's mean, which matters where a user has few sessions or looks at few slots in each;
    `content_regression`, a_n ∝ exp(log(user mean)_n + w·x_n) with w fit by KL; `personal_content_regression`, the same
    with w + w_u; and, told the click, `population_mean_given_click` and `user_mean_given_click`. Means are taken by
    slot index over the pages that have the slot and scaled to a sum of 1 over the slots of the page at hand. The others
    are not shrunk: where a user has no session with the click (or no session at all), the mean of the user (or of the
    population) stands in.

    Clicks: `majority_click`, the user's most frequent slot, its probabilities the user's frequencies together with
    3 sessions' worth of the population's; `content_click`, a conditional logit (McFadden 1974) on x with slot
    intercepts; `personal_content_click`, the same with coefficients w + w_u; `highest_expected_value`, where there is
    such a feature, which gives no probabilities.

    x_n holds the slot's features, with mean 0 and deviation 1 over the training slots, and for each whether it is the
    highest and whether it is the lowest of the page: people look more at what stands out.

    Args:
        train: sessions to fit on.
        test: sessions to predict.
        slot_feature_names: names of the columns of `Session.slot_features`.
        signal: which dwell signal is the gaze.
        gaze_temperature: τ of the gaze, see `Session.gaze`.

    Returns:
        One row for each (session, method), in the columns that `metrics.session_metrics` reads.

    Raises:
        DataError: no training or test sessions, a session without the signal, or features that do not fit their names.
    """
    if not train or not test:
        raise DataError(f"the predictors need training and test sessions, got {len(train)} and {len(test)}")
    width = max(session.slots for session in (*train, *test))
    fitted = _table(train, width, slot_feature_names, signal, gaze_temperature)
    wanted = _table(test, width, slot_feature_names, signal, gaze_temperature)
    wanted = _standardise(wanted, like=fitted)
    fitted = _standardise(fitted, like=fitted)
    means = _Means(fitted)
    frames = [
        _rows(test, wanted, method, mode, attention=attention)
        for method, mode, attention in [
            ("uniform", "FR", wanted.mask / wanted.mask.sum(axis=1, keepdims=True)),
            ("population_mean", "FR", means.predict(wanted, by_user=False, by_click=False)),
            ("user_mean", "FR", means.predict(wanted, by_user=True, by_click=False)),
            ("user_mean_shrunk", "FR", means.shrunk(wanted)),
            ("content_regression", "FR", _content_gaze(means, fitted, wanted, personal=False)),
            ("personal_content_regression", "FR", _content_gaze(means, fitted, wanted, personal=True)),
            ("population_mean_given_click", "TF", means.predict(wanted, by_user=False, by_click=True)),
            ("user_mean_given_click", "TF", means.predict(wanted, by_user=True, by_click=True)),
        ]
    ]
    frames += [
        _rows(test, wanted, method, "FR", log_probs=log_probs)
        for method, log_probs in [
            ("majority_click", _click_frequencies(fitted, wanted)),
            ("content_click", _content_click(fitted, wanted, personal=False)),
            ("personal_content_click", _content_click(fitted, wanted, personal=True)),
        ]
    ]
    if EXPECTED_VALUE in slot_feature_names:
        value = wanted.features[:, :, list(slot_feature_names).index(EXPECTED_VALUE)]
        answer = np.argmax(np.where(wanted.mask, value, -np.inf), axis=1)
        frames.append(_rows(test, wanted, "highest_expected_value", "FR", answer=answer))
    return pd.concat(frames, ignore_index=True)


def _table(
    sessions: Sequence[StoredSession], width: int, names: Sequence[str], signal: str, temperature: float
) -> _Table:
    gaze = np.zeros((len(sessions), width))
    features = np.zeros((len(sessions), width, len(names)))
    for row, session in enumerate(sessions):
        if signal not in session.dwell_ms:
            raise DataError(
                f"session {session.session_id!r}, field 'dwell_ms': no signal {signal!r}, "
                f"only {sorted(session.dwell_ms)}; choose one of these as data.signal"
            )
        if session.slot_features.shape[1] != len(names):
            raise DataError(
                f"session {session.session_id!r}, field 'slot_features': {session.slot_features.shape[1]} columns "
                f"for the {len(names)} names {list(names)}"
            )
        gaze[row, : session.slots] = session.gaze(signal, temperature)
        features[row, : session.slots] = session.slot_features
    slots = np.array([session.slots for session in sessions])
    return _Table(
        users=[session.user_id for session in sessions],
        gaze=gaze,
        click=np.array([session.click for session in sessions]),
        mask=np.arange(width)[None, :] < slots[:, None],
        features=features,
    )


def _standardise(table: _Table, *, like: _Table) -> _Table:
    """Features with the mean 0 and the deviation 1 that they have on the slots of `like`; constant ones become 0."""
    shown = like.features[like.mask]
    deviation = shown.std(axis=0)
    scaled = (table.features - shown.mean(axis=0)) / np.where(deviation > 0, deviation, 1.0)
    return _Table(
        users=table.users,
        gaze=table.gaze,
        click=table.click,
        mask=table.mask,
        features=np.where(table.mask[:, :, None], scaled, 0.0),
    )


class _Means:
    """Mean gaze by slot index: of everybody, of each user, and of both by the clicked slot."""

    def __init__(self, table: _Table) -> None:
        keys: dict[tuple[str | None, int | None], list[int]] = {}
        for row, (user, click) in enumerate(zip(table.users, table.click.tolist(), strict=True)):
            for key in ((user, click), (user, None), (None, click), (None, None)):
                keys.setdefault(key, []).append(row)
        self._means = {key: self._mean(table.gaze[rows], table.mask[rows]) for key, rows in keys.items()}
        self._pages = {user: table.mask[rows].sum(axis=0) for (user, click), rows in keys.items() if click is None}

    @staticmethod
    def _mean(
        gaze: Float[np.ndarray, "sessions slots"], mask: Bool[np.ndarray, "sessions slots"]
    ) -> Float[np.ndarray, " slots"]:
        """NaN for a slot that none of the pages has."""
        pages = mask.sum(axis=0)
        return np.where(pages > 0, gaze.sum(axis=0) / np.maximum(pages, 1), np.nan)

    def predict(self, table: _Table, *, by_user: bool, by_click: bool) -> Float[np.ndarray, "sessions slots"]:
        predicted = np.zeros(table.mask.shape)
        for row, (user, click) in enumerate(zip(table.users, table.click.tolist(), strict=True)):
            asked: list[tuple[str | None, int | None]] = [(user, click)] if by_user and by_click else []
            asked += [(user, None)] if by_user else [(None, click)] if by_click else []
            slots = int(table.mask[row].sum())
            predicted[row, :slots] = self._first_known([*asked, (None, None)], slots)
        return predicted

    def shrunk(self, table: _Table) -> Float[np.ndarray, "sessions slots"]:
        """The user's sessions together with ``PRIOR_SESSIONS`` of the population's mean."""
        population, nothing = self._means[None, None], np.zeros(table.width)
        predicted = np.zeros(table.mask.shape)
        for row, user in enumerate(table.users):
            slots, pages = int(table.mask[row].sum()), self._pages.get(user, nothing)
            own = np.nan_to_num(self._means.get((user, None), nothing))
            mean = (pages * own + PRIOR_SESSIONS * population) / (pages + PRIOR_SESSIONS)
            share = np.where(np.isnan(mean[:slots]), 1 / slots, mean[:slots])
            predicted[row, :slots] = share / share.sum() if share.sum() > 0 else 1 / slots
        return predicted

    def _first_known(self, keys: Sequence[tuple[str | None, int | None]], slots: int) -> Float[np.ndarray, " slots"]:
        """The mean of the first key that knows these slots; what it does not know comes from the next ones."""
        share = np.full(slots, np.nan)
        for key in keys:
            mean = self._means.get(key, np.full(slots, np.nan))[:slots]
            share = np.where(np.isnan(share), mean, share)
            share = np.full(slots, np.nan) if np.nansum(share) == 0 else share
        share = np.where(np.isnan(share), 1 / slots, share)
        return share / share.sum()


def _softmax(
    scores: Float[np.ndarray, "sessions slots"], mask: Bool[np.ndarray, "sessions slots"]
) -> Float[np.ndarray, "sessions slots"]:
    scores = np.where(mask, scores, -np.inf)
    odds = np.exp(scores - scores.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)


class _SoftmaxRegression:
    """p_n ∝ exp(offset_n + (w + w_u)·x_n), fit by cross-entropy with a ridge on w and w_u; w_u = 0 if not personal."""

    def __init__(
        self,
        table: _Table,
        target: Float[np.ndarray, "sessions slots"],
        features: Float[np.ndarray, "sessions slots features"],
        *,
        offset: Float[np.ndarray, "sessions slots"] | float = 0.0,
        personal: bool,
    ) -> None:
        self._rows = {user: row for row, user in enumerate(dict.fromkeys(table.users), start=1)} if personal else {}
        rows, shape = self._row_of(table), (len(self._rows) + 1, features.shape[2])

        def loss(flat: Float[np.ndarray, " parameters"]) -> tuple[float, Float[np.ndarray, " parameters"]]:
            weights = flat.reshape(shape)
            share = self._share(weights, rows, features, offset, table.mask)
            entropy = -(target * np.log(np.maximum(share, TINY))).sum(axis=1).mean()
            each = np.einsum("sn,snf->sf", share - target, features) / len(target)
            gradient = 2 * RIDGE * weights
            np.add.at(gradient, rows, np.where(rows[:, None] > 0, each, 0.0))
            gradient[0] += each.sum(axis=0)
            return float(entropy + RIDGE * (weights**2).sum()), gradient.ravel()

        # SciPy cannot minimise over no parameters at all.
        start = np.zeros(shape)
        fit = scipy.optimize.minimize(loss, start.ravel(), jac=True, method="L-BFGS-B").x if start.size else start
        self._weights = np.asarray(fit).reshape(shape)

    def _row_of(self, table: _Table) -> Int[np.ndarray, " sessions"]:
        """Row of each session's w_u; row 0, which holds w itself, stands for users not fitted."""
        return np.array([self._rows.get(user, 0) for user in table.users])

    @staticmethod
    def _share(
        weights: Float[np.ndarray, "rows features"],
        rows: Int[np.ndarray, " sessions"],
        features: Float[np.ndarray, "sessions slots features"],
        offset: Float[np.ndarray, "sessions slots"] | float,
        mask: Bool[np.ndarray, "sessions slots"],
    ) -> Float[np.ndarray, "sessions slots"]:
        own = np.where(rows[:, None] > 0, weights[rows], 0.0)
        return _softmax(offset + np.einsum("snf,sf->sn", features, weights[0] + own), mask)

    def predict(
        self,
        table: _Table,
        features: Float[np.ndarray, "sessions slots features"],
        *,
        offset: Float[np.ndarray, "sessions slots"] | float = 0.0,
    ) -> Float[np.ndarray, "sessions slots"]:
        return self._share(self._weights, self._row_of(table), features, offset, table.mask)


def _displayed(table: _Table) -> Float[np.ndarray, "sessions slots columns"]:
    """What a person can read off a slot: its values, and whether each is the highest or the lowest of the page."""
    mask, values = table.mask[:, :, None], table.features
    high = values == np.where(mask, values, -np.inf).max(axis=1, keepdims=True)
    low = values == np.where(mask, values, np.inf).min(axis=1, keepdims=True)
    return np.where(mask, np.concatenate([values, high, low], axis=2), 0.0)


def _content_gaze(
    means: _Means, fitted: _Table, wanted: _Table, *, personal: bool
) -> Float[np.ndarray, "sessions slots"]:
    def offset(table: _Table) -> Float[np.ndarray, "sessions slots"]:
        return np.log(means.predict(table, by_user=True, by_click=False) + SHARE_FLOOR)

    model = _SoftmaxRegression(fitted, fitted.gaze, _displayed(fitted), offset=offset(fitted), personal=personal)
    return model.predict(wanted, _displayed(wanted), offset=offset(wanted))


def _content_click(fitted: _Table, wanted: _Table, *, personal: bool) -> Float[np.ndarray, "sessions slots"]:
    def with_intercepts(table: _Table) -> Float[np.ndarray, "sessions slots columns"]:
        slot = np.broadcast_to(np.eye(table.width), (len(table.users), table.width, table.width))
        return np.concatenate([_displayed(table), slot], axis=2)

    model = _SoftmaxRegression(fitted, np.eye(fitted.width)[fitted.click], with_intercepts(fitted), personal=personal)
    return np.log(np.maximum(model.predict(wanted, with_intercepts(wanted)), TINY))


def _click_frequencies(fitted: _Table, wanted: _Table) -> Float[np.ndarray, "sessions slots"]:
    """Log-probabilities; the population's frequencies are themselves smoothed by one click on every slot."""
    one_hot = np.eye(fitted.width)
    population = one_hot[fitted.click].sum(axis=0) + 1
    counts: dict[str, Float[np.ndarray, " slots"]] = {}
    for user, click in zip(fitted.users, fitted.click, strict=True):
        counts[user] = counts.get(user, np.zeros(fitted.width)) + one_hot[click]
    none = np.zeros(fitted.width)
    own = np.stack([counts.get(user, none) for user in wanted.users])
    odds = np.where(wanted.mask, own + PRIOR_SESSIONS * population / population.sum(), 1.0)
    return np.log(odds / np.where(wanted.mask, odds, 0.0).sum(axis=1, keepdims=True))


def _rows(
    sessions: Sequence[StoredSession],
    table: _Table,
    method: str,
    mode: str,
    *,
    attention: Float[np.ndarray, "sessions slots"] | None = None,
    log_probs: Float[np.ndarray, "sessions slots"] | None = None,
    answer: Int[np.ndarray, " sessions"] | None = None,
) -> pd.DataFrame:
    def lists(values: Float[np.ndarray, "sessions slots"] | None) -> list[list[float] | None]:
        if values is None:
            return [None] * len(sessions)
        return [row[: session.slots].tolist() for row, session in zip(values, sessions, strict=True)]

    if log_probs is not None:
        answer = np.argmax(np.where(table.mask, log_probs, -np.inf), axis=1)
    return pd.DataFrame(
        {
            "session_id": [session.session_id for session in sessions],
            "user_id": [session.user_id for session in sessions],
            "split": [session.split for session in sessions],
            "method": method,
            "mode": mode,
            "slots": [session.slots for session in sessions],
            "click": [session.click for session in sessions],
            "answer": np.full(len(sessions), -1) if answer is None else answer,
            "gaze": lists(table.gaze),
            "attention": lists(attention),
            "log_probs": lists(log_probs),
        }
    )
