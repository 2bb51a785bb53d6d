"""The model-free predictors: exact means, recovery of known coefficients, fallbacks, and the real data."""

from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest

from fixate_jax.data.session import StoredSession
from fixate_jax.errors import DataError
from fixate_jax.lab.config import RunConfig
from fixate_jax.lab.experiments.evaluate import predict_without_model
from fixate_jax.lab.experiments.predictors import trivial_predictions
from fixate_jax.lab.experiments.workspace import Workspace
from fixate_jax.lab.frames import session_metrics, summarise

GAZE = {
    "uniform": "FR",
    "population_mean": "FR",
    "user_mean": "FR",
    "user_mean_shrunk": "FR",
    "content_regression": "FR",
    "personal_content_regression": "FR",
    "population_mean_given_click": "TF",
    "user_mean_given_click": "TF",
}
CLICKS = ("majority_click", "content_click", "personal_content_click")


def session(index: int, user: str, dwell: list[float], click: int, features: np.ndarray | None = None) -> StoredSession:
    slots = len(dwell)
    x0 = np.arange(slots) / slots
    return StoredSession(
        session_id=f"s{index}",
        user_id=user,
        page_id="page",
        boxes=np.stack([x0, np.zeros(slots), x0 + 1 / slots, np.ones(slots)], axis=1),
        labels=tuple("ABCDEFGH"[:slots]),
        dwell_ms={"fixation": np.array(dwell, np.float64)},
        click=click,
        slot_features=np.zeros((slots, 0)) if features is None else features,
    )


def by_method(frame: pd.DataFrame, column: str, row: int = 0) -> dict[str, list[float]]:
    return {method: rows[column].iloc[row] for method, rows in frame.groupby("method")}


def test_means_by_hand():
    train = [
        session(0, "u0", [8, 1, 1], 0),
        session(1, "u0", [4, 4, 2], 1),
        session(2, "u0", [6, 3, 1], 0),
        session(3, "u1", [1, 1, 8], 2),
    ]
    frame = trivial_predictions(train, [session(9, "u0", [1, 1, 1], 0)], slot_feature_names=())
    attention = by_method(frame, "attention")
    np.testing.assert_allclose(attention["uniform"], [1 / 3] * 3)
    np.testing.assert_allclose(attention["population_mean"], [0.475, 0.225, 0.3])
    np.testing.assert_allclose(attention["user_mean"], [0.6, 0.8 / 3, 0.4 / 3])
    np.testing.assert_allclose(attention["user_mean_given_click"], [0.7, 0.2, 0.1])
    np.testing.assert_allclose(attention["population_mean_given_click"], [0.7, 0.2, 0.1])
    # Without features the regressions can only say what the person's habit is.
    np.testing.assert_allclose(attention["content_regression"], attention["user_mean_shrunk"], atol=1e-4)


def test_what_the_frame_says_of_each_method():
    train = [session(i, f"u{i % 2}", [1, 2, 3], i % 3) for i in range(6)]
    frame = trivial_predictions(train, train[:2], slot_feature_names=())
    assert frame.groupby("method")["mode"].first().to_dict() == GAZE | dict.fromkeys(CLICKS, "FR")
    looks = frame["method"].isin(GAZE)
    assert frame.loc[looks, "log_probs"].isna().all() and (frame.loc[looks, "answer"] == -1).all()
    assert frame.loc[~looks, "attention"].isna().all() and (frame.loc[~looks, "answer"] >= 0).all()
    metrics = session_metrics(frame)
    assert len(metrics) == 2 * (len(GAZE) + len(CLICKS))


def test_unknown_users_and_clicks_fall_back():
    train = [session(0, "u0", [8, 1, 1], 0), session(1, "u1", [2, 2, 6], 2)]
    test = [session(8, "stranger", [1, 1, 1], 2), session(9, "u0", [1, 1, 1], 1)]
    frame = trivial_predictions(train, test, slot_feature_names=())
    stranger, unseen_click = by_method(frame, "attention", 0), by_method(frame, "attention", 1)
    np.testing.assert_allclose(stranger["user_mean"], [0.5, 0.15, 0.35])
    np.testing.assert_allclose(stranger["user_mean_given_click"], [0.5, 0.15, 0.35])
    np.testing.assert_allclose(stranger["population_mean_given_click"], [0.2, 0.2, 0.6])
    np.testing.assert_allclose(unseen_click["user_mean_given_click"], [0.8, 0.1, 0.1])
    np.testing.assert_allclose(unseen_click["population_mean_given_click"], [0.5, 0.15, 0.35])


def test_the_shrunk_mean_by_hand():
    train = [session(0, "u0", [8, 1, 1], 0), session(1, "u0", [4, 6], 0), session(2, "u1", [1, 1, 8], 2)]
    test = [session(i, user, [1] * slots, 0) for i, (user, slots) in enumerate([("u0", 3), ("stranger", 3), ("u1", 4)])]
    attention = trivial_predictions(train, test, slot_feature_names=()).query("method == 'user_mean_shrunk'")[
        "attention"
    ]
    population = np.array([1.3 / 3, 0.8 / 3, 0.9 / 2])
    own = (np.array([1.2, 0.7, 0.1]) + 3 * population) / (np.array([2, 2, 1]) + 3)
    np.testing.assert_allclose(attention.iloc[0], own / own.sum())
    np.testing.assert_allclose(attention.iloc[1], population / population.sum())
    wide = np.append((np.array([0.1, 0.1, 0.8]) + 3 * population) / 4, 1 / 4)  # A fourth slot that nobody saw.
    np.testing.assert_allclose(attention.iloc[2], wide / wide.sum())


def test_pages_with_other_numbers_of_slots():
    train = [session(0, "u0", [3, 1], 0), session(1, "u0", [1, 1, 2], 2), session(2, "u1", [1, 1, 1, 1], 3)]
    test = [session(7, "u0", [1, 1], 0), session(8, "u0", [1, 1, 1, 1], 0), session(9, "u0", [1] * 6, 5)]
    frame = trivial_predictions(train, test, slot_feature_names=())
    # u0's means by slot index: (0.75 + 0.25)/2, (0.25 + 0.25)/2, and 0.5 from the one page that has a third slot.
    np.testing.assert_allclose(by_method(frame, "attention", 0)["user_mean"], [2 / 3, 1 / 3])
    # The fourth slot is known from the population only.
    np.testing.assert_allclose(by_method(frame, "attention", 1)["user_mean"], np.array([0.5, 0.25, 0.5, 0.25]) / 1.5)
    # Nobody saw a fifth and sixth slot.
    wide = np.array([0.5, 0.25, 0.5, 0.25, 1 / 6, 1 / 6])
    np.testing.assert_allclose(by_method(frame, "attention", 2)["user_mean"], wide / wide.sum())
    for rows in (frame["attention"].dropna(), frame["log_probs"].dropna().map(np.exp)):
        np.testing.assert_allclose(rows.map(sum), 1.0)
    session_metrics(frame)


def test_someone_who_never_looked_at_the_first_slots():
    train = [session(0, "u0", [0, 0, 5], 2), session(1, "u1", [1, 3, 4], 1)]
    frame = trivial_predictions(train, [session(9, "u0", [1, 1], 0)], slot_feature_names=())
    np.testing.assert_allclose(by_method(frame, "attention")["user_mean"], [0.25, 0.75])
    nobody = trivial_predictions(train[:1], [session(9, "u0", [1, 1], 0)], slot_feature_names=())
    np.testing.assert_allclose(by_method(nobody, "attention")["user_mean_shrunk"], [0.5, 0.5])


def test_majority_click_shrinks_towards_the_population():
    train = [session(i, "u0", [1, 1], 1) for i in range(3)] + [session(9, "u1", [1, 1], 0)]
    frame = trivial_predictions(train, [session(20, "u0", [1, 1], 0)], slot_feature_names=())
    row = frame[frame["method"] == "majority_click"].iloc[0]
    # The population's smoothed frequencies are 2/6 and 4/6, and count as 3 sessions.
    np.testing.assert_allclose(np.exp(row["log_probs"]), [1 / 6, 5 / 6])
    assert row["answer"] == 1


def drawn(count: int, *, weights: dict[str, np.ndarray], seed: int) -> list[StoredSession]:
    """Sessions whose gaze and click follow a softmax of two features with each user's weights."""
    rng = np.random.default_rng(seed)
    sessions = []
    for i in range(count):
        user = list(weights)[i % len(weights)]
        features = np.stack([rng.normal(5, 2, 4), rng.normal(-1, 0.1, 4)], axis=1)
        odds = np.exp(((features - [5, -1]) / [2, 0.1]) @ weights[user])
        sessions.append(session(i, user, (1000 * odds).tolist(), int(rng.choice(4, p=odds / odds.sum())), features))
    return sessions


def test_content_regressions_recover_what_drives_gaze_and_click():
    shared = {user: np.array([1.0, -0.5]) for user in ("u0", "u1")}
    names = ("value", "expected_value")
    summary = summarise(
        session_metrics(
            trivial_predictions(
                drawn(400, weights=shared, seed=0), drawn(200, weights=shared, seed=1), slot_feature_names=names
            )
        )
    ).query("average == 'micro'")
    means = summary.set_index("method")
    assert means.loc["content_regression", "kl"] < 0.01 < 0.1 < means.loc["user_mean", "kl"]
    assert means.loc["content_click", "log_loss"] < 0.9 * means.loc["majority_click", "log_loss"]


def test_personal_regressions_tell_people_apart():
    opposite = {"u0": np.array([1.0, 0.0]), "u1": np.array([-1.0, 0.0])}
    train, test = drawn(400, weights=opposite, seed=0), drawn(200, weights=opposite, seed=1)
    means = summarise(session_metrics(trivial_predictions(train, test, slot_feature_names=("a", "b"))))
    means = means.query("average == 'micro'").set_index("method")
    assert means.loc["personal_content_regression", "kl"] < 0.02 < 0.1 < means.loc["content_regression", "kl"]
    assert means.loc["personal_content_click", "accuracy"] > means.loc["content_click", "accuracy"] + 0.15


def test_a_feature_that_never_changes_is_harmless():
    train = [session(i, "u0", [1, 2], 0, np.array([[3.0], [3.0]])) for i in range(3)]
    frame = trivial_predictions(train, train, slot_feature_names=("constant",))
    np.testing.assert_allclose(by_method(frame, "attention")["content_regression"], [1 / 3, 2 / 3], atol=1e-3)


def test_highest_expected_value_needs_the_feature():
    features = np.array([[0.1, 5.0], [0.9, 7.0], [0.5, 6.0]])
    train = [session(i, "u0", [1, 1, 1], 0, features) for i in range(2)]
    frame = trivial_predictions(train, train, slot_feature_names=("p", "expected_value"))
    row = frame[frame["method"] == "highest_expected_value"].iloc[0]
    assert row["answer"] == 1 and row["log_probs"] is None and row["attention"] is None
    assert "highest_expected_value" not in set(
        trivial_predictions(train, train, slot_feature_names=("p", "m"))["method"]
    )


def test_the_gaze_follows_signal_and_temperature():
    train = [session(0, "u0", [1, 9], 0)]
    train[0].dwell_ms["cursor"] = np.array([9.0, 1.0])
    cursor = trivial_predictions(train, train, slot_feature_names=(), signal="cursor")
    np.testing.assert_allclose(by_method(cursor, "attention")["user_mean"], [0.9, 0.1])
    tempered = trivial_predictions(train, train, slot_feature_names=(), gaze_temperature=2.0)
    np.testing.assert_allclose(by_method(tempered, "gaze")["user_mean"], [0.25, 0.75])


def test_bad_input_is_named():
    good = session(0, "u0", [1, 1], 0)
    with pytest.raises(DataError, match="training and test sessions, got 0 and 1"):
        trivial_predictions([], [good], slot_feature_names=())
    with pytest.raises(DataError, match=r"session 's0'.*no signal 'cursor', only \['fixation'\]"):
        trivial_predictions([good], [good], slot_feature_names=(), signal="cursor")
    with pytest.raises(DataError, match=r"session 's0'.*0 columns for the 1 names \['p'\]"):
        trivial_predictions([good], [good], slot_feature_names=("p",))


@pytest.fixture(scope="module")
def human_sessions(shared_data) -> list[StoredSession]:
    trials = pd.read_csv(shared_data / "human_choice" / "trials.csv")
    sessions = []
    for i, trial in enumerate(trials.to_dict("records")):
        letter_at = {trial[f"pos_{letter}"]: letter for letter in "ABC"}
        letters = [letter_at[column] for column in range(3)]
        dwell = [(trial[f"dwell_{x}p"] + trial[f"dwell_{x}m"]) * trial["dwell_total"] for x in letters]
        shown = np.array([[trial[f"p{x}"], trial[f"m{x}"], trial[f"p{x}"] * trial[f"m{x}"]] for x in letters])
        sessions.append(session(i, str(trial["subject"]), dwell, letters.index(trial["choice"]), shown))
    return sessions


def test_known_figures_on_human_choice(human_sessions):
    """Gaze on three gambles of 20 people: KL of the means over random splits of 70/30 per person is known."""
    users = np.array([one.user_id for one in human_sessions])
    found = []
    for seed in range(3):
        rng, held_out = np.random.default_rng(seed), np.zeros(len(users), bool)
        for user in np.unique(users):
            rows = rng.permutation(np.flatnonzero(users == user))
            held_out[rows[: int(0.3 * len(rows))]] = True
        frame = trivial_predictions(
            [one for one, out in zip(human_sessions, held_out, strict=True) if not out],
            [one for one, out in zip(human_sessions, held_out, strict=True) if out],
            slot_feature_names=("probability", "outcome", "expected_value"),
        )
        summary = summarise(session_metrics(frame)).query("average == 'micro'").set_index("method")
        found.append(summary.drop(columns=["mode", "average"]))
    means = sum(found[1:], found[0]) / len(found)
    assert means.loc["user_mean", "kl"] == pytest.approx(0.0565, abs=0.002)
    assert means.loc["population_mean_given_click", "kl"] == pytest.approx(0.0516, abs=0.002)
    assert means.loc["user_mean_given_click", "kl"] == pytest.approx(0.0482, abs=0.002)
    assert means.loc["content_regression", "kl"] == pytest.approx(0.0522, abs=0.002)
    assert means.loc["personal_content_regression", "kl"] < 0.0505
    assert means.loc["population_mean_given_click", "csh@1"] == pytest.approx(1.0, abs=0.01)
    assert means.loc["personal_content_click", "accuracy"] > means.loc["content_click", "accuracy"] + 0.1


WEIGHTS = {"u0": np.array([1.0, -0.5]), "u1": np.array([-0.5, 1.0])}
NAMES = ("value", "expected_value")


def wider(session: StoredSession) -> StoredSession:
    """The same session with features that differ three times as much."""
    return replace(session, slot_features=3 * session.slot_features)


def same_predictions(found: pd.DataFrame, wanted: pd.DataFrame) -> None:
    """The frames say the same of gaze and clicks, whatever people did."""
    assert found["method"].tolist() == wanted["method"].tolist()
    assert found["answer"].tolist() == wanted["answer"].tolist()
    for column in ("attention", "log_probs"):
        for one, other in zip(found[column], wanted[column], strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                np.testing.assert_allclose(one, other, rtol=1e-9)


def test_a_session_is_predicted_the_same_in_any_company():
    """Nothing is fitted to the sessions to be predicted, not even the scale of the features."""
    train = drawn(40, weights=WEIGHTS, seed=0)
    asked = [wider(one) for one in drawn(5, weights=WEIGHTS, seed=1)]
    together = trivial_predictions(train, asked, slot_feature_names=NAMES)
    for one in asked:
        alone = trivial_predictions(train, [one], slot_feature_names=NAMES)
        same_predictions(together[together["session_id"] == one.session_id], alone)


def test_strengths_chosen_on_validation_beat_constants_where_they_are_wrong():
    """Twenty features of noise for ten sessions each: without a stronger ridge the regressions learn noise by heart."""
    rng = np.random.default_rng(0)

    def noisy(count: int, first: int) -> list[StoredSession]:
        made = []
        for i in range(count):
            dwell, click = rng.dirichlet(np.ones(4)).tolist(), int(rng.integers(4))
            made.append(session(first + i, f"u{i % 8}", dwell, click, rng.normal(size=(4, 20))))
        return made

    names = tuple(f"f{i}" for i in range(20))
    train, validation, test = noisy(80, 0), noisy(40, 100), noisy(200, 200)
    found = {}
    for name, held_out in {"constants": (), "tuned": validation}.items():
        frame = trivial_predictions(train, test, slot_feature_names=names, validation=held_out)
        found[name] = summarise(session_metrics(frame)).query("average == 'micro'").set_index("method")
    for method, metric in (("personal_content_click", "log_loss"), ("majority_click", "log_loss")):
        assert found["tuned"].loc[method, metric] < found["constants"].loc[method, metric] - 0.02
    for method in ("user_mean_shrunk", "personal_content_regression"):
        assert found["tuned"].loc[method, "kl"] < found["constants"].loc[method, "kl"]
    assert found["tuned"].loc["personal_content_click", "log_loss"] < 1.6


def test_the_mean_of_a_training_session_is_that_of_the_others():
    """Whoever knew the session itself would trust the mean too much: two that differ say nothing of a habit."""
    train = [
        session(0, "u0", [9.0, 1.0], 0, np.array([[1.0], [0.0]])),
        session(1, "u0", [1.0, 9.0], 0, np.array([[0.0], [1.0]])),
    ]
    asked = [session(9, "u0", [1.0, 1.0], 0, np.array([[1.0], [0.0]]))]
    attention = by_method(trivial_predictions(train, asked, slot_feature_names=("x",)), "attention")
    assert attention["content_regression"][0] > 0.9 and attention["user_mean"][0] == pytest.approx(0.5)


def test_hidden_features_have_rows_of_their_own():
    shared = dict.fromkeys(("u0", "u1"), np.array([2.0, -0.5]))
    train, test = drawn(200, weights=shared, seed=0), drawn(100, weights=shared, seed=1)
    frame = trivial_predictions(train, test, slot_feature_names=("shown", "secret"), hidden=("shown",))
    means = summarise(session_metrics(frame)).query("average == 'micro'").set_index("method")
    for method, metric in (("personal_content_regression", "kl"), ("personal_content_click", "log_loss")):
        assert means.loc[f"{method}_hidden", metric] < means.loc[method, metric] - 0.05
    plain = trivial_predictions(train, test, slot_feature_names=("shown", "secret"))
    assert not plain["method"].str.endswith("hidden").any()


def test_what_people_did_does_not_change_what_is_predicted():
    train, asked = drawn(40, weights=WEIGHTS, seed=0), drawn(5, weights=WEIGHTS, seed=1)
    done = [
        replace(one, click=(one.click + 1) % 4, dwell_ms={"fixation": one.dwell_ms["fixation"][::-1]}) for one in asked
    ]
    found, other = (trivial_predictions(train, some, slot_feature_names=NAMES) for some in (asked, done))
    assert found["gaze"].tolist() != other["gaze"].tolist()
    told = found["mode"] == "TF"  # These are told the click.
    same_predictions(found[~told], other[~told])


def test_features_have_the_scale_of_training():
    """With features three times as wide as in training, gaze follows the law that was learnt there."""
    shared = dict.fromkeys(("u0", "u1"), np.array([1.0, -0.5]))
    train = drawn(400, weights=shared, seed=0)
    asked = [wider(one) for one in drawn(20, weights=shared, seed=1)]
    frame = trivial_predictions(train, asked, slot_feature_names=NAMES)
    found = frame[frame["method"] == "content_regression"]
    for one, attention in zip(asked, found["attention"], strict=True):
        odds = np.exp(one.slot_features / [2, 0.1] @ shared["u0"])
        np.testing.assert_allclose(attention, odds / odds.sum(), atol=0.08)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_workspaces_predictors_learn_from_its_training_sessions(split):
    weights = {"train": [0.5, 1], "validation": [1, -1], "test": [-1, 0]}
    sessions = {
        name: drawn(12, weights={user: np.array(w, float) for user in ("u0", "u1")}, seed=i)
        for i, (name, w) in enumerate(weights.items())
    }
    store = Mock(slot_feature_names=NAMES, hidden_features=())
    workspace = Mock(spec=Workspace, config=RunConfig(), store=store, sessions=sessions.__getitem__)
    found = predict_without_model(workspace, split)
    train, validation, asked = (sessions[name] for name in ("train", "validation", split))
    wanted = trivial_predictions(train, asked, slot_feature_names=NAMES, validation=validation)
    pd.testing.assert_frame_equal(found, wanted)
