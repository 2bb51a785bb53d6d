"""A workspace, a training step that is compiled once, and the run that nothing happens to."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fixate_jax.data.registry import open_or_prepare
from fixate_jax.lab.experiments import loop
from fixate_jax.lab.experiments.loop import train
from fixate_jax.lab.experiments.workspace import Workspace, open_workspace
from tests.faults.harness import SEED, in_memory

Steps = dict[str, Any]


@contextmanager
def shared_steps(made: Steps) -> Iterator[None]:
    """Every run with the same settings takes the same jitted step."""
    make = loop.make_train_step

    def once(graph: Any, config: Any, **rest: Any) -> Any:
        name = repr((config.backbone, config.prompt, config.operator, config.objective, config.optimizer, rest))
        if name not in made:
            made[name] = make(graph, config, **rest)
        return made[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_train_step", once)
        yield


@pytest.fixture(scope="session")
def steps() -> Steps:
    return {}


@pytest.fixture(autouse=True)
def one_step(steps: Steps) -> Iterator[None]:
    """While a test of this package runs, and no longer: the next file of the same worker has settings of its own."""
    with shared_steps(steps):
        yield


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    config = in_memory(tmp_path_factory.mktemp("data") / "store")
    return open_workspace(config, open_or_prepare(config.data), directory=tmp_path_factory.mktemp("work"))


@pytest.fixture(scope="session")
def undisturbed(workspace: Workspace, steps: Steps, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a finished training."""
    directory = tmp_path_factory.mktemp("undisturbed") / "run"
    with shared_steps(steps):
        train(workspace, workspace.config, directory, seed=SEED)
    return directory
