"""What holds for every operator and every page: signs, sums, the order of slots, and the type of the weights."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.lab.config import OperatorConfig, PromptConfig, RunConfig
from fixate_jax.lab.parts import OPERATORS, operator_of
from fixate_jax.probing import assign_slots, gather_visual, slot_attention
from fixate_jax.prompts import PromptParams
from tests.probing.both_ways import Asked, host_prompt, one_tail_gradient, trace_of
from tests.worlds import World

SESSIONS = ((3, 320, 192), (12, 192, 320))
CONFIGS = {name: OperatorConfig(name=name, normalise="abs", steps=2) for name in OPERATORS}
EPS = 1e-4
BFLOAT16 = 0.06
"""Most that slot attention moves where bfloat16 takes the place of float32, on a backbone that is shipped."""


class Shipped(NamedTuple):
    """What every operator makes of sessions, by a shipped backbone in bfloat16.

    Attributes:
        world: the backbone and its sessions.
        asked, prompt: what it was run on.
        slots: slot attention by operator.
    """

    world: World
    asked: Asked
    prompt: PromptParams
    slots: dict[str, np.ndarray]


@pytest.fixture(scope="module", params=["tiny-qwen3-vl"])
def shipped(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Shipped:
    backbone = BackboneConfig(path=request.param, dtype="bfloat16", tapped_layers=2, attention="blocked", remat="none")
    config = RunConfig(backbone=backbone, prompt=PromptConfig(basis=3, tokens=4))
    world = World(tmp_path_factory.mktemp("shipped"), sizes=SESSIONS, config=config)
    asked = Asked.of(jax.tree.map(np.asarray, world.data.batch(range(len(SESSIONS)))))
    prompt = host_prompt(world, 0)

    def look(prompt: PromptParams, params: Any, asked: Asked) -> dict[str, jax.Array]:
        trace, found = trace_of(world.backbone, params, prompt, asked), {}
        with one_tail_gradient():
            probes = {name: operator_of(config)(trace) for name, config in CONFIGS.items()}
        for name, probe in probes.items():
            tokens = gather_visual(probe.relevance, asked.batch.inputs.visual_position, trace.prefix.start.moved)
            found[name] = slot_attention(tokens, asked.batch.slot_matrix, EPS)
        return found

    return Shipped(world, asked, prompt, jax.device_get(jax.jit(look)(prompt, world.backbone.params, asked)))


def test_attention_is_a_share_of_the_slots(shipped: Shipped) -> None:
    """Not negative, and below 1 in sum by what ε takes away; pages and operators differ."""
    for name, attention in shipped.slots.items():
        assert (attention >= 0).all() and (attention.sum(-1) <= 1 + 1e-6).all(), name
        assert (attention.sum(-1) > 0.05).all(), name
    stacked = np.stack(list(shipped.slots.values()))
    apart = np.abs(stacked[:, None] - stacked[None]).max((2, 3, 4))
    assert (apart[~np.eye(len(stacked), dtype=bool)] > 1e-4).all()


def test_bfloat16_moves_attention_little(shipped: Shipped) -> None:
    """The same weights (they are shipped in bfloat16), the activations rounded or not."""
    pytest.importorskip("torch")
    from tests.probing.definition import by_definition
    from tests.probing.whole_model import WholeModel, exactly
    from tests.probing.whole_tower import tower_of

    world, inputs = shipped.world, shipped.asked.batch.inputs
    tower, features = tower_of(world.backbone), np.zeros(inputs.features.shape)
    for row, session in enumerate(world.sessions):
        page = world.backbone.page_processor(world.images[session.page_id]).inputs
        found = tower(exactly(page[0][0]), page).numpy()
        features[row, : len(found)] = found
    asked = shipped.asked._replace(batch=shipped.asked.batch._replace(inputs=inputs._replace(features=features)))
    exact = by_definition(WholeModel(world.backbone), CONFIGS, asked, shipped.prompt)
    for operator, attention in shipped.slots.items():
        difference = np.abs(exact[operator].slots - attention).max()
        print(f"\n{operator}: {difference:.4f} of up to {attention.max():.3f}", end="")
        assert 0 < difference <= BFLOAT16, operator


shares = hnp.arrays(np.float32, (2, 1, 12), elements=st.floats(0, 1e3, width=32))


@settings(max_examples=50, deadline=None)
@given(relevance=shares, owner=hnp.arrays(np.int64, (2, 12), elements=st.integers(-1, 4)))
def test_slot_attention_sums_to_what_epsilon_leaves(relevance: np.ndarray, owner: np.ndarray) -> None:
    matrix = (owner[:, None, :] == np.arange(5)[:, None]).astype(np.float32)
    attention = np.asarray(slot_attention(jnp.asarray(relevance), jnp.asarray(matrix), EPS))
    total = np.where(owner[:, None] >= 0, relevance, 0).sum(-1, dtype=np.float64)
    assert (attention >= 0).all()
    np.testing.assert_allclose(attention.sum(-1), total / (total + EPS), rtol=1e-5, atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_slots_that_do_not_overlap_may_come_in_any_order(data: st.DataObject) -> None:
    across, down = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 4))
    inner = st.floats(0.05, 0.45)
    corners = np.array([(x / across, y / down) for y in range(down) for x in range(across)])
    margins = np.array([[data.draw(inner) for _ in range(4)] for _ in corners])
    cell = np.array([1 / across, 1 / down])
    boxes = np.concatenate([corners + margins[:, :2] * cell, corners + cell - margins[:, 2:] * cell], axis=1)
    order = data.draw(st.permutations(range(len(boxes))))
    rows, columns = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 12))
    relevance = np.random.default_rng(0).random((1, 1, 144), np.float32)

    def attention(boxes: np.ndarray) -> np.ndarray:
        # Of one size always, so that there is one program.
        matrix = np.zeros((1, 20, 144), np.float32)
        matrix[0, : len(boxes), : rows * columns] = assign_slots(boxes, rows, columns)
        return np.asarray(slot_attention(jnp.asarray(relevance), jnp.asarray(matrix), EPS))[..., : len(boxes)]

    np.testing.assert_allclose(attention(boxes[list(order)]), attention(boxes)[..., list(order)], atol=1e-7)
