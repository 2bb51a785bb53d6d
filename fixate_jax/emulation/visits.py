"""What emulated users do: where they look, what they would click, and clicks drawn from that."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt32

from fixate_jax.data.options import COLDEST
from fixate_jax.emulation.pages import Page
from fixate_jax.errors import ConfigError, DataError
from fixate_jax.probing import heat_map

if TYPE_CHECKING:
    import pandas as pd


def require_temperature(temperature: float) -> None:
    """Refuse a temperature of click probabilities that there cannot be.

    Raises:
        ConfigError: it is below 0.001, or not finite.
    """
    if not (temperature >= COLDEST and math.isfinite(temperature)):
        raise ConfigError(f"temperature = {temperature}: must be at least {COLDEST}, and finite")


@dataclass(frozen=True, kw_only=True, eq=False)
class Visits:
    """Pages seen by emulated users, a visit a row.

    Attributes:
        users: who, in each visit.
        pages: which page, in each visit.
        attention: a, the share of attention on each slot, for the user's own answer; it sums to just under 1. 0 where
            the page has no such slot.
        log_probs: log-probability of a click on each slot, among the slots of the page; −∞ where there is no such slot.
        answered: log-probability that the model answers with any label of the page at all, of everything that it could
            say. Far below 0 says that it does not understand the question.
        relevance: of each visual token in its place on the page; None unless it was asked for.
    """

    users: tuple[str, ...]
    pages: tuple[Page, ...]
    attention: Float[np.ndarray, "visits slots"]
    log_probs: Float[np.ndarray, "visits slots"]
    answered: Float[np.ndarray, " visits"]
    relevance: tuple[Float[np.ndarray, "_rows _columns"], ...] | None = None

    def __len__(self) -> int:
        return len(self.users)

    def probabilities(self, temperature: float = 1.0) -> Float[np.ndarray, "visits slots"]:
        """Probability of a click on each slot; they sum to 1.

        Args:
            temperature: divides the logarithms first: below 1 the likeliest slot gets more, above 1 less.

        Raises:
            ConfigError: the temperature is below 0.001, or not finite.
        """
        require_temperature(temperature)
        scaled = (self.log_probs - self.log_probs.max(axis=1, keepdims=True)) / temperature
        odds = np.exp(scaled)
        share: Float[np.ndarray, "visits slots"] = odds / odds.sum(axis=1, keepdims=True)
        return share

    def clicks(self, *, seed: int, temperature: float = 1.0, draws: int = 1) -> Int[np.ndarray, "visits draws"]:
        """Slots clicked, drawn from the probabilities.

        A visit's draws depend on seed, user and page alone, whatever else is in the call; draw 3 is the same whether 5
        are drawn or 50.

        Args:
            seed: of the draws.
            temperature: see :meth:`probabilities`.
            draws: how often each user sees each page.

        Raises:
            ConfigError: temperature or number of draws are out of range.
        """
        if draws < 1:
            raise ConfigError(f"draws = {draws}: must be at least 1")
        probabilities = self.probabilities(temperature)
        names = [_number(user) for user in self.users], [_number(page.name) for page in self.pages]
        chance = _uniform(jax.random.key(seed), *(jnp.asarray(n, jnp.uint32) for n in names), draws=draws)
        below = np.cumsum(probabilities, axis=1)[:, None, :] <= np.asarray(chance)[:, :, None]
        last = np.array([page.slots - 1 for page in self.pages])
        return np.minimum(below.sum(axis=-1), last[:, None])

    def log_prob(self, clicks: Sequence[int] | Int[np.ndarray, " visits"]) -> Float[np.ndarray, " visits"]:
        """Log-probability of an observed click in each visit, among the slots of its page.

        Raises:
            DataError: a click is on no slot of its page.
        """
        chosen = np.asarray(clicks)
        if chosen.shape != (len(self),):
            raise DataError(f"clicks: {chosen.size} for {len(self)} visits; give one for each")
        for visit, (click, page) in enumerate(zip(chosen, self.pages, strict=True)):
            if not 0 <= click < page.slots:
                raise DataError(f"clicks, visit {visit}: slot {click} is not on page {page.name!r} of {page.slots}")
        found: Float[np.ndarray, " visits"] = self.log_probs[np.arange(len(self)), chosen]
        return found

    def heat_map(self, visit: int) -> Float[np.ndarray, "height width"]:
        """Magnitude of relevance at every pixel of the page, see :func:`fixate_jax.probing.heat_map`.

        Raises:
            ConfigError: relevance was not kept.
        """
        if self.relevance is None:
            raise ConfigError("no relevance was kept; call the emulator with relevance=True")
        return heat_map(self.relevance[visit], *self.pages[visit].image.size)

    def frame(self, *, seed: int | None = None, temperature: float = 1.0) -> "pd.DataFrame":
        """A row for each visit and slot.

        Columns: ``user_id``, ``page_id``, ``slot`` (from 0), ``label``, ``item`` ("" where pages have none),
        ``attention``, ``probability``, and with a seed ``click``, True for the slot that a first draw clicks.

        Args:
            seed: of the drawn click; None leaves the column out.
            temperature: of probabilities and draws.
        """
        probabilities = self.probabilities(temperature)
        counts = [page.slots for page in self.pages]
        visit = np.repeat(np.arange(len(self)), counts)
        slot = np.concatenate([np.arange(count) for count in counts])
        columns = {
            "user_id": np.repeat(np.array(self.users, object), counts),
            "page_id": np.repeat(np.array([page.name for page in self.pages], object), counts),
            "slot": slot,
            "label": [label for page in self.pages for label in page.labels],
            "item": [item for page in self.pages for item in (page.items or ("",) * page.slots)],
            "attention": self.attention[visit, slot],
            "probability": probabilities[visit, slot],
        }
        if seed is not None:
            columns["click"] = self.clicks(seed=seed, temperature=temperature)[visit, 0] == slot
        import pandas as pd  # Not needed before there is a table.

        return pd.DataFrame(columns)


@dataclass(frozen=True, kw_only=True, eq=False)
class Emulation:
    """Every page seen by every user.

    Attributes:
        users: who.
        attention: a, the share of attention on each slot, for the user's own answer; 0 where the page has no such slot.
        click_probability: of each slot; they sum to 1 over a page.
        visits: the same with a row a visit, users first: draws of clicks, log-probabilities, tables.
    """

    users: tuple[str, ...]
    attention: Float[np.ndarray, "users pages slots"]
    click_probability: Float[np.ndarray, "users pages slots"]
    visits: Visits


def _number(name: str) -> int:
    """A number of 32 bits that stands for a name, the same in every process."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8")).digest()[:4])


@partial(jax.jit, static_argnames="draws")
def _uniform(
    key: Array, users: UInt32[Array, " visits"], pages: UInt32[Array, " visits"], *, draws: int
) -> Float[Array, "visits draws"]:
    """Numbers from 0 to 1, each with a key of its own."""

    def one(user: Array, page: Array) -> Array:
        own = jax.random.fold_in(jax.random.fold_in(key, user), page)
        return jax.vmap(lambda draw: jax.random.uniform(jax.random.fold_in(own, draw)))(jnp.arange(draws))

    return jax.vmap(one)(users, pages)
