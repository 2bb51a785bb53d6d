"""Emulated users from a run's settings, and the settings that they came from."""

from collections.abc import Sequence
from pathlib import Path

from fixate_jax.backbones import Backbone
from fixate_jax.emulation.emulator import UserEmulator
from fixate_jax.evaluation.calibration import Calibration
from fixate_jax.lab.config import RunConfig
from fixate_jax.lab.parts import operator_of
from fixate_jax.lab.settings import config_from_dict, config_to_dict
from fixate_jax.prompts import PromptParams


def emulator_of(
    config: RunConfig,
    backbone: Backbone,
    prompt: PromptParams,
    users: Sequence[str],
    *,
    directory: Path | None = None,
    calibration: Calibration | None = None,
) -> UserEmulator:
    """Emulated users whose prompts were tuned under some settings.

    Args:
        config: the settings; those of operator, prompt, cache and page width count, and of ``train`` the batch of
            evaluation, the mesh and the number of sequence lengths.
        backbone: the frozen model.
        prompt: trained basis and coefficients.
        users: whose the rows of the coefficients are.
        directory: for page features that fit nowhere but on disk.
        calibration: of these users (None: there is none).
    """
    return UserEmulator(
        backbone=backbone,
        tuned=prompt,
        users=tuple(users),
        operator=operator_of(config.operator),
        eps=config.operator.eps,
        position=config.prompt.position,
        assignment=config.operator.assignment,
        batch=config.train.eval_batch,
        max_lengths=config.train.max_lengths,
        mesh_shape=config.train.mesh,
        cache=config.cache,
        directory=directory,
        page_width=config.data.page_width,
        origin=config_to_dict(config),
        calibration=calibration,
    )


def settings_of(emulator: UserEmulator) -> RunConfig:
    """The settings under which emulated users were tuned; the defaults where they were tuned without any."""
    return config_from_dict(emulator.origin, source="the settings of emulated users")
