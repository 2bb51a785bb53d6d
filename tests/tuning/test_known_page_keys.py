"""The page's keys and values computed beforehand: the same step, the same evaluation, and who refuses them."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fixate_jax.errors import ConfigError
from fixate_jax.evaluation.forward import evaluate_batch
from fixate_jax.lab.config import OperatorConfig
from fixate_jax.lab.parts import OPERATORS, objective_of, operator_of
from fixate_jax.probing import passes, reads_source_row
from fixate_jax.probing.batches import Batch
from fixate_jax.prompts import soft_prompt
from fixate_jax.tuning.step import loss_and_gradient
from tests.probing.both_ways import relative
from tests.tuning.after_page import batches, run, with_keys
from tests.worlds import World

SOURCE_ROW = {name for name in OPERATORS if reads_source_row(operator_of(OperatorConfig(name=name)))}
OBJECTIVES = {
    "attn_lrp, own answer": ("attn_lrp", "own"),
    "attention": ("attention", "click"),
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
        found[name] = loss_and_gradient(
            world.prompt(), model, micro, objective_of(config), jnp.float32(0.5), end_token=end
        )
    return found


def test_keys_known_beforehand_give_the_same_step(page_world: World) -> None:
    """Loss and gradient: all rows computed together, which is the reference, and over the page's keys."""
    # attention_gradient takes the rows and gradients that attn_lrp takes, by the same function.
    assert {operator for operator, _ in OBJECTIVES.values()} == SOURCE_ROW - {"attention_gradient"}
    # One architecture takes all operators, the other the hardest.
    chosen = list(OBJECTIVES)[: len(OBJECTIVES) if page_world.data.buckets[0].tail == 1 else 1]
    batch = batches(page_world.data)[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "reads_source_row", lambda _: False)
        reference = run(page_world, partial(steps, page_world, chosen), batch)
    ours = run(page_world, partial(steps, page_world, chosen), with_keys(page_world, batch))
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


def test_keys_known_beforehand_give_the_same_evaluation(page_world: World) -> None:
    """All branches, with and without prompt, by one compiled program a bucket."""
    end, merge = page_world.backbone.encoder.end_token, page_world.backbone.merge
    operator = operator_of(page_world.config.operator)

    def jitted() -> Any:
        return jax.jit(lambda p, soft, use, batch: evaluate_batch(soft, use, merge(p), batch, operator, end))

    ours, reference = jitted(), jitted()
    for batch in batches(page_world.data):
        soft, found = soft_prompt(page_world.prompt(), batch.user), {}
        cached = with_keys(page_world, batch)
        for use in (True, False):
            found[use] = jax.device_get(ours(page_world.backbone.params, soft, jnp.asarray(use), cached))
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(passes, "reads_source_row", lambda _: False)
                expected = jax.device_get(reference(page_world.backbone.params, soft, jnp.asarray(use), batch))
            for field, value in expected._asdict().items():
                np.testing.assert_allclose(getattr(found[use], field), value, rtol=1e-5, atol=1e-5, err_msg=field)
        assert np.abs(found[True].teacher_forced - found[False].teacher_forced).max() > 1e-3
    assert ours._cache_size() == len(page_world.data.buckets)


@pytest.mark.parametrize("name", sorted(set(OPERATORS) - SOURCE_ROW))
def test_operators_that_want_the_pages_rows_refuse_keys_alone(qwen: World, name: str) -> None:
    operator = operator_of(replace(qwen.config.operator, name=name))
    batch = batches(qwen.data)[0]
    batch = batch._replace(inputs=batch.inputs._replace(page_keys=jnp.zeros((len(batch.click), 2, 3, 65, 1, 8))))
    with pytest.raises(ConfigError, match=rf"operator {name}\(.*looks at the page's own rows.*attention, "):
        evaluate_batch(soft_prompt(qwen.prompt(), batch.user), True, None, batch, operator, 0)
