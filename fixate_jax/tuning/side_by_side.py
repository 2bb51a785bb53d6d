"""Several seeds of the same settings as one program: each takes its own steps, the frozen weights are shared."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from fixate_jax import hosts
from fixate_jax.config import RunConfig
from fixate_jax.errors import ConfigError
from fixate_jax.tuning.batches import Batch
from fixate_jax.tuning.loop import Training, Tuned, to_the_end
from fixate_jax.tuning.placement import Placement
from fixate_jax.tuning.setup import Workspace
from fixate_jax.tuning.step import Jitted, TrainState, train_step_of

States = tuple[TrainState, ...]
Batches = tuple[Batch, ...]
Parts = tuple[dict[str, Float[Array, ""]], ...]


def can_go_together(workspace: Workspace) -> bool:
    """Whether seeds can be tuned side by side: every step of each has the same shapes, and there is one device."""
    return _obstacle(workspace) is None


def _obstacle(workspace: Workspace) -> str | None:
    lengths = {workspace.data.bucket_of[i] for i in workspace.splits["train"]}
    if len(lengths) > 1:
        return f"the sessions to tune on are padded to {len(lengths)} lengths; set train.max_lengths to 1"
    if workspace.mesh.size > 1:
        return f"train.mesh has {workspace.mesh.size} devices, which already share each batch; set it to 1 1 1"
    return None


def train_seeds(
    workspace: Workspace, config: RunConfig, directories: Mapping[int, Path], *, title: str = "Tuning"
) -> dict[int, Tuned]:
    """Tune prompts with several seeds side by side; each directory ends up as :func:`train` of that seed leaves it.

    Start, order of sessions, optimizer, best epoch, early stopping, metrics log and checkpoints are each seed's own.
    The numbers are those of tuning alone but for float32 sums in another order. A seed that has stopped rests until
    the last one has; one whose newest checkpoint is of an earlier step than the others' catches up first, while they
    rest. So after a kill at any moment the same call ends with the same parameters and logs, bit for bit. Beside
    other seeds, or another number of them, the last digits may differ.

    Args:
        workspace: backbone and data.
        config: the settings (``workspace.config`` but for the objective in baselines).
        directories: seed → directory of its run.
        title: of the progress bar.

    Raises:
        Interrupted: after SIGINT or SIGTERM, once every state is saved.
        DivergedError: loss, gradient or parameters of one seed are not finite; the others stop as well.
        ConfigError: the shapes do not allow it, see `can_go_together`; or another process tunes in a directory.
        FixateError: when checkpoints belong to other settings or cannot be written.
    """
    if (why := _obstacle(workspace)) is not None:
        raise ConfigError(f"seeds {', '.join(map(str, directories))} cannot be tuned side by side: {why}")
    if not directories:
        return {}
    with ExitStack() as locks:
        for directory in directories.values():
            locks.enter_context(hosts.locked_by_first(directory))
        together = SideBySide([Training(workspace, config, where, seed) for seed, where in directories.items()])
        to_the_end(together, title)
        compilations = together.train_step._cache_size()
        return {seed: run.tuned(compilations) for seed, run in zip(directories, together.runs, strict=True)}


class SideBySide:
    """Runs that differ in their seed alone and take their steps in one program.

    Args:
        runs: as they were begun or restored; they need not have taken as many steps.
    """

    def __init__(self, runs: list[Training]):
        self.runs, first = runs, runs[0]
        one = train_step_of(first.workspace.backbone.graph, first.config, **first.about_step)
        self.train_step = make_seeds_step(one, len(runs), placement=first.placement)
        self.params = first.workspace.params

    @property
    def finished(self) -> bool:
        """Whether all runs are."""
        return all(run.finished for run in self.runs)

    @property
    def step(self) -> int:
        """Optimizer steps that all runs have taken which are not finished."""
        return min((run.step for run in self.runs if not run.finished), default=self.steps)

    @property
    def steps(self) -> int:
        """Optimizer steps planned for each run."""
        return self.runs[0].steps

    @property
    def state(self) -> States:
        """Every run's state."""
        return tuple(run.state for run in self.runs)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Within it checkpoints are written; leaving it waits for the last one of each run."""
        with ExitStack() as savers:
            for run in self.runs:
                savers.enter_context(run.saving())
            yield

    def advance(self) -> str:
        """One optimizer step of the runs that have taken the fewest, and what is due after it."""
        least = self.step
        going = [not run.finished and run.step == least for run in self.runs]
        batches = [run.next_batch() if goes else None for run, goes in zip(self.runs, going, strict=True)]
        anyone = next(batch for batch in batches if batch is not None)
        filled = tuple(anyone if batch is None else batch for batch in batches)
        states, parts = self.train_step(self.state, self.params, filled, np.array(going))
        for run, state in zip(self.runs, states, strict=True):
            run.state = state  # The one before was donated, also for those at rest.
        for run, goes, own in zip(self.runs, going, parts, strict=True):
            if goes:
                run.after_step(own)
        best = (run.meta["best_score"] for run in self.runs)
        return "best " + ", ".join("–" if score is None else f"{score:.4f}" for score in best)

    def save(self) -> None:
        """Begin to write a checkpoint of every run that is not finished."""
        for run in self.runs:
            if not run.finished:
                run.save()


def make_seeds_step(
    one: Callable[[TrainState, nnx.State, Batch], tuple[TrainState, dict[str, Float[Array, ""]]]],
    seeds: int,
    *,
    placement: Placement,
) -> Jitted[[States, nnx.State, Batches, Bool[np.ndarray, " seeds"]], tuple[States, Parts]]:
    """The jitted optimizer step of several seeds; the states are donated, the frozen weights are an argument.

    States and batches get their axis of seeds in here: outside everybody has their own, as when they go alone.

    Args:
        one: the step of one seed, see :func:`fixate_jax.tuning.step.train_step_of`.
        seeds: how many.
        placement: of one seed's state, weights and batch.
    """

    def step(states: States, params: nnx.State, batches: Batches, going: Bool[Array, " seeds"]) -> tuple[States, Parts]:
        new, parts = jax.vmap(one, in_axes=(0, None, 0))(_stacked(states), params, _stacked(batches))
        kept = tuple(
            jax.tree.map(lambda now, before, i=i: jnp.where(going[i], now[i], before), new, state)
            for i, state in enumerate(states)
        )
        return kept, tuple({name: value[i] for name, value in parts.items()} for i in range(seeds))

    places = ((placement.state,) * seeds, placement.params, placement.micro_rows, placement.whole)
    results = ((placement.state,) * seeds, placement.whole)
    return cast(Any, jax.jit(step, donate_argnums=0, in_shardings=places, out_shardings=results))


def _stacked(trees: tuple[Any, ...]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
