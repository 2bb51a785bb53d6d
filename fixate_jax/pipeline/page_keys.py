"""Keys and values of pages, where the soft prompt follows the page: they are computed once and kept where they fit."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float

from fixate_jax.backbones import Backbone, EncodedSession
from fixate_jax.backbones.inputs import HostOrDevice, SequenceInputs
from fixate_jax.pipeline.features import FeatureStore
from fixate_jax.pipeline.kept import CacheConfig, Kept, Tier, groups_of_like_size, shared_out
from fixate_jax.pipeline.placement import Placement
from fixate_jax.probing import Operator, reads_source_row
from fixate_jax.prompts import Position
from fixate_jax.runtime.progress import Track

NOWHERE = CacheConfig(device_bytes=0, host_bytes=0, disk_bytes=0)
"""Budgets that hold nothing."""


def wants_page_keys(position: Position, operator: Operator) -> bool:
    """Whether keys and values of the pages will do, instead of their features."""
    return position == "after_image" and reads_source_row(operator)


@dataclass(frozen=True)
class _ComputeKeys:
    """Tower and decoder as a function that is equal for equal structures."""

    graph: nnx.GraphDef

    def __call__(self, params: nnx.State, given: tuple[Any, SequenceInputs]) -> jax.Array:
        (pages, inputs), model = given, nnx.merge(self.graph, params)
        found: jax.Array = model.page_keys(inputs._replace(features=model.encode_pages(pages)))
        return found


class PageKeyStore:
    """Keys and values of all sessions' pages, with the chat before them, in every decoder layer.

    Sessions that read the same up to their page's end share an entry: all users of a page, where what they are asked
    comes behind it.

    Attributes:
        kept: the entries.
    """

    def __init__(
        self,
        backbone: Backbone,
        features: FeatureStore,
        page_ids: Sequence[str],
        encoded: Sequence[EncodedSession],
        cache: CacheConfig,
        *,
        directory: Path,
        batch: int,
        placement: Placement | None = None,
        track: Track = lambda items, title: iter(items),
    ):
        """Choose the tier and fill it.

        Args:
            backbone: whose vision tower and decoder to run.
            features: the pages; nothing needs to be kept there.
            page_ids: page of each session.
            encoded: the sessions.
            cache: the budgets.
            directory: folder of the disk tier.
            batch: pages at a time through tower and decoder.
            placement: the mesh that shares these pages among its devices (None: where the weights are).
            track: wraps a sequence in a progress bar.
        """
        self.backbone, self.features, self.placement = backbone, features, placement
        entries: dict[tuple[str, bytes, bytes], int] = {}
        self.entry_of, self.first = [], list[tuple[str, EncodedSession]]()
        for page, session in zip(page_ids, encoded, strict=True):
            end = session.page_end
            key = (page, session.token_ids[:end].tobytes(), session.positions[:end].tobytes())
            if key not in entries:
                entries[key] = len(entries)
                self.first.append((page, session))
            self.entry_of.append(entries[key])
        decoder = backbone.config.decoder
        rows = max(session.page_end for _, session in self.first)
        self.shape = (len(self.first), 2, decoder.layers, rows, decoder.kv_heads, decoder.head_dim)
        self.kept = Kept(
            self.shape,
            decoder.dtype,
            cache,
            file=lambda: directory / f"page-keys-{self._key()}.npy",
            fill=lambda keys: self._fill(keys, batch, track),
        )

    @property
    def tier(self) -> Tier:
        """Where they are."""
        return self.kept.tier

    def __call__(self, indices: Sequence[int]) -> Float[HostOrDevice, "batch both layers page kv head"]:
        """Keys and values for some sessions, for ``SequenceInputs.page_keys``."""
        return self.kept([self.entry_of[i] for i in indices])

    def _key(self) -> str:
        """What the numbers depend on: weights and type, pages as they are drawn, text and positions."""
        digest = hashlib.sha256(f"{self.backbone.fingerprint} {self.shape}".encode())
        for page, session in self.first:
            image, end = self.features.images(page).convert("RGB"), session.page_end
            for part in (
                page.encode(),
                image.tobytes(),
                session.token_ids[:end].tobytes(),
                session.positions[:end].tobytes(),
            ):
                digest.update(hashlib.sha256(part).digest())
        return digest.hexdigest()[:24]

    def _fill(self, keys: np.ndarray | None, batch: int, track: Track) -> None:
        """Run tower and decoder over all pages, those of like size together, to keep what comes or to help only."""
        rows = self.shape[3]
        run = shared_out(_ComputeKeys(self.backbone.graph), self.backbone.params, self.placement)
        sizes = {entry: self.features.units(page) for entry, (page, _) in enumerate(self.first)}
        for units, entries in track(groups_of_like_size(sizes, batch), "Pages' keys and values"):
            chosen = [self.first[i] for i in [*entries, *[entries[0]] * (batch - len(entries))]]
            pages = self.features.pages([page for page, _ in chosen], units=units)
            inputs = jax.tree.map(lambda *parts: np.stack(parts), *[_page_inputs(s, rows) for _, s in chosen])
            out = run((pages, inputs))
            if keys is None:
                continue
            for entry, found in zip(entries, out, strict=False):
                keys[entry] = found.view(keys.dtype)


def _page_inputs(encoded: EncodedSession, rows: int) -> SequenceInputs:
    """A session up to its page's end, as the decoder reads it."""
    end = encoded.page_end
    pad = lambda x, value: np.concatenate([x[:end], np.full((rows - end, *x.shape[1:]), value, np.int32)])  # noqa: E731
    empty = np.zeros((1, 0), np.int32)
    return SequenceInputs(
        token_ids=pad(encoded.token_ids, 0),
        start=np.int32(0),
        positions=pad(encoded.positions, 0),
        visual_index=pad(encoded.visual_index, -1),
        tail_ids=empty,
        tail_positions=np.zeros((1, 0, 3), np.int32),
        tail_valid=empty.astype(bool),
        visual_position=np.zeros(0, np.int32),
        features=None,
        page_valid=np.arange(rows) < end,
    )
