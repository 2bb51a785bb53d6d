"""Splitting people's sessions so that what they are tested on is new to them."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from fixate_jax.data.session import Split, StoredSession

PAGE_SHARES: tuple[tuple[Split, float], ...] = (("test", 0.15), ("validation", 0.30))
"""Where the sessions of test and validation end when pages are split; the rest is for training."""
TEST_SHARE, VALIDATION_SHARE = 0.20, 0.15
"""Test: of all sessions of a person; validation: of the rest."""


def split_by_content(frame: pd.DataFrame, content: str, seed: int) -> list[Split]:
    """Split every person's sessions at random, all of one content into one part, whatever order the rows come in.

    Contents in random order go to test until it has a fifth of the person's sessions, then to validation until it has
    15% of the rest (rounded), then to training. With few contents and many sessions of each, none may be left for
    training.

    Args:
        frame: rows with ``user_id`` and the column ``content``.
        content: name of the column that says what was seen, such as the query or the page.
        seed: of the order.
    """
    splits = pd.Series("train", index=frame.index, dtype=object)
    for user, rows in frame.groupby("user_id"):
        digest = hashlib.sha256(str(user).encode()).digest()
        rng = np.random.default_rng([seed, int.from_bytes(digest[:8], "big")])
        sizes = rows[content].value_counts()
        contents = rng.permutation(sorted(sizes.index))
        test = _taken(contents, sizes, round(TEST_SHARE * len(rows)))
        held = int(sizes[contents[:test]].sum())
        rest = contents[test:]
        validation = _taken(rest, sizes, round(VALIDATION_SHARE * (len(rows) - held)))
        splits[rows.index[rows[content].isin(contents[:test])]] = "test"
        splits[rows.index[rows[content].isin(rest[:validation])]] = "validation"
    return list(splits)


def _taken(contents: np.ndarray, sizes: pd.Series, wanted: int) -> int:
    """How many of the first contents have so many sessions together."""
    before = np.concatenate([[0], np.cumsum([sizes[content] for content in contents])])
    return int(np.searchsorted(before, wanted))


def split_by_page(sessions: Sequence[StoredSession], seed: int) -> list[StoredSession]:
    """The same sessions, split anew so that nobody has seen a page of test or validation in training.

    Pages in an order drawn from the seed go to test until it has 15% of all sessions, then to validation until it has
    as many, then to training. What becomes of a page depends on no person.

    Args:
        sessions: of everybody.
        seed: of the order.
    """
    visits = Counter(session.page_id for session in sessions)
    order = sorted(visits, key=lambda page: hashlib.sha256(f"{seed}\0{page}".encode()).digest())
    part: dict[str, Split] = {}
    before = 0
    for page in order:
        part[page] = next((name for name, end in PAGE_SHARES if before < end * len(sessions)), "train")
        before += visits[page]
    return [replace(session, split=part[session.page_id]) for session in sessions]
