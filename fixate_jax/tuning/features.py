"""Page features: the vision tower runs once per page, and what it gives is kept where it fits."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from fixate_jax import hosts
from fixate_jax.backbones import Backbone, stack_pages
from fixate_jax.backbones.sharding import sharing_rows
from fixate_jax.config import CacheConfig
from fixate_jax.durable import mapped_array, staging, writing
from fixate_jax.tuning.batches import length_buckets
from fixate_jax.tuning.placement import Placement, put

Tier = Literal["device", "host", "disk", "step"]
Track = Callable[[Sequence[Any], str], Iterator[Any]]
PATCH_SIZES = 4
"""Largest number of padded page sizes, each one compilation of the vision tower."""


def choose_tier(size: int, cache: CacheConfig) -> Tier:
    """The first place whose budget holds ``size`` bytes; "step" (run the vision tower every time) if none does."""
    budgets: list[tuple[Tier, int]] = [
        ("device", cache.device_bytes),
        ("host", cache.host_bytes),
        ("disk", cache.disk_bytes),
    ]
    return next((tier for tier, budget in budgets if size <= budget), "step")


class FeatureStore:
    """Features of a fixed set of pages.

    Attributes:
        tier: where they are.
        grids: rows and columns of cells of each page.
    """

    def __init__(
        self,
        backbone: Backbone,
        images: Callable[[str], Image.Image],
        page_ids: Sequence[str],
        cache: CacheConfig,
        *,
        directory: Path,
        batch: int,
        placement: Placement | None = None,
        track: Track = lambda items, title: iter(items),
    ):
        """Choose the tier and fill it.

        Args:
            backbone: whose vision tower to run.
            images: from page id to image.
            page_ids: all pages that will ever be asked for.
            cache: the budgets.
            directory: folder of the disk tier.
            batch: pages at a time through the vision tower.
            placement: the mesh that shares these pages among its devices (None: where the weights are).
            track: wraps a sequence in a progress bar.
        """
        self.backbone, self.images, self.placement = backbone, images, placement
        self.index = {page: i for i, page in enumerate(sorted(set(page_ids)))}
        self.grids = {page: backbone.page_processor.grid(*images(page).size) for page in self.index}
        self.dtype = np.dtype(backbone.config.decoder.dtype)
        tokens = max(backbone.page_tokens(*grid) for grid in self.grids.values())
        self.shape = (len(self.index), tokens, backbone.image_levels, backbone.width)
        self.tier: Tier = choose_tier(int(np.prod(self.shape)) * self.dtype.itemsize, cache)
        self._features: Any = None
        if self.tier == "disk":
            self._features = self._on_disk(directory, batch, track)
        elif self.tier != "step":
            features = np.zeros(self.shape, self.dtype)
            self._fill(features, batch, track)
            # With several processes a batch is put together on the host, from each one's rows.
            on_device = self.tier == "device" and jax.process_count() == 1
            self._features = jnp.asarray(features) if on_device else features

    def __call__(self, page_ids: Sequence[str]) -> tuple[Any, Any]:
        """Features of some pages; or, where the tier is "step", nothing and the pages themselves."""
        if self.tier == "step":
            pages = [self.backbone.page_processor(self.images(page)) for page in page_ids]
            return None, stack_pages(pages, units=max(self.backbone.page_units(*grid) for grid in self.grids.values()))
        rows = np.array([self.index[page] for page in page_ids])
        if isinstance(self._features, jax.Array):
            return jnp.take(self._features, rows, axis=0), None
        picked = np.asarray(self._features[rows])
        return picked.view(self.dtype) if picked.dtype != self.dtype else picked, None

    def _encoder(self) -> Callable[[Any], np.ndarray]:
        """The vision tower, from a batch of pages to their features; all processes take part and get them all."""
        graph, params, placement = self.backbone.graph, self.backbone.params, self.placement

        def encode(params: nnx.State, pages: Any) -> jax.Array:
            with sharing_rows(placement and placement.mesh):
                return nnx.merge(graph, params).encode_pages(pages)

        if placement is None or placement.mesh.size == 1:
            alone = jax.jit(encode)
            return lambda pages: np.asarray(alone(params, pages))
        places = (placement.params, placement.rows)
        shared = jax.jit(encode, in_shardings=places, out_shardings=placement.whole)
        return lambda pages: np.asarray(shared(params, put(pages, placement.rows)))

    def _fill(self, features: np.ndarray | None, batch: int, track: Track) -> None:
        """Run the vision tower over all pages, those of like size together, to keep what it gives or to help only."""
        encode = self._encoder()
        sizes = {page: self.backbone.page_units(*grid) for page, grid in self.grids.items()}
        ends = np.array(length_buckets(list(sizes.values()), PATCH_SIZES))
        groups: list[tuple[int, list[str]]] = []
        for end in ends:
            pages = [p for p in self.index if ends[np.searchsorted(ends, sizes[p])] == end]
            groups += [(int(end), pages[i : i + batch]) for i in range(0, len(pages), batch)]
        for units, pages in track(groups, "Vision tower"):
            encoded = [self.backbone.page_processor(self.images(page)) for page in pages]
            encoded += [encoded[0]] * (batch - len(encoded))
            out = encode(stack_pages(encoded, units=units))
            if features is None:
                continue
            for page, row in zip(pages, out, strict=False):
                tokens = self.backbone.page_tokens(*self.grids[page])
                features[self.index[page], :tokens] = row[:tokens].view(features.dtype)

    def _on_disk(self, directory: Path, batch: int, track: Track) -> np.ndarray:
        """A memory-mapped file named after what it depends on, written whole before it gets that name."""
        key = hashlib.sha256("\n".join([self.backbone.fingerprint, *self.index]).encode()).hexdigest()[:24]
        path = directory / f"features-{key}.npy"
        if not hosts.anywhere(not path.exists()):
            return np.load(path, mmap_mode="r", allow_pickle=False)
        if hosts.first():
            # Names of their own keep two runs that fill one folder apart.
            with staging(path) as folder:
                temporary = folder / path.name
                storable = self.dtype if self.dtype.kind == "f" else np.dtype(f"u{self.dtype.itemsize}")
                with writing(path):
                    mapped = mapped_array(temporary, storable, self.shape)
                self._fill(mapped, batch, track)
                mapped.flush()
                os.replace(temporary, path)
        else:
            self._fill(None, batch, track)
        hosts.barrier()
        return np.load(path, mmap_mode="r", allow_pickle=False)
