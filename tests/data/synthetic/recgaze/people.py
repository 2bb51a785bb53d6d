"""Made-up people in front of RecGaze's screens: what they like, and how they look, move about and choose.

Pulls are differences of log-odds, so a pull of 0.7 doubles the odds. Appeal is counted in standard deviations of taste
over people. Nothing in here is taken from real people; the spreads are set so that simulated gaze is personal, stable
and telling of the click, more so than real people's in human_choice (docs/results/analysis.md).
"""

from dataclasses import dataclass

import numpy as np

GENRES = ("Action", "Animation", "Comedy", "Crime", "Drama", "Fantasy", "Horror", "Romance", "Sci-Fi", "Thriller")
"""Genres of the carousels; every screen has one carousel of each, and people rate them."""
KINIT, UVA = 61, 26
"""People at each of the study's two sites."""

TOP_PULL = (0.45, 0.65)
LEFT_PULL = (0.22, 0.4)
CENTRE_PULL = (0.25, 0.8)
ROW_LOYALTY = (1.1, 0.5)
REACH_COST = (0.45, 0.15)
TASTE_PULL = (0.4, 0.18)
CURIOSITY = (0.4, 0.15)
FIXATION_MS = (230.0, 0.17)
LOOK = (22.0, 0.27)
DECISIVENESS = (-0.35, 0.7)
SWIPE_READINESS = (1.2, 3.2)
JUMP_PX = (560.0, 0.3)
WHEEL_SHARE = 0.6
CURSOR_LAG_MS = (420.0, 0.25)
CURSOR_FOLLOWING = (1.3, 2.2)
"""Over people: mean and deviation of the pulls, costs and decisiveness (normal); median and deviation of the logarithm
of times, counts and lengths (log-normal); the two shape numbers of the shares (beta). Units are those of `Person`."""
RATING_PER_TASTE, RATING_NOISE = 1.1, 0.35
"""A rating is 3 + 1.1 times the taste + noise of this deviation, rounded to 1 to 5."""
PREFERRED_TASTE, MOST_PREFERRED = 0.7, 4
"""Genres with more than this taste are preferred, at most four of them; the top genre always is."""

_PEOPLE = 1
"""Keeps this stream of random numbers apart from those of the walks."""


@dataclass(frozen=True, kw_only=True)
class Person:
    """What makes one person look and click as they do.

    Attributes:
        user_id: as in the data set, e.g. ``"KInIT_3"``.
        tastes: for each of ``GENRES``, standard normal over people.
        ratings: for each of ``GENRES``, 1 to 5.
        top_genre: the one with the highest taste.
        preferred_genres: the best liked ones, the top genre first.
        top_pull: log-odds that a poster loses for each row that it stands below the first in the viewport (F-pattern).
        left_pull: log-odds that it loses for each column to the right (F-pattern).
        centre_pull: log-odds of the middle column over an outer one.
        row_loyalty: log-odds of the next look staying in its row.
        reach_cost: log-odds lost for each column or row that the eyes have to cross.
        taste_pull: log-odds of gaze for one unit of appeal.
        curiosity: log-odds that a poster loses with each fixation on it.
        fixation_ms: median fixation in ms.
        look: fixations in the opening view before a decision, in the mean.
        decisiveness: log-odds of choosing in the opening view if its best poster has appeal 1.
        swipe_readiness: share of the moves that swipe a carousel where others scroll.
        jump_px: median distance of a scroll in pixels.
        wheel: scrolls with a wheel, in notches; else smoothly, with a trackpad.
        cursor_lag_ms: median delay of the cursor behind the gaze in ms.
        cursor_following: share of the fixations that the cursor goes along to.
    """

    user_id: str
    tastes: tuple[float, ...]
    ratings: tuple[int, ...]
    top_genre: str
    preferred_genres: tuple[str, ...]
    top_pull: float
    left_pull: float
    centre_pull: float
    row_loyalty: float
    reach_cost: float
    taste_pull: float
    curiosity: float
    fixation_ms: float
    look: float
    decisiveness: float
    swipe_readiness: float
    jump_px: float
    wheel: bool
    cursor_lag_ms: float
    cursor_following: float

    def rating(self, genre: str) -> int:
        """How the person rates a carousel's genre, 1 to 5."""
        return self.ratings[GENRES.index(genre)]


def user_id(index: int) -> str:
    """Name of the person of an index from 0: 61 at one site and 26 at the other among the first 87, well mixed."""
    tens, rest = divmod(index, 10)
    at_uva = [2, 5, 8]
    before = tens * len(at_uva) + sum(place < rest for place in at_uva)
    return f"UvA_{before + 1}" if rest in at_uva else f"KInIT_{index - before + 1}"


def draw_people(users: int, seed: int) -> tuple[Person, ...]:
    """Draw people.

    Args:
        users: how many; the first ones are the same whatever the number.
        seed: the same seed gives the same people.
    """
    return tuple(_draw(index, np.random.default_rng([seed, index, _PEOPLE])) for index in range(users))


def _draw(index: int, rng: np.random.Generator) -> Person:
    def normal(of: tuple[float, float], least: float = -np.inf) -> float:
        return max(float(rng.normal(*of)), least)

    def lognormal(of: tuple[float, float]) -> float:
        return float(of[0] * np.exp(rng.normal(0, of[1])))

    tastes = rng.normal(size=len(GENRES))
    ratings, preferred = _opinions(tastes, rng)
    return Person(
        user_id=user_id(index),
        tastes=tuple(tastes.tolist()),
        ratings=ratings,
        top_genre=preferred[0],
        preferred_genres=preferred,
        top_pull=normal(TOP_PULL),
        left_pull=normal(LEFT_PULL),
        centre_pull=normal(CENTRE_PULL),
        row_loyalty=normal(ROW_LOYALTY),
        reach_cost=normal(REACH_COST, 0.0),
        taste_pull=normal(TASTE_PULL, 0.0),
        curiosity=normal(CURIOSITY, 0.0),
        fixation_ms=lognormal(FIXATION_MS),
        look=lognormal(LOOK),
        decisiveness=normal(DECISIVENESS),
        swipe_readiness=float(rng.beta(*SWIPE_READINESS)),
        jump_px=lognormal(JUMP_PX),
        wheel=bool(rng.random() < WHEEL_SHARE),
        cursor_lag_ms=lognormal(CURSOR_LAG_MS),
        cursor_following=float(rng.beta(*CURSOR_FOLLOWING)),
    )


def _opinions(tastes: np.ndarray, rng: np.random.Generator) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """What the person would say in a questionnaire: ratings, and preferred genres from the best liked one down."""
    order = np.argsort(-tastes)
    preferred = [int(g) for g in order[:MOST_PREFERRED] if tastes[g] > PREFERRED_TASTE] or [int(order[0])]
    noisy = 3 + RATING_PER_TASTE * tastes + rng.normal(0, RATING_NOISE, len(GENRES))
    ratings = np.clip(np.rint(noisy), 1, 5).astype(int)
    ratings[preferred] = np.maximum(ratings[preferred], 4)
    ratings[preferred[0]] = max(4, int(ratings.max()))
    return tuple(ratings.tolist()), tuple(GENRES[g] for g in preferred)
