"""Recommenders that learn from emulated users: a Gymnasium environment.

Importing this makes ``gymnasium.make("fixate/Carousel-v0")`` and ``gymnasium.make_vec`` work.
"""

try:
    import gymnasium
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        'fixate_jax.emulation.gym needs gymnasium: pip install ".[gym]"', name=error.name
    ) from error

from fixate_jax.emulation.gym.env import CarouselEnv
from fixate_jax.emulation.gym.people import MadeUpPeople
from fixate_jax.emulation.gym.vector import CarouselVectorEnv
from fixate_jax.emulation.gym.world import CarouselWorld, Emulator

ENV_ID = "fixate/Carousel-v0"

if ENV_ID not in gymnasium.registry:
    gymnasium.register(
        id=ENV_ID,
        entry_point="fixate_jax.emulation.gym.env:CarouselEnv",
        vector_entry_point="fixate_jax.emulation.gym.vector:CarouselVectorEnv",
    )

__all__ = [
    "ENV_ID",
    "CarouselEnv",
    "CarouselVectorEnv",
    "CarouselWorld",
    "Emulator",
    "MadeUpPeople",
]
