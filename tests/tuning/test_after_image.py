"""The soft prompt behind the page: the layout itself, and the page's keys and values computed beforehand."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fixate_jax.backbones import decoder, take_branches
from fixate_jax.backbones.after_page import attend_over_page, seen_rows, without_gap
from fixate_jax.backbones.attention import blocked_attention
from fixate_jax.backbones.processing import EncodedSession
from fixate_jax.backbones.tiny_random import write_tiny_random
from fixate_jax.backbones.tiny_sizes import TinySizes
from fixate_jax.config import BackboneConfig, ObjectiveConfig, OperatorConfig, PromptConfig, RunConfig
from fixate_jax.errors import ConfigError
from fixate_jax.probing import OPERATORS, SOURCE_ROW, get_operator
from fixate_jax.prompts import soft_prompt
from fixate_jax.tuning import step
from fixate_jax.tuning.batches import Batch, SessionData
from fixate_jax.tuning.step import evaluate_batch, look, loss_and_gradient
from tests.probing.test_operators import relative
from tests.worlds import USERS, World, letters, numbers

SOFT = 5
WORLDS: dict[str, tuple[TinySizes, int, Any]] = {
    "qwen3_vl, two of three layers, letters": (TinySizes(layers=3), 2, letters),
    "internvl, all layers, numbers (one and two tokens)": (TinySizes(family="internvl", layers=3), 3, numbers),
}
SIZES = ((3, 320, 192), (12, 192, 160), (5, 256, 256))


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, World]:
    return {name: make_world(tmp_path_factory.mktemp("world"), *settings) for name, settings in WORLDS.items()}


@pytest.fixture(params=WORLDS)
def world(request: pytest.FixtureRequest, worlds: dict[str, World]) -> World:
    return worlds[request.param]


@pytest.fixture
def qwen(worlds: dict[str, World]) -> World:
    return next(iter(worlds.values()))


def make_world(folder: Path, sizes: TinySizes, tapped: int, labels: Any) -> World:
    config = RunConfig(
        backbone=BackboneConfig(
            path=str(write_tiny_random(folder / "model", sizes=sizes)), tapped_layers=tapped, attention_block=128
        ),
        prompt=PromptConfig(basis=3, tokens=SOFT, position="after_image"),
        operator=OperatorConfig(name="attn_lrp", normalise="abs"),
        objective=ObjectiveConfig(warmup=0),
    )
    return World(folder, sizes=SIZES, labels=labels, config=config, max_lengths=2)


def in_layout(world: World, encoded: Sequence[EncodedSession], **settings: Any) -> SessionData:
    """The world's sessions, put together in another way."""
    how: dict[str, Any] = {"prompt_tokens": SOFT, "position": "after_image", **settings}
    rows = {user: i for i, user in enumerate(USERS)}
    return SessionData(world.sessions, encoded, rows, features=world.features, signal="fixation", **how)


def batches(data: SessionData) -> list[Batch]:
    """All sessions, a batch for each bucket, on the device."""
    members = [[i for i, b in enumerate(data.bucket_of) if b == bucket] for bucket in range(len(data.buckets))]
    return [jax.device_put(data.batch(rows)) for rows in members if rows]


@cache
def keys_of(world: World) -> Any:
    return jax.jit(lambda params, inputs: world.backbone.merge(params).page_keys(inputs))


def with_keys(world: World, batch: Batch) -> Batch:
    """The same batch with the page's keys and values in place of its features."""
    keys = keys_of(world)(world.backbone.params, batch.inputs)
    return batch._replace(inputs=batch.inputs._replace(page_keys=keys, features=None))


def whole(model: Any, prompt: Any, batch: Batch, use_prompt: Any = True) -> jax.Array:
    """Log-probabilities at the tail by a plain forward pass."""
    logits, _ = model.decoder.forward(batch.inputs, prompt, use_prompt)
    return jax.nn.log_softmax(logits[:, -1])


def by_tail(model: Any, prompt: Any, batch: Batch, use_prompt: Any = True) -> jax.Array:
    """The same by prefill and tail."""
    return jax.nn.log_softmax(model.tail(model.prefill(batch.inputs, prompt, use_prompt)).logits[:, 0, -1])


def run(world: World, function: Any, *arguments: Any) -> Any:
    """A function of the model, compiled with the weights as an argument."""
    call = jax.jit(lambda params, *rest: function(world.backbone.merge(params), *rest))
    return jax.device_get(call(world.backbone.params, *arguments))


def with_words(encoded: EncodedSession, words: Any) -> EncodedSession:
    """The chat with some more text right behind the page."""
    end, count = encoded.page_end, len(words)
    at = encoded.positions[end - 1].max() + 1 + np.arange(count)
    positions = [encoded.positions[:end], np.repeat(at[:, None], 3, axis=1), encoded.positions[end:] + count]
    return replace(
        encoded,
        token_ids=np.concatenate([encoded.token_ids[:end], words, encoded.token_ids[end:]]),
        visual_index=np.insert(encoded.visual_index, end, np.full(count, -1)),
        positions=np.concatenate(positions).astype(np.int32),
        last_position=encoded.last_position + count,
    )


def soft_tokens_that_are_words(world: World, *, thorough: bool = True) -> float:
    """Largest difference between words as a soft prompt behind the page, and the same words as part of the chat."""
    words = np.array([7, 30, 11, 5, 23], np.int32)
    said = in_layout(world, [with_words(e, words) for e in world.data.encoded], position="before", max_lengths=2)
    worst = 0.0
    for batch, written in list(zip(batches(world.data), batches(said), strict=True))[: 2 if thorough else 1]:
        soft = world.backbone.merge(world.backbone.params).decoder.embed(jnp.asarray(words))
        soft = jnp.broadcast_to(soft, (len(batch.click), *soft.shape))
        expected = run(world, whole, soft, written, False)
        for given in (batch, with_keys(world, batch))[0 if thorough else 1 :]:
            worst = max(worst, float(np.abs(run(world, by_tail, soft, given) - expected).max()))
    return worst


def hidden_prompt(world: World, *, thorough: bool = True) -> float:
    """Largest difference between the backbone under a hidden prompt behind the page, and without any prompt."""
    plain = in_layout(world, world.data.encoded, position="before", max_lengths=2)
    worst = 0.0
    for batch, bare in list(zip(batches(world.data), batches(plain), strict=True))[: 2 if thorough else 1]:
        soft = soft_prompt(world.prompt(), batch.user)
        expected = run(world, by_tail, soft, bare, False)
        ways = [(by_tail, with_keys(world, batch)), (by_tail, batch), (whole, batch)]
        for function, given in ways[: 3 if thorough else 1]:
            worst = max(worst, float(np.abs(run(world, function, soft, given, False) - expected).max()))
    return worst


def test_the_layout(world: World) -> None:
    """Everything up to the token that closes the page, the soft prompt, the rest; the padding in between."""
    data, image = world.data, world.backbone.config.image_token
    for shapes, batch in zip(data.buckets, batches(data), strict=True):
        for row, index in enumerate(np.asarray(batch.session)):
            encoded, inputs = data.encoded[index], jax.tree.map(lambda x, row=row: np.asarray(x[row]), batch.inputs)
            end = encoded.page_end
            assert encoded.token_ids[end - 2] == image and (encoded.token_ids[end - 1 :] != image).all()
            assert world.backbone.encoder.tokenizer.decode(encoded.token_ids[end - 1]) in ("<|vision_end|>", "</img>")
            np.testing.assert_array_equal(inputs.page_valid, np.arange(shapes.page) < end)
            first = shapes.seq - (len(encoded.token_ids) - end)
            assert inputs.start == first - SOFT >= shapes.page
            chat = np.r_[:end, first : shapes.seq]
            np.testing.assert_array_equal(inputs.token_ids[chat], encoded.token_ids)
            np.testing.assert_array_equal(inputs.visual_index[chat], encoded.visual_index)
            moved = np.where(np.arange(len(chat)) < end, 0, SOFT)
            np.testing.assert_array_equal(inputs.positions[chat], encoded.positions + moved[:, None])
            np.testing.assert_array_equal(
                inputs.positions[first - SOFT : first, 1] - inputs.positions[end - 1, 1], range(1, SOFT + 1)
            )
            np.testing.assert_array_equal(
                inputs.visual_index[inputs.visual_position[: len(encoded.cell_tokens)]], encoded.cell_tokens
            )
        assert shapes.page == max(data.encoded[i].page_end for i in np.asarray(batch.session))


def test_soft_tokens_count_like_words_behind_the_page(world: World) -> None:
    difference = soft_tokens_that_are_words(world)
    print(f"\nwords as soft tokens and as text: {difference:.1e}")
    assert difference < 1e-5


def test_a_hidden_prompt_leaves_no_gap(world: World) -> None:
    difference = hidden_prompt(world)
    print(f"\nhidden prompt and none: {difference:.1e}")
    assert difference < 1e-5


MUTATIONS: dict[str, tuple[str, Any, Any]] = {
    "what follows a hidden prompt stays where it was": ("without_gap", lambda inputs, *_: inputs, hidden_prompt),
    "a hidden prompt is seen": ("seen_rows", lambda inputs, tokens, _: seen_rows(inputs, tokens, True), hidden_prompt),
    "the gap is closed under a prompt too": (
        "without_gap",
        lambda inputs, tokens, _: without_gap(inputs, tokens, False),
        soft_tokens_that_are_words,
    ),
    "the prompt does not see the page": (
        "attend_over_page",
        lambda q, k, v, pk, pv, valid, *, block: attend_over_page(
            q, k, v, pk, pv, valid.at[:, : pk.shape[1]].set(False), block=block
        ),
        soft_tokens_that_are_words,
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_mistakes_are_noticed(qwen: World, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    attribute, mistake, measure = MUTATIONS[name]
    monkeypatch.setattr(decoder, attribute, mistake)
    assert measure(qwen, thorough=False) > 1e-3


OBJECTIVES = {
    "attn_lrp, own answer": ("attn_lrp", "own"),
    "attention": ("attention", "click"),
    "attention_gradient": ("attention_gradient", "click"),
}


def steps(world: World, chosen: Sequence[str], model: Any, batch: Batch) -> dict[str, Any]:
    """Loss parts and gradient by some operators that ask for row src alone."""
    found, micro = {}, jax.tree.map(lambda x: x[None], batch)
    for name in chosen:
        operator, relevance = OBJECTIVES[name]
        config = replace(
            world.config,
            operator=replace(world.config.operator, name=operator),
            objective=replace(world.config.objective, relevance=relevance),  # type: ignore[arg-type]
        )
        end = world.backbone.encoder.end_token
        found[name] = loss_and_gradient(world.prompt(), model, micro, config, jnp.float32(0.5), end_token=end)
    return found


def test_keys_known_beforehand_give_the_same_step(world: World) -> None:
    """Loss and gradient: all rows computed together, which is the reference, and over the page's keys."""
    assert {operator for operator, _ in OBJECTIVES.values()} == SOURCE_ROW
    # One architecture takes all operators, the other the hardest.
    chosen = list(OBJECTIVES)[: len(OBJECTIVES) if world.data.buckets[0].tail == 1 else 1]
    batch = batches(world.data)[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "SOURCE_ROW", set())
        reference = run(world, partial(steps, world, chosen), batch)
    ours = run(world, partial(steps, world, chosen), with_keys(world, batch))
    for name, (parts, gradient) in reference.items():
        for part, value in parts.items():
            assert ours[name][0][part] == pytest.approx(value, rel=1e-5, abs=1e-6), (name, part)
        for field, expected in gradient._asdict().items():
            difference = relative(getattr(ours[name][1], field), expected)
            print(f"\n{name}: gradient in {field} {difference:.0e}", end="")
            assert difference < 1e-4, (name, field)


def test_keys_are_computed_in_the_step_where_none_are_cached(qwen: World) -> None:
    batch, function = batches(qwen.data)[0], partial(steps, qwen, ["attention"])
    cached, computed = (run(qwen, function, given) for given in (with_keys(qwen, batch), batch))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-6), computed, cached)


def test_keys_known_beforehand_give_the_same_evaluation(world: World) -> None:
    """All branches, with and without prompt, by one compiled program a bucket."""
    end, merge = world.backbone.encoder.end_token, world.backbone.merge

    def jitted() -> Any:
        return jax.jit(lambda p, soft, use, batch: evaluate_batch(soft, use, merge(p), batch, world.config, end))

    ours, reference = jitted(), jitted()
    for batch in batches(world.data):
        soft, found = soft_prompt(world.prompt(), batch.user), {}
        cached = with_keys(world, batch)
        for use in (True, False):
            found[use] = jax.device_get(ours(world.backbone.params, soft, jnp.asarray(use), cached))
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(step, "SOURCE_ROW", set())
                expected = jax.device_get(reference(world.backbone.params, soft, jnp.asarray(use), batch))
            for field, value in expected._asdict().items():
                np.testing.assert_allclose(getattr(found[use], field), value, rtol=1e-5, atol=1e-5, err_msg=field)
        assert np.abs(found[True].teacher_forced - found[False].teacher_forced).max() > 1e-3
    assert ours._cache_size() == len(world.data.buckets)


def relevance_of(names: Sequence[str], world: World, model: Any, soft: Any, batch: Batch) -> dict[str, jax.Array]:
    """Slot attention for the clicked slot's label by some operators, all rows being computed together."""
    click = batch.click[:, None]
    prefix = model.prefill(take_branches(batch.inputs, click), soft)
    config = replace(world.config.operator, steps=2)
    return {n: look(get_operator(n), model, prefix, batch, click, replace(config, name=n))[2][:, 0] for n in names}


def test_every_operator_takes_the_layout(qwen: World) -> None:
    """A session alone, without padding, gets what it gets in company, by every kind of operator."""
    # One of each kind: row src alone, whole matrices, a product of layers, back to the embeddings.
    names = ("attn_lrp", "glimpse", "rollout", "lrp")
    together = batches(in_layout(qwen, qwen.data.encoded, max_lengths=1))[0]
    index, function = 1, partial(relevance_of, names, qwen)
    by_itself = in_layout(qwen, qwen.data.encoded, max_lengths=len(SIZES))
    alone = jax.device_put(by_itself.batch([index]))
    padding = [(~np.asarray(b.inputs.page_valid)[i]).sum() for b, i in ((alone, 0), (together, index))]
    assert padding[0] == 0 < padding[1]
    found, expected = (run(qwen, function, soft_prompt(qwen.prompt(), b.user), b) for b in (together, alone))
    for name in names:
        assert 0.9 < expected[name].sum() < 1 + 1e-5, name
        np.testing.assert_allclose(found[name][index], expected[name][0], rtol=1e-4, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("block", [64, 8], ids=["one block", "a loop of blocks"])
def test_attention_over_a_page_is_the_last_rows_of_causal_attention(block: int) -> None:
    rng, page, rows = np.random.default_rng(0), 30, 50
    query, key, value = (jnp.asarray(rng.standard_normal((2, page + rows, n, 8)), jnp.float32) for n in (4, 2, 2))
    valid = jnp.asarray(rng.uniform(size=(2, page + rows)) < 0.7).at[:, 0].set(True)

    def whole(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        return blocked_attention(query, key, value, valid, causal=True, block=page + rows)[:, page:]

    def over_page(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        arrays = (query[:, page:], key[:, page:], value[:, page:], key[:, :page], value[:, :page])
        return attend_over_page(*arrays, valid, block=block)

    weight = jnp.asarray(rng.standard_normal((2, rows, 4, 8)), jnp.float32)
    found, expected = (
        jax.jit(jax.value_and_grad(lambda *x, f=f: (f(*x) * weight).sum(), argnums=(0, 1, 2)))(query, key, value)
        for f in (over_page, whole)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected)


@pytest.mark.parametrize("name", sorted(set(OPERATORS) - SOURCE_ROW))
def test_operators_that_want_the_pages_rows_refuse_keys_alone(qwen: World, name: str) -> None:
    config = replace(qwen.config, operator=replace(qwen.config.operator, name=name))
    batch = batches(qwen.data)[0]
    batch = batch._replace(inputs=batch.inputs._replace(page_keys=jnp.zeros((len(batch.click), 2, 3, 65, 1, 8))))
    with pytest.raises(ConfigError, match=rf"operator.name = '{name}' looks at the page's own rows.*attention, "):
        evaluate_batch(soft_prompt(qwen.prompt(), batch.user), True, None, batch, config, 0)
