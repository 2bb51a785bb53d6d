"""What controls show instead of the page, and what their prompts are aligned with instead of the gaze."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from fixate_jax.data.carousel import Poster, draw_carousels
from fixate_jax.data.options import DataConfig
from fixate_jax.data.readers import human_choice
from fixate_jax.data.readers.synthetic import carousel
from fixate_jax.data.registry import open_or_prepare, usable_sessions
from fixate_jax.data.store import SessionStore
from fixate_jax.errors import ConfigError
from fixate_jax.lab.config import ObjectiveConfig, PromptConfig, RunConfig
from fixate_jax.lab.controls import controls, stages
from fixate_jax.lab.experiments.workspace import control_gaze, splits_of
from fixate_jax.objective import kl
from fixate_jax.probing import attn_lrp
from fixate_jax.tuning.step import Objective, objective_gradient
from tests.worlds import World, letters, made_up_session


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[DataConfig, SessionStore]:
    config = DataConfig(
        name="synthetic_carousel", max_users=2, page_width=160, store=tmp_path_factory.mktemp("drawn") / "store"
    )
    return config, open_or_prepare(config)


def test_a_rearranged_carousel_is_the_page_of_other_posters(drawn: tuple[DataConfig, SessionStore]) -> None:
    config, store = drawn
    session = store.sessions[3]
    seen = np.asarray(store.image(session.page_id))
    still, order = list(range(15)), np.random.default_rng(0).permutation(15).tolist()
    np.testing.assert_array_equal(np.asarray(carousel.rearranged(config, session, still)), seen)
    content: list[Poster] = list(carousel.content_of(session, config.split_seed))
    wanted = draw_carousels([content[i] for i in order], carousel.LABELS, width=160)
    np.testing.assert_array_equal(np.asarray(carousel.rearranged(config, session, order)), np.asarray(wanted))


def test_the_law_of_a_rearranged_page_moves_taste_and_not_place(drawn: tuple[DataConfig, SessionStore]) -> None:
    config, store = drawn
    law = stages.law_of(config)
    assert law is not None and stages.law_of(DataConfig(name="human_choice")) is None
    session = store.sessions[0]
    person = carousel.people(1, config.split_seed)[0]
    genres = np.argmax(session.slot_features[:, :10], axis=1)
    order = np.random.default_rng(1).permutation(15).tolist()
    place = (person.rows[:, None] + person.columns[None, :]).ravel()
    odds = np.exp(place + person.tastes[genres[order]])
    np.testing.assert_allclose(law(session, order), odds / odds.sum(), atol=1e-12)


def test_rearranged_gambles_keep_labels_and_columns(tmp_path: Path) -> None:
    config = DataConfig(name="synthetic_choice", max_users=1, page_width=128, store=tmp_path / "store")
    store = open_or_prepare(config)
    session = store.sessions[0]
    image = store.image(session.page_id)
    same = human_choice.rearranged(session, [0, 1, 2], width=image.width)
    np.testing.assert_array_equal(np.asarray(same), np.asarray(image))
    swapped = np.asarray(human_choice.rearranged(session, [1, 0, 2], width=image.width))
    x = [round(float(side) * image.width) for side in session.boxes[:, [0, 2]].ravel()]
    np.testing.assert_array_equal(swapped[:, x[4] :], np.asarray(image)[:, x[4] :])
    assert (swapped[:, x[0] : x[1]] != np.asarray(image)[:, x[0] : x[1]]).any()


def test_pictures_of_slots_change_places_and_what_is_between_them_stays() -> None:
    session, image = made_up_session(0, slots=4, size=(80, 60), labels=letters)
    pixels = np.asarray(image)
    order = [2, 0, 3, 1]
    moved = np.asarray(stages.swapped_boxes(image, session, order))
    boxes = np.round(session.boxes * np.array([80, 60, 80, 60])).astype(int)
    outside = np.ones((60, 80), bool)
    for (x0, y0, x1, y1), source in zip(boxes, order, strict=True):
        outside[y0:y1, x0:x1] = False
        a, b, c, d = boxes[source]
        np.testing.assert_array_equal(moved[y0:y1, x0:x1], pixels[b:d, a:c])
    np.testing.assert_array_equal(moved[outside], pixels[outside])


def test_every_order_moves_something_and_depends_on_its_session_alone() -> None:
    sessions = [made_up_session(i, slots=2 + i % 3, size=(64, 64), labels=letters)[0] for i in range(30)]
    orders = stages.orders_of(sessions, seed=0)
    assert all(sorted(o) == list(range(s.slots)) != o for o, s in zip(orders, sessions, strict=True))
    assert stages.orders_of(sessions[7:8], seed=0) == orders[7:8] and stages.orders_of(sessions, seed=1) != orders


def test_what_goes_with_the_content_is_what_differs_between_pages(drawn: tuple[DataConfig, SessionStore]) -> None:
    _, store = drawn
    content = stages.content_columns(store.sessions)
    names = np.array(store.slot_feature_names)
    assert set(names[content]) == set(carousel.GENRES)
    session, order = store.sessions[0], [1, 0, *range(2, 15)]
    moved = stages.with_content(session, order, content)
    np.testing.assert_array_equal(moved.slot_features[0, :10], session.slot_features[1, :10])
    np.testing.assert_array_equal(moved.slot_features[:, 10:], session.slot_features[:, 10:])


def test_everybody_is_told_of_somebody_whose_profile_is_another() -> None:
    made = [made_up_session(i, slots=2, size=(64, 64), labels=letters)[0] for i in range(3)]
    told = [replace(s, profile=p) for s, p in zip(made, ("x", "y", "x"), strict=True)]
    assert stages.other_profiles(told, ("u0", "u1", "u2", "absent")) == {"u0": "y", "u1": "x", "u2": "y"}
    assert stages.other_profiles([replace(s, profile="x") for s in made], ("u0", "u1", "u2")) is None


@pytest.mark.parametrize("gaze", ["mean", "other_session"])
def test_what_control_prompts_are_aligned_with(drawn: tuple[DataConfig, SessionStore], gaze: Any) -> None:
    data, store = drawn
    config = RunConfig(data=data, objective=ObjectiveConfig(gaze=gaze))
    sessions = usable_sessions(store, data)
    splits = splits_of(sessions, data)
    targets = control_gaze(config, sessions, splits)
    assert sorted(targets) == sorted(splits["train"]), "validation and test are never touched"
    for user in store.users:
        own = [i for i in splits["train"] if sessions[i].user_id == user]
        given, true = (
            np.array([x for x in xs]) for xs in ([targets[i] for i in own], [sessions[i].gaze() for i in own])
        )
        if gaze == "mean":
            np.testing.assert_array_equal(given, np.tile(given[:1], (len(own), 1)))
            assert np.abs(given[0] - true.mean(axis=0)).max() < 0.02
        else:
            assert (np.abs(given - true).max(axis=1) > 1e-4).all(), "no session keeps its own"
            order = [int(np.argmin(np.abs(true - row).sum(axis=1))) for row in given]
            assert sorted(order) == list(range(len(own))), "every gaze of the person is used once"
    assert control_gaze(RunConfig(data=data), sessions, splits) == {}


def test_a_change_that_follows_the_truth_in_part() -> None:
    rng = np.random.default_rng(0)
    true = [row - row.mean() for row in rng.normal(size=(50, 4))]
    half = [0.5 * row for row in true]
    assert controls._fit(half, true, range(50)) == pytest.approx((1.0, 0.5))
    assert controls._fit([0 * row for row in true], true, range(50)) == (0.0, 0.0)
    noisy = [
        0.5 * row + 0.5 * (other - other.mean()) for row, other in zip(true, rng.normal(size=(50, 4)), strict=True)
    ]
    correlation, slope = controls._fit(noisy, true, range(50))
    assert correlation == pytest.approx(0.71, abs=0.08) and slope == pytest.approx(0.5, abs=0.08)


def test_soft_tokens_that_are_told_apart_learn_from_one_part_each() -> None:
    """Each token's gradient is that of its own part alone, and the penalty counts once."""
    soft = jnp.arange(1.0, 13.0).reshape(1, 4, 3)
    plain = Objective(operator=attn_lrp(), alignment=kl)

    def losses(own: jax.Array, what: Objective) -> Any:
        seen = what.routed(own)
        alignment, answers, penalty = (seen**2).sum(), (3 * seen).sum(), 0.5 * (own**2).sum()
        total = {"both": alignment + answers + penalty, "alignment": alignment, "next_token": answers + penalty}
        return total[what.part], {"loss": total["both"]}

    parts, together = objective_gradient(losses, soft, plain)
    np.testing.assert_allclose(together, 2 * soft + 3 + soft)
    apart, gradient = objective_gradient(losses, soft, replace(plain, aligned_tokens=1))
    np.testing.assert_allclose(gradient[:, :1], 2 * soft[:, :1] + soft[:, :1])
    np.testing.assert_allclose(gradient[:, 1:], 3 + soft[:, 1:])
    assert float(parts["loss"]) == float(apart["loss"])
    with pytest.raises(ConfigError, match=r"objective\.aligned_tokens = 4: must be fewer than prompt\.tokens = 4"):
        RunConfig(prompt=PromptConfig(tokens=4), objective=ObjectiveConfig(aligned_tokens=4))


def test_pages_that_nobody_can_rearrange_are_left_out() -> None:
    assert stages._redrawn(DataConfig(name="human_choice", slots="texts")) is None
    assert stages._redrawn(DataConfig(name="own")) is None
    blank = np.asarray(stages._blank(Image.fromarray(np.array([[[10, 20, 30], [20, 40, 60]]], np.uint8))))
    np.testing.assert_array_equal(blank, np.full((1, 2, 3), [15, 30, 45]))


def test_control_gaze_is_what_batches_hold(tmp_path: Path) -> None:
    """And what a session is measured against stays its own."""
    world = World(tmp_path)
    own = world.data.batch([0, 1]).gaze
    even = np.full(world.sessions[0].slots, 1 / world.sessions[0].slots, np.float32)
    controlled = world.data.with_targets({0: even})
    held = controlled.batch([0, 1]).gaze
    np.testing.assert_array_equal(held[0, : len(even)], even)
    np.testing.assert_array_equal(held[1], own[1])
    np.testing.assert_array_equal(controlled.gaze(0), world.data.gaze(0))
    np.testing.assert_array_equal(world.data.batch([0, 1]).gaze, own)
