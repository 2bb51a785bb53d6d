"""AttnLRP through the whole decoder, against relevance sent back by hand; its rules one by one."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from fixate_jax.backbones.decoder_layer import PLAIN
from fixate_jax.config import OperatorConfig
from fixate_jax.probing import Probe, conservation_error
from fixate_jax.probing.input_gradient import Embeddings, embedding_gradient, times_gradient
from fixate_jax.probing.rules import LrpRules
from fixate_jax.prompts import PromptParams
from tests.probing.both_ways import (
    QWEN,
    Asked,
    Subject,
    check_against_definition,
    check_company_and_order,
    relative,
    trace_of,
)

CONFIG = OperatorConfig(name="lrp")
RULES = LrpRules()


class HeldAttention(LrpRules):
    """Attention taken for constant weights: all relevance goes through the values."""

    def query(self, query: jax.Array) -> jax.Array:
        return jax.lax.stop_gradient(query)

    def key(self, key: jax.Array) -> jax.Array:
        return jax.lax.stop_gradient(key)

    def value(self, value: jax.Array) -> jax.Array:
        return value


def test_values_and_gradients_equal_the_definition(subject: Subject) -> None:
    check_against_definition(subject, {"lrp": CONFIG})


@settings(max_examples=4, deadline=None)
@given(data=st.data())
def test_company_order_and_padding_change_nothing(subject: Subject, data: st.DataObject) -> None:
    size = len(subject.world.sessions)
    rows = data.draw(st.lists(st.integers(0, size - 1), min_size=size, max_size=size))
    check_company_and_order(subject, {"lrp": CONFIG}, rows)


def test_logits_and_their_gradient_are_the_plain_models(subjects: Callable[[str], Subject]) -> None:
    """Next-token prediction sees nothing of the rules; with them in its own forward pass it would."""
    subject = subjects(QWEN)
    asked, backbone = subject.asked, subject.whole

    def score(prompt: PromptParams, params: Any, asked: Asked) -> tuple[jax.Array, jax.Array]:
        trace = trace_of(backbone, params, prompt, asked)
        decoder, start = trace.model.decoder, trace.prefix.start
        ruled = decoder.tail(decoder.tapped(start, decoder.below(start, RULES), RULES), rules=RULES).logits
        each = jnp.take_along_axis(jax.nn.log_softmax(ruled), asked.ids[..., None], axis=-1)[..., 0]
        return -jnp.where(asked.mask, each, 0).sum(), ruled

    ruled, logits = jax.device_get(jax.jit(jax.grad(score, has_aux=True))(subject.prompts[0], backbone.params, asked))
    ours = subject.run({"lrp": CONFIG}, subject.prompts[0])["lrp"]
    plain = subject.defined({"lrp": CONFIG}, 0)["lrp"]
    assert relative(ours.logits[asked.mask], plain.logits[asked.mask]) < 1e-5
    assert relative(logits[asked.mask], plain.logits[asked.mask]) < 1e-5
    for name in ("basis", "coefficients"):
        mine, true = (getattr(found.gradient, name)[1] for found in (ours, plain))
        with_rules = getattr(ruled, name)
        print(f"gradient in {name}: {relative(mine, true):.1e} off, {relative(with_rules, true):.1e} with rules inside")
        assert relative(mine, true) < 1e-5
        assert relative(with_rules, true) > 0.05


def test_only_a_softmax_loses_relevance(subjects: Callable[[str], Subject]) -> None:
    """With attention taken for constant weights the sum over all positions is ℓ."""
    subject = subjects(QWEN)

    def run(params: Any, prompt: PromptParams, asked: Asked) -> tuple[jax.Array, jax.Array]:
        trace = trace_of(subject.whole, params, prompt, asked)
        at = Embeddings.of(trace)
        logits, gradient = embedding_gradient(trace, at, HeldAttention())
        probe = Probe(logits, times_gradient(at, gradient))
        return conservation_error(probe, trace), trace.target(logits)

    error, score = jax.device_get(jax.jit(run)(subject.whole.params, subject.prompts[0], subject.asked))
    whole = subject.defined({"lrp": CONFIG}, 0)["lrp"].relevance.sum(-1)
    lost = np.abs(whole - score) / np.abs(score)
    print(f"\nΣ R − ℓ: {np.abs(error).max():.1e} of |ℓ| with attention held, {lost.max():.1e} without")
    assert np.abs(error).max() < 1e-3
    assert lost.max() > 1e-2


def random_norm(key: jax.Array, kind: Any) -> nnx.RMSNorm:
    norm = nnx.RMSNorm(16, dtype=kind, param_dtype=kind, rngs=nnx.Rngs(0))
    norm.scale = nnx.Param(jax.random.normal(key, (16,)).astype(kind))
    return norm


@pytest.mark.parametrize("kind", [jnp.float32, jnp.bfloat16])
def test_rules_change_no_value(kind: Any) -> None:
    keys = jax.random.split(jax.random.key(0), 4)
    x, y = (jax.random.normal(key, (3, 5, 16)).astype(kind) for key in keys[:2])
    norm = random_norm(keys[2], kind)
    pairs = [
        (RULES.norm(norm, x), PLAIN.norm(norm, x)),
        (RULES.gated(x, y), PLAIN.gated(x, y)),
        *((getattr(RULES, part)(x), x) for part in ("query", "key", "value")),
    ]
    for ours, theirs in pairs:
        assert ours.dtype == theirs.dtype == kind
        np.testing.assert_array_equal(np.asarray(ours, np.float32), np.asarray(theirs, np.float32))


def test_every_piece_conserves_relevance() -> None:
    """A norm and a gated activation hand on what they get; queries, keys and values get 1/4, 1/4 and 1/2."""
    keys = jax.random.split(jax.random.key(0), 4)
    x, y, c = (jax.random.normal(key, (3, 5, 16)) for key in keys[:3])
    norm = random_norm(keys[3], jnp.float32)
    out, pullback = jax.vjp(lambda x: RULES.norm(norm, x), x)
    np.testing.assert_allclose(x * pullback(c)[0], out * c, rtol=1e-5)
    out, pullback = jax.vjp(RULES.gated, x, y)
    for factor, gradient in zip((x, y), pullback(c), strict=True):
        np.testing.assert_allclose(factor * gradient, 0.5 * out * c, rtol=1e-5, atol=1e-7)
    for part, share in (("query", 0.25), ("key", 0.25), ("value", 0.5)):
        np.testing.assert_allclose(jax.vjp(getattr(RULES, part), x)[1](c)[0], share * c, rtol=1e-6)
