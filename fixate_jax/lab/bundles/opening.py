"""Emulated users from what was tuned: a run directory, or a bundle."""

import json
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
from safetensors import SafetensorError, safe_open

from fixate_jax.backbones import load_backbone
from fixate_jax.data.registry import open_or_prepare
from fixate_jax.emulation.emulator import UserEmulator
from fixate_jax.errors import CheckpointError, ConfigError
from fixate_jax.lab.bundles.bundle import BUNDLE_FILE, load_bundle
from fixate_jax.lab.bundles.settings import emulator_of
from fixate_jax.lab.config import RunConfig
from fixate_jax.lab.experiments.calibrate import read_calibration
from fixate_jax.lab.experiments.experiment import CONFIG_FILE, restore_prompt, seed_directory
from fixate_jax.lab.experiments.identity import check_backbone, check_people
from fixate_jax.lab.settings import load_config
from fixate_jax.prompts import PromptParams, private_prompts

PROMPTS_FILE = "prompts.safetensors"


def open_emulator(
    source: Path | str,
    *,
    seed: int | None = None,
    backbone: str | None = None,
    accept_other_backbone: bool = False,
) -> UserEmulator:
    """The users of a run or a bundle.

    Args:
        source: directory that `fixate train`, `fixate tune-users` or `fixate export` made, or the name of users that
            come with the library, see :data:`fixate_jax.lab.bundles.bundle.SHIPPED_USERS`.
        seed: which of a run's seeds (None: its first).
        backbone: where the bundle's backbone is, if not where it was when the bundle was made.
        accept_other_backbone: go on where the backbone's files are not those that the prompts were tuned for.

    Raises:
        ConfigError: the directory is neither, or has no such seed.
        DataError: a run's data are not those that it was tuned on.
        CheckpointError: prompts are missing or damaged, or were tuned for other files of the backbone.
        FixateError: what loading the backbone raises.
    """
    path = Path(source)
    if (path / CONFIG_FILE).exists():
        if backbone is not None:
            raise ConfigError(f"--backbone {backbone}: a run has its own; only bundles can be told another place")
        return load_run(path, seed=seed, accept_other_backbone=accept_other_backbone)
    if seed is not None:
        raise ConfigError(f"seed {seed}: {source} is no run directory; a bundle holds the prompts of one seed")
    return load_bundle(source, backbone=backbone, accept_other_backbone=accept_other_backbone)


def load_run(run: Path, *, seed: int | None = None, accept_other_backbone: bool = False) -> UserEmulator:
    """The users of a run directory.

    Args:
        run: made by `fixate train` or `fixate tune-users`.
        seed: which of its seeds (None: the first).
        accept_other_backbone: go on where the backbone's files are not those that the run was tuned with.

    Raises:
        ConfigError: it is none, or has no such seed.
        DataError: the data are not those that it was tuned on.
        CheckpointError: its prompts are missing or damaged, or were tuned for other files of the backbone.
    """
    if not (run / CONFIG_FILE).exists():
        raise ConfigError(
            f"{run}: neither {CONFIG_FILE} nor {BUNDLE_FILE} there; give the directory of a run or a bundle"
        )
    config = load_config(run / CONFIG_FILE)
    seed = config.train.seeds[0] if seed is None else seed
    directory = seed_directory(run, seed)
    if seed not in config.train.seeds:
        raise ConfigError(f"seed {seed}: {run} has the seeds {', '.join(map(str, config.train.seeds))}")
    loaded = load_backbone(config.backbone, work=run)
    check_backbone(run, loaded, accept=accept_other_backbone)
    if (directory / PROMPTS_FILE).exists():
        prompt, users = _tuned_alone(directory / PROMPTS_FILE)
    else:
        store = open_or_prepare(config.data)
        check_people(run, store, config.data)
        users = store.users
        prompt = restore_prompt(config, directory, users=len(users), width=loaded.width, seed=seed)
    calibration = read_calibration(directory)
    return emulator_of(
        for_emulation(config), loaded, prompt, users, directory=run / "features", calibration=calibration
    )


def _tuned_alone(path: Path) -> tuple[PromptParams, tuple[str, ...]]:
    """What `fixate tune-users` left of one seed."""
    try:
        with safe_open(path, framework="numpy") as tensors:
            users = tuple(json.loads(tensors.metadata()["users"]))
            found = {name: jnp.asarray(tensors.get_tensor(name)) for name in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: not the prompts of `fixate tune-users` ({error}); tune them again") from error
    if "prompts" in found:
        return private_prompts(found["prompts"]), users
    return PromptParams(found["basis"], found["coefficients"]), users


def for_emulation(config: RunConfig) -> RunConfig:
    """A run's settings with one mesh for this machine: that on which it was tuned need not be here."""
    return replace(config, train=replace(config.train, mesh=(1, 1, 1)))
