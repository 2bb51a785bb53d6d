"""Measures of fidelity find what was put into made-up predictions, and nothing where nothing is."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fixate_jax.errors import ConfigError, DataError
from fixate_jax.evaluation.statistics import widening
from fixate_jax.lab.cli import commands as cli
from fixate_jax.lab.cli.fidelity import read_predictions
from fixate_jax.lab.config import RunConfig
from fixate_jax.lab.experiments import experiment
from fixate_jax.lab.fidelity import fidelity as f
from fixate_jax.lab.fidelity import measures as m
from fixate_jax.lab.settings import dump_config
from fixate_jax.runtime.lock import locked

USERS, SESSIONS, SLOTS = 16, 30, 5


@pytest.fixture(autouse=True)
def fewer_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f, "SAMPLES", 400)
    monkeypatch.setattr(f, "SIMULATIONS", 30)


def laws(spread: float, seed: int = 0) -> np.ndarray:
    """What each user does on the mean: shares by slot."""
    scores = spread * np.random.default_rng(seed).normal(size=(USERS, SLOTS))
    return np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)


def frame(methods: dict[str, np.ndarray], *, theirs: np.ndarray, seed: int = 0, sharp: float = 1.0) -> pd.DataFrame:
    """Predictions of methods that say the same in every session of a user; people look and click by ``theirs``.

    With ``sharp`` above 1 the methods are surer of clicks than they should be.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(USERS):
        for session in range(SESSIONS):
            gaze = rng.dirichlet(20 * theirs[user])
            click = int(rng.choice(SLOTS, p=theirs[user]))
            for method, shares in methods.items():
                rows.append(
                    {
                        "session_id": f"{user}/{session}",
                        "user_id": str(user),
                        "split": "test",
                        "method": method,
                        "mode": "FR",
                        "slots": SLOTS,
                        "click": click,
                        "answer": int(shares[user].argmax()),
                        "gaze": gaze,
                        "attention": 3 * shares[user],
                        "log_probs": sharp * np.log(shares[user]),
                    }
                )
    return pd.DataFrame(rows)


def values(frames: list[pd.DataFrame], method: str) -> dict[str, float]:
    humans, predicted = f.gather(frames)
    return {name: found.value for name, found in f.measure(humans, predicted[method]).items()}


def test_who_follows_the_law_of_people_is_faithful() -> None:
    theirs = laws(1.0)
    made = frame({"fixate": theirs, "backbone": np.full_like(theirs, 1 / SLOTS)}, theirs=theirs)
    humans, predicted = f.gather([made])
    found = f.measure(humans, predicted["fixate"])
    assert set(found) == set(f.MEASURES)
    for name in ("log loss", "brier", "user click share js"):
        assert found[name].value == pytest.approx(found[name].floor, rel=0.1), name
    for name in ("ece", "slot ece", "click share js"):
        assert 0 < found[name].value < 3 * found[name].floor < 0.2, name
    assert found["click spread"].value == pytest.approx(1, abs=0.12)
    assert found["gaze spread"].value == pytest.approx(1, abs=0.05)
    assert found["gaze likeness"].value > 0.98
    assert 0.8 < found["click likeness"].value < 1
    assert found["gaze share js"].value < 1e-4


def test_who_is_too_sure_is_not_calibrated() -> None:
    theirs = laws(1.0)
    humans, predicted = f.gather([frame({"fixate": theirs}, theirs=theirs, sharp=3.0)])
    found = f.measure(humans, predicted["fixate"])
    assert found["ece"].value > 0.25 > 3 * found["ece"].floor
    assert found["log loss"].value > 1.5 * found["log loss"].floor
    curve = f.reliability_table(humans, predicted)
    last = curve[curve["method"] == "fixate"].iloc[-1]
    assert last["high"] < last["predicted"]


def test_users_who_are_all_alike_do_not_differ() -> None:
    theirs = laws(1.0)
    alike = np.tile(theirs.mean(axis=0), (USERS, 1))
    found = values([frame({"fixate": theirs, "alike": alike}, theirs=theirs)], "alike")
    for name in ("click spread", "click likeness", "gaze spread", "gaze likeness"):
        assert found[name] == pytest.approx(0, abs=1e-6), name


def test_chance_alone_makes_no_people() -> None:
    rng = np.random.default_rng(3)
    owner = np.repeat(np.arange(400), 5)
    clicked = np.eye(SLOTS)[rng.integers(SLOTS, size=len(owner))]
    counts = np.ones((1, 400), int)
    means = m.sums_by_user(clicked, owner) / 5
    naive = np.sqrt(means.var(axis=0).sum())
    assert naive > 0.35
    assert m.spread(clicked, owner, counts)[0] < 0.25 * naive
    # Added differences come out as large as they are, of few sessions of each.
    shift = rng.normal(size=(400, SLOTS))
    assert m.spread(clicked + shift[owner], owner, counts)[0] == pytest.approx(np.sqrt(SLOTS), rel=0.06)


def test_distances_are_those_of_the_formula() -> None:
    first = np.array([[1.0, 0.0], [1.0, 1.0], [0.2, 0.8]])
    second = np.array([[0.0, 2.0], [1.0, 0.0], [0.1, 0.4]])
    half = (np.log(1 / 0.75) + 0.5 * np.log(0.5 / 0.75) + 0.5 * np.log(0.5 / 0.25)) / 2
    np.testing.assert_allclose(m.jensen_shannon(first, second), [np.log(2), half, 0], atol=1e-12)


def test_calibration_is_that_of_the_formula() -> None:
    predicted = np.array([0.2, 0.2, 0.2, 0.2, 0.7, 0.7])
    happened = np.array([1.0, 0.0, 0.0, 0.0, 1.0, 1.0])
    owner = np.array([0, 0, 1, 1, 0, 1])
    assert m.bins_of(predicted).tolist() == [0, 0, 0, 0, 1, 1]
    counts = np.array([[1, 1], [2, 0]])
    alone = (abs(0.4 - 1) + abs(0.7 - 1)) / 3
    np.testing.assert_allclose(m.calibration_error(predicted, happened, owner, counts), [0.8 / 6, alone])


def test_likeness_is_told_from_chance() -> None:
    theirs = laws(1.0)
    assert m.likeness_p(theirs, theirs + 0.02 * laws(1.0, seed=1), seed=0) < 0.001
    assert m.likeness_p(theirs, laws(1.0, seed=2), seed=0) > 0.02
    everybody = np.ones((1, USERS), int)
    assert m.likeness(theirs, 0.5 * theirs + 0.1, everybody)[0] == pytest.approx(1)
    assert m.likeness(theirs, theirs.mean() - theirs, everybody)[0] == pytest.approx(-1)


def test_the_table_compares_everything_with_fixate() -> None:
    theirs = laws(1.0)
    made = frame({"fixate": theirs, "backbone": laws(0.5, seed=9), "uniform": np.full_like(theirs, 0.2)}, theirs=theirs)
    table = f.measures_table(*f.gather([made]))
    rows = table.set_index(["measure", "method"])
    kl = rows.loc[("kl", "backbone")]
    assert kl["difference"] < 0 and kl["difference high"] < 0 and kl["p"] < 0.01
    assert kl["p"] < kl["p holm"] <= 1
    assert rows["p"].notna().sum() == rows["p holm"].notna().sum() > 10
    assert (rows["low"] <= rows["value"] + 1e-8).all() and (rows["value"] <= rows["high"] + 1e-8).all()
    # Who gives every slot the same is right on the whole, and knows nobody.
    assert rows.loc[("slot ece", "uniform"), "value"] == pytest.approx(0, abs=1e-9)
    assert rows.loc[("click likeness", "uniform"), "value"] == 0
    assert rows.loc[("click likeness", "fixate"), "p"] < 0.01
    pd.testing.assert_frame_equal(table, f.measures_table(*f.gather([made])))


def test_seeds_are_no_more_people() -> None:
    theirs = laws(1.0)
    one, other = (frame({"fixate": shares, "alike": theirs}, theirs=theirs) for shares in (theirs, laws(0.5, seed=4)))
    both = f.measures_table(*f.gather([one, other])).set_index(["measure", "method"])
    alone = [f.measures_table(*f.gather([each])).set_index(["measure", "method"]) for each in (one, other)]
    kl = [table.loc[("kl", "fixate"), "value"] for table in alone]
    assert both.loc[("kl", "fixate"), "value"] == pytest.approx(np.mean(kl))
    assert both.loc[("kl", "fixate"), "sd"] == pytest.approx(np.std(kl, ddof=1))
    width = [t.loc[("kl", "alike"), "high"] - t.loc[("kl", "alike"), "low"] for t in (both, alone[0])]
    assert width[0] == pytest.approx(width[1])


def test_people_lie_on_the_position_curve() -> None:
    theirs = laws(1.0)
    humans, predicted = f.gather([frame({"fixate": theirs}, theirs=theirs)])
    table = f.slots_table(humans, predicted)
    people = table[(table["kind"] == "clicks") & (table["method"] == "people")]
    np.testing.assert_allclose(people["share"], np.bincount(humans.click) / len(humans.click))
    assert (table.groupby(["kind", "method"])["share"].sum().round(9) == 1).all()
    assert table["low"].le(table["share"]).all() and table["high"].ge(table["share"]).all()


def test_pages_of_another_size_are_left_out() -> None:
    made = frame({"fixate": laws(1.0)}, theirs=laws(1.0))
    odd = made.iloc[:1].assign(session_id="odd", slots=2, click=0, gaze=[np.ones(2)], attention=[np.ones(2)])
    humans, _ = f.gather([pd.concat([made, odd.assign(log_probs=[np.zeros(2)])], ignore_index=True)])
    assert humans.left_out == 1
    assert humans.gaze.shape == (USERS * SESSIONS, SLOTS)


def test_who_has_one_session_alone_is_left_out() -> None:
    made = frame({"fixate": laws(1.0)}, theirs=laws(1.0))
    alone = made.iloc[:1].assign(session_id="alone", user_id="alone")
    humans, predicted = f.gather([pd.concat([alone, made], ignore_index=True)])
    assert humans.left_out == 1 and "alone" not in humans.users and len(humans.users) == USERS
    assert f.measure(humans, predicted["fixate"])["log loss"].value > 0


def test_predictions_older_than_prompts_are_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "mine"
    kept = run / "seed-42" / "checkpoints" / "step_3"
    kept.mkdir(parents=True)
    (run / "config.yaml").write_text(dump_config(RunConfig()), encoding="utf-8")
    told = run / "seed-42" / "predictions-test.parquet"
    frame({"fixate": laws(1.0)}, theirs=laws(1.0)).to_parquet(told)
    asked: list[str] = []
    monkeypatch.setattr(experiment, "open_run", lambda run, **how: (None, None))
    monkeypatch.setattr(experiment, "evaluate_run", lambda workspace, run, split: asked.append(split))
    os.utime(kept, (1, 1))
    read_predictions(run, "test")
    assert asked == []
    later = told.stat().st_mtime + 5
    os.utime(kept, (later, later))
    read_predictions(run, "test")
    assert asked == ["test"]
    with locked(run), pytest.raises(ConfigError, match="another run"):
        read_predictions(run, "test")


def test_predictions_that_do_not_serve_are_named() -> None:
    made = frame({"fixate": laws(1.0), "backbone": laws(0.1)}, theirs=laws(1.0))
    with pytest.raises(DataError, match="no predictions of 'fixate'; there are backbone"):
        f.gather([made[made["method"] == "backbone"]])
    with pytest.raises(DataError, match="'backbone': no prediction of session '0/1'"):
        f.gather([made.drop(index=3)])
    with pytest.raises(DataError, match="1 users have two sessions or more on pages of 5 slots"):
        f.gather([made[made["user_id"] == "0"]])
    with pytest.raises(DataError, match="needs free-running predictions"):
        f.gather([made.assign(mode="TF")])


def test_the_command_writes_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(f, "SAMPLES", 100)
    monkeypatch.setattr(f, "SIMULATIONS", 5)
    run = tmp_path / "runs" / "mine"
    (run / "seed-42").mkdir(parents=True)
    (run / "config.yaml").write_text(dump_config(RunConfig()), encoding="utf-8")
    theirs = laws(1.0)
    trivial = {"uniform": np.full_like(theirs, 0.2), "user_mean_shrunk": laws(0.9), "majority_click": laws(0.8)}
    made = frame({"fixate": theirs, "backbone": laws(0.3, seed=7), **trivial}, theirs=theirs)
    made.to_parquet(run / "seed-42" / "predictions-test.parquet")

    def fidelity(*options: str) -> int:
        status: int = cli.parse(["fidelity", str(run), *options]).run()
        return status

    assert fidelity("--out", str(tmp_path / "first")) == 0
    told = capsys.readouterr().out
    assert "480 test sessions of 16 people, pages of 5 slots, 1 seed" in told
    assert "gaze spread → 1" in told and "user mean shrunk" in told.replace("\n", " ")
    written = (tmp_path / "first" / "fidelity.md").read_text(encoding="utf-8")
    assert "mine, test sessions: 480 sessions of 16 people" in written
    assert "| click spread | fixate |" in written and "![mine, test sessions](figure.png)" in written
    assert (tmp_path / "first" / "figure.png").stat().st_size > 20_000
    assert fidelity("--out", str(tmp_path / "again")) == 0
    for name in ("measures.csv", "reliability.csv", "slots.csv"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    with pytest.raises(ConfigError, match=r"elsewhere: no config.yaml there"):
        cli.parse(["fidelity", str(tmp_path / "elsewhere")]).run()


def unequal() -> tuple[f.Humans, np.ndarray]:
    """Three people with 2, 3 and 9 sessions, and what a method says of each."""
    rng = np.random.default_rng(5)
    owner = np.repeat([0, 1, 2], [2, 3, 9])
    gaze, says = (rng.dirichlet(np.ones(4), len(owner)) for _ in range(2))
    return f.Humans(users=("a", "b", "c"), owner=owner, click=rng.integers(4, size=len(owner)), gaze=gaze), says


def test_people_count_alike_whatever_their_sessions() -> None:
    humans, says = unequal()
    found = f.measure(humans, f.Predicted(attention=says[None], clicks=says[None]))
    clicked = np.eye(4)[humans.click]

    def over_people(values: np.ndarray) -> float:
        return float(np.mean([values[humans.owner == user].mean(axis=0) for user in range(3)]))

    assert found["log loss"].value == pytest.approx(over_people(-np.log((clicked * says).sum(axis=1))))
    assert found["brier"].value == pytest.approx(over_people(((says - clicked) ** 2).sum(axis=1)))
    cosine = (humans.gaze * says).sum(1) / np.linalg.norm(humans.gaze, axis=1) / np.linalg.norm(says, axis=1)
    assert found["cosine"].value == pytest.approx(over_people(cosine), rel=1e-5)
    for name, theirs in (("click", clicked), ("gaze", humans.gaze)):
        means, ours = (np.stack([x[humans.owner == user].mean(axis=0) for user in range(3)]) for x in (theirs, says))
        assert found[f"user {name} share js"].value == pytest.approx(m.jensen_shannon(means, ours).mean())
        everybody = np.ones((1, 3), int)
        assert found[f"{name} likeness"].value == pytest.approx(m.likeness(means, ours, everybody)[0])
    for one in found.values():
        if one.per_user is not None:
            assert one.value == pytest.approx(one.per_user.mean())
    # A sample counts a person as often as they were drawn.
    each = np.array([found["log loss"].per_user]).ravel()
    counts = np.array([[3, 0, 0], [0, 1, 2]])
    values = -np.log((clicked * says).sum(axis=1))
    np.testing.assert_allclose(f._by_user(values, humans.owner, counts)[0], [each[0], (each[1] + 2 * each[2]) / 3])


def test_an_interval_lies_about_the_value() -> None:
    """Samples that are larger than the value throughout, as those of a distance are, are moved to it."""
    sampled = 5 + np.linspace(-1, 1, 401)
    half = 0.95 * widening(5)
    assert f._interval(2.0, sampled, 5) == (pytest.approx(2 - half), pytest.approx(2 + half))
    assert f._interval(2.0, np.append(sampled, np.nan), 5) == (pytest.approx(2 - half), pytest.approx(2 + half))
    assert np.isnan(f._interval(np.nan, sampled, 5)).all()
    humans, says = unequal()
    table = f.measures_table(humans, {"fixate": f.Predicted(attention=None, clicks=says[None])})
    row = table.set_index("measure").loc["user click share js"]
    counts = f._counts(humans, 0)
    sampled = f.measure(humans, f.Predicted(attention=None, clicks=says[None]))["user click share js"].sampled
    assert len(sampled) == len(counts) - 1
    apart = np.quantile(sampled, [0.025, 0.975]) - sampled.mean()
    low, high = widening(len(humans.users)) * apart + row["value"]
    assert (row["low"], row["high"]) == (pytest.approx(max(low, 0)), pytest.approx(high))
