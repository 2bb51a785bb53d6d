"""A loss, gradient or parameter that is not finite: found out, named, and kept for a look at it."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from fixate_jax.errors import DivergedError
from fixate_jax.probing.batches import Batch, SessionData
from fixate_jax.runtime import hosts
from fixate_jax.runtime.durable import replacing, write_text

SHOWN = 16
"""Sessions that the message names; the file names all."""


def not_finite(values: Mapping[str, Any]) -> dict[str, float]:
    """The numbers among some values that are NaN or infinite."""
    return {name: x for name, x in values.items() if isinstance(x, float) and not math.isfinite(x)}


def not_finite_leaves(tree: PyTree) -> dict[str, float]:
    """The leaves of a tree on the host that hold NaN or infinity, each with its first such number."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        values = np.asarray(leaf)
        if not jnp.issubdtype(values.dtype, jnp.floating):
            continue
        wrong = ~np.isfinite(values)
        if wrong.any():
            found[jax.tree_util.keystr(path, simple=True, separator=".")] = float(values[wrong][0])
    return found


def diverged(
    step: int, values: Mapping[str, float], *, data: SessionData, rows: list[int], directory: Path, last: int | None
) -> DivergedError:
    """Save the batch of a step, and make the error to raise.

    Args:
        step: the optimizer step, counted from 1.
        values: what was not finite in it.
        data: the run's sessions.
        rows: indices of the sessions that made up the step; -1 for those that only fill it.
        directory: of the run.
        last: step of the newest checkpoint, or None.

    Raises:
        DiskError: the batch cannot be written.
    """
    path = directory / f"diverged-step-{step:08d}.npz"
    sessions = [
        {"row": row, "session_id": s.session_id, "user_id": s.user_id, "page_id": s.page_id}
        for row, index in enumerate(rows)
        if index >= 0
        for s in [data.sessions[index]]
    ]
    if hosts.first():
        types = save_batch(path, data.batch(rows))
        about = {
            "step": step,
            "not_finite": {k: str(v) for k, v in values.items()},
            "sessions": sessions,
            "types": types,
        }
        write_text(path.with_suffix(".json"), json.dumps(about, indent=1, ensure_ascii=False) + "\n")
    names = [str(s["session_id"]) for s in sessions]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    kept = "there is no checkpoint yet" if last is None else f"checkpoints up to step {last} are finite and stay"
    return DivergedError(
        f"step {step}: {', '.join(f'{name} is {value}' for name, value in values.items())}. Sessions in the batch: "
        f"{', '.join(names[:SHOWN])}{more}. The batch is in {path}, its sessions in {path.with_suffix('.json').name}; "
        f"{kept}. The same command comes to the same step: look at these sessions, or lower the learning rates in "
        "another --run"
    )


def save_batch(path: Path, batch: Batch) -> dict[str, str]:
    """Write a batch's arrays by their names in it, as numbers that need no pickle.

    Returns:
        Types of those that NumPy has no name for, such as bfloat16; they are in the file as unsigned integers.
    """
    arrays, types = {}, {}
    for at, leaf in jax.tree_util.tree_leaves_with_path(batch):
        name, array = jax.tree_util.keystr(at, simple=True, separator="."), np.asarray(leaf)
        if array.dtype.isbuiltin != 1:
            types[name], array = array.dtype.name, array.view(f"u{array.dtype.itemsize}")
        arrays[name] = array
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    return types
