"""Whose sessions and which model prompts were tuned on: written when a run begins, compared whenever it is used again.

Settings and shapes can be the same while the people behind them are not: a participant who joins the raw data moves
everybody's row. So a run keeps its users in order, each session with its person and use, and sums of their content and
of the backbone's files.
"""

import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fixate_jax.backbones import Backbone
from fixate_jax.data.options import DataConfig
from fixate_jax.data.registry import usable_sessions
from fixate_jax.data.session import StoredSession
from fixate_jax.data.store import SessionStore, natural_order
from fixate_jax.errors import CheckpointError, DataError, listed
from fixate_jax.lab.experiments.workspace import Workspace, splits_of
from fixate_jax.runtime import hosts
from fixate_jax.runtime.durable import write_text

RECORD = "identity.json"
_USERS, _SESSIONS, _CONTENT, _BACKBONE = "users", "sessions", "content", "backbone"
UNUSED = "unused"
"""What a session is for that belongs to no split of a run, where few are trained on."""


class IdentityWarning(UserWarning):
    """It is not known, or known not to be so, that a run's people and model are those that it was tuned on."""


def begun(run: Path) -> bool:
    """Whether a run holds anything that its settings made; one that failed before its first checkpoint does not."""
    made = ("**/checkpoints/step_*", "**/plan.json", "*.csv", "*.parquet")
    return any(next(run.glob(pattern), None) for pattern in made)


def claim_identity(run: Path, workspace: Workspace, *, accept_other_backbone: bool = False) -> None:
    """Note whom and what a run is about to be tuned on, or make sure that it was begun with the same backbone.

    People are looked at by :func:`check_people`, which needs no backbone and comes before.

    Args:
        run: the run directory.
        workspace: what it is tuned on now.
        accept_other_backbone: go on with other files of the backbone; the run's note stays as it is.

    Raises:
        CheckpointError: it was begun with other files of the backbone.
        DiskError: the note cannot be written.
    """
    if begun(run):
        check_backbone(run, workspace.backbone, accept=accept_other_backbone)
        return
    people = people_of(workspace.store, workspace.config.data)
    hosts.by_first(write_text, run / RECORD, json.dumps(people | {_BACKBONE: workspace.backbone.checkpoint}, indent=1))


def people_of(store: SessionStore, data: DataConfig) -> dict[str, Any]:
    """Users in the order of their coefficients, sessions with person and use, and a sum of what the sessions hold."""
    sessions = usable_sessions(store, data)
    use = dict.fromkeys(range(len(sessions)), UNUSED)
    for split, indices in splits_of(sessions, data).items():
        use |= dict.fromkeys(indices, split)
    return {
        _USERS: list(store.users),
        _SESSIONS: {session.session_id: [session.user_id, use[i]] for i, session in enumerate(sessions)},
        _CONTENT: content_of(sessions),
    }


def content_of(sessions: Iterable[StoredSession]) -> str:
    """A checksum of everything that sessions hold, whatever their order."""
    found = hashlib.sha256()
    for session in sorted(sessions, key=lambda s: s.session_id):
        texts = [session.session_id, session.page_id, session.labels, session.click, session.profile]
        found.update(json.dumps([texts, sorted(session.dwell_ms)]).encode())
        for numbers in (session.boxes, session.slot_features, *(v for _, v in sorted(session.dwell_ms.items()))):
            found.update(numbers.astype("<f8").tobytes())
    return found.hexdigest()


def check_people(run: Path, store: SessionStore, data: DataConfig) -> None:
    """Make sure that a store holds the people and sessions that a run was tuned on, if it has begun.

    Raises:
        DataError: it does not, naming who came or went.
    """
    recorded = _recorded(run) if begun(run) else None
    if recorded is None:
        return
    now = people_of(store, data)
    problem = _people_differ(recorded, now) or _sessions_differ(recorded[_SESSIONS], now[_SESSIONS])
    if not problem and recorded[_CONTENT] != now[_CONTENT]:
        problem = "the same sessions hold other gaze, clicks, pages or profiles"
    if problem:
        raise DataError(
            f"{run} was tuned on other data: {problem}. Its prompts are those of {listed(recorded[_USERS])}; bring "
            "those data back, or tune in another folder"
        )


def check_backbone(run: Path, backbone: Backbone, *, accept: bool = False) -> None:
    """Make sure that a backbone's files are those that a run was tuned with.

    Args:
        run: the run directory.
        backbone: the one that was loaded now.
        accept: warn instead.

    Raises:
        CheckpointError: they are not.
    """
    recorded = _recorded(run)
    if recorded is None or recorded[_BACKBONE] == backbone.checkpoint:
        return
    problem = f"{run} was tuned with other weights, tokenizer, template or processor than {backbone.directory} holds"
    if not accept:
        raise CheckpointError(
            f"{problem}; bring those files back, tune in another folder, or go on knowingly with "
            "--accept-other-backbone where the command takes it"
        )
    warnings.warn(f"{problem}; going on all the same", IdentityWarning, stacklevel=2)


def _recorded(run: Path) -> Mapping[str, Any] | None:
    path = run / RECORD
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        warnings.warn(
            f"{run} has no {RECORD}: an earlier release made it, so nobody can tell whether it was tuned on these "
            "people and this backbone",
            IdentityWarning,
            stacklevel=3,
        )
        return None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); tune in another folder") from error
    if not isinstance(found, dict) or not {_USERS, _SESSIONS, _CONTENT, _BACKBONE} <= found.keys():
        raise CheckpointError(f"{path}: is no note of people and backbone; tune in another folder")
    return found


def _people_differ(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    before, after = recorded[_USERS], now[_USERS]
    came = natural_order(set(after) - set(before))
    went = natural_order(set(before) - set(after))
    return "; ".join(f"{what}: {listed(names)}" for what, names in (("came", came), ("went", went)) if names)


def _sessions_differ(before: Mapping[str, list[str]], after: Mapping[str, list[str]]) -> str:
    groups = {
        "sessions that came": [s for s in after if s not in before],
        "sessions that went": [s for s in before if s not in after],
        "sessions of another person or split": [s for s in before if s in after and before[s] != after[s]],
    }
    return "; ".join(f"{what}: {listed(natural_order(names))}" for what, names in groups.items() if names)
