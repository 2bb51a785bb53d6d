"""Does the input pipeline keep up: sessions a second that it delivers, beside what a tiny backbone's step consumes.

python -m benchmarks.input_pipeline               about 7 minutes on 2 cores
python -m benchmarks.input_pipeline --pairs 3     a quick look

Pages are carousels of synthetic users, the step is that of training with the operator attention.
Every round begins with a new iterator, so nothing was read ahead while something else was timed. What happens once,
before training, is timed apart from it: making the store, and running the vision tower over its pages.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from benchmarks.__main__ import time_all
from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.data.options import DataConfig
from fixate_jax.data.registry import DATASETS, open_or_prepare, store_settings
from fixate_jax.data.store import SessionStore, StoreWriter
from fixate_jax.lab.config import ObjectiveConfig, OperatorConfig, RunConfig, TrainConfig
from fixate_jax.lab.experiments.loop import start_state
from fixate_jax.lab.experiments.programs import make_train_step
from fixate_jax.lab.experiments.workspace import Workspace, open_workspace
from fixate_jax.pipeline.features import FeatureStore
from fixate_jax.probing.batches import Batch, TrainingPlan, training_iterator
from fixate_jax.runtime.progress import track

BACKBONES = ("tiny-qwen3-vl", "tiny-internvl")
BATCHES = (4, 16)
PIPELINE, STEP, FED = "pipeline", "step", "step fed by the pipeline"
TARGET = 5.0
"""Sessions that the pipeline delivers for each one that the step consumes."""


@dataclass(frozen=True, kw_only=True)
class Once:
    """What is done once for a store and a backbone.

    Attributes:
        what: what is done.
        pages: so many pages.
        seconds: that it took.
    """

    what: str
    pages: int
    seconds: float


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


def prepare(data: DataConfig) -> tuple[SessionStore, list[Once]]:
    """A new store, and what it took until the pages were drawn."""
    began = [time.perf_counter()]

    def writer_of(names: tuple[str, ...]) -> StoreWriter:
        # Asked for once everything is read.
        began.append(time.perf_counter())
        assert data.store is not None
        return StoreWriter(data.store, name=data.name, settings=store_settings(data), slot_feature_names=names)

    DATASETS[data.name].prepare(data, writer_of)
    began.append(time.perf_counter())
    store = open_or_prepare(data)
    pages = len({session.page_id for session in store.sessions})
    read_s, draw_s = (b - a for a, b in pairwise(began))
    return store, [
        Once(what="users and pages drawn up", pages=pages, seconds=read_s),
        Once(what="pages drawn and stored", pages=pages, seconds=draw_s),
    ]


def time_tower(workspace: Workspace, directory: Path) -> list[Once]:
    """All pages through the vision tower, and a group of pages once it is compiled."""
    seconds: list[float] = []

    def timed(groups: Sequence[Any], title: str) -> Iterator[Any]:
        for group in track(groups, title):
            start = time.perf_counter()
            yield group
            seconds.append(time.perf_counter() - start)

    pages, group = list(workspace.features.index), workspace.config.train.eval_batch
    start = time.perf_counter()
    FeatureStore(
        workspace.backbone,
        workspace.store.image,
        pages,
        workspace.config.cache,
        directory=directory,
        batch=group,
        track=timed,
    )
    name = f"vision tower, {workspace.config.backbone.path}"
    return [
        Once(what=f"{name}, with compilation", pages=len(pages), seconds=time.perf_counter() - start),
        Once(what=f"{name}, a group, compiled", pages=group, seconds=statistics.median(seconds)),
    ]


def pipeline_row(name: str, trainer: Trainer, times: dict[str, list[float]], batch: int) -> list[str]:
    """A line of the table of rates."""
    rates = {of: trainer.sessions / statistics.median(seconds) for of, seconds in times.items()}
    ratio = statistics.median(b / a for a, b in zip(times[PIPELINE], times[STEP], strict=True))
    fed = statistics.median(b / a for a, b in zip(times[STEP], times[FED], strict=True))
    return [name, str(batch), *(f"{rates[of]:.0f}" for of in times), f"{ratio:.1f}", f"{fed:.2f}"]


def once_table(found: Sequence[Once]) -> Table:
    """What is done before training."""
    table = Table("", "pages", "s", "pages/s", title="Once, before training")
    for once in found:
        rate = f"{once.pages / once.seconds:.0f}"
        table.add_row(once.what, str(once.pages), f"{once.seconds:.2f}", rate)
    return table


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20, help="interleaved rounds")
    parser.add_argument("--backbones", nargs="+", default=list(BACKBONES), help="which ones")
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES), help="sessions a step")
    parser.add_argument("--steps", type=int, default=12, help="steps of a round")
    parser.add_argument("--users", type=int, default=8, help="synthetic users")
    parsed = parser.parse_args(arguments)
    console = Console(width=140)
    headings = (f"{PIPELINE}, sessions/s", f"{STEP}, sessions/s", f"{FED}, sessions/s")
    title = f"Medians of {parsed.pairs} interleaved rounds of {parsed.steps} steps"
    table = Table(
        "backbone", "batch", *headings, f"{PIPELINE} ÷ {STEP} (target ≥ {TARGET:.0f})", "time, fed ÷ not", title=title
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = DataConfig(name="synthetic_carousel", max_users=parsed.users, page_width=320, store=folder / "store")
        store, once = prepare(data)
        for name in parsed.backbones:
            workspace = open_workspace(settings(name, data), store, directory=folder / name)
            once += time_tower(workspace, folder / name)
            shapes = workspace.data.buckets
            console.print(f"{name}: {[s.seq for s in shapes]} positions, features on the {workspace.features.tier}")
            for batch in parsed.batches:
                trainer = Trainer(workspace, batch=batch, steps=parsed.steps)
                table.add_row(*pipeline_row(name, trainer, time_all(trainer.calls(), parsed.pairs), batch))
    console.print(f"{store.manifest['name']}, {len(store.sessions)} sessions, {jax.devices()[0].device_kind}")
    console.print(table, once_table(once))


if __name__ == "__main__":
    main()
