"""Tuning and evaluation without files: one's own parts, the same seed the same result, numbers that fit together."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image, ImageDraw

import fixate_jax as fx
from fixate_jax.backbones import Backbone
from fixate_jax.errors import ConfigError, DataError
from fixate_jax.evaluation import metrics

PEOPLE = ("ada", "ben", "cyd")
SHORT: dict[str, Any] = {"prompt_tokens": 3, "basis": 2, "epochs": 3, "batch": 4, "seed": 0}


def squared(gaze: Any, attention: Any, mask: Any) -> Any:
    return jnp.where(mask, (gaze - attention) ** 2, 0).sum(-1)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return fx.load_backbone("tiny-qwen3-vl", tapped_layers=2)


@pytest.fixture(scope="module")
def sessions() -> list[fx.Session]:
    image = Image.new("RGB", (160, 96), "white")
    boxes = [(4 + 52 * i, 20, 50 + 52 * i, 76) for i in range(3)]
    for box, colour in zip(boxes, ("firebrick", "seagreen", "royalblue"), strict=True):
        ImageDraw.Draw(image).rectangle(box, fill=colour)
    page = fx.Page(image=image, boxes=boxes, labels=("A", "B", "C"))
    gaze = [np.roll([0.8, 0.1, 0.1], i) for i in range(3)]
    return [fx.Session(page=page, user=u, gaze=gaze[i], click="ABC"[i]) for i, u in enumerate(PEOPLE) for _ in range(3)]


@pytest.fixture(scope="module")
def tuned(backbone: Backbone, sessions: list[fx.Session]) -> fx.Tuned:
    how = {"operator": fx.probing.attention(), "alignment": squared, "optimizer": optax.adam(0.05)}
    return fx.tune(backbone, sessions, **how, **SHORT)


def test_ones_own_loss_and_optimizer_bring_the_model_closer(
    backbone: Backbone, sessions: list[fx.Session], tuned: fx.Tuned
) -> None:
    assert tuned.users == PEOPLE and tuned.prompt.coefficients.shape == (3, 2)
    assert set(tuned.history) == {"loss", "next_token", "penalty", "alignment", "attention_weight"}
    assert tuned.history["loss"].shape == (3,) and tuned.history["loss"][-1] < tuned.history["loss"][0]
    before, after = (fx.evaluate(backbone, t, sessions, operator=fx.probing.attention()) for t in (None, tuned))
    assert after["log_loss"].mean() < before["log_loss"].mean()


def test_the_same_seed_gives_the_same_prompts(backbone: Backbone, sessions: list[fx.Session], tuned: fx.Tuned) -> None:
    how = {"operator": fx.probing.attention(), "alignment": squared, "optimizer": optax.adam(0.05)}
    again = fx.tune(backbone, sessions, **how, **SHORT)
    np.testing.assert_array_equal(again.prompt.basis, tuned.prompt.basis)
    np.testing.assert_array_equal(again.prompt.coefficients, tuned.prompt.coefficients)


def test_scores_are_those_of_a_look(backbone: Backbone, sessions: list[fx.Session], tuned: fx.Tuned) -> None:
    """Batches of 4 of 9 sessions, the last one filled up, against one look at all."""
    scores = fx.evaluate(backbone, tuned, sessions, batch=4)
    batch = fx.encode(backbone, sessions, prompt_tokens=3)
    seen = fx.look(backbone, batch, tuned.prompts([s.user for s in sessions]), tuned.operator)
    np.testing.assert_allclose(scores["kl"], metrics.kl(batch.gaze, seen.slot_attention, batch.slot_mask), rtol=1e-4)
    np.testing.assert_array_equal(scores["accuracy"], seen.answer == batch.click)
    loss = metrics.log_loss(seen.label_log_probs, batch.click, batch.slot_mask)
    np.testing.assert_allclose(scores["log_loss"], loss, rtol=1e-4)
    assert {"js", "cosine", "csh_1", "csh_3", "tgo_1", "auc", "recall_3", "top_k_js"} <= set(scores)
    told = fx.evaluate(backbone, tuned, sessions, relevance="click")
    assert told["kl"].shape == (9,)


def test_without_alignment_and_with_fixates_own_parts(backbone: Backbone, sessions: list[fx.Session]) -> None:
    few = {**SHORT, "epochs": 1}
    plain = fx.tune(backbone, sessions[:4], alignment=None, **few)
    assert set(plain.history) == {"loss", "next_token", "penalty"} and plain.users == PEOPLE[:2]
    assert repr(plain.operator).startswith("attn_lrp(normalise='signed'")


def test_who_and_what_cannot_be_used(backbone: Backbone, sessions: list[fx.Session], tuned: fx.Tuned) -> None:
    stranger = fx.Session(page=sessions[0].page, user="eve", gaze=[1, 1, 1], click=0)
    with pytest.raises(ConfigError, match="user 'eve' was not tuned; there are ada, ben, cyd"):
        fx.evaluate(backbone, tuned, [stranger])
    with pytest.raises(ConfigError, match="bring users and operator; leave"):
        fx.UserEmulator(backbone, tuned, users=("eve",))
    mean = tuned.prompts(["eve"], unknown="population")[0]
    np.testing.assert_allclose(mean, tuned.prompts(PEOPLE).mean(0), atol=1e-6)
    for call in (lambda: fx.tune(backbone, []), lambda: fx.evaluate(backbone, tuned, [])):
        with pytest.raises(DataError, match="no session is given"):
            call()


def test_emulated_people_do_what_a_look_says(backbone: Backbone, sessions: list[fx.Session], tuned: fx.Tuned) -> None:
    page = sessions[0].page
    seen = fx.UserEmulator(backbone, tuned).emulate([page, page], ("cyd", "ada"))
    assert seen.users == ("cyd", "ada") and seen.attention.shape == (2, 2, 3) and len(seen.visits) == 4
    np.testing.assert_allclose(seen.click_probability.sum(-1), 1, rtol=1e-5)
    batch = fx.encode(backbone, [page], prompt_tokens=3)
    for user, attention, chances in zip(seen.users, seen.attention, seen.click_probability, strict=True):
        look = fx.look(backbone, batch, tuned.prompts([user])[0], tuned.operator)
        np.testing.assert_allclose(attention, np.repeat(look.slot_attention, 2, 0), rtol=1e-4, atol=1e-6)
        odds = np.exp(look.label_log_probs - jnp.max(look.label_log_probs))
        np.testing.assert_allclose(chances, np.repeat(odds / odds.sum(), 2, 0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("private", [True, False])
def test_users_tuned_side_by_side_are_as_alone(
    backbone: Backbone, sessions: list[fx.Session], tuned: fx.Tuned, private: bool
) -> None:
    how: dict[str, Any] = {"operator": fx.probing.attention(), "alignment": squared, "optimizer": optax.adam(0.05)}
    how |= {"steps": 6, "prompt_tokens": 3, "over": None if private else tuned.prompt}
    together = fx.tune_users(backbone, sessions, **how)
    alone = fx.tune_users(backbone, [s for s in sessions if s.user == "ben"], **how)
    np.testing.assert_allclose(together.prompts(["ben"]), alone.prompts(["ben"]), atol=1e-5)
    assert together.users == PEOPLE and together.history["loss"].shape == (6,)
    assert together.history["loss"][-1] < together.history["loss"][0]
    assert np.abs(together.prompts(["ada"]) - together.prompts(["ben"])).max() > 1e-3
    with pytest.raises(DataError, match="tune_users: no session is given"):
        fx.tune_users(backbone, [])


def test_a_data_set_is_a_function() -> None:
    sessions = fx.data.synthetic_choice(max_users=2, page_width=64)
    assert len(sessions) == 120 and {s.user for s in sessions} == {"0", "1"}
    assert {s.split for s in sessions} == {"train", "validation", "test"}
    assert sessions[0].page.labels == ("A", "B", "C") and np.isclose(np.sum(sessions[0].gaze), 1)
    carousel = fx.data.synthetic_carousel(max_users=2, page_width=64)
    assert len({id(s.page) for s in carousel}) < len(carousel), "pages are shared"
    with pytest.raises(AttributeError, match="its readers are human_choice, snacks, recgaze"):
        fx.data.nothing  # noqa: B018
    with pytest.raises(ConfigError, match="give the folder of human_choice"):
        fx.data.human_choice()
