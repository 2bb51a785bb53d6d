"""New users from a few of their sessions: coefficients over the trained basis, by per-user tuning."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fixate_jax.data.few import few_sessions
from fixate_jax.data.registry import usable_sessions
from fixate_jax.data.store import SessionStore
from fixate_jax.emulation.emulator import UserEmulator
from fixate_jax.errors import ConfigError, DataError
from fixate_jax.lab.bundles.settings import settings_of
from fixate_jax.lab.config import UsersConfig
from fixate_jax.lab.experiments.workspace import Workspace, reading
from fixate_jax.lab.users.memory import default_limit
from fixate_jax.lab.users.tune import Report, append_users, tune_users
from fixate_jax.pipeline.pages import read_pages
from fixate_jax.probing.batches import SessionData


def learn_users(
    emulator: UserEmulator,
    store: SessionStore,
    *,
    users: Sequence[str] | None = None,
    sessions: int | None = None,
    settings: UsersConfig | None = None,
    seed: int = 0,
    directory: Path | None = None,
    report: Report = lambda done, users, note: None,
) -> UserEmulator:
    """Let new people join the emulated users; those who are there keep their prompts bit for bit.

    Args:
        emulator: the users so far.
        store: which holds sessions of the new people in its training split.
        users: whom (None: everybody in the store who is not there yet).
        sessions: how many of each person's training sessions to learn from (None: all, and the validation sessions say
            when to stop). With few there is nothing to spare: all steps are taken.
        settings: steps, batch and so on (None: those of the run).
        seed: of the choice and the order of sessions.
        directory: for finished chunks; the same call then goes on after a kill. None: nothing is written.
        report: is told how far it is.

    Returns:
        An emulator with the new people after the old ones.

    Raises:
        ConfigError: somebody is there already or not in the store, or there is nobody to learn.
        DataError: somebody has no session to learn from.
    """
    wanted = [user for user in store.users if user not in emulator.users] if users is None else list(users)
    twice = [user for user in wanted if user in emulator.users]
    if twice or not wanted:
        problem = f"{', '.join(twice)}: emulated already" if twice else "nobody in the store is new"
        raise ConfigError(f"users: {problem}; name people of the store who are not among the emulated ones")
    workspace = _workspace(emulator, store, wanted, sessions, settings, seed)
    tuned = tune_users(
        workspace,
        workspace.config,
        users=wanted,
        basis=emulator.prompt,
        seed=seed,
        directory=directory,
        report=report,
    )
    return emulator.with_prompt(append_users(emulator.prompt, tuned), (*emulator.users, *tuned.users))


def _workspace(
    emulator: UserEmulator,
    store: SessionStore,
    wanted: Sequence[str],
    few: int | None,
    settings: UsersConfig | None,
    seed: int,
) -> Workspace:
    """The new people's sessions, and none else."""
    config = settings_of(emulator)
    chosen = [s for s in usable_sessions(store, config.data) if s.user_id in set(wanted)]
    splits = {name: [i for i, s in enumerate(chosen) if s.split == name] for name in ("train", "validation")}
    if few is not None:
        splits = {"train": few_sessions(chosen, splits["train"], few, seed=seed), "validation": []}
    kept = sorted(i for found in splits.values() for i in found)
    if not kept:
        raise DataError(f"{store.directory}: no session of {', '.join(wanted)} in split train to learn from")
    place = {index: i for i, index in enumerate(kept)}
    device = emulator.mesh.devices.flat[0]
    users = replace(settings or config.users, mode="coefficients", basis=None, only=None)
    if users.chunk is None and device.platform == "cpu":  # Else the program is compiled twice more to measure it.
        users = replace(users, chunk=default_limit(device))
    config = replace(config, users=users, train=replace(config.train, max_lengths=1))
    data: dict[str, Any] = {"signal": config.data.signal, "gaze_temperature": config.data.gaze_temperature}
    sessions = [chosen[i] for i in kept]
    features, encoded, keys = read_pages(
        emulator.backbone,
        store.image,
        sessions,
        placement=emulator.placement,
        known=emulator.encoded,
        **reading(config, emulator.directory or store.directory),
    )
    return Workspace(
        config=config,
        backbone=emulator.backbone,
        store=store,
        features=features,
        data=SessionData(
            sessions,
            encoded,
            {user: row for row, user in enumerate(store.users)},
            features=features,
            prompt_tokens=config.prompt.tokens,
            max_lengths=1,
            assignment=config.operator.assignment,
            position=config.prompt.position,
            page_keys=keys,
            **data,
        ),
        splits={"test": []} | {name: [place[i] for i in found] for name, found in splits.items()},
        mesh=emulator.mesh,
    )
