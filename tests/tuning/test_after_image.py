"""The soft prompt behind the page: the layout itself, and the page's keys and values computed beforehand."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fixate_jax.backbones import take_branches
from fixate_jax.backbones.decoder import decoder
from fixate_jax.backbones.decoder.after_page import attend_over_page, seen_rows, without_gap
from fixate_jax.backbones.decoder.attention import blocked_attention
from fixate_jax.backbones.processing import EncodedSession
from fixate_jax.lab.parts import operator_of
from fixate_jax.probing.batches import Batch
from fixate_jax.probing.passes import look_for
from fixate_jax.prompts import soft_prompt
from tests.tuning.after_page import SIZES, SOFT, batches, by_tail, in_layout, run, whole, with_keys
from tests.worlds import World


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


def test_the_layout(page_world: World) -> None:
    """Everything up to the token that closes the page, the soft prompt, the rest; the padding in between."""
    data, image = page_world.data, page_world.backbone.config.image_token
    for shapes, batch in zip(data.buckets, batches(data), strict=True):
        for row, index in enumerate(np.asarray(batch.session)):
            encoded, inputs = data.encoded[index], jax.tree.map(lambda x, row=row: np.asarray(x[row]), batch.inputs)
            end = encoded.page_end
            assert encoded.token_ids[end - 2] == image and (encoded.token_ids[end - 1 :] != image).all()
            assert page_world.backbone.encoder.tokenizer.decode(encoded.token_ids[end - 1]) in (
                "<|vision_end|>",
                "</img>",
            )
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


def test_soft_tokens_count_like_words_behind_the_page(page_world: World) -> None:
    difference = soft_tokens_that_are_words(page_world)
    print(f"\nwords as soft tokens and as text: {difference:.1e}")
    assert difference < 1e-5


def test_a_hidden_prompt_leaves_no_gap(page_world: World) -> None:
    difference = hidden_prompt(page_world)
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


def relevance_of(names: Sequence[str], world: World, model: Any, soft: Any, batch: Batch) -> dict[str, jax.Array]:
    """Slot attention for the clicked slot's label by some operators, all rows being computed together."""
    click = batch.click[:, None]
    prefix = model.prefill(take_branches(batch.inputs, click), soft)
    config = replace(world.config.operator, steps=2)
    return {n: look_for(operator_of(replace(config, name=n)), model, prefix, batch, click)[2][:, 0] for n in names}


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
