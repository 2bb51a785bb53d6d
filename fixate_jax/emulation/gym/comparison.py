"""Which recommender earns more from emulated users, with intervals over seeds."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Int

from fixate_jax.emulation.gym.policies import Policy, PopularityPolicy, RandomPolicy
from fixate_jax.emulation.gym.vector import CarouselVectorEnv
from fixate_jax.errors import ConfigError
from fixate_jax.statistics import bootstrap_interval

MakePolicy = Callable[[int], Policy]
"""A policy from a seed, knowing nothing of other seeds."""
_PLAYED, _EXPLORED = 1, 2
"""Keep streams of random numbers apart."""


def play(env: CarouselVectorEnv, policy: Policy, seed: int) -> pd.DataFrame:
    """One episode of a policy in each environment, the users in turn.

    Args:
        env: some environments; a multiple of the number of users treats all of them alike.
        policy: chooses, and learns as it goes.
        seed: of the house and the clicks. Policies under one seed meet the same.

    Returns:
        ``round`` from 0, ``env``, ``user`` and ``reward``, a row for each visit.
    """
    return _play(env, policy, [seed, _PLAYED])[0]


def explore(env: CarouselVectorEnv, seed: int) -> PopularityPolicy:
    """What popularity is after an episode in each environment with slots filled at random.

    Args:
        env: where; its clicks are not those of :func:`play` with the same seed.
        seed: of items, house and clicks.

    Raises:
        ConfigError: some item was never shown.
    """
    world = env.world
    policy = RandomPolicy(items=world.items, slots=len(world.slots), seed=seed)
    _, clicks, shown = _play(env, policy, [seed, _EXPLORED])
    return PopularityPolicy(clicks=clicks, shown=shown, slots=len(world.slots))


def play_policies(env: CarouselVectorEnv, policies: Mapping[str, MakePolicy], seeds: Sequence[int]) -> pd.DataFrame:
    """Every policy under every seed: what :func:`play` returns, with ``policy`` and ``seed``."""
    frames = [
        play(env, make(seed), seed).assign(policy=name, seed=seed) for name, make in policies.items() for seed in seeds
    ]
    return pd.concat(frames, ignore_index=True)


def summarise_policies(played: pd.DataFrame, *, first_round: int = 0) -> pd.DataFrame:
    """Mean reward of each policy, and how much more than the one before it.

    Args:
        played: from :func:`play_policies`.
        first_round: leave out the rounds before it, in which a policy may still be learning.

    Returns:
        In the order of the policies: ``policy``; ``reward``, the mean over visits, with the bounds ``low`` and ``high``
        of its 95 % bootstrap interval over seeds; ``against``, the policy of the row above; ``difference`` to it,
        paired by seed, with ``difference_low`` and ``difference_high``.

    Raises:
        ConfigError: there are fewer than two seeds, or no such rounds.
    """
    late = played[played["round"] >= first_round]
    if late["seed"].nunique() < 2:
        raise ConfigError(f"seeds, first_round={first_round}: {late['seed'].nunique()} seeds left; give at least 2")
    means = late.groupby(["policy", "seed"], sort=False)["reward"].mean().unstack(0)
    rows = []
    for place, name in enumerate(means.columns):
        own = bootstrap_interval(means[name].to_numpy(), seed=0)
        row = {"policy": name, "reward": own.mean, "low": own.low, "high": own.high}
        if place:
            other = means.columns[place - 1]
            more = bootstrap_interval((means[name] - means[other]).to_numpy(), seed=0)
            row |= {"against": other, "difference": more.mean, "difference_low": more.low, "difference_high": more.high}
        rows.append(row)
    columns = ["policy", "reward", "low", "high", "against", "difference", "difference_low", "difference_high"]
    return pd.DataFrame(rows, columns=columns)


def evaluate_policies(env: CarouselVectorEnv, policies: Mapping[str, MakePolicy], seeds: Sequence[int]) -> pd.DataFrame:
    """Play them and say which earns more, see :func:`play_policies` and :func:`summarise_policies`."""
    return summarise_policies(play_policies(env, policies, seeds))


def learning_curve(played: pd.DataFrame, policy: str, *, window: int) -> pd.DataFrame:
    """Mean reward of a policy as it goes, with intervals over seeds.

    Args:
        played: from :func:`play_policies`.
        policy: whose.
        window: rounds that are averaged; the last ones are left out if they do not fill one.

    Returns:
        ``round``, the middle of each window, ``reward``, ``low`` and ``high``.

    Raises:
        ConfigError: no such policy, or the window is longer than what was played.
    """
    own = played[played["policy"] == policy]
    windows = 0 if own.empty else (int(own["round"].max()) + 1) // window
    if windows == 0:
        raise ConfigError(f"policy={policy!r}, window={window}: played were {', '.join(played['policy'].unique())}")
    own = own.assign(window=own["round"] // window)
    means = own[own["window"] < windows].groupby(["window", "seed"])["reward"].mean().unstack()
    found = [bootstrap_interval(row, seed=0) for row in means.to_numpy()]
    return pd.DataFrame(
        {
            "round": (np.arange(windows) + 0.5) * window,
            "reward": [interval.mean for interval in found],
            "low": [interval.low for interval in found],
            "high": [interval.high for interval in found],
        }
    )


def _play(
    env: CarouselVectorEnv, policy: Policy, seed: Sequence[int]
) -> tuple[pd.DataFrame, Int[np.ndarray, " items"], Int[np.ndarray, " items"]]:
    """Visits, and how often each item was clicked and shown in the recommender's slots."""
    world = env.world
    names = [world.emulator.users[i % len(world.emulator.users)] for i in range(env.num_envs)]
    # Not seed + i: environments of seed 1 would be those of seed 0, moved by one.
    seeds = np.random.SeedSequence(seed).generate_state(env.num_envs).tolist()
    observation, _ = env.reset(seed=seeds, options={"user": names})
    rewards, clicks, shows = [], np.zeros(world.items, np.int64), np.zeros(world.items, np.int64)
    rows = np.arange(env.num_envs)
    for _ in range(world.steps):
        users = observation["user"]
        observation, reward, _, _, info = env.step(policy.act(observation))
        shown = np.zeros((env.num_envs, world.items), bool)
        shown[rows[:, None], info["shown"][:, list(world.slots)]] = True
        clicked = shown & (np.arange(world.items) == info["item"][:, None])
        policy.learn(users, clicked, shown, reward)
        rewards.append(reward)
        clicks += clicked.sum(axis=0)
        shows += shown.sum(axis=0)
    frame = pd.DataFrame(
        {
            "round": np.repeat(np.arange(world.steps), env.num_envs),
            "env": np.tile(rows, world.steps),
            "user": names * world.steps,
            "reward": np.concatenate(rewards),
        }
    )
    return frame, clicks, shows
