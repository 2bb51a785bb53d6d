"""RecGaze's sessions in a store: who the person is in words, the page as it was seen, and a letter for each slot."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from fixate_jax.data.options import DataConfig
from fixate_jax.data.readers.recgaze.geometry import PAGES, SHOWN, VIEWPORT, page_of, slot_boxes
from fixate_jax.data.readers.recgaze.pages import Viewport, render_viewports
from fixate_jax.data.readers.recgaze.reader import SPANS, read_recgaze
from fixate_jax.data.readers.recgaze.screens import Screen
from fixate_jax.data.readers.recgaze.tables import ITEMS, NON_PUBLIC, PUBLIC, USERS, read_small_table
from fixate_jax.data.session import StoredSession
from fixate_jax.data.store import StoreWriter, natural_order
from fixate_jax.runtime.progress import bar

LABELS = tuple("ABCDEFGHIJKLMNO")
POSTERS = "posters"
"""Folder of poster files beside the tables; it may be missing, and so may posters in it."""
TASK = "Each item is a film poster with its letter below. The user picks the film to watch."
FEATURES = (
    "row_of_top_genre",
    "row_of_preferred_genre",
    "rating_of_row_genre",
    "film_of_top_genre",
    "share_of_preferred_genres",
    *(f"row_{row}" for row in (1, 2, 3)),
    *(f"column_{column}" for column in range(1, SHOWN + 1)),
    *(f"swiped_{page}" for page in range(1, PAGES)),
)
"""Names of the slot features; row and column count from the upper left slot."""


@dataclass(frozen=True, kw_only=True)
class Tastes:
    """What a person said about genres.

    Attributes:
        top: the favourite.
        preferred: those liked.
        ratings: by genre, 0 where it was not rated.
    """

    top: str
    preferred: tuple[str, ...]
    ratings: Mapping[str, float]

    def profile(self) -> str:
        """The person in words."""
        others = [genre for genre in self.preferred if genre != self.top]
        liked = f" The user also likes {_listed(others)}." if others else ""
        return f"{TASK} The user's favourite genre is {self.top}.{liked}" if self.top else f"{TASK}{liked}"


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def read_tastes(path: Path, genres: list[str]) -> dict[str, Tastes]:
    """What the people of ``user_features.csv`` said, by user.

    Args:
        path: the file.
        genres: whose ratings to read, from columns like ``Drama_rating``.

    Raises:
        DataError: naming a column that is missing.
    """
    columns = {genre: f"{genre}_rating" for genre in genres}
    table = read_small_table(path, numbers=list(columns.values()), texts=["UserID", "Top_genre", "Preferred_genres"])
    users, tops, liked = (table.words(name) for name in ("UserID", "Top_genre", "Preferred_genres"))
    found = {}
    for row, user in enumerate(users):
        preferred = tuple(part.strip() for part in liked[row].split(",") if part.strip())
        ratings = {genre: float(np.nan_to_num(table.numbers[c][row], posinf=0.0)) for genre, c in columns.items()}
        found[user] = Tastes(top=tops[row], preferred=preferred, ratings=ratings)
    return found


def source_files(path: Path) -> list[Path]:
    """The raw files that sessions are made of; the non-public table and posters only where they are there."""
    optional = [path / NON_PUBLIC] if (path / NON_PUBLIC).exists() else []
    posters = sorted(p for p in (path / POSTERS).glob("*") if p.is_file())
    return [path / PUBLIC, *optional, path / ITEMS, path / USERS, *posters]


def slot_features(slots: tuple[tuple[int, int], ...], screen: Screen, tastes: Tastes) -> Float[np.ndarray, "slots n"]:
    """What is displayed in each slot beside what the person said, and where it stands, in the columns ``FEATURES``."""
    first, rows = slots[0][0], []
    for carousel, place in slots:
        row, film = screen[carousel - 1].genre, screen[carousel - 1].movies[place - 1].genres
        liked = sum(genre in tastes.preferred for genre in film) / max(len(film), 1)
        said = [row == tastes.top, row in tastes.preferred, tastes.ratings.get(row, 0.0), tastes.top in film, liked]
        where = [*np.eye(3)[carousel - first], *np.eye(SHOWN)[(place - 1) % SHOWN], *np.eye(PAGES)[page_of(place)][1:]]
        rows.append([*map(float, said), *where])
    return np.array(rows, np.float64)


def make_session(row: Any, *, page: str, screen: Screen, tastes: Tastes, span: tuple[int, int]) -> StoredSession:
    """A row of ``RecGaze.sessions`` as a session; without a cursor on a slot it has no cursor signal."""
    top, bottom = (end / VIEWPORT[1] for end in span)
    dwell = {"fixation": np.array(row.fixation_ms, np.float64)}
    if sum(row.cursor_ms) > 0:
        dwell["cursor"] = np.array(row.cursor_ms, np.float64)
    return StoredSession(
        session_id=row.session_id,
        user_id=row.user_id,
        page_id=page,
        boxes=slot_boxes(row.slots, scroll=row.scroll_px).clip([0.0, top, 0.0, top], [1.0, bottom, 1.0, bottom]),
        labels=LABELS[: len(row.slots)],
        dwell_ms=dwell,
        click=row.click,
        profile=tastes.profile(),
        split=row.split,
        slot_features=slot_features(row.slots, screen, tastes),
    )


def _viewport(row: Any, screen: Screen, config: DataConfig) -> Viewport:
    assert config.path is not None
    posters = config.path / POSTERS
    return Viewport(
        screen=screen,
        scroll=row.scroll_px,
        horizontal_pages=row.horizontal_pages,
        labels=dict(zip(row.slots, LABELS, strict=False)),
        span=SPANS[config.viewport],
        width=config.page_width,
        posters=posters if posters.is_dir() else None,
    )


def prepare(config: DataConfig, writer_of: Callable[[tuple[str, ...]], StoreWriter]) -> None:
    """Read the logs, draw what was seen, and add the sessions to a store.

    Raises:
        DataError: naming file, line and field.
    """
    assert config.path is not None
    how: dict[str, Any] = {"definition": config.definition, "viewport": config.viewport}
    found = read_recgaze(config.path, on_bad_row=config.on_bad_row, **how)
    screens = found.screens
    tastes = read_tastes(config.path / USERS, sorted({c.genre for screen in screens.values() for c in screen}))
    users = natural_order(set(found.sessions["user_id"]))[: config.max_users]
    sessions: pd.DataFrame = found.sessions[found.sessions["user_id"].isin(users)]
    # Screen by screen, so that a poster is read a few times and not for each page that shows it.
    drawn = sessions.sort_values("task_id", kind="stable")
    views = [_viewport(row, screens[row.task_id], config) for row in drawn.itertuples(index=False)]
    with writer_of(FEATURES) as writer, bar("Drawing pages", len(views)) as (progress, task):

        def keep(png: bytes) -> str:
            progress.update(task, advance=1)
            return writer.add_image(png)

        pages = dict(zip(drawn["session_id"], render_viewports(views, keep), strict=True))
        progress.update(task, completed=len(views))
        writer.dropped, writer.noted = found.dropped, found.noted
        writer.hidden_features = ("rating_of_row_genre",)
        for row in sessions.itertuples(index=False):
            screen, own = screens[row.task_id], tastes[row.user_id]
            page, span = pages[row.session_id], SPANS[config.viewport]
            writer.add(make_session(row, page=page, screen=screen, tastes=own, span=span))
