"""Synthetic users in words: what the model reads about them, where they look and what they choose.

Each trait has a level from A to G, written as one word ("horrorF": likes horror films), which is one token. The words
stand in a system message before the page, which is where a soft prompt goes later: the model learns that each vector
there may say something about where to look.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from fixate_jax.data.carousel import COLUMNS, GENRES, ROWS, Poster
from fixate_jax.data.render import Alternative

LEVELS = "ABCDEFG"
_MIDDLE = (len(LEVELS) - 1) / 2
PLACES = (("left", "middle", "right"), ("top", "centre", "bottom"), ("first", "second", "third", "fourth", "fifth"))
"""Words for the columns of gambles, the rows of posters and their columns."""
WEIGHTS = ("chance", "amount", "value")
TRAITS = (*PLACES[0], *WEIGHTS, "look", "sure", *PLACES[1], *PLACES[2], *GENRES)
NEUTRAL_SHARPNESS = 2.0


def _words(traits: Sequence[str], levels: Sequence[int | np.integer]) -> str:
    return " ".join(f"{trait}{LEVELS[level]}" for trait, level in zip(traits, levels, strict=True))


def _draw(rng: np.random.Generator, count: int) -> Int[np.ndarray, " traits"]:
    return rng.integers(len(LEVELS), size=count)


def softmax(x: Float[np.ndarray, " slots"]) -> Float[np.ndarray, " slots"]:
    """Probabilities from scores."""
    e = np.exp(x - x.max())
    return e / e.sum()


def gamble_values(alternatives: list[Alternative]) -> Float[np.ndarray, "3 3"]:
    """Chance, amount and expected value of each gamble, each on a scale of about one standard deviation."""
    p = np.array([a.probability for a in alternatives])
    m = np.array([a.amount for a in alternatives], float)
    return np.stack([(p - 0.5) / 0.22, (m - 18) / 13, (p * m - 8) / 5], axis=-1)


class Gambler(NamedTuple):
    """Somebody who chooses among gambles; levels are numbers from 0 (A) to 6 (G).

    Attributes:
        columns: pull towards each column.
        weights: liking of high chances, of high amounts and of high expected values (risk attitude).
        look: how much value draws the eyes.
        sure: how firmly value decides.
    """

    columns: Int[np.ndarray, "3"]
    weights: Int[np.ndarray, "3"]
    look: int
    sure: int

    @staticmethod
    def draw(rng: np.random.Generator) -> "Gambler":
        """Somebody at random."""
        look, sure = (int(level) for level in _draw(rng, 2))
        return Gambler(_draw(rng, 3), _draw(rng, 3), look, sure)

    @property
    def text(self) -> str:
        """The person in words."""
        levels = [*self.columns, *self.weights, self.look, self.sure]
        return _words((*PLACES[0], *WEIGHTS, "look", "sure"), levels)

    def judge(self, alternatives: list[Alternative]) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
        """Share of gaze and probability of choice of each alternative."""
        value = gamble_values(alternatives) @ ((self.weights - 1.5) / 3)
        pull = (self.columns - _MIDDLE) / 2.7
        return softmax(pull + 0.18 * self.look * value), softmax(0.3 * pull + 0.4 * np.exp(0.4 * self.sure) * value)


def judge_neutrally(alternatives: list[Alternative]) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
    """The same for nobody in particular: eyes everywhere, choice by expected value."""
    value = gamble_values(alternatives)[:, 2]
    return softmax(0.3 * value), softmax(NEUTRAL_SHARPNESS * value)


class Viewer(NamedTuple):
    """Somebody who chooses among film posters; levels are numbers from 0 (A) to 6 (G).

    Attributes:
        rows: pull towards each row.
        columns: pull towards each column.
        tastes: liking of some genres; the others leave the person cold.
    """

    rows: Int[np.ndarray, "3"]
    columns: Int[np.ndarray, "5"]
    tastes: dict[str, int]

    @staticmethod
    def draw(rng: np.random.Generator) -> "Viewer":
        """Somebody at random."""
        genres = rng.choice(list(GENRES), size=6, replace=False)
        rows, columns = _draw(rng, ROWS), _draw(rng, COLUMNS)
        return Viewer(rows, columns, {str(g): int(level) for g, level in zip(genres, _draw(rng, 6), strict=True)})

    @property
    def text(self) -> str:
        """The person in words."""
        levels = [*self.rows, *self.columns, *self.tastes.values()]
        return _words((*PLACES[1], *PLACES[2], *self.tastes), levels)

    def judge(self, posters: list[Poster | None]) -> tuple[Float[np.ndarray, " slots"], Float[np.ndarray, " slots"]]:
        """Share of gaze and probability of choice of each poster that is there."""
        habit = ((self.rows - _MIDDLE) / 2)[:, None] + ((self.columns - _MIDDLE) / 2)[None, :]
        place = np.array([h for h, p in zip(habit.ravel(), posters, strict=True) if p])
        taste = np.array(
            [(self.tastes[p.genre] - _MIDDLE) / 1.7 if p.genre in self.tastes else 0.0 for p in posters if p]
        )
        return softmax(place + taste), softmax(0.6 * place + 2 * taste)
