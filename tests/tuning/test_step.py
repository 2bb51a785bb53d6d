"""The jitted step and evaluation: exact answers, no square arrays, weights as arguments, few compilations."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.lab.config import ObjectiveConfig, OperatorConfig, PromptConfig, RunConfig
from fixate_jax.lab.experiments.loop import start_state
from fixate_jax.lab.experiments.programs import make_evaluate, make_train_step
from fixate_jax.lab.parts import objective_of
from fixate_jax.pipeline.kept import CacheConfig
from fixate_jax.prompts import soft_prompt
from fixate_jax.tuning.step import loss_and_gradient, session_losses
from tests.worlds import USERS, World, letters, numbers

ABS = OperatorConfig(name="attn_lrp", normalise="abs")


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, World]:
    """By their labels: of one token each, and of one or two."""
    config = RunConfig(
        backbone=BackboneConfig(tapped_layers=2, attention_block=48),
        prompt=PromptConfig(basis=3, tokens=5),
        operator=ABS,
        objective=ObjectiveConfig(warmup=0),
    )
    kinds: dict[str, Any] = {"letters": (letters, 3, 5), "numbers": (numbers, 12, 3)}
    return {
        kind: World(
            tmp_path_factory.mktemp(kind), sizes=((first, 320, 192), (second, 192, 160)), labels=labels, config=config
        )
        for kind, (labels, first, second) in kinds.items()
    }


@pytest.fixture(params=["letters", "numbers"])
def world(request: pytest.FixtureRequest, worlds: dict[str, World]) -> World:
    return worlds[request.param]


@pytest.fixture
def simple(worlds: dict[str, World]) -> World:
    """Where labels do not matter."""
    return worlds["letters"]


def full_forward(world: World, prompt: Any, batch: Any) -> Callable[[int, int], np.ndarray]:
    """From session and slot to log p of every token (seq, vocab), by a whole forward pass of the definition."""
    pytest.importorskip("torch")
    from tests.probing.whole_model import WholeModel, exactly

    model, inputs = WholeModel(world.backbone), jax.device_get(batch.inputs)
    soft = exactly(soft_prompt(prompt, batch.user))

    def log_probs(row: int, slot: int) -> np.ndarray:
        at = model.sequence(inputs, row, min(slot, inputs.tail_ids.shape[1] - 1), soft[row])
        found: np.ndarray = model.run(at).logits.log_softmax(-1).numpy()
        return found

    return log_probs


def test_candidate_probabilities_equal_a_forward_pass_each(world: World) -> None:
    batch, prompt = world.batch(), world.prompt()
    end = world.backbone.encoder.end_token
    evaluate = make_evaluate(world.backbone.graph, world.config, end)
    result = jax.device_get(evaluate(soft_prompt(prompt, batch.user), True, world.backbone.params, batch))
    worst, whole = 0.0, full_forward(world, prompt, batch)
    for row, (session, encoded) in enumerate(zip(world.sessions, world.data.encoded, strict=True)):
        for slot, answer in enumerate(encoded.answers):
            log_probs = whole(row, slot)
            expected = sum(log_probs[len(log_probs) - len(answer) + i, token] for i, token in enumerate(answer))
            longer = [i for i, a in enumerate(encoded.answers) if a[: len(answer)] == answer and len(a) > len(answer)]
            if longer:
                other = whole(row, longer[0])
                expected += other[len(other) - len(encoded.answers[longer[0]]) + len(answer), end]
            worst = max(worst, abs(float(result.log_probs[row, slot]) - expected))
        assert np.isneginf(result.log_probs[row, session.slots :]).all()
        assert int(result.answer[row]) == int(np.argmax(result.log_probs[row, : session.slots]))
    print(f"\nlargest difference of a candidate's log-probability: {worst:.1e}")
    assert worst < 1e-5


def test_free_running_takes_the_models_own_answer(world: World) -> None:
    """Where the model's answer is the click, both ways agree; telling it its own answer gives the free-running one."""
    batch, prompt = world.batch(), world.prompt()
    evaluate = make_evaluate(world.backbone.graph, world.config, world.backbone.encoder.end_token)
    soft = soft_prompt(prompt, batch.user)
    first = evaluate(soft, True, world.backbone.params, batch)
    told = evaluate(soft, True, world.backbone.params, batch._replace(click=first.answer.astype(jnp.int32)))
    np.testing.assert_allclose(told.teacher_forced, first.free_running, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(told.free_running, told.teacher_forced, rtol=1e-5, atol=1e-7)


def test_without_prompt_is_the_backbone_alone(simple: World) -> None:
    batch = simple.batch()
    evaluate = make_evaluate(simple.backbone.graph, simple.config, simple.backbone.encoder.end_token)
    compiled = evaluate._cache_size()
    results = [
        evaluate(soft_prompt(simple.prompt(seed), batch.user), False, simple.backbone.params, batch) for seed in (0, 1)
    ]
    np.testing.assert_array_equal(results[0].log_probs, results[1].log_probs)
    with_prompt = evaluate(soft_prompt(simple.prompt(), batch.user), True, simple.backbone.params, batch)
    assert evaluate._cache_size() - compiled <= 1, "with and without prompt must share one compilation"
    finite = np.isfinite(np.asarray(with_prompt.log_probs))
    assert np.abs(np.asarray(with_prompt.log_probs - results[0].log_probs)[finite]).max() > 0.01


def test_padding_and_company_change_nothing(simple: World) -> None:
    """A session's loss is the same alone, in company, and among rows that only fill the batch."""
    prompt, params = simple.prompt(), simple.backbone.params

    @jax.jit
    def loss(batch: Any) -> Any:
        return session_losses(
            prompt, simple.backbone.merge(params), batch, objective_of(simple.config), jnp.float32(0.5)
        )[0]

    both = float(loss(simple.batch([0, 1])))
    alone = [float(loss(simple.batch([i, -1]))) for i in (0, 1)]
    assert both == pytest.approx(sum(alone) / 2, rel=1e-5)


def test_accumulated_gradient_is_the_mean_over_sessions(simple: World) -> None:
    prompt, model = simple.prompt(), simple.backbone.merge(simple.backbone.params)
    objective = objective_of(replace(simple.config, operator=OperatorConfig(name="attention")))
    micro = jax.tree.map(lambda *x: jnp.stack(x), simple.batch([0, -1]), simple.batch([1, 0]))
    parts, gradient = jax.jit(lambda p, b: loss_and_gradient(p, model, b, objective, jnp.float32(0.5)))(prompt, micro)
    whole = simple.batch([0, 1, 0])
    losses = lambda p, b: session_losses(p, model, b, objective, jnp.float32(0.5))  # noqa: E731
    (loss, _), expected = jax.jit(jax.value_and_grad(losses, has_aux=True))(prompt, whole)
    assert float(parts["loss"]) == pytest.approx(float(loss), rel=1e-5)
    np.testing.assert_allclose(gradient.basis, expected.basis, rtol=1e-3, atol=1e-6)


@pytest.fixture(scope="module")
def long_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Longer sequences than any other dimension of the model, so that a square array would stand out."""
    config = RunConfig(
        backbone=BackboneConfig(tapped_layers=2, attention_block=64), prompt=PromptConfig(basis=3, tokens=16)
    )
    return World(
        tmp_path_factory.mktemp("long"), sizes=((4, 640, 576), (4, 640, 576)), config=replace(config, operator=ABS)
    )


def square_arrays(hlo: str, seq: int) -> set[str]:
    """Shapes in the compiled program with two dimensions of about the sequence's length (give or take a tail)."""
    shapes = {tuple(map(int, dims.split(","))) for dims in re.findall(r"\b(?:f32|bf16|f16|pred|s32)\[([\d,]+)\]", hlo)}
    return {str(s) for s in shapes if sum(seq - 8 <= d <= seq + 8 for d in s) >= 2}


def test_no_square_array_in_the_compiled_step(long_world: World) -> None:
    world = long_world
    seq = world.data.buckets[0].seq
    widths = {128, 384, 512, 64, 256}
    assert seq > 400 and all(abs(seq - w) > 8 for w in widths)
    step = make_train_step(world.backbone.graph, world.config, users=len(USERS), steps=10)
    state = start_state(world.config, users=len(USERS), width=world.backbone.width, seed=0)
    batch = jax.tree.map(lambda x: x[None], world.batch())
    hlo = step.lower(state, world.backbone.params, batch).compile().as_text()
    assert square_arrays(hlo, seq) == set()
    # The check itself must be able to fail: the same model with one block for all rows does hold S×S.
    config = replace(world.backbone.config.decoder, attention_block=4096)
    from flax import nnx

    from fixate_jax.backbones.qwen3_vl import model as qwen3_vl

    whole = replace(world.backbone.config, decoder=config)
    graph, _ = nnx.split(nnx.eval_shape(lambda: qwen3_vl.build(whole, nnx.Rngs(0))))
    hlo = make_train_step(graph, world.config, users=len(USERS), steps=10).lower(state, world.backbone.params, batch)
    assert square_arrays(hlo.compile().as_text(), seq)


def test_frozen_weights_are_arguments_and_the_state_is_donated(long_world: World) -> None:
    world = long_world
    step = make_train_step(world.backbone.graph, world.config, users=len(USERS), steps=10)
    state = start_state(world.config, users=len(USERS), width=world.backbone.width, seed=0)
    lowered = step.lower(state, world.backbone.params, jax.tree.map(lambda x: x[None], world.batch()))
    large = [c for c in re.findall(r'dense<"0x[0-9A-F]+', lowered.as_text()) if len(c) > 20_000]
    assert not large, "weights are baked into the program"
    decoder = sum(x.nbytes for x in jax.tree.leaves(world.backbone.params["decoder"]))
    arguments = jax.tree.leaves(lowered.args_info)
    assert sum(int(np.prod(a.shape)) * a.dtype.itemsize for a in arguments) > decoder
    donated = [a.donated for a in jax.tree.leaves(lowered.args_info[0][0])]
    assert all(donated) and not any(a.donated for a in jax.tree.leaves(lowered.args_info[0][1:]))


def test_only_the_prompt_moves_and_absent_users_do_not(simple: World) -> None:
    users = len(USERS)
    step = make_train_step(simple.backbone.graph, simple.config, users=users, steps=10)
    state = start_state(simple.config, users=users, width=simple.backbone.width, seed=0)
    before = jax.device_get(state.prompt)
    batch, compiled = jax.tree.map(lambda x: x[None], simple.batch([0, -1])), step._cache_size()
    for _ in range(3):
        state, parts = step(state, simple.backbone.params, batch)
    assert step._cache_size() - compiled <= 1
    after = jax.device_get(state.prompt)
    assert np.abs(after.basis - before.basis).max() > 1e-4
    present = int(batch.user[0, 0])
    moved = np.abs(after.coefficients - before.coefficients).max(axis=1)
    assert moved[present] > 0 and (np.delete(moved, present) == 0).all()
    assert int(state.step) == 3 and np.isfinite(float(parts["loss"]))


def test_vision_in_the_step_equals_cached_features(tmp_path: Path) -> None:
    config = RunConfig(backbone=BackboneConfig(tapped_layers=2), operator=OperatorConfig(name="attention"))
    cached = World(tmp_path, sizes=((3, 320, 192), (4, 256, 256)), config=config)
    uncached = World(
        tmp_path,
        sizes=((3, 320, 192), (4, 256, 256)),
        config=config,
        cache=CacheConfig(device_bytes=0, host_bytes=0, disk_bytes=0),
    )
    assert (cached.features.tier, uncached.features.tier) == ("device", "step")
    prompt = cached.prompt()

    @jax.jit
    def loss(batch: Any) -> Any:
        return session_losses(
            prompt, cached.backbone.merge(cached.backbone.params), batch, objective_of(cached.config), jnp.float32(0.5)
        )[0]

    assert float(loss(cached.batch())) == pytest.approx(float(loss(uncached.batch())), rel=1e-5)


def test_the_last_planned_step_moves_little_under_decay(simple: World) -> None:
    users, moved = len(USERS), {}
    batch = jax.tree.map(lambda x: x[None], simple.batch([0, -1]))
    for decay in ("none", "cosine"):
        config = replace(simple.config, optimizer=replace(simple.config.optimizer, decay=decay))
        step = make_train_step(simple.backbone.graph, config, users=users, steps=10)
        state = start_state(config, users=users, width=simple.backbone.width, seed=0)._replace(step=jnp.int32(9))
        before = jax.device_get(state.prompt)
        after = jax.device_get(step(state, simple.backbone.params, batch)[0].prompt)
        moved[decay] = jax.tree.map(lambda new, old: float(np.abs(new - old).max()), after, before)
    expected = 0.5 * (1 + np.cos(np.pi * 0.9))
    for steady, decayed in zip(moved["none"], moved["cosine"], strict=True):
        assert steady > 0 and decayed / steady == pytest.approx(expected, rel=1e-3)


def test_own_relevance_aligns_what_free_running_evaluation_measures(world: World) -> None:
    """Alignment is that of a click on the model's own answer, next-token prediction that of the true click."""
    batch, prompt, end = world.batch(), world.prompt(), world.backbone.encoder.end_token
    model = world.backbone.merge(world.backbone.params)
    own = replace(world.config, objective=replace(world.config.objective, relevance="own"))

    def parts(config: RunConfig, batch: Any) -> dict[str, float]:
        found = jax.jit(
            lambda b: session_losses(prompt, model, b, objective_of(config), jnp.float32(0.5), end_token=end)[1]
        )(batch)
        return {name: float(value) for name, value in found.items()}

    evaluate = make_evaluate(world.backbone.graph, world.config, end)
    answer = evaluate(soft_prompt(prompt, batch.user), True, world.backbone.params, batch).answer.astype(jnp.int32)
    assert (answer != batch.click).any()
    found, told = parts(own, batch), parts(world.config, batch._replace(click=answer))
    clicked = parts(world.config, batch)
    assert found["alignment"] == pytest.approx(told["alignment"], rel=1e-5)
    assert abs(found["alignment"] - clicked["alignment"]) > 1e-4 * clicked["alignment"]
    assert found["next_token"] == pytest.approx(clicked["next_token"], rel=1e-5)
