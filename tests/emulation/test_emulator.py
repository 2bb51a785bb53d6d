"""Emulated users are the tuned ones, each as if alone, and what they do can be drawn again."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.emulation import BACKBONE, Page, UserEmulator, Visits
from fixate_jax.errors import ConfigError, DataError
from fixate_jax.lab.bundles.settings import emulator_of
from fixate_jax.lab.config import PromptConfig, RunConfig, TrainConfig
from fixate_jax.lab.experiments.probe import probe, probe_batch
from fixate_jax.prompts import PromptParams, population_prompt
from tests.worlds import USERS, World, made_up_session, numbers

CONFIG = RunConfig(
    backbone=BackboneConfig(tapped_layers=2, attention_block=32),
    prompt=PromptConfig(basis=3, tokens=4),
    train=TrainConfig(eval_batch=8, max_lengths=1),
)
SIZES = ((3, 192, 128), (6, 192, 128), (4, 128, 192), (5, 192, 128))
"""Slots, width and height of each page."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"), config=CONFIG, labels=numbers, sizes=SIZES)


@pytest.fixture(scope="module")
def emulator(world: World) -> UserEmulator:
    return emulator_of(CONFIG, world.backbone, world.prompt(), USERS)


def pages_of(world: World) -> list[Page]:
    return [
        Page(
            relative=True,
            labelled=True,
            name=s.page_id,
            image=world.images[s.page_id],
            boxes=s.boxes,
            labels=s.labels,
            profile=s.profile,
        )
        for s in world.sessions
    ]


@pytest.fixture(scope="module")
def pages(world: World) -> list[Page]:
    return pages_of(world)


@pytest.fixture(scope="module")
def visits(emulator: UserEmulator, pages: list[Page]) -> Visits:
    return emulator.visit_all(pages, relevance=True)


def test_users_and_pages_come_in_order(visits: Visits, pages: list[Page]) -> None:
    assert visits.users == tuple(user for user in USERS for _ in pages)
    assert [page.name for page in visits.pages] == [page.name for page in pages] * len(USERS)
    assert len(visits) == len(USERS) * len(pages)
    np.testing.assert_allclose(visits.probabilities().sum(axis=1), 1, atol=1e-6)
    for row, page in enumerate(visits.pages):
        assert (visits.attention[row, page.slots :] == 0).all()
        assert (visits.probabilities()[row, page.slots :] == 0).all()
        assert 0.9 < visits.attention[row].sum() <= 1


def test_they_say_what_a_probe_of_the_same_prompt_says(world: World, visits: Visits, pages: list[Page]) -> None:
    rows = (1, 6, 11)
    each = probe_batch(
        world.backbone,
        world.backbone.params,
        [world.sessions[[p.name for p in pages].index(visits.pages[row].name)] for row in rows],
        images=world.images.__getitem__,
        operator=CONFIG.operator,
        prompts=[(world.prompt(), USERS.index(visits.users[row])) for row in rows],
        batch=len(rows),
    )
    for row, found in zip(rows, each, strict=True):
        page = visits.pages[row]
        np.testing.assert_allclose(visits.attention[row, : page.slots], found.slot_attention, atol=1e-5)
        spoken = visits.log_probs[row, : page.slots] + visits.answered[row]
        np.testing.assert_allclose(spoken, found.log_probs, atol=1e-5)
        assert visits.relevance is not None
        np.testing.assert_allclose(visits.relevance[row], found.magnitude, atol=1e-4 * found.magnitude.max())
        assert visits.heat_map(row).shape == (page.image.height, page.image.width)


def test_the_backbone_alone_and_strangers_can_be_asked(
    world: World, emulator: UserEmulator, pages: list[Page], visits: Visits
) -> None:
    both = emulator.visit_all(pages[:2], [BACKBONE, "u1", "somebody"], unknown="population")
    np.testing.assert_allclose(both.attention[2], visits.attention[len(pages)][: both.attention.shape[1]], atol=1e-5)
    alone = probe(
        world.backbone, world.backbone.params, world.sessions[0], image=pages[0].image, operator=CONFIG.operator
    )
    np.testing.assert_allclose(both.attention[0, : pages[0].slots], alone.slot_attention, atol=1e-5)
    shared = PromptParams(population_prompt(world.prompt())[None], jnp.zeros((1, 1)))
    mean = emulator.with_prompt(shared, ["mean"]).visit_all(pages[:2])
    np.testing.assert_allclose(both.attention[4:], mean.attention, atol=1e-5)
    with pytest.raises(ConfigError, match="somebody: not tuned here; give unknown='population'"):
        emulator.visit_all(pages, ["somebody"])


def test_twenty_users_on_fifty_pages_are_as_each_alone(world: World) -> None:
    # 1,000 visits at once against a call for each of some of them: in company nobody changes.
    rng = np.random.default_rng(0)
    people = tuple(f"p{i}" for i in range(20))
    prompt = PromptParams(world.prompt().basis, jax.device_put(np.float32(rng.normal(size=(20, 3)))))
    made = [made_up_session(i, slots=3 + i % 2, size=(128, 128), labels=numbers, seed=3) for i in range(50)]
    pages = [
        Page(
            relative=True, labelled=True, name=s.page_id, image=image, boxes=s.boxes, labels=s.labels, profile=s.profile
        )
        for s, image in made
    ]
    cheap = replace(CONFIG, operator=replace(CONFIG.operator, name="attention"))
    wide, single = (replace(cheap, train=TrainConfig(eval_batch=rows, max_lengths=1)) for rows in (50, 1))
    together = emulator_of(wide, world.backbone, prompt, people).visit_all(pages)
    singly = emulator_of(single, world.backbone, prompt, people)
    for visit in rng.permutation(1000)[:8].tolist():
        page = together.pages[visit]
        alone = singly.visit_all([page], [together.users[visit]])
        assert alone.users == (together.users[visit],)
        np.testing.assert_allclose(alone.attention[0], together.attention[visit, : page.slots], atol=1e-5)
        np.testing.assert_allclose(alone.log_probs[0], together.log_probs[visit, : page.slots], atol=1e-5)
        assert (alone.clicks(seed=4, draws=3) == together.clicks(seed=4, draws=3)[visit]).all()


def test_clicks_are_drawn_from_the_probabilities_and_can_be_drawn_again(visits: Visits) -> None:
    many = visits.clicks(seed=1, draws=4000)
    assert (many == visits.clicks(seed=1, draws=4000)).all()
    assert (many[:, :5] == visits.clicks(seed=1, draws=5)).all(), "a draw does not depend on how many there are"
    assert (many != visits.clicks(seed=2, draws=4000)).any()
    slots = visits.attention.shape[1]
    share = np.stack([(many == slot).mean(axis=1) for slot in range(slots)], axis=1)
    # Four standard deviations of a share, in all of some 50 cells.
    np.testing.assert_allclose(share, visits.probabilities(), atol=4 * 0.5 / np.sqrt(4000))
    cold = visits.clicks(seed=1, temperature=1e-3)
    assert (cold[:, 0] == visits.log_probs.argmax(axis=1)).all()
    hot = visits.probabilities(1e3)
    for row, page in enumerate(visits.pages):
        np.testing.assert_allclose(hot[row, : page.slots], 1 / page.slots, atol=0.01)


def test_an_observed_click_has_its_probability(visits: Visits) -> None:
    clicks = visits.clicks(seed=0)[:, 0]
    rows = np.arange(len(visits))
    np.testing.assert_allclose(np.exp(visits.log_prob(clicks)), visits.probabilities()[rows, clicks], rtol=1e-5)
    with pytest.raises(DataError, match="clicks: 2 for 12 visits"):
        visits.log_prob([0, 1])
    clicks[5] = visits.pages[5].slots
    with pytest.raises(DataError, match="visit 5: slot 6 is not on page 'page1' of 6"):
        visits.log_prob(clicks)


def test_the_table_has_a_row_for_each_visit_and_slot(visits: Visits) -> None:
    table = visits.frame(seed=3)
    assert len(table) == sum(page.slots for page in visits.pages)
    assert table.groupby(["user_id", "page_id"])["click"].sum().eq(1).all()
    np.testing.assert_allclose(table.groupby(["user_id", "page_id"])["probability"].sum(), 1, atol=1e-6)
    assert "click" not in visits.frame()
    assert (table["item"] == "").all()


def test_a_profile_of_the_user_stands_in_for_the_pages(
    emulator: UserEmulator, pages: list[Page], visits: Visits
) -> None:
    told = emulator.visit_all(pages, profiles={"u1": "likes a film"})
    for row in range(len(visits)):
        slots = visits.pages[row].slots
        difference = np.abs(told.log_probs[row, :slots] - visits.log_probs[row, :slots]).max()
        assert difference > 1e-4 if visits.users[row] == "u1" else difference < 1e-5


def test_few_programs_are_compiled_and_none_again(emulator: UserEmulator, pages: list[Page]) -> None:
    emulator.visit_all(pages)
    before = emulator.evaluate._cache_size()
    assert before <= 4, "one for all pages, and what calls with shorter or longer questions needed"
    emulator.visit_all(pages)
    assert emulator.evaluate._cache_size() == before


def test_one_size_of_batch_is_compiled_once(emulator: UserEmulator) -> None:
    own = CONFIG.train.eval_batch
    assert emulator.with_batch(own) is emulator
    other = emulator.with_batch(own + 8)
    assert other is emulator.with_batch(own + 8) and other.batch == own + 8


def test_batches_are_shared_among_the_devices(emulator: UserEmulator) -> None:
    assert emulator.placement.rows.spec == PartitionSpec(("data", "fsdp"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ("0", "0", "1")}, "labels must be unique"),
        ({"boxes": np.zeros((3, 4))}, "box 0 has no area"),
        ({"items": ("a",)}, "1 items for 3 labels"),
    ],
)
def test_bad_pages_are_named(pages: list[Page], change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=f"page0.*{message}"):
        replace(pages[0], **change)


def test_mistakes_in_a_call_are_named(emulator: UserEmulator, pages: list[Page], visits: Visits) -> None:
    with pytest.raises(DataError, match="page 'page1': two pages have this name"):
        emulator.visit_all([pages[0], replace(pages[0], name="page1"), pages[1]])
    with pytest.raises(ConfigError, match="2 users and 1 pages"):
        emulator.visit(["u0", "u1"], pages[:1])
    with pytest.raises(ConfigError, match=r"temperature = 0\.0: must be at least 0\.001"):
        visits.probabilities(0.0)
    with pytest.raises(ConfigError, match=r"temperature = inf: must be at least 0\.001, and finite"):
        visits.probabilities(float("inf"))
    with pytest.raises(ConfigError, match="draws = 0"):
        visits.clicks(seed=0, draws=0)
    with pytest.raises(ConfigError, match="relevance=True"):
        emulator.visit_all(pages[1:2]).heat_map(0)
    with pytest.raises(ConfigError, match="3 rows of coefficients want as many names"):
        emulator.with_prompt(emulator.prompt, ["a", "b"])
    narrow = jax.tree.map(lambda x: x[..., :64], emulator.prompt)
    with pytest.raises(ConfigError, match=r"tokens of width 64, where the backbone's width is 128"):
        replace(emulator, tuned=narrow)


def test_a_prompt_behind_the_page_gives_the_same_alone(world: World, tmp_path: Path) -> None:
    config = replace(
        CONFIG,
        prompt=replace(CONFIG.prompt, position="after_image"),
        operator=replace(CONFIG.operator, name="attention"),
    )
    emulator = emulator_of(config, world.backbone, world.prompt(), USERS)
    pages = pages_of(world)
    together, alone = emulator.visit_all(pages), emulator.visit_all(pages[1:2], ["u2"])
    np.testing.assert_allclose(alone.attention[0], together.attention[9], atol=1e-5)
    assert np.abs(together.attention[0] - together.attention[4]).max() > 1e-4
