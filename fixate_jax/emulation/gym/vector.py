"""Many environments at once: every step is one batched call of the emulator."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from jaxtyping import Bool, Float, UInt8

from fixate_jax.emulation.gym.env import METADATA, check_render_mode, spaces_of
from fixate_jax.emulation.gym.world import Emulator, Episode, open_world
from fixate_jax.errors import ConfigError

Flags = Bool[np.ndarray, " envs"]
Step = tuple[dict[str, np.ndarray], Float[np.ndarray, " envs"], Flags, Flags, dict[str, Any]]


class CarouselVectorEnv(VectorEnv[dict[str, np.ndarray], np.ndarray, np.ndarray]):
    """Several :class:`CarouselEnv` side by side, the pages of a step shown in one call.

    Number i behaves as a single environment with the same seed would. Gymnasium's next-step autoreset: the step after
    an episode's last ignores the action, begins another episode with a drawn user, and its reward is 0.

    Args:
        emulator: users, or where a run or a bundle has them, or the name of some that come with the library.
        num_envs: how many.
        render_mode: see :class:`CarouselEnv`.
        options: fields of :class:`CarouselWorld`.

    Raises:
        ConfigError: an option is unknown or has a bad value.
    """

    def __init__(
        self,
        emulator: Emulator | Path | str = "demo-users",
        *,
        num_envs: int = 1,
        render_mode: str | None = None,
        **options: Any,
    ) -> None:
        check_render_mode(render_mode)
        if num_envs < 1:
            raise ConfigError(f"num_envs={num_envs}: at least one is needed")
        self.world = open_world(emulator, envs=num_envs, **options)
        self.num_envs, self.render_mode = num_envs, render_mode
        self.metadata = {**METADATA, "autoreset_mode": AutoresetMode.NEXT_STEP}
        self.single_observation_space, self.single_action_space = spaces_of(self.world)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.rngs: list[np.random.Generator] = []
        self.episodes: list[Episode] = []

    def reset(  # type: ignore[override]
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Begin an episode in each environment.

        Args:
            seed: of each, or one number, from which they count upwards; None goes on with what was drawn before.
            options: ``{"user": …}`` with one name for all or one for each; users are drawn otherwise.

        Raises:
            ConfigError: a user is not known, or there are not as many seeds or users as environments.
        """
        if isinstance(seed, int | np.integer):
            seed = [int(seed) + i for i in range(self.num_envs)]
        seeds = self._one_each("seed", seed)
        users = self._one_each("user", (options or {}).get("user"))
        old: list[np.random.Generator | None] = [*self.rngs] or [None] * self.num_envs
        self.rngs = [
            seeding.np_random(own)[0] if own is not None or rng is None else rng
            for own, rng in zip(seeds, old, strict=True)
        ]
        self.episodes = [self.world.begin(rng, user) for rng, user in zip(self.rngs, users, strict=True)]
        infos: dict[str, Any] = {}
        for i, episode in enumerate(self.episodes):
            infos = self._add_info(infos, {"user": self.world.emulator.users[episode.user]}, i)
        return self._observations(), infos

    def step(self, actions: np.ndarray) -> Step:
        """Show a page in each environment.

        Args:
            actions: numbers of the items, environments × slots.

        Raises:
            ConfigError: an action is none.
            ResetNeeded: no episodes have begun.
        """
        if not self.episodes:
            raise ResetNeeded("no episodes are under way; call reset() first")
        going = [i for i, episode in enumerate(self.episodes) if episode.visits < self.world.steps]
        outcomes = self.world.visit([self.episodes[i] for i in going], np.asarray(actions)[going]) if going else []
        rewards, truncations = np.zeros(self.num_envs), np.zeros(self.num_envs, bool)
        infos: dict[str, Any] = {}
        for i in sorted(set(range(self.num_envs)) - set(going)):
            self.episodes[i] = self.world.begin(self.rngs[i])
            infos = self._add_info(infos, {"user": self.world.emulator.users[self.episodes[i].user]}, i)
        for i, outcome in zip(going, outcomes, strict=True):
            rewards[i], truncations[i] = outcome.reward, outcome.over
            infos = self._add_info(infos, outcome.info, i)
        return self._observations(), rewards, np.zeros(self.num_envs, bool), truncations, infos

    def render(self) -> tuple[UInt8[np.ndarray, "height width 3"], ...] | None:  # type: ignore[override]
        """The page seen last in each environment, None without a render mode."""
        if self.render_mode is None:
            return None
        return tuple(self.world.picture(episode) for episode in self.episodes)

    def _observations(self) -> dict[str, np.ndarray]:
        seen = [self.world.observe(episode) for episode in self.episodes]
        return {name: np.array([one[name] for one in seen]) for name in seen[0]}

    def _one_each(self, name: str, given: Any) -> list[Any]:
        if given is None or isinstance(given, str):
            return [given] * self.num_envs
        if len(given) != self.num_envs:
            raise ConfigError(f"{name}: {len(given)} for {self.num_envs} environments; give one for each")
        return list(given)
