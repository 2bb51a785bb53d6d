"""The training loop: steps, validations, early stopping, checkpoints, and going on after an interruption."""

import math
import signal
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import pandas as pd

from fixate_jax.errors import CheckpointError, DivergedError, FixateError
from fixate_jax.lab.config import RunConfig
from fixate_jax.lab.experiments.evaluate import predict
from fixate_jax.lab.experiments.log import MetricsLog
from fixate_jax.lab.experiments.nonfinite import diverged, not_finite, not_finite_leaves
from fixate_jax.lab.experiments.programs import make_train_step
from fixate_jax.lab.experiments.workspace import Workspace
from fixate_jax.lab.frames import reported_score, selection_score, session_metrics, summarise, with_uniform
from fixate_jax.lab.parts import optimizer_of
from fixate_jax.pipeline.placement import put
from fixate_jax.probing.batches import Batch, TrainingPlan, training_iterator
from fixate_jax.prompts import PromptParams, init_prompt
from fixate_jax.runtime import hosts
from fixate_jax.runtime.progress import bar
from fixate_jax.tuning.background import BackgroundSaver, snapshot
from fixate_jax.tuning.checkpoint import CheckpointStore
from fixate_jax.tuning.step import TrainState

LOGGED = ("kl", "cosine", "csh@1", "tgo@3", "accuracy", "log_loss")


class Interrupted(FixateError):
    """The run was asked to stop; it has been saved and goes on when the same command is given again."""


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What training leaves.

    Attributes:
        prompt: the best epoch's prompts.
        best_epoch: which one that was, counted from 1.
        steps: optimizer steps taken.
        log: the metrics log.
        compilations: how often the training step was compiled for it; 0 where an earlier run's program serves.
    """

    prompt: PromptParams
    best_epoch: int
    steps: int
    log: pd.DataFrame
    compilations: int


@contextmanager
def stop_requests() -> Iterator[list[str]]:
    """While active, SIGINT and SIGTERM do not kill but are listed, so that the step can be finished and saved."""
    asked: list[str] = []

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        asked.append(signal.Signals(number).name)

    if threading.current_thread() is not threading.main_thread():  # Only that one is asked.
        yield asked
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def start_state(config: RunConfig, *, users: int, width: int, seed: int) -> TrainState:
    """Prompt and optimizer state of step 0."""
    prompt = init_prompt(jax.random.key(seed), **config.prompt.sizes, users=users, width=width)
    optimizer = optimizer_of(config.optimizer, personal=config.prompt.personal)
    return TrainState(prompt, optimizer.init(prompt), jnp.zeros((), jnp.int32))


def validate(workspace: Workspace, config: RunConfig, prompt: PromptParams) -> tuple[float, dict[str, float]]:
    """Score and mean metrics over the validation sessions, by which the best epoch is chosen."""
    frame, train = predict(workspace, prompt, "validation", "fixate"), config.train
    chosen = with_uniform(frame[frame["mode"] == train.selection])
    metrics = session_metrics(chosen, top_k=config.objective.top_k)
    summary = summarise(metrics).set_index(["method", "average"]).loc[("fixate", "micro")]
    means = {name: float(value) for name, value in summary.items() if isinstance(value, float)}
    if train.score == "published":
        score = selection_score(means, free_running=train.selection == "FR")
    else:
        looks, clicks = config.objective.alignment != "none", config.objective.ntp_weight > 0
        score = reported_score(metrics, looks=looks, clicks=clicks or not looks)
    return score, {"score": score, **{name: means[name] for name in LOGGED}}


def train(workspace: Workspace, config: RunConfig, directory: Path, *, seed: int, title: str = "Tuning") -> Tuned:
    """Tune prompts, or go on with a run that was stopped, or return a finished one.

    After a kill at any moment the same call continues from the last checkpoint and ends with the same parameters and
    the same metrics log, bit for bit.

    Args:
        workspace: backbone and data.
        config: the settings (``workspace.config`` but for the objective in baselines).
        directory: of this run: checkpoints and metrics.
        seed: of the prompt's start and the order of sessions.
        title: of the progress bar.

    Raises:
        Interrupted: after SIGINT or SIGTERM, once the state is saved.
        DivergedError: loss, gradient or parameters are not finite; the batch is saved, no such checkpoint is.
        ConfigError: another process tunes in this directory.
        FixateError: when checkpoints belong to other settings or cannot be written.
    """
    workspace, config = with_fitting_batch(workspace, config)
    with hosts.locked_by_first(directory):
        run = Training(workspace, config, directory, seed)
        compiled = run.train_step._cache_size()
        to_the_end(run, title)
        return run.tuned(run.train_step._cache_size() - compiled)


class BatchWarning(UserWarning):
    """A batch is larger than the data."""


def with_fitting_batch(workspace: Workspace, config: RunConfig) -> tuple[Workspace, RunConfig]:
    """Both with a batch that is no larger than the training sessions fill, of which the rest would be empty rows."""
    devices = math.prod(config.train.mesh[:2])
    most = -(-len(workspace.splits["train"]) // devices) * devices
    if config.train.batch <= most:
        return workspace, config
    warnings.warn(
        f"train.batch = {config.train.batch}: there are {len(workspace.splits['train'])} sessions to tune on, so a "
        f"batch has {most}",
        BatchWarning,
        stacklevel=2,
    )
    fitting = [replace(c, train=replace(c.train, batch=most)) for c in (workspace.config, config)]
    return replace(workspace, config=fitting[0]), fitting[1]


@runtime_checkable
class Running(Protocol):
    """What `to_the_end` drives: one run, or several side by side."""

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do."""

    @property
    def step(self) -> int:
        """Optimizer steps taken."""

    @property
    def steps(self) -> int:
        """Optimizer steps planned."""

    @property
    def state(self) -> Any:
        """What is being computed."""

    def advance(self) -> str:
        """Take a step and do what is due after it; returns a note for the progress bar."""

    def save(self) -> None:
        """Begin to write everything that it can be continued from."""

    def saving(self) -> AbstractContextManager[Any]:
        """Within it checkpoints are written; leaving it waits for the last one."""


def to_the_end(run: Running, title: str) -> None:
    """Take all steps, or those up to a request to stop.

    Raises:
        Interrupted: after such a request, once everything is saved.
    """
    with stop_requests() as asked:
        with run.saving(), bar(title, run.steps, done=run.step) as (progress, task):
            while not run.finished and not hosts.anywhere(bool(asked), after=run.state):
                note = run.advance()
                progress.update(task, completed=run.step, note=note)
            if not run.finished:
                run.save()
        hosts.barrier()
        if not run.finished:
            who = asked[0] if asked else "another process"
            raise Interrupted(f"{who}: saved after step {run.step}; run the same command again to resume")


class Training:
    """State of a training run, on and off disk."""

    def __init__(self, workspace: Workspace, config: RunConfig, directory: Path, seed: int):
        self.workspace, self.config = workspace, config
        settings, users = config.train, len(workspace.users)
        self.directory = directory
        self.checkpoints = CheckpointStore(directory / "checkpoints", keep=settings.keep_checkpoints)
        self.saver = BackgroundSaver(self.checkpoints)
        rows = settings.batch * settings.accumulate
        self.plan = TrainingPlan(
            workspace.data, workspace.splits["train"], rows=rows, seed=seed, epochs=settings.epochs
        )
        self.batches = training_iterator(
            workspace.data, self.plan, accumulate=settings.accumulate, rows=workspace.own_rows(micro=True)
        )
        start = hosts.local(start_state(config, users=users, width=workspace.backbone.width, seed=seed))
        self.placement = workspace.placement.with_state(start)
        self.train_step = make_train_step(workspace.backbone.graph, config, **self.about_step)
        self.meta: dict[str, Any] = {
            "best_score": None,
            "best_epoch": 0,
            "without_gain": 0,
            "finished": False,
            "lines": 0,
            "batches": None,
            "score": settings.score,
        }
        restored = self.checkpoints.restore({"state": start, "best": start.prompt})
        self.step, self.saved = 0, -1
        if restored is None:
            self.state = put(start, self.placement.state)
            self.best = jax.tree.map(jnp.copy, self.state.prompt)
        else:
            self.state = put(restored.state["state"], self.placement.state)
            self.best = workspace.replicate(restored.state["best"])
            self.meta, self.step, self.saved = restored.meta, restored.step, restored.step
            # Runs of earlier releases knew the published score alone.
            if not self.finished and (scored := self.meta.setdefault("score", "published")) != settings.score:
                raise CheckpointError(
                    f"{directory} was begun with the best epoch chosen by the {scored} score; write `score: {scored}` "
                    f"below `train:` in the run's config.yaml and resume with --train.score {scored}, or choose "
                    "another folder"
                )
            if self.meta["batches"] is not None:
                self.batches.set_state(self.meta["batches"])
        self.log = MetricsLog(directory / "metrics.jsonl", keep_lines=self.meta["lines"], check=self._require_finite)

    @property
    def about_step(self) -> dict[str, Any]:
        """What `make_train_step` has to know beside backbone and settings; the same for every seed."""
        return {
            "users": len(self.workspace.users),
            "steps": self.steps,
            "end_token": self.workspace.backbone.encoder.end_token,
            "placement": self.placement,
        }

    @property
    def finished(self) -> bool:
        """Whether the last step was taken, or there was no gain for too long."""
        return bool(self.meta["finished"])

    @property
    def steps(self) -> int:
        """Optimizer steps planned."""
        return len(self.plan)

    def saving(self) -> BackgroundSaver:
        """Within it checkpoints are written; leaving it waits for the last one."""
        return self.saver

    def next_batch(self) -> Batch:
        """The sessions of the next step, on the mesh."""
        batch: Batch = self.workspace.place(next(self.batches), micro=True)
        return batch

    def advance(self) -> str:
        """One optimizer step, and what is due after it; returns a note for the progress bar."""
        self.state, parts = self.train_step(self.state, self.workspace.params, self.next_batch())
        self.after_step(parts)
        best = self.meta["best_score"]
        return "" if best is None else f"best {best:.4f}, epoch {self.meta['best_epoch']}"

    def after_step(self, parts: Mapping[str, Any]) -> None:
        """What is due once `state` is that after the next step: log, validation, checkpoint.

        Args:
            parts: the step's loss, its parts, and the gradients' norms.
        """
        settings, per_epoch = self.config.train, self.plan.steps_per_epoch
        self.step += 1
        epoch, within = divmod(self.step, per_epoch)
        self.log.add({"step": self.step, "epoch": (self.step - 1) // per_epoch + 1, **parts})
        last = self.step == self.steps
        if within == 0 and (epoch % settings.validate_every == 0 or last):
            self._validate(epoch)
            self.meta["finished"] = last or self.meta["without_gain"] >= settings.patience
            self.save()
        elif self.step % settings.checkpoint_every == 0:
            self.save()

    def tuned(self, compilations: int) -> Tuned:
        """What a finished run leaves.

        Args:
            compilations: how often the step was compiled for it.
        """
        self.log.write_csv()
        return Tuned(
            prompt=self.best,
            best_epoch=self.meta["best_epoch"],
            steps=self.step,
            log=self.log.frame(),
            compilations=compilations,
        )

    def _validate(self, epoch: int) -> None:
        self.log.flush()  # A step that was not finite is found here, not by the metrics.
        score, means = validate(self.workspace, self.config, self.state.prompt)
        self.log.add({"step": self.step, "epoch": epoch, **{f"validation/{k}": v for k, v in means.items()}})
        if self.meta["best_score"] is None or score > self.meta["best_score"]:
            self.best = jax.tree.map(jnp.copy, self.state.prompt)
            self.meta |= {"best_score": score, "best_epoch": epoch, "without_gain": 0}
        else:
            self.meta["without_gain"] += 1

    def save(self) -> None:
        """Begin to write a checkpoint that everything can be continued from; `saver` finishes it."""
        if self.saved == self.step:
            return
        self.log.flush()
        self.meta |= {"lines": self.log.lines, "batches": self.batches.get_state()}
        state = snapshot(self.placement.fetch({"state": self.state, "best": self.best}))
        if bad := not_finite_leaves(state):
            raise self._diverged(self.step, bad)
        hosts.by_first(self.saver.save, self.step, state, self.meta)
        self.saved = self.step

    def _require_finite(self, row: Mapping[str, Any]) -> None:
        bad = not_finite(row)
        if bad and "loss" in row:  # Else it is a validation's, which has no batch.
            raise self._diverged(row["step"], bad)

    def _diverged(self, step: int, values: Mapping[str, float]) -> DivergedError:
        self.saver.wait()
        rows = [int(i) for i in self.plan[step - 1]]
        last = max(self.checkpoints.steps(), default=None)
        return diverged(step, values, data=self.workspace.data, rows=rows, directory=self.directory, last=last)


def ntp_only(config: RunConfig) -> RunConfig:
    """The same settings without alignment: the baseline that only learns to answer."""
    return replace(config, objective=replace(config.objective, alignment="none"))
