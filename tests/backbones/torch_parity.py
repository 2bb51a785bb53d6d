"""What transformers computes, layer by layer, to compare our backbones with; skips tests where torch is missing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx
from jaxtyping import Int, Shaped

from fixate_jax.lab.verify import torch_side as verify_torch


def load_torch_model(model_dir: Path) -> Any:
    """transformers' model in float32 with plain attention."""
    pytest.importorskip("torch")
    return verify_torch.load_torch_model(model_dir)


def torch_hidden_states(model_dir: Path, *, model: Any = None, **inputs: Any) -> dict[str, Any]:
    """See :func:`fixate_jax.lab.verify.torch_side.torch_states`; without ``model`` the checkpoint is loaded."""
    return verify_torch.torch_states(load_torch_model(model_dir) if model is None else model, **inputs)


def left_pad(
    rows: list[Int[np.ndarray, " length"]], *, pad: int
) -> tuple[Int[np.ndarray, "batch seq"], Int[np.ndarray, "batch seq"]]:
    """Stack token rows of different lengths, aligned at their ends.

    Returns:
        The tokens, and a mask that is 0 at padding.
    """
    longest = max(len(row) for row in rows)
    ids = np.stack([np.pad(row, (longest - len(row), 0), constant_values=pad) for row in rows])
    mask = np.stack([np.arange(longest) >= longest - len(row) for row in rows]).astype(np.int64)
    return ids, mask


def page_token_rows(
    grids: Int[np.ndarray, "images 3"], *, config: Any, merge: int = 2, seed: int = 0, text: tuple[int, ...] = (7, 11)
) -> list[Shaped[np.ndarray, " length"]]:
    """Random text around the image pads of one page a row; ``text[i]`` random tokens before and after row ``i``'s."""
    rng = np.random.default_rng(seed)
    rows = []
    for i, grid in enumerate(grids):
        count = text[i % len(text)]
        before, after = rng.integers(0, 400, (2, count))
        pads = np.full(int(np.prod(grid)) // merge**2, config.image_token_id)
        rows.append(np.concatenate([before, [config.vision_start_token_id], pads, [config.vision_end_token_id], after]))
    return rows


def largest_difference(ours: Any, theirs: Any) -> float:
    """Largest absolute difference of two arrays."""
    return float(np.abs(np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)).max())


def swap(params: nnx.State, first: str, second: str) -> nnx.State:
    """The parameters with two of them (by the end of their path) exchanged wherever both stand side by side."""
    flat: Mapping[Any, Any] = dict(nnx.to_flat_state(params))
    swapped = dict(flat)
    exchanged = False
    for path in flat:
        dotted = ".".join(map(str, path))
        if dotted.endswith(first):
            stem = dotted[: -len(first)]
            other = next((p for p in flat if ".".join(map(str, p)) == stem + second), None)
            if other is not None:
                swapped[path], swapped[other] = flat[other], flat[path]
                exchanged = True
    assert exchanged, (first, second)
    return nnx.from_flat_state(list(swapped.items()))
