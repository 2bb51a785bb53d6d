"""Faithfulness of operators on a run or a preset, on disk: kept operator by operator, gone on with when given again."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pandas as pd

from fixate_jax.backbones import Backbone, load_backbone
from fixate_jax.data.registry import open_or_prepare, usable_sessions
from fixate_jax.data.session import SPLITS, StoredSession
from fixate_jax.data.store import SessionStore
from fixate_jax.errors import ConfigError
from fixate_jax.lab.analysis.faithfulness import (
    ANSWER_FIRST,
    RANDOM,
    Subject,
    choose_sessions,
    choose_variants,
    faithfulness_table,
    mean_curves,
    operator_curves,
    random_curves,
)
from fixate_jax.lab.config import OperatorConfig, RunConfig
from fixate_jax.lab.experiments.experiment import restore_prompt, seed_directory
from fixate_jax.lab.experiments.loop import Interrupted
from fixate_jax.lab.report.curves import faithfulness_curves
from fixate_jax.lab.settings import config_to_dict
from fixate_jax.lab.text import csv_text
from fixate_jax.pipeline.features import FeatureStore
from fixate_jax.pipeline.pages import warn_of_empty_slots
from fixate_jax.probing.batches import SessionData
from fixate_jax.probing.encode import encode_sessions
from fixate_jax.prompts import soft_prompt
from fixate_jax.runtime.durable import replacing, unfinished_name, write_text
from fixate_jax.runtime.lock import locked
from fixate_jax.runtime.progress import track

TABLE, FIGURE, SETTINGS = "faithfulness.csv", "faithfulness.png", "settings.json"


@dataclass(frozen=True, kw_only=True)
class FaithfulnessSettings:
    """What to examine.

    Attributes:
        operators: names as in `faithfulness.variants` (empty: all).
        sessions: how many sessions, evenly from all users.
        split: which sessions to draw them from.
        draws: random orders that the baseline is the mean of.
        seed: of the choice of sessions, the random orders and the bootstrap.
    """

    operators: tuple[str, ...] = ()
    sessions: int = 48
    split: str = "test"
    draws: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ConfigError(f"--split {self.split}: choose one of {', '.join(SPLITS)}")
        for name in ("sessions", "draws"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name} {getattr(self, name)}: at least 1 is needed")


def run_faithfulness(
    config: RunConfig, out: Path, settings: FaithfulnessSettings, *, run: Path | None = None
) -> pd.DataFrame:
    """Examine operators one after the other and write table, curves and figure.

    What an operator gave is on disk before the next one starts; the same call goes on from there, and more operators
    can be added.

    Args:
        config: of the run, or a preset.
        out: directory to write to.
        settings: what to examine.
        run: the run whose first seed's prompts the model gets; None for the backbone alone.

    Returns:
        See `faithfulness_table`; also written to `faithfulness.csv`.

    Raises:
        ConfigError: a setting is wrong, `out` was made with others, or another process is at it.
        Interrupted: by the user; what was done is kept.
        FixateError: naming what is wrong with data or checkpoint.
    """
    chosen = choose_variants(config.operator, settings.operators)
    store = open_or_prepare(config.data)
    _claim(out, config, settings, run)
    with locked(out):
        return _run(config, out, settings, run, store, chosen)


def _run(
    config: RunConfig,
    out: Path,
    settings: FaithfulnessSettings,
    run: Path | None,
    store: SessionStore,
    chosen: dict[str, OperatorConfig],
) -> pd.DataFrame:
    sessions = [s for s in usable_sessions(store, config.data) if s.split == settings.split]
    sessions = choose_sessions(sessions, settings.sessions, seed=settings.seed)
    curves: list[pd.DataFrame] = []
    try:
        subject = _open(config, store, sessions, out, run)
        for name in (RANDOM, ANSWER_FIRST, *chosen):
            path = out / "curves" / f"{name.replace(' ', '-')}.parquet"
            if path.exists():
                curves.append(pd.read_parquet(path))
                continue
            answers = [int(answer) for answer in curves[0]["answer"]] if curves else None
            if name in (RANDOM, ANSWER_FIRST):
                found = random_curves(subject, draws=settings.draws, seed=settings.seed, first=answers, track=track)
            else:
                assert answers is not None
                found = operator_curves(subject, name, chosen[name], answers, seed=settings.seed, track=track)
            with replacing(path) as temporary:
                found.to_parquet(temporary, index=False)
            curves.append(found)
            _write(out, pd.concat(curves, ignore_index=True), settings)
    except KeyboardInterrupt as stop:
        raise Interrupted(f"stopped: what was done is in {out}; run the same command again to resume") from stop
    return _write(out, pd.concat(curves, ignore_index=True), settings)


def _write(out: Path, curves: pd.DataFrame, settings: FaithfulnessSettings) -> pd.DataFrame:
    table = faithfulness_table(curves, seed=settings.seed)
    write_text(out / TABLE, csv_text(table))
    faithfulness_curves(out / FIGURE, mean_curves(curves), baseline=RANDOM)
    return table


def _claim(out: Path, config: RunConfig, settings: FaithfulnessSettings, run: Path | None) -> None:
    """Make the directory, or make sure that what is in it comes from the same settings; operators may differ."""
    asked: dict[str, Any] = {k: v for k, v in asdict(settings).items() if k != "operators"}
    asked |= {"run": None if run is None else str(run.resolve()), "config": config_to_dict(config)}
    text, path = json.dumps(asked, indent=1), out / SETTINGS
    if path.exists() and any((out / "curves").glob("*.parquet")):
        before = json.loads(path.read_text(encoding="utf-8"))
        differing = [name for name, value in json.loads(text).items() if before.get(name) != value]
        if differing:
            raise ConfigError(f"{out} was made with another {', '.join(differing)}; choose another --out or remove it")
    elif (
        not path.exists()
        and out.exists()
        and (not out.is_dir() or any(entry != unfinished_name(path) for entry in out.iterdir()))
    ):
        raise ConfigError(f"{out} is not empty and holds no {SETTINGS}; choose another --out")
    write_text(path, text)
    (out / "curves").mkdir(exist_ok=True)


def _open(
    config: RunConfig, store: SessionStore, sessions: list[StoredSession], work: Path, run: Path | None
) -> Subject:
    """Backbone, the sessions with their page features, and the users' prompts."""
    backbone = load_backbone(config.backbone, work=work)
    rows = {user: row for row, user in enumerate(store.users)}
    batch = min(config.train.eval_batch, len(sessions))
    soft = None
    if run is not None:
        seed = config.train.seeds[0]
        prompt = restore_prompt(config, seed_directory(run, seed), users=len(rows), width=backbone.width, seed=seed)
        soft = lambda rows: soft_prompt(prompt, jnp.asarray(rows.user))  # noqa: E731
    data = _encode(backbone, config, store, sessions, rows, batch, work)
    return Subject(backbone=backbone, data=data, soft=soft, batch=batch)


def _encode(
    backbone: Backbone,
    config: RunConfig,
    store: SessionStore,
    sessions: list[StoredSession],
    rows: dict[str, int],
    batch: int,
    work: Path,
) -> SessionData:
    pages = [s.page_id for s in sessions]
    directory = config.cache.directory or work / "features"
    features = FeatureStore(backbone, store.image, pages, config.cache, directory=directory, batch=batch, track=track)
    data = SessionData(
        sessions,
        encode_sessions(backbone, sessions, features.grids),
        rows,
        features=features,
        prompt_tokens=config.prompt.tokens,
        position=config.prompt.position,
        signal=None,
        max_lengths=config.train.max_lengths,
        assignment=config.operator.assignment,
    )
    warn_of_empty_slots(data)
    return data
