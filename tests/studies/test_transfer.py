"""New people: who may be learnt from, what a stop changes, and the command's tables."""

import json
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.data.options import DataConfig
from fixate_jax.data.registry import open_or_prepare
from fixate_jax.errors import ConfigError, DataError
from fixate_jax.lab.cli import commands as cli
from fixate_jax.lab.config import (
    ObjectiveConfig,
    OperatorConfig,
    OptimizerConfig,
    PromptConfig,
    RunConfig,
    TrainConfig,
    UsersConfig,
)
from fixate_jax.lab.experiments.workspace import Workspace, open_workspace
from fixate_jax.lab.settings import dump_config
from fixate_jax.lab.studies import transfer as module
from fixate_jax.lab.studies.few import new_person_predictions, population_predictions
from fixate_jax.lab.studies.transfer import ALL, TransferSettings, _Transfer, halves, run_transfer, swapped
from fixate_jax.prompts import PromptParams

WANTED = TransferSettings(sessions=(2,), halves_seed=3)
USERS = tuple("abcdefg")


def settings(store: Path) -> RunConfig:
    return RunConfig(
        data=DataConfig(name="synthetic_choice", store=store, page_width=64, max_users=4, train_sessions=8),
        backbone=BackboneConfig(tapped_layers=2),
        prompt=PromptConfig(basis=3, tokens=2, init_scale=0.3),
        operator=OperatorConfig(name="attention", assignment="area"),
        objective=ObjectiveConfig(alignment="kl"),
        optimizer=OptimizerConfig(user_lr=0.7, basis_lr=0.05),
        train=TrainConfig(epochs=1, batch=16, accumulate=1, eval_batch=16, max_lengths=1, seeds=(7,)),
        users=UsersConfig(steps=3, batch=2, validate_every=3),
    )


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return settings(tmp_path_factory.mktemp("data") / "store")


@pytest.fixture(scope="module")
def workspace(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return open_workspace(config, open_or_prepare(config.data), directory=tmp_path_factory.mktemp("work"))


@pytest.fixture(scope="module")
def finished(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "whole"
    run_transfer(config, run, WANTED)
    return run


def test_halves_share_nobody_and_depend_on_the_seed_alone() -> None:
    first, second = halves(USERS, seed=1)
    assert sorted(first + second) == list(USERS)
    assert (len(first), len(second)) == (3, 4)
    assert halves(USERS, seed=1) == (first, second)
    assert any(halves(USERS, seed=seed) != (first, second) for seed in range(2, 6))
    with pytest.raises(ConfigError, match="at least 4"):
        halves(USERS[:3], seed=1)


@pytest.mark.parametrize("sessions", [(), (0, 1), (2, 2)])
def test_counts_that_say_nothing_are_refused(sessions: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="--sessions"):
        TransferSettings(sessions=sessions)


def test_new_people_bring_few_training_sessions_and_nothing_else(workspace: Workspace, tmp_path: Path) -> None:
    study = _Transfer(workspace, tmp_path, WANTED)
    for direction in study.directions:
        known, new = set(direction.known), set(direction.new)
        assert not known & new
        basis = direction.workspace
        for split, users in {"train": known, "validation": known, "test": new}.items():
            assert {s.user_id for s in basis.sessions(split)} == users
        before: set[int] = set()
        for k in (1, 2, ALL):
            few = direction.few(7, k)
            assert few.splits["validation"] == []
            assert set(few.splits["train"]) <= set(workspace.splits["train"])
            assert before <= set(few.splits["train"])
            before = set(few.splits["train"])
            counts = pd.Series([s.user_id for s in few.sessions("train")]).value_counts()
            assert set(counts.index) == new
            assert k == ALL or (counts == k).all()
    assert {s.user_id for d in study.directions for s in d.workspace.sessions("test")} == set(workspace.users)


def test_the_population_is_that_of_the_known_people(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    direction = _Transfer(workspace, tmp_path, WANTED).directions[1]

    def trained(workspace: Workspace, *args: object, **kwargs: object) -> object:
        rows = [[float(i), 0.0, 0.0] for i in range(len(workspace.users))]
        prompt = PromptParams(jnp.zeros((3, 2, 128)), jnp.array(rows))
        return type("Tuned", (), {"prompt": prompt})

    monkeypatch.setattr(module, "train", trained)
    kept = np.asarray(direction.basis(7).coefficients)[:, 0]
    assert [workspace.users[int(i)] for i in kept] == list(direction.known)


def test_predictors_know_one_new_person_at_a_time(workspace: Workspace, tmp_path: Path) -> None:
    direction = _Transfer(workspace, tmp_path, WANTED).directions[0]
    known, few = direction.workspace.sessions("train"), direction.few(7, 2).sessions("train")
    test, how = direction.workspace.sessions("test"), direction._reading()
    alone = direction.new[0]
    of = [s for s in test if s.user_id == alone]
    own = [s for s in few if s.user_id == alone]
    together = new_person_predictions(known, few, test, **how)
    shown = together[together["user_id"] == alone].reset_index(drop=True)
    pd.testing.assert_frame_equal(shown, new_person_predictions(known, own, of, **how))
    mean = shown[shown["method"] == "user_mean"].iloc[0]["attention"]
    gaze = [s.gaze(how["signal"], how["gaze_temperature"]) for s in own]
    np.testing.assert_allclose(mean, np.mean(gaze, axis=0) / np.mean(gaze, axis=0).sum(), atol=1e-6)
    population = population_predictions(known, of, **how)
    assert set(population["method"]) == {
        *("uniform", "population_mean", "content_regression"),
        *("population_click", "content_click"),
    }
    with pytest.raises(DataError, match="new person"):
        new_person_predictions(known, [], of, **how)
    with pytest.raises(DataError, match="new person"):
        new_person_predictions([*known, *own], own, of, **how)


def test_tables_and_figures_of_everybody(finished: Path) -> None:
    tests, measures = pd.read_csv(finished / "tests.csv"), pd.read_csv(finished / "measures.csv")
    assert (tests["users"] == 4).all()
    assert (tests["p holm"] >= tests["p"]).all()
    assert {"backbone", "population_prompt", "coefficients_swapped", "together"} <= set(tests["against"])
    fits = measures[(measures["method"] == "coefficients") & (measures["metric"] == "kl ↓")]
    assert list(fits["k"]) == ["2", "all"]
    assert "± deviation" in (finished / "page.md").read_text(encoding="utf-8")
    for name in ("cold_start.png", "transfer.png"):
        assert (finished / name).stat().st_size > 5_000
    fitted = pd.read_parquet(finished / "seed-7" / "half-0" / "all.parquet")
    free = fitted[fitted["mode"] == "FR"].groupby("method")["kl"].mean()
    assert free["coefficients"] != free["coefficients_swapped"]


def test_a_missing_piece_alone_is_done_again_and_the_tables_stay(
    config: RunConfig, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: (finished / name).read_bytes() for name in ("measures.csv", "tests.csv")}
    facts = len(json.loads((finished / module.FACTS_FILE).read_text(encoding="utf-8")))
    calls: list[int] = []
    whole = module._Direction.fit

    def counted(self: module._Direction, seed: int, k: int) -> object:
        calls.append(k)
        return whole(self, seed, k)

    monkeypatch.setattr(module._Direction, "fit", counted)
    run_transfer(config, finished, WANTED)
    assert calls == []
    assert len(json.loads((finished / module.FACTS_FILE).read_text(encoding="utf-8"))) == facts
    (finished / "seed-7" / "half-1" / "k-2.parquet").unlink()
    run_transfer(config, finished, WANTED)
    assert calls == [2]
    assert before == {name: (finished / name).read_bytes() for name in before}
    with pytest.raises(ConfigError, match="halves-seed 3"):
        run_transfer(config, finished, replace(WANTED, halves_seed=4))


def test_nobody_keeps_their_own_coefficients_in_the_swap(workspace: Workspace) -> None:
    tuned = module.UserPrompts(
        users=("a", "b", "c"),
        own=jnp.eye(3),
        basis=jnp.zeros((3, 2, 4)),
        start=jnp.zeros(3),
        table=pd.DataFrame(),
        log=pd.DataFrame(),
        chunk=1,
        compilations=0,
    )
    moved = np.asarray(swapped(tuned).own)
    assert sorted(map(tuple, moved)) == sorted(map(tuple, np.eye(3)))
    assert not (moved == np.eye(3)).all(axis=1).any()


def test_the_command_reads_a_preset(config: RunConfig, tmp_path: Path) -> None:
    preset = tmp_path / "small.yaml"
    preset.write_text(dump_config(config), encoding="utf-8")
    command = cli.parse(["transfer", str(preset), "--sessions", "1", "4", "--halves-seed", "2"])
    assert (command.sessions, command.halves_seed) == ((1, 4), 2)
    assert command.settings == config
