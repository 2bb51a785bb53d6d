"""One call for users: what it says is what training and evaluation see, and its mistakes name the session."""

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import fixate_jax
from fixate_jax.errors import ConfigError, DataError
from fixate_jax.lab.config import OperatorConfig
from fixate_jax.lab.experiments import probe as module
from fixate_jax.lab.experiments.probe import Relevance, probe, probe_batch
from fixate_jax.lab.experiments.programs import make_evaluate
from fixate_jax.lab.parts import OPERATORS
from fixate_jax.probing import assign_slots
from fixate_jax.prompts import soft_prompt
from tests.worlds import USERS, World, letters, numbers

SIZES = ((3, 192, 128), (12, 160, 128), (4, 128, 128))
ABS = OperatorConfig(name="attn_lrp", normalise="abs")


@pytest.fixture(scope="module", params=[letters, numbers], ids=["one-token labels", "labels of one and two tokens"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"), sizes=SIZES, labels=request.param)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"), sizes=SIZES)


def ask(world: World, index: int = 0, **asked: Any) -> Relevance:
    session = world.sessions[index]
    asked = {"operator": "attention", "image": world.images[session.page_id], **asked}
    return probe(world.backbone, world.backbone.params, session, **asked)


def test_it_says_what_evaluation_sees(world: World) -> None:
    """Answers, slot attention and token relevance for the click and for the own answer, under users' prompts."""
    config = replace(world.config, operator=ABS)
    evaluate = make_evaluate(world.backbone.graph, config, world.backbone.encoder.end_token)
    batch, tuned = world.batch(), world.prompt()
    seen = evaluate(soft_prompt(tuned, batch.user), True, world.backbone.params, batch)
    prompts = [(tuned, USERS.index(s.user_id)) for s in world.sessions]
    for target, attention, tokens in (
        ("click", seen.teacher_forced, seen.tokens_forced),
        ("own", seen.free_running, seen.tokens_free),
    ):
        found = probe_batch(
            world.backbone,
            world.backbone.params,
            world.sessions,
            images=world.images.__getitem__,
            operator=ABS,
            prompts=prompts,
            targets=target,
            batch=2,
        )
        for row, (relevance, session) in enumerate(zip(found, world.sessions, strict=True)):
            slots, cells = session.slots, relevance.signed.size
            assert relevance.session_id == session.session_id and relevance.operator == ABS
            assert relevance.answer == seen.answer[row]
            assert relevance.target == (session.click if target == "click" else relevance.answer)
            np.testing.assert_allclose(relevance.log_probs, seen.log_probs[row, :slots], atol=2e-5)
            np.testing.assert_allclose(relevance.slot_attention, attention[row, :slots], atol=1e-5)
            np.testing.assert_allclose(relevance.magnitude.ravel(), tokens[row, :cells], rtol=1e-3, atol=1e-7)
            assert relevance.signed.min() < 0 <= relevance.magnitude.min()
            assert relevance.grid == relevance.signed.shape == world.features.grids[session.page_id]
            np.testing.assert_allclose(relevance.probabilities.sum(), 1, rtol=1e-5)
            assert relevance.probabilities.argmax() == relevance.answer


def test_a_batch_says_what_single_calls_say_with_one_compilation_a_shape(small: World) -> None:
    arguments = (small.backbone, small.backbone.params)
    images, before = small.images.__getitem__, module._look._cache_size()  # type: ignore[attr-defined]
    together = probe_batch(*arguments, small.sessions, images=images, operator=ABS, targets=["click", "own", 1])
    again = probe_batch(*arguments, small.sessions[::-1], images=images, operator=ABS, targets=[1, "own", "click"])
    assert module._look._cache_size() == before + 1  # type: ignore[attr-defined]
    alone = [ask(small, i, operator=ABS, target=t) for i, t in enumerate(["click", "own", 1])]
    assert module._look._cache_size() <= before + 1 + len(small.sessions)  # type: ignore[attr-defined]
    for first, second, third in zip(together, again[::-1], alone, strict=True):
        assert first.session_id == second.session_id == third.session_id
        assert first.target == second.target == third.target
        for other in (second, third):
            np.testing.assert_allclose(first.signed, other.signed, rtol=1e-3, atol=1e-8)
            np.testing.assert_allclose(first.slot_attention, other.slot_attention, atol=1e-5)
            np.testing.assert_allclose(first.log_probs, other.log_probs, atol=2e-5)
    compiled = module._look._cache_size()  # type: ignore[attr-defined]
    ask(small, 0, operator=ABS, target="own")
    assert module._look._cache_size() == compiled, "another answer of the same page is not compiled again"  # type: ignore[attr-defined]


@pytest.mark.parametrize("operator", OPERATORS)
def test_every_operator_can_be_asked(small: World, operator: str) -> None:
    relevance = ask(small, operator=operator)
    assert np.isfinite(relevance.signed).all() and relevance.magnitude.max() > 0
    assert relevance.operator == OperatorConfig(name=operator)


def test_targets_are_labels_slots_the_click_or_the_own_answer(small: World) -> None:
    session = small.sessions[0]
    by_label, by_slot = ask(small, operator=ABS, target="C"), ask(small, operator=ABS, target=2)
    assert by_label.target == by_slot.target == 2
    np.testing.assert_array_equal(by_label.signed, by_slot.signed)
    others = [ask(small, operator=ABS, target=slot) for slot in range(session.slots)]
    assert len({other.signed.tobytes() for other in others}) == session.slots
    np.testing.assert_array_equal(ask(small, operator=ABS, target="click").signed, others[session.click].signed)
    own = ask(small, operator=ABS)
    np.testing.assert_array_equal(own.signed, others[own.answer].signed)


def test_a_prompt_is_an_array_or_tuned_prompts_and_a_row(small: World) -> None:
    tuned = small.prompt()
    rows = [ask(small, prompt=(tuned, user)) for user in range(len(USERS))]
    assert len({row.signed.tobytes() for row in rows}) == len(USERS)
    plain = ask(small, prompt=soft_prompt(tuned, jnp.array([1]))[0])
    np.testing.assert_array_equal(plain.signed, rows[1].signed)
    assert not np.allclose(ask(small).signed, plain.signed, rtol=1e-2)


def test_slots_are_assigned_as_the_settings_say(small: World) -> None:
    session = small.sessions[1]
    for how in ("centre", "area"):
        relevance = ask(small, 1, operator=OperatorConfig(name="attention", assignment=how))
        mass = assign_slots(session.boxes, *relevance.grid, how=how) @ relevance.magnitude.ravel()
        np.testing.assert_allclose(relevance.slot_attention, mass / (mass.sum() + 1e-4), rtol=1e-4)


def test_the_heat_map_covers_the_page(small: World) -> None:
    relevance = ask(small, operator=ABS)
    rows, columns = relevance.grid
    assert relevance.heat_map(192, 128).shape == (128, 192)
    assert relevance.heat_map(192, 128).min() >= 0 > relevance.heat_map(192, 128, signed=True).min()
    np.testing.assert_allclose(relevance.heat_map(columns, rows), relevance.magnitude, rtol=1e-5)


def test_it_is_at_hand_at_the_top() -> None:
    with pytest.raises(AttributeError, match="no attribute 'prob'"):
        fixate_jax.prob  # type: ignore[attr-defined]  # noqa: B018


def test_no_sessions_give_no_relevance(small: World) -> None:
    assert probe_batch(small.backbone, small.backbone.params, [], images=small.images.__getitem__) == []


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ({"target": "Z"}, "session 's0', target: 'Z' is no label of the page; choose one of A, B, C"),
        ({"target": 3}, "session 's0', target: slot 3 is not on the page of 3 slots"),
        ({"prompt": np.zeros((2, 5), np.float32)}, "session 's0', prompt: has shape .2, 5.; 2 soft tokens of width"),
        ({"prompt": 3}, "session 's0', prompt: there is no row 3 of 3 users"),
        ({"prompt": -1}, "session 's0', prompt: there is no row -1 of 3 users"),
    ],
    ids=str,
)
def test_a_mistake_names_the_session_and_what_is_wrong(small: World, asked: dict[str, Any], wanted: str) -> None:
    if isinstance(asked.get("prompt"), int):
        asked = {"prompt": (small.prompt(), asked["prompt"])}
    with pytest.raises(DataError, match=wanted):
        ask(small, **asked)


def test_an_image_that_is_none_is_named(small: World) -> None:
    images: Any = lambda page: None  # noqa: E731
    with pytest.raises(DataError, match="session 's0', image: must be a PIL image, got NoneType"):
        probe_batch(small.backbone, small.backbone.params, small.sessions, images=images)


def test_prompts_and_targets_are_counted(small: World) -> None:
    soft = soft_prompt(small.prompt(), jnp.array([1]))[0]
    images = small.images.__getitem__
    with pytest.raises(DataError, match="prompts: 1 for 3 sessions"):
        probe_batch(small.backbone, small.backbone.params, small.sessions, images=images, prompts=[soft])
    with pytest.raises(DataError, match="targets: 2 for 3 sessions"):
        probe_batch(small.backbone, small.backbone.params, small.sessions, images=images, targets=["own", "click"])
    with pytest.raises(DataError, match=r"session 's1', prompt: has shape .3, .*; 4 soft tokens of width"):
        prompts = [soft, soft[:3], soft]
        probe_batch(small.backbone, small.backbone.params, small.sessions, images=images, prompts=prompts)


def test_an_unknown_operator_is_refused_before_any_work(small: World) -> None:
    with pytest.raises(ConfigError, match=r"operator\.name = 'nope': choose one of attn_lrp"):
        ask(small, operator="nope")
