"""Does the input pipeline keep up: sessions a second that it delivers, beside what a tiny backbone's step consumes.

python -m benchmarks.input_pipeline               about 5 minutes on 2 cores
python -m benchmarks.input_pipeline --pairs 3     a quick look

Pages are those of made-up people before RecGaze's screens, the step is that of training with the operator attention.
Every round begins with a new iterator, so nothing was read ahead while something else was timed. What happens once,
before training, is timed apart from it: making the store, and running the vision tower over its pages.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from benchmarks.__main__ import time_all
from fixate_jax.config import BackboneConfig, DataConfig, ObjectiveConfig, OperatorConfig, RunConfig, TrainConfig
from fixate_jax.data import SessionStore, open_or_prepare
from fixate_jax.progress import track
from fixate_jax.tuning.batches import Batch, TrainingPlan, training_iterator
from fixate_jax.tuning.features import FeatureStore
from fixate_jax.tuning.loop import start_state
from fixate_jax.tuning.setup import Workspace, open_workspace
from fixate_jax.tuning.step import make_train_step

BACKBONES = ("tiny-qwen3-vl", "tiny-internvl")
BATCHES = (4, 16)
PIPELINE, STEP, FED = "pipeline", "step", "step fed by the pipeline"
TARGET = 5.0
"""Sessions that the pipeline delivers for each one that the step consumes."""


@dataclass(frozen=True, kw_only=True)
class Once:
    """What is done once for a store and a backbone.

    Attributes:
        pages: different pages.
        prepare_s: seconds to make up the people's logs, to read them and to draw and store the pages.
        tower_s: seconds for all pages through the vision tower, compilation included.
        group_s: median seconds of a group of pages through the compiled tower.
        group: pages of a group.
    """

    pages: int
    prepare_s: float
    tower_s: float
    group_s: float
    group: int


class Trainer:
    """The iterator and the step of `fixate train` on the first steps of an epoch."""

    def __init__(self, workspace: Workspace, *, batch: int, steps: int):
        """Plan ``steps`` steps of ``batch`` sessions; fewer where the epoch has fewer."""
        config = replace(workspace.config, train=replace(workspace.config.train, batch=batch, accumulate=1))
        self.workspace = workspace
        self.plan = TrainingPlan(workspace.data, workspace.splits["train"], rows=batch, seed=0, epochs=1)
        self.steps = min(steps, len(self.plan))
        users = len(workspace.users)
        self.step = make_train_step(workspace.backbone.graph, config, users=users, steps=len(self.plan))
        state = start_state(config, users=users, width=workspace.backbone.width, seed=0)
        self.state = workspace.replicate(state)
        self.resident = list(self._batches())

    @property
    def sessions(self) -> int:
        """Sessions in these steps, rows that only fill a batch not counted."""
        return sum(int((self.plan[i] >= 0).sum()) for i in range(self.steps))

    def _batches(self) -> Iterator[Batch]:
        """From a new iterator, each placed on the device before the next is asked for."""
        batches = training_iterator(self.workspace.data, self.plan, accumulate=1)
        for _ in range(self.steps):
            yield jax.block_until_ready(self.workspace.place(next(batches), micro=True))

    def _train(self, batches: Sequence[Batch] | Iterator[Batch]) -> None:
        for batch in batches:
            self.state, _ = self.step(self.state, self.workspace.params, batch)
        jax.block_until_ready(self.state)

    def calls(self) -> dict[str, Callable[[], Any]]:
        """What is timed."""
        return {
            PIPELINE: lambda: [None for _ in self._batches()],
            STEP: lambda: self._train(self.resident),
            FED: lambda: self._train(self._batches()),
        }


def settings(backbone: str, data: DataConfig) -> RunConfig:
    """The tiny training run, operator attention."""
    return RunConfig(
        data=data,
        backbone=BackboneConfig(path=backbone, tapped_layers=2, unroll=True),
        operator=OperatorConfig(name="attention", assignment="area"),
        objective=ObjectiveConfig(alignment="kl", warmup=0),
        train=TrainConfig(eval_batch=32),
    )


def time_tower(workspace: Workspace, directory: Path) -> tuple[float, float, int]:
    """Seconds for all pages, median seconds of a group of pages, and pages of a group."""
    seconds: list[float] = []

    def timed(groups: Sequence[Any], title: str) -> Iterator[Any]:
        for group in track(groups, title):
            start = time.perf_counter()
            yield group
            seconds.append(time.perf_counter() - start)

    start, group = time.perf_counter(), workspace.config.train.eval_batch
    FeatureStore(
        workspace.backbone,
        workspace.store.image,
        list(workspace.features.index),
        workspace.config.cache,
        directory=directory,
        batch=group,
        track=timed,
    )
    return time.perf_counter() - start, statistics.median(seconds), group


def prepare(data: DataConfig) -> tuple[SessionStore, float]:
    """A new store, and the seconds it took."""
    start = time.perf_counter()
    return open_or_prepare(data), time.perf_counter() - start


def pipeline_row(name: str, trainer: Trainer, times: dict[str, list[float]], batch: int) -> list[str]:
    """A line of the table of rates."""
    rates = {of: trainer.sessions / statistics.median(seconds) for of, seconds in times.items()}
    ratio = statistics.median(b / a for a, b in zip(times[PIPELINE], times[STEP], strict=True))
    fed = statistics.median(b / a for a, b in zip(times[STEP], times[FED], strict=True))
    return [name, str(batch), *(f"{rates[of]:.0f}" for of in times), f"{ratio:.1f}", f"{fed:.2f}"]


def once_table(found: dict[str, Once]) -> Table:
    """What is done before training."""
    table = Table("", "pages", "s", "pages/s", title="Once, before training")
    for number, (name, once) in enumerate(found.items()):
        if number == 0:
            rate = f"{once.pages / once.prepare_s:.0f}"
            table.add_row("people made up, logs read, pages drawn", str(once.pages), f"{once.prepare_s:.1f}", rate)
        whole = f"{once.pages / once.tower_s:.0f}"
        table.add_row(f"vision tower, {name}, with compilation", str(once.pages), f"{once.tower_s:.1f}", whole)
        rate = f"{once.group / once.group_s:.0f}"
        table.add_row(f"vision tower, {name}, compiled", str(once.group), f"{once.group_s:.2f}", rate)
    return table


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20, help="interleaved rounds")
    parser.add_argument("--backbones", nargs="+", default=list(BACKBONES), help="which ones")
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES), help="sessions a step")
    parser.add_argument("--steps", type=int, default=12, help="steps of a round")
    parser.add_argument("--users", type=int, default=8, help="made-up people")
    parsed = parser.parse_args(arguments)
    console = Console(width=140)
    headings = (f"{PIPELINE}, sessions/s", f"{STEP}, sessions/s", f"{FED}, sessions/s")
    title = f"Medians of {parsed.pairs} interleaved rounds of {parsed.steps} steps"
    table = Table(
        "backbone", "batch", *headings, f"{PIPELINE} ÷ {STEP} (target ≥ {TARGET:.0f})", "time, fed ÷ not", title=title
    )
    found: dict[str, Once] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = DataConfig(name="synthetic_recgaze", max_users=parsed.users, page_width=320, store=folder / "store")
        store, prepare_s = prepare(data)
        for name in parsed.backbones:
            workspace = open_workspace(settings(name, data), store, directory=folder / name)
            tower_s, group_s, group = time_tower(workspace, folder / name)
            pages = len(workspace.features.index)
            found[name] = Once(pages=pages, prepare_s=prepare_s, tower_s=tower_s, group_s=group_s, group=group)
            shapes = workspace.data.buckets
            console.print(f"{name}: {[s.seq for s in shapes]} positions, features on the {workspace.features.tier}")
            for batch in parsed.batches:
                trainer = Trainer(workspace, batch=batch, steps=parsed.steps)
                table.add_row(*pipeline_row(name, trainer, time_all(trainer.calls(), parsed.pairs), batch))
    console.print(f"{store.manifest['name']}, {len(store.sessions)} sessions, {jax.devices()[0].device_kind}")
    console.print(table, once_table(found))


if __name__ == "__main__":
    main()
