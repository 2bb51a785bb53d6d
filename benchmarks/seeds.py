"""Seeds side by side: several seeds of the same settings as one program, beside tuning one after the other.

python -m benchmarks.seeds                                  a few minutes on 2 cores
python -m benchmarks.seeds --seeds 3 --steps 2 --pairs 3    a quick look

Both take the library's own steps, from putting the batches together to the new states; compiling is not counted. A
round is some steps of every seed. The two take turns.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
from rich.console import Console
from rich.table import Table

from benchmarks.__main__ import time_all
from fixate_jax.config import (
    BackboneConfig,
    DataConfig,
    ObjectiveConfig,
    OperatorConfig,
    PromptConfig,
    RunConfig,
    TrainConfig,
)
from fixate_jax.data import open_or_prepare
from fixate_jax.tuning.loop import Training
from fixate_jax.tuning.setup import Workspace, open_workspace
from fixate_jax.tuning.side_by_side import SideBySide

SEEDS = (3, 5)
NEVER = 10**9
"""Steps between checkpoints and epochs between validations: neither is timed."""


def settings(parsed: argparse.Namespace, folder: Path) -> RunConfig:
    """Made-up people on small choice pages, all sequences of one length."""
    return RunConfig(
        data=DataConfig(name="synthetic_choice", max_users=4, store=folder / "store"),
        backbone=BackboneConfig(path=parsed.backbone, tapped_layers=2, unroll=True),
        operator=OperatorConfig(name=parsed.operator, normalise="abs"),
        objective=ObjectiveConfig(alignment="kl", warmup=0),
        prompt=PromptConfig(init_scale=0.3),
        train=TrainConfig(
            epochs=1000, batch=parsed.batch, accumulate=1, validate_every=NEVER, checkpoint_every=NEVER, max_lengths=1
        ),
    )


def begun(workspace: Workspace, folder: Path, seeds: int) -> list[Training]:
    """So many runs at their first step; the jitted step of the first serves all when they go one after the other."""
    runs = [Training(workspace, workspace.config, folder / str(seed), seed) for seed in range(seeds)]
    for run in runs:
        run.train_step = runs[0].train_step
    return runs


def one_after_the_other(runs: list[Training], steps: int) -> Callable[[], None]:
    """Some steps of each run, one run after the other."""

    def call() -> None:
        for run in runs:
            for _ in range(steps):
                run.advance()
            jax.block_until_ready(run.state)

    return call


def side_by_side(runs: list[Training], steps: int) -> Callable[[], None]:
    """Some steps of all runs at once."""
    together = SideBySide(runs)

    def call() -> None:
        for _ in range(steps):
            together.advance()
        jax.block_until_ready(together.state)

    return call


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS), help="how many seeds")
    parser.add_argument("--steps", type=int, default=10, help="optimizer steps of a round")
    parser.add_argument("--batch", type=int, default=4, help="sessions a step")
    parser.add_argument("--pairs", type=int, default=7, help="interleaved rounds")
    parser.add_argument("--backbone", default="tiny-qwen3-vl", help="which one")
    parser.add_argument("--operator", default="attention", help="which one")
    parsed = parser.parse_args(arguments)
    console, device = Console(width=120), jax.devices()[0]
    title = f"Medians of {parsed.pairs} interleaved rounds of {parsed.steps} steps of {parsed.batch} for each seed"
    table = Table("seeds", "side by side, steps/s", "one after the other, steps/s", "ratio", title=title)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        config = settings(parsed, folder)
        workspace = open_workspace(config, open_or_prepare(config.data), directory=folder)
        for seeds in parsed.seeds:
            calls = {
                "together": side_by_side(begun(workspace, folder / f"together-{seeds}", seeds), parsed.steps),
                "alone": one_after_the_other(begun(workspace, folder / f"alone-{seeds}", seeds), parsed.steps),
            }
            times = time_all(calls, parsed.pairs)
            ratio = statistics.median(b / a for a, b in zip(times["together"], times["alone"], strict=True))
            rates = (f"{seeds * parsed.steps / statistics.median(times[name]):.2f}" for name in calls)
            table.add_row(str(seeds), *rates, f"{ratio:.2f}")
    console.print(f"{parsed.backbone}, operator {parsed.operator}, {device.device_kind}")
    console.print(table)


if __name__ == "__main__":
    main()
