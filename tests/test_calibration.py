"""Three numbers fitted on validation sessions, and what they do to attention and answers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy

from fixate_jax.errors import CheckpointError, ConfigError, DataError
from fixate_jax.evaluation.calibration import Calibration, fit_calibration
from fixate_jax.lab.experiments.calibrate import read_calibration, write_calibration
from fixate_jax.lab.experiments.predictors import mean_gaze, trivial_predictions
from tests.worlds import letters, made_up_session

SLOTS = 6


def sessions(count: int, *, exponent: float, habit: float, answers: float, seed: int) -> dict[str, Any]:
    """People whose gaze is their attention to a power mixed with a habit, and who click by answers to a power."""
    rng = np.random.default_rng(seed)
    users = [f"u{i % 4}" for i in range(count)]
    habits = {f"u{i}": rng.dirichlet(np.ones(SLOTS)) for i in range(4)}
    attention = rng.dirichlet(np.ones(SLOTS), count)
    powers = attention**exponent
    gaze = (1 - habit) * powers / powers.sum(1, keepdims=True) + habit * np.array([habits[u] for u in users])
    log_probs = np.log(rng.dirichlet(np.ones(SLOTS), count))
    sharp = answers * log_probs
    click = np.argmax(sharp + rng.gumbel(size=sharp.shape), axis=1)
    mask = np.ones((count, SLOTS), bool)
    arrays = {"gaze": gaze, "attention": attention, "log_probs": log_probs, "click": click, "mask": mask}
    return arrays | {"users": users, "habits": habits}


@pytest.mark.parametrize(("exponent", "habit", "answers"), [(1.0, 0.0, 1.0), (0.6, 0.4, 1.3), (1.5, 0.2, 0.7)])
def test_the_law_that_made_the_sessions_is_found(exponent: float, habit: float, answers: float) -> None:
    found = fit_calibration(**sessions(2000, exponent=exponent, habit=habit, answers=answers, seed=0))
    assert found.attention == pytest.approx(exponent, abs=0.03)
    assert found.habit == pytest.approx(habit, abs=0.02)
    assert found.answers == pytest.approx(answers, abs=0.08)


def test_no_calibration_changes_nothing() -> None:
    made = sessions(5, exponent=1, habit=0, answers=1, seed=1)
    plain = Calibration()
    np.testing.assert_allclose(plain.look(made["attention"], made["users"], made["mask"]), made["attention"])
    np.testing.assert_allclose(plain.answer(made["log_probs"], made["mask"]), made["log_probs"])


def test_pages_of_other_sizes_and_without_attention() -> None:
    mask = np.array([[True, True, False], [True, True, True]])
    attention, log_probs = np.array([[0.0, 0.0, 9.0], [0.2, 0.3, 0.5]]), np.log([[0.1, 0.3, 1.0], [0.2, 0.3, 0.5]])
    half = Calibration(habit=0.5, answers=2.0, habits={"u": np.array([3.0, 1.0])}, population=np.array([1.0]))
    looked = half.look(attention, ["u", "stranger"], mask)
    # Uniform where nothing was found, half of it the habit; a stranger has the population's, even where that ends.
    np.testing.assert_allclose(looked[0], [0.5 * 0.5 + 0.5 * 0.75, 0.5 * 0.5 + 0.5 * 0.25, 0])
    even = np.array([1.0, 1 / 3, 1 / 3]) / (1 + 2 / 3)
    np.testing.assert_allclose(looked[1], 0.5 * attention[1] + 0.5 * even)
    answered = half.answer(log_probs, mask)
    np.testing.assert_allclose(np.exp(answered[0, :2]), [0.1, 0.9])
    assert answered[0, 2] == -np.inf and np.allclose(scipy.special.logsumexp(answered, axis=1), 0)


def test_what_there_cannot_be_is_named() -> None:
    with pytest.raises(ConfigError, match=r"calibration\.answers = 0.0"):
        Calibration(answers=0.0)
    with pytest.raises(ConfigError, match=r"calibration\.habit = 2.0"):
        Calibration(habit=2.0)
    made = sessions(4, exponent=1, habit=0, answers=1, seed=0)
    with pytest.raises(DataError, match="at least one validation session"):
        fit_calibration(**{k: v if k == "habits" else v[:0] for k, v in made.items()})


def test_habits_are_the_shrunk_means_that_stand_in_the_tables() -> None:
    made = [made_up_session(i, slots=4 + i % 2, size=(64, 64), labels=letters)[0] for i in range(24)]
    split = {name: [s for s in made if s.split == name] for name in ("train", "validation", "test")}
    # Everybody has sessions of all parts.
    parts = {n: [replace(s, user_id=f"u{i % 2}") for i, s in enumerate(some)] for n, some in split.items()}
    habits, population = mean_gaze(parts["train"], parts["validation"])
    rows = trivial_predictions(
        parts["train"], parts["test"], slot_feature_names=(), validation=parts["validation"]
    ).query("method == 'user_mean_shrunk'")
    calibration = Calibration(habits=habits, population=population, habit=1.0)
    for session, wanted in zip(parts["test"], rows["attention"], strict=True):
        mask = np.ones((1, session.slots), bool)
        np.testing.assert_allclose(calibration.habit_on([session.user_id], mask)[0], wanted, atol=1e-12)


def test_it_comes_back_from_its_file_and_a_spoilt_file_is_named(tmp_path: Path) -> None:
    assert read_calibration(tmp_path) is None
    kept = Calibration(
        answers=1.3, attention=0.7, habit=0.25, habits={"ü": np.array([0.5, 0.5])}, population=np.ones(2)
    )
    write_calibration(tmp_path, kept)
    back = read_calibration(tmp_path)
    assert back is not None and (back.answers, back.attention, back.habit) == (1.3, 0.7, 0.25)
    np.testing.assert_array_equal(back.habits["ü"], [0.5, 0.5])
    path = tmp_path / "calibration.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"answers"', '"other"'), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"calibration\.json.*run `fixate evaluate` again"):
        read_calibration(tmp_path)
