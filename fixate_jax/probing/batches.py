"""Sessions to fixed-shape batches: few length buckets, left padding, a shuffle that can be resumed anywhere."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from fixate_jax.backbones.inputs import HostOrDevice, SequenceInputs
from fixate_jax.backbones.processing import EncodedSession
from fixate_jax.data.session import StoredSession
from fixate_jax.probing.slots import assign_slots
from fixate_jax.prompts import Position


class Batch(NamedTuple):
    """Sessions as one jitted call takes them; in training with a leading axis of micro-batches.

    Attributes:
        inputs: sequences; ``inputs.features`` is None where ``pages`` or ``inputs.page_keys`` is given.
        pages: pages for the vision tower to run in the step, or None where features or keys come from the cache.
        answer_ids, answer_mask: tokens of every slot's label, right-aligned like the tail.
        stop: for a label that begins another one: (branch, tail position) where the model may stop; else -1.
        slot_matrix: M, which cell of the page belongs to which slot.
        slot_mask: False at padding slots.
        gaze: human distribution g over slots.
        click: clicked slot.
        user: row of the user's coefficients.
        weight: 1 for a session, 0 for a row that only fills the batch.
        session: index of the session in its data set.
        soft_position: where in the prefix the soft tokens stand; only of batches made by `encode`.
    """

    inputs: SequenceInputs
    pages: Any
    answer_ids: Int[HostOrDevice, "*micro batch slots tail"]
    answer_mask: Bool[HostOrDevice, "*micro batch slots tail"]
    stop: Int[HostOrDevice, "*micro batch slots 2"]
    slot_matrix: Float[HostOrDevice, "*micro batch slots visual"]
    slot_mask: Bool[HostOrDevice, "*micro batch slots"]
    gaze: Float[HostOrDevice, "*micro batch slots"]
    click: Int[HostOrDevice, "*micro batch"]
    user: Int[HostOrDevice, "*micro batch"]
    weight: Float[HostOrDevice, "*micro batch"]
    session: Int[HostOrDevice, "*micro batch"]
    soft_position: Int[HostOrDevice, "batch tokens"] | None = None


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """Fixed sizes of a bucket's batches: positions of the prefix, page tokens, slots, tail, soft tokens.

    ``page``: positions up to the page's end where the soft prompt follows it, else 0.
    """

    seq: int
    visual: int
    slots: int
    tail: int
    prompt: int
    page: int = 0


def length_buckets(lengths: Sequence[int], most: int) -> list[int]:
    """At most ``most`` sequence lengths that all of ``lengths`` fit into, each with about as many sessions."""
    distinct = sorted(set(lengths))
    if len(distinct) <= most:
        return distinct
    ordered = sorted(lengths)
    ends = {ordered[(len(ordered) * (i + 1)) // most - 1] for i in range(most)}
    return sorted(ends | {distinct[-1]})


class SessionData:
    """A run's sessions, encoded once, from which any batch can be put together.

    Attributes:
        sessions: the sessions.
        encoded: their token sequences, in the same order.
        user_rows: row of each user's coefficients.
        buckets: shapes of each bucket.
        bucket_of: bucket of each session.
        assignment: how visual tokens are assigned to slots.
    """

    def __init__(
        self,
        sessions: Sequence[StoredSession],
        encoded: Sequence[EncodedSession],
        user_rows: dict[str, int],
        *,
        features: Callable[[Sequence[str]], tuple[Any, Any]],
        prompt_tokens: int,
        signal: str | None,
        gaze_temperature: float = 1.0,
        max_lengths: int = 4,
        assignment: Literal["centre", "area"] = "centre",
        position: Position = "before",
        page_keys: Callable[[Sequence[int]], Any] | None = None,
        targets: Mapping[int, Float[np.ndarray, " _slots"]] | None = None,
        multiple: int = 1,
    ):
        """Plan the buckets.

        Args:
            sessions: the sessions.
            encoded: their encodings.
            user_rows: row of each user's coefficients.
            features: from page ids to cached features, or to pages for the vision tower.
            prompt_tokens: soft tokens, K.
            signal: which dwell signal is the gaze (None: batches have none, it is 0).
            gaze_temperature: τ of the gaze.
            max_lengths: largest number of buckets.
            assignment: how visual tokens are assigned to slots, see :func:`fixate_jax.probing.assign_slots`.
            position: where the soft prompt stands.
            page_keys: from indices of sessions to what is kept of their pages, instead of ``features``
                (:class:`fixate_jax.pipeline.page_keys.PageKeyStore`).
            targets: what batches hold as the gaze of some sessions, by index, instead of their own.
            multiple: round sizes up to multiples of it, the number of slots to multiples of 4: other sessions are then
                likelier to have the same shapes, and need no compilation of their own. 1 leaves them as they are.
        """
        self.page_keys = page_keys
        self.sessions, self.encoded, self.user_rows = sessions, encoded, user_rows
        self.features, self.signal, self.gaze_temperature = features, signal, gaze_temperature
        self.assignment, self.targets = assignment, targets or {}
        self._matrices: dict[tuple[bytes, int, int], Float[np.ndarray, "slots visual"]] = {}
        lengths = [prompt_tokens + len(e.token_ids) for e in encoded]
        ends = length_buckets(lengths, max_lengths)
        up: Callable[[int, int], int] = lambda n, to: -(-n // to) * to  # noqa: E731
        ends = sorted({up(end, multiple) for end in ends})
        self.bucket_of = [int(np.searchsorted(ends, n)) for n in lengths]
        slots = up(max(s.slots for s in sessions), 1 if multiple == 1 else 4)
        tail = max(len(a) for e in encoded for a in e.answers)
        self.buckets = []
        for i, end in enumerate(ends):
            members = [e for e, b in zip(encoded, self.bucket_of, strict=True) if b == i]
            page = up(max(e.page_end for e in members), multiple) if position == "after_image" else 0
            rest = up(max(len(e.token_ids) - e.page_end for e in members) + prompt_tokens, multiple)
            self.buckets.append(
                Shapes(
                    seq=page + rest if page else end,
                    visual=up(max(e.page_tokens for e in members), multiple),
                    slots=slots,
                    tail=tail,
                    prompt=prompt_tokens,
                    page=page,
                )
            )

    def batch(self, indices: Sequence[int], rows: Sequence[int] | None = None) -> Batch:
        """A batch of sessions of one bucket; -1 stands for a row that only fills it (a copy of weight 0).

        Args:
            indices: the sessions.
            rows: put together these of its rows alone (None: all).
        """
        real = [i for i in indices if i >= 0]
        shapes = self.buckets[self.bucket_of[real[0]]]
        indices = indices if rows is None else [indices[row] for row in rows]
        whose = [i if i >= 0 else real[0] for i in indices]
        made = [self._row(i, shapes) for i in whose]
        batch: Batch = jax.tree.map(lambda *leaves: np.stack(leaves), *made)
        features, pages, keys = None, None, None
        if self.page_keys is not None:
            keys = _fit(self.page_keys(whose), shapes.page, axis=3)
        else:
            features, pages = self.features([self.sessions[i].page_id for i in whose])
        if features is not None:
            features = _fit(features, shapes.visual, axis=1)
        return batch._replace(
            inputs=batch.inputs._replace(features=features, page_keys=keys),
            pages=pages,
            weight=np.array([i >= 0 for i in indices], np.float32),
            session=np.array(indices, np.int32),
        )

    def with_targets(self, targets: Mapping[int, Float[np.ndarray, " _slots"]]) -> "SessionData":
        """The same sessions, some of them aligned with something else than their own gaze."""
        other = copy.copy(self)
        other.targets = dict(targets)
        return other

    def slot_matrix(self, index: int) -> Float[np.ndarray, "slots visual"]:
        """M of a session's page; made once for all sessions with the same boxes and grid."""
        boxes, encoded = self.sessions[index].boxes, self.encoded[index]
        key = (boxes.tobytes(), encoded.rows, encoded.columns)
        if key not in self._matrices:
            self._matrices[key] = assign_slots(boxes, encoded.rows, encoded.columns, how=self.assignment)
        return self._matrices[key]

    def gaze(self, index: int) -> Float[np.ndarray, " slots"]:
        """Human distribution g of a session; 0 where there is no signal."""
        session = self.sessions[index]
        if self.signal is None:
            return np.zeros(session.slots, np.float32)
        return session.gaze(self.signal, self.gaze_temperature).astype(np.float32)

    def empty_slots(self) -> tuple[int, int]:
        """How many slots of all sessions hold no visual token, and of how many slots."""
        empty = sum(int((self.slot_matrix(i).sum(axis=1) == 0).sum()) for i in range(len(self.sessions)))
        return empty, sum(s.slots for s in self.sessions)

    def _row(self, index: int, shapes: Shapes) -> Batch:
        session, encoded = self.sessions[index], self.encoded[index]
        n, cells = session.slots, encoded.rows * encoded.columns
        ids, mask, stop = _answers(encoded, shapes)
        slot_matrix = np.zeros((shapes.slots, shapes.visual), np.float32)
        slot_matrix[:n, :cells] = self.slot_matrix(index)
        gaze = np.zeros(shapes.slots, np.float32)
        gaze[:n] = self.targets[index] if index in self.targets else self.gaze(index)
        return Batch(
            inputs=_sequence(encoded, ids, mask, shapes),
            pages=None,
            answer_ids=ids,
            answer_mask=mask,
            stop=stop,
            slot_matrix=slot_matrix,
            slot_mask=np.arange(shapes.slots) < n,
            gaze=gaze,
            click=np.int32(session.click),
            user=np.int32(self.user_rows[session.user_id]),
            weight=np.float32(1),
            session=np.int32(index),
        )


def _fit(rows: Any, size: int, *, axis: int) -> Any:
    """Kept features or keys cut, or filled up with zeros that nothing looks at, to what a bucket's batches hold."""
    missing = size - rows.shape[axis]
    if missing <= 0:
        return rows[(*[slice(None)] * axis, slice(size))]
    numpy: Any = np if isinstance(rows, np.ndarray) else jnp
    return numpy.pad(rows, [(0, missing if i == axis else 0) for i in range(rows.ndim)])


def _answers(encoded: EncodedSession, shapes: Shapes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Right-aligned answer tokens of every slot, their mask, and where a label that begins another may stop."""
    ids = np.zeros((shapes.slots, shapes.tail), np.int32)
    mask = np.zeros((shapes.slots, shapes.tail), bool)
    stop = np.full((shapes.slots, 2), -1, np.int32)
    for i, (answer, (longer, shared)) in enumerate(zip(encoded.answers, encoded.stops, strict=True)):
        ids[i, shapes.tail - len(answer) :] = answer
        mask[i, shapes.tail - len(answer) :] = True
        if longer >= 0:
            stop[i] = longer, shapes.tail - len(encoded.answers[longer]) + shared
    return ids, mask, stop


def _sequence(encoded: EncodedSession, ids: np.ndarray, mask: np.ndarray, shapes: Shapes) -> SequenceInputs:
    """The padded prefix, and a branch per answer; one branch serves all where every answer is one token."""
    # The chat is cut in two where the soft prompt stands: at its beginning, or behind the page.
    page = encoded.page_end if shapes.page else 0
    first = shapes.seq - (len(encoded.token_ids) - page)
    start = first - shapes.prompt
    token_ids = np.zeros(shapes.seq, np.int32)
    positions = np.zeros((shapes.seq, 3), np.int32)
    visual_index = np.full(shapes.seq, -1, np.int32)
    for whole, part in ((token_ids, encoded.token_ids), (visual_index, encoded.visual_index)):
        whole[:page], whole[first:] = part[:page], part[page:]
    positions[:page], positions[first:] = encoded.positions[:page], encoded.positions[page:] + shapes.prompt
    positions[start:first] = np.arange(shapes.prompt)[:, None] + positions[:page].max(initial=-1) + 1
    visual_position = np.zeros(shapes.visual, np.int32)
    at = np.flatnonzero(visual_index >= 0)[encoded.cell_tokens]
    visual_position[: len(at)] = at
    branches = 1 if shapes.tail == 1 else shapes.slots
    tail_ids = np.concatenate([np.zeros_like(ids[:, :1]), ids[:, :-1]], axis=1)
    lengths = np.maximum(mask.sum(1), 1)
    tail_valid = np.arange(shapes.tail) >= shapes.tail - lengths[:, None]
    tail_ids[np.arange(len(ids)), shapes.tail - lengths] = encoded.last_token
    offsets = np.maximum(np.arange(shapes.tail) - (shapes.tail - lengths[:, None]), 0)
    tail_positions = np.repeat((encoded.last_position + shapes.prompt + offsets)[..., None], 3, axis=-1)
    return SequenceInputs(
        token_ids=token_ids,
        start=np.int32(start),
        positions=positions,
        visual_index=visual_index,
        tail_ids=tail_ids[:branches].astype(np.int32),
        tail_positions=tail_positions[:branches].astype(np.int32),
        tail_valid=tail_valid[:branches],
        visual_position=visual_position,
        features=None,
        page_valid=np.arange(shapes.page) < page if shapes.page else None,
    )


class TrainingPlan:
    """Which sessions make up which step, for any step of any epoch, without state: the source of Grain's pipeline.

    Every epoch shuffles the sessions of each bucket with a seed of its own, cuts them into optimizer steps and
    shuffles those. What does not fill a step is filled up with rows of weight 0.
    """

    def __init__(self, data: SessionData, indices: Sequence[int], *, rows: int, seed: int, epochs: int):
        """Plan ``epochs`` epochs over the sessions ``indices`` in steps of ``rows`` sessions."""
        self.seed, self.rows, self.epochs = seed, rows, epochs
        self.by_bucket = [
            np.array([i for i in indices if data.bucket_of[i] == b], int) for b in range(len(data.buckets))
        ]
        self.steps_per_epoch = sum(-(-len(b) // rows) for b in self.by_bucket)
        self._epoch: tuple[int, list[np.ndarray]] = (-1, [])

    def __len__(self) -> int:
        return self.steps_per_epoch * self.epochs

    def __getitem__(self, step: int) -> Int[np.ndarray, " rows"]:
        epoch, within = divmod(int(step), self.steps_per_epoch)
        cached = self._epoch
        if cached[0] != epoch:
            cached = self._epoch = (epoch, self._plan(epoch))
        return cached[1][within]

    def _plan(self, epoch: int) -> list[np.ndarray]:
        rng = np.random.default_rng([self.seed, epoch])
        steps = []
        for bucket in self.by_bucket:
            shuffled = rng.permutation(bucket)
            filled = np.pad(shuffled, (0, -len(shuffled) % self.rows), constant_values=-1)
            steps += list(filled.reshape(-1, self.rows))
        return [steps[i] for i in rng.permutation(len(steps))]


def training_iterator(
    data: SessionData, plan: TrainingPlan, *, accumulate: int, rows: Sequence[int] | None = None
) -> Any:
    """Grain's iterator over training steps: read ahead in threads, its state is the number of steps taken.

    Args:
        data: the sessions.
        plan: which of them make up which step.
        accumulate: micro-batches a step.
        rows: of each micro-batch these alone, one process's share (None: all).
    """
    import grain  # Only training reads ahead.

    size = plan.rows // accumulate
    own = None if rows is None else [micro * size + row for micro in range(accumulate) for row in rows]

    def collate(indices: np.ndarray) -> Batch:
        batch = data.batch([int(i) for i in indices], own)
        return jax.tree.map(lambda x: x.reshape(accumulate, -1, *x.shape[1:]), batch)

    dataset = grain.MapDataset.source(plan).map(collate)
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
    return iter(dataset.to_iter_dataset(options))


def evaluation_batches(data: SessionData, indices: Sequence[int], rows: int) -> list[list[int]]:
    """Sessions in batches of one bucket each, the last of a bucket filled up with -1."""
    batches = []
    for bucket in range(len(data.buckets)):
        members = [i for i in indices if data.bucket_of[i] == bucket]
        for first in range(0, len(members), rows):
            part = members[first : first + rows]
            batches.append(part + [-1] * (rows - len(part)))
    return batches
