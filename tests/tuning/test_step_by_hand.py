"""The pieces of a step and of an evaluation on numbers that are given, with no model behind them."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fixate_jax.evaluation import forward
from fixate_jax.evaluation.forward import evaluate_batch
from fixate_jax.objective import kl
from fixate_jax.probing import attn_lrp, passes
from fixate_jax.probing.batches import Batch
from fixate_jax.prompts import PromptParams
from fixate_jax.tuning import step
from fixate_jax.tuning.step import Objective

END, VOCAB, SLOTS, TAIL = 4, 5, 3, 2
EMPTY = Batch(*[None] * len(Batch._fields))  # type: ignore[arg-type]


def two_pages() -> Batch:
    """Labels 0, 1 and 1 2, the second beginning the third; the second page has the first two slots alone."""
    mask = np.array([[False, True], [False, True], [True, True]])
    ids = np.array([[0, 0], [0, 1], [1, 2]])
    stop = np.array([[-1, -1], [2, 1], [-1, -1]])
    short = np.array([[-1, -1], [-1, -1], [-1, -1]])
    return EMPTY._replace(
        answer_ids=jnp.asarray([ids, ids]),
        answer_mask=jnp.asarray([mask, mask]),
        stop=jnp.asarray([stop, short]),
        slot_mask=jnp.array([[True, True, True], [True, True, False]]),
        click=jnp.array([0, 1]),
    )


def logits_of(seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=(2, SLOTS, TAIL, VOCAB)), jnp.float32)


def test_a_label_that_begins_another_one_has_to_stop() -> None:
    logits = logits_of()
    found = passes.label_log_probs(logits, two_pages(), END)
    log_p = np.asarray(jax.nn.log_softmax(logits, axis=-1))
    whole = log_p[0, 0, 1, 0], log_p[0, 1, 1, 1] + log_p[0, 2, 1, END], log_p[0, 2, 0, 1] + log_p[0, 2, 1, 2]
    np.testing.assert_allclose(found[0], whole, rtol=1e-6)
    np.testing.assert_allclose(found[1], [log_p[1, 0, 1, 0], log_p[1, 1, 1, 1], -np.inf], rtol=1e-6)


def test_one_way_is_told_the_click_and_the_other_takes_the_own_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = logits_of().at[0, :, 1, 1].set(9.0).at[1, 0, 1, 0].set(9.0)

    def look_for(operator: Any, model: Any, prefix: Any, batch: Batch, chosen: jax.Array, eps: float) -> Any:
        told = jax.nn.one_hot(chosen, SLOTS)
        return None, -told, told

    monkeypatch.setattr(forward, "look_for", look_for)
    monkeypatch.setattr(forward, "ready_inputs", lambda model, batch, operator: None)
    monkeypatch.setattr(forward, "branches_of", lambda prefix, slots: prefix)
    model = SimpleNamespace(
        prefill=lambda inputs, prompt, use_prompt: None, tail=lambda prefix: SimpleNamespace(logits=logits)
    )
    batch = two_pages()._replace(stop=jnp.full((2, SLOTS, 2), -1))
    found = evaluate_batch(jnp.zeros((2, 1, 1)), True, model, batch, attn_lrp(), END)
    assert found.answer.tolist() == [1, 0] and batch.click.tolist() == [0, 1]
    np.testing.assert_array_equal(found.teacher_forced, np.eye(SLOTS)[[0, 1]])
    np.testing.assert_array_equal(found.free_running, np.eye(SLOTS)[[1, 0]])
    np.testing.assert_array_equal(found.tokens_forced, found.teacher_forced)
    np.testing.assert_array_equal(found.tokens_free, found.free_running)


def test_sessions_of_a_step_count_alike_whatever_their_micro_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    def losses(prompt: PromptParams, model: Any, batch: Batch, *_: Any, **__: Any) -> Any:
        each = prompt.basis.sum() * batch.click
        loss = (each * batch.weight).sum() / jnp.maximum(batch.weight.sum(), 1)
        return loss, {"loss": loss}

    monkeypatch.setattr(step, "session_losses", losses)
    prompt = PromptParams(jnp.ones((1, 1, 1)), jnp.zeros((1, 1)))
    batch = EMPTY._replace(
        click=jnp.array([[1.0, 2.0, 3.0], [10.0, 7.0, 7.0]]), weight=jnp.array([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    )
    parts, gradient = step.loss_and_gradient(
        prompt, None, batch, Objective(operator=attn_lrp(), alignment=kl), jnp.float32(0)
    )
    assert float(parts["loss"]) == pytest.approx(4) and float(gradient.basis[0, 0, 0]) == pytest.approx(4)


@pytest.mark.parametrize(("relevance", "seen"), [("click", [0, 1]), ("own", [1, 0])])
def test_which_answers_relevance_is_aligned(monkeypatch: pytest.MonkeyPatch, relevance: Any, seen: list[int]) -> None:
    """The click's or the own answer's; the next token is the click's either way."""

    def look_for(operator: Any, model: Any, prefix: Any, batch: Batch, chosen: jax.Array, eps: float) -> Any:
        rows = jnp.arange(2)[:, None]
        return logits_of()[rows, chosen], None, jnp.full((2, chosen.shape[1], SLOTS), chosen[..., None] + 1.0)

    aligned: list[np.ndarray] = []

    def alignment(gaze: Any, attention: jax.Array, mask: Any) -> jax.Array:
        aligned.append(np.asarray(attention[:, 0]) - 1)
        return jnp.zeros(2)

    monkeypatch.setattr(step, "look_for", look_for)
    monkeypatch.setattr(step, "ready_inputs", lambda model, batch, operator: None)
    monkeypatch.setattr(step, "take_branches", lambda inputs, chosen: None)
    monkeypatch.setattr(step, "branches_of", lambda prefix, slots: prefix)
    monkeypatch.setattr(step, "_own_answer", lambda *_: jnp.array([1, 0]))
    batch = two_pages()._replace(user=jnp.zeros(2, int), weight=jnp.ones(2))
    objective = Objective(operator=attn_lrp(), alignment=alignment, relevance=relevance)
    prompt = PromptParams(jnp.ones((1, 1, 1)), jnp.zeros((1, 1)))
    model = SimpleNamespace(prefill=lambda inputs, prompt: None)
    _, parts = step.session_losses(prompt, model, batch, objective, jnp.float32(0.5), end_token=END)
    assert aligned[0].tolist() == seen
    log_p = np.asarray(jax.nn.log_softmax(logits_of(), axis=-1))
    assert float(parts["next_token"]) == pytest.approx(-(log_p[0, 0, 1, 0] + log_p[1, 1, 1, 1]) / 2, rel=1e-5)


def test_parts_told_apart_are_the_whole_and_the_penalty_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The alignment's part is λ · L_attn; the answers' part asks no operator at all."""
    batch = two_pages()._replace(user=jnp.zeros(2, int), weight=jnp.ones(2))
    clicked = logits_of()[jnp.arange(2), batch.click][:, None]

    def look_for(operator: Any, model: Any, prefix: Any, batch: Batch, chosen: jax.Array, eps: float) -> Any:
        return clicked, None, jnp.zeros((2, 1, SLOTS))

    monkeypatch.setattr(step, "look_for", look_for)
    monkeypatch.setattr(step, "ready_inputs", lambda model, batch, operator: None)
    monkeypatch.setattr(step, "take_branches", lambda inputs, chosen: None)
    model = SimpleNamespace(prefill=lambda inputs, prompt: None, tail=lambda prefix: SimpleNamespace(logits=clicked))
    prompt = PromptParams(jnp.ones((1, 3, 1)), jnp.full((1, 1), 2.0))
    alignment = lambda gaze, attention, mask: jnp.array([2.0, 4.0])  # noqa: E731
    whole = Objective(operator=attn_lrp(), alignment=alignment, beta=0.1, aligned_tokens=1)

    def loss(objective: Objective) -> float:
        return float(step.session_losses(prompt, model, batch, objective, jnp.float32(0.5))[0])

    assert loss(replace(whole, part="alignment")) == pytest.approx(0.5 * 3)
    monkeypatch.setattr(step, "look_for", None)
    answers = loss(replace(whole, part="next_token", alignment=None))
    monkeypatch.setattr(step, "look_for", look_for)
    assert loss(whole) == pytest.approx(0.5 * 3 + answers)
    log_p = np.asarray(jax.nn.log_softmax(logits_of(), axis=-1))
    next_token = -(log_p[0, 0, 1, 0] + log_p[1, 1, 1, 1]) / 2
    assert answers == pytest.approx(0.5 * next_token + 0.1 * 4, rel=1e-5)
