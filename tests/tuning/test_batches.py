"""From sessions to batches: padding, buckets, and an order that can be resumed."""

from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixate_jax.probing import assign_slots
from fixate_jax.probing.batches import (
    SessionData,
    TrainingPlan,
    evaluation_batches,
    length_buckets,
    training_iterator,
)
from tests.worlds import World, numbers

# Eleven sessions on pages of three sizes, with up to 12 slots, so that "1" begins "10".
SIZES = tuple((3 + i % 10, 320 - 64 * (i % 3), 192) for i in range(11))
BUCKETS = 2


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("batches"), sizes=SIZES, labels=numbers, max_lengths=BUCKETS)


def plan(world: World, *, seed: int = 0, epochs: int = 3, rows: int = 4, indices: Any = None) -> TrainingPlan:
    indices = range(len(SIZES)) if indices is None else indices
    return TrainingPlan(world.data, indices, rows=rows, seed=seed, epochs=epochs)


def same(first: Any, second: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, first, second)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 500), min_size=1, max_size=60), st.integers(1, 6))
def test_few_buckets_and_everything_fits(lengths: list[int], most: int) -> None:
    buckets = length_buckets(lengths, most)
    assert buckets == sorted(set(buckets)) and len(buckets) <= most
    assert set(buckets) <= set(lengths), "no bucket is longer than its longest session"
    assert buckets[-1] == max(lengths)
    if len(set(lengths)) <= most:
        assert buckets == sorted(set(lengths)), "no padding where none is needed"


def test_every_session_fits_its_bucket(world: World) -> None:
    data = world.data
    assert len(data.buckets) == BUCKETS
    for session, encoded, bucket in zip(data.sessions, data.encoded, data.bucket_of, strict=True):
        shapes = data.buckets[bucket]
        length = shapes.prompt + len(encoded.token_ids)
        assert length <= shapes.seq
        assert bucket == 0 or length > data.buckets[bucket - 1].seq, "the shortest bucket that holds it"
        assert encoded.rows * encoded.columns <= shapes.visual and session.slots <= shapes.slots
        assert max(map(len, encoded.answers)) <= shapes.tail


def test_rows_are_left_padded_and_lose_nothing(world: World) -> None:
    data, prompt = world.data, world.config.prompt.tokens
    for bucket, shapes in enumerate(data.buckets):
        members = [i for i, b in enumerate(data.bucket_of) if b == bucket]
        batch = data.batch(members)
        inputs = batch.inputs
        for row, index in enumerate(members):
            session, encoded = data.sessions[index], data.encoded[index]
            first, visual = shapes.seq - len(encoded.token_ids), encoded.rows * encoded.columns
            assert inputs.start[row] == first - prompt
            np.testing.assert_array_equal(inputs.token_ids[row, first:], encoded.token_ids)
            np.testing.assert_array_equal(inputs.positions[row, first:], encoded.positions + prompt)
            np.testing.assert_array_equal(inputs.positions[row, first - prompt : first, 2], np.arange(prompt))
            np.testing.assert_array_equal(inputs.visual_index[row, first:], encoded.visual_index)
            assert (inputs.visual_index[row, :first] == -1).all()
            place = inputs.visual_position[row, :visual]
            np.testing.assert_array_equal(inputs.visual_index[row, place], np.arange(visual))
            np.testing.assert_array_equal(
                inputs.features[row, :visual], data.features([session.page_id])[0][0, :visual]
            )
            n = session.slots
            assert batch.slot_mask[row].sum() == n and batch.slot_mask[row, :n].all()
            np.testing.assert_allclose(batch.gaze[row, :n], session.gaze("fixation"), rtol=1e-6)
            assert not batch.gaze[row, n:].any() and not batch.slot_matrix[row, n:].any()
            np.testing.assert_array_equal(
                batch.slot_matrix[row, :n, :visual], assign_slots(session.boxes, encoded.rows, encoded.columns)
            )
            assert not batch.slot_matrix[row, :, visual:].any()
            assert batch.click[row] == session.click
            assert batch.user[row] == data.user_rows[session.user_id]
        np.testing.assert_array_equal(batch.session, members)


def test_tails_are_right_aligned(world: World) -> None:
    """Branch by branch: the last chat token, then the answer but its last token; the answer beside it."""
    data = world.data
    index = max(range(len(SIZES)), key=lambda i: data.sessions[i].slots)
    encoded, batch = data.encoded[index], data.batch([index])
    tail = data.buckets[0].tail
    assert tail == 2 and batch.inputs.tail_ids.shape[1] == batch.answer_ids.shape[1]
    for slot, answer in enumerate(encoded.answers):
        used = slice(tail - len(answer), tail)
        assert tuple(batch.answer_ids[0, slot, used]) == answer
        np.testing.assert_array_equal(batch.answer_mask[0, slot], np.arange(tail) >= tail - len(answer))
        assert tuple(batch.inputs.tail_ids[0, slot, used]) == (encoded.last_token, *answer[:-1])
        np.testing.assert_array_equal(batch.inputs.tail_valid[0, slot], batch.answer_mask[0, slot])
        at = world.config.prompt.tokens + encoded.last_position
        np.testing.assert_array_equal(batch.inputs.tail_positions[0, slot, used, 1], at + np.arange(len(answer)))
    # "1" stops where "10" goes on: that branch, the tail's last position.
    assert tuple(batch.stop[0, 1]) == (10, 1) and tuple(batch.stop[0, 0]) == (-1, -1)


def test_rows_that_fill_a_batch_weigh_nothing(world: World) -> None:
    batch = world.data.batch([0, -1, -1])
    np.testing.assert_array_equal(batch.weight, [1, 0, 0])
    np.testing.assert_array_equal(batch.session, [0, -1, -1])
    alone = world.data.batch([0])
    for row in range(3):
        for ours, theirs in zip(
            jax.tree.leaves(batch._replace(weight=None, session=None)),
            jax.tree.leaves(alone._replace(weight=None, session=None)),
            strict=True,
        ):
            np.testing.assert_array_equal(ours[row], theirs[0])


def test_plan_takes_each_session_once_an_epoch(world: World) -> None:
    chosen = [0, 2, 3, 5, 6, 7, 10]
    steps = plan(world, indices=chosen)
    orders = []
    for epoch in range(3):
        rows = [steps[epoch * steps.steps_per_epoch + i] for i in range(steps.steps_per_epoch)]
        assert all(row.shape == (4,) and (row >= 0).any() for row in rows)
        for row in rows:
            assert len({world.data.bucket_of[i] for i in row if i >= 0}) == 1
        seen = [int(i) for row in rows for i in row if i >= 0]
        assert sorted(seen) == chosen
        orders.append(seen)
    assert orders[0] != orders[1] != orders[2]
    assert len(steps) == 3 * steps.steps_per_epoch


def test_plan_is_a_function_of_seed_and_step(world: World) -> None:
    first, second, other = plan(world), plan(world), plan(world, seed=1)
    order = np.random.default_rng(0).permutation(len(first))
    taken = {int(i): second[int(i)] for i in order}
    for i in range(len(first)):
        np.testing.assert_array_equal(first[i], taken[i])
    assert any((first[i] != other[i]).any() for i in range(len(first)))


def test_plan_with_an_empty_bucket(world: World) -> None:
    only = [i for i, b in enumerate(world.data.bucket_of) if b == 1]
    steps = plan(world, indices=only, epochs=1)
    assert sorted(int(i) for s in range(len(steps)) for i in steps[s] if i >= 0) == only


@pytest.mark.parametrize("taken", [0, 3, 5])
def test_training_resumes_in_the_middle_of_an_epoch(world: World, taken: int) -> None:
    def fresh() -> Any:
        return training_iterator(world.data, plan(world, epochs=2), accumulate=2)

    whole = list(fresh())
    assert len(whole) == len(plan(world, epochs=2))
    assert whole[0].weight.shape == (2, 2) and whole[0].inputs.token_ids.shape[:2] == (2, 2)
    started = fresh()
    for _ in range(taken):
        next(started)
    state = started.get_state()
    resumed = fresh()
    resumed.set_state(state)
    rest = list(resumed)
    assert len(rest) == len(whole) - taken
    for ours, theirs in zip(rest, whole[taken:], strict=True):
        same(ours, theirs)


@pytest.mark.parametrize("rows", [1, 3, 16])
def test_evaluation_takes_each_session_once(world: World, rows: int) -> None:
    chosen = [10, 1, 4, 9, 0]
    batches = evaluation_batches(world.data, chosen, rows)
    assert sorted(i for batch in batches for i in batch if i >= 0) == sorted(chosen)
    for batch in batches:
        assert len(batch) == rows
        assert len({world.data.bucket_of[i] for i in batch if i >= 0}) == 1


def test_gaze_temperature_and_signal_reach_the_batch(world: World) -> None:
    data = SessionData(
        world.sessions,
        world.data.encoded,
        world.data.user_rows,
        features=world.features,
        prompt_tokens=4,
        signal="fixation",
        gaze_temperature=2.0,
    )
    session = world.sessions[0]
    expected = np.sqrt(session.dwell_ms["fixation"])
    np.testing.assert_allclose(data.batch([0]).gaze[0, : session.slots], expected / expected.sum(), rtol=1e-6)
