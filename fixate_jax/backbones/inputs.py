"""What a backbone reads: fixed-shape arrays, batch first, so that they shard along their first axis.

A sequence is ``[padding | soft prompt | chat up to its last token]`` (the prefix) followed by a short tail:
the last chat token and the answer tokens but the last. A tail position predicts the token after it, so the
tail's last position, ``src``, predicts the last answer token. Several branches (the answers that a page allows)
share one prefix. Tails are right-aligned, shorter answers being padded on the left.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

HostOrDevice: TypeAlias = Any
"""A numpy array while a batch is put together on the host, a JAX array once it is on the device."""


@dataclass(frozen=True, kw_only=True)
class EncodedPage:
    """A page for the vision tower.

    Attributes:
        inputs: a named tuple of arrays, batch of one, what the family's vision tower reads; the second axis of each
            runs over the page's units (patches, tiles), and its field ``valid`` is False on padding.
        rows, columns: the grid of cells over the page.
    """

    inputs: Any
    rows: int
    columns: int


def stack_pages(pages: Sequence[EncodedPage], *, units: int | None = None) -> Any:
    """Pages of any size as one batch, padded to the largest, or to ``units`` units a page."""
    size = units or max(page.inputs.valid.shape[1] for page in pages)

    def pad(leaf: np.ndarray) -> np.ndarray:
        return np.pad(leaf[0], [(0, size - leaf.shape[1]), *[(0, 0)] * (leaf.ndim - 2)])

    kind = type(pages[0].inputs)
    return kind(*(np.stack([pad(page.inputs[i]) for page in pages]) for i in range(len(kind._fields))))


class SequenceInputs(NamedTuple):
    """Sequences as the decoder reads them.

    Attributes:
        token_ids: prefix tokens; anything at padding, soft prompt and image positions.
        start: first row of the soft prompt; everything before it is padding.
        positions: rotary positions (time, height, width) of the prefix.
        visual_index: which page token stands at a prefix position, -1 for none.
        tail_ids: per branch the last chat token and the answer tokens but the last, right-aligned.
        tail_positions: rotary positions of the tail.
        tail_valid: False at the tail's padding.
        visual_position: where in the prefix the page token of each cell stands (0 for padding).
        features: page tokens; level 0 enters the sequence, level 1 + i is added after decoder layer i (DeepStack).
    """

    token_ids: Int[HostOrDevice, "batch seq"]
    start: Int[HostOrDevice, " batch"]
    positions: Int[HostOrDevice, "batch seq 3"]
    visual_index: Int[HostOrDevice, "batch seq"]
    tail_ids: Int[HostOrDevice, "batch branch tail"]
    tail_positions: Int[HostOrDevice, "batch branch tail 3"]
    tail_valid: Bool[HostOrDevice, "batch branch tail"]
    visual_position: Int[HostOrDevice, "batch cells"]
    features: Float[HostOrDevice, "batch tokens levels width"]


class Prefix(NamedTuple):
    """What the tail needs to know of everything before it.

    Attributes:
        key, value: rotated keys and values of the tapped layers.
        valid: False where nobody may look.
        hidden: the tail's residual stream as it enters the first tapped layer.
        angles: rotary angles of the tail.
        tail_valid: False at the tail's padding.
    """

    key: Float[Array, "layers batch seq kv head"]
    value: Float[Array, "layers batch seq kv head"]
    valid: Bool[Array, "batch seq"]
    hidden: Float[Array, "batch branch tail width"]
    angles: Float[Array, "batch branch tail half"]
    tail_valid: Bool[Array, "batch branch tail"]


class TailOutput(NamedTuple):
    """What comes out of the tail.

    Attributes:
        logits: float32 scores of the vocabulary at each tail position.
        rows: post-softmax attention of ``src`` in each tapped layer, over prefix then tail.
    """

    logits: Float[Array, "batch branch tail vocab"]
    rows: Float[Array, "layers batch branch heads keys"]


def take_branches(inputs: SequenceInputs, branch: Int[Array, "batch chosen"]) -> SequenceInputs:
    """The same sequences with only some of their branches (or all, where there is just one for every answer)."""
    if inputs.tail_ids.shape[1] == 1:
        return inputs
    pick = jax.vmap(lambda x, b: x[b])
    return inputs._replace(
        tail_ids=pick(inputs.tail_ids, branch),
        tail_positions=pick(inputs.tail_positions, branch),
        tail_valid=pick(inputs.tail_valid, branch),
    )
