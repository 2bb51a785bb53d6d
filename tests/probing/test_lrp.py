"""AttnLRP through the whole decoder, against relevance sent back by hand; its rules one by one."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fixate_jax.backbones.decoder_layer import PLAIN
from fixate_jax.config import OperatorConfig
from fixate_jax.probing import Probe, conservation_error
from fixate_jax.probing.input_gradient import Embeddings, embedding_gradient, input_gradient, times_gradient
from fixate_jax.probing.lrp import lrp
from fixate_jax.probing.rules import LrpRules
from tests.probing.embeddings import answers, check_against_definition, relative, trace_of
from tests.probing.whole_model import CASES, QWEN, small_world
from tests.worlds import World

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


@pytest.fixture(scope="module", params=CASES)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    return small_world(tmp_path_factory.mktemp("world"), request.param)


def test_values_and_gradients_equal_the_definition(world: World) -> None:
    check_against_definition(world, CONFIG)


@pytest.mark.parametrize("world", [QWEN], indirect=True)
def test_logits_and_their_gradient_are_the_plain_models(world: World) -> None:
    """Next-token prediction sees nothing of the rules; with them in its own forward pass it would."""
    batch, params = world.batch(), world.backbone.params
    _, ids, mask = answers(batch)

    def losses(prompt: Any, params: Any) -> tuple[jax.Array, dict[str, Any]]:
        trace = trace_of(world.backbone, params, prompt, batch)
        decoder, start = trace.model.decoder, trace.prefix.start
        probe, plain = lrp(trace, CONFIG), input_gradient(trace, CONFIG)
        ruled = decoder.tail(decoder.tapped(start, decoder.below(start, RULES), RULES), rules=RULES).logits

        def score(logits: jax.Array) -> jax.Array:
            each = jnp.take_along_axis(jax.nn.log_softmax(logits), ids[..., None], axis=-1)[..., 0]
            return jnp.where(mask, each, 0).mean()

        logits = jnp.stack([probe.logits, trace.model.tail(trace.prefix).logits, ruled])
        at = Embeddings.of(trace)
        held = times_gradient(at, embedding_gradient(trace, at, HeldAttention())[1])
        probes = {"lrp": probe, "input_gradient": plain, "attention held": Probe(probe.logits, held)}
        errors = {name: conservation_error(p, trace) for name, p in probes.items()}
        return jax.vmap(score)(logits), {"logits": logits, "errors": errors}

    def run(prompt: Any, params: Any) -> tuple[Any, Any]:
        _, pullback, aux = jax.vjp(lambda p: losses(p, params), prompt, has_aux=True)
        return jax.vmap(pullback)(jnp.eye(3))[0], aux

    gradient, aux = jax.jit(run)(world.prompt(), params)
    for name, error in aux["errors"].items():
        print(f"\n{name}: Σ R − ℓ is {np.asarray(error).ravel().round(3)} of |ℓ|")
    assert np.abs(aux["errors"]["attention held"]).max() < 1e-3, "only a softmax loses relevance"
    ours, plain, ruled = aux["logits"]
    assert relative(ours, plain) < 1e-6 and relative(ruled, plain) < 1e-6
    for name in ("basis", "coefficients"):
        ours, plain, ruled = getattr(gradient, name)
        print(f"gradient in {name}: {relative(ours, plain):.1e} off, {relative(ruled, plain):.1e} with rules inside")
        assert relative(ours, plain) < 1e-5
        assert relative(ruled, plain) > 0.05


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
