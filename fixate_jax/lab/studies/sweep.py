"""Values of settings, along one axis at a time, on a grid, or drawn at random."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import yaml

from fixate_jax.errors import ConfigError
from fixate_jax.lab.config import RunConfig
from fixate_jax.lab.settings import config_to_dict
from fixate_jax.lab.studies.matrix import REFERENCE, Variant, changed

Design = Literal["each", "grid", "random"]
Axes = Mapping[str, tuple[Any, ...]]
FIXED = {
    "data.split_seed": "give the splits with --splits",
    "data.gaze_temperature": "gaze of different temperatures would be measured against; tune and compare one at a time",
    "train.seeds": "give the seeds with --seeds",
}
"""What cannot be an axis, and why."""


def parse_axes(over: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """Axes from texts such as ``objective.gamma=0,1,2``; values are read as YAML reads them.

    Raises:
        ConfigError: a text without a name or without values, or a name given twice.
    """
    axes: dict[str, tuple[Any, ...]] = {}
    for text in over:
        name, equals, values = text.partition("=")
        if not equals or not name.strip() or not values.strip():
            raise ConfigError(f"--over {text}: give a setting and its values, as in objective.gamma=0,1,2")
        if name in axes:
            raise ConfigError(f"--over {name}: given twice; name all its values at once")
        axes[name.strip()] = _values(text, values)
    if not axes:
        raise ConfigError("--over: name at least one setting, as in --over objective.gamma=0,1,2")
    return axes


def _values(text: str, values: str) -> tuple[Any, ...]:
    try:
        found = None if values.strip().endswith(",") else yaml.safe_load(f"[{values}]")
    except yaml.YAMLError:
        found = None
    if not isinstance(found, list):
        raise ConfigError(f"--over {text}: its values cannot be read; give them as in YAML, with commas between")
    return tuple(map(_number, found))


def _number(value: Any) -> Any:
    # YAML 1.1 takes 1e-3 for a text; here it is a number.
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def variants_of(
    config: RunConfig, axes: Axes, *, design: Design = "each", draws: int = 8, seed: int = 0
) -> tuple[Variant, ...]:
    """The preset and what is swept.

    Args:
        config: the preset.
        axes: setting → values.
        design: ``each`` changes one setting at a time; ``grid`` takes every combination; ``random`` draws some of them.
        draws: of ``random``, all different.
        seed: of the draws.

    Raises:
        ConfigError: a setting or value that there cannot be, or more draws than combinations.
    """
    for name, values in axes.items():
        if name in FIXED:
            raise ConfigError(f"--over {name}: {FIXED[name]}")
        for value in values:
            changed(config, {name: value}, source="--over")
    found = [Variant(name=REFERENCE, why="the preset")]
    if design == "each":
        for name, values in axes.items():
            found += [_variant({name: value}, axis=name) for value in values if value != value_of(config, name)]
        return tuple(found)
    every = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    if design == "random":
        if draws < 1 or seed < 0:
            raise ConfigError(f"--draws {draws}, --draw-seed {seed}: at least one draw, and no negative seed")
        if draws > len(every):
            raise ConfigError(f"--draws {draws}: there are only {len(every)} combinations; use the design grid")
        at = np.random.default_rng(seed).choice(len(every), size=draws, replace=False)
        every = [every[i] for i in sorted(at)]
    preset = {name: value_of(config, name) for name in axes}
    return tuple(found + [_variant(changes) for changes in every if changes != preset])


def _variant(changes: Mapping[str, Any], axis: str = "") -> Variant:
    name = ", ".join(f"{key.rpartition('.')[2]}={value}" for key, value in changes.items())
    what = ", ".join(f"{key} = {value}" for key, value in changes.items())
    return Variant(name=name, changes=dict(changes), axis=axis, why=what)


def value_of(config: RunConfig, name: str) -> Any:
    """The preset's value of a dotted setting."""
    section, _, last = name.partition(".")
    return config_to_dict(config)[section][last]
