"""Arrays too costly to make at every step: made once, and kept in the first place that holds them all."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from fixate_jax.backbones.sharding import sharing_rows
from fixate_jax.errors import require
from fixate_jax.pipeline.placement import Placement, put
from fixate_jax.probing.batches import length_buckets
from fixate_jax.runtime import hosts
from fixate_jax.runtime.durable import mapped_array, staging, writing

Tier = Literal["device", "host", "disk", "step"]
PATCH_SIZES = 4
"""Largest number of padded page sizes, each one compilation of the vision tower."""
Key = TypeVar("Key")


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """Where page features (the vision tower's output) are kept: the first place they fit wins.

    With `prompt.position: after_image` it is the page's keys and values in every decoder layer, where they fit.
    """

    device_bytes: int = 2**30
    """Budget in accelerator memory."""
    host_bytes: int = 4 * 2**30
    """Budget in main memory."""
    disk_bytes: int = 64 * 2**30
    """Budget on disk, under `directory`."""
    directory: Path | None = None
    """Folder of the disk cache (None: `features/` in the run directory)."""

    def __post_init__(self) -> None:
        for name in ("device_bytes", "host_bytes", "disk_bytes"):
            require(getattr(self, name) >= 0, f"cache.{name}", getattr(self, name), "must not be negative")


def choose_tier(size: int, cache: CacheConfig) -> Tier:
    """The first place whose budget holds ``size`` bytes; "step" (make them every time) if none does."""
    budgets: list[tuple[Tier, int]] = [
        ("device", cache.device_bytes),
        ("host", cache.host_bytes),
        ("disk", cache.disk_bytes),
    ]
    return next((tier for tier, budget in budgets if size <= budget), "step")


def groups_of_like_size(sizes: Mapping[Key, int], batch: int) -> list[tuple[int, list[Key]]]:
    """Things in batches, those of like size together, each with the size that all of its group are padded to.

    Args:
        sizes: of each thing.
        batch: most things at a time.
    """
    ends = np.array(length_buckets(list(sizes.values()), PATCH_SIZES))
    groups: list[tuple[int, list[Key]]] = []
    for end in ends:
        members = [key for key, size in sizes.items() if ends[np.searchsorted(ends, size)] == end]
        groups += [(int(end), members[i : i + batch]) for i in range(0, len(members), batch)]
    return groups


def shared_out(
    function: Callable[[PyTree, Any], jax.Array], params: PyTree, placement: Placement | None
) -> Callable[[Any], np.ndarray]:
    """A function of weights and a batch, compiled; the devices of a mesh share the batch, and every process gets all.

    Args:
        function: what to compute, its result batch first. On one device it is compiled once for all functions that are
            equal, so give one that is compared by what it depends on.
        params: the weights.
        placement: the mesh (None: where the weights are).
    """

    if placement is None or placement.mesh.size == 1:
        return lambda batch: np.asarray(_alone(function, params, batch))

    def run(params: PyTree, batch: Any) -> jax.Array:
        with sharing_rows(placement.mesh):
            return function(params, batch)

    shared = jax.jit(run, in_shardings=(placement.params, placement.rows), out_shardings=placement.whole)
    return lambda batch: np.asarray(shared(params, put(batch, placement.rows)))


@partial(jax.jit, static_argnums=0)
def _alone(function: Callable[[PyTree, Any], jax.Array], params: PyTree, batch: Any) -> jax.Array:
    return function(params, batch)


@jax.jit
def _take(rows: Float[Array, "every ..."], at: Int[Array, " chosen"]) -> Float[Array, "chosen ..."]:
    return rows[at]


class Kept:
    """An array of many rows, some of which are asked for at a time.

    Attributes:
        tier: where it is; "step": nowhere.
        shape: of the whole; the first axis runs over rows.
        dtype: of its numbers.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: Any,
        cache: CacheConfig,
        *,
        file: Callable[[], Path],
        fill: Callable[[np.ndarray | None], None],
    ):
        """Choose the tier and fill it.

        Args:
            shape: of the whole.
            dtype: of its numbers.
            cache: the budgets.
            file: path on the disk tier; its name says what the numbers depend on.
            fill: writes the numbers into zeros of the shape; those of a type that files do not know come as integers.
                Given None it only helps another process that writes them.
        """
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.tier = choose_tier(int(np.prod(shape)) * self.dtype.itemsize, cache)
        self.rows: Any = None
        if self.tier == "disk":
            self.rows = self._on_disk(file(), fill)
        elif self.tier != "step":
            rows = np.zeros(shape, self.dtype)
            fill(rows)
            # With several processes a batch is put together on the host, from each one's rows.
            on_device = self.tier == "device" and jax.process_count() == 1
            self.rows = jax.device_put(rows) if on_device else rows

    def __call__(self, indices: Sequence[int] | Int[np.ndarray, " rows"]) -> Any:
        """Some rows, one for each index."""
        assert self.tier != "step", "nothing is kept"
        at = np.asarray(indices)
        if isinstance(self.rows, jax.Array):
            return _take(self.rows, at)
        picked = np.asarray(self.rows[at])
        return picked.view(self.dtype) if picked.dtype != self.dtype else picked

    def _on_disk(self, path: Path, fill: Callable[[np.ndarray | None], None]) -> np.ndarray:
        """A memory-mapped file, written whole before it gets its name."""
        if not hosts.anywhere(not path.exists()):
            return np.load(path, mmap_mode="r", allow_pickle=False)
        if hosts.first():
            # Names of their own keep two runs that fill one folder apart.
            with staging(path) as folder:
                temporary = folder / path.name
                storable = self.dtype if self.dtype.kind == "f" else np.dtype(f"u{self.dtype.itemsize}")
                with writing(path):
                    mapped = mapped_array(temporary, storable, self.shape)
                fill(mapped)
                mapped.flush()
                os.replace(temporary, path)
        else:
            fill(None)
        hosts.barrier()
        return np.load(path, mmap_mode="r", allow_pickle=False)
