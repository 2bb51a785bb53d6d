"""The synthetic users of synthetic_carousel themselves, in place of the model that was tuned on them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float

from fixate_jax.data.readers.synthetic.carousel import USERS, Person, people
from fixate_jax.emulation.gym.world import ITEMS
from fixate_jax.emulation.pages import Page
from fixate_jax.emulation.versions import item_name
from fixate_jax.emulation.visits import Visits
from fixate_jax.errors import ConfigError, DataError

_POSTERS = {item_name(poster): poster for poster in ITEMS}


@dataclass(frozen=True, kw_only=True)
class MadeUpPeople:
    """People who click by the formula that made them, as fast as a formula is.

    They are what an emulator of them should be, so they tell what its rewards are worth. Each looks where they look in
    the mean over visits, see :mod:`fixate_jax.data.readers.synthetic.carousel`.

    Attributes:
        count: how many; the first ones are the same whatever the number.
        seed: of the people; 0 are those of ``demo-users``.
    """

    count: int = USERS
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ConfigError(f"count={self.count}: at least one person is needed")

    @cached_property
    def everybody(self) -> list[Person]:
        """Who they are."""
        return people(self.count, self.seed)

    @property
    def users(self) -> tuple[str, ...]:
        """Names, "0" and so on."""
        return tuple(map(str, range(self.count)))

    def visit(self, users: Sequence[str], pages: Sequence[Page]) -> Visits:
        """Show one page to each person.

        Raises:
            DataError: a page does not say which posters it shows.
        """
        attention, log_probs = [], []
        for user, page in zip(users, pages, strict=True):
            strange = [item for item in page.items if item not in _POSTERS]
            if strange or not page.items:
                missing = ", ".join(strange) or "missing"
                raise DataError(f"page {page.name!r}: items {missing}; synthetic users know posters only")
            posters = tuple(_POSTERS[item] for item in page.items)
            person = self.everybody[self.users.index(user)]
            attention.append(person.expected_gaze(posters))
            log_probs.append(np.log(person.click_probabilities(posters, attention[-1])))
        return Visits(
            users=tuple(users),
            pages=tuple(pages),
            attention=np.array(attention),
            log_probs=np.array(log_probs),
            answered=np.zeros(len(pages)),
        )

    def tastes(self, items: int = len(ITEMS)) -> Float[np.ndarray, "users items"]:
        """Each person's taste for each item of a catalogue, that for its genre."""
        names = [poster.genre for poster in ITEMS[:items]]
        genres = list(dict.fromkeys(poster.genre for poster in ITEMS))
        columns = [genres.index(name) for name in names]
        return np.array([person.tastes[columns] for person in self.everybody])
