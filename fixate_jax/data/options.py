"""Which sessions to use."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fixate_jax.errors import require

COLDEST = 1e-3
"""The lowest temperature of click probabilities: far below it nothing is left of a number."""
NARROWEST_PAGE = 64
"""Pixels that a page is wide, at least."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which sessions to use."""

    name: str = "human_choice"
    """Data set, a key of the registry in fixate_jax.data."""
    path: Path | None = None
    """Folder of the raw data set (None: synthetic users, or a store that is there)."""
    store: Path | None = None
    """Folder of the prepared session store; made from `path` when it does not exist yet."""
    slots: Literal["alternatives", "texts"] = "alternatives"
    """human_choice: 3 slots (one an alternative) or 6 (one a text)."""
    definition: Literal["page", "screen"] = "page"
    """recgaze: what a session is, the page visit of the final click or the opening view of the screen."""
    viewport: Literal["seen", "screen"] = "seen"
    """recgaze: what of the screen counts as seen, what its bars leave (rows 87 to 1032) or all of it, as published."""
    grids: tuple[Literal[9, 16, 25, 36], ...] = (9, 16, 25, 36)
    """snacks: screens of how many photographs."""
    profile: Literal["none", "ratings", "all_ratings"] = "none"
    """snacks: what the model is told of the person's ratings, nothing, the best and worst few, or all."""
    page_width: int = 320
    """Width of the drawn page in pixels."""
    signal: str = "fixation"
    """Which dwell signal to align with, e.g. fixation or cursor."""
    common_sessions: bool = False
    """Use only the sessions that have every signal of the data set, so that runs on different signals see the same."""
    gaze_temperature: float = 1.0
    """τ in g^(1/τ): above 1 flattens the human distribution, below 1 sharpens it."""
    split: Literal["sessions", "pages"] = "sessions"
    """What is new in validation and test: the person's visit (others may have seen the page in training), or the page,
    which nobody has seen in training."""
    split_seed: int = 0
    """Seed of the train/validation/test split."""
    on_bad_row: Literal["error", "skip"] = "error"
    """What to do with a bad row: stop, or leave it out and count it."""
    max_users: int | None = None
    """Use only the first N users (None: all)."""
    users: tuple[str, ...] | None = None
    """Use only these users (None: all), so that settings can be chosen on some people and tested on others."""
    train_sessions: int | None = None
    """Learn from at most so many sessions of each user (None: all); those for fewer are among those for more."""

    def __post_init__(self) -> None:
        wide = self.page_width >= NARROWEST_PAGE
        require(wide, "data.page_width", self.page_width, f"at least {NARROWEST_PAGE} pixels are needed")
        require(self.gaze_temperature > 0, "data.gaze_temperature", self.gaze_temperature, "must be above 0")
        require(self.split_seed >= 0, "data.split_seed", self.split_seed, "must not be negative")
        named = self.users is None or 0 < len(set(self.users)) == len(self.users)
        require(named, "data.users", self.users, "name at least one, each once")
        grids = 0 < len(set(self.grids)) == len(self.grids)
        require(grids, "data.grids", self.grids, "name at least one, each once")
        for name in ("max_users", "train_sessions"):
            value = getattr(self, name)
            require(value is None or value > 0, f"data.{name}", value, "must be above 0")
