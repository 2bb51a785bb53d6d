"""How long a study will take, from short trials of the real programs, before it begins."""

import heapq
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from fixate_jax.config import ObjectiveConfig, OptimizerConfig, RunConfig
from fixate_jax.progress import bar
from fixate_jax.studies.provenance import key_of
from fixate_jax.tuning.cells import (
    Cell,
    Group,
    beside_of,
    forget_opened,
    open_cell,
    opened_with,
    pool_of_workers,
    without_seeds,
)
from fixate_jax.tuning.loop import Training, start_state, validate
from fixate_jax.tuning.setup import Workspace
from fixate_jax.tuning.users import _UserTuning

TRIAL_STEPS = 8
COMPILED_AGAIN = 0.3
"""Share of the first compilation's time that it takes to trace a program again and read it from disk."""
START = 6.0
"""Seconds until a worker process is up."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """What a cell's pieces take, in seconds.

    Attributes:
        open: the workspace.
        compile: beyond the first steps and the first evaluation themselves.
        step: an optimizer step; tuned alone, one of everybody.
        session: to evaluate a session, measures included.
        validation: a validation.
        beside: the backbone alone and the predictors without a model, once for a variant.
        steps: planned optimizer steps.
        validations: planned validations.
        sessions: sessions that are measured.
    """

    open: float
    compile: float
    step: float
    session: float
    validation: float
    beside: float
    steps: int
    validations: int
    sessions: int

    def cell(self, config: RunConfig) -> float:
        """Seconds of a cell of these settings, whatever else its group pays for."""
        swaps = config.train.swaps if config.train.swap_control and config.train.swaps else 0
        tuning = self.steps * self.step + self.validations * self.validation
        return COMPILED_AGAIN * self.compile + tuning + (1 + swaps) * self.sessions * self.session


def forecast(groups: Sequence[Group], *, out: Path, jobs: int) -> dict[str, Any]:
    """Seconds that the cells which are not on disk yet will take.

    Every program is compiled and tried for a few steps, as many at once as there will be workers. Early stopping is
    not foreseen: it is a bound where that happens.

    Args:
        groups: all cells.
        out: of the study.
        jobs: worker processes.

    Returns:
        `cells`, `open` (cells to do), `trials` (seconds that the trials took), `seconds` (from now on), `jobs`.
    """
    open_groups = [[cell for cell in group if not cell.measures.exists()] for group in groups]
    open_groups = [group for group in open_groups if group]
    begun = time.perf_counter()
    paces = _paces(open_groups, out=out, jobs=jobs)
    trials = time.perf_counter() - begun
    each = [_work(group, paces[_programs(group[0])]) for group in open_groups]
    return {
        "cells": sum(map(len, groups)),
        "open": sum(map(len, open_groups)),
        "trials": round(trials, 1),
        "seconds": round(makespan(each, jobs) + START, 1) if each else 0.0,
        "jobs": jobs,
        "paces": {f"{g[0].folder.parts[-3]}": asdict(paces[_programs(g[0])]) for g in open_groups},
    }


def _work(group: Group, pace: Pace) -> "Work":
    workspaces = tuple(dict.fromkeys(key_of(opened_with(cell.config)) for cell in group))
    seconds = len(workspaces) * pace.beside + sum(pace.cell(cell.config) for cell in group)
    return Work(seconds=seconds, open=pace.open, workspaces=workspaces)


@dataclass(frozen=True, kw_only=True)
class Work:
    """A group as a worker sees it: `open` is paid for each of its `workspaces` that is not the one held."""

    seconds: float
    open: float
    workspaces: tuple[str, ...]


def makespan(groups: Sequence[Work], jobs: int) -> float:
    """When the last of some workers is done, each taking the next group as soon as it is free."""
    free = [(0.0, "")] * jobs
    for work in groups:
        at, held = free[0]
        opening = work.open * (len(work.workspaces) - (held == work.workspaces[0]))
        heapq.heapreplace(free, (at + opening + work.seconds, work.workspaces[-1]))
    return max(at for at, _ in free)


def _programs(cell: Cell) -> str:
    """Cells that are equal in this run the same programs equally often."""
    config = without_seeds(cell.config)
    objective, train = config.objective, config.train
    aligned = objective.alignment != "none"
    same = replace(
        config,
        data=replace(config.data, split_seed=0),
        objective=ObjectiveConfig(alignment="kl" if aligned else "none", relevance=objective.relevance),
        optimizer=OptimizerConfig(),
        prompt=replace(config.prompt, init_scale=0.0, personal=True),
        train=replace(train, patience=1),
    )
    return key_of(same, cell.split, cell.alone)


def _paces(groups: Sequence[Group], *, out: Path, jobs: int) -> dict[str, Pace]:
    first: dict[str, Cell] = {}
    for group in groups:
        first.setdefault(_programs(group[0]), group[0])
    if not first:
        return {}
    found: dict[str, Pace] = {}
    with (
        pool_of_workers(jobs, out) as pool,
        bar("Trying each program", len(first)) as (progress, task),
    ):
        waiting = {pool.submit(pace_of, cell, out): key for key, cell in first.items()}
        for done in as_completed(waiting):
            found[waiting[done]] = done.result()
            progress.update(task, advance=1)
    return found


def pace_of(cell: Cell, out: Path) -> Pace:
    """Try a cell's programs for a few steps; nothing of it is kept but what was compiled."""
    open_cell(cell, out)  # Runs the vision tower where that was not done before.
    forget_opened()
    begun = time.perf_counter()
    workspace = open_cell(cell, out)
    opened = time.perf_counter() - begun
    with tempfile.TemporaryDirectory(dir=out, prefix="trial-") as folder:
        tuning = _alone if cell.alone else _together
        step, compiled, validation, steps, validations = tuning(workspace, cell, Path(folder))
    prompt = start_state(cell.config, users=len(workspace.users), width=workspace.backbone.width, seed=cell.seed).prompt
    held, first = len(workspace.splits["validation"]), _timed(lambda: validate(workspace, cell.config, prompt))
    again = _timed(lambda: validate(workspace, cell.config, prompt))
    beside = _timed(lambda: beside_of(workspace, cell))
    return Pace(
        open=opened,
        compile=compiled + max(0.0, first - again),
        step=step,
        session=again / held,
        validation=again if validation is None else validation,
        beside=beside,
        steps=steps,
        validations=validations,
        sessions=len(workspace.splits[cell.split]),
    )


def _timed(work: Any) -> float:
    begun = time.perf_counter()
    jax.block_until_ready(work())
    return time.perf_counter() - begun


def _together(workspace: Workspace, cell: Cell, folder: Path) -> tuple[float, float, float | None, int, int]:
    run = Training(workspace, cell.config, folder, cell.seed)
    steps = min(TRIAL_STEPS + 1, run.plan.steps_per_epoch)
    with run.saver:
        seconds = [_timed(lambda: (run.advance(), run.state)[1]) for _ in range(steps)]
    step = statistics.median(seconds[1:] or seconds)
    train = cell.config.train
    validations = -(-train.epochs // train.validate_every)
    return step, sum(max(0.0, s - 2 * step) for s in seconds), None, len(run.plan), validations


def _alone(workspace: Workspace, cell: Cell, folder: Path) -> tuple[float, float, float | None, int, int]:
    del folder
    config = without_seeds(cell.config)
    run = _UserTuning(workspace, config, None, None, cell.seed, None)
    users, chunks = config.users, len(run.chunks)
    state, sessions, frozen = run._arguments(run.chunks[0])
    seconds = []
    for count in (0, 0, 0, TRIAL_STEPS):
        begun = time.perf_counter()
        state, _ = run.advance(state, sessions, frozen, jnp.int32(0), jnp.int32(min(count, users.steps)))
        jax.block_until_ready(state)
        seconds.append(time.perf_counter() - begun)
    validation = statistics.median(seconds[1:3])
    step = max(0.0, seconds[3] - validation) / min(TRIAL_STEPS, users.steps)
    validations = 1 + -(-users.steps // users.validate_every)
    return chunks * step, seconds[0], chunks * validation, users.steps, validations
