"""Data sets by name, and their stores on disk."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from fixate_jax.data.options import DataConfig
from fixate_jax.data.page import Page, Session
from fixate_jax.data.readers import adserp, human_choice, own, recgaze, snacks, synthetic
from fixate_jax.data.render import Alternative
from fixate_jax.data.session import StoredSession
from fixate_jax.data.splits import split_by_page
from fixate_jax.data.store import SessionStore, StoreWriter, encode_image
from fixate_jax.errors import ConfigError, DataError, StoreError
from fixate_jax.runtime.progress import track

SYNTHETIC_USERS, SYNTHETIC_TRIALS = 12, 60

WriterOf = Callable[[tuple[str, ...]], StoreWriter]
Reader = Callable[[DataConfig], tuple[pd.DataFrame, dict[str, int]]]


def _read_human_choice(config: DataConfig) -> tuple[pd.DataFrame, dict[str, int]]:
    assert config.path is not None
    return human_choice.read_trials(config.path, on_bad_row=config.on_bad_row)


def _read_synthetic_choice(config: DataConfig) -> tuple[pd.DataFrame, dict[str, int]]:
    users = SYNTHETIC_USERS if config.max_users is None else config.max_users
    return synthetic.choice.synthetic_trials(users=users, trials=SYNTHETIC_TRIALS, seed=config.split_seed), {}


def _write_choice(config: DataConfig, writer_of: WriterOf, read: Reader) -> None:
    frame, dropped = read(config)
    frame = human_choice.first_users(frame, config.max_users)
    splits = human_choice.assign_splits(frame, config.split_seed)
    with writer_of(human_choice.FEATURES[config.slots]) as writer:
        writer.dropped = dropped
        rows = list(zip(frame.itertuples(index=False), splits, strict=True))
        pages: dict[tuple[Alternative, ...], str] = {}
        for row, split in track(rows, "Drawing pages"):
            content = tuple(alternative for _, alternative in human_choice.shown(row))
            if content not in pages:
                page = human_choice.draw_trial(row, slots=config.slots, width=config.page_width)
                pages[content] = writer.add_image(encode_image(page))
            writer.add(human_choice.make_session(row, slots=config.slots, page=pages[content], split=split))


Preparer = Callable[[DataConfig, WriterOf], None]


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """How a data set gets into a store.

    Attributes:
        prepare: reads the raw data and adds sessions to a store's writer.
        files: the raw files in ``data.path`` that the store is made of; None for synthetic users, who need none.
        reading: raised when the same files come to be read otherwise, so that stores of before are not used.
    """

    prepare: Preparer
    files: Callable[[Path], list[Path]] | None
    reading: int = 1


def _prepare_human_choice(config: DataConfig, writer_of: WriterOf) -> None:
    _write_choice(config, writer_of, _read_human_choice)


def _prepare_synthetic_choice(config: DataConfig, writer_of: WriterOf) -> None:
    _write_choice(config, writer_of, _read_synthetic_choice)


DATASETS: dict[str, DataSet] = {
    "human_choice": DataSet(prepare=_prepare_human_choice, files=human_choice.source_files),
    "recgaze": DataSet(prepare=recgaze.prepare, files=recgaze.source_files, reading=2),
    "adserp": DataSet(prepare=adserp.prepare, files=adserp.source_files, reading=2),
    "snacks": DataSet(prepare=snacks.prepare, files=snacks.source_files),
    "own": DataSet(prepare=own.prepare, files=own.source_files),
    "synthetic_choice": DataSet(prepare=_prepare_synthetic_choice, files=None),
    "synthetic_carousel": DataSet(prepare=synthetic.carousel.prepare, files=None),
}
"""Data sets by name."""

OWN = {"recgaze": ("viewport",), "snacks": ("grids", "profile")}
"""Settings that shape the stores of one data set alone. (Older ones than these are in the manifests of all.)"""
NOT_STORED = ("store", "signal", "common_sessions", "gaze_temperature", "train_sessions", "split", "users")
"""Settings that do not change what a store holds."""


def store_settings(config: DataConfig) -> dict[str, Any]:
    """What a store's content depends on: the settings that shape it, and a checksum of the raw files.

    The checksum, ``source``, is left out when ``config.path`` is None, as for a store whose raw data are elsewhere;
    that of synthetic users is "generated".

    Raises:
        ConfigError: when the data set is unknown or its path does not exist.
    """
    if config.name not in DATASETS:
        raise ConfigError(f"data.name = {config.name!r}: choose one of {', '.join(DATASETS)}")
    # By way of JSON, as they are compared with what a manifest holds.
    settings = json.loads(json.dumps({k: v for k, v in vars(config).items() if k not in (*NOT_STORED, "path")}))
    data_set = DATASETS[config.name]
    for name, own_settings in OWN.items():
        if config.name != name:
            settings = {k: v for k, v in settings.items() if k not in own_settings}
    if data_set.reading > 1:
        settings["reading"] = data_set.reading
    if data_set.files is None:
        del settings["on_bad_row"]
        return settings | {"source": "generated"}
    if config.path is None:
        return settings
    digest = hashlib.sha256()
    for file in data_set.files(config.path):
        if not file.is_file():
            raise ConfigError(f"data.path = {config.path}: {file} is not there; give the folder of {config.name}")
        with file.open("rb") as handle:
            digest.update(file.name.encode() + b"\0" + hashlib.file_digest(handle, "sha256").digest())
    return settings | {"source": digest.hexdigest()}


def open_or_prepare(config: DataConfig) -> SessionStore:
    """The store of a data set, made from the raw data if it is not there yet, with the users and splits asked for.

    Without ``config.store`` it goes to ``stores/`` in the current folder, under a name made from its settings.

    Raises:
        ConfigError: when the data set is unknown or its path is missing.
        DataError: naming file, line and field of a bad row.
        StoreError: when the store is damaged, was made with other settings or from other raw data, or lacks a user.
    """
    settings = store_settings(config)
    directory = config.store
    if "source" not in settings and (directory is None or not directory.exists()):
        raise ConfigError(f"data.path = None: give the folder of {config.name} (--data.path FOLDER)")
    if directory is None:
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
        directory = Path("stores") / f"{config.name}-{digest}"
    if not directory.exists():
        _prepare(config, directory, settings)
    store = SessionStore.open(directory)
    made_with = store.manifest["settings"]
    differing = [f"{k} was {made_with.get(k)!r}, is {v!r}" for k, v in settings.items() if made_with.get(k) != v]
    if differing:
        raise StoreError(
            f"{directory} was prepared with other settings or raw data ({'; '.join(differing)}); "
            "give these settings, choose another data.store or remove it"
        )
    if config.split == "pages":
        store = replace(store, sessions=split_by_page(store.sessions, config.split_seed))
    return replace(store, sessions=store.select(users=config.users))


def usable_sessions(store: SessionStore, config: DataConfig) -> list[StoredSession]:
    """The sessions of a store that the settings ask for.

    Raises:
        DataError: when one of them lacks the signal that is asked for.
    """
    sessions = list(store.sessions)
    if config.common_sessions:
        signals = set().union(*(s.dwell_ms for s in sessions))
        sessions = [s for s in sessions if signals <= set(s.dwell_ms)]
    missing = next((s for s in sessions if config.signal not in s.dwell_ms), None)
    if missing is not None:
        raise DataError(
            f"data.signal = {config.signal!r}: session {missing.session_id!r} has only {', '.join(missing.dwell_ms)}; "
            "choose another signal, or set data.common_sessions to leave such sessions out"
        )
    if not sessions:
        raise DataError(f"data.common_sessions: no session in {store.directory} has {' and '.join(sorted(signals))}")
    return sessions


def _prepare(config: DataConfig, directory: Path, settings: Mapping[str, Any]) -> None:
    def writer_of(names: tuple[str, ...]) -> StoreWriter:
        return StoreWriter(directory, name=config.name, settings=settings, slot_feature_names=names)

    try:
        DATASETS[config.name].prepare(config, writer_of)
    except StoreError:
        # Runs that start together, as in a sweep, prepare the same store; all use that of the first to finish.
        if not directory.exists():
            raise


def read_sessions(name: str, path: Path | str | None = None, **options: Any) -> list[Session]:
    """The sessions of a data set, in memory.

    Args:
        name: of the data set.
        path: folder of its raw data; synthetic users need none.
        options: fields of :class:`fixate_jax.data.options.DataConfig`, such as ``page_width=640`` or ``max_users=5``;
            with ``store=FOLDER`` what was read is kept there for the next time.

    Returns:
        Sessions in the order of the data set; those on the same page share it.

    Raises:
        ConfigError: the data set is unknown or its path is missing.
        DataError: naming file, line and field of a bad row.
    """
    config = DataConfig(name=name, path=None if path is None else Path(path), **options)
    with TemporaryDirectory() as folder:
        if config.store is None:
            config = replace(config, store=Path(folder) / "store")
        store = open_or_prepare(config)
        pages: dict[tuple[Any, ...], Page] = {}
        found = []
        for stored in usable_sessions(store, config):
            key = (stored.page_id, stored.labels, stored.profile, stored.boxes.tobytes())
            if key not in pages:
                image = store.image(stored.page_id).convert("RGB")
                how: dict[str, Any] = {"relative": True, "labels": stored.labels, "labelled": True}
                pages[key] = Page(image=image, boxes=stored.boxes, profile=stored.profile, **how)
            gaze = stored.gaze(config.signal, config.gaze_temperature)
            own: dict[str, Any] = {"user": stored.user_id, "gaze": gaze, "click": stored.click, "split": stored.split}
            found.append(Session(page=pages[key], **own))
    return found
