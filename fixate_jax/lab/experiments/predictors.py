"""Predictors that need no model: what a tuned model has to beat.

Each is fit on training sessions only, and how strongly it leans on what is common is chosen on validation sessions, as
a model's settings are. Predictors of gaze say nothing about the click and the other way round. Those told the true
click stand beside teacher-forced relevance, which is told it too (mode "TF"); all others are "FR".
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd
import scipy
from jaxtyping import Bool, Float, Int
from threadpoolctl import threadpool_limits

from fixate_jax.data.session import StoredSession
from fixate_jax.errors import DataError

EXPECTED_VALUE = "expected_value"
"""Slot feature that `highest_expected_value` clicks by."""
RIDGE = 1e-3
"""Half the factor of the squared coefficients in the regressions, per session; features have unit variance."""
RIDGES = (0.3, 0.1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5)
"""Those that are tried where there are validation sessions."""
PRECISION = 1e-8
"""Relative gain at which a regression is taken to be fitted."""
PRIOR_SESSIONS = 3.0
"""Strength of the population's click frequencies and mean gaze in a user's, counted in sessions."""
PRIORS = (0.3, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0, 40.0, 80.0)
"""Those that are tried where there are validation sessions."""
SHARE_FLOOR = 1e-4
"""Added to mean gaze before its logarithm is taken."""
TINY = 1e-300
"""Smallest probability whose logarithm is taken."""
T = TypeVar("T")
Shares = Float[np.ndarray, "sessions slots"]


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
    validation: Sequence[StoredSession] = (),
    hidden: Sequence[str] = (),
    signal: str = "fixation",
    gaze_temperature: float = 1.0,
) -> pd.DataFrame:
    """Predictions of every model-free predictor for some sessions.

    Gaze: `uniform`; `population_mean`; `user_mean`; `user_mean_shrunk`, the user's sessions together with some
    sessions' worth of the population's mean, which matters where a user has few sessions or looks at few slots in each;
    `content_regression`, a_n ∝ exp(log(shrunk mean)_n + w·x_n) with w fit by KL, the mean of a training session being
    that of the user's *other* sessions; `personal_content_regression`, the same with w + w_u; and, told the click,
    `population_mean_given_click` and `user_mean_given_click`. Means are taken by slot index over the pages that have
    the slot and scaled to a sum of 1 over the slots of the page at hand. The others are not shrunk: where a user has no
    session with the click (or no session at all), the mean of the user (or of the population) stands in.

    Clicks: `majority_click`, the user's most frequent slot, its probabilities the user's frequencies together with some
    sessions' worth of the population's; `content_click`, a conditional logit (McFadden 1974) on x with slot intercepts;
    `personal_content_click`, the same with coefficients w + w_u; `highest_expected_value`, where there is such a
    feature, which gives no probabilities.

    x_n holds the slot's features, with mean 0 and deviation 1 over the training slots, and for each that has more than
    two values whether it is the highest and whether it is the lowest of the page: people look more at what stands out.
    Features that neither page nor profile shows are known to `personal_content_regression_hidden` and
    `personal_content_click_hidden` alone.

    Args:
        train: sessions to fit on.
        test: sessions to predict.
        slot_feature_names: names of the columns of `Session.slot_features`.
        validation: sessions on which ridges and shrinkage are chosen, by KL and log-loss (none: `RIDGE` and
            `PRIOR_SESSIONS`).
        hidden: features that the model cannot see.
        signal: which dwell signal is the gaze.
        gaze_temperature: τ of the gaze, see `Session.gaze`.

    Returns:
        One row for each (session, method), in the columns that `metrics.session_metrics` reads.

    Raises:
        DataError: no training or test sessions, a session without the signal, or features that do not fit their names.
    """
    if not train or not test:
        raise DataError(f"the predictors need training and test sessions, got {len(train)} and {len(test)}")
    width = max(session.slots for session in (*train, *validation, *test))
    tables = [_table(some, width, slot_feature_names, signal, gaze_temperature) for some in (train, validation, test)]
    fitted, tuned, wanted = (_standardise(table, like=tables[0]) for table in tables)
    seen = [name not in hidden for name in slot_feature_names]
    fit = _Fit(_only(fitted, seen), _only(tuned, seen))
    everything = _Fit(fitted, tuned)
    means, shown = fit.means, _only(wanted, seen)
    frames = [
        _rows(test, wanted, method, mode, attention=attention)
        for method, mode, attention in [
            ("uniform", "FR", wanted.mask / wanted.mask.sum(axis=1, keepdims=True)),
            ("population_mean", "FR", means.predict(wanted, by_user=False, by_click=False)),
            ("user_mean", "FR", means.predict(wanted, by_user=True, by_click=False)),
            ("user_mean_shrunk", "FR", means.shrunk(wanted, fit.prior)),
            ("content_regression", "FR", fit.content_gaze(shown, personal=False)),
            ("personal_content_regression", "FR", fit.content_gaze(shown, personal=True)),
            ("population_mean_given_click", "TF", means.predict(wanted, by_user=False, by_click=True)),
            ("user_mean_given_click", "TF", means.predict(wanted, by_user=True, by_click=True)),
        ]
    ]
    frames += [
        _rows(test, wanted, method, "FR", log_probs=log_probs)
        for method, log_probs in [
            ("majority_click", fit.click_frequencies(wanted)),
            ("content_click", fit.content_click(shown, personal=False)),
            ("personal_content_click", fit.content_click(shown, personal=True)),
        ]
    ]
    if not all(seen):
        attention = everything.content_gaze(wanted, personal=True)
        frames.append(_rows(test, wanted, "personal_content_regression_hidden", "FR", attention=attention))
        log_probs = everything.content_click(wanted, personal=True)
        frames.append(_rows(test, wanted, "personal_content_click_hidden", "FR", log_probs=log_probs))
    if EXPECTED_VALUE in slot_feature_names:
        value = wanted.features[:, :, list(slot_feature_names).index(EXPECTED_VALUE)]
        answer = np.argmax(np.where(wanted.mask, value, -np.inf), axis=1)
        frames.append(_rows(test, wanted, "highest_expected_value", "FR", answer=answer))
    return pd.concat(frames, ignore_index=True)


def mean_gaze(
    train: Sequence[StoredSession],
    validation: Sequence[StoredSession],
    *,
    signal: str = "fixation",
    gaze_temperature: float = 1.0,
) -> tuple[dict[str, Float[np.ndarray, " slots"]], Float[np.ndarray, " slots"]]:
    """Each user's mean gaze by slot, shrunk as in `user_mean_shrunk`, and everybody's.

    Args:
        train: sessions to take means of.
        validation: sessions on which the shrinkage is chosen.
        signal: which dwell signal is the gaze.
        gaze_temperature: τ of the gaze.
    """
    width = max(session.slots for session in (*train, *validation))
    fitted, tuned = (_table(some, width, None, signal, gaze_temperature) for some in (train, validation))
    fit, users = _Fit(fitted, tuned), list(dict.fromkeys(fitted.users))
    # A page with every slot for each user, and for one who is not known.
    asked = _Table(
        users=[*users, ""],
        gaze=np.zeros((len(users) + 1, width)),
        click=np.zeros(len(users) + 1, np.int64),
        mask=np.ones((len(users) + 1, width), bool),
        features=np.zeros((len(users) + 1, width, 0)),
    )
    *habits, population = fit.means.shrunk(asked, fit.prior)
    return dict(zip(users, habits, strict=True)), population


def _table(
    sessions: Sequence[StoredSession], width: int, names: Sequence[str] | None, signal: str, temperature: float
) -> _Table:
    """The sessions as arrays; without their features where these have no names."""
    gaze = np.zeros((len(sessions), width))
    features = np.zeros((len(sessions), width, len(names or ())))
    for row, session in enumerate(sessions):
        if signal not in session.dwell_ms:
            raise DataError(
                f"session {session.session_id!r}, field 'dwell_ms': no signal {signal!r}, "
                f"only {sorted(session.dwell_ms)}; choose one of these as data.signal"
            )
        gaze[row, : session.slots] = session.gaze(signal, temperature)
        if names is None:
            continue
        if session.slot_features.shape[1] != len(names):
            raise DataError(
                f"session {session.session_id!r}, field 'slot_features': {session.slot_features.shape[1]} columns "
                f"for the {len(names)} names {list(names)}"
            )
        features[row, : session.slots] = session.slot_features
    slots = np.array([session.slots for session in sessions])
    return _Table(
        users=[session.user_id for session in sessions],
        gaze=gaze,
        click=np.array([session.click for session in sessions], np.int64),
        mask=np.arange(width)[None, :] < slots[:, None],
        features=features,
    )


def _standardise(table: _Table, *, like: _Table) -> _Table:
    """Features with the mean 0 and the deviation 1 that they have on the slots of `like`; constant ones become 0."""
    shown = like.features[like.mask]
    deviation = shown.std(axis=0)
    scaled = (table.features - shown.mean(axis=0)) / np.where(deviation > 0, deviation, 1.0)
    return replace(table, features=np.where(table.mask[:, :, None], scaled, 0.0))


def _only(table: _Table, seen: Sequence[bool]) -> _Table:
    """The table with some of its features."""
    return replace(table, features=table.features[:, :, np.array(seen, bool)])


class _Means:
    """Mean gaze by slot index: of everybody, of each user, and of both by the clicked slot."""

    def __init__(self, table: _Table) -> None:
        keys: dict[tuple[str | None, int | None], list[int]] = {}
        for row, (user, click) in enumerate(zip(table.users, table.click.tolist(), strict=True)):
            for key in ((user, click), (user, None), (None, click), (None, None)):
                keys.setdefault(key, []).append(row)
        self._means = {key: self._mean(table.gaze[rows], table.mask[rows]) for key, rows in keys.items()}
        alone = {user: rows for (user, click), rows in keys.items() if click is None}
        self._pages = {user: table.mask[rows].sum(axis=0) for user, rows in alone.items()}
        self._sums = {user: table.gaze[rows].sum(axis=0) for user, rows in alone.items()}

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

    def shrunk(self, table: _Table, prior: float, *, leave_out: bool = False) -> Shares:
        """The user's sessions together with so many of the population's mean.

        Args:
            table: the sessions.
            prior: strength of the population's mean, in sessions.
            leave_out: the sessions are those that the means were taken of; each is predicted without itself.
        """
        none = np.zeros(table.width)
        known = [[by.get(user, none) for user in table.users] for by in (self._sums, self._pages)]
        own, pages = (np.array(rows, np.float64).reshape(-1, table.width) for rows in known)
        everybody, all_pages = self._sums[None], self._pages[None]
        if leave_out:
            own, pages = own - table.gaze, pages - table.mask
            everybody, all_pages = everybody - table.gaze, all_pages - table.mask
        with np.errstate(invalid="ignore", divide="ignore"):
            population = np.where(all_pages > 0, everybody / all_pages, np.nan)
            share = (own + prior * population) / (pages + prior)
        even = table.mask / table.mask.sum(axis=1, keepdims=True)
        share = np.where(table.mask, np.where(np.isnan(share), even, np.maximum(share, 0.0)), 0.0)
        total = share.sum(axis=1, keepdims=True)
        return np.where(total > 0, share / np.where(total > 0, total, 1.0), even)

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


class _Ridge(NamedTuple):
    """Of the coefficients that all share, and of each person's own."""

    shared: float = RIDGE
    own: float = RIDGE


class _SoftmaxRegression:
    """p_n ∝ exp(offset_n + (w + w_u)·x_n), fit by cross-entropy with ridges on w and w_u; w_u = 0 if not personal."""

    def __init__(
        self,
        table: _Table,
        target: Shares,
        features: Float[np.ndarray, "sessions slots features"],
        *,
        offset: Shares | float = 0.0,
        personal: bool,
        ridge: _Ridge,
        start: Float[np.ndarray, "rows features"] | None = None,
    ) -> None:
        self._rows = {user: row for row, user in enumerate(dict.fromkeys(table.users), start=1)} if personal else {}
        rows, shape = self._row_of(table), (len(self._rows) + 1, features.shape[2])
        strength = np.full(shape, ridge.own)
        strength[0] = ridge.shared
        whose = np.equal.outer(np.arange(shape[0]), rows).astype(np.float64)
        whose[0] = 1.0

        def loss(flat: Float[np.ndarray, " parameters"]) -> tuple[float, Float[np.ndarray, " parameters"]]:
            weights = flat.reshape(shape)
            share = self._share(weights, rows, features, offset, table.mask)
            entropy = -(target * np.log(np.maximum(share, TINY))).sum(axis=1).mean()
            each = np.einsum("sn,snf->sf", share - target, features) / len(target)
            gradient = 2 * strength * weights + whose @ each
            return float(entropy + (strength * weights**2).sum()), gradient.ravel()

        # SciPy cannot minimise over no parameters at all.
        first = np.zeros(shape) if start is None else start
        how: dict[str, Any] = {"method": "L-BFGS-B", "jac": True, "options": {"ftol": PRECISION}}
        # On matrices as small as these, threads of the linear algebra take four times as long as none.
        with threadpool_limits(1, "blas"):
            fit = scipy.optimize.minimize(loss, first.ravel(), **how).x if first.size else first
        self.weights = np.asarray(fit).reshape(shape)

    def _row_of(self, table: _Table) -> Int[np.ndarray, " sessions"]:
        """Row of each session's w_u; row 0, which holds w itself, stands for users not fitted."""
        return np.array([self._rows.get(user, 0) for user in table.users])

    @staticmethod
    def _share(
        weights: Float[np.ndarray, "rows features"],
        rows: Int[np.ndarray, " sessions"],
        features: Float[np.ndarray, "sessions slots features"],
        offset: Shares | float,
        mask: Bool[np.ndarray, "sessions slots"],
    ) -> Shares:
        own = np.where(rows[:, None] > 0, weights[rows], 0.0)
        return _softmax(offset + np.einsum("snf,sf->sn", features, weights[0] + own), mask)

    def predict(
        self, table: _Table, features: Float[np.ndarray, "sessions slots features"], *, offset: Shares | float = 0.0
    ) -> Shares:
        return self._share(self.weights, self._row_of(table), features, offset, table.mask)


class _Fit:
    """Predictors fitted on training sessions, with strengths chosen on validation sessions where there are any."""

    def __init__(self, fitted: _Table, tuned: _Table) -> None:
        self.fitted, self.tuned, self.means = fitted, tuned, _Means(fitted)
        # Of two values one is the highest and the other the lowest anyway.
        shown = fitted.features[fitted.mask]
        self._ordered = np.array([len(np.unique(column)) > 2 for column in shown.T], bool)
        self.prior = self._best(PRIORS, PRIOR_SESSIONS, lambda prior: self._kl(self.means.shrunk(tuned, prior)))

    def _best(self, choices: Sequence[T], usual: T, loss: Callable[[T], float]) -> T:
        """What does best on the validation sessions; the first of those that do so equally well."""
        return min(choices, key=loss) if self.tuned.users else usual

    def _kl(self, share: Shares) -> float:
        gaze = self.tuned.gaze
        return float((gaze * (np.log(np.maximum(gaze, TINY)) - np.log(share + SHARE_FLOOR))).sum(axis=1).mean())

    def _log_loss(self, share: Shares) -> float:
        return float(-np.log(np.maximum(share[np.arange(len(share)), self.tuned.click], TINY)).mean())

    def _displayed(self, table: _Table) -> Float[np.ndarray, "sessions slots columns"]:
        """What a person can read off a slot: its values, and whether each is the highest or lowest of the page."""
        mask, values = table.mask[:, :, None], table.features[:, :, self._ordered]
        high = values == np.where(mask, values, -np.inf).max(axis=1, keepdims=True)
        low = values == np.where(mask, values, np.inf).min(axis=1, keepdims=True)
        return np.where(mask, np.concatenate([table.features, high, low], axis=2), 0.0)

    def _with_intercepts(self, table: _Table) -> Float[np.ndarray, "sessions slots columns"]:
        slot = np.broadcast_to(np.eye(table.width), (len(table.users), table.width, table.width))
        return np.concatenate([self._displayed(table), slot], axis=2)

    def _offset(self, table: _Table, *, leave_out: bool = False) -> Shares:
        return np.log(self.means.shrunk(table, self.prior, leave_out=leave_out) + SHARE_FLOOR)

    def content_gaze(self, wanted: _Table, *, personal: bool) -> Shares:
        """Gaze by what is displayed, beside a habit of places."""
        before = self._offset(self.fitted, leave_out=True)
        columns = self._displayed(self.fitted)

        def fit(ridge: _Ridge, start: np.ndarray | None) -> _SoftmaxRegression:
            how: dict[str, Any] = {"offset": before, "personal": personal, "ridge": ridge, "start": start}
            return _SoftmaxRegression(self.fitted, self.fitted.gaze, columns, **how)

        shown, habit = self._displayed(self.tuned), self._offset(self.tuned)

        def loss(model: _SoftmaxRegression) -> float:
            return self._kl(model.predict(self.tuned, shown, offset=habit))

        model = self._tuned(fit, loss, personal)
        return model.predict(wanted, self._displayed(wanted), offset=self._offset(wanted))

    def content_click(self, wanted: _Table, *, personal: bool) -> Float[np.ndarray, "sessions slots"]:
        """Log-probabilities of a click by what is displayed and where."""
        columns, target = self._with_intercepts(self.fitted), np.eye(self.fitted.width)[self.fitted.click]

        def fit(ridge: _Ridge, start: np.ndarray | None) -> _SoftmaxRegression:
            return _SoftmaxRegression(self.fitted, target, columns, personal=personal, ridge=ridge, start=start)

        shown = self._with_intercepts(self.tuned)

        def loss(model: _SoftmaxRegression) -> float:
            return self._log_loss(model.predict(self.tuned, shown))

        model = self._tuned(fit, loss, personal)
        return np.log(np.maximum(model.predict(wanted, self._with_intercepts(wanted)), TINY))

    def _tuned(
        self,
        fit: Callable[[_Ridge, np.ndarray | None], _SoftmaxRegression],
        loss: Callable[[_SoftmaxRegression], float],
        personal: bool,
    ) -> _SoftmaxRegression:
        """The model with the best ridges: of each person's own coefficients, and given that of the shared ones."""
        models: dict[_Ridge, _SoftmaxRegression] = {}
        last: list[np.ndarray] = []

        def model(ridge: _Ridge) -> _SoftmaxRegression:
            if ridge not in models:
                models[ridge] = fit(ridge, last[-1] if last else None)
                last[:] = [models[ridge].weights]
            return models[ridge]

        best = _Ridge()
        for field in ("own", "shared") if personal else ("shared",):
            choices = [best._replace(**{field: ridge}) for ridge in RIDGES]
            best = self._best(choices, best, lambda ridge: loss(model(ridge)))
        return model(best)

    def click_frequencies(self, wanted: _Table) -> Float[np.ndarray, "sessions slots"]:
        """Log-probabilities; the population's frequencies are themselves smoothed by one click on every slot."""
        prior = self._best(PRIORS, PRIOR_SESSIONS, lambda prior: self._log_loss(self._frequencies(self.tuned, prior)))
        return np.log(np.maximum(self._frequencies(wanted, prior), TINY))

    def _frequencies(self, table: _Table, prior: float) -> Shares:
        clicks = np.eye(self.fitted.width)[self.fitted.click]
        population = clicks.sum(axis=0) + 1
        counts: dict[str, Float[np.ndarray, " slots"]] = {}
        for user, click in zip(self.fitted.users, clicks, strict=True):
            counts[user] = counts.get(user, np.zeros(self.fitted.width)) + click
        none = np.zeros(self.fitted.width)
        own = np.array([counts.get(user, none) for user in table.users]).reshape(-1, table.width)
        odds = np.where(table.mask, own + prior * population / population.sum(), 0.0)
        return odds / odds.sum(axis=1, keepdims=True)


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
