"""What a backbone reads: fixed-shape arrays, batch first, so that they shard along their first axis.

A sequence is ``[padding | soft prompt | chat up to its last token]`` (the prefix) followed by a short tail:
the last chat token and the answer tokens but the last. A tail position predicts the token after it, so the
tail's last position, ``src``, predicts the last answer token. Several branches (the answers that a page allows)
share one prefix. Tails are right-aligned, shorter answers being padded on the left.

The soft prompt may follow the page instead, see :mod:`fixate_jax.backbones.decoder.after_page`.
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
        start: first row of the soft prompt; everything before it is padding, but for ``page_valid``.
        positions: rotary positions (time, height, width) of the prefix.
        visual_index: which page token stands at a prefix position, -1 for none.
        tail_ids: per branch the last chat token and the answer tokens but the last, right-aligned.
        tail_positions: rotary positions of the tail.
        tail_valid: False at the tail's padding.
        visual_position: where in the prefix the page token of each cell stands (0 for padding).
        features: page tokens; level 0 enters the sequence, level 1 + i is added after decoder layer i (DeepStack).
            None where ``page_keys`` are given.
        page_valid: where the soft prompt follows the page, the first rows hold the chat up to the page's end; False at
            their padding. None where the soft prompt comes first.
        page_keys: rotated keys and values of those rows in every layer, computed before by
            :meth:`fixate_jax.backbones.decoder.decoder.Decoder.page_keys`; None: all rows are computed.
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
    page_valid: Bool[HostOrDevice, "batch page"] | None = None
    page_keys: Float[HostOrDevice, "batch both layers page kv head"] | None = None


class Stream(NamedTuple):
    """Sequences between two layers.

    Where the platform's attention kernels may be used, every prefix is moved forward so that its padding comes last.
    Where the page's keys and values are known, the rows are those behind the page only.

    Attributes:
        hidden: residual stream of the prefix.
        deep: what is added at its visual tokens after the first decoder layers (DeepStack), zero elsewhere.
        angles: rotary angles of the prefix.
        valid: False where nobody may look; of all rows, the page's too.
        visual: where page tokens stand.
        moved: by how many places each prefix was moved forward; None where it is ``valid`` that hides padding.
        tail_hidden, tail_angles: the tail's.
        tail_valid: False at the tail's padding.
        page: keys and values of every layer up to the page's end, where they are known.
    """

    hidden: Float[Array, "batch seq width"]
    deep: Float[Array, "levels batch seq width"]
    angles: Float[Array, "batch seq half"]
    valid: Bool[Array, "batch seq"]
    visual: Bool[Array, "batch seq"]
    moved: Int[Array, " batch"] | None
    tail_hidden: Float[Array, "batch branch tail width"]
    tail_angles: Float[Array, "batch branch tail half"]
    tail_valid: Bool[Array, "batch branch tail"]
    page: Float[Array, "layers both batch page kv head"] | None = None

    def take_branches(self, branch: Int[Array, "batch chosen"]) -> "Stream":
        """The same with only some of the branches."""
        pick = jax.vmap(lambda x, b: x[b])
        return self._replace(
            tail_hidden=pick(self.tail_hidden, branch),
            tail_angles=pick(self.tail_angles, branch),
            tail_valid=pick(self.tail_valid, branch),
        )


class Prefix(NamedTuple):
    """What the tail needs to know of everything before it, and the sequences that it comes from.

    Attributes:
        key, value: rotated keys and values of the tapped layers.
        start: the sequences as they enter the first layer.
        below: the sequences as they enter the first tapped layer.
    """

    key: Float[Array, "layers batch seq kv head"]
    value: Float[Array, "layers batch seq kv head"]
    start: Stream
    below: Stream

    def take_branches(self, branch: Int[Array, "batch chosen"]) -> "Prefix":
        """The same with only some of the branches."""
        return self._replace(start=self.start.take_branches(branch), below=self.below.take_branches(branch))


class WholeRows(NamedTuple):
    """What the prefix's attention is made of in the tapped layers.

    Attributes:
        query: rotated queries of the tapped layers but the last (None: not wanted, or a single layer is tapped).
        key, value: rotated keys and values of all tapped layers.
    """

    query: Float[Array, "upper batch seq heads head"] | None
    key: Float[Array, "layers batch seq kv head"]
    value: Float[Array, "layers batch seq kv head"]


class TailOutput(NamedTuple):
    """What comes out of the tail.

    Attributes:
        logits: float32 scores of the vocabulary at each tail position.
        rows: post-softmax attention of each tail position in each tapped layer, over prefix then tail; the last is
            that of ``src``.
        value: the tail's values in each tapped layer.
    """

    logits: Float[Array, "batch branch tail vocab"]
    rows: Float[Array, "layers batch branch heads tail keys"]
    value: Float[Array, "layers batch branch tail kv head"]


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
