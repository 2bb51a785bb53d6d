"""A few sessions of each person, as if little were known of them."""

import hashlib
from collections.abc import Sequence

from fixate_jax.data.session import StoredSession


def few_sessions(sessions: Sequence[StoredSession], indices: Sequence[int], count: int, *, seed: int) -> list[int]:
    """At most so many sessions of each person, those for a small count being among those for a larger one.

    Args:
        sessions: all sessions.
        indices: which of them to choose from.
        count: how many of each person to keep at most, ≥ 1.
        seed: of the choice; whoever else is there, a person keeps the same sessions.

    Returns:
        The indices that are kept, in the order given.
    """
    by_user: dict[str, list[int]] = {}
    for i in sorted(indices, key=lambda i: _drawn(sessions[i], seed)):
        by_user.setdefault(sessions[i].user_id, []).append(i)
    kept = {i for drawn in by_user.values() for i in drawn[:count]}
    return [i for i in indices if i in kept]


def _drawn(session: StoredSession, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}\0{session.user_id}\0{session.session_id}".encode()).digest()
