"""What the backbone and tuned prompts do with a few sessions of every user, for the report's page viewer."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np
import pandas as pd

from fixate_jax.data.session import StoredSession
from fixate_jax.lab.experiments.evaluate import evaluate_batch
from fixate_jax.lab.experiments.workspace import Workspace
from fixate_jax.lab.report.viewer import Look, SessionView, Viewer, page_data
from fixate_jax.probing.batches import evaluation_batches
from fixate_jax.prompts import PromptParams
from fixate_jax.runtime.progress import Track, silent

BYTES = 4_000_000
"""Of sessions in a report, about: it should open quickly and fit into a letter."""
MOST_USERS = 120
"""All of whom have a session in the report, even if it gets larger so."""
SAMPLE = 8
"""Pages whose size is taken for that of all."""
SCORES = {"kl": "KL", "cosine": "cosine"}
"""Metrics shown beside a session → names."""


def choose_sessions(
    sessions: Sequence[StoredSession], indices: Sequence[int], per_user: int, *, most: int
) -> list[int]:
    """Sessions of every user, chosen at random but always the same ones.

    Args:
        sessions: all there are.
        indices: those to choose from.
        per_user: of each user; fewer where there would be more than ``most`` in all, but 1 at least.
        most: sessions in all; where there are more users, those at even distances in their order.

    Returns:
        Indices, users in order of their first session, each one's sessions in order.
    """
    of_user: dict[str, list[int]] = {}
    for index in indices:
        of_user.setdefault(sessions[index].user_id, []).append(index)
    users = list(of_user)
    if len(users) > most:
        users = [users[i * len(users) // most] for i in range(most)]
    each = min(per_user, max(1, most // max(1, len(users))))
    rng = np.random.default_rng(0)
    return [index for user in users for index in sorted(rng.permutation(of_user[user])[:each].tolist())]


def room(sizes: Sequence[int], users: int) -> int:
    """How many sessions fit into a report.

    Args:
        sizes: bytes that some of them take.
        users: how many there are.
    """
    return max(min(users, MOST_USERS), int(BYTES / np.mean(sizes)))


def session_viewer(
    workspace: Workspace,
    split: str,
    methods: Mapping[str, str],
    prompts: Mapping[str, PromptParams | None],
    metrics: pd.DataFrame,
    *,
    track: Track = silent,
) -> Viewer | None:
    """Sessions of a split, ``train.report_sessions`` of each user, with what each method does with them, free-running.

    Only these are evaluated, a batch at a time. All processes have to call this.

    Args:
        workspace: backbone and data.
        split: which sessions.
        methods: method → its name in the report.
        prompts: method → its prompts (None: the backbone alone).
        metrics: from :func:`fixate_jax.lab.frames.session_metrics`, of the same prompts.
        track: wraps the batches in a progress bar.

    Returns:
        None where no sessions are wanted.
    """
    config, data = workspace.config, workspace.data
    if config.train.report_sessions == 0:
        return None
    indices = workspace.splits[split]
    most = room(_sizes(workspace, split), len({data.sessions[i].user_id for i in indices}))
    chosen = choose_sessions(data.sessions, indices, config.train.report_sessions, most=most)
    free = metrics[metrics["mode"] == "FR"].set_index(["method", "session_id"])[list(SCORES)]
    looks: dict[int, dict[str, Look]] = {index: {} for index in chosen}
    for method, name in methods.items():
        scores = free.loc[method].rename(columns=SCORES).to_dict("index")
        batches = evaluation_batches(data, chosen, config.train.eval_batch)
        for batch in track(batches, f"{name}, sessions of the report"):
            for index, look in _looks(workspace, prompts[method], batch, scores).items():
                looks[index][method] = look
    totals: dict[str, int] = {}
    for session in workspace.sessions(split):
        totals[session.user_id] = totals.get(session.user_id, 0) + 1
    return Viewer(
        views=[SessionView(session=data.sessions[i], gaze=data.gaze(i), looks=looks[i]) for i in chosen],
        methods=methods,
        image=workspace.store.image,
        totals=totals,
        split=split,
        signal=config.data.signal,
    )


def _sizes(workspace: Workspace, split: str) -> list[int]:
    """Bytes that a few of a split's sessions take, as if every one had a page of its own."""
    data, indices = workspace.data, workspace.splits[split]
    sample = indices[:: max(1, len(indices) // SAMPLE)][:SAMPLE]
    pages = [len(page_data(workspace.store.image(data.sessions[i].page_id))["src"]) for i in sample]
    rest = [3 * data.encoded[i].page_tokens + 60 * data.sessions[i].slots for i in sample]
    return [page + more for page, more in zip(pages, rest, strict=True)]


def _looks(
    workspace: Workspace,
    prompt: PromptParams | None,
    indices: Sequence[int],
    scores: Mapping[str, Mapping[str, float]],
) -> dict[int, Look]:
    data = workspace.data
    out = jax.device_get(evaluate_batch(workspace, prompt, data.batch(indices, workspace.own_rows())))
    found = {}
    for row, index in enumerate(indices):
        if index < 0:
            continue
        session, encoded = data.sessions[index], data.encoded[index]
        cells = encoded.rows * encoded.columns
        log_probs = out.log_probs[row][: session.slots].astype(np.float64)
        chances = np.exp(log_probs - log_probs.max())
        found[index] = Look(
            relevance=out.tokens_free[row][:cells].reshape(encoded.rows, encoded.columns),
            slot_attention=out.free_running[row][: session.slots],
            probabilities=chances / chances.sum(),
            answer=int(out.answer[row]),
            scores=scores[session.session_id],
        )
    return found
