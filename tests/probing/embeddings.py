"""What the tests of operators that end at the embeddings share: both ways to the same numbers, and their distance."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fixate_jax.backbones import Backbone, take_branches
from fixate_jax.config import OperatorConfig
from fixate_jax.probing import OPERATORS, Trace, slot_attention
from fixate_jax.prompts import PromptParams, soft_prompt
from fixate_jax.tuning.batches import Batch
from fixate_jax.tuning.step import target_logit
from tests.probing import whole_model
from tests.worlds import World

Loss = Callable[[PromptParams, Any, Batch], tuple[jax.Array, tuple[jax.Array, jax.Array]]]


def chosen_slots(batch: Batch) -> jax.Array:
    """Two answers to each page: the clicked slot's label and its neighbour's."""
    return jnp.stack([batch.click, (batch.click + 1) % batch.slot_mask.sum(1)], axis=1)


def answers(batch: Batch) -> tuple[Any, jax.Array, jax.Array]:
    """Sequences, label tokens and their mask of the chosen slots."""
    slots = chosen_slots(batch)
    pick = jax.vmap(lambda x, s: x[s])
    return take_branches(batch.inputs, slots), pick(batch.answer_ids, slots), pick(batch.answer_mask, slots)


def loss_of(relevance: jax.Array, logits: jax.Array, ids: jax.Array, mask: jax.Array, batch: Batch) -> jax.Array:
    """Something that depends on the slots' share of relevance and on the answers' probability, for all branches."""
    position = batch.inputs.visual_position[:, None]
    position = jnp.broadcast_to(position, (*relevance.shape[:2], position.shape[2]))
    tokens = jnp.abs(jnp.take_along_axis(relevance, position, axis=-1))
    share = slot_attention(tokens, batch.slot_matrix, 1e-4)
    each = jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), ids[..., None], axis=-1)[..., 0]
    return jnp.square(share - batch.gaze[:, None]).sum() - 0.1 * jnp.where(mask, each, 0).mean()


def in_host_order(relevance: jax.Array, moved: jax.Array | None, seq: int) -> jax.Array:
    """Relevance with the prefix's padding in front, as the batch was put together."""
    if moved is None:
        return relevance
    places = (jnp.arange(seq) - moved[:, None]) % seq
    prefix = jax.vmap(lambda r, p: r[:, p])(relevance[..., :seq], places)
    return jnp.concatenate([prefix, relevance[..., seq:]], axis=-1)


def trace_of(backbone: Backbone, params: Any, prompt: PromptParams, batch: Batch) -> Trace:
    """The stopped model on the chosen answers."""
    model = backbone.merge(params)
    inputs, ids, mask = answers(batch)
    prefix = model.prefill(inputs, soft_prompt(prompt, batch.user))
    if inputs.tail_ids.shape[1] < ids.shape[1]:
        # Labels of one token share their tail.
        prefix = prefix.take_branches(jnp.zeros(ids.shape[:2], int))
    return Trace(model, prefix, target_logit(ids, mask))


def fast(backbone: Backbone, config: OperatorConfig) -> Loss:
    """Loss, then relevance of all positions and logits, by the operator."""

    def run(prompt: PromptParams, params: Any, batch: Batch) -> Any:
        trace = trace_of(backbone, params, prompt, batch)
        _, ids, mask = answers(batch)
        probe = OPERATORS[config.name](trace, config)
        relevance = in_host_order(probe.relevance, trace.prefix.start.moved, batch.inputs.token_ids.shape[1])
        return loss_of(relevance, probe.logits, ids, mask, batch), (relevance, probe.logits)

    return run


def definition(backbone: Backbone, config: OperatorConfig) -> Loss:
    """The same by whole matrices, each branch on its own."""

    def run(prompt: PromptParams, params: Any, batch: Batch) -> Any:
        inputs, ids, mask = answers(batch)
        last = inputs.tail_ids.shape[1] - 1

        def one(branch: jax.Array, ids: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
            tail = jnp.minimum(branch, last)
            at = whole_model.sequence(backbone, params, inputs, soft_prompt(prompt, batch.user), tail)
            if config.name == "lrp":
                return whole_model.lrp_relevance(backbone, params, at, ids, mask)
            steps = config.steps if config.name == "integrated_gradients" else None
            return whole_model.plain_relevance(backbone, params, at, ids, mask, steps=steps)

        logits, relevance = jax.vmap(one, in_axes=(0, 1, 1), out_axes=1)(jnp.arange(2), ids, mask)
        logits = logits[:, :, -ids.shape[2] :]
        return loss_of(relevance, logits, ids, mask, batch), (relevance, logits)

    return run


def doubled(tree: Any) -> Any:
    """The same numbers in float64."""
    return jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, tree)


def relative(ours: Any, theirs: Any) -> float:
    """‖ours − theirs‖ / ‖theirs‖."""
    ours, theirs = (np.asarray(x, np.float64) for x in (ours, theirs))
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def differences(ours: Any, theirs: Any) -> dict[str, float]:
    """How far two results of ``value_and_grad`` are apart."""
    (loss, (relevance, logits)), gradient = ours
    (true_loss, (true_relevance, true_logits)), true_gradient = theirs
    return {
        "loss": relative(loss, true_loss),
        "relevance": relative(relevance, true_relevance),
        "logits": relative(logits, true_logits),
        "gradient in B": relative(gradient.basis, true_gradient.basis),
        "gradient in z": relative(gradient.coefficients, true_gradient.coefficients),
    }


def slopes(derived: Any, prompt: PromptParams, gradient: PromptParams, step: float = 1e-5) -> tuple[float, float]:
    """How fast the loss changes along some direction: by its gradient, and by a central difference."""
    keys = iter(jax.random.split(jax.random.key(1), 2))
    along = jax.tree.map(lambda x: jax.random.normal(next(keys), x.shape, x.dtype), prompt)
    losses = [
        float(derived(jax.tree.map(lambda x, d, sign=sign: x + sign * step * d, prompt, along))[0][0])
        for sign in (1, -1)
    ]
    slope = sum(float((g * d).sum()) for g, d in zip(gradient, along, strict=True))
    return slope, (losses[0] - losses[1]) / (2 * step)


def check_against_definition(world: World, config: OperatorConfig) -> None:
    """Float64 to 1e-6, against finite differences too; float32 to 1e-5 in values and 1e-4 in the gradient."""
    prompt, batch, params = world.prompt(), world.batch(), world.backbone.params
    assert batch.inputs.start.max() > 0, "some sequence is padded"

    def derived(loss: Loss) -> Any:
        return jax.jit(jax.value_and_grad(loss, has_aux=True))

    rounded = derived(fast(world.backbone, config))(prompt, params, batch)
    with jax.enable_x64(True):
        backbone = whole_model.in_double(world.backbone)
        arguments = doubled(prompt), doubled(params), doubled(batch)
        double = derived(fast(backbone, config))
        ours, theirs = double(*arguments), derived(definition(backbone, config))(*arguments)
        slope, by_steps = slopes(lambda prompt: double(prompt, *arguments[1:]), arguments[0], ours[1])
        exact, near = differences(ours, theirs), differences(rounded, theirs)
        print(f"\n{config.name:24s} float64  float32")
        for figure in exact:
            print(f"  {figure:22s} {exact[figure]:.0e}    {near[figure]:.0e}")
        print(f"  slope {slope:.9f}, by finite differences {by_steps:.9f}")
        assert abs(slope - by_steps) <= 1e-6 * abs(slope)
        for figure in exact:
            assert exact[figure] <= 1e-6, figure
            assert near[figure] <= (1e-4 if "gradient" in figure else 1e-5), figure
        assert all(np.asarray(g).any() for g in jax.tree.leaves(theirs[1]))
