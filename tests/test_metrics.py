"""Metrics against numbers worked out by hand and against SciPy; ties, padding and bad predictions."""

from itertools import permutations

import jax
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon

from fixate_jax.errors import DataError
from fixate_jax.evaluation import metrics
from fixate_jax.lab import frames

KL, JS, COSINE = (jax.jit(function) for function in (metrics.kl, metrics.js, metrics.cosine))


def prediction(**fields) -> dict:
    row = {
        "session_id": "s0",
        "user_id": "u0",
        "split": "test",
        "method": "m",
        "mode": "TF",
        "slots": 3,
        "click": 0,
        "answer": 0,
        "gaze": [0.6, 0.3, 0.1],
        "attention": [0.2, 0.5, 0.3],
        "log_probs": [-1.0, -2.0, -3.0],
    }
    return row | fields


def one(name: str, **fields) -> float:
    return float(frames.session_metrics(pd.DataFrame([prediction(**fields)]))[name].iloc[0])


def test_divergences_by_hand():
    gaze, attention = np.array([0.6, 0.3, 0.1]), np.array([0.2, 0.5, 0.3])
    floored = (gaze * np.log((gaze + 1e-4) / (attention + 1e-4))).sum()
    assert one("kl") == pytest.approx(floored, rel=1e-5)
    assert one("js") == pytest.approx(jensenshannon(gaze, attention) ** 2, rel=1e-5)
    assert one("cosine") == pytest.approx(gaze @ attention / np.linalg.norm(gaze) / np.linalg.norm(attention), rel=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**16), st.integers(1, 8))
def test_js_agrees_with_scipy_where_shares_are_zero(seed, slots):
    rng = np.random.default_rng(seed)
    gaze, attention = rng.dirichlet(np.full(slots, 0.3), size=2)
    gaze, attention = (np.where(x > 0.05, x, 0) / np.where(x > 0.05, x, 0).sum() for x in (gaze, attention))
    expected = jensenshannon(gaze, attention) ** 2
    padded = [np.pad(x, (0, 8 - slots))[None].astype(np.float32) for x in (gaze, attention)]
    mask = np.arange(8)[None] < slots
    assert np.asarray(JS(padded[0], padded[1], mask))[0] == pytest.approx(expected, abs=1e-6)
    assert np.asarray(KL(padded[0], padded[1], mask))[0] <= np.log(1 / 1e-4) + 1e-3


def test_top_k_js_pools_the_tail():
    frame = pd.DataFrame(
        [prediction(slots=4, gaze=[0.5, 0.3, 0.1, 0.1], attention=[0.1, 0.2, 0.3, 0.4], log_probs=None)]
    )
    pooled = jensenshannon([0.5, 0.3, 0.2], [0.1, 0.2, 0.7]) ** 2
    assert frames.session_metrics(frame, top_k=2)["top_k_js"].iloc[0] == pytest.approx(pooled, rel=1e-5)
    whole = frames.session_metrics(frame, top_k=4)
    assert whole["top_k_js"].iloc[0] == pytest.approx(whole["js"].iloc[0], rel=1e-6)


def test_attention_is_scaled_to_one_first():
    for name in ("kl", "js", "cosine", "top_k_js"):
        assert one(name, attention=[0.02, 0.05, 0.03]) == pytest.approx(one(name), rel=1e-5)


def test_rankings_without_ties():
    assert one("csh@1", click=1) == 1 and one("csh@1", click=0) == 0
    assert one("tgo@1") == 0 and one("tgo@3") == 1
    frame = pd.DataFrame(
        [prediction(slots=4, gaze=[0.4, 0.3, 0.2, 0.1], attention=[0.1, 0.4, 0.2, 0.3], log_probs=None)]
    )
    # Top 3 of the gaze: 0, 1, 2; of the attention: 1, 3, 2.
    assert frames.session_metrics(frame)["tgo@3"].iloc[0] == pytest.approx(2 / 3)


def test_a_page_with_fewer_slots_than_k():
    small = {"slots": 2, "gaze": [0.7, 0.3], "attention": [0.4, 0.6], "log_probs": [-1.0, -2.0]}
    assert one("tgo@3", **small) == 1 and one("csh@3", **small) == 1 and one("tgo@1", **small) == 0


def test_ties_count_by_their_chance():
    """Every way to break the ties, averaged: a method that says nothing gains nothing from the order of the slots."""
    gaze, attention = np.array([0.5, 0.5, 0.0, 0.0]), np.array([0.4, 0.2, 0.2, 0.2])

    def top(scores, order, k):
        return set(sorted(range(4), key=lambda slot: (-scores[slot], order[slot]))[:k])

    orders = list(permutations(range(4)))
    frame = pd.DataFrame(
        [prediction(slots=4, click=2, gaze=gaze.tolist(), attention=attention.tolist(), log_probs=None)]
    )
    row = frames.session_metrics(frame, ks=(1, 2, 3)).iloc[0]
    for k in (1, 2, 3):
        overlap = np.mean([len(top(gaze, a, k) & top(attention, b, k)) / k for a in orders for b in orders])
        hit = np.mean([2 in top(attention, order, k) for order in orders])
        assert row[f"tgo@{k}"] == pytest.approx(overlap)
        assert row[f"csh@{k}"] == pytest.approx(hit)


def test_click_metrics_by_hand():
    odds = np.exp([-1.0, -2.0, -3.0])
    assert one("log_loss", click=1) == pytest.approx(-np.log(odds[1] / odds.sum()), rel=1e-5)
    assert one("auc", click=1) == 0.5
    assert one("auc", click=0) == 1.0
    assert one("auc", log_probs=[-1.0, -1.0, -3.0]) == 0.75
    assert one("recall@1", click=1) == 0 and one("recall@3", click=1) == 1
    assert one("accuracy", click=1, answer=0) == 0 and one("accuracy", click=1, answer=1) == 1
    assert np.isnan(one("auc", slots=1, gaze=[1.0], attention=[1.0], log_probs=[-1.0]))


def test_log_probs_need_not_be_normalised():
    assert one("log_loss", log_probs=[4.0, 3.0, 2.0]) == pytest.approx(one("log_loss"), rel=1e-5)


def test_what_is_not_predicted_is_nan():
    gaze_only = frames.session_metrics(pd.DataFrame([prediction(log_probs=None, answer=-1)])).iloc[0]
    assert "log_loss" not in gaze_only and np.isnan(gaze_only["accuracy"]) and gaze_only["kl"] > 0
    both = frames.session_metrics(
        pd.DataFrame(
            [prediction(), prediction(method="clicks", attention=None), prediction(method="looks", log_probs=None)]
        )
    ).set_index("method")
    assert np.isnan(both.loc["clicks", "kl"]) and both.loc["clicks", "log_loss"] > 0
    assert np.isnan(both.loc["looks", "log_loss"]) and both.loc["looks", "kl"] == both.loc["m", "kl"]


def test_pages_of_other_sizes_beside_it_change_nothing():
    big = prediction(
        session_id="s1", slots=5, gaze=[0.2] * 5, attention=[0.1, 0.2, 0.3, 0.4, 0.0], log_probs=[-1.0] * 5
    )
    alone = frames.session_metrics(pd.DataFrame([prediction()]))
    beside = frames.session_metrics(pd.DataFrame([prediction(), big]))
    pd.testing.assert_frame_equal(alone, beside.iloc[:1], rtol=1e-5)


def test_the_parquet_round_trip_is_read_the_same(tmp_path):
    frame = pd.DataFrame([prediction(), prediction(method="clicks", attention=None)])
    frame.to_parquet(tmp_path / "predictions.parquet")
    again = frames.session_metrics(pd.read_parquet(tmp_path / "predictions.parquet"))
    pd.testing.assert_frame_equal(again, frames.session_metrics(frame))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attention": [0.2, 0.8]}, "'attention'.*one value for each slot"),
        ({"attention": [0.2, float("nan"), 0.8]}, "'attention'.*finite"),
        ({"gaze": [0.0, 0.0, 0.0]}, "'gaze'.*above 0 on some slot"),
        ({"gaze": [-0.1, 0.6, 0.5]}, "'gaze'.*not negative"),
        ({"attention": [-0.1, 0.6, 0.5]}, "'attention'.*not negative"),
        ({"log_probs": [-1.0, float("nan"), -2.0]}, "'log_probs'.*finite"),
        ({"click": 3}, "'click' = 3: must be a slot"),
    ],
)
def test_bad_predictions_are_named(fields, message):
    frame = pd.DataFrame([prediction(session_id="good"), prediction(session_id="bad", **fields)])
    with pytest.raises(DataError, match=r"'m' \(TF\) for session 'bad', field " + message):
        frames.session_metrics(frame)


def test_attention_that_is_nowhere_counts_as_uniform():
    frame = pd.DataFrame([prediction(attention=[0.0, 0.0, 0.0]), prediction(method="uniform", attention=[1 / 3] * 3)])
    nowhere, uniform = frames.session_metrics(frame).drop(columns="method").to_dict("records")
    assert nowhere == pytest.approx(uniform)


def test_every_metric_is_a_float64():
    frame = frames.session_metrics(pd.DataFrame([prediction(), prediction(session_id="no-answer", answer=-1)]))
    assert set(frame[frames.metric_columns(frame)].dtypes) == {np.dtype(np.float64)}


def test_missing_columns_and_empty_frames_are_named():
    with pytest.raises(DataError, match=r"lack the columns \['gaze'\]"):
        frames.session_metrics(pd.DataFrame([prediction()]).drop(columns="gaze"))
    with pytest.raises(DataError, match="no predictions"):
        frames.session_metrics(pd.DataFrame([prediction()]).iloc[:0])


def test_micro_is_over_sessions_and_macro_over_users():
    rows = [("a", "u0", 0), ("b", "u0", 0), ("c", "u0", 0), ("d", "u1", 1)]
    frame = pd.DataFrame([prediction(session_id=s, user_id=u, answer=answer) for s, u, answer in rows])
    frame = pd.concat([frame, frame.assign(method="a-second", answer=0)])
    summary = frames.summarise(frames.session_metrics(frame))
    assert summary["method"].tolist() == ["m", "m", "a-second", "a-second"]
    assert summary["average"].tolist() == ["micro", "macro", "micro", "macro"]
    assert summary["accuracy"].tolist() == [0.75, 0.5, 1.0, 1.0]
    assert summary["sessions"].tolist() == [4] * 4 and summary["users"].tolist() == [2] * 4


def test_selection_score():
    means = {"cosine": 0.9, "csh@1": 0.4, "csh@3": 0.8, "tgo@3": 0.5, "top_k_js": 0.2, "accuracy": 0.6}
    forced = 0.09 + 0.08 + 0.2 + 0.1 - 0.02
    assert frames.selection_score(means, free_running=False) == pytest.approx(forced)
    assert frames.selection_score(means, free_running=True) == pytest.approx(forced + 0.15)
    with pytest.raises(DataError, match=r"\['csh@3', 'accuracy'\]"):
        frames.selection_score(means | {"csh@3": float("nan"), "accuracy": float("nan")}, free_running=True)


def test_the_reported_score_is_minus_the_share_of_what_nobody_knows():
    even = {"slots": 4, "click": 1, "answer": 1, "mode": "FR", "split": "validation", "user_id": "u"}
    gaze = [0.7, 0.1, 0.1, 0.1]
    rows = [even | {"session_id": "s", "method": "m", "gaze": gaze, "attention": gaze, "log_probs": [0.0] * 4}]
    metrics = frames.session_metrics(frames.with_uniform(pd.DataFrame(rows)))
    assert metrics["method"].tolist() == ["m", "uniform"]
    looks_right = frames.reported_score(metrics, looks=True, clicks=False)
    assert looks_right == pytest.approx(0, abs=1e-6)
    assert frames.reported_score(metrics, looks=False, clicks=True) == pytest.approx(-1)
    assert frames.reported_score(metrics, looks=True, clicks=True) == pytest.approx(-0.5)
    alone = {"slots": 1, "click": 0, "gaze": [1.0], "attention": [1.0], "log_probs": [0.0]}
    alone |= {"session_id": "s", "method": "m", "answer": 0}
    single = frames.session_metrics(frames.with_uniform(pd.DataFrame([even | alone])))
    assert frames.reported_score(single, looks=True, clicks=True) == 0, "nothing is to be known of a page of one slot"
    # With three slots CSH@3 and TGO@3 are always 1: the published score cannot tell these two apart, this one can.
    three = {"slots": 3, "gaze": [0.5, 0.3, 0.2], "log_probs": [0.0, 1.0, 0.0]}
    near, far = (
        [even | three | {"session_id": "s", "method": "m", "attention": a}] for a in ([5, 3, 2], [9, 0.6, 0.4])
    )
    scores = [
        frames.reported_score(frames.session_metrics(frames.with_uniform(pd.DataFrame(f))), looks=True, clicks=True)
        for f in (near, far)
    ]
    assert scores[0] > scores[1]


def test_a_page_without_attention_has_a_finite_divergence():
    zero, gaze, mask = np.zeros((1, 2), np.float32), np.full((1, 2), 0.5, np.float32), np.ones((1, 2), bool)
    assert np.isfinite(KL(gaze, zero, mask)).all()
    assert np.asarray(COSINE(gaze, zero, mask))[0] == 0
