"""A recommender meets emulated users: by Gymnasium's rules, the same alone or in company, and paid as defined."""

import re
import warnings
from typing import Any

import gymnasium
import jax
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import SyncVectorEnv

from fixate_jax.backbones import load_backbone
from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.data.carousel import GENRES
from fixate_jax.emulation import Page, UserEmulator
from fixate_jax.emulation.gym import (
    CarouselEnv,
    CarouselVectorEnv,
    MadeUpPeople,
)
from fixate_jax.errors import ConfigError, DataError
from fixate_jax.lab.bundles.settings import emulator_of
from fixate_jax.lab.config import OperatorConfig, PromptConfig, RunConfig, TrainConfig
from fixate_jax.prompts import PromptParams
from tests.test_docs import ROOT, blocks
from tests.worlds import USERS

PEOPLE = MadeUpPeople()
SMALL: dict[str, Any] = {"page_width": 64, "steps": 3}
"""Small pages, which are drawn faster; the people here do not look at pixels."""


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> UserEmulator:
    config = RunConfig(
        backbone=BackboneConfig(tapped_layers=2, attention_block=32),
        prompt=PromptConfig(basis=3, tokens=4),
        operator=OperatorConfig(name="attention"),
        train=TrainConfig(eval_batch=16, max_lengths=1),
    )
    backbone = load_backbone(config.backbone, work=tmp_path_factory.mktemp("model"))
    rng = np.random.default_rng(0)
    arrays = (np.float32(0.5 * rng.normal(size=size)) for size in ((3, 4, backbone.width), (len(USERS), 3)))
    return emulator_of(config, backbone, PromptParams(*map(jax.device_put, arrays)), USERS)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"features": np.random.default_rng(0).normal(size=(12, 3))},
        {"reward": "value", "values": PEOPLE.tastes(), "slots": range(15), "history": 1},
    ],
)
def test_gymnasiums_own_checker_has_nothing_to_say(options: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make(
            "fixate_jax.emulation.gym:fixate/Carousel-v0", emulator=PEOPLE, render_mode="rgb_array", **SMALL, **options
        )
        check_env(env.unwrapped)
        check_env(gymnasium.make("fixate/Carousel-v0", emulator=PEOPLE, **SMALL, **options).unwrapped)


def test_one_seed_is_one_episode() -> None:
    env = CarouselEnv(PEOPLE, **SMALL)

    def episode(seed: int | None, **options: Any) -> list[Any]:
        first = env.reset(seed=seed, options=options)
        return [first] + [env.step(np.arange(5)) for _ in range(3)]

    again = [episode(1), episode(1), episode(2), episode(None)]
    assert data_equivalence(again[0], again[1], exact=True)
    assert not data_equivalence(again[0], again[2]) and not data_equivalence(again[2], again[3])
    assert [truncated for _, _, _, truncated, _ in again[0][1:]] == [False, False, True]
    with pytest.raises(ResetNeeded):
        env.step(np.arange(5))
    for name in PEOPLE.users:
        (observation, info), *steps = episode(None, user=name)
        assert info["user"] == name == PEOPLE.users[observation["user"]]
        assert (observation["recent"] == -1).all()
        clicked = [info["item"] for *_, info in steps]
        assert steps[-1][0]["recent"].tolist() == [-1, -1, *clicked]


def test_side_by_side_they_are_as_alone() -> None:
    features = np.eye(12)
    vector = gymnasium.make_vec(
        "fixate/Carousel-v0",
        num_envs=4,
        vectorization_mode="vector_entry_point",
        emulator=PEOPLE,
        features=features,
        **SMALL,
    )
    assert isinstance(vector, CarouselVectorEnv)
    single = SyncVectorEnv([lambda: CarouselEnv(PEOPLE, features=features, **SMALL)] * 4)
    assert vector.observation_space == single.observation_space
    assert vector.action_space == single.action_space
    assert data_equivalence(vector.reset(seed=5), single.reset(seed=5))
    single.action_space.seed(0)
    over = 0
    for _ in range(9):  # Through two resets, that of a new episode counting as a step.
        action = single.action_space.sample()
        found, wanted = vector.step(action), single.step(action)
        assert found[0] in vector.observation_space
        assert data_equivalence(found, wanted, exact=True)
        over += int(found[3].all())
    assert over == 2
    assert data_equivalence(vector.reset(), single.reset()), "without a seed they go on with what they drew from"
    names = ["3", "0", "3", "7"]
    observation, info = vector.reset(seed=[4, 3, 2, 1], options={"user": names})
    assert observation["user"].tolist() == [3, 0, 3, 7] and info["user"].tolist() == names
    assert vector.reset(options={"user": "5"})[0]["user"].tolist() == [5] * 4


def test_each_step_asks_the_emulator_once(emulator: UserEmulator) -> None:
    options: dict[str, Any] = {"emulator": emulator, "page_width": 160, "slots": (4, 0), "temperature": 0.5}
    vector = gymnasium.make_vec("fixate/Carousel-v0", num_envs=2, vectorization_mode="vector_entry_point", **options)
    assert isinstance(vector, CarouselVectorEnv)
    assert isinstance(vector.world.emulator, UserEmulator)
    assert vector.world.emulator.batch == 2, "a batch is not filled up for nothing"
    made = gymnasium.make("fixate/Carousel-v0", render_mode="rgb_array", **options)
    assert made.spec is not None
    alone = made.spec.make()  # Copies the settings, but not the weights.
    vector.reset(seed=8)
    alone.reset(seed=9)
    actions = np.array([[3, 12], [7, 7]])
    world = alone.unwrapped.world  # type: ignore[attr-defined]
    for _ in range(2):
        _, rewards, _, _, info = vector.step(actions)
        _, reward, _, _, own = alone.step(actions[1])
        assert own["user"] == info["user"][1] and own["item"] == info["item"][1] and reward == rewards[1]
        np.testing.assert_allclose(own["probabilities"], info["probabilities"][1], atol=1e-5)
        np.testing.assert_allclose(own["attention"], info["attention"][1], atol=1e-5)
        picture = alone.render()
        assert isinstance(picture, np.ndarray) and picture.shape == (96, 160, 3)
        page = world.page(own["shown"].tolist())
        visits = world.emulator.visit([own["user"]], [page])
        np.testing.assert_allclose(own["probabilities"], visits.probabilities(0.5)[0], atol=1e-6)


def test_clicks_on_our_slots_earn() -> None:
    env = CarouselEnv(PEOPLE, page_width=64, slots=(2, 7, 9), steps=40)
    env.reset(seed=0)
    rewards = []
    for _ in range(40):
        _, reward, terminated, _, info = env.step(np.array([5, 0, 30]))
        assert info["shown"][[2, 7, 9]].tolist() == [5, 0, 30]
        assert len(set(info["shown"])) == 15
        assert info["shown"][info["slot"]] == info["item"]
        assert reward == (info["slot"] in (2, 7, 9)) and not terminated
        rewards.append(float(reward))
    assert 0 < np.mean(rewards) < 1


def test_what_is_clicked_earns_its_value() -> None:
    values = np.arange(12 * 20).reshape(12, 20) / 10
    env = CarouselEnv(PEOPLE, page_width=64, slots=range(15), items=20, reward="value", values=values)
    env.reset(seed=0, options={"user": "4"})
    for _ in range(3):
        _, reward, _, _, info = env.step(np.arange(5, 20))
        assert reward == values[4, info["item"]]
        assert info["shown"].tolist() == list(range(5, 20))


def test_the_house_does_not_depend_on_the_action() -> None:
    def house(action: list[int]) -> list[list[int]]:
        env = CarouselEnv(PEOPLE, **SMALL)
        env.reset(seed=3)
        return [env.step(np.array(action))[4]["shown"][5:].tolist() for _ in range(3)]

    here, there = house([0, 1, 2, 3, 4]), house([20, 21, 22, 23, 24])
    for one, other in zip(here, there, strict=True):
        both = [item for item in one if item in other]
        assert len(both) >= 5 and both == [item for item in other if item in one]
    assert here[0] != here[1]


def test_an_item_named_twice_gives_way_to_the_next() -> None:
    world = CarouselEnv(PEOPLE, **SMALL).world
    assert world.shown([3, 3, 4, 3, 39]) == (3, 4, 5, 6, 39)
    assert world.shown([39, 39, 39, 1, 0]) == (39, 0, 1, 2, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"items": 14}, "items=14: choose 15 to 40"),
        ({"slots": ()}, r"slots=\(\): name at least one of 0 to 14"),
        ({"slots": (1, 1)}, "none twice"),
        ({"slots": (15,)}, "0 to 14"),
        ({"steps": 1}, "steps=1"),
        ({"reward": "clicks"}, "reward='clicks': choose click or value"),
        ({"slots": range(15)}, "would always be 1; leave slots to the house"),
        ({"history": 0}, "history=0"),
        ({"page_width": 10}, "page_width=10"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"reward": "value"}, "values: reward='value' needs them"),
        ({"values": np.zeros((12, 40))}, "values: reward='click' reads none"),
        ({"reward": "value", "values": np.zeros((12, 39))}, r"values: shape \(12, 39\) for 12 users and 40 items"),
        ({"reward": "value", "values": np.full((12, 40), np.nan)}, "values: not all are finite"),
        ({"features": np.zeros((3, 2))}, "features: 3 rows for 12 users"),
        ({"slot": 3}, "slot: no such option; there are items, slots, steps"),
        ({"render_mode": "human"}, "render_mode='human': choose rgb_array"),
        ({"emulator": "nobody-there"}, "nobody-there: no such folder"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CarouselEnv(**{"emulator": PEOPLE, **options})


def test_bad_calls_are_named() -> None:
    env, vector = CarouselEnv(PEOPLE, **SMALL), CarouselVectorEnv(PEOPLE, num_envs=2, render_mode="rgb_array", **SMALL)
    with pytest.raises(ResetNeeded):
        vector.step(np.zeros((2, 5), int))
    assert env.render() is None
    with pytest.raises(ConfigError, match="user 'who': choose among 0, 1"):
        env.reset(options={"user": "who"})
    env.reset(seed=0)
    for action, message in (
        (np.arange(4), "shape"),
        (np.arange(5) / 2, "float64"),
        (np.array([0, 1, 2, 3, 40]), "items are 0 to 39"),
    ):
        with pytest.raises(ConfigError, match=message):
            env.step(action)
    with pytest.raises(ConfigError, match="user: 3 for 2 environments"):
        vector.reset(options={"user": ["0", "1", "2"]})
    with pytest.raises(ConfigError, match="seed: 1 for 2 environments"):
        vector.reset(seed=[1])
    with pytest.raises(ConfigError, match="num_envs=0"):
        CarouselVectorEnv(PEOPLE, num_envs=0)
    vector.reset(seed=0)
    empty = vector.render()
    vector.step(np.tile(np.arange(5), (2, 1)))
    pages = vector.render()
    assert empty is not None and pages is not None and len(pages) == len(empty) == 2
    assert not (pages[0] == empty[0]).all() and (empty[0] == empty[1]).all()


def test_made_up_people_click_by_their_formula() -> None:
    world = CarouselEnv(PEOPLE, **SMALL).world
    page = world.page(range(15))
    visits = PEOPLE.visit(["2", "5"], [page, page])
    for row, user in enumerate((2, 5)):
        person = PEOPLE.everybody[user]
        np.testing.assert_allclose(visits.attention[row].sum(), 1)
        odds = np.exp(12 * visits.attention[row] + 2 * person.tastes[np.arange(15) % len(GENRES)])
        np.testing.assert_allclose(visits.probabilities()[row], odds / odds.sum())
    assert (PEOPLE.tastes(20)[:, :10] == PEOPLE.tastes()[:, 30:]).all(), "brightness means nothing"
    blank = Page(
        relative=True, labelled=True, name="p", image=page.image, boxes=page.relative_boxes, labels=page.labels
    )
    with pytest.raises(DataError, match="page 'p': items missing"):
        PEOPLE.visit(["0"], [blank])
    with pytest.raises(ConfigError, match="count=0"):
        MadeUpPeople(count=0)


def test_the_examples_of_the_documentation_run() -> None:
    names: dict[str, Any] = {}
    for block in blocks(ROOT / "docs" / "howto" / "gym.md", "python"):
        exec(re.sub(r"steps=\d+", "steps=6", block), names)
    assert names["observations"]["user"].shape == (12,)
