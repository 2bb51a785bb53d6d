"""The environment: one user after another, an episode each."""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from jaxtyping import UInt8

from fixate_jax.emulation.gym.world import CarouselWorld, Emulator, Episode, open_world
from fixate_jax.errors import ConfigError

METADATA = {"render_modes": ["rgb_array"], "render_fps": 1}


def spaces_of(world: CarouselWorld) -> tuple[spaces.Dict, spaces.MultiDiscrete]:
    """Observations and actions of one environment."""
    seen: dict[str, spaces.Space[Any]] = {
        "user": spaces.Discrete(len(world.emulator.users)),
        "recent": spaces.Box(-1, world.items - 1, (world.history,), np.int64),
    }
    if world.features is not None:
        features = world.features.astype(np.float32)
        seen["profile"] = spaces.Box(features.min(axis=0), features.max(axis=0), dtype=np.float32)
    return spaces.Dict(seen), spaces.MultiDiscrete([world.items] * len(world.slots))


def check_render_mode(render_mode: str | None) -> None:
    """Stop at a mode that there is not.

    Raises:
        ConfigError: naming those that there are.
    """
    if render_mode not in (None, *METADATA["render_modes"]):  # type: ignore[misc]
        raise ConfigError(f"render_mode={render_mode!r}: choose rgb_array or None")


class CarouselEnv(gymnasium.Env[dict[str, Any], np.ndarray]):
    """A recommender fills slots of carousel pages, and an emulated user clicks.

    Actions are the items of the recommender's slots; what happens with repeats is in :meth:`CarouselWorld.shown`.
    Observations are a dictionary: ``user``, the user's number; ``recent``, the items clicked last, the latest at the
    end, −1 where there were fewer; and ``profile``, the user's features where there are any. An episode is one user on
    ``steps`` pages and ends as truncated, since nothing but the count ends it. The same seed gives the same episode.

    Args:
        emulator: users, or where a run or a bundle has them, or the name of some that come with the library.
        render_mode: "rgb_array" for pictures of the page seen last, what was clicked in a white frame.
        options: fields of :class:`CarouselWorld`.

    Raises:
        ConfigError: an option is unknown or has a bad value.
    """

    metadata = METADATA

    def __init__(
        self, emulator: Emulator | Path | str = "demo-users", *, render_mode: str | None = None, **options: Any
    ) -> None:
        check_render_mode(render_mode)
        self.world = open_world(emulator, envs=1, **options)
        self.render_mode = render_mode
        self.observation_space, self.action_space = spaces_of(self.world)  # type: ignore[assignment]
        self.episode: Episode | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin an episode.

        Args:
            seed: of everything drawn from now on; None goes on with what was drawn before.
            options: ``{"user": name}`` chooses the user, who is drawn otherwise.

        Raises:
            ConfigError: the user is not known.
        """
        super().reset(seed=seed)
        self.episode = self.world.begin(self.np_random, (options or {}).get("user"))
        return self.world.observe(self.episode), {"user": self.world.emulator.users[self.episode.user]}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Show a page with these items.

        Args:
            action: numbers of the items, in the order of the world's slots.

        Raises:
            ConfigError: the action is none.
            ResetNeeded: no episode has begun, or it is over.
        """
        if self.episode is None or self.episode.visits >= self.world.steps:
            raise ResetNeeded("no episode is under way; call reset() first")
        (outcome,) = self.world.visit([self.episode], [action])
        return self.world.observe(self.episode), outcome.reward, False, outcome.over, outcome.info

    def render(self) -> UInt8[np.ndarray, "height width 3"] | None:  # type: ignore[override]
        """The page seen last, None without a render mode.

        Raises:
            ResetNeeded: no episode has begun.
        """
        if self.render_mode is None:
            return None
        if self.episode is None:
            raise ResetNeeded("no episode is under way; call reset() first")
        return self.world.picture(self.episode)
