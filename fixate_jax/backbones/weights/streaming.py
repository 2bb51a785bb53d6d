"""From views of files to arrays on devices: cast, stacked and cut into each device's part, with no copy between."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Shaped

THREADS = min(8, os.cpu_count() or 1)
BLOCK = (512, 64)
"""Rows and columns transposed at a time: what fits into a processor's cache."""
ALIGNMENT = 64
"""JAX on CPU takes an array over as it is, without a copy, where it starts at a multiple of so many bytes."""


@dataclass(frozen=True)
class StackedSource:
    """What one array is put together from.

    Attributes:
        rows: for each layer the views that are joined along the last axis; one row where nothing is stacked.
        shape: of the array; has an axis more than a row where rows are stacked.
        dtype: of the array.
        pool: where views are copied side by side.
        advance: called with the number of bytes that were read.
    """

    rows: Sequence[Sequence[np.ndarray]]
    shape: tuple[int, ...]
    dtype: Any
    pool: ThreadPoolExecutor
    advance: Callable[[int], None] = lambda size: None

    @property
    def stacked(self) -> bool:
        """Whether the first axis of the array counts the rows."""
        return len(self.shape) > self.rows[0][0].ndim

    def place(self, sharding: jax.sharding.Sharding | None) -> jax.Array:
        """The array, each device holding its part (None: all on the default device)."""
        if sharding is None:
            return jax.device_put(self.read((slice(None),) * len(self.shape)))
        parts: dict[tuple[range, ...], np.ndarray] = {}

        def read(index: Any) -> np.ndarray:
            # Devices that hold the same part share one reading of it.
            key = tuple(range(*part.indices(size)) for part, size in zip(index, self.shape, strict=True))
            if key not in parts:
                parts[key] = self.read(index)
            return parts[key]

        return jax.make_array_from_callback(self.shape, sharding, read)

    def read(self, index: tuple[slice, ...]) -> Shaped[np.ndarray, "..."]:
        """The part of the array that ``index`` cuts out; nothing else is read."""
        extent = [range(*part.indices(size)) for part, size in zip(index, self.shape, strict=True)]
        target = _aligned_empty(tuple(map(len, extent)), self.dtype)
        if self.stacked:
            targets, rows, extent = target, self.rows[index[0]], extent[1:]
        else:
            targets, rows = target[None], self.rows
        # An index with an ellipsis is a view even of a single number.
        pairs = [pair for i, views in enumerate(rows) for pair in _pieces(targets[i, ...], views, extent)]
        for size in self.pool.map(fill, *zip(*pairs, strict=True)):
            self.advance(size)
        return target


def _pieces(
    row: np.ndarray, views: Sequence[np.ndarray], extent: Sequence[range]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Which view fills which part of ``row``, the ``extent`` of all the views joined."""
    if row.ndim == 0:
        yield row, views[0]
        return
    front, last = tuple(slice(r.start, r.stop) for r in extent[:-1]), extent[-1]
    start = 0
    for view in views:
        end = start + view.shape[-1]
        low, high = max(start, last.start), min(end, last.stop)
        if low < high:
            yield row[..., low - last.start : high - last.start], view[(*front, slice(low - start, high - start))]
        start = end


def _aligned_empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def fill(target: Shaped[np.ndarray, "*shape"], source: Shaped[np.ndarray, "*shape"]) -> int:
    """Copy and cast ``source`` into ``target``, block by block where one of them is transposed.

    Returns:
        The number of bytes read.
    """
    if source.ndim != 2 or (source.flags.c_contiguous and target.flags.c_contiguous):
        _copy(target, source)
    else:
        for i in range(0, source.shape[0], BLOCK[0]):
            for j in range(0, source.shape[1], BLOCK[1]):
                block = np.s_[i : i + BLOCK[0], j : j + BLOCK[1]]
                _copy(target[block], source[block])
    return source.nbytes


def _copy(target: np.ndarray, source: np.ndarray) -> None:
    # Copying plain integers is faster than bfloat16, and other threads may run meanwhile.
    bits = np.dtype(f"u{source.itemsize}")
    if target.dtype == source.dtype:
        target.view(bits)[...] = source.view(bits)
    elif source.flags.c_contiguous:
        target[...] = source
    else:
        target[...] = np.ascontiguousarray(source.view(bits)).view(source.dtype)
