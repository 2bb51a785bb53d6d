"""AttnLRP through the whole decoder, against relevance sent back by hand; its rules one by one."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fixate_jax.backbones.decoder.decoder_layer import PLAIN
from fixate_jax.lab.config import OperatorConfig
from fixate_jax.probing import Probe, conservation_error
from fixate_jax.probing.operators.input_gradient import Embeddings, embedding_gradient, times_gradient
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


def test_company_order_and_padding_change_nothing(subject: Subject) -> None:
    check_company_and_order(subject, {"lrp": CONFIG})


def test_logits_and_their_gradient_are_the_plain_models(subjects: Callable[[str], Subject]) -> None:
    """Next-token prediction sees nothing of the rules; with them in its own forward pass it would."""
    subject = subjects(QWEN)
    asked, backbone = subject.asked, subject.backbone

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
        trace = trace_of(subject.backbone, params, prompt, asked)
        at = Embeddings.of(trace)
        logits, gradient = embedding_gradient(trace, at, HeldAttention())
        probe = Probe(logits, times_gradient(at, gradient))
        return conservation_error(probe, trace), trace.target(logits)

    error, score = jax.device_get(jax.jit(run)(subject.backbone.params, subject.prompts[0], subject.asked))
    whole = subject.defined({"lrp": CONFIG}, 0)["lrp"].relevance.sum(-1)
    lost = np.abs(whole - score) / np.abs(score)
    print(f"\nΣ R − ℓ: {np.abs(error).max():.1e} of |ℓ| with attention held, {lost.max():.1e} without")
    assert np.abs(error).max() < 1e-3
    assert lost.max() > 1e-2


def random_norm(scale: Any, kind: Any) -> nnx.RMSNorm:
    norm = nnx.RMSNorm(16, dtype=kind, param_dtype=kind, rngs=nnx.Rngs(0))
    norm.scale = nnx.Param(scale.astype(kind))
    return norm


def draw(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize("kind", [jnp.float32, jnp.bfloat16])
def test_rules_change_no_value(kind: Any) -> None:
    @jax.jit
    def run(x: jax.Array, y: jax.Array, scale: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
        x, y, norm = x.astype(kind), y.astype(kind), random_norm(scale, kind)
        return [
            (RULES.norm(norm, x), PLAIN.norm(norm, x)),
            (RULES.gated(x, y), PLAIN.gated(x, y)),
            *((getattr(RULES, part)(x), x) for part in ("query", "key", "value")),
        ]

    for ours, theirs in jax.device_get(run(*draw((3, 5, 16), (3, 5, 16), (16,)))):
        assert ours.dtype == theirs.dtype == kind
        np.testing.assert_array_equal(np.asarray(ours, np.float32), np.asarray(theirs, np.float32))


def test_every_piece_conserves_relevance() -> None:
    """A norm and a gated activation hand on what they get; queries, keys and values get 1/4, 1/4 and 1/2."""

    @jax.jit
    def run(x: jax.Array, y: jax.Array, c: jax.Array, scale: jax.Array) -> dict[str, Any]:
        norm, found = random_norm(scale, jnp.float32), {}
        for name, piece, inputs in (
            ("norm", lambda x: RULES.norm(norm, x), (x,)),
            ("gated", RULES.gated, (x, y)),
            *((part, getattr(RULES, part), (x,)) for part in ("query", "key", "value")),
        ):
            out, pullback = jax.vjp(piece, *inputs)
            found[name] = out, pullback(c)
        return found

    x, y, c, scale = draw((3, 5, 16), (3, 5, 16), (3, 5, 16), (16,))
    found = jax.device_get(run(x, y, c, scale))
    out, (gradient,) = found["norm"]
    np.testing.assert_allclose(x * gradient, out * c, rtol=1e-5)
    out, gradients = found["gated"]
    for factor, gradient in zip((x, y), gradients, strict=True):
        np.testing.assert_allclose(factor * gradient, 0.5 * out * c, rtol=1e-5, atol=1e-7)
    for part, share in (("query", 0.25), ("key", 0.25), ("value", 0.5)):
        np.testing.assert_allclose(found[part][1][0], share * c, rtol=1e-6)
