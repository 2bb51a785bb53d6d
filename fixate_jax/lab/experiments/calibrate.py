"""A run's calibration: fitted on its validation sessions, kept with each seed, shown as rows of their own."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fixate_jax.errors import CheckpointError
from fixate_jax.evaluation.calibration import Calibration, fit_calibration
from fixate_jax.lab.experiments.predictors import mean_gaze
from fixate_jax.lab.experiments.workspace import Workspace
from fixate_jax.runtime import hosts
from fixate_jax.runtime.durable import write_text
from fixate_jax.runtime.files import read_json

FILE, SUFFIX = "calibration.json", "_calibrated"


def calibrate(workspace: Workspace, validation: pd.DataFrame) -> Calibration:
    """The calibration that does best on a method's own validation sessions, free-running.

    Args:
        workspace: the people; habits are those of their training sessions.
        validation: predictions of one method for the validation sessions.
    """
    free = validation[validation["mode"] == "FR"]
    columns = _columns(free)
    habits, population = mean_gaze(
        workspace.sessions("train"),
        workspace.sessions("validation"),
        signal=workspace.config.data.signal,
        gaze_temperature=workspace.config.data.gaze_temperature,
    )
    click, users = free["click"].to_numpy(np.int64), free["user_id"].to_list()
    return fit_calibration(**columns, click=click, users=users, habits=habits, population=population)


def calibrated(calibration: Calibration, frame: pd.DataFrame) -> pd.DataFrame:
    """A method's free-running predictions, calibrated, under its name with `SUFFIX`; answers stay as they are."""
    free = frame[frame["mode"] == "FR"].reset_index(drop=True)
    columns, users = _columns(free), free["user_id"].to_list()
    looked = calibration.look(columns["attention"], users, columns["mask"])
    answered = calibration.answer(columns["log_probs"], columns["mask"])
    slots = free["slots"].to_list()
    return free.assign(
        method=free["method"] + SUFFIX,
        attention=[row[:n].tolist() for row, n in zip(looked, slots, strict=True)],
        log_probs=[row[:n].tolist() for row, n in zip(answered, slots, strict=True)],
    )


def _columns(frame: pd.DataFrame) -> dict[str, np.ndarray]:
    """Gaze, attention and log-probabilities as padded arrays, with their mask."""
    slots = frame["slots"].to_numpy(np.int64)
    mask = np.arange(slots.max())[None, :] < slots[:, None]
    found = {"mask": mask}
    for name, filling in (("gaze", 0.0), ("attention", 0.0), ("log_probs", -np.inf)):
        found[name] = np.full(mask.shape, filling)
        found[name][mask] = np.concatenate(frame[name].to_list())
    return found


def write_calibration(directory: Path, calibration: Calibration) -> None:
    """Keep a calibration with a seed's prompts.

    Raises:
        DiskError: it cannot be written.
    """
    text = json.dumps(facts_of(calibration) | {"habits": _lists(calibration)}, indent=1, ensure_ascii=False)
    hosts.by_first(write_text, directory / FILE, text)


def _lists(calibration: Calibration) -> dict[str, Any]:
    users = {user: np.asarray(habit).tolist() for user, habit in calibration.habits.items()}
    return {"users": users, "population": np.asarray(calibration.population).tolist()}


def facts_of(calibration: Calibration) -> dict[str, float]:
    """Its three numbers by name."""
    return {name: getattr(calibration, name) for name in ("answers", "attention", "habit")}


def read_calibration(directory: Path) -> Calibration | None:
    """The calibration of a seed; None where a run was evaluated without one, or not at all.

    Raises:
        CheckpointError: the file is not one.
    """
    path = directory / FILE
    if not path.exists():
        return None
    found = read_json(path, CheckpointError, "run `fixate evaluate` again")
    try:
        habits = {str(user): np.array(habit, np.float64) for user, habit in found["habits"]["users"].items()}
        population = np.array(found["habits"]["population"], np.float64)
        numbers = {name: float(found[name]) for name in ("answers", "attention", "habit")}
        return Calibration(**numbers, habits=habits, population=population)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: no calibration ({error}); run `fixate evaluate` again") from error
