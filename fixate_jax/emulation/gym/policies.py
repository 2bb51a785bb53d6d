"""Recommenders to compare: what knows nothing, what knows everybody, what knows each, and what learns each."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fixate_jax.errors import ConfigError

Observation = Mapping[str, np.ndarray]
"""What :class:`CarouselVectorEnv` lets a recommender see, a row for each environment."""


@runtime_checkable
class Policy(Protocol):
    """Fills the recommender's slots in every environment of a vector."""

    def act(self, observation: Observation) -> Int[np.ndarray, "envs own"]:
        """Items for each environment's next page."""

    def learn(
        self,
        users: Int[np.ndarray, " envs"],
        clicked: Bool[np.ndarray, "envs items"],
        shown: Bool[np.ndarray, "envs items"],
        rewards: Float[np.ndarray, " envs"],
    ) -> None:
        """Take note of what the last pages brought.

        Args:
            users: who saw them.
            clicked: whether an item was clicked in one of the recommender's slots.
            shown: whether it was shown in one of them.
            rewards: of the visits.
        """


class _Fixed:
    """A policy that learns nothing on the way."""

    def learn(self, users: np.ndarray, clicked: np.ndarray, shown: np.ndarray, rewards: np.ndarray) -> None:
        """Nothing changes."""


class RandomPolicy(_Fixed):
    """Any items, each page anew.

    Args:
        items: size of the catalogue.
        slots: how many to fill.
        seed: of the choice.
    """

    def __init__(self, *, items: int, slots: int, seed: int) -> None:
        self.items, self.slots, self.rng = items, slots, np.random.default_rng(seed)

    def act(self, observation: Observation) -> Int[np.ndarray, "envs own"]:
        """Items drawn without repeats."""
        chance = self.rng.random((len(observation["user"]), self.items))
        return np.argsort(chance, axis=1)[:, : self.slots]


class PopularityPolicy(_Fixed):
    """For everybody the items that most people click, from a time when slots were filled at random.

    Args:
        clicks: how often each item was clicked.
        shown: how often it was shown.
        slots: how many to fill.

    Raises:
        ConfigError: an item was never shown.
    """

    def __init__(self, *, clicks: Int[np.ndarray, " items"], shown: Int[np.ndarray, " items"], slots: int) -> None:
        if not (shown > 0).all():
            raise ConfigError(f"items {np.flatnonzero(shown == 0).tolist()} were never shown; explore for longer")
        self.rates = clicks / shown
        self.best = best(self.rates[None], slots)

    def act(self, observation: Observation) -> Int[np.ndarray, "envs own"]:
        """The same items for each."""
        return np.repeat(self.best, len(observation["user"]), axis=0)


class TastePolicy(_Fixed):
    """For each user what the user likes best, as somebody knows it who made the users up.

    Args:
        values: what each item is worth to each user.
        slots: how many to fill.
    """

    def __init__(self, values: Float[np.ndarray, "users items"], *, slots: int) -> None:
        self.best = best(values, slots)

    def act(self, observation: Observation) -> Int[np.ndarray, "envs own"]:
        """The user's items."""
        return self.best[observation["user"]]


class ThompsonPolicy:
    """Learns each user alone by linear Thompson sampling (Agrawal & Goyal 2013), from clicks and nothing else.

    What an item brings when it is shown is taken for x·w plus noise, x its features and w the user's. A page is filled
    with the items that are best under one w drawn from the user's posterior: precision P = I/s² + Σ x xᵀ/σ², mean
    P⁻¹ Σ x r/σ², the sums over all items shown to the user; r is the visit's reward for the item clicked, 0 for others.

    Args:
        features: of each item.
        users: how many there are.
        slots: how many to fill.
        seed: of the draws.
        prior: s, standard deviation of w before anything is known.
        noise: σ, standard deviation of what an item brings.
    """

    def __init__(
        self,
        features: Float[np.ndarray, "items features"],
        *,
        users: int,
        slots: int,
        seed: int,
        prior: float = 0.2,
        noise: float = 0.3,
    ) -> None:
        self.features, self.slots, self.noise = jnp.asarray(features, jnp.float32), slots, noise
        self.key = jax.random.key(seed)
        width = features.shape[1]
        self.precision = jnp.tile(jnp.eye(width) / prior**2, (users, 1, 1))
        self.moment = jnp.zeros((users, width))

    def act(self, observation: Observation) -> Int[np.ndarray, "envs own"]:
        """The best items under a guess at each user."""
        self.key, key = jax.random.split(self.key)
        users = jnp.asarray(observation["user"])
        scores = _guess(key, self.precision[users], self.moment[users], self.features)
        return best(np.asarray(scores), self.slots)

    def learn(
        self,
        users: Int[np.ndarray, " envs"],
        clicked: Bool[np.ndarray, "envs items"],
        shown: Bool[np.ndarray, "envs items"],
        rewards: Float[np.ndarray, " envs"],
    ) -> None:
        """Add the pages to what is known of their users."""
        seen = jnp.asarray(shown, jnp.float32)
        gained = jnp.asarray(clicked * rewards[:, None], jnp.float32)
        self.precision, self.moment = _add(
            self.precision, self.moment, jnp.asarray(users), seen / self.noise**2, gained / self.noise**2, self.features
        )


@jax.jit
def _guess(
    key: Array,
    precision: Float[Array, "envs features features"],
    moment: Float[Array, "envs features"],
    items: Float[Array, "items features"],
) -> Float[Array, "envs items"]:
    """Worth of each item under one draw of w for each environment."""
    root = jnp.linalg.cholesky(precision)
    mean = jax.scipy.linalg.cho_solve((root, True), moment[..., None])
    noise = jax.random.normal(key, moment.shape)[..., None]
    drawn = mean + jax.scipy.linalg.solve_triangular(jnp.swapaxes(root, 1, 2), noise, lower=False)
    return drawn[..., 0] @ items.T


@jax.jit
def _add(
    precision: Float[Array, "users features features"],
    moment: Float[Array, "users features"],
    users: Int[Array, " envs"],
    seen: Float[Array, "envs items"],
    gained: Float[Array, "envs items"],
    items: Float[Array, "items features"],
) -> tuple[Float[Array, "users features features"], Float[Array, "users features"]]:
    """Sums over the items shown, to the rows of their users."""
    squares = jnp.einsum("ei,if,ig->efg", seen, items, items)
    return precision.at[users].add(squares), moment.at[users].add(gained @ items)


def best(values: Float[np.ndarray, "rows items"], slots: int) -> Int[np.ndarray, "rows own"]:
    """The items of the highest values, highest first, the lower number where they tie."""
    return np.argsort(-values, axis=1, kind="stable")[:, :slots]
