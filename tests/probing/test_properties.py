"""What holds for every operator: signs, sums, and what must not matter (padding, company, order, type of weights)."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jaxtyping import Array

from fixate_jax.backbones import Backbone, take_branches
from fixate_jax.backbones.tiny_random import write_tiny_random
from fixate_jax.backbones.tiny_sizes import TinySizes
from fixate_jax.config import BackboneConfig, OperatorConfig, PromptConfig, RunConfig
from fixate_jax.probing import OPERATORS, Trace, assign_slots, gather_visual, get_operator, slot_attention
from fixate_jax.prompts import PromptParams, soft_prompt
from fixate_jax.tuning.batches import Batch
from fixate_jax.tuning.step import target_logit
from tests.worlds import World, letters, numbers

SESSIONS = ((3, 320, 192), (12, 192, 160), (4, 256, 256), (6, 128, 192))
EPS = 1e-4
MORE = 24
"""Positions of padding added."""
SAME = 2e-5
"""How far two orders of summation may lie apart in float32."""
BFLOAT16 = 0.06
"""Most that slot attention moves where bfloat16 takes the place of float32, on a backbone that is shipped."""
Found = dict[str, Array]


def look(prompt: PromptParams, params: Any, batch: Batch, backbone: Backbone) -> Found:
    """Slot attention of every operator for the clicked slots."""
    rows = jnp.arange(len(batch.click))
    ids, mask = batch.answer_ids[rows, batch.click][:, None], batch.answer_mask[rows, batch.click][:, None]
    inputs = take_branches(batch.inputs, batch.click[:, None])
    model = backbone.merge(params)
    trace = Trace(model, model.prefill(inputs, soft_prompt(prompt, batch.user)), target_logit(ids, mask))
    found = {}
    for name in OPERATORS:
        relevance = get_operator(name)(trace, OperatorConfig(name=name, normalise="abs", steps=2)).relevance
        tokens = gather_visual(relevance, inputs.visual_position, trace.prefix.start.moved)
        found[name] = slot_attention(tokens, batch.slot_matrix, EPS)[:, 0]
    return found


def padded(batch: Batch) -> Batch:
    """The same sequences with more padding in front."""
    inputs = batch.inputs

    def pad(x: Array, value: int = 0) -> Array:
        return jnp.pad(x, [(0, 0), (MORE, 0), *[(0, 0)] * (x.ndim - 2)], constant_values=value)

    return batch._replace(
        inputs=inputs._replace(
            token_ids=pad(inputs.token_ids),
            positions=pad(inputs.positions),
            visual_index=pad(inputs.visual_index, -1),
            start=inputs.start + MORE,
            visual_position=inputs.visual_position + MORE,
        )
    )


class Looking:
    """A backbone, its sessions, and what every operator makes of them."""

    def __init__(self, world: World):
        self.world, self.prompt = world, world.prompt()
        self.look = jax.jit(lambda prompt, params, batch: look(prompt, params, batch, world.backbone))
        self.reference = self(range(len(SESSIONS)))

    def __call__(self, chosen: Sequence[int], *, more_padding: bool = False) -> Found:
        batch = self.world.batch(chosen)
        batch = padded(batch) if more_padding else batch
        return jax.device_get(self.look(self.prompt, self.world.backbone.params, batch))


@pytest.fixture(scope="module", params=["qwen3_vl", "internvl"])
def looking(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Looking:
    folder = tmp_path_factory.mktemp("properties")
    sizes = TinySizes(family=request.param, layers=2)
    model = write_tiny_random(folder / "model", sizes=sizes)
    config = RunConfig(
        backbone=BackboneConfig(path=str(model), attention_block=96), prompt=PromptConfig(basis=3, tokens=4)
    )
    labels = letters if request.param == "qwen3_vl" else numbers
    return Looking(World(folder, sizes=SESSIONS, labels=labels, config=config))


@settings(max_examples=8, deadline=None)
@given(
    chosen=st.lists(st.integers(0, len(SESSIONS) - 1), min_size=len(SESSIONS), max_size=len(SESSIONS)),
    more_padding=st.booleans(),
)
def test_company_order_and_padding_change_nothing(looking: Looking, chosen: list[int], more_padding: bool) -> None:
    found = looking(chosen, more_padding=more_padding)
    for name, attention in found.items():
        np.testing.assert_allclose(attention, looking.reference[name][chosen], atol=SAME, err_msg=name)


def test_attention_is_a_share_of_the_slots(looking: Looking) -> None:
    """Not negative, and below 1 in sum by what ε takes away; pages and operators differ."""
    for name, attention in looking.reference.items():
        assert (attention >= 0).all() and (attention.sum(-1) <= 1 + 1e-6).all(), name
        assert (attention.sum(-1) > 0.05).all(), name
    stacked = np.stack(list(looking.reference.values()))
    apart = np.abs(stacked[:, None] - stacked[None]).max((2, 3))
    assert (apart[~np.eye(len(stacked), dtype=bool)] > 1e-4).all()


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
    relevance = jnp.asarray(np.random.default_rng(0).random((1, 1, rows * columns), np.float32))

    def attention(boxes: np.ndarray) -> np.ndarray:
        return np.asarray(slot_attention(relevance, jnp.asarray(assign_slots(boxes, rows, columns))[None], EPS))

    np.testing.assert_allclose(attention(boxes[list(order)]), attention(boxes)[..., list(order)], atol=1e-7)


@pytest.mark.parametrize("name", ["tiny-qwen3-vl"])
def test_bfloat16_moves_attention_little(name: str, tmp_path: Any) -> None:
    """The same weights (they are shipped in bfloat16), the activations rounded or not."""
    found = {}
    for dtype in ("float32", "bfloat16"):
        config = RunConfig(
            backbone=BackboneConfig(path=name, dtype=dtype, tapped_layers=2), prompt=PromptConfig(basis=3, tokens=4)
        )
        found[dtype] = Looking(World(tmp_path / dtype, sizes=SESSIONS, config=config)).reference
    for operator, attention in found["float32"].items():
        difference = np.abs(found["bfloat16"][operator] - attention).max()
        print(f"\n{operator}: {difference:.4f} of up to {attention.max():.3f}", end="")
        assert 0 < difference <= BFLOAT16, operator
