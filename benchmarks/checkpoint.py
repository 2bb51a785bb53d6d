"""How long the training loop is held up by a checkpoint: written in place, and in a thread.

python -m benchmarks.checkpoint               under a minute
python -m benchmarks.checkpoint --pairs 5     a quick look

The state is that of `fixate train` for so many users of a backbone of that width. Between checkpoints the loop computes
for a while, as it does between `train.checkpoint_every` steps, so that the thread has the time that it has there.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree
from rich.console import Console
from rich.table import Table

from fixate_jax.lab.config import RunConfig
from fixate_jax.lab.experiments.loop import start_state
from fixate_jax.tuning.background import BackgroundSaver, snapshot
from fixate_jax.tuning.checkpoint import CheckpointStore

SIZES = ((12, 128), (40, 2560), (200, 2560))
"""Users and width: the demo's, and two of a backbone of 4 B parameters."""


def held_up(save: Callable[[int], object], work: Callable[[], Any], *, pairs: int) -> list[float]:
    """Seconds of each call, with work in between."""
    seconds = []
    for step in range(pairs):
        jax.block_until_ready(work())
        begin = time.perf_counter()
        save(step)
        seconds.append(time.perf_counter() - begin)
    return seconds


def _in_place(store: CheckpointStore, state: PyTree, step: int) -> None:
    store.save(step, state, {})


def _in_a_thread(saver: BackgroundSaver, state: PyTree, step: int) -> None:
    saver.save(step, snapshot(state), {})


def main(arguments: list[str] | None = None) -> None:
    """Print a table: medians in milliseconds and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--busy", type=int, default=400, help="matrix products between checkpoints")
    options = parser.parse_args(arguments)
    table = Table("users", "width", "MB", "in place [ms]", "in a thread [ms]", "ratio")
    matrix = jnp.ones((512, 512)) / 512
    busy = jax.jit(lambda: jax.lax.fori_loop(0, options.busy, lambda _, x: x @ matrix, matrix))
    for users, width in SIZES:
        made = start_state(RunConfig(), users=users, width=width, seed=0)
        state = {"state": made, "best": made.prompt}
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 1e6
        with tempfile.TemporaryDirectory() as folder:
            plain = CheckpointStore(Path(folder) / "plain")
            before = held_up(partial(_in_place, plain, state), busy, pairs=options.pairs)
            with BackgroundSaver(CheckpointStore(Path(folder) / "thread")) as saver:
                after = held_up(partial(_in_a_thread, saver, state), busy, pairs=options.pairs)
        first, second = (1e3 * statistics.median(x[1:]) for x in (before, after))
        table.add_row(str(users), str(width), f"{size:.1f}", f"{first:.1f}", f"{second:.1f}", f"{first / second:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
