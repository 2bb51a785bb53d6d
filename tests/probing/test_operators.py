"""The fast path against the definitions on whole matrices: values and gradients."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fixate_jax.backbones import Backbone, qwen3_vl, take_branches
from fixate_jax.config import BackboneConfig, ObjectiveConfig, OperatorConfig, PromptConfig, RunConfig
from fixate_jax.objective import alignment_loss, coefficient_penalty, next_token_loss
from fixate_jax.probing import Trace, gather_visual, get_operator, slot_attention
from fixate_jax.prompts import PromptParams, soft_prompt
from fixate_jax.tuning.batches import Batch
from fixate_jax.tuning.step import session_losses, target_logit
from tests.probing import whole_matrix
from tests.worlds import World, letters, numbers

WORLDS = {
    "letters, 2 of 4 layers": (2, letters, ((3, 320, 192), (25, 192, 160), (4, 320, 192), (9, 256, 256))),
    "numbers (one and two tokens), all layers": (9, numbers, ((12, 320, 192), (3, 192, 160), (11, 256, 160))),
}
OPERATORS = {
    "attention": OperatorConfig(name="attention"),
    "attn_lrp signed": OperatorConfig(name="attn_lrp", normalise="signed"),
    "attn_lrp abs": OperatorConfig(name="attn_lrp", normalise="abs", grad_scale=1.0),
}
SEEDS = (0, 1, 2)
OBJECTIVE = ObjectiveConfig(alignment="weighted_kl", attention_weight=0.5, warmup=0, beta=0.01)


def relative(ours: Any, theirs: Any) -> float:
    """‖ours − theirs‖ / ‖theirs‖."""
    ours, theirs = (np.asarray(x, np.float64) for x in (ours, theirs))
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


@pytest.fixture(scope="module", params=WORLDS)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    layers, labels, sizes = WORLDS[request.param]
    config = RunConfig(
        backbone=BackboneConfig(tapped_layers=layers, attention_block=48), prompt=PromptConfig(basis=3, tokens=5)
    )
    return World(tmp_path_factory.mktemp("world"), sizes=sizes, labels=labels, config=config, seed=layers)


def definition(
    world: World, backbone: Backbone, params: Any, prompt: PromptParams, batch: Batch, config: OperatorConfig
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Loss, token relevance and slot attention for the true answer, by whole matrices."""
    rows = jnp.arange(len(batch.click))
    ids, mask = batch.answer_ids[rows, batch.click], batch.answer_mask[rows, batch.click]
    inputs = take_branches(batch.inputs, batch.click[:, None])
    logits, matrices, gradients = whole_matrix.tapped_matrices(
        backbone, params, inputs, soft_prompt(prompt, batch.user), ids, mask
    )
    if config.name == "attention":
        relevance = whole_matrix.attention(matrices, gradients)
    else:
        relevance = whole_matrix.attn_lrp(
            matrices, gradients, how=config.normalise, scale=config.grad_scale, eps=config.eps
        )
    tokens = jnp.abs(jnp.take_along_axis(relevance[:, -1], inputs.visual_position, axis=-1))
    mass = jnp.einsum("bnv,bv->bn", batch.slot_matrix, tokens)
    attention = mass / (mass.sum(-1, keepdims=True) + config.eps)
    loss = (
        0.5 * next_token_loss(logits, ids, mask, batch.weight)
        + 0.5 * alignment_loss(OBJECTIVE, batch.gaze, attention, batch.slot_mask, batch.weight)
        + 0.01 * coefficient_penalty(prompt.coefficients[batch.user], batch.weight)
    )
    return loss, {"tokens": tokens * (batch.slot_matrix.sum(1) > 0), "slots": attention}


def fast(
    world: World, backbone: Backbone, params: Any, prompt: PromptParams, batch: Batch, config: OperatorConfig
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The same through prefill and tail."""
    model = backbone.merge(params)
    rows = jnp.arange(len(batch.click))
    ids, mask = batch.answer_ids[rows, batch.click][:, None], batch.answer_mask[rows, batch.click][:, None]
    inputs = take_branches(batch.inputs, batch.click[:, None])
    prefix = model.prefill(inputs, soft_prompt(prompt, batch.user))
    probe = get_operator(config.name)(Trace(model, prefix, target_logit(ids, mask)), config)
    tokens = gather_visual(probe.relevance, inputs.visual_position)
    attention = slot_attention(tokens, batch.slot_matrix, config.eps)[:, 0]
    settings = replace(world.config, operator=config, objective=OBJECTIVE)
    loss, _ = session_losses(prompt, model, batch, settings, jnp.float32(0.5))
    return loss, {"tokens": tokens[:, 0] * (batch.slot_matrix.sum(1) > 0), "slots": attention}


def derived(function: Any, world: World, backbone: Backbone, config: OperatorConfig) -> Any:
    """Loss, values and gradient in B and z, jitted."""
    return jax.jit(
        jax.value_and_grad(
            lambda prompt, params, batch: function(world, backbone, params, prompt, batch, config), has_aux=True
        )
    )


def doubled(tree: Any) -> Any:
    """The same numbers in float64."""
    return jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, tree)


def in_double(world: World) -> Backbone:
    """The backbone's structure with float64 activations (call it where float64 is switched on)."""
    config = world.backbone.config
    config = replace(
        config,
        decoder=replace(config.decoder, dtype=jnp.float64),
        vision=replace(config.vision, dtype=jnp.float64),
    )
    graph, _ = nnx.split(nnx.eval_shape(lambda: qwen3_vl.build(config, nnx.Rngs(0))))
    return replace(world.backbone, graph=graph, config=config)


def differences(ours: Any, theirs: Any) -> dict[str, float]:
    (loss, values), gradient = ours
    (true_loss, true_values), true_gradient = theirs
    return {
        "loss": relative(loss, true_loss),
        "tokens": relative(values["tokens"], true_values["tokens"]),
        "slots": relative(values["slots"], true_values["slots"]),
        "gradient in B": relative(gradient.basis, true_gradient.basis),
        "gradient in z": relative(gradient.coefficients, true_gradient.coefficients),
    }


@pytest.mark.parametrize("name", OPERATORS)
def test_values_and_gradients_equal_the_definition(world: World, name: str) -> None:
    """In float64 to 1e-6 whatever the seed; in float32 to 1e-4, or as close to the truth as the definition gets.

    The signed normalisation divides by sums that can be next to nothing. Where it does, the definition computed in
    float32 misses its own float64 gradient by more than 1e-4; three times that miss is then the limit.
    """
    config, batch, params = OPERATORS[name], world.batch(), world.backbone.params
    prompts = [world.prompt(seed) for seed in SEEDS]
    in_float32 = {}
    for function in (fast, definition):
        single = derived(function, world, world.backbone, config)
        in_float32[function] = [single(prompt, params, batch) for prompt in prompts]
    with jax.enable_x64(True):
        backbone = in_double(world)
        double, truth = (derived(f, world, backbone, config) for f in (fast, definition))
        batch, params = doubled(batch), doubled(params)
        for i, seed in enumerate(SEEDS):
            prompt = doubled(prompts[i])
            theirs = truth(prompt, params, batch)
            exact = differences(double(prompt, params, batch), theirs)
            rounded, own = (differences(in_float32[f][i], theirs) for f in (fast, definition))
            print(f"\n{name}, seed {seed:<12d} float64  float32  definition in float32")
            for figure in exact:
                print(f"  {figure:24s} {exact[figure]:.0e}    {rounded[figure]:.0e}    {own[figure]:.0e}")
                assert exact[figure] <= 1e-6, figure
                assert rounded[figure] <= max(1e-4, 3 * own[figure]), figure
