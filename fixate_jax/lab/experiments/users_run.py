"""The job of `fixate tune-users`: tune everybody by themselves, and put the outcome beside what should stand there."""

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pandas as pd
from safetensors.numpy import save as to_safetensors

from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.data.registry import open_or_prepare
from fixate_jax.errors import ConfigError, DataError
from fixate_jax.lab.config import RunConfig
from fixate_jax.lab.experiments.evaluate import predict, predict_without_model
from fixate_jax.lab.experiments.experiment import (
    BACKBONE,
    CONFIG_FILE,
    FIXATE,
    SHOWN,
    Results,
    absolute_paths,
    check_run,
    claim_run,
    improvement,
    restore_prompt,
    seed_directory,
)
from fixate_jax.lab.experiments.identity import check_backbone, check_people, claim_identity
from fixate_jax.lab.experiments.looks import session_viewer
from fixate_jax.lab.experiments.workspace import Workspace, open_workspace
from fixate_jax.lab.frames import over_seeds, session_metrics, summarise
from fixate_jax.lab.report.figures import user_improvement
from fixate_jax.lab.report.html import write_report
from fixate_jax.lab.report.tables import comparison_table, results_table
from fixate_jax.lab.settings import config_to_dict, load_config
from fixate_jax.lab.text import csv_text
from fixate_jax.lab.users.tune import UserPrompts, tune_users
from fixate_jax.prompts import PromptParams, population_prompt
from fixate_jax.runtime.durable import replacing, write_text
from fixate_jax.runtime.lock import locked
from fixate_jax.runtime.progress import bar, track
from fixate_jax.runtime.versions import versions
from fixate_jax.tuning.checkpoint import CheckpointStore

POPULATION = "population_prompt"
SPLIT = "test"
SPEED_FIELDS = ("dtype", "attention", "attention_block", "remat", "unroll")
"""Settings of the backbone that leave it the same model."""


def run_users(config: RunConfig, run: Path, *, accept_other_backbone: bool = False) -> Results:
    """Tune every user by themselves, once per seed, then evaluate; safe to give again after any interruption.

    Args:
        config: the settings; ``users.basis`` names the run whose basis to use.
        run: the run directory; gets the resolved settings, finished chunks, metrics, prompts, tables and a report.
        accept_other_backbone: go on where the backbone's files are not those that the run was begun with, or that its
            basis was tuned with.

    Raises:
        FixateError: naming what is wrong with settings, data, basis or run directory.
    """
    config = absolute_paths(config)
    if (basis := config.users.basis) is not None:
        check_basis(config, basis)
        config = replace(config, users=replace(config.users, basis=basis.resolve()))
    with locked(run):
        return _run(config, run, accept_other_backbone)


def _run(config: RunConfig, run: Path, accept_other_backbone: bool) -> Results:
    check_run(run, config)
    since = time.perf_counter()
    store = open_or_prepare(config.data)
    claim_run(run, config)
    check_people(run, store, config.data)
    one_length = replace(config, train=replace(config.train, max_lengths=1))
    workspace = open_workspace(one_length, store, directory=run)
    claim_identity(run, workspace, accept_other_backbone=accept_other_backbone)
    if config.users.basis is not None:
        check_backbone(config.users.basis, workspace.backbone, accept=accept_other_backbone)
    tuned: dict[int, UserPrompts] = {}
    bases: dict[int, PromptParams] = {}
    seconds = {"prepare": round(time.perf_counter() - since, 2)}
    for seed in config.train.seeds:
        since = time.perf_counter()
        if config.users.basis is not None:
            bases[seed] = load_basis(config.users.basis, seed=seed, width=workspace.backbone.width)
        tuned[seed] = _tune(workspace, config, seed_directory(run, seed), bases.get(seed), seed=seed)
        seconds[f"tune, seed {seed}"] = round(time.perf_counter() - since, 2)
    since = time.perf_counter()
    results = _evaluate(_only(workspace, tuned[config.train.seeds[0]].users), run, tuned, bases)
    seconds["evaluate"] = round(time.perf_counter() - since, 2)
    chunks = {f"seed {seed}": {"chunk": t.chunk, "compilations": t.compilations} for seed, t in tuned.items()}
    write_text(run / "versions.json", json.dumps(versions(), indent=1))
    write_text(run / "run.json", json.dumps({"seconds": seconds, "users": chunks}, indent=1))
    return results


def check_basis(config: RunConfig, basis: Path) -> None:
    """Make sure, before any work, that a run's basis fits these settings.

    Raises:
        ConfigError: there is no such run, or it was tuned for another model, prompt or seed.
    """
    if not (basis / CONFIG_FILE).exists():
        raise ConfigError(f"--basis {basis}: no {CONFIG_FILE} there; give the directory of a run of `fixate train`")
    theirs = load_config(basis / CONFIG_FILE)
    names = [name for name in BackboneConfig.__dataclass_fields__ if name not in SPEED_FIELDS]
    pairs = [(f"backbone.{name}", getattr(theirs.backbone, name), getattr(config.backbone, name)) for name in names]
    pairs.append(("prompt.tokens", theirs.prompt.tokens, config.prompt.tokens))
    differing = [f"{name} is {there!r} there, {here!r} here" for name, there, here in pairs if there != here]
    if differing:
        raise ConfigError(f"--basis {basis}: does not fit: {'; '.join(differing)}")
    missing = [seed for seed in config.train.seeds if not seed_directory(basis, seed).exists()]
    if missing:
        known = ", ".join(str(seed) for seed in theirs.train.seeds)
        raise ConfigError(f"--basis {basis}: not tuned with seed {missing[0]}; there are {known}: set --train.seeds")


def load_basis(basis: Path, *, seed: int, width: int) -> PromptParams:
    """The best prompts of a run of `fixate train`, whoever its users were.

    Args:
        basis: the run's directory.
        seed: which of its seeds.
        width: of the backbone here.

    Raises:
        ConfigError: the run's prompts have another width.
        CheckpointError: there is no sound checkpoint.
    """
    theirs, directory = load_config(basis / CONFIG_FILE), seed_directory(basis, seed)
    shapes = CheckpointStore(directory / "checkpoints").shapes()
    if shapes["best.basis"][-1] != width:
        raise ConfigError(
            f"--basis {basis}: does not fit: prompts of width {shapes['best.basis'][-1]}, the backbone's is {width}"
        )
    return restore_prompt(theirs, directory, users=shapes["best.coefficients"][0], width=width, seed=seed)


def _tune(
    workspace: Workspace, config: RunConfig, directory: Path, basis: PromptParams | None, *, seed: int
) -> UserPrompts:
    with bar(f"Tuning users, seed {seed}", len(config.users.only or workspace.users)) as (progress, task):

        def report(done: int, users: int, note: str) -> None:
            progress.update(task, completed=done, total=users, note=note)

        tuned = tune_users(workspace, config, basis=basis, seed=seed, directory=directory, report=report)
    write_text(directory / "users.csv", csv_text(tuned.table))
    write_text(directory / "metrics.csv", csv_text(tuned.log))
    name = "prompts" if tuned.basis is None else "coefficients"
    tensors = {name: tuned.own, "start": tuned.start} | ({} if tuned.basis is None else {"basis": tuned.basis})
    arrays = {key: np.ascontiguousarray(value) for key, value in tensors.items()}
    with replacing(directory / "prompts.safetensors") as partial:
        partial.write_bytes(to_safetensors(arrays, {"users": json.dumps(tuned.users)}))
    return tuned


def _only(workspace: Workspace, users: Sequence[str]) -> Workspace:
    """The same workspace with the sessions of some users alone."""
    sessions, kept = workspace.data.sessions, set(users)
    splits = {name: [i for i in found if sessions[i].user_id in kept] for name, found in workspace.splits.items()}
    if not splits[SPLIT]:
        raise DataError(f"data: the users that were tuned have no sessions in split {SPLIT} to evaluate them on")
    return replace(workspace, splits=splits)


def _evaluate(
    workspace: Workspace, run: Path, tuned: dict[int, UserPrompts], bases: dict[int, PromptParams]
) -> Results:
    """Everybody under their own prompt, under the population prompt, the backbone alone, predictors without a model."""
    top_k = workspace.config.objective.top_k
    backbone = predict(workspace, None, SPLIT, BACKBONE, track=track)
    trivial = predict_without_model(workspace, SPLIT)
    per_seed = []
    for seed, prompts in tuned.items():
        frames = [predict(workspace, prompts.prompt_params(workspace.users), SPLIT, FIXATE, track=track)]
        if seed in bases:
            shared = PromptParams(population_prompt(bases[seed])[None], jnp.zeros((len(workspace.users), 1)))
            frames.append(predict(workspace, shared, SPLIT, POPULATION, track=track))
        predictions = pd.concat([*frames, backbone, trivial], ignore_index=True)
        with replacing(seed_directory(run, seed) / f"predictions-{SPLIT}.parquet") as partial:
            predictions.to_parquet(partial, index=False)
        per_seed.append(session_metrics(predictions, top_k=top_k))
    keys = ["session_id", "user_id", "split", "method", "mode"]
    averaged = pd.concat(per_seed).groupby(keys, sort=False).mean(numeric_only=True).reset_index()
    results, comparison = results_table(summarise(averaged)), comparison_table(averaged, reference=FIXATE)
    tables = {f"Results ({SPLIT})": results, "Own prompts against each method, over users": comparison}
    write_text(run / f"results-{SPLIT}.csv", csv_text(results))
    write_text(run / f"comparison-{SPLIT}.csv", csv_text(comparison))
    if len(per_seed) > 1:
        tables["Mean and deviation over seeds"] = over_seeds([summarise(frame) for frame in per_seed])
        write_text(run / f"seeds-{SPLIT}.csv", csv_text(tables["Mean and deviation over seeds"]))
    report = _report(workspace, run, tables, averaged, per_seed[0], tuned)
    metrics = pd.concat([m.assign(seed=s) for s, m in zip(tuned, per_seed, strict=True)], ignore_index=True)
    return Results(results=results, comparison=comparison, metrics=metrics, report=report)


def _report(
    workspace: Workspace,
    run: Path,
    tables: dict[str, pd.DataFrame],
    averaged: pd.DataFrame,
    first: pd.DataFrame,
    tuned: dict[int, UserPrompts],
) -> Path:
    folder, gains, prompts = run / "figures", improvement(averaged, SHOWN), next(iter(tuned.values()))
    for metric in ("kl", "accuracy"):
        user_improvement(folder / f"users-{metric}.png", per_user=gains[metric], metric=metric)
    early = int(prompts.table["stopped_early"].sum())
    kind = "a private prompt" if prompts.basis is None else "coefficients over a trained basis"
    note = (
        f"{len(prompts.users)} users, each tuned alone: {kind}; {prompts.chunk} side by side; {early} stopped before "
        "the last step. users.csv has a row for each."
    )
    own = {BACKBONE: None, FIXATE: prompts.prompt_params(workspace.users)}
    return write_report(
        run,
        title=f"Users of {workspace.config.data.name}, each tuned alone",
        tables=tables | {"Users": prompts.table},
        viewer=session_viewer(workspace, SPLIT, SHOWN, own, first, track=track),
        improvement=gains,
        config=config_to_dict(workspace.config),
        versions=versions(),
        notes=[note],
    )
