"""The tables of an analysis: stability of personal gaze, gaze beside clicks, personal means, bounds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from fixate_jax.data.session import StoredSession
from fixate_jax.data.store import natural_order
from fixate_jax.evaluation.statistics import Interval, bootstrap_interval
from fixate_jax.lab.analysis.layouts import AnalysisSettings, Layout, Selection, select_sessions
from fixate_jax.lab.analysis.measures import (
    click_relation,
    correlation_interval,
    identified,
    mean_of_others,
    over_users,
    people_differ,
    random_halves,
    spearman_brown,
    split_half_correlation,
    user_means,
)
from fixate_jax.lab.experiments.predictors import PRIOR_SESSIONS, PRIORS
from fixate_jax.objective import EPS


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """What was found.

    Attributes:
        tables: by name of the file: "stability", "clicks", "clicks_by_user", "user_slot_gaze", "bounds", "left_out";
            `write_analysis` adds "dropped".
        layouts: the page layouts that were analysed, the commonest first.
        notes: what was used and how the tables are read, in sentences.
    """

    tables: Mapping[str, pd.DataFrame]
    layouts: Sequence[Layout]
    notes: Sequence[str]


def analyse(sessions: Sequence[StoredSession], settings: AnalysisSettings) -> Analysis:
    """Everything there is to say about some sessions.

    Raises:
        DataError: no such sessions, too few people with enough of them, or a session without the signal.
    """
    chosen = select_sessions(sessions, settings)
    relation, by_user = click_tables(
        _all_clicks(chosen.sessions, settings), [s.user_id for s in chosen.sessions], seed=settings.seed
    )

    def of_each(table: Callable[[Layout], pd.DataFrame]) -> pd.DataFrame:
        frames = [table(layout).assign(layout=number) for number, layout in enumerate(chosen.layouts, start=1)]
        joined = pd.concat(frames, ignore_index=True)
        return joined[["layout", *joined.columns.drop("layout")]]

    return Analysis(
        tables={
            "stability": of_each(lambda one: stability(one, halvings=settings.halvings, seed=settings.seed)),
            "clicks": relation,
            "bounds": of_each(
                lambda one: pd.concat(
                    [
                        gaze_bounds(one, seed=settings.seed),
                        click_bounds(one, halvings=settings.halvings, seed=settings.seed),
                    ],
                    ignore_index=True,
                )
            ),
            "clicks_by_user": by_user,
            "user_slot_gaze": of_each(slot_gaze),
            "left_out": chosen.left_out,
        },
        layouts=chosen.layouts,
        notes=_notes(sessions, chosen, settings),
    )


def _all_clicks(sessions: Sequence[StoredSession], settings: AnalysisSettings) -> pd.DataFrame:
    """`click_relation` of pages of any number of slots."""
    slots = np.array([s.slots for s in sessions])
    mask = np.arange(slots.max()) < slots[:, None]
    gaze = np.zeros(mask.shape)
    gaze[mask] = np.concatenate([s.gaze(settings.signal, settings.gaze_temperature) for s in sessions])
    return click_relation(gaze, np.array([s.click for s in sessions]), mask)


def _notes(sessions: Sequence[StoredSession], chosen: Selection, settings: AnalysisSettings) -> list[str]:
    held = sum(s.split == "test" for s in sessions)
    people = len({s.user_id for s in chosen.sessions})
    used = f"{len(chosen.sessions)} sessions of {people} people, split {' and '.join(settings.splits)}. "
    if "test" in settings.splits:
        used += "The test split is among them: what is decided on these tables is no longer blind to it."
    else:
        used += f"The {held} sessions of the test split were left untouched."
    about = [
        f"Page layout {number}: {layout.name}, {layout.user.size} sessions of {len(layout.users)} people."
        for number, layout in enumerate(chosen.layouts, start=1)
    ]
    return [used, *about]


def stability(layout: Layout, *, halvings: int, seed: int) -> pd.DataFrame:
    """How stable and how much their own people's mean gaze is.

    Returns:
        Rows "split-half correlation" (`p`: of `people_differ`), "reliability" (Spearman–Brown) and "identified" with
        the `value`, its 95% interval over people `low` and `high`, the deviation `sd` over halvings, what
        `chance` gives, `users` and `sessions`.
    """
    first, second = random_halves(layout.gaze, layout.user, halvings=halvings, seed=seed)
    correlation = split_half_correlation(first, second)
    interval = correlation_interval(first, second, seed=seed)
    found = identified(first, second)
    share = bootstrap_interval(found.mean(axis=0), seed=seed)
    rows = [
        {
            "measure": "split-half correlation",
            **_interval(interval),
            "sd": float(correlation.std()),
            "chance": 0.0,
            "p": people_differ(layout.gaze, layout.user, seed=seed),
        },
        {
            "measure": "reliability",
            **{name: spearman_brown(value) for name, value in _interval(interval).items()},
            "sd": np.nan,
            "chance": 0.0,
            "p": np.nan,
        },
        {
            "measure": "identified",
            **_interval(share),
            "sd": float(found.mean(axis=1).std()),
            "chance": 1 / len(layout.users),
            "p": np.nan,
        },
    ]
    return pd.DataFrame(rows).assign(users=len(layout.users), sessions=layout.user.size)


def _interval(interval: Interval) -> dict[str, float]:
    return {"value": interval.mean, "low": interval.low, "high": interval.high}


def click_tables(relation: pd.DataFrame, user_id: Sequence[str], *, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The relation of gaze to clicks over everybody, and person by person.

    Args:
        relation: from `click_relation`.
        user_id: the person of each session.
        seed: of the bootstrap.

    Returns:
        A row per `measure` with what `chance` gives and the columns of `over_users`, compared with chance; and a row
        per person (`user_id`) with the number of `sessions` and the means.
    """
    people = natural_order(set(user_id))
    place = {name: index for index, name in enumerate(people)}
    user = np.array([place[name] for name in user_id])
    means = relation.groupby(user).mean().reset_index(drop=True)
    sessions = np.bincount(user)
    rows = []
    for measure in ("longest_clicked", "clicked_gaze", "auc"):
        chance = np.full(len(people), 0.5) if measure == "auc" else means["chance"].to_numpy()
        found = over_users(means[measure].to_numpy(), sessions, against=chance, seed=seed)
        rows.append({"measure": measure, "chance": float(chance.mean()), **found})
    means.insert(0, "sessions", sessions)
    means.insert(0, "user_id", people)
    return pd.DataFrame(rows), means


def gaze_bounds(layout: Layout, *, seed: int) -> pd.DataFrame:
    """KL(gaze ‖ mean gaze) in nats, the mean being over all other sessions: what is known without any model.

    The rows are the predictors of the same names, each beside the one it refines. A given click that nobody else has
    (or the person has in no other session) leaves the mean without it.

    Returns:
        `predictor`, `measure` ("kl"), `told_click`, `against` and the columns of `over_users`.
    """
    gaze, user, slots = layout.gaze, layout.user, layout.gaze.shape[1]
    everybody = mean_of_others(gaze, np.zeros_like(user))
    own = mean_of_others(gaze, user)
    everybody_click = mean_of_others(gaze, layout.click)
    own_click = mean_of_others(gaze, user * slots + layout.click)
    predicted = {
        "uniform": (np.full_like(gaze, 1 / slots), None),
        "population_mean": (everybody, "uniform"),
        "user_mean": (own, "population_mean"),
        "user_mean_shrunk": (_shrunk(layout, own, everybody), "population_mean"),
        "population_mean_given_click": (
            np.where(np.isnan(everybody_click), everybody, everybody_click),
            "population_mean",
        ),
        "user_mean_given_click": (np.where(np.isnan(own_click), own, own_click), "population_mean_given_click"),
    }
    measured = {name: (user_means(_kl(gaze, share), user), against) for name, (share, against) in predicted.items()}
    return _bounds(measured, layout.sessions, measure="kl", seed=seed, lower_is_better=True)


def _kl(gaze: Float[np.ndarray, "sessions slots"], share: Float[np.ndarray, "sessions slots"]) -> np.ndarray:
    return (gaze * (np.log(gaze + EPS) - np.log(share + EPS))).sum(axis=1)


def _shrunk(
    layout: Layout, own: Float[np.ndarray, "sessions slots"], everybody: Float[np.ndarray, "sessions slots"]
) -> Float[np.ndarray, "sessions slots"]:
    """The person's other sessions with so many of everybody's as are best for the *other* people."""
    others = (layout.sessions[layout.user] - 1)[:, None]
    known = np.where(others > 0, others * np.nan_to_num(own), 0.0)
    shares = np.stack([(known + prior * everybody) / (others + prior) for prior in PRIORS])
    losses = np.stack([user_means(_kl(layout.gaze, share), layout.user) for share in shares])
    best = (losses.sum(axis=1, keepdims=True) - losses).argmin(axis=0)
    return shares[best[layout.user], np.arange(len(layout.user))]


def click_bounds(layout: Layout, *, halvings: int, seed: int) -> pd.DataFrame:
    """Log-loss and accuracy of the click, predicted from how often each slot was clicked in other sessions.

    "population_click": everybody's clicks and one on each slot; "majority_click": the person's, with `PRIOR_SESSIONS`
    sessions' worth of everybody's, as the predictor of that name. The log-loss is taken from all other sessions. The
    accuracy of the most frequent slot is from one random half to the other: from all other sessions it would be 0 for
    a person whose slots tie.

    Returns:
        As `gaze_bounds`, with the measures "log_loss" (nats) and "accuracy".
    """
    user, slots = layout.user, len(layout.labels)
    clicked = np.eye(slots)[layout.click]
    own_counts = user_means(clicked, user) * layout.sessions[:, None]
    everybody, own = _click_frequencies(clicked.sum(axis=0) - clicked, own_counts[user] - clicked)
    losses = [
        user_means(-np.log((share * clicked).sum(axis=1)), user)
        for share in (np.full_like(clicked, 1 / slots), everybody, own)
    ]
    first, second = random_halves(clicked, user, halvings=halvings, seed=seed)
    smaller = layout.sessions // 2
    found = [_click_hits(first, smaller, second), _click_hits(second, layout.sessions - smaller, first)]
    hits = [np.full(len(layout.users), 1 / slots), *np.mean(found, axis=0)]
    names = ("uniform", "population_click", "majority_click")
    against = (None, *names[:2])
    return pd.concat(
        [
            _bounds(
                {name: (values, other) for name, values, other in zip(names, each, against, strict=True)},
                layout.sessions,
                measure=measure,
                seed=seed,
                lower_is_better=measure == "log_loss",
            )
            for measure, each in (("log_loss", losses), ("accuracy", hits))
        ],
        ignore_index=True,
    )


def _click_hits(
    known: Float[np.ndarray, "halvings users slots"],
    sessions: Int[np.ndarray, " users"],
    asked: Float[np.ndarray, "halvings users slots"],
) -> Float[np.ndarray, "2 users"]:
    """Accuracy in one half of what everybody, and what the person, clicks most in the other, ties at random.

    Args:
        known: the person's click frequencies in the half that is known.
        sessions: of each person in that half.
        asked: click frequencies in the half that is predicted.
    """
    counts = known * sessions[:, None]
    hits = []
    for share in _click_frequencies(counts.sum(axis=1, keepdims=True), counts):
        # Equal frequencies may differ by rounding.
        best = share > share.max(axis=-1, keepdims=True) - 1e-9
        hits.append(((best * asked).sum(axis=-1) / best.sum(axis=-1)).mean(axis=0))
    return np.stack(hits)


def _click_frequencies(
    counts: Float[np.ndarray, "*any slots"], own_counts: Float[np.ndarray, "*each slots"]
) -> tuple[Float[np.ndarray, "*each slots"], Float[np.ndarray, "*each slots"]]:
    """Everybody's and the person's smoothed frequencies, from the counts of clicks."""
    everybody = (counts + 1) / (counts + 1).sum(axis=-1, keepdims=True)
    odds = own_counts + PRIOR_SESSIONS * everybody
    return np.broadcast_to(everybody, odds.shape), odds / odds.sum(axis=-1, keepdims=True)


def _bounds(
    measured: Mapping[str, tuple[Float[np.ndarray, " users"], str | None]],
    sessions: Int[np.ndarray, " users"],
    *,
    measure: str,
    seed: int,
    lower_is_better: bool,
) -> pd.DataFrame:
    rows = []
    for name, (values, against) in measured.items():
        other = None if against is None else measured[against][0]
        found = over_users(values, sessions, against=other, seed=seed, lower_is_better=lower_is_better)
        told = name.endswith("given_click")
        rows.append({"predictor": name, "measure": measure, "told_click": told, "against": against, **found})
    # As objects, so that whole numbers beside an empty cell stay whole.
    return pd.DataFrame(rows).assign(better=pd.Series([row["better"] for row in rows], dtype=object))


def slot_gaze(layout: Layout) -> pd.DataFrame:
    """Mean gaze of each person on each slot.

    Returns:
        A row per person and slot: `user_id`, `slot`, `label`, the box `x0` to `y1`, the person's `sessions`, mean
        `gaze`, `population` (mean over people) and `difference` between the two, all as shares.
    """
    mean = user_means(layout.gaze, layout.user)
    users, slots = mean.shape
    population = np.tile(mean.mean(axis=0), users)
    return pd.DataFrame(
        {
            "user_id": np.repeat(np.array(layout.users, dtype=object), slots),
            "slot": np.tile(np.arange(slots), users),
            "label": list(layout.labels) * users,
            **{name: np.tile(layout.boxes[:, i], users) for i, name in enumerate(("x0", "y0", "x1", "y1"))},
            "sessions": np.repeat(layout.sessions, slots),
            "gaze": mean.ravel(),
            "population": population,
            "difference": mean.ravel() - population,
        }
    )
