"""Many short runs for one table: tuned and measured once, spread over worker processes, and resumable."""

import json
import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, replace
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import pandas as pd

from fixate_jax.config import RunConfig
from fixate_jax.data import Split, open_or_prepare
from fixate_jax.durable import replacing, write_text
from fixate_jax.errors import ConfigError
from fixate_jax.lock import locked
from fixate_jax.metrics import session_metrics
from fixate_jax.progress import bar
from fixate_jax.tuning.evaluate import predict, swapped_metrics
from fixate_jax.tuning.experiment import BACKBONE, FIXATE, SWAPPED, claim_run, seed_directory
from fixate_jax.tuning.loop import train
from fixate_jax.tuning.predictors import trivial_predictions
from fixate_jax.tuning.setup import Workspace, open_workspace
from fixate_jax.tuning.side_by_side import can_go_together, train_seeds

OPERATORS: dict[str, dict[str, Any]] = {
    "attention": {"name": "attention"},
    "rollout": {"name": "rollout"},
    "attention_gradient": {"name": "attention_gradient"},
    "attn_lrp signed": {"name": "attn_lrp", "normalise": "signed", "eps": 0.1},
    "attn_lrp abs": {"name": "attn_lrp", "normalise": "abs"},
    "attn_lrp positive": {"name": "attn_lrp", "normalise": "positive"},
    "attn_lrp paper": {"name": "attn_lrp", "normalise": "signed", "eps": 1e-4},
    "glimpse": {"name": "glimpse"},
    "lrp": {"name": "lrp"},
}
"""Name in a table → settings. Plain and integrated gradients of the inputs are left out: a step takes too long."""
ASKED = ("attention", "rollout")
"""Operators that do not ask for one answer, so that it makes no difference whose relevance is aligned."""
SECONDS = "cell.json"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Tuning with one seed, and its measures.

    Attributes:
        folder: the run directory, shared with the cells that differ in their seed alone.
        config: the settings.
        seed: of the prompt.
        split: on which it is measured.
        also: dwell signals that slot attention is measured against beside the one it was tuned to.
    """

    folder: Path
    config: RunConfig
    seed: int
    split: Split = "test"
    also: tuple[str, ...] = ()

    @property
    def measures(self) -> Path:
        """The file of its measures, which is there when the cell is finished."""
        return self.folder / f"seed-{self.seed}.parquet"


_stop: Event | None = None
"""Set when another worker has failed; None outside of workers."""

Group = Sequence[Cell]
"""Cells on the same backbone and sessions, which one worker does one after the other."""


def with_operator(config: RunConfig, name: str) -> RunConfig:
    """The settings with an operator of ``OPERATORS``, aligned for the model's own answer where it asks for one.

    Raises:
        ConfigError: when there is no such operator.
    """
    if name not in OPERATORS:
        raise ConfigError(f"operator {name!r}: choose among {', '.join(OPERATORS)}")
    relevance: Literal["click", "own"] = "click" if OPERATORS[name]["name"] in ASKED else "own"
    return replace(
        config,
        operator=replace(config.operator, **OPERATORS[name]),
        objective=replace(config.objective, relevance=relevance),
    )


def run_cells(groups: Sequence[Group], *, out: Path, jobs: int, title: str, together: bool | None = None) -> None:
    """Tune and measure every cell that is not on disk yet.

    Args:
        groups: the cells; every worker process takes one group after the other.
        out: where the workers' logs, compiled programs and page features go.
        jobs: worker processes; each gets its part of the cores.
        title: of the progress bar.
        together: see `run_group`.

    Raises:
        ConfigError: when a folder was made with other settings, or another process is at it.
        FixateError: from tuning; what other workers are at is finished first, and nothing else begun.
    """
    with ExitStack() as locks:
        for folder in dict.fromkeys(cell.folder for group in groups for cell in group):
            locks.enter_context(locked(folder))
        _run_cells(groups, out=out, jobs=jobs, title=title, together=together)


def _run_cells(groups: Sequence[Group], *, out: Path, jobs: int, title: str, together: bool | None) -> None:
    cells = [cell for group in groups for cell in group]
    for cell in cells:
        claim_run(cell.folder, cell.config)
    for data in {repr(cell.config.data): cell.config.data for cell in cells}.values():
        open_or_prepare(data)  # Once, before the workers ask for it.
    waiting_groups = [group for group in groups if not all(cell.measures.exists() for cell in group)]
    if not waiting_groups:
        return
    context = multiprocessing.get_context("spawn")
    cores: Queue[set[int]] = context.Queue()
    stop = context.Event()
    there = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    for part in np.array_split(there, jobs):
        cores.put({int(core) for core in part})
    done = sum(cell.measures.exists() for cell in cells)
    with (
        ProcessPoolExecutor(jobs, mp_context=context, initializer=_start_worker, initargs=(cores, stop, out)) as pool,
        bar(title, len(cells), done=done) as (progress, task),
    ):
        waiting: set[Future[None]] = {pool.submit(run_group, group, out, together) for group in waiting_groups}
        while waiting:
            finished, waiting = wait(waiting, timeout=5.0, return_when="FIRST_COMPLETED")
            progress.update(task, completed=sum(cell.measures.exists() for cell in cells))
            for future in finished:
                if future.exception() is not None:
                    stop.set()  # Leaving the pool waits for the other workers.
                    progress.console.print(f"stopping after the present cells: {future.exception()!r}")
                future.result()


def _start_worker(cores: "Queue[set[int]]", stop: Event, out: Path) -> None:
    """Take a part of the cores, keep compiled programs, and leave the terminal to the parent's bar."""
    global _stop
    _stop = stop
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores.get())
    log = os.open(out / f"worker-{os.getpid()}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    jax.config.update("jax_compilation_cache_dir", str(out / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def run_group(group: Group, out: Path, together: bool | None = None) -> None:
    """Tune and measure the cells of a group that are not on disk yet; the backbone is loaded once.

    Args:
        group: the cells.
        out: where page features go.
        together: tune those that differ in their seed alone side by side, where shapes allow (None: not on a CPU, where
            nothing is gained).
    """
    open_cells = [cell for cell in group if not cell.measures.exists()]
    if not open_cells:
        return
    if together is None:
        together = jax.default_backend() != "cpu"
    first = open_cells[0].config
    shared = open_workspace(first, open_or_prepare(first.data), directory=out / Path(first.backbone.path).name)
    workspace, seconds = shared, dict[Path, float]()
    for cell in open_cells:
        if _stop is not None and _stop.is_set():
            return
        if cell.config != workspace.config:  # What was compiled for the same settings serves every seed.
            workspace = replace(shared, config=cell.config)
        if together and cell.folder not in seconds and can_go_together(workspace):
            beside = [other.seed for other in open_cells if other.folder == cell.folder]
            seconds[cell.folder] = _tune_together(workspace, cell, beside)
        run_cell(workspace, cell, before=seconds.get(cell.folder, 0.0))


def _tune_together(workspace: Workspace, cell: Cell, seeds: Sequence[int]) -> float:
    """Tune a cell and those of its folder with other seeds; returns seconds for each."""
    begin = time.perf_counter()
    if len(seeds) > 1:
        train_seeds(workspace, cell.config, {seed: seed_directory(cell.folder, seed) for seed in seeds})
    return (time.perf_counter() - begin) / len(seeds)


def run_cell(workspace: Workspace, cell: Cell, *, before: float = 0.0) -> None:
    """Tune with one seed, measure, and write the measures of every session in one go.

    Args:
        workspace: backbone and data, with the cell's settings.
        cell: the cell.
        before: seconds that it was tuned for already, side by side with others.
    """
    config, begin = cell.config, time.perf_counter() - before
    directory = seed_directory(cell.folder, cell.seed)
    prompt = train(workspace, config, directory, seed=cell.seed).prompt
    tuned = time.perf_counter()
    frames = [_measures(workspace, cell, predict(workspace, prompt, cell.split, FIXATE)), _beside(workspace, cell)]
    if config.train.swap_control:
        top_k = config.objective.top_k
        swapped = swapped_metrics(workspace, prompt, cell.split, SWAPPED, top_k=top_k)
        frames.insert(1, swapped.assign(signal=config.data.signal))
    seconds = {"tune": tuned - begin, "evaluate": time.perf_counter() - tuned}
    write_text(directory / SECONDS, json.dumps({k: round(v, 1) for k, v in seconds.items()}))
    _write(pd.concat(frames, ignore_index=True).assign(seed=cell.seed), cell.measures)


def _beside(workspace: Workspace, cell: Cell) -> pd.DataFrame:
    """Measures of the backbone alone and of the predictors without a model, the same for every seed."""
    path, config = cell.folder / f"beside-{cell.split}.parquet", cell.config
    if not path.exists():
        trivial = trivial_predictions(
            workspace.sessions("train"),
            workspace.sessions(cell.split),
            slot_feature_names=workspace.store.slot_feature_names,
            signal=config.data.signal,
            gaze_temperature=config.data.gaze_temperature,
        )
        both = pd.concat([predict(workspace, None, cell.split, BACKBONE), trivial], ignore_index=True)
        _write(_measures(workspace, cell, both), path)
    return pd.read_parquet(path)


def _measures(workspace: Workspace, cell: Cell, predictions: pd.DataFrame) -> pd.DataFrame:
    """Metrics against the signal of tuning and the others that are wanted; the column `signal` says which."""
    own, temperature = cell.config.data.signal, cell.config.data.gaze_temperature
    frames = []
    for signal in (own, *(name for name in cell.also if name != own)):
        gaze = {s.session_id: s.gaze(signal, temperature).tolist() for s in workspace.sessions(cell.split)}
        against = predictions.assign(gaze=predictions["session_id"].map(gaze))
        frames.append(session_metrics(against, top_k=cell.config.objective.top_k).assign(signal=signal))
    return pd.concat(frames, ignore_index=True)


def _write(frame: pd.DataFrame, path: Path) -> None:
    with replacing(path) as temporary:
        frame.to_parquet(temporary, index=False)


def read_cells(cells: Sequence[Cell], *, signal: str | None = None) -> pd.DataFrame:
    """Measures of finished cells, by default against the signal that each was tuned to."""
    frames = []
    for cell in cells:
        frame = pd.read_parquet(cell.measures)
        frames.append(frame[frame["signal"] == (signal or cell.config.data.signal)].drop(columns="signal"))
    return pd.concat(frames, ignore_index=True)


def seconds_of(cells: Sequence[Cell]) -> float:
    """Seconds that tuning and measuring took, over all cells."""
    return sum(sum(json.loads((seed_directory(c.folder, c.seed) / SECONDS).read_text()).values()) for c in cells)
