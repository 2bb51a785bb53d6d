"""What a person is after on a screen: any film, one of a genre, or one given film."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from fixate_jax.data.readers.recgaze.geometry import CAROUSELS, MOVIES
from tests.data.synthetic.recgaze.people import GENRES, Person
from tests.data.synthetic.recgaze.truth import FIRST_DIRECT_TASK, Poster

FIRST_SEMI_FREE_TASK = 31
"""From this task on people look for a film of one genre, and from 36 on for one film."""
OWN_APPEAL = 0.5
"""Deviation of what a film appeals to a person beside its genres."""
GOAL_APPEAL = 1.2
"""What a film gains if it is all of the genre that is looked for."""
TARGET_APPEAL = 5.0
"""What the film gains that is searched for."""

_TARGETS = 7
"""Keeps the stream of random numbers for the films to find apart."""


class Aim(NamedTuple):
    """How much each film appeals, and the one film to find, if there is one."""

    appeal: Float[np.ndarray, "carousels movies"]
    target: Poster | None


def aim_of(
    person: Person, weights: Float[np.ndarray, "carousels movies genres"], task: int, rng: np.random.Generator
) -> Aim:
    """What a person is after.

    Args:
        person: whose tastes count.
        weights: of each genre in each film's appeal.
        task: says what is asked for; the genre or film is the same for everybody.
        rng: for what films have beside their genres.
    """
    appeal = weights @ np.array(person.tastes) + rng.normal(0, OWN_APPEAL, weights.shape[:2])
    if task >= FIRST_DIRECT_TASK:
        carousel, place = np.random.default_rng([task, _TARGETS]).integers(1, [CAROUSELS + 1, MOVIES + 1]).tolist()
        appeal[carousel - 1, place - 1] += TARGET_APPEAL
        return Aim(appeal, (carousel, place))
    if task >= FIRST_SEMI_FREE_TASK:
        appeal = appeal + GOAL_APPEAL * weights[:, :, task % len(GENRES)]
    return Aim(appeal, None)
