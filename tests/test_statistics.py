"""Tests and intervals over users against SciPy and simulations; degenerate inputs."""

import numpy as np
import pandas as pd
import pytest
import scipy
from scipy import stats

from fixate_jax.errors import DataError
from fixate_jax.evaluation.statistics import (
    bootstrap_interval,
    crossed_interval,
    holm,
    paired_wilcoxon,
    resamples,
    widening,
)
from fixate_jax.lab.frames import compare_methods, over_seeds


def test_wilcoxon_agrees_with_scipy_and_counts_users():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=20), rng.normal(0.5, size=20)
    test = paired_wilcoxon(first, second)
    assert test.p_value == pytest.approx(stats.wilcoxon(first, second).pvalue)
    assert test.better == (first > second).sum() and test.better + test.worse == test.users == 20
    flipped = paired_wilcoxon(first, second, lower_is_better=True)
    assert (flipped.better, flipped.worse, flipped.p_value) == (test.worse, test.better, test.p_value)
    assert test.mean_difference == pytest.approx((first - second).mean())


def test_equal_users_leave_nothing_to_test():
    values = np.array([0.1, 0.2, 0.3])
    test = paired_wilcoxon(values, values)
    assert (test.p_value, test.better, test.worse, test.mean_difference) == (1.0, 0, 0, 0.0)


def test_equal_users_are_left_out_of_the_ranks():
    first = np.array([0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    test = paired_wilcoxon(first, np.zeros(8))
    assert (test.users, test.better, test.worse) == (8, 6, 0)
    assert test.p_value == pytest.approx(2 / 2**6) == test.smallest_p


def test_few_users_cannot_decide_and_it_says_so():
    test = paired_wilcoxon(np.array([1.0, 2.0, 3.0]), np.zeros(3))
    assert test.p_value == test.smallest_p == 0.25
    assert paired_wilcoxon(np.array([1.0]), np.zeros(1)).p_value == 1.0


@pytest.mark.parametrize("values", [np.array([]), np.array([1.0, np.nan])])
def test_unusable_values_are_refused(values):
    with pytest.raises(DataError, match=r"at least one user|finite"):
        paired_wilcoxon(values, values)
    with pytest.raises(DataError, match="at least one user, and a finite value"):
        bootstrap_interval(values, seed=0)


def test_bootstrap_is_seeded_and_near_the_normal_interval():
    values = np.random.default_rng(1).normal(2.0, 1.0, size=200)
    interval = bootstrap_interval(values, seed=3)
    assert interval == bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)
    half = 1.96 * values.std() / np.sqrt(200)
    assert interval.mean == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.02)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.02)
    narrow = bootstrap_interval(values, seed=3, level=0.5)
    assert interval.low < narrow.low < narrow.high < interval.high


@pytest.mark.parametrize("users", [3, 5, 12, 20, 40])
def test_intervals_of_few_users_leave_out_the_truth_no_more_often_than_they_say(users):
    rng, times = np.random.default_rng(users), 1500
    found = [bootstrap_interval(rng.normal(size=users), seed=i, samples=500) for i in range(times)]
    assert np.mean([one.low <= 0 <= one.high for one in found]) >= 0.93
    if users > 5:  # From a skewed law, which three or five values cannot show.
        found = [bootstrap_interval(rng.exponential(size=users), seed=i, samples=500) for i in range(times)]
        assert np.mean([one.low <= 1 <= one.high for one in found]) >= 0.92


def test_percentiles_widened_for_few_users_cover_the_truth():
    rng, covered = np.random.default_rng(0), {}
    for users in (5, 12, 40):
        inside = []
        for i in range(1000):
            values = rng.normal(size=users)
            low, high = np.quantile(resamples(users, seed=i, samples=400) @ values / users, [0.025, 0.975])
            mean = values.mean()
            inside.append([w * (low - mean) <= -mean <= w * (high - mean) for w in (1, widening(users))])
        covered[users] = np.mean(inside, axis=0)
    assert covered[5][0] < 0.88 and all(wide >= 0.93 for _, wide in covered.values())
    assert widening(3) == pytest.approx(4.3027 / 1.9600 * np.sqrt(1.5), rel=1e-3) and np.isnan(widening(1))


def test_one_user_has_no_interval_and_equal_ones_a_point():
    alone = bootstrap_interval(np.array([2.0]), seed=0)
    assert alone.mean == 2.0 and np.isnan([alone.low, alone.high]).all()
    for users in (9, 12, 20, 50):
        same = bootstrap_interval(np.full(users, 0.1), seed=0)
        assert same.low == same.high == pytest.approx(0.1)


@pytest.mark.parametrize(("users", "differing"), [(12, 1), (12, 3), (20, 3), (20, 4), (50, 2)])
def test_where_few_users_differ_the_interval_is_finite(users, differing):
    values = np.zeros(users)
    values[:differing] = np.linspace(0.2, 0.4, differing)
    found = bootstrap_interval(values, seed=0)
    student = scipy.stats.t.interval(0.95, users - 1, values.mean(), values.std(ddof=1) / np.sqrt(users))
    assert found.low <= student[0] + 1e-12 and student[1] - 1e-12 <= found.high < values.mean() + 20 * values.std()


@pytest.mark.parametrize(("users", "pages"), [(20, 20), (20, 3), (4, 12)])
def test_an_interval_over_users_and_pages_covers_what_other_pages_would_show(users, pages):
    rng = np.random.default_rng(3)
    crossed, alone = [], []
    for _ in range(500):
        values = rng.normal(size=(users, 1)) + rng.normal(size=(1, pages)) + 0.5 * rng.normal(size=(users, pages))
        crossed.append(crossed_interval(values))
        alone.append(bootstrap_interval(values.mean(axis=1), seed=0, samples=500))
    covered, short = (np.mean([found.low <= 0 <= found.high for found in each]) for each in (crossed, alone))
    assert covered >= 0.93
    assert users < pages or short < 0.85, "users alone do not answer for other pages"
    assert crossed[0].mean == pytest.approx(alone[0].mean)


def test_what_no_interval_over_users_and_pages_can_be_made_of():
    with pytest.raises(DataError, match="a finite value of each user on each page"):
        crossed_interval(np.full((20, 20), np.nan))
    with pytest.raises(DataError, match="needs two of each, got 20 × 1"):
        crossed_interval(np.zeros((20, 1)))
    assert crossed_interval(np.ones((3, 3))).low == 1.0


def users_frame() -> pd.DataFrame:
    rows = [("ours", "TF", user, 0.1 * i) for i, user in enumerate("abcd")]
    rows += [("theirs", "FR", user, 0.1 * i + 0.05) for i, user in enumerate("bcde", start=1)]
    return pd.DataFrame(rows, columns=["method", "mode", "user_id", "kl"])


def test_methods_are_compared_over_the_users_that_both_have():
    test, interval = compare_methods(users_frame(), "kl", first=("ours", "TF"), second=("theirs", "FR"))
    assert (test.users, test.better, test.worse) == (3, 3, 0)
    assert test.mean_difference == pytest.approx(-0.05)
    assert interval.low == pytest.approx(-0.05) and interval.high == pytest.approx(-0.05)


def test_an_unknown_method_is_named():
    with pytest.raises(DataError, match=r"'ours' in mode 'FR'; there are \[\('ours', 'TF'\), \('theirs', 'FR'\)\]"):
        compare_methods(users_frame(), "kl", first=("ours", "FR"), second=("theirs", "FR"))


def test_mean_and_deviation_over_seeds():
    base = pd.DataFrame(
        {
            "method": ["m", "m"],
            "mode": ["TF", "TF"],
            "average": ["micro", "macro"],
            "sessions": 4,
            "users": 2,
            "kl": 0.0,
        }
    )
    spread = over_seeds([base.assign(kl=kl) for kl in (1.0, 2.0, 3.0)])
    assert spread.columns.tolist() == ["method", "mode", "average", "seeds", "kl mean", "kl sd"]
    assert spread["kl mean"].tolist() == [2.0, 2.0] and spread["kl sd"].tolist() == [1.0, 1.0]
    assert spread["seeds"].tolist() == [3, 3]
    assert over_seeds([base])["kl sd"].isna().all()
    with pytest.raises(DataError, match="at least one summary"):
        over_seeds([])


def test_holm_by_hand():
    # Smallest first: 4 × 0.01, 3 × 0.02, then 2 × 0.02 and 1 × 0.5, which may not fall below what came before.
    assert holm(np.array([0.02, 0.5, 0.01, 0.02])) == pytest.approx([0.06, 0.5, 0.04, 0.06])
    assert holm(np.array([0.6, 0.9])).tolist() == [1.0, 1.0] and holm(np.array([0.03])).tolist() == [0.03]


def test_holm_keeps_false_findings_rare():
    rng = np.random.default_rng(0)
    found = [holm(rng.uniform(size=8)).min() < 0.05 for _ in range(2000)]
    assert 0.03 < np.mean(found) < 0.065
