"""Made-up people in words: what the model reads about them, where they look and what they choose.

Each trait is a level from 0 to 9. The words stand in a system message before the page, which is where a soft prompt goes
later: the model learns that something stands there that decides where to look.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from fixate_jax.data.carousel import COLUMNS, GENRES, ROWS, Poster
from fixate_jax.data.render import Alternative

LEVELS = 10
_MIDDLE = (LEVELS - 1) / 2
NEUTRAL_SHARPNESS = 2.0


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
    """Somebody who chooses among gambles.

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
        return Gambler(
            rng.integers(LEVELS, size=3), rng.integers(LEVELS, size=3), *map(int, rng.integers(LEVELS, size=2))
        )

    @property
    def text(self) -> str:
        """The person in words."""
        left, middle, right = self.columns
        chance, amount, value = self.weights
        return (
            f"left{left} middle{middle} right{right} chance{chance} amount{amount} value{value} "
            f"look{self.look} sure{self.sure}"
        )

    def judge(self, alternatives: list[Alternative]) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
        """Share of gaze and probability of choice of each alternative."""
        value = gamble_values(alternatives) @ ((self.weights - 2.5) / 4.5)
        pull = (self.columns - _MIDDLE) / 4
        return softmax(pull + 0.12 * self.look * value), softmax(0.3 * pull + 0.4 * np.exp(0.27 * self.sure) * value)


def judge_neutrally(alternatives: list[Alternative]) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
    """The same for nobody in particular: eyes everywhere, choice by expected value."""
    value = gamble_values(alternatives)[:, 2]
    return softmax(0.3 * value), softmax(NEUTRAL_SHARPNESS * value)


class Viewer(NamedTuple):
    """Somebody who chooses among film posters.

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
        genres = rng.choice(list(GENRES), size=4, replace=False)
        return Viewer(
            rng.integers(LEVELS, size=ROWS),
            rng.integers(LEVELS, size=COLUMNS),
            {str(g): int(rng.integers(LEVELS)) for g in genres},
        )

    @property
    def text(self) -> str:
        """The person in words."""
        rows, columns = ("".join(map(str, levels)) for levels in (self.rows, self.columns))
        return f"rows{rows} columns{columns} " + " ".join(f"{genre}{level}" for genre, level in self.tastes.items())

    def judge(self, posters: list[Poster | None]) -> tuple[Float[np.ndarray, " slots"], Float[np.ndarray, " slots"]]:
        """Share of gaze and probability of choice of each poster that is there."""
        habit = ((self.rows - _MIDDLE) / 3)[:, None] + ((self.columns - _MIDDLE) / 3)[None, :]
        place = np.array([h for h, p in zip(habit.ravel(), posters, strict=True) if p])
        taste = np.array(
            [(self.tastes[p.genre] - _MIDDLE) / 2.5 if p.genre in self.tastes else 0.0 for p in posters if p]
        )
        return softmax(place + taste), softmax(0.6 * place + 2 * taste)
