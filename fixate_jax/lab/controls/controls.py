"""Why do tuned prompts look where they look: prompts that can learn less, on pages that show something else.

Two sets of prompts are tuned like the run's own, but for the gaze they are aligned with: each person's mean gaze by
slot, from which place alone can be learned (a placebo), and the gaze of another of the person's sessions, which keeps
habits and breaks their tie to the content. All are then shown the test pages as they were, blank, and with their
contents rearranged, and told about somebody else where people have profiles.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float

from fixate_jax.evaluation.statistics import bootstrap_interval, paired_wilcoxon
from fixate_jax.lab.controls.stages import (
    PROFILE,
    REARRANGED,
    SEEN,
    Order,
    content_columns,
    law_of,
    orders_of,
    stages,
    with_content,
)
from fixate_jax.lab.experiments.evaluate import predict
from fixate_jax.lab.experiments.experiment import BACKBONE, FIXATE, load_prompt, seed_directory
from fixate_jax.lab.experiments.loop import train
from fixate_jax.lab.experiments.predictors import trivial_predictions
from fixate_jax.lab.experiments.workspace import Workspace, control_gaze
from fixate_jax.lab.frames import compare_methods, session_metrics, user_means
from fixate_jax.prompts import PromptParams
from fixate_jax.runtime.progress import Track, silent

FOLDER = "controls"
PLACEBO, BROKEN = "mean_gaze", "other_session"
TUNED: dict[str, Literal["mean", "other_session"]] = {PLACEBO: "mean", BROKEN: "other_session"}
"""Prompts that are tuned as controls → `objective.gaze`."""
REGRESSION, HABIT = "personal_content_regression", "user_mean_shrunk"
METRICS = ("kl", "csh@1", "log_loss", "accuracy")
OTHERS = "_swapped"
"""Ending of the rows under another user's prompt."""


@dataclass(frozen=True, kw_only=True)
class Controls:
    """What the controls found.

    Attributes:
        pages: a row for each prompts, way of showing the pages and metric: mean over users; difference to the run's own
            prompts on the same pages, with interval, p, and for how many users its own are better.
        changes: a row for each prompts and predictor: how attention moved when contents were rearranged, against how
            gaze would have: correlation and slope, means over users with intervals. Empty where contents cannot be.
        known: what the movement of gaze is known from: the law of synthetic users, or a regression on real ones.
        profiles: KL and log-loss under own and another's prompt, told the own and another's profile; without the latter
            where everybody has the same.
    """

    pages: pd.DataFrame
    changes: pd.DataFrame
    known: str
    profiles: pd.DataFrame


def run_controls(workspace: Workspace, run: Path, *, seed: int, draw: int = 0, track: Track = silent) -> Controls:
    """Tune the controls, show everything, measure. Run again after a stop it resumes.

    Args:
        workspace: from :func:`fixate_jax.lab.experiments.experiment.open_run`.
        run: the run; what is tuned goes to its folder ``controls``.
        seed: which of the run's seeds.
        draw: seed of the rearrangements.
        track: wraps batches in a progress bar.

    Raises:
        CheckpointError: the run's prompts are missing or damaged.
    """
    prompts: dict[str, PromptParams | None] = {FIXATE: load_prompt(workspace, seed_directory(run, seed), seed=seed)}
    for name in TUNED:
        prompts[name] = _tuned(workspace, run / FOLDER / name, name, seed)
    prompts[BACKBONE] = None
    orders = orders_of(workspace.sessions("test"), seed=draw)
    shown = stages(workspace, orders, run)
    frames: dict[tuple[str, str], pd.DataFrame] = {}
    for stage, space in shown.items():
        for name, prompt in prompts.items():
            frames[stage, name] = _free(predict(space, prompt, "test", name, track=track))
        if stage in (SEEN, PROFILE):
            name = FIXATE + OTHERS
            frames[stage, name] = _free(predict(space, prompts[FIXATE], "test", name, shift=1, track=track))
    bars = _bars(workspace, orders)
    changes, known = _changes(workspace, orders, frames, bars) if REARRANGED in shown else (pd.DataFrame(), "")
    top_k = workspace.config.objective.top_k
    metrics = {key: session_metrics(frame, top_k=top_k) for key, frame in frames.items()}
    metrics[SEEN, HABIT] = session_metrics(bars[SEEN][bars[SEEN]["method"] == HABIT], top_k=top_k)
    return Controls(pages=_pages(metrics), changes=changes, known=known, profiles=_profiles(metrics))


def _tuned(workspace: Workspace, folder: Path, name: str, seed: int) -> PromptParams:
    objective = replace(workspace.config.objective, gaze=TUNED[name])
    config = replace(workspace.config, objective=objective)
    targets = control_gaze(config, workspace.data.sessions, workspace.splits)
    space = replace(workspace, config=config, data=workspace.data.with_targets(targets))
    return train(space, config, folder / f"seed-{seed}", seed=seed, title=f"Control {name}, seed {seed}").prompt


def _free(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["mode"] == "FR"].reset_index(drop=True)


def _bars(workspace: Workspace, orders: Sequence[Order]) -> dict[str, pd.DataFrame]:
    """Predictors without a model, on the pages as they were and rearranged."""
    content = content_columns(workspace.data.sessions)
    moved = [with_content(s, o, content) for s, o in zip(workspace.sessions("test"), orders, strict=True)]
    data = workspace.config.data
    return {
        stage: trivial_predictions(
            workspace.sessions("train"),
            sessions,
            slot_feature_names=workspace.store.slot_feature_names,
            validation=workspace.sessions("validation"),
            hidden=workspace.store.hidden_features,
            signal=data.signal,
            gaze_temperature=data.gaze_temperature,
        )
        for stage, sessions in ((SEEN, workspace.sessions("test")), (REARRANGED, moved))
    }


def _changes(
    workspace: Workspace,
    orders: Sequence[Order],
    frames: Mapping[tuple[str, str], pd.DataFrame],
    bars: Mapping[str, pd.DataFrame],
) -> tuple[pd.DataFrame, str]:
    sessions, law = workspace.sessions("test"), law_of(workspace.config.data)
    moves = {
        name: _moved(frames[SEEN, name], frames[REARRANGED, name]) for stage, name in frames if stage == REARRANGED
    }
    moves |= {
        name: _moved(*(bars[stage][bars[stage]["method"] == name] for stage in (SEEN, REARRANGED)))
        for name in (REGRESSION, HABIT)
    }
    if law is None:
        true, known = moves.pop(REGRESSION), f"{REGRESSION}, fitted on real gaze"
    else:
        still = [law(session, list(range(session.slots))) for session in sessions]
        moved = [law(session, order) for session, order in zip(sessions, orders, strict=True)]
        true, known = [b - a for a, b in zip(still, moved, strict=True)], "the law of the synthetic users"
    whose = np.array([session.user_id for session in sessions])
    rows = []
    for name, found in moves.items():
        fits = np.array(
            [_fit(found, true, np.flatnonzero(whose == user)) for user in workspace.users if (whose == user).any()]
        )
        row: dict[str, object] = {"prompts": name, "users": len(fits)}
        for column, values in zip(("correlation", "slope"), fits.T, strict=True):
            interval = bootstrap_interval(values, seed=0)
            row |= {column: interval.mean, f"{column} low": interval.low, f"{column} high": interval.high}
        rows.append(row)
    return pd.DataFrame(rows), known


def _moved(before: pd.DataFrame, after: pd.DataFrame) -> list[Float[np.ndarray, " _slots"]]:
    """How the share of each slot changed, session by session."""
    shares = [[np.asarray(a) / max(np.sum(a), 1e-12) for a in frame["attention"]] for frame in (before, after)]
    return [b - a for a, b in zip(*shares, strict=True)]


def _fit(
    found: Sequence[Float[np.ndarray, " _slots"]],
    true: Sequence[Float[np.ndarray, " _slots"]],
    rows: Sequence[int] | np.ndarray,
) -> tuple[float, float]:
    """Correlation and slope through 0 of a user's changes on the true ones; 0 where nothing moved."""
    x, y = (np.concatenate([changes[i] for i in rows]) for changes in (true, found))
    norm, own = float((x * x).sum()), float((y * y).sum())
    if norm == 0 or own < 1e-12:
        return 0.0, 0.0
    # Changes of shares sum to 0 on every page, so their means are 0 as they are.
    return float((x * y).sum() / np.sqrt(norm * own)), float((x * y).sum() / norm)


def _pages(metrics: Mapping[tuple[str, str], pd.DataFrame]) -> pd.DataFrame:
    rows = []
    for (stage, name), frame in metrics.items():
        own = metrics.get((stage, FIXATE))
        users = user_means(frame)
        for metric in METRICS:
            if metric not in users or users[metric].isna().all():
                continue
            row: dict[str, object] = {"pages": stage, "prompts": name, "metric": metric}
            row |= {"mean": float(users[metric].mean()), "users": len(users)}
            if own is not None and name != FIXATE:
                both = pd.concat([user_means(own), users], ignore_index=True)
                test, interval = compare_methods(both, metric, first=(name, "FR"), second=(FIXATE, "FR"))
                row |= {"difference": test.mean_difference, "low": interval.low, "high": interval.high}
                row |= {"p": test.p_value, "own better": f"{test.worse} of {test.users}"}
            rows.append(row)
    return pd.DataFrame(rows)


def _profiles(metrics: Mapping[tuple[str, str], pd.DataFrame]) -> pd.DataFrame:
    """Own and another's prompt × own and another's profile, each against own and own."""
    own = user_means(metrics[SEEN, FIXATE]).set_index("user_id")
    rows = []
    for stage, profile in ((SEEN, "own"), (PROFILE, "another's")):
        for name, prompt in ((FIXATE, "own"), (FIXATE + OTHERS, "another's")):
            if (stage, name) not in metrics:
                continue
            users = user_means(metrics[stage, name]).set_index("user_id").loc[own.index]
            row: dict[str, object] = {"profile": profile, "prompt": prompt}
            for metric in ("kl", "log_loss"):
                row[metric] = float(users[metric].mean())
                test = paired_wilcoxon(users[metric].to_numpy(float), own[metric].to_numpy(float), lower_is_better=True)
                row[f"{metric} p"] = test.p_value
            rows.append(row)
    return pd.DataFrame(rows)
