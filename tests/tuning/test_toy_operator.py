"""A new operator is a function and a line: it is found, trained with and asked like those that are there."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.data.options import DataConfig
from fixate_jax.data.registry import open_or_prepare
from fixate_jax.lab.config import (
    ObjectiveConfig,
    OperatorConfig,
    OptimizerConfig,
    PromptConfig,
    RunConfig,
    TrainConfig,
)
from fixate_jax.lab.experiments.loop import start_state, train
from fixate_jax.lab.experiments.programs import make_train_step
from fixate_jax.lab.experiments.workspace import open_workspace
from fixate_jax.lab.parts import OPERATORS, operator_of
from fixate_jax.probing import Operator, Probe, Trace
from fixate_jax.prompts import PromptParams
from tests.worlds import USERS, World

OBJECTIVE = ObjectiveConfig(alignment="kl", ntp_weight=0.0, attention_weight=1.0, warmup=0, beta=0.0)
OPTIMIZER = OptimizerConfig(basis_lr=0.05, user_lr=0.05)


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    def loudest_head(trace: Trace) -> Probe:
        out = trace.tail()
        return out.with_relevance(out.rows[-1, ..., -1, :].max(axis=2))

    monkeypatch.setitem(OPERATORS, "loudest_head", loudest_head)


def moved(before: PromptParams, after: PromptParams) -> float:
    return float(jnp.abs(after.basis - before.basis).max())


def test_it_has_the_documented_signature() -> None:
    for name in OPERATORS:
        assert isinstance(operator_of(OperatorConfig(name=name)), Operator)


def test_a_training_step_learns_through_it(tmp_path: Path) -> None:
    config = RunConfig(
        backbone=BackboneConfig(tapped_layers=2),
        prompt=PromptConfig(basis=2, tokens=3, init_scale=0.3),
        operator=OperatorConfig(name="loudest_head"),
        objective=OBJECTIVE,
        optimizer=OPTIMIZER,
    )
    world = World(tmp_path, sizes=((3, 128, 96), (4, 128, 96)), config=config)
    step = make_train_step(world.backbone.graph, config, users=len(USERS), steps=8)
    state = start_state(config, users=len(USERS), width=world.backbone.width, seed=0)
    batch, start = jax.tree.map(lambda x: x[None], world.batch()), jax.tree.map(jnp.copy, state.prompt)
    losses = []
    for _ in range(8):
        state, parts = step(state, world.backbone.params, batch)
        losses.append(float(parts["alignment"]))
    assert np.isfinite(losses).all() and losses[-1] < 0.9 * losses[0]
    assert moved(start, state.prompt) > 1e-3


def test_a_short_run_tunes_with_it(tmp_path: Path) -> None:
    config = RunConfig(
        data=DataConfig(name="synthetic_choice", store=tmp_path / "store", page_width=64, max_users=1),
        backbone=BackboneConfig(tapped_layers=1),
        prompt=PromptConfig(basis=2, tokens=2, init_scale=0.3),
        operator=OperatorConfig(name="loudest_head"),
        objective=OBJECTIVE,
        optimizer=OPTIMIZER,
        train=TrainConfig(epochs=1, batch=8, accumulate=1, eval_batch=8, validate_every=1),
    )
    workspace = open_workspace(config, open_or_prepare(config.data), directory=tmp_path)
    tuned = train(workspace, config, tmp_path / "run", seed=0)
    assert tuned.best_epoch == 1 and tuned.compilations <= 1
    assert {"alignment", "validation/kl"} <= set(tuned.log.columns)
    start = start_state(config, users=1, width=workspace.backbone.width, seed=0).prompt
    assert moved(start, tuned.prompt) > 1e-3
