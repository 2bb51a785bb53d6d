"""Data sets: sessions, their store on disk, and the readers that make one from raw data."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from fixate_jax.config import DataConfig
from fixate_jax.data import human_choice, synthetic_choice
from fixate_jax.data.session import SPLITS, Session, Split
from fixate_jax.data.store import SessionStore, StoreWriter, encode_image, sessions_frame
from fixate_jax.errors import ConfigError, StoreError
from fixate_jax.progress import track

SYNTHETIC_USERS, SYNTHETIC_TRIALS = 12, 60

Reader = Callable[[DataConfig], tuple[pd.DataFrame, dict[str, int]]]


def _read_human_choice(config: DataConfig) -> tuple[pd.DataFrame, dict[str, int]]:
    assert config.path is not None
    return human_choice.read_trials(config.path, on_bad_row=config.on_bad_row)


def _read_synthetic_choice(config: DataConfig) -> tuple[pd.DataFrame, dict[str, int]]:
    users = SYNTHETIC_USERS if config.max_users is None else config.max_users
    return synthetic_choice.synthetic_trials(users=users, trials=SYNTHETIC_TRIALS, seed=config.split_seed), {}


def _write_choice(config: DataConfig, writer_of: Callable[[tuple[str, ...]], StoreWriter], read: Reader) -> None:
    frame, dropped = read(config)
    frame = human_choice.first_users(frame, config.max_users)
    splits = human_choice.assign_splits(frame, config.split_seed)
    with writer_of(human_choice.FEATURES[config.slots]) as writer:
        writer.dropped = dropped
        rows = list(zip(frame.itertuples(index=False), splits, strict=True))
        for row, split in track(rows, "Drawing pages"):
            png = encode_image(human_choice.draw_trial(row, slots=config.slots, width=config.page_width))
            page = writer.add_image(png)
            writer.add(human_choice.make_session(row, slots=config.slots, page=page, split=split))


Preparer = Callable[[DataConfig, Callable[[tuple[str, ...]], StoreWriter]], None]

DATASETS: dict[str, Preparer] = {
    "human_choice": lambda config, writer_of: _write_choice(config, writer_of, _read_human_choice),
    "synthetic_choice": lambda config, writer_of: _write_choice(config, writer_of, _read_synthetic_choice),
}
"""Data sets by name: a function that reads the raw data and adds sessions to a store's writer."""

MADE_UP = ("synthetic_choice",)
"""Data sets that are generated and need no path."""
NOT_STORED = ("store", "signal", "gaze_temperature")
"""Settings that do not change what a store holds."""


def store_settings(config: DataConfig) -> dict[str, Any]:
    """What a store's content depends on: the settings that shape it, and a checksum of the raw files.

    Raises:
        ConfigError: when the data set is unknown or its path is missing.
    """
    if config.name not in DATASETS:
        raise ConfigError(f"data.name = {config.name!r}: choose one of {', '.join(DATASETS)}")
    settings = {k: v for k, v in vars(config).items() if k not in (*NOT_STORED, "path", "on_bad_row")}
    if config.name in MADE_UP:
        return settings | {"source": "generated"}
    if config.path is None or not config.path.exists():
        raise ConfigError(f"data.path = {config.path}: give the folder of {config.name} (--data.path FOLDER)")
    files = sorted(p for p in config.path.rglob("*") if p.is_file()) if config.path.is_dir() else [config.path]
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return settings | {"on_bad_row": config.on_bad_row, "source": digest.hexdigest()}


def open_or_prepare(config: DataConfig) -> SessionStore:
    """The store of a data set, made from the raw data if it is not there yet.

    Without ``config.store`` it goes to ``stores/`` in the current folder, under a name made from its settings.

    Raises:
        ConfigError: when the data set is unknown, its path is missing, or the store was made with other settings.
        DataError: naming file, line and field of a bad row.
        StoreError: when the store is damaged.
    """
    if config.store is not None and config.path is None and config.store.exists():
        return SessionStore.open(config.store)
    settings = store_settings(config)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:12]
    directory = config.store or Path("stores") / f"{config.name}-{digest}"
    if not directory.exists():
        directory.parent.mkdir(parents=True, exist_ok=True)
        DATASETS[config.name](
            config,
            lambda names: StoreWriter(directory, name=config.name, settings=settings, slot_feature_names=names),
        )
    store = SessionStore.open(directory)
    differing = [k for k in settings if store.manifest["settings"].get(k) != settings[k]]
    if differing:
        raise StoreError(
            f"{directory} was prepared with other settings or raw data ({', '.join(differing)}); "
            "choose another data.store or remove it"
        )
    return store


__all__ = [
    "DATASETS",
    "SPLITS",
    "Session",
    "SessionStore",
    "Split",
    "StoreWriter",
    "encode_image",
    "open_or_prepare",
    "sessions_frame",
    "store_settings",
]
