"""The main job: tune, evaluate against everything that should stand beside, write tables, pictures and a report."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np
import pandas as pd

from fixate_jax.backbones.loading import EMBEDDED, family_of, resolve
from fixate_jax.backbones.weights.hub import is_hub_id
from fixate_jax.data.registry import open_or_prepare
from fixate_jax.errors import CheckpointError, ConfigError
from fixate_jax.lab.config import RunConfig
from fixate_jax.lab.experiments.calibrate import SUFFIX, calibrate, calibrated, read_calibration, write_calibration
from fixate_jax.lab.experiments.evaluate import evaluate_batch, predict, predict_without_model, swapped_metrics
from fixate_jax.lab.experiments.identity import begun, check_backbone, check_people, claim_identity
from fixate_jax.lab.experiments.looks import session_viewer
from fixate_jax.lab.experiments.loop import ntp_only, start_state, train
from fixate_jax.lab.experiments.workspace import Workspace, open_workspace
from fixate_jax.lab.frames import over_seeds, session_metrics, summarise, user_means
from fixate_jax.lab.parts import alignment_of, operator_of
from fixate_jax.lab.report.curves import training_curves
from fixate_jax.lab.report.figures import page_figure, user_improvement
from fixate_jax.lab.report.html import write_report
from fixate_jax.lab.report.tables import COMPARED, comparison_table, flatten, results_table
from fixate_jax.lab.settings import config_to_dict, dump_config, load_config
from fixate_jax.lab.text import csv_text
from fixate_jax.probing import heat_map
from fixate_jax.prompts import PromptParams
from fixate_jax.runtime import hosts
from fixate_jax.runtime.durable import replacing, unfinished_name, write_text
from fixate_jax.runtime.lock import LOCK_FILE
from fixate_jax.runtime.progress import track
from fixate_jax.runtime.versions import versions
from fixate_jax.tuning.checkpoint import CheckpointStore

CONFIG_FILE, REPORT = "config.yaml", "report.html"
BACKBONE, FIXATE, NTP, SWAPPED = "backbone", "fixate", "ntp_only", "fixate_swapped"
SHOWN = {BACKBONE: "Backbone", FIXATE: "FixATE"}
"""Methods that a report looks into → what they are called there."""


@dataclass(frozen=True, kw_only=True)
class Results:
    """What an evaluation found.

    Attributes:
        results: a row per method and mode, with its means (over seeds, where there are several).
        comparison: FixATE against every other method, user by user.
        metrics: a row per session, method, mode and seed.
        report: the HTML report.
    """

    results: pd.DataFrame
    comparison: pd.DataFrame
    metrics: pd.DataFrame
    report: Path


def check_run(run: Path, config: RunConfig) -> None:
    """Make sure that a run directory is free, or was made with the same settings, before any work.

    Raises:
        ConfigError: naming the settings that differ, or one that cannot be used.
    """
    operator_of(config.operator)
    alignment_of(config.objective)
    if config.backbone.path not in EMBEDDED:
        family_of(resolve(config.backbone.path, work=run, revision=config.backbone.revision))
    path = run / CONFIG_FILE
    if path.exists():
        before, now = (flatten(config_to_dict(c)) for c in (load_config(path), config))
        differing = [f"{k}: {before.get(k)} there, {now.get(k)} now" for k in now if before.get(k) != now.get(k)]
        if differing and begun(run):
            raise ConfigError(
                f"{run} was made with other settings ({'; '.join(differing)}); choose another folder or remove it"
            )
    elif run.exists() and any(not _ours(entry) for entry in run.iterdir()):
        raise ConfigError(f"{run} is not empty and holds no {CONFIG_FILE}; choose another --run")


def _ours(entry: Path) -> bool:
    """Whether a file is one that a run which was killed at its very start leaves."""
    return entry.name in (LOCK_FILE, unfinished_name(Path(CONFIG_FILE)).name)


def claim_run(run: Path, config: RunConfig) -> None:
    """Make a run directory, or make sure that the one there was made with the same settings.

    Other settings are taken where nothing was tuned with those there.

    Raises:
        ConfigError: see `check_run`.
        DiskError: the settings cannot be written.
    """
    check_run(run, config)
    text, path = dump_config(config), run / CONFIG_FILE
    if not path.exists() or load_config(path) != config:
        hosts.by_first(write_text, path, text)


def open_run(run: Path, *, accept_other_backbone: bool = False) -> tuple[RunConfig, Workspace]:
    """Settings and workspace of a run directory.

    Args:
        run: the directory.
        accept_other_backbone: go on where the backbone's files are not those that the run was tuned with.

    Raises:
        ConfigError: when it is none.
        DataError: the data are not those that it was tuned on.
        CheckpointError: the backbone's files are not.
    """
    if not (run / CONFIG_FILE).exists():
        raise ConfigError(f"{run}: no {CONFIG_FILE} there; give the directory of a run made by `fixate train`")
    config = load_config(run / CONFIG_FILE)
    store = open_or_prepare(config.data)
    check_people(run, store, config.data)
    workspace = open_workspace(config, store, directory=run)
    check_backbone(run, workspace.backbone, accept=accept_other_backbone)
    return config, workspace


def seed_directory(run: Path, seed: int) -> Path:
    """Where a seed's checkpoints, metrics and predictions are."""
    return run / f"seed-{seed}"


def load_prompt(workspace: Workspace, directory: Path, *, seed: int) -> PromptParams:
    """The best prompts of a training run, see `restore_prompt`."""
    return restore_prompt(
        workspace.config, directory, users=len(workspace.users), width=workspace.backbone.width, seed=seed
    )


def restore_prompt(config: RunConfig, directory: Path, *, users: int, width: int, seed: int) -> PromptParams:
    """The best prompts of a training run.

    Args:
        config: the run's settings.
        directory: of the seed, see `seed_directory`.
        users: number of rows of z.
        width: of the backbone.
        seed: of the run.

    Raises:
        CheckpointError: when there is no checkpoint, or none is sound.
    """
    like = hosts.local(start_state(config, users=users, width=width, seed=seed))
    restored = CheckpointStore(directory / "checkpoints").restore({"state": like, "best": like.prompt})
    if restored is None:
        raise CheckpointError(f"{directory / 'checkpoints'}: no checkpoint there; run `fixate train` first")
    return restored.state["best"]


def absolute_paths(config: RunConfig) -> RunConfig:
    """The same settings with absolute paths, so that a run can be evaluated from any folder."""
    backbone = config.backbone.path
    named = backbone in EMBEDDED or is_hub_id(backbone)
    return replace(
        config,
        data=replace(config.data, path=_absolute(config.data.path), store=_absolute(config.data.store)),
        backbone=replace(config.backbone, path=backbone if named else str(Path(backbone).resolve())),
        cache=replace(config.cache, directory=_absolute(config.cache.directory)),
    )


def _absolute(path: Path | None) -> Path | None:
    return None if path is None else path.resolve()


@contextmanager
def _timed(durations: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    durations[name] = round(time.perf_counter() - start, 2)


def run_experiment(config: RunConfig, run: Path, *, accept_other_backbone: bool = False) -> Results:
    """Tune one prompt set per seed (and the baseline), then evaluate; safe to give again after any interruption.

    Args:
        config: the settings.
        run: the run directory; gets the resolved settings, versions, checkpoints, metrics, predictions, figures and
            the report.
        accept_other_backbone: resume where the backbone's files are not those that the run was begun with.

    Raises:
        FixateError: naming what is wrong with settings, data, checkpoint or run directory.
    """
    config = absolute_paths(config)
    with hosts.locked_by_first(run):
        return _run(config, run, accept_other_backbone)


def _run(config: RunConfig, run: Path, accept_other_backbone: bool) -> Results:
    durations: dict[str, float] = {}
    compilations: dict[str, int] = {}
    with _timed(durations, "prepare"):
        with hosts.first_alone():
            check_run(run, config)
            # The data come first: a wrong path must leave no directory that holds the wrong settings.
            store = open_or_prepare(config.data)
            claim_run(run, config)
            check_people(run, store, config.data)
        workspace = open_workspace(config, store, directory=run)
        claim_identity(run, workspace, accept_other_backbone=accept_other_backbone)
    compiled = workspace.evaluate._cache_size()
    for seed in config.train.seeds:
        directory = seed_directory(run, seed)
        with _timed(durations, f"tune, seed {seed}"):
            tuned = train(workspace, config, directory, seed=seed, title=f"Tuning, seed {seed}")
            compilations[f"step, seed {seed}"] = tuned.compilations
        if config.train.ntp_baseline and config.objective.alignment != "none":
            with _timed(durations, f"tune next-token baseline, seed {seed}"):
                train(
                    workspace, ntp_only(config), directory / NTP, seed=seed, title=f"Next-token baseline, seed {seed}"
                )
    hosts.by_first(write_text, run / "versions.json", json.dumps(versions(), indent=1))
    with _timed(durations, "evaluate"):
        results = evaluate_run(workspace, run)
    compilations["evaluation"] = workspace.evaluate._cache_size() - compiled
    hosts.by_first(
        write_text, run / "run.json", json.dumps({"seconds": durations, "compilations": compilations}, indent=1)
    )
    return results


def evaluate_run(workspace: Workspace, run: Path, *, split: str = "test") -> Results:
    """The four-way table and everything beside it, from a run's best prompts.

    {backbone, FixATE, next-token prompt} × {teacher-forced, free-running}, FixATE under other users' prompts, both
    calibrated, and the predictors without a model.

    Args:
        workspace: from :func:`open_run`.
        run: the run directory; predictions, tables, figures and report are written there.
        split: which sessions; where it is not test, the names of what is written tell it.
    """
    config, top_k = workspace.config, workspace.config.objective.top_k
    backbone = predict(workspace, None, split, BACKBONE, track=track)
    trivial = predict_without_model(workspace, split)
    # On the validation sessions themselves the rows would flatter.
    calibrates = config.train.calibrate and split == "test"
    beside = [backbone, trivial]
    if calibrates:
        beside.append(calibrated(calibrate(workspace, predict(workspace, None, "validation", BACKBONE)), backbone))
    shared = session_metrics(pd.concat(beside, ignore_index=True), top_k=top_k)
    per_seed, prompts = [], {}
    for seed in config.train.seeds:
        directory = seed_directory(run, seed)
        prompts[seed] = load_prompt(workspace, directory, seed=seed)
        frames = [predict(workspace, prompts[seed], split, FIXATE, track=track)]
        if calibrates:
            found = calibrate(workspace, predict(workspace, prompts[seed], "validation", FIXATE, track=track))
            write_calibration(directory, found)
            frames.append(calibrated(found, frames[0]))
        if (directory / NTP).exists():
            baseline = load_prompt(workspace, directory / NTP, seed=seed)
            frames.append(predict(workspace, baseline, split, NTP, track=track))
        predictions = pd.concat([*frames, *beside], ignore_index=True)
        _write_parquet(directory / f"predictions-{split}.parquet", predictions)
        metrics = [session_metrics(pd.concat(frames, ignore_index=True), top_k=top_k)]
        if config.train.swap_control:
            metrics.append(swapped_metrics(workspace, prompts[seed], split, SWAPPED, top_k=top_k, track=track))
        per_seed.append(pd.concat([*metrics, shared], ignore_index=True).assign(seed=seed))
    return _write_results(workspace, run, split, per_seed, prompts[config.train.seeds[0]])


def _write_parquet(path: Path, frame: pd.DataFrame) -> None:
    if not hosts.first():
        return
    with replacing(path) as temporary:
        frame.to_parquet(temporary, index=False)


def _write_results(
    workspace: Workspace, run: Path, split: str, per_seed: list[pd.DataFrame], prompt: PromptParams
) -> Results:
    config = workspace.config
    metrics = pd.concat(per_seed, ignore_index=True)
    # A session's metrics are averaged over seeds before users are compared: seeds are no extra people.
    plain = [frame.drop(columns="seed") for frame in per_seed]
    keys = ["session_id", "user_id", "split", "method", "mode"]
    averaged = pd.concat(plain).groupby(keys, sort=False).mean(numeric_only=True).reset_index()
    results = results_table(summarise(averaged))
    comparison = comparison_table(averaged, reference=FIXATE)
    titles = {"results": f"Results ({split})", "comparison": "FixATE against each method, over users"}
    found = {"results": results, "comparison": comparison}
    if FIXATE + SUFFIX in set(averaged["method"]):
        titles["calibrated"] = "FixATE, calibrated, against each method, over users"
        found["calibrated"] = comparison_table(averaged, reference=FIXATE + SUFFIX)
    if len(per_seed) > 1:
        titles["seeds"] = "Mean and deviation over seeds"
        found["seeds"] = over_seeds([summarise(frame) for frame in plain])
    for stem, table in found.items():
        hosts.by_first(write_text, run / f"{stem}-{split}.csv", csv_text(table))
    tables = {titles[stem]: table for stem, table in found.items()}
    logs = {seed: pd.read_csv(seed_directory(run, seed) / "metrics.csv") for seed in config.train.seeds}
    _figures(workspace, run, split, averaged, prompt, logs)
    prompts = {BACKBONE: None, FIXATE: prompt}
    viewer = session_viewer(workspace, split, SHOWN, prompts, plain[0], track=track)
    told = _calibrations(run, config.train.seeds) if "calibrated" in found else []
    hosts.by_first(
        write_report,
        run,
        title=f"FixATE on {config.data.name}",
        tables=tables,
        viewer=viewer,
        improvement=improvement(averaged, SHOWN),
        training={f"seed {seed}": log for seed, log in logs.items()},
        config=config_to_dict(config),
        versions=versions(),
        notes=_notes(workspace, split, told),
        name=_of_split(REPORT, split),
    )
    return Results(results=results, comparison=comparison, metrics=metrics, report=run / _of_split(REPORT, split))


def _of_split(name: str, split: str) -> str:
    """A file or folder that is about a split: the test sessions' has the plain name."""
    path = Path(name)
    return name if split == "test" else f"{path.stem}-{split}{path.suffix}"


def _notes(workspace: Workspace, split: str, calibrations: Sequence[str]) -> list[str]:
    config = workspace.config
    count = {name: len(indices) for name, indices in workspace.splits.items()}
    seeds = config.train.seeds
    shown = (
        f" Sessions are shown under the prompts of seed {seeds[0]}; all else is over seeds." if len(seeds) > 1 else ""
    )
    return [
        f"{len(workspace.users)} users; {count['train']} sessions to tune on, {count['validation']} to choose the "
        f"epoch, {count['test']} to test; this table is about the {split} sessions. Seeds: "
        f"{', '.join(map(str, seeds))}.{shown}",
        _overlap(workspace, split),
        *calibrations,
        "TF: relevance for the true answer, so the model is told the click; compare it with the predictors that are "
        "told the click too. FR: relevance for the model's own answer; this is the claim.",
    ]


def _calibrations(run: Path, seeds: Sequence[int]) -> list[str]:
    """What the calibrated rows did, for each seed."""
    found = {seed: read_calibration(seed_directory(run, seed)) for seed in seeds}
    return [
        f"Calibrated on validation sessions, seed {seed}: attention to the power of {c.attention:.2f}, then "
        f"{c.habit:.0%} of the person's mean gaze; answers to the power of {c.answers:.2f}."
        for seed, c in found.items()
        if c is not None
    ]


def _overlap(workspace: Workspace, split: str) -> str:
    """How many pages of a split somebody saw in training: how they are looked at may have been learnt there."""
    trained = {session.page_id for session in workspace.sessions("train")}
    asked = {session.page_id for session in workspace.sessions(split)}
    seen = len(asked & trained)
    return f"{seen} of the {len(asked)} pages of the {split} sessions were seen by somebody in a session to tune on."


def improvement(metrics: pd.DataFrame, methods: Mapping[str, str]) -> dict[str, pd.DataFrame]:
    """Each user's free-running means under two methods, for every compared metric that both have.

    Args:
        metrics: from :func:`fixate_jax.lab.frames.session_metrics`.
        methods: the one before and the one after → their names, which become the columns.
    """
    users = user_means(metrics, [name for name in COMPARED if name in metrics.columns])
    free = users[users["mode"] == "FR"]
    frames = {
        name: free.pivot(index="user_id", columns="method", values=name)[list(methods)].rename(columns=dict(methods))
        for name in COMPARED
        if name in free
    }
    return {name: frame for name, frame in frames.items() if not frame.dropna().empty}


def _figures(
    workspace: Workspace,
    run: Path,
    split: str,
    metrics: pd.DataFrame,
    prompt: PromptParams,
    logs: Mapping[int, pd.DataFrame],
) -> None:
    """Curves, changes per user and a few pages as picture files, for papers and slides."""
    folder = run / _of_split("figures", split)
    for seed, log in logs.items():
        hosts.by_first(training_curves, folder / f"training-seed-{seed}.png", log)
    gains = improvement(metrics, SHOWN)
    for metric in ("kl", "accuracy"):
        hosts.by_first(user_improvement, folder / f"users-{metric}.png", per_user=gains[metric], metric=metric)
    indices = workspace.splits[split]
    chosen = np.random.default_rng(0).permutation(len(indices))[: workspace.config.train.pictures]
    for index in sorted(indices[i] for i in chosen):
        name = "".join(c if c.isalnum() else "-" for c in workspace.data.sessions[index].session_id)
        picture(workspace, prompt, index, folder / f"page-{name}.png")


def picture(workspace: Workspace, prompt: PromptParams | None, index: int, path: Path, *, smooth: bool = False) -> Path:
    """Draw one session: page with slots, human gaze, relevance of the backbone and under the user's prompt.

    Args:
        workspace: backbone and data.
        prompt: tuned prompts; None leaves that panel out.
        index: the session.
        path: PNG to write.
        smooth: draw relevance as a heat map over the page instead of the tokens' cells.
    """
    session, encoded = workspace.data.sessions[index], workspace.data.encoded[index]
    image = workspace.store.image(session.page_id).convert("RGB")
    batch = workspace.data.batch([index] + [-1] * (workspace.config.train.eval_batch - 1), workspace.own_rows())
    relevance, attention = {}, {}
    for name, soft in ((BACKBONE, None), (FIXATE, prompt)):
        if name == FIXATE and prompt is None:
            continue
        out = jax.device_get(evaluate_batch(workspace, soft, batch))
        visual = encoded.rows * encoded.columns
        grid = out.tokens_free[0][:visual].reshape(encoded.rows, encoded.columns)
        relevance[name] = heat_map(grid, *image.size) if smooth else grid
        attention[name] = out.free_running[0][: session.slots].astype(np.float64)
    hosts.by_first(
        page_figure,
        path,
        image=np.asarray(image),
        boxes=session.boxes,
        labels=session.labels,
        gaze=session.gaze(workspace.config.data.signal, workspace.config.data.gaze_temperature),
        click=session.click,
        relevance=relevance,
        slot_attention=attention,
        title=f"user {session.user_id}, session {session.session_id}, free-running",
    )
    return path
