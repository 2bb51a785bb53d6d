"""Page features: the vision tower runs once per page, and what it gives is kept where it fits."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from PIL import Image

from fixate_jax.backbones import Backbone, stack_pages
from fixate_jax.pipeline.kept import CacheConfig, Kept, Tier, groups_of_like_size, shared_out
from fixate_jax.pipeline.placement import Placement
from fixate_jax.runtime.progress import Track


@dataclass(frozen=True)
class _EncodePages:
    """The vision tower as a function that is equal for equal structures."""

    graph: nnx.GraphDef

    def __call__(self, params: nnx.State, pages: Any) -> jax.Array:
        model: Any = nnx.merge(self.graph, params)
        found: jax.Array = model.encode_pages(pages)
        return found


class FeatureStore:
    """Features of a fixed set of pages.

    Attributes:
        grids: rows and columns of cells of each page.
        kept: the features.
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
        tokens = max(backbone.page_tokens(*grid) for grid in self.grids.values())
        self.shape = (len(self.index), tokens, backbone.image_levels, backbone.width)
        self.kept = Kept(
            self.shape,
            backbone.config.decoder.dtype,
            cache,
            file=lambda: directory / f"features-{self._key()}.npy",
            fill=lambda features: self._fill(features, batch, track),
        )

    @property
    def tier(self) -> Tier:
        """Where they are."""
        return self.kept.tier

    def __call__(self, page_ids: Sequence[str]) -> tuple[Any, Any]:
        """Features of some pages; or, where the tier is "step", nothing and the pages themselves."""
        if self.tier == "step":
            return None, self.pages(page_ids)
        return self.kept([self.index[page] for page in page_ids]), None

    def units(self, page_id: str) -> int:
        """Units (patches, tiles) of a page."""
        return self.backbone.page_units(*self.grids[page_id])

    def pages(self, page_ids: Sequence[str], *, units: int | None = None) -> Any:
        """Some pages as the vision tower reads them, padded to the largest of all, or to so many units."""
        read = {page: self.backbone.page_processor(self.images(page)) for page in dict.fromkeys(page_ids)}
        return stack_pages([read[page] for page in page_ids], units=units or max(map(self.units, self.grids)))

    def _key(self) -> str:
        return hashlib.sha256("\n".join([self.backbone.fingerprint, *self.index]).encode()).hexdigest()[:24]

    def _fill(self, features: np.ndarray | None, batch: int, track: Track) -> None:
        """Run the vision tower over all pages, those of like size together, to keep what it gives or to help only."""
        encode = shared_out(_EncodePages(self.backbone.graph), self.backbone.params, self.placement)
        groups = groups_of_like_size({page: self.units(page) for page in self.index}, batch)
        for units, pages in track(groups, "Vision tower"):
            out = encode(self.pages([*pages, *[pages[0]] * (batch - len(pages))], units=units))
            if features is None:
                continue
            for page, row in zip(pages, out, strict=False):
                tokens = self.backbone.page_tokens(*self.grids[page])
                features[self.index[page], :tokens] = row[:tokens].view(features.dtype)
