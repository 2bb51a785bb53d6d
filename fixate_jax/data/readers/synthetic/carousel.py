"""Synthetic users who look at drawn carousel pages and pick a film.

A stand-in that can be shipped, for tests and the demo; nothing in it is taken from real people. A person has a pull
towards each row, a pull towards each column, and a taste for each genre. Gaze on a page is Dirichlet around the softmax
of row pull + column pull + taste for the poster's genre. The click is drawn from a softmax in which both the share of
gaze and the taste count.

The pages come from one pool. Everybody sees a random part of it, so a page is seen by several people.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from PIL import Image

from fixate_jax.data.carousel import COLUMNS, GENRES, ROWS, SHADES, Poster, draw_carousels, poster_boxes
from fixate_jax.data.options import DataConfig
from fixate_jax.data.readers.human_choice import assign_splits
from fixate_jax.data.session import Split, StoredSession
from fixate_jax.data.store import StoreWriter, encode_image
from fixate_jax.runtime.progress import track

USERS = 12
"""People, if `data.max_users` does not say."""
SESSIONS = 60
"""Pages that each person sees."""
PAGES = 240
"""Pages in the pool."""
LABELS = tuple("ABCDEFGHIJKLMNO")
"""Labels of the posters in reading order."""
PROFILE = "Each item is a film poster; its colour and sign tell the genre. The user picks the film to watch."
FEATURES = (*GENRES, *(f"row_{r + 1}" for r in range(ROWS)), *(f"column_{c + 1}" for c in range(COLUMNS)))
"""Names of the slot features, each 0 or 1. Shade is left out: it means nothing."""

PLACE_SPREAD = 0.9
"""Standard deviation over people of the pull towards a row or a column."""
TASTE_SPREAD = 0.7
"""Standard deviation over people of the taste for a genre."""
CONCENTRATION = 80.0
"""Of the Dirichlet: how little one page's gaze strays from what the person tends to do."""
GAZE_BONUS = 12.0
"""How much a share of gaze adds to the value of a poster in the click."""
TASTE_BONUS = 2.0
"""How much taste adds to it."""
TYPICAL_MS = 8000.0
"""Median time on a page."""
TIME_SPREAD = 0.4
"""Standard deviation of the time's logarithm."""

_PEOPLE, _VISITS, _PAGES = 1, 2, 3
"""Keep streams of random numbers apart; not 0, since NumPy takes seeds [s, u] and [s, u, 0] for the same."""
_GENRE_INDEX = {genre: i for i, genre in enumerate(GENRES)}

Page = tuple[Poster, ...]
"""Posters in reading order."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Person:
    """What makes one person look and click as they do.

    Attributes:
        rows: pull towards each row, from the top.
        columns: pull towards each column, from the left.
        tastes: taste for each genre, in the order of ``GENRES``.
    """

    rows: Float[np.ndarray, " rows"]
    columns: Float[np.ndarray, " columns"]
    tastes: Float[np.ndarray, " genres"]

    def expected_gaze(self, page: Page) -> Float[np.ndarray, " slots"]:
        """Gaze on a page in the mean over visits."""
        place = (self.rows[:, None] + self.columns[None, :]).ravel()
        return _softmax(place + self.tastes[_genres(page)])

    def click_probabilities(self, page: Page, gaze: Float[np.ndarray, " slots"]) -> Float[np.ndarray, " slots"]:
        """Probability of a click on each poster, given where the person looked."""
        return _softmax(GAZE_BONUS * gaze + TASTE_BONUS * self.tastes[_genres(page)])


@dataclass(frozen=True, kw_only=True, eq=False)
class Visit:
    """A page seen by a person.

    Attributes:
        user: index of the person.
        trial: number of the person's visit, from 1.
        page: index of the page in the pool.
        dwell_ms: time on each poster.
        click: index of the clicked poster.
    """

    user: int
    trial: int
    page: int
    dwell_ms: Float[np.ndarray, " slots"]
    click: int


def people(users: int, seed: int) -> list[Person]:
    """Draw people.

    Args:
        users: how many; the first ones are the same whatever the number.
        seed: the same seed gives the same people.
    """
    drawn = []
    for user in range(users):
        rng = np.random.default_rng([seed, user, _PEOPLE])
        drawn.append(
            Person(
                rows=rng.normal(0, PLACE_SPREAD, ROWS),
                columns=rng.normal(0, PLACE_SPREAD, COLUMNS),
                tastes=rng.normal(0, TASTE_SPREAD, len(GENRES)),
            )
        )
    return drawn


def page_pool(seed: int) -> list[Page]:
    """Draw the pool of pages: genres and shades at random, independent of place."""
    rng = np.random.default_rng([seed, 0, _PAGES])
    names = list(GENRES)
    genres = rng.integers(0, len(names), (PAGES, len(LABELS)))
    shades = rng.integers(0, SHADES, (PAGES, len(LABELS)))
    return [
        tuple(Poster(names[g], int(s)) for g, s in zip(*page, strict=True)) for page in zip(genres, shades, strict=True)
    ]


def synthetic_visits(*, users: int, sessions: int, seed: int) -> list[Visit]:
    """Visits of synthetic users to pages of the pool, person by person.

    Args:
        users: people.
        sessions: pages that each sees, none twice; at most ``PAGES``.
        seed: of people, pool and visits.

    Raises:
        ValueError: when the pool holds fewer pages than ``sessions``.
    """
    pool = page_pool(seed)
    visits = []
    for user, person in enumerate(people(users, seed)):
        rng = np.random.default_rng([seed, user, _VISITS])
        for trial, index in enumerate(rng.choice(PAGES, sessions, replace=False).tolist(), start=1):
            page = pool[index]
            gaze = rng.dirichlet(CONCENTRATION * person.expected_gaze(page))
            time = TYPICAL_MS * np.exp(rng.normal(0, TIME_SPREAD))
            value = np.log(person.click_probabilities(page, gaze))
            click = int(np.argmax(value + rng.gumbel(size=len(value))))
            visits.append(Visit(user=user, trial=trial, page=index, dwell_ms=np.round(gaze * time, 3), click=click))
    return visits


def slot_features(page: Page) -> Float[np.ndarray, "slots features"]:
    """Genre and place of each poster as ones and zeros, in the columns ``FEATURES``.

    Each of the three groups sums to 1, and none of its columns is left out: the ridge of the predictors settles that,
    and treats all genres, rows and columns alike. Rows and columns are there beside the slots because habits follow
    them, and a person's visits are too few to learn one number for each slot.
    """
    place = np.arange(len(LABELS))
    return np.concatenate(
        [np.eye(len(GENRES))[_genres(page)], np.eye(ROWS)[place // COLUMNS], np.eye(COLUMNS)[place % COLUMNS]], axis=1
    )


def make_session(visit: Visit, content: Page, *, page: str, split: Split) -> StoredSession:
    """A visit as a session.

    Args:
        visit: who looked where.
        content: the page's posters.
        page: id of the page's image in the store.
        split: which split the session belongs to.
    """
    return StoredSession(
        session_id=f"{visit.user}/{visit.trial}",
        user_id=str(visit.user),
        page_id=page,
        boxes=poster_boxes(),
        labels=LABELS,
        dwell_ms={"fixation": visit.dwell_ms},
        click=visit.click,
        profile=PROFILE,
        split=split,
        slot_features=slot_features(content),
    )


def prepare(config: DataConfig, writer_of: Callable[[tuple[str, ...]], StoreWriter]) -> None:
    """Draw people, visits and the pages that they see into a store."""
    users = USERS if config.max_users is None else config.max_users
    visits = synthetic_visits(users=users, sessions=SESSIONS, seed=config.split_seed)
    frame = pd.DataFrame({"subject": [v.user for v in visits], "block": 1, "trial": [v.trial for v in visits]})
    splits = assign_splits(frame, config.split_seed)
    pool = page_pool(config.split_seed)
    pages: dict[int, str] = {}
    with writer_of(FEATURES) as writer:
        for visit, split in track(list(zip(visits, splits, strict=True)), "Drawing pages"):
            content = pool[visit.page]
            if visit.page not in pages:
                image = draw_carousels(content, LABELS, width=config.page_width)
                pages[visit.page] = writer.add_image(encode_image(image))
            writer.add(make_session(visit, content, page=pages[visit.page], split=split))


def rearranged(config: DataConfig, session: StoredSession, order: Sequence[int]) -> Image.Image:
    """A session's page with other posters in the same places, the labels where they were.

    Args:
        config: how the page was drawn.
        session: whose page.
        order: for each place, the place that its poster comes from.
    """
    content = content_of(session, config.split_seed)
    return draw_carousels([content[i] for i in order], LABELS, width=config.page_width)


def expected_gaze(config: DataConfig, session: StoredSession, order: Sequence[int]) -> Float[np.ndarray, " slots"]:
    """Where the session's person looks in the mean over visits, on the page or one rearranged: the generator's law.

    Args:
        config: whose seed the person was drawn with.
        session: whose page and person.
        order: see :func:`rearranged`.
    """
    content, user = content_of(session, config.split_seed), int(session.user_id)
    return people(user + 1, config.split_seed)[user].expected_gaze(tuple(content[i] for i in order))


def content_of(session: StoredSession, seed: int) -> Page:
    """The posters of a session's page, told by their genres, since a session does not keep the shades."""
    genres = np.argmax(session.slot_features[:, : len(GENRES)], axis=1)
    return _pool_by_genres(seed)[tuple(genres.tolist())]


@lru_cache(maxsize=4)
def _pool_by_genres(seed: int) -> dict[tuple[int, ...], Page]:
    return {tuple(_genres(page).tolist()): page for page in page_pool(seed)}


def _genres(page: Sequence[Poster]) -> Int[np.ndarray, " slots"]:
    """Index of each poster's genre in ``GENRES``."""
    return np.array([_GENRE_INDEX[poster.genre] for poster in page])


def _softmax(scores: Float[np.ndarray, " slots"]) -> Float[np.ndarray, " slots"]:
    odds = np.exp(scores - scores.max())
    return odds / odds.sum()
