"""Variants of a preset × seeds × splits: the cells that a study is made of."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from fixate_jax.data.options import DataConfig
from fixate_jax.data.registry import DATASETS, open_or_prepare, usable_sessions
from fixate_jax.data.session import Split
from fixate_jax.errors import ConfigError
from fixate_jax.lab.config import RunConfig
from fixate_jax.lab.experiments.cells import Cell, Group, opened_with, read_cells
from fixate_jax.lab.experiments.experiment import absolute_paths
from fixate_jax.lab.report.tables import pool_runs
from fixate_jax.lab.settings import config_from_dict, config_to_dict

REFERENCE = "preset"
"""The variant that all others are compared with: the settings as they are."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """The preset, but for something.

    Attributes:
        name: in tables.
        changes: dotted setting → value, as in ``{"objective.gamma": 2.0}``.
        alone: private prompts, each tuned by itself.
        axis: in a sweep along one setting, which; the reference belongs to every axis.
        why: what the variant tells, in a few words.
    """

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    alone: bool = False
    axis: str = ""
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Study:
    """Which cells there are.

    Attributes:
        out: where everything goes.
        base: the preset.
        variants: the first is the reference.
        seeds: of the prompts.
        splits: seeds of the train/validation/test split.
        measured: the split that is measured.
        signal: what slot attention is measured against, whatever it was tuned to.
    """

    out: Path
    base: RunConfig
    variants: tuple[Variant, ...]
    seeds: tuple[int, ...]
    splits: tuple[int, ...]
    measured: Split
    signal: str

    def __post_init__(self) -> None:
        if not self.seeds or not self.splits:
            raise ConfigError("--seeds, --splits: at least one of each is needed")
        names = [slug(variant.name) for variant in self.variants]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ConfigError(f"{twice[0]}: there are two variants of that name")
        if len(names) < 2:
            raise ConfigError("nothing to compare the preset with: all that is asked for is the preset itself")

    def settings(self, variant: Variant, split: int) -> RunConfig:
        """The settings of a variant's cells on a split."""
        config = changed(self.base, variant.changes, source=variant.name)
        data = replace(config.data, split_seed=split)
        return absolute_paths(
            replace(config, data=data, train=replace(config.train, seeds=self.seeds, ntp_baseline=False))
        )

    def cells(self, variant: Variant) -> list[Cell]:
        """A cell for each split and seed, a run directory for each split."""
        found = []
        for split in self.splits:
            config = self.settings(variant, split)
            if variant.alone:
                config = by_themselves(config)
            folder = self.out / "cells" / slug(variant.name) / f"split-{split}"
            also = () if config.data.signal == self.signal else (self.signal,)
            for seed in self.seeds:
                one = replace(config, train=replace(config.train, seeds=(seed,)))
                where = folder / f"seed-{seed}"
                found.append(
                    Cell(folder=where, config=one, seed=seed, split=self.measured, also=also, alone=variant.alone)
                )
        return found

    def groups(self) -> list[Group]:
        """The cells of each variant, those first that share what has to be opened."""
        by_variant = [self.cells(variant) for variant in self.variants]
        order: dict[str, list[Group]] = {}
        for cells in by_variant:
            order.setdefault(repr(opened_with(cells[0].config)), []).append(cells)
        return [group for same in order.values() for group in same]

    def measures(self, variant: Variant) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Measures averaged over seeds, and their spread over seeds and splits."""
        cells: dict[int, list[Cell]] = {}
        for cell in self.cells(variant):
            cells.setdefault(cell.config.data.split_seed, []).append(cell)
        frames = {split: read_cells(own, signal=self.signal) for split, own in cells.items()}
        if len(frames) > 1 and DATASETS[self.base.data.name].files is None:  # Another seed makes up other people.
            frames = {split: f.assign(user_id=f"{split}:" + f["user_id"]) for split, f in frames.items()}
        return pool_runs(frames)


def slug(name: str) -> str:
    """A name as that of a folder."""
    return re.sub(r"[^A-Za-z0-9.=_-]+", "-", name)


def changed(config: RunConfig, changes: Mapping[str, Any], *, source: str) -> RunConfig:
    """Settings with some of them changed.

    Args:
        config: the settings.
        changes: dotted name → value as YAML would give it.
        source: what asks for the changes, for error messages.

    Raises:
        ConfigError: there is no such setting, or its value is of a wrong type or not allowed.
    """
    values = config_to_dict(config)
    for name, value in changes.items():
        section, _, last = name.partition(".")
        if not last or not isinstance(values.get(section), dict):
            raise ConfigError(f"{source}: {name!r} is no setting; name one as in objective.gamma")
        values[section][last] = value
    return config_from_dict(values, source=source)


def by_themselves(config: RunConfig) -> RunConfig:
    """Private prompts with the same amount of learning: as many passes over each person's sessions as in joint tuning.

    The steps are those of the person with the median number of sessions, `users.batch` of them a step; validations are
    as many passes apart, and patience is the same.
    """
    train, users = config.train, config.users
    per_pass = -(-_median_sessions(config.data) // users.batch)
    users = replace(
        users,
        mode="private",
        basis=None,
        patience=train.patience,
        steps=train.epochs * per_pass,
        validate_every=train.validate_every * per_pass,
    )
    return replace(config, users=users, train=replace(train, max_lengths=1))


@lru_cache
def _median_sessions(data: DataConfig) -> int:
    """Training sessions of the person with the median number of them."""
    count: dict[str, int] = {}
    for session in usable_sessions(open_or_prepare(data), data):
        if session.split == "train":
            count[session.user_id] = count.get(session.user_id, 0) + 1
    median = sorted(count.values())[len(count) // 2]
    return median if data.train_sessions is None else min(median, data.train_sessions)
