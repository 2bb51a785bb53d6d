"""Predictions of a backbone under given soft prompts, teacher-forced and free-running, as one table."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Float, Int

from fixate_jax.evaluation.forward import Evaluation
from fixate_jax.lab.experiments.predictors import trivial_predictions
from fixate_jax.lab.experiments.workspace import Workspace
from fixate_jax.lab.frames import metric_columns, session_metrics
from fixate_jax.probing.batches import Batch, evaluation_batches
from fixate_jax.prompts import PromptParams, soft_prompt
from fixate_jax.runtime import hosts
from fixate_jax.runtime.progress import Track, silent


def predict(
    workspace: Workspace,
    prompt: PromptParams | None,
    split: str,
    method: str,
    *,
    shift: int = 0,
    track: Track = silent,
) -> pd.DataFrame:
    """Predictions for all sessions of a split.

    Args:
        workspace: backbone and data.
        prompt: tuned prompts; None for the backbone alone.
        split: which sessions.
        method: name in the table.
        shift: 0 for everybody's own prompt; k for the prompt of the user k places further on.
        track: wraps the batches in a progress bar.

    Returns:
        Two rows a session, mode "TF" (relevance for the true answer) and "FR" (for the model's own), with the columns
        that :func:`fixate_jax.lab.frames.session_metrics` wants.
    """
    rows: list[dict[str, Any]] = []
    batches = evaluation_batches(workspace.data, workspace.splits[split], workspace.config.train.eval_batch)
    for indices in track(batches, f"{method}, {split}"):
        batch = workspace.data.batch(indices, workspace.own_rows())
        rows += _rows(workspace, indices, evaluate_batch(workspace, prompt, batch, shift=shift), method)
    return pd.DataFrame(rows)


def predict_without_model(workspace: Workspace, split: str) -> pd.DataFrame:
    """Predictions without a model for all sessions of a split; the predictors are fitted on the training sessions.

    How strongly they lean on what is common is chosen on the validation sessions, as a run's best step is.

    Args:
        workspace: the data; the signal and the temperature of the gaze are those of its settings.
        split: which sessions to predict.
    """
    return trivial_predictions(
        workspace.sessions("train"),
        workspace.sessions(split),
        slot_feature_names=workspace.store.slot_feature_names,
        validation=workspace.sessions("validation"),
        hidden=workspace.store.hidden_features,
        signal=workspace.config.data.signal,
        gaze_temperature=workspace.config.data.gaze_temperature,
    )


def evaluate_batch(workspace: Workspace, prompt: PromptParams | None, batch: Batch, *, shift: int = 0) -> Evaluation:
    """The jitted evaluation of one batch under own (or shifted) prompts, or without any.

    Args:
        workspace: backbone and data.
        prompt: tuned prompts on the workspace's mesh; None for the backbone alone.
        batch: this process's rows of it.
        shift: 0 for everybody's own prompt; k for the prompt of the user k places further on.

    Returns:
        All of the batch's rows, on every process.
    """
    config, users = workspace.config, len(workspace.users)
    if prompt is None:
        soft = jnp.zeros((len(batch.user), config.prompt.tokens, workspace.backbone.width), jnp.float32)
    else:
        soft = _soft(hosts.local(prompt), jnp.asarray((batch.user + shift) % users))
    return workspace.evaluate(
        workspace.place(soft), np.asarray(prompt is not None), workspace.params, workspace.place(batch)
    )


@jax.jit
def _soft(prompt: PromptParams, user: Int[Array, " batch"]) -> Float[Array, "batch tokens width"]:
    return soft_prompt(prompt, user)


def _rows(workspace: Workspace, indices: Sequence[int], result: Evaluation, method: str) -> Iterator[dict[str, Any]]:
    log_probs, answers, forced, free = (
        np.asarray(x) for x in (result.log_probs, result.answer, result.teacher_forced, result.free_running)
    )
    for row, index in enumerate(indices):
        if index < 0:
            continue
        session = workspace.data.sessions[index]
        n = session.slots
        for mode, attention in (("TF", forced), ("FR", free)):
            yield {
                "session_id": session.session_id,
                "user_id": session.user_id,
                "split": session.split,
                "method": method,
                "mode": mode,
                "slots": n,
                "click": int(session.click),
                "answer": int(answers[row]),
                "gaze": [float(g) for g in workspace.data.gaze(index)],
                "attention": [float(a) for a in attention[row][:n]],
                "log_probs": [float(p) for p in log_probs[row][:n]],
            }


def swapped_metrics(
    workspace: Workspace, prompt: PromptParams, split: str, method: str, *, top_k: int, track: Track = silent
) -> pd.DataFrame:
    """The user-swap control: every session under other users' prompts, its metrics averaged over those.

    The others are all there are, or ``train.swaps`` of them, at even distances from the user in the list.

    Args:
        workspace: backbone and data.
        prompt: tuned prompts.
        split: which sessions.
        method: name in the table.
        top_k: of top-k JS.
        track: wraps the other users in a progress bar.

    Returns:
        As :func:`fixate_jax.lab.frames.session_metrics`; empty with a single user.
    """
    others, wanted = len(workspace.users) - 1, workspace.config.train.swaps
    count = others if wanted is None else min(wanted, others)
    shifts = [1 + i * others // count for i in range(count)]
    frames = [
        session_metrics(predict(workspace, prompt, split, method, shift=shift), top_k=top_k)
        for shift in track(shifts, f"{method}, {split}, other users' prompts")
    ]
    if not frames:
        return pd.DataFrame()
    together = pd.concat(frames, ignore_index=True)
    keys = [c for c in together.columns if c not in metric_columns(together)]
    return together.groupby(keys, sort=False)[metric_columns(together)].mean().reset_index()
