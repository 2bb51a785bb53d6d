"""Bundles: tuned prompts as files that anybody can read, with what is needed to use them and what they were made from.

A bundle is a folder of three files. ``prompts.safetensors`` holds the tensors ``prompts`` (users × tokens × width: what
stands before the input of each user, or behind the page), ``population`` (tokens × width: the mean), and what they are
mixed from, ``basis`` and ``coefficients``. ``bundle.json`` says whose they are, for which model and under which
settings. ``README.md`` is the model card. Where the run was calibrated there are also ``habits`` (users × slots: mean
gaze by slot) and the three numbers of the calibration.
"""

import hashlib
import importlib.metadata
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_safetensors

from fixate_jax.backbones import Backbone, load_backbone
from fixate_jax.backbones.loading import EMBEDDED
from fixate_jax.backbones.weights.hub import is_hub_id
from fixate_jax.emulation.emulator import UserEmulator
from fixate_jax.errors import CheckpointError, ConfigError, listed
from fixate_jax.evaluation.calibration import Calibration
from fixate_jax.lab.bundles.card import Origin, model_card
from fixate_jax.lab.bundles.settings import emulator_of, settings_of
from fixate_jax.lab.config import UsersConfig
from fixate_jax.lab.experiments.calibrate import facts_of
from fixate_jax.lab.experiments.identity import IdentityWarning
from fixate_jax.lab.parts import operator_of
from fixate_jax.lab.settings import config_from_dict, config_to_dict
from fixate_jax.pipeline.kept import CacheConfig
from fixate_jax.prompts import PromptParams
from fixate_jax.runtime.durable import sha256, staging, writing
from fixate_jax.runtime.files import read_json, require_ordinary

FORMAT, VERSION = "fixate-prompts", 1
BUNDLE_FILE, TENSORS_FILE, CARD_FILE = "bundle.json", "prompts.safetensors", "README.md"
SHIPPED = Path(__file__).parent / "shipped"
SHIPPED_USERS: dict[str, Path] = {path.name: path for path in sorted(SHIPPED.glob("*")) if path.is_dir()}
"""Users that come with the library, made-up ones, by name."""
_FIELDS: dict[str, type] = {
    "format": str,
    "version": int,
    "users": list,
    "seed": int,
    "backbone": str,
    "fingerprint": str,
    "architecture": str,
    "width": int,
    "settings": dict,
}


def write_bundle(
    emulator: UserEmulator,
    directory: Path,
    origin: Origin,
    *,
    users: Sequence[str] | None = None,
    pseudonyms: bool = False,
) -> Path:
    """Write some users' prompts as a bundle.

    Args:
        emulator: the users.
        directory: to write; must not exist.
        origin: what the card says of where they come from.
        users: whose prompts (None: everybody's). The population prompt is then the mean of these alone, so that nothing
            of the others is in it but the shared basis.
        pseudonyms: call them user-1, user-2, … instead of what the data call them.

    Raises:
        ConfigError: the directory exists, or a user is not known.
        DiskError: it cannot be written; nothing is left behind.
    """
    if not emulator.origin or emulator.operator != operator_of(settings_of(emulator).operator):
        raise ConfigError(
            "a bundle names its operator by settings, and these users were tuned without any, or with another operator"
        )
    if directory.exists():
        raise ConfigError(f"{directory}: exists; choose another folder or remove it")
    wanted = emulator.users if users is None else tuple(users)
    unknown = [user for user in wanted if user not in emulator.users]
    if unknown or not wanted or len(set(wanted)) < len(wanted):
        raise ConfigError(
            f"--users {' '.join(wanted)}: name at least one, each once; there are {listed(emulator.users)}"
        )
    rows = np.array([emulator.users.index(user) for user in wanted])
    names = tuple(f"user-{i + 1}" for i in range(len(wanted))) if pseudonyms else wanted
    chosen = emulator.with_prompt(_only(emulator.prompt, rows), names)
    if emulator.calibration is not None:
        known = emulator.calibration
        # Newcomers have no habit of their own.
        habits = {name: known.habits.get(user, known.population) for name, user in zip(names, wanted, strict=True)}
        chosen = replace(chosen, calibration=replace(known, habits=habits))
    facts = _facts(chosen, origin)
    soft = np.asarray(chosen.soft_prompts)
    tensors = {
        "prompts": soft[:-1],
        "population": soft[-1],
        "basis": np.asarray(chosen.prompt.basis),
        "coefficients": np.asarray(chosen.prompt.coefficients),
    }
    if chosen.calibration is not None:
        tensors["habits"] = np.stack([chosen.calibration.habits[name] for name in names])
        facts["calibration"] = facts_of(chosen.calibration)
    data = to_safetensors(
        {name: np.ascontiguousarray(x, np.float32) for name, x in tensors.items()},
        {"format": FORMAT, "version": str(VERSION)},
    )
    facts["checksums"] = {TENSORS_FILE: hashlib.sha256(data).hexdigest()}
    with staging(directory) as folder, writing(directory):
        (folder / TENSORS_FILE).write_bytes(data)
        (folder / BUNDLE_FILE).write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        (folder / CARD_FILE).write_text(model_card(facts, origin), encoding="utf-8")
        folder.rename(directory)
    return directory


def _only(prompt: PromptParams, rows: np.ndarray) -> PromptParams:
    """Some users' rows. Private prompts of others, which these do not mix in, are no part of it."""
    coefficients = np.asarray(prompt.coefficients)[rows]
    used = np.isfinite(coefficients).any(axis=0)
    return PromptParams(jnp.asarray(np.asarray(prompt.basis)[used]), jnp.asarray(coefficients[:, used]))


def _facts(emulator: UserEmulator, origin: Origin) -> dict[str, Any]:
    """``bundle.json``. Of the settings nothing says where files lay on the machine that tuned the prompts."""
    config, backbone = settings_of(emulator), emulator.backbone
    path = config.backbone.path
    public = path in EMBEDDED or is_hub_id(path)
    shared = replace(
        config,
        data=replace(config.data, path=None, store=None),
        users=UsersConfig(mode=config.users.mode),
        cache=CacheConfig(),
        backbone=replace(config.backbone, path=path if public else Path(path).name),
        train=replace(config.train, seeds=(origin.seed,), mesh=(1, 1, 1)),
    )
    return {
        "format": FORMAT,
        "version": VERSION,
        "made_with": f"fixate-jax {importlib.metadata.version('fixate-jax')}",
        "users": list(emulator.users),
        "seed": origin.seed,
        "backbone": shared.backbone.path,
        "fingerprint": backbone.fingerprint,
        "architecture": _architecture(backbone),
        "width": backbone.width,
        "tokens": config.prompt.tokens,
        "position": config.prompt.position,
        "settings": config_to_dict(shared),
    }


def load_bundle(
    source: Path | str, *, backbone: str | None = None, accept_other_backbone: bool = False
) -> UserEmulator:
    """The users of a bundle.

    Args:
        source: its folder, or the name of users that come with the library (``SHIPPED_USERS``).
        backbone: where the backbone is, if not where it was when the bundle was made.
        accept_other_backbone: warn where the backbone's files are not those that the prompts were tuned for.

    Raises:
        ConfigError: there is no such bundle, or it wants another backbone.
        CheckpointError: a file is missing, damaged or of another version; or the backbone's files are others.
    """
    folder = Path(source)
    if not folder.is_dir():
        if str(source) not in SHIPPED_USERS:
            raise ConfigError(
                f"{source}: no such folder; give a run, a bundle, or one of the users that come with the library: "
                f"{', '.join(SHIPPED_USERS)}"
            )
        folder = SHIPPED_USERS[str(source)]
    facts = _read_facts(folder / BUNDLE_FILE)
    config = config_from_dict(facts["settings"], source=str(folder / BUNDLE_FILE))
    if backbone is not None:
        config = replace(config, backbone=replace(config.backbone, path=backbone))
    loaded = load_backbone(config.backbone, work=Path(gettempdir()) / "fixate-jax")
    prompt = _read_prompt(folder / TENSORS_FILE, facts)
    found, wanted = (_architecture(loaded), loaded.width), (facts["architecture"], facts["width"])
    if found != wanted:
        raise ConfigError(
            f"{folder}: tuned for a {wanted[0]} of width {wanted[1]} ({facts['backbone']}), but "
            f"{config.backbone.path} is a {found[0]} of width {found[1]}; give --backbone"
        )
    if loaded.fingerprint != facts["fingerprint"]:
        problem = (
            f"{folder}: the files of {config.backbone.path} are not those that the prompts were tuned for; another "
            "layout of the same weights does no harm, other weights make the prompts meaningless"
        )
        if not accept_other_backbone:
            raise CheckpointError(f"{problem}. Go on knowingly with --accept-other-backbone")
        warnings.warn(problem, IdentityWarning, stacklevel=2)
    users, calibration = tuple(facts["users"]), _read_calibration(folder, facts)
    return emulator_of(config, loaded, prompt, users, calibration=calibration)


def _read_facts(path: Path) -> Mapping[str, Any]:
    try:
        facts = read_json(path, CheckpointError, "export the bundle again")
    except FileNotFoundError:
        raise ConfigError(f"{path.parent}: no {path.name} there; give the directory of a run or a bundle") from None
    missing = [name for name in _FIELDS if not isinstance(facts, dict) or name not in facts]
    if missing:
        raise CheckpointError(f"{path}: lacks {', '.join(missing)}; export the bundle again")
    wrong = [name for name, kind in _FIELDS.items() if not isinstance(facts[name], kind)]
    users = facts["users"]
    if not wrong and not (users and all(isinstance(user, str) for user in users) and len(set(users)) == len(users)):
        wrong = ["users"]
    if wrong or not isinstance(facts.get("checksums", {}), dict):
        raise CheckpointError(f"{path}: {', '.join(wrong) or 'checksums'}: of another type; export the bundle again")
    if facts["format"] != FORMAT or facts["version"] != VERSION:
        raise CheckpointError(
            f"{path}: {facts['format']} version {facts['version']}, this release reads {FORMAT} version {VERSION}"
        )
    found: Mapping[str, Any] = facts
    return found


def _read_prompt(path: Path, facts: Mapping[str, Any]) -> PromptParams:
    users: list[str] = facts["users"]
    require_ordinary(path, CheckpointError)
    try:
        wanted = facts.get("checksums", {}).get(path.name)  # Bundles of the first releases have none.
        if wanted not in (None, sha256(path)):
            raise CheckpointError(f"{path}: differs from its checksum in {BUNDLE_FILE}; export the bundle again")
        with safe_open(path, framework="numpy") as tensors:
            basis, coefficients = (tensors.get_tensor(name) for name in ("basis", "coefficients"))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); export the bundle again") from error
    if basis.ndim != 3 or coefficients.shape != (len(users), basis.shape[0]):
        raise CheckpointError(
            f"{path}: basis {basis.shape} and coefficients {coefficients.shape} do not fit {len(users)} users"
        )
    # −∞ says that a user mixes in nothing of a prompt that is another's alone.
    mixed = ~(np.isnan(coefficients) | np.isposinf(coefficients)).any(axis=1) & np.isfinite(coefficients).any(axis=1)
    if not np.isfinite(basis).all() or not mixed.all():
        whose = "basis" if mixed.all() else f"coefficients of user {users[int(np.argmin(mixed))]!r}"
        raise CheckpointError(f"{path}: {whose}: hold numbers that are not finite; tune and export them again")
    return PromptParams(jnp.asarray(basis, jnp.float32), jnp.asarray(coefficients, jnp.float32))


def _read_calibration(folder: Path, facts: Mapping[str, Any]) -> Calibration | None:
    """With the habits beside the prompts; who is not among the users has the mean of theirs."""
    if "calibration" not in facts:
        return None
    users, path = facts["users"], folder / TENSORS_FILE
    try:
        with safe_open(path, framework="numpy") as tensors:
            habits = tensors.get_tensor("habits").astype(np.float64)
        if habits.ndim != 2 or len(habits) != len(users) or not (np.isfinite(habits).all() and (habits >= 0).all()):
            raise ValueError(f"habits of shape {habits.shape} that are not all finite shares of {len(users)} users")
        numbers = {name: float(facts["calibration"][name]) for name in ("answers", "attention", "habit")}
        return Calibration(**numbers, habits=dict(zip(users, habits, strict=True)), population=habits.mean(axis=0))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: no calibration ({error}); export the bundle again") from error


def _architecture(backbone: Backbone) -> str:
    """Name of the family's folder."""
    *_, folder, module = str(getattr(backbone.family, "__name__")).split(".")  # noqa: B009  (the protocol has none)
    return folder if module == "model" else module
