"""Many short runs for one table: tuned and measured once, spread over worker processes, and resumable."""

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from fixate_jax.data.registry import open_or_prepare
from fixate_jax.data.session import Split
from fixate_jax.data.store import SessionStore
from fixate_jax.errors import ConfigError
from fixate_jax.lab.config import RunConfig
from fixate_jax.lab.experiments.evaluate import predict, predict_without_model, swapped_metrics
from fixate_jax.lab.experiments.experiment import BACKBONE, FIXATE, SWAPPED, check_run, claim_run, seed_directory
from fixate_jax.lab.experiments.identity import begun, check_people, claim_identity
from fixate_jax.lab.experiments.loop import train
from fixate_jax.lab.experiments.workspace import Workspace, open_workspace
from fixate_jax.lab.frames import session_metrics
from fixate_jax.lab.studies.jobs import Workers, spread
from fixate_jax.lab.users.tune import tune_users
from fixate_jax.prompts import PromptParams
from fixate_jax.runtime.durable import replacing, write_text
from fixate_jax.runtime.lock import locked
from fixate_jax.runtime.progress import bar

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


_opened: dict[tuple[Any, ...], Workspace] = {}
"""The workspace that this process opened last, for the groups that come."""

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


def run_cells(groups: Sequence[Group], *, out: Path, workers: Workers, title: str) -> None:
    """Tune and measure every cell that is not on disk yet.

    Args:
        groups: the cells; a worker does one group after the other.
        out: where the workers' logs, compiled programs and page features go.
        workers: who does it.
        title: of the progress bar.

    Raises:
        ConfigError: when a folder was made with other settings, or another process is at it.
        FixateError: from tuning.
    """
    cells = [cell for group in groups for cell in group]
    with ExitStack() as stack:
        for folder in dict.fromkeys(cell.folder for cell in cells):
            stack.enter_context(locked(folder))
        for cell in cells:
            check_measured(cell)
        for cell in cells:
            claim_run(cell.folder, cell.config)
        for data in {repr(cell.config.data): cell.config.data for cell in cells}.values():
            open_or_prepare(data)  # Once, before the workers ask for it.
        _check_people(cells)
        waiting = [group for group in groups if not all(cell.measures.exists() for cell in group)]
        if not waiting:
            return
        done = sum(cell.measures.exists() for cell in cells)
        # In this process tuning shows its own bars.
        shown = stack.enter_context(bar(title, len(cells), done=done)) if workers.elsewhere else None
        for _ in spread(partial(run_group, out=out), waiting, workers=workers, out=out):
            if shown is not None:
                shown[0].update(shown[1], completed=sum(cell.measures.exists() for cell in cells))


def check_cells(cells: Sequence[Cell]) -> None:
    """Make sure that what is on disk of some cells was made with their settings and people and measured on their split.

    Raises:
        ConfigError: naming the folder, and what differs.
        DataError: their data hold other people or sessions now.
    """
    for cell in cells:
        check_run(cell.folder, cell.config)
        check_measured(cell)
    _check_people(cells)


def _check_people(cells: Sequence[Cell]) -> None:
    stores: dict[str, SessionStore] = {}
    for folder, data in {cell.folder: cell.config.data for cell in cells}.items():
        if begun(folder):  # Else the data need not be there yet.
            if repr(data) not in stores:
                stores[repr(data)] = open_or_prepare(data)
            check_people(folder, stores[repr(data)], data)


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


def opened_with(config: RunConfig) -> tuple[Any, ...]:
    """What a workspace is made of: settings that are equal in this can share one."""
    prompt, train = config.prompt, config.train
    # Which operator it is decides whether keys and values of the pages are kept.
    kept = config.operator.name if prompt.position == "after_image" else ""
    layout = (prompt.tokens, prompt.position, config.operator.assignment, kept, config.objective.gaze)
    return (config.data, config.backbone, layout, train.max_lengths, train.eval_batch, train.mesh, config.cache)


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
        if shared is None or workspace is None or opened_with(cell.config) != opened_with(shared.config):
            shared = workspace = open_cell(cell, out)
            beside = {}
        if without_seeds(cell.config) != without_seeds(workspace.config):
            workspace = replace(shared, config=cell.config)
        run_cell(workspace, cell, beside)


def open_cell(cell: Cell, out: Path) -> Workspace:
    """The workspace of a cell, which serves all that are opened with the same settings; the last one is held."""
    config, wanted = cell.config, (opened_with(cell.config), out)
    if wanted not in _opened:
        _opened.clear()  # Before another model takes memory.
        directory = out / Path(config.backbone.path).name
        _opened[wanted] = open_workspace(config, open_or_prepare(config.data), directory=directory)
    return replace(_opened[wanted], config=config)


def run_cell(workspace: Workspace, cell: Cell, beside: dict[str, pd.DataFrame] | None = None) -> None:
    """Tune with one seed, measure, and write the measures of every session in one go.

    Args:
        workspace: of the cell's settings.
        cell: the cell.
        beside: measures of what every cell on this workspace stands beside; what is missing is added.
    """
    config, begin = cell.config, time.perf_counter()
    directory = seed_directory(cell.folder, cell.seed)
    claim_identity(cell.folder, workspace)
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
