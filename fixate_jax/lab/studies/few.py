"""Predictors without a model for new people of whom a few sessions are known, and nothing else."""

from collections.abc import Sequence

import pandas as pd

from fixate_jax.data.session import StoredSession
from fixate_jax.errors import DataError
from fixate_jax.lab.experiments.predictors import PRIOR_SESSIONS, _Fit, _Means, _only, _rows, _standardise, _table


def new_person_predictions(
    population: Sequence[StoredSession],
    own: Sequence[StoredSession],
    test: Sequence[StoredSession],
    *,
    slot_feature_names: Sequence[str],
    signal: str,
    gaze_temperature: float,
) -> pd.DataFrame:
    """Predict each new person from that person's few sessions and from the people known before.

    What is known of one new person is not used for another: the population's mean, which stands in for slots not seen
    and towards which `user_mean_shrunk` and `majority_click` are drawn, is that of the people known before and of the
    person's own sessions. See `fixate_jax.lab.experiments.predictors` for what each predictor does.

    Args:
        population: training sessions of people known before.
        own: the few sessions of the new people.
        test: sessions to predict, all of new people.
        slot_feature_names: names of the columns of `Session.slot_features`.
        signal: which dwell signal is the gaze.
        gaze_temperature: τ of the gaze.

    Returns:
        Rows of `user_mean`, `user_mean_shrunk` and `majority_click`, in the columns of `metrics.session_metrics`.

    Raises:
        DataError: somebody who is to be predicted has no session, or is of the population.
    """
    known, few = {s.user_id for s in population}, {s.user_id for s in own}
    width = max(s.slots for s in (*population, *own, *test))
    none = _table([], width, slot_feature_names, signal, gaze_temperature)
    frames = []
    for user in dict.fromkeys(s.user_id for s in test):
        if user in known or user not in few:
            raise DataError(f"user {user}: a new person needs sessions to learn from, and none in the population")
        wanted = [s for s in test if s.user_id == user]
        told = [*population, *(s for s in own if s.user_id == user)]
        fitted, shown = (_table(s, width, slot_feature_names, signal, gaze_temperature) for s in (told, wanted))
        means = _Means(fitted)
        gaze = {
            "user_mean": means.predict(shown, by_user=True, by_click=False),
            "user_mean_shrunk": means.shrunk(shown, PRIOR_SESSIONS),
        }
        frames += [_rows(wanted, shown, name, "FR", attention=values) for name, values in gaze.items()]
        frames.append(
            _rows(wanted, shown, "majority_click", "FR", log_probs=_Fit(fitted, none).click_frequencies(shown))
        )
    return pd.concat(frames, ignore_index=True)


def population_predictions(
    population: Sequence[StoredSession],
    test: Sequence[StoredSession],
    *,
    validation: Sequence[StoredSession] = (),
    hidden: Sequence[str] = (),
    slot_feature_names: Sequence[str],
    signal: str,
    gaze_temperature: float,
) -> pd.DataFrame:
    """Predict people of whom nothing is known: `uniform`, `population_mean`, `content_regression`, `population_click`
    and `content_click`. What is displayed tells of everybody, so the last is more than it may seem.

    Args:
        population: training sessions of people known before.
        test: sessions to predict.
        validation: other sessions of the people known before, on which ridges are chosen.
        hidden: features that neither page nor profile shows; they are not used.
        slot_feature_names: names of the columns of `Session.slot_features`.
        signal: which dwell signal is the gaze.
        gaze_temperature: τ of the gaze.
    """
    width = max(s.slots for s in (*population, *validation, *test))
    how = (width, slot_feature_names, signal, gaze_temperature)
    seen = [name not in hidden for name in slot_feature_names]
    tables = [_only(_table(some, *how), seen) for some in (population, validation, test)]
    fitted, tuned, shown = (_standardise(table, like=tables[0]) for table in tables)
    fit = _Fit(fitted, tuned)
    mean = fit.means.predict(shown, by_user=False, by_click=False)
    return pd.concat(
        [
            _rows(test, shown, "uniform", "FR", attention=shown.mask / shown.mask.sum(axis=1, keepdims=True)),
            _rows(test, shown, "population_mean", "FR", attention=mean),
            _rows(test, shown, "content_regression", "FR", attention=fit.content_gaze(shown, personal=False)),
            _rows(test, shown, "population_click", "FR", log_probs=fit.click_frequencies(shown)),
            _rows(test, shown, "content_click", "FR", log_probs=fit.content_click(shown, personal=False)),
        ],
        ignore_index=True,
    )
