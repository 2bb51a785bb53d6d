"""What a data set holds: cases worked out by hand, and brute force beside the vectorised sums."""

import jax
import numpy as np
import pytest

from fixate_jax.errors import DataError
from fixate_jax.evaluation import metrics
from fixate_jax.evaluation.statistics import widening
from fixate_jax.lab.analysis import (
    analyse,
    click_bounds,
    click_relation,
    click_tables,
    correlation_interval,
    gaze_bounds,
    identified,
    mean_of_others,
    over_users,
    people_differ,
    random_halves,
    slot_gaze,
    spearman_brown,
    split_half_correlation,
    stability,
    user_means,
)
from fixate_jax.lab.analysis import measures as analysis_measures
from tests.analysis.made_up import PATTERNS, SETTINGS, layout, made_up


def test_people_with_fixed_patterns_are_found_again_and_again():
    user = np.tile(np.arange(3), 5)
    table = stability(layout(PATTERNS[user], user), halvings=20, seed=0).set_index("measure")
    assert table["value"].to_numpy() == pytest.approx([1.0, 1.0, 1.0])
    assert table.loc["split-half correlation", ["low", "high", "sd"]].tolist() == pytest.approx([1, 1, 0])
    assert table["chance"].to_numpy() == pytest.approx([0, 0, 1 / 3])
    assert table.loc["split-half correlation", "p"] < 0.01
    assert (table["users"] == 3).all() and (table["sessions"] == 15).all()


def test_noise_is_at_chance():
    user = np.repeat(np.arange(40), 30)
    gaze = np.random.default_rng(3).dirichlet(np.ones(3), user.size)
    table = stability(layout(gaze, user), halvings=50, seed=0).set_index("measure")
    correlation, found = table.loc["split-half correlation"], table.loc["identified"]
    assert abs(correlation["value"]) < 0.15 and correlation["low"] < 0 < correlation["high"]
    assert correlation["p"] > 0.05 and found["chance"] == 1 / 40
    assert found["value"] == pytest.approx(1 / 40, abs=0.015) and found["low"] <= 1 / 40 <= found["high"]


def test_people_who_do_not_differ_have_no_correlation():
    user = np.repeat(np.arange(4), 6)
    gaze = np.tile(PATTERNS[0], (24, 1))
    table = stability(layout(gaze, user), halvings=3, seed=0).set_index("measure")
    assert table.loc[["split-half correlation", "reliability"], ["value", "low", "high"]].isna().all(axis=None)
    assert table.loc["split-half correlation", "p"] == 1
    assert table.loc["identified", "value"] == pytest.approx(1 / 4)


def test_halves_share_each_persons_sessions():
    rng = np.random.default_rng(0)
    user = rng.permutation(np.repeat([0, 1, 2], [2, 7, 8]))
    gaze = rng.dirichlet(np.ones(4), user.size)
    first, second = random_halves(gaze, user, halvings=30, seed=5)
    sums = first * np.array([1, 3, 4])[:, None] + second * np.array([1, 4, 4])[:, None]
    np.testing.assert_allclose(sums, np.broadcast_to([gaze[user == u].sum(axis=0) for u in range(3)], sums.shape))
    # Both sessions of person 0 are in the first half now and then, and no other value is possible.
    one, other = gaze[user == 0]
    is_one = np.isclose(first[:, 0], one).all(axis=1)
    assert 5 < is_one.sum() < 25 and np.isclose(first[~is_one, 0], other).all()
    assert len(np.unique(np.round(first[:, 2, 0], 12))) > 15
    again, changed = (random_halves(gaze, user, halvings=30, seed=seed)[0] for seed in (5, 6))
    assert (first == again).all() and not np.allclose(first, changed)
    with pytest.raises(DataError, match=r"person 1 has 1 session\(s\), two halves need at least 2"):
        random_halves(gaze[:4], np.array([0, 0, 0, 1]), halvings=1, seed=0)


def test_the_correlation_is_pearsons_over_people_and_slots():
    rng = np.random.default_rng(0)
    first, second = rng.dirichlet(np.ones(3), (2, 6)), rng.dirichlet(np.ones(3), (2, 6))
    centred = [(half - half.mean(axis=1, keepdims=True)).reshape(2, -1) for half in (first, second)]
    wanted = [np.corrcoef(a, b)[0, 1] for a, b in zip(*centred, strict=True)]
    np.testing.assert_allclose(split_half_correlation(first, second), wanted)
    # By hand: people are 0.1 above and below the mean in one half, the other way round in the other.
    up = np.array([[[0.6, 0.4], [0.4, 0.6]]])
    assert split_half_correlation(up, up[:, ::-1] + np.array([0.1, -0.1])) == pytest.approx(-1)


def test_spearman_brown():
    assert spearman_brown(0.5) == pytest.approx(2 / 3)
    assert spearman_brown(-0.5) == pytest.approx(-2 / 3)
    assert spearman_brown(1.0) == 1 and np.isnan(spearman_brown(np.nan))


def test_the_interval_is_that_of_resampled_people(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(analysis_measures, "RESAMPLES", 40)
    rng = np.random.default_rng(1)
    first, second = rng.dirichlet(np.ones(3), (4, 5)), rng.dirichlet(np.ones(3), (4, 5))
    counts = np.random.default_rng(7).multinomial(5, np.full(5, 1 / 5), size=40)
    drawn = [np.repeat(np.arange(5), count) for count in counts]
    brute = [split_half_correlation(first[:, rows], second[:, rows]).mean() for rows in drawn]
    found = correlation_interval(first, second, seed=7)
    assert found.mean == pytest.approx(split_half_correlation(first, second).mean())
    wide = found.mean + widening(5) * (np.quantile(brute, [0.025, 0.975]) - found.mean)
    assert [found.low, found.high] == pytest.approx(np.clip(wide, -1, 1).tolist())


def test_identification_by_hand():
    a, b, c = PATTERNS
    # The second and third person's other halves are exchanged.
    assert identified(np.array([[a, b, c]]), np.array([[a, c, b]])).tolist() == [[1, 0, 0]]
    # From the first half, person 1 is nearest to the tied pair; back again, everybody is nearest to the same half.
    near = identified(np.array([[a, b]]), np.array([[a, a]]))
    assert near.tolist() == [[(1 / 2 + 1) / 2, (1 / 2 + 0) / 2]]


def test_the_permutation_test_by_counting():
    gaze = np.array([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    # Of the 6 ways to give two sessions each to two people, 2 keep the pairs together.
    assert people_differ(gaze, np.array([0, 0, 1, 1]), seed=0) == pytest.approx(1 / 3, abs=0.06)
    assert people_differ(gaze, np.array([0, 1, 0, 1]), seed=0) == 1


# Three slots, three slots with a tie at the top, two slots, two slots with a tie between the clicked and the other.
# What stands where a page has no slot does not matter.
GAZE = np.array([[0.5, 0.3, 0.2], [0.4, 0.4, 0.2], [0.3, 0.7, 0.9], [0.5, 0.5, 0.1]])
CLICK = np.array([1, 0, 1, 0])
MASK = np.array([[1, 1, 1], [1, 1, 1], [1, 1, 0], [1, 1, 0]], bool)


def test_clicks_by_hand():
    found = click_relation(GAZE, CLICK, MASK)
    assert found["longest_clicked"].tolist() == [0, 0.5, 1, 0.5]
    assert found["clicked_gaze"].tolist() == [0.3, 0.4, 0.7, 0.5]
    assert found["auc"].tolist() == [0.5, 0.75, 1, 0.5]
    assert found["chance"].tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 2, 1 / 2])
    with pytest.raises(DataError, match="at least 2 slots"):
        click_relation(GAZE[:1], CLICK[:1], np.array([[True, False, False]]))

    over, by_user = click_tables(found, ["u10", "u2", "u2", "u2"], seed=0)
    assert by_user["user_id"].tolist() == ["u2", "u10"] and by_user["sessions"].tolist() == [3, 1]
    assert by_user["longest_clicked"].tolist() == pytest.approx([2 / 3, 0])
    over = over.set_index("measure")
    assert over.loc["longest_clicked", ["micro", "macro"]].tolist() == pytest.approx([0.5, 1 / 3])
    assert over.loc["longest_clicked", "chance"] == pytest.approx((4 / 9 + 1 / 3) / 2)
    assert over.loc["auc", ["micro", "macro", "chance"]].tolist() == pytest.approx([0.6875, 0.625, 0.5])
    assert over["better"].tolist() == [1, 1, 1] and (over["users"] == 2).all() and (over["sessions"] == 4).all()


def test_clicks_are_measured_as_the_metrics_do():
    rng = np.random.default_rng(0)
    slots = rng.integers(2, 6, 60)
    mask = np.arange(5) < slots[:, None]
    gaze = np.where(mask, rng.integers(0, 4, (60, 5)) + 0.25, 0)
    click = rng.integers(0, slots)
    found = click_relation(gaze, click, mask)
    hits, auc = (
        jax.jit(metrics.hit_at_k, static_argnums=3)(gaze, click, mask, 1),
        jax.jit(metrics.auc)(gaze, click, mask),
    )
    np.testing.assert_allclose(found["longest_clicked"], hits, rtol=1e-6)
    np.testing.assert_allclose(found["auc"], auc, rtol=1e-6)


def test_means_over_sessions_and_people():
    found = over_users(
        np.array([1.0, 2.0, 6.0]),
        np.array([8, 1, 1]),
        against=np.array([0.0, 3.0, 6.0 + 1e-15]),
        seed=0,
        lower_is_better=True,
    )
    assert (found["micro"], found["macro"], found["better"]) == (1.6, 3.0, 1)
    assert (found["users"], found["sessions"], found["p"]) == (3, 10, 1.0)
    assert found["low"] is not None and found["high"] is not None and found["low"] < 3 < found["high"]
    alone = over_users(np.array([1.0, 2.0]), np.array([1, 1]), against=None, seed=0)
    assert alone["better"] is None and alone["p"] is not None and np.isnan(alone["p"])


def test_means_of_all_other_sessions():
    rng = np.random.default_rng(0)
    values, group = rng.random((7, 2)), np.array([0, 2, 0, 2, 2, 1, 0])
    found = mean_of_others(values, group)
    for i in range(7):
        others = values[(group == group[i]) & (np.arange(7) != i)]
        np.testing.assert_allclose(found[i], others.mean(axis=0) if len(others) else [np.nan, np.nan])
    np.testing.assert_allclose(user_means(values, group)[2], values[group == 2].mean(axis=0))


def test_bounds_of_gaze_by_brute_force():
    rng = np.random.default_rng(0)
    user = np.repeat([0, 1, 2], [4, 6, 9])
    gaze, click = rng.dirichlet(np.ones(3), user.size), rng.integers(0, 2, user.size)
    click[2] = 2  # Nobody else clicks there, so the means are taken without the click.
    table = gaze_bounds(layout(gaze, user, click), seed=0).set_index("predictor")

    def brute(same: np.ndarray, fallback: np.ndarray) -> float:
        kl = []
        for i in range(user.size):
            rows = [rule[i] & (np.arange(user.size) != i) for rule in (same, fallback)]
            m = gaze[rows[0] if rows[0].any() else rows[1]].mean(axis=0)
            kl.append((gaze[i] * np.log((gaze[i] + 1e-4) / (m + 1e-4))).sum())
        return float(np.mean(kl))

    def shrunk() -> float:
        """Of 0.3 to 80 sessions of everybody, as many as are best for all other people."""
        priors = (0.3, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0, 40.0, 80.0)
        kl = np.zeros((len(priors), user.size))
        for i in range(user.size):
            others = np.arange(user.size) != i
            mine = gaze[others & (user == user[i])]
            for p, prior in enumerate(priors):
                m = (mine.sum(axis=0) + prior * gaze[others].mean(axis=0)) / (len(mine) + prior)
                kl[p, i] = (gaze[i] * np.log((gaze[i] + 1e-4) / (m + 1e-4))).sum()
        means = np.stack([kl[:, user == u].mean(axis=1) for u in range(user.max() + 1)], axis=1)
        best = [np.delete(means, u, axis=1).mean(axis=1).argmin() for u in range(user.max() + 1)]
        return float(np.mean([kl[best[u], i] for i, u in enumerate(user)]))

    everybody = np.ones((user.size, user.size), bool)
    own, clicked = user[:, None] == user, click[:, None] == click
    wanted = {
        "uniform": (gaze * np.log((gaze + 1e-4) / (1 / 3 + 1e-4))).sum(axis=1).mean(),
        "population_mean": brute(everybody, everybody),
        "user_mean": brute(own, own),
        "user_mean_shrunk": shrunk(),
        "population_mean_given_click": brute(clicked, everybody),
        "user_mean_given_click": brute(own & clicked, own),
    }
    assert table["micro"].to_dict() == pytest.approx(wanted)
    assert table["told_click"].tolist() == [False] * 4 + [True] * 2
    assert table.loc["uniform", "better"] is None and table["better"].iloc[1:].map(type).eq(int).all()


def test_own_means_are_better_where_people_differ():
    data = analyse(made_up(6, 20), SETTINGS)
    table = data.tables["bounds"].set_index(["measure", "predictor"])
    own = table.loc[("kl", "user_mean")]
    assert own["against"] == "population_mean" and own["better"] == 6 and own["p"] == pytest.approx(2 / 2**6)
    assert own["macro"] < 0.5 * table.loc[("kl", "population_mean"), "macro"]


def test_bounds_of_clicks_by_hand():
    user, click = np.repeat([0, 1], 4), np.array([0, 0, 0, 0, 1, 1, 1, 1])
    one = layout(np.full((8, 2), 0.5), user, click)
    found = click_bounds(one, halvings=4, seed=0).set_index(["measure", "predictor"])
    table = found["micro"]
    assert table["log_loss"]["uniform"] == pytest.approx(np.log(2))
    # 3 and 4 of the other sessions, and one on each slot; then the person's 3 and 3 sessions' worth of that.
    assert table["log_loss"]["population_click"] == pytest.approx(-np.log(4 / 9))
    assert table["log_loss"]["majority_click"] == pytest.approx(-np.log((3 + 3 * 4 / 9) / 6))
    # Everybody's clicks tie, the person's do not.
    assert table["accuracy"].tolist() == pytest.approx([0.5, 0.5, 1.0])
    assert found["better"].tolist() == [None, 0, 2, None, 0, 2], "more accurate, and less of a loss than the population"


def test_clicks_at_random_are_not_known_beforehand():
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(30), 60)
    one = layout(np.full((user.size, 3), 1 / 3), user, rng.integers(0, 3, user.size))
    table = click_bounds(one, halvings=20, seed=0).set_index(["measure", "predictor"])
    assert table.loc["accuracy", "micro"].to_numpy() == pytest.approx([1 / 3] * 3, abs=0.02)
    assert table.loc[("log_loss", "majority_click"), "micro"] > np.log(3)


def test_mean_gaze_of_each_person_and_slot():
    user = np.array([0, 1, 1, 1])
    table = slot_gaze(layout(np.array([[1.0, 0], [0.2, 0.8], [0.3, 0.7], [0.4, 0.6]]), user))
    assert table["user_id"].tolist() == ["u0", "u0", "u1", "u1"] and table["label"].tolist() == ["A", "B"] * 2
    assert table["gaze"].tolist() == pytest.approx([1, 0, 0.3, 0.7])
    assert table["population"].tolist() == pytest.approx([0.65, 0.35] * 2)
    assert table["difference"].tolist() == pytest.approx([0.35, -0.35, -0.35, 0.35])
    assert table["sessions"].tolist() == [1, 1, 3, 3]
    assert table.loc[1, ["x0", "y0", "x1", "y1"]].tolist() == [0.5, 0.2, 1.0, 0.9]
