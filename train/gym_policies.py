"""What four recommenders earn from emulated users, and from the people whom these emulate: docs/howto/gym.md.

    python train/gym_policies.py

Each page has five slots for the recommender, the upper row, and ten that the house fills at random; a click on one of
the five earns 1. Every user of an emulator of synthetic_carousel sees as many pages under every policy and seed:

- random: any five items;
- popularity: the five that everybody clicked most, in as many pages with random slots, which are not counted;
- bandit: Thompson sampling over the items' genres, each user alone, learning from the first page on;
- taste: the five of the genres that the made-up person likes best, which nobody else is told.

What is finished is on disk and not repeated, so the command can be given again after an interruption.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import tyro

from fixate_jax.durable import write_text
from fixate_jax.emulation import open_emulator
from fixate_jax.emulation.gym import (
    CarouselVectorEnv,
    Emulator,
    MadeUpPeople,
    RandomPolicy,
    TastePolicy,
    ThompsonPolicy,
    explore,
    learning_curve,
    play,
    summarise_policies,
)
from fixate_jax.emulation.gym.comparison import MakePolicy
from fixate_jax.progress import track
from fixate_jax.report.policies import policy_curves
from fixate_jax.report.tables import to_markdown


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is compared.

    Attributes:
        emulator: a run or bundle of synthetic_carousel with the people of `split_seed` 0, or the name of a shipped one.
        out: where everything goes; one folder for one emulator and number of rounds.
        seeds: how many.
        rounds: pages that each user sees under each policy and seed.
        window: rounds averaged for a point of the learning curve.
    """

    emulator: str = "demo-users"
    out: Path = Path("runs/gym")
    seeds: int = 10
    rounds: int = 40
    window: int = 5


def policies(env: CarouselVectorEnv, people: MadeUpPeople) -> Mapping[str, MakePolicy]:
    """The four, each from a seed."""
    world, users, slots = env.world, len(people.users), len(env.world.slots)
    return {
        "random": lambda seed: RandomPolicy(items=world.items, slots=slots, seed=seed),
        "popularity": lambda seed: explore(env, seed),
        "bandit": lambda seed: ThompsonPolicy(world.genres, users=users, slots=slots, seed=seed),
        "taste": lambda seed: TastePolicy(people.tastes(world.items), slots=slots),
    }


def played(plan: Plan, users: Emulator, people: MadeUpPeople, folder: Path) -> pd.DataFrame:
    """All visits, from disk as far as they are there."""
    env = CarouselVectorEnv(users, num_envs=len(users.users), steps=plan.rounds)
    frames = []
    # Seed by seed, so that what is there after an interruption has all policies.
    makers = policies(env, people)
    cells = [(name, seed) for seed in range(plan.seeds) for name in makers]
    for name, seed in track(cells, f"Playing with {folder.name}"):
        path = folder / f"{name}-{seed}.csv"
        if not path.exists():
            write_text(path, play(env, makers[name](seed), seed).to_csv(index=False))
        frames.append(pd.read_csv(path, dtype={"user": str}).assign(policy=name, seed=seed))
    return pd.concat(frames, ignore_index=True)


def tables(plan: Plan) -> Mapping[str, tuple[tuple[str, ...], int]]:
    """Policies of each table, every one compared with the one before it, and the first round that counts."""
    return {
        "All pages": (("random", "popularity", "taste"), 0),
        "The last quarter": (("random", "popularity", "bandit", "taste"), plan.rounds * 3 // 4),
    }


def main(plan: Plan) -> None:
    """Play, then write tables and curves."""
    emulated = open_emulator(plan.emulator)
    people = MadeUpPeople(count=len(emulated.users))
    meetings: dict[str, Emulator] = {"emulated users": emulated, "the people themselves": people}
    for who, users in meetings.items():
        visits = played(plan, users, people, plan.out / who.replace(" ", "-"))
        for title, (names, first) in tables(plan).items():
            table = to_markdown(summarise_policies(visits[visits["policy"].isin(names)], first_round=first), digits=3)
            print(f"{title}, {who}:\n\n{table}")
            write_text(plan.out / f"{who}-{title}.md".lower().replace(" ", "-"), table)
        curves = {name: learning_curve(visits, name, window=plan.window) for name in visits["policy"].unique()}
        picture = plan.out / f"{who}.png".replace(" ", "-")
        print(policy_curves(picture, curves, title=who, reward="share of pages with a click on our slots"), "\n")


if __name__ == "__main__":
    main(tyro.cli(Plan))
