"""Which sessions are analysed: splits, people with enough of them, and pages that are laid out alike."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from fixate_jax.data.session import SPLITS, StoredSession
from fixate_jax.data.store import natural_order
from fixate_jax.errors import ConfigError, DataError

BOX_DECIMALS = 6
"""Boxes that agree to so many decimals are at the same place of the page."""


@dataclass(frozen=True, kw_only=True)
class AnalysisSettings:
    """What is analysed, and how.

    Attributes:
        splits: sessions to use; the test split stays untouched unless it is named.
        signal: which dwell signal is the gaze.
        gaze_temperature: τ of the gaze, see `Session.gaze`.
        halvings: how often each person's sessions are split into random halves.
        min_sessions: people with fewer sessions are left out and counted, on the whole and on each page layout.
        layouts: how many of the commonest page layouts to analyse, each by itself.
        alike: pages are laid out alike when the same labels stand in the same boxes, or when they bear the same labels
            wherever these stand, as on pages that scroll.
        seed: of the halves, the shuffles and the bootstrap.
    """

    splits: tuple[str, ...] = ("train", "validation")
    signal: str = "fixation"
    gaze_temperature: float = 1.0
    halvings: int = 100
    min_sessions: int = 4
    layouts: int = 1
    alike: Literal["boxes", "labels"] = "boxes"
    seed: int = 0

    def __post_init__(self) -> None:
        known = set(self.splits) <= set(SPLITS) and len(set(self.splits)) == len(self.splits) > 0
        if not known:
            raise ConfigError(f"splits = {' '.join(self.splits)}: name some of {', '.join(SPLITS)}, each once")
        for name, least in {"halvings": 1, "min_sessions": 2, "layouts": 1, "seed": 0}.items():
            if getattr(self, name) < least:
                raise ConfigError(f"{name} = {getattr(self, name)}: at least {least} is needed")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Sessions on pages that are laid out alike.

    Attributes:
        labels: of the slots.
        boxes: (x0, y0, x1, y1) of each slot in relative page coordinates, in the median over sessions.
        page_id: one of the pages.
        users: the people, in natural order; everybody has the sessions that are asked for.
        user: place in `users` of each session's person.
        gaze: share of the dwell time on each slot.
        click: the clicked slot.
    """

    labels: tuple[str, ...]
    boxes: Float[np.ndarray, "slots 4"]
    page_id: str
    users: tuple[str, ...]
    user: Int[np.ndarray, " sessions"]
    gaze: Float[np.ndarray, "sessions slots"]
    click: Int[np.ndarray, " sessions"]

    @property
    def sessions(self) -> Int[np.ndarray, " users"]:
        """Sessions of each person."""
        return np.bincount(self.user)

    @property
    def name(self) -> str:
        """E.g. "3 slots (A, B, C)"."""
        labels = self.labels if len(self.labels) <= 6 else (*self.labels[:2], "…", self.labels[-1])
        return f"{len(self.labels)} slots ({', '.join(labels)})"


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What is analysed.

    Attributes:
        sessions: all that are used; everybody has enough.
        layouts: those of them on the commonest page layouts, the commonest first.
        left_out: a row per reason: the `tables` that lack these sessions, `reason`, `sessions` and `people`.
    """

    sessions: Sequence[StoredSession]
    layouts: Sequence[Layout]
    left_out: pd.DataFrame


def select_sessions(sessions: Sequence[StoredSession], settings: AnalysisSettings) -> Selection:
    """Take the sessions of the splits asked for, of people who have enough, and group them by page layout.

    Raises:
        DataError: no such sessions, fewer than 2 people with enough of them, no page layout on which 2 people have
            enough, or a session without the signal.
    """
    wanted = [s for s in sessions if s.split in settings.splits]
    shown = [s for s in wanted if s.slots >= 2]
    kept = _of_people_with_enough(shown, settings.min_sessions)
    people = len({s.user_id for s in kept})
    if people < 2:
        raise DataError(
            f"{people} of {len({s.user_id for s in sessions})} people have at least {settings.min_sessions} sessions "
            f"in {', '.join(settings.splits)}; people are compared with each other, so 2 are needed: lower the number "
            "of sessions asked for, or name more splits"
        )
    groups: dict[object, list[StoredSession]] = {}
    for session in kept:
        box = tuple(np.round(session.boxes, BOX_DECIMALS).ravel().tolist())
        groups.setdefault((session.labels, box if settings.alike == "boxes" else ()), []).append(session)
    enough = [(group, _of_people_with_enough(group, settings.min_sessions)) for group in groups.values()]
    enough = [(group, good) for group, good in enough if len({s.user_id for s in good}) >= 2]
    if not enough:
        raise DataError(
            f"on none of the {len(groups)} page layouts do 2 people have at least {settings.min_sessions} sessions; "
            "lower the number of sessions asked for, or name more splits"
        )
    chosen = sorted(enough, key=lambda pair: -len(pair[1]))[: settings.layouts]
    taken = {s.session_id for group, _ in chosen for s in group}
    reasons = [
        ("all tables", f"in split {split}", [s for s in sessions if s.split == split])
        for split in SPLITS
        if split not in settings.splits
    ]
    few = f"of a person with under {settings.min_sessions} sessions"
    reasons += [
        ("all tables", "on a page of one slot", [s for s in wanted if s.slots < 2]),
        ("all tables", few, _without(shown, kept)),
        ("all but clicks", "on another page layout", [s for s in kept if s.session_id not in taken]),
    ]
    reasons += [
        ("all but clicks", f"{few} on page layout {number}", _without(group, good))
        for number, (group, good) in enumerate(chosen, start=1)
    ]
    rows = [(lacking, why, len(found), len({s.user_id for s in found})) for lacking, why, found in reasons if found]
    return Selection(
        sessions=kept,
        layouts=[_layout(good, settings) for _, good in chosen],
        left_out=pd.DataFrame(rows, columns=["tables", "reason", "sessions", "people"]),
    )


def _of_people_with_enough(sessions: Sequence[StoredSession], least: int) -> list[StoredSession]:
    counts = Counter(s.user_id for s in sessions)
    return [s for s in sessions if counts[s.user_id] >= least]


def _without(sessions: Sequence[StoredSession], kept: Sequence[StoredSession]) -> list[StoredSession]:
    ids = {s.session_id for s in kept}
    return [s for s in sessions if s.session_id not in ids]


def _layout(sessions: Sequence[StoredSession], settings: AnalysisSettings) -> Layout:
    users = natural_order({s.user_id for s in sessions})
    place = {name: index for index, name in enumerate(users)}
    return Layout(
        labels=sessions[0].labels,
        boxes=np.median([s.boxes for s in sessions], axis=0),
        page_id=sessions[0].page_id,
        users=tuple(users),
        user=np.array([place[s.user_id] for s in sessions]),
        gaze=np.stack([s.gaze(settings.signal, settings.gaze_temperature) for s in sessions]),
        click=np.array([s.click for s in sessions]),
    )
