"""Pages of sessions on their way to a step: features, or keys and values in their place, and token sequences."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from fixate_jax.backbones import Backbone, EncodedSession
from fixate_jax.data.session import StoredSession
from fixate_jax.pipeline.features import FeatureStore
from fixate_jax.pipeline.kept import CacheConfig
from fixate_jax.pipeline.page_keys import NOWHERE, PageKeyStore
from fixate_jax.pipeline.placement import Placement
from fixate_jax.probing.batches import SessionData
from fixate_jax.probing.encode import Question, encode_sessions
from fixate_jax.runtime.progress import Track, track


class SlotWarning(UserWarning):
    """Slots are too small for the grid of visual tokens."""


def read_pages(
    backbone: Backbone,
    images: Callable[[str], Image.Image],
    sessions: Sequence[StoredSession],
    *,
    cache: CacheConfig,
    directory: Path,
    batch: int,
    placement: Placement,
    page_keys: bool,
    known: dict[Question, EncodedSession] | None = None,
    bar: Track = track,
) -> tuple[FeatureStore, list[EncodedSession], PageKeyStore | None]:
    """Page features, or keys and values in their place where those are asked for and fit; the sequences.

    Args:
        backbone: the frozen model.
        images: from page id to page.
        sessions: whose pages.
        cache: budgets of what is kept.
        directory: where the disk cache goes.
        batch: pages at a time.
        placement: the mesh.
        page_keys: keep keys and values of the pages, see :func:`fixate_jax.pipeline.page_keys.wants_page_keys`.
        known: sequences of earlier calls, see :func:`fixate_jax.probing.encode.encode_sessions`.
        bar: wraps the pages in a progress bar.
    """
    page_ids = [s.page_id for s in sessions]
    how: dict[str, Any] = {"directory": directory, "batch": batch, "placement": placement, "track": bar}
    features = FeatureStore(backbone, images, page_ids, NOWHERE if page_keys else cache, **how)
    encoded = encode_sessions(backbone, sessions, features.grids, known)
    if not page_keys:
        return features, encoded, None
    keys = PageKeyStore(backbone, features, page_ids, encoded, cache, **how)
    if keys.tier != "step":
        return features, encoded, keys
    # Too large to keep: the step computes them, from features that may still fit.
    return FeatureStore(backbone, images, page_ids, cache, **how), encoded, None


def warn_of_empty_slots(data: SessionData) -> None:
    """Say how many slots no visual token belongs to, if any."""
    empty, slots = data.empty_slots()
    if empty:
        warnings.warn(
            f"{empty} of {slots} slots hold no token's centre: their slot attention is always 0; "
            "use operator.assignment area or a larger page (data.page_width); of emulated users, --assignment area or "
            "--page-width",
            SlotWarning,
            stacklevel=3,
        )
