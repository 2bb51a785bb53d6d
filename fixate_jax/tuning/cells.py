"""Many short runs for one table: tuned and measured once, spread over worker processes, and resumable."""

import json
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
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
from fixate_jax.errors import ConfigError, FixateError
from fixate_jax.lock import locked
from fixate_jax.metrics import session_metrics
from fixate_jax.progress import bar
from fixate_jax.prompts import PromptParams
from fixate_jax.tuning.evaluate import predict, predict_without_model, swapped_metrics
from fixate_jax.tuning.experiment import BACKBONE, FIXATE, SWAPPED, check_run, claim_run, seed_directory
from fixate_jax.tuning.loop import train
from fixate_jax.tuning.setup import Workspace, open_workspace
from fixate_jax.tuning.users import tune_users

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
        alone: everybody gets a private prompt, tuned by themselves (`users` of the settings), not one over a basis.
    """

    folder: Path
    config: RunConfig
    seed: int
    split: Split = "test"
    also: tuple[str, ...] = ()
    alone: bool = False

    @property
    def measures(self) -> Path:
        """The file of its measures, which is there when the cell is finished."""
        return self.folder / f"seed-{self.seed}.parquet"


_stop: Event | None = None
"""Set when another worker has failed; None outside of workers."""
_opened: dict[tuple[Any, ...], Workspace] | None = None
"""In a worker: the workspace that it opened last, for the groups that come."""

Group = Sequence[Cell]
"""Cells that one worker does one after the other; those on the same backbone and sessions better stand together."""


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


def run_cells(groups: Sequence[Group], *, out: Path, jobs: int, title: str) -> None:
    """Tune and measure every cell that is not on disk yet.

    Args:
        groups: the cells; every worker process takes one group after the other.
        out: where the workers' logs, compiled programs and page features go.
        jobs: worker processes; each gets its part of the cores.
        title: of the progress bar.

    Raises:
        ConfigError: when a folder was made with other settings, or another process is at it.
        FixateError: from tuning; what other workers are at is finished first, and nothing else begun.
    """
    with ExitStack() as locks:
        for folder in dict.fromkeys(cell.folder for group in groups for cell in group):
            locks.enter_context(locked(folder))
        _run_cells(groups, out=out, jobs=jobs, title=title)


def _run_cells(groups: Sequence[Group], *, out: Path, jobs: int, title: str) -> None:
    cells = [cell for group in groups for cell in group]
    for cell in cells:
        check_measured(cell)
    for cell in cells:
        claim_run(cell.folder, cell.config)
    for data in {repr(cell.config.data): cell.config.data for cell in cells}.values():
        open_or_prepare(data)  # Once, before the workers ask for it.
    waiting_groups = [group for group in groups if not all(cell.measures.exists() for cell in group)]
    if not waiting_groups:
        return
    done = sum(cell.measures.exists() for cell in cells)
    with pool_of_workers(jobs, out) as pool, bar(title, len(cells), done=done) as (progress, task):
        waiting: set[Future[None]] = {pool.submit(run_group, group, out) for group in waiting_groups}
        while waiting:
            finished, waiting = wait(waiting, timeout=5.0, return_when="FIRST_COMPLETED")
            progress.update(task, completed=sum(cell.measures.exists() for cell in cells))
            for future in finished:
                if future.exception() is not None:
                    progress.console.print(f"stopping after the present cells: {future.exception()!r}")
                future.result()


def check_cells(cells: Sequence[Cell]) -> None:
    """Make sure that what is on disk of some cells was made with their settings and measured on their split.

    Raises:
        ConfigError: naming the folder, and what differs.
    """
    for cell in cells:
        check_run(cell.folder, cell.config)
        check_measured(cell)


def check_measured(cell: Cell) -> None:
    """Make sure that a cell, if it is finished, was measured on its split.

    Raises:
        ConfigError: it was measured on another.
    """
    if not cell.measures.exists():
        return
    found = set(pd.read_parquet(cell.measures, columns=["split"])["split"])
    if found != {cell.split}:
        raise ConfigError(
            f"{cell.measures} was measured on {', '.join(sorted(found))}, now {cell.split} is asked for; choose "
            "another folder or remove it"
        )


@contextmanager
def pool_of_workers(jobs: int, out: Path) -> Iterator[ProcessPoolExecutor]:
    """Worker processes, each with its part of the cores; compiled programs and logs go to ``out``.

    Where the body raises, nothing that waits is begun, and what workers are at is finished first.

    Raises:
        ConfigError: fewer than one worker.
        FixateError: a worker process died.
    """
    if jobs < 1:
        raise ConfigError(f"--jobs {jobs}: at least 1 is needed")
    context = multiprocessing.get_context("spawn")
    stop, others = context.Event(), multiprocessing.active_children()
    cores: Queue[set[int]] = context.Queue()
    there = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    for number, part in enumerate(np.array_split(there, jobs)):
        cores.put({int(core) for core in part} or set(there[number % max(1, len(there)) :][:1]))
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_start_worker, initargs=(cores, stop, out)) as pool:
        try:
            yield pool
        except BrokenProcessPool as error:
            # Some wait for work that never comes, after a polite signal that tuning took for its own.
            for worker in multiprocessing.active_children():
                if worker not in others:
                    worker.kill()
            raise FixateError(
                f"a worker process died, see {out}/worker-*.log; where memory ran out, fewer --jobs need less. What is "
                "done is kept: give the same command again to go on"
            ) from error
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _start_worker(cores: Queue, stop: Event, out: Path) -> None:
    """Take a part of the cores, keep compiled programs, and leave the terminal to the parent's bar."""
    global _stop, _opened
    _stop, _opened = stop, {}
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores.get())
    log = os.open(out / f"worker-{os.getpid()}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    jax.config.update("jax_compilation_cache_dir", str(out / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def opened_with(config: RunConfig) -> tuple[Any, ...]:
    """What a workspace is made of: settings that are equal in this can share one."""
    prompt, train = config.prompt, config.train
    # Which operator it is decides whether keys and values of the pages are kept.
    kept = config.operator.name if prompt.position == "after_image" else ""
    layout = (prompt.tokens, prompt.position, config.operator.assignment, kept)
    return (config.data, config.backbone, layout, train.max_lengths, train.eval_batch, train.mesh, config.cache)


def _leave_with_parent() -> None:
    """End this worker when its parent was killed: whoever gives the command again finds nobody at work."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def without_seeds(config: RunConfig) -> RunConfig:
    """The settings that all seeds have in common."""
    return replace(config, train=replace(config.train, seeds=(0,)))


def run_group(group: Group, out: Path) -> None:
    """Tune and measure the cells of a group that are not on disk yet; a backbone is loaded once for its cells.

    Args:
        group: the cells.
        out: where page features go.
    """
    shared: Workspace | None = None
    workspace: Workspace | None = None
    beside: dict[str, pd.DataFrame] = {}  # The same for every seed.
    for cell in group:
        if cell.measures.exists():
            continue
        if _stop is not None and _stop.is_set():
            return
        if shared is None or workspace is None or opened_with(cell.config) != opened_with(shared.config):
            shared = workspace = open_cell(cell, out)
            beside = {}
        if without_seeds(cell.config) != without_seeds(workspace.config):
            workspace = replace(shared, config=cell.config)
        run_cell(workspace, cell, beside)


def open_cell(cell: Cell, out: Path) -> Workspace:
    """The workspace of a cell, which serves all that are opened with the same settings."""
    config, wanted = cell.config, opened_with(cell.config)
    if _opened is not None and wanted in _opened:
        return replace(_opened[wanted], config=config)
    if _opened is not None:
        _opened.clear()  # Before another model takes memory.
    directory = out / Path(config.backbone.path).name
    workspace = open_workspace(config, open_or_prepare(config.data), directory=directory)
    if _opened is not None:
        _opened[wanted] = workspace
    return workspace


def forget_opened() -> None:
    """Let this worker open its next workspace anew."""
    if _opened is not None:
        _opened.clear()


def run_cell(workspace: Workspace, cell: Cell, beside: dict[str, pd.DataFrame] | None = None) -> None:
    """Tune with one seed, measure, and write the measures of every session in one go.

    Args:
        workspace: of the cell's settings.
        cell: the cell.
        beside: measures of what every cell on this workspace stands beside; what is missing is added.
    """
    config, begin = cell.config, time.perf_counter()
    directory = seed_directory(cell.folder, cell.seed)
    prompt = tuned_prompt(workspace, cell, directory)
    tuned = time.perf_counter()
    frames = [_measures(workspace, cell, predict(workspace, prompt, cell.split, FIXATE))]
    if config.train.swap_control:
        top_k = config.objective.top_k
        swapped = swapped_metrics(workspace, prompt, cell.split, SWAPPED, top_k=top_k)
        frames.append(swapped.assign(signal=config.data.signal))
    frames.append(_beside(workspace, cell, {} if beside is None else beside))
    seconds = {"tune": tuned - begin, "evaluate": time.perf_counter() - tuned}
    write_text(directory / SECONDS, json.dumps({k: round(v, 1) for k, v in seconds.items()}))
    _write(pd.concat(frames, ignore_index=True).assign(seed=cell.seed), cell.measures)


def tuned_prompt(workspace: Workspace, cell: Cell, directory: Path) -> PromptParams:
    """The cell's prompts, tuned together or everybody's alone; an interrupted tuning is gone on with."""
    if not cell.alone:
        return train(workspace, cell.config, directory, seed=cell.seed).prompt
    found = tune_users(workspace, without_seeds(cell.config), seed=cell.seed, directory=directory)
    return found.prompt_params(workspace.users)


def _beside(workspace: Workspace, cell: Cell, known: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Measures of the backbone alone and of the predictors without a model, the same for every seed and prompt."""
    path, config = cell.folder / f"beside-{cell.split}.parquet", cell.config
    if path.exists():
        return pd.read_parquet(path)
    key = repr((cell.split, cell.also, config.operator, config.objective.top_k))
    if key not in known:
        known[key] = beside_of(workspace, cell)
    _write(known[key], path)
    return known[key]


def beside_of(workspace: Workspace, cell: Cell) -> pd.DataFrame:
    """Measures of the backbone alone and of the predictors without a model."""
    trivial = predict_without_model(workspace, cell.split)
    both = pd.concat([predict(workspace, None, cell.split, BACKBONE), trivial], ignore_index=True)
    return _measures(workspace, cell, both)


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
