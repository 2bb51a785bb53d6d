"""Tuning each user by themselves, hundreds side by side: coefficients over a trained basis, or private prompts.

Every user has parameters, optimizer state, order of sessions, best step and early stopping of their own, so that what
comes out for one does not depend on who else is there. Users go through in chunks; a chunk that is done is on disk.
"""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Float

from fixate_jax.backbones.sharding import BATCH_AXES
from fixate_jax.errors import CheckpointError, ConfigError
from fixate_jax.lab.config import RunConfig
from fixate_jax.lab.experiments.log import MetricsLog
from fixate_jax.lab.experiments.loop import Interrupted, stop_requests
from fixate_jax.lab.experiments.workspace import Workspace
from fixate_jax.lab.settings import config_to_dict
from fixate_jax.lab.users.data import UserData, UserIndices, UserSessions
from fixate_jax.lab.users.memory import PROBE_PAGES, Memory, default_limit, even_chunk, measure, memory_budget
from fixate_jax.lab.users.step import Advance, Frozen, Mode, UserState, make_advance, start_states, user_sharding
from fixate_jax.prompts import PromptParams, init_prompt, population_prompt, private_prompts
from fixate_jax.runtime.durable import write_text
from fixate_jax.runtime.lock import locked
from fixate_jax.tuning.checkpoint import CheckpointStore

KEPT = ("best", "best_score", "start_score", "best_step", "steps", "stopped")
"""What stays of a user's state."""
Report = Callable[[int, int, str], None]
"""Takes how many users are done, of how many, and a note."""


@dataclass(frozen=True, kw_only=True, eq=False)
class UserPrompts:
    """What per-user tuning leaves.

    Attributes:
        users: who was tuned.
        own: coefficients (users, M), or private prompts (users, K, width).
        basis: B that the coefficients mix; None for private prompts.
        start: coefficients or prompt that everybody began with.
        table: a row per user: sessions to learn from and for validation, validation score at the start and at its
            best (see :func:`fixate_jax.lab.users.step.fit_score`), where that was, steps taken, stopped early.
        log: a row per user and validation.
        chunk: users that were side by side.
        compilations: how often the tuning program was compiled for it.
    """

    users: tuple[str, ...]
    own: Float[Array, "users ..."]
    basis: Float[Array, "basis tokens width"] | None
    start: Float[Array, "*own"]
    table: pd.DataFrame
    log: pd.DataFrame
    chunk: int
    compilations: int

    def prompt_params(self, users: Sequence[str]) -> PromptParams:
        """Prompts with a row for each of some users, as the evaluation takes them; the start for who was not tuned.

        Private prompts become a basis of as many prompts as users, of which each mixes in but their own.
        """
        row = {user: i for i, user in enumerate(self.users)}
        rows = [self.own[row[user]] if user in row else self.start for user in users]
        own = jnp.stack(rows)
        if self.basis is not None:
            return PromptParams(self.basis, own)
        return private_prompts(own)


def append_users(prompt: PromptParams, tuned: UserPrompts) -> PromptParams:
    """Let new users join a trained basis; its old users keep their rows bit for bit.

    Args:
        prompt: the trained basis and its users' coefficients.
        tuned: coefficients of the new users over that same basis.

    Returns:
        The basis, the old rows, and below them the new ones in the order of ``tuned.users``.

    Raises:
        ConfigError: the new users have private prompts, or were tuned over another basis.
    """
    if tuned.basis is None:
        raise ConfigError("users.mode: private prompts cannot join a basis; tune coefficients over it")
    if not np.array_equal(np.asarray(tuned.basis), np.asarray(prompt.basis)):
        raise ConfigError("users.basis: these users were tuned over another basis; tune them over the one they join")
    return PromptParams(prompt.basis, jnp.concatenate([prompt.coefficients, jnp.asarray(tuned.own)]))


def tuning_mode(config: RunConfig, basis: PromptParams | None) -> Mode:
    """What is tuned.

    Raises:
        ConfigError: coefficients without a basis.
    """
    if config.users.mode == "coefficients" and basis is None:
        raise ConfigError("users.mode = 'coefficients': a trained basis is needed; give --basis RUN")
    return config.users.mode or ("private" if basis is None else "coefficients")


def start_of(
    config: RunConfig, mode: Mode, basis: PromptParams | None, *, width: int, seed: int
) -> Float[Array, "..."]:
    """What everybody begins with: the basis' population prompt, or without a basis one prompt from N(0, init_scale²).

    Coefficients that give the population prompt are the logarithms of the mean mixing weights, shifted to a mean of 0.
    """
    if basis is None:
        return init_prompt(jax.random.key(seed), **config.prompt.sizes, users=1, width=width).basis[0]
    if mode == "private":
        return population_prompt(basis)
    weights = jnp.mean(jax.nn.softmax(basis.coefficients, axis=-1), axis=0)
    logits = jnp.log(jnp.maximum(weights, 1e-6))
    return logits - logits.mean()


def tune_users(
    workspace: Workspace,
    config: RunConfig,
    *,
    users: Sequence[str] | None = None,
    basis: PromptParams | None = None,
    seed: int = 0,
    directory: Path | None = None,
    report: Report = lambda done, users, note: None,
) -> UserPrompts:
    """Tune users one by one, side by side.

    Each takes ``users.steps`` steps at most on their own training sessions; the parameters with the best score on
    their own validation sessions are kept (the start being one of the candidates), and after ``users.patience``
    validations without gain the user stops. Who has no validation sessions takes all steps and keeps the last ones.

    Args:
        workspace: backbone and data, opened with ``train.max_lengths: 1``.
        config: the settings (``workspace.config`` but for what tuning alone reads).
        users: whom (None: ``users.only``, or everybody with sessions to learn from).
        basis: trained prompts, of which B is frozen and the coefficients tell where to start; None for private prompts
            from nothing.
        seed: of the private prompts' start and of the order of sessions.
        directory: for finished chunks and the metrics log; the same call then goes on after a kill, with the same
            result bit for bit. None: nothing is written.
        report: is told how far it is, for a progress bar.

    Raises:
        ConfigError: settings, users or basis do not fit.
        CheckpointError: the directory belongs to something else, or is damaged.
        Interrupted: after SIGINT or SIGTERM; finished chunks are on disk.
    """
    with nullcontext() if directory is None else locked(directory):
        return _UserTuning(workspace, config, users, basis, seed, directory).run(report)


class _UserTuning:
    """The chunks of a tuning, on and off disk."""

    def __init__(
        self,
        workspace: Workspace,
        config: RunConfig,
        users: Sequence[str] | None,
        basis: PromptParams | None,
        seed: int,
        directory: Path | None,
    ):
        self.workspace, self.config, self.directory = workspace, config, directory
        self.mode = tuning_mode(config, basis)
        self.basis = basis.basis if basis is not None and self.mode == "coefficients" else None
        width = workspace.backbone.width
        if basis is not None and basis.basis.shape[1:] != (config.prompt.tokens, width):
            raise ConfigError(
                f"users.basis: prompts of {basis.basis.shape[1]} tokens of width {basis.basis.shape[2]}, where "
                f"prompt.tokens is {config.prompt.tokens} and the backbone's width {width}"
            )
        self.start = start_of(config, self.mode, basis, width=width, seed=seed)
        self.data = UserData(workspace, config.users, config.users.only if users is None else users, seed=seed)
        self.advance: Advance = make_advance(
            workspace.backbone.graph,
            config,
            self.mode,
            mesh=workspace.mesh,
            end_token=workspace.backbone.encoder.end_token,
        )
        self.devices = math.prod(workspace.mesh.shape[axis] for axis in BATCH_AXES)
        self.chunk = self._chunk(self._plan(seed))
        members = self.data.members
        self.chunks = [members[i : i + self.chunk] for i in range(0, len(members), self.chunk)]
        self.table_size = max(len(self.data.pages(chunk)) for chunk in self.chunks)

    def run(self, report: Report) -> UserPrompts:
        """All chunks."""
        finished, rows = self._finished()
        compiled = self.advance._cache_size()
        log = None
        if self.directory is not None:
            log = MetricsLog(self.directory / "metrics.jsonl", keep_lines=len(rows))
        with stop_requests() as asked:
            for number in range(len(finished), len(self.chunks)):
                kept, new = self._tune(number, report, asked)
                rows += new
                if log is not None:
                    for row in new:
                        log.add(row)
                    log.flush()
                    self._store(number).save(0, kept, {"users": self._names(number), "rows": new})
                finished.append(kept)
                report(sum(len(c) for c in self.chunks[: number + 1]), len(self.data.members), "")
        together = {name: np.concatenate([kept[name] for kept in finished]) for name in KEPT}
        return UserPrompts(
            users=tuple(m.user for m in self.data.members),
            own=jnp.asarray(together["best"]),
            basis=self.basis,
            start=self.start,
            table=_table(self.data.members, together),
            log=pd.DataFrame(rows),
            chunk=self.chunk,
            compilations=self.advance._cache_size() - compiled,
        )

    def _tune(
        self, number: int, report: Report, asked: list[str]
    ) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
        """One chunk, from its start to where everybody has stopped."""
        members, settings = self.chunks[number], self.config.users
        state, sessions, frozen = self._arguments(members)
        rows: list[dict[str, Any]] = []
        first, count = 0, 0
        stopped = np.arange(self.chunk) >= len(members)
        while True:
            state, parts = self.advance(state, sessions, frozen, jnp.int32(first), jnp.int32(count))
            first += count
            rows += _log_rows(members, first, jax.device_get(parts), stopped)
            stopped = np.asarray(state.stopped)
            count = min(settings.validate_every, settings.steps - first)
            if count == 0 or stopped.all():
                break
            done = int(stopped[: len(members)].sum())
            note = f"chunk {number + 1}/{len(self.chunks)}, step {first}/{settings.steps}, {done} stopped"
            report(number * self.chunk, len(self.data.members), note)
            if asked:
                raise Interrupted(f"{asked[0]}: {number} of {len(self.chunks)} chunks are done; " + self._advice())
        host = jax.device_get(state)
        return {name: np.asarray(getattr(host, name))[: len(members)] for name in KEPT}, rows

    def _advice(self) -> str:
        return "run the same command again to resume" if self.directory else "without a directory nothing was kept"

    def _arguments(self, members: Sequence[UserIndices]) -> tuple[UserState, UserSessions, Frozen]:
        """A chunk on the mesh, its users shared among the devices and filled up with copies that are at rest."""
        pages = self.data.pages(members)
        table = self.data.page_table(pages, self.table_size)
        sessions = self.data.sessions_of(members, {page: i for i, page in enumerate(pages)})
        missing = self.chunk - len(members)
        sessions = jax.tree.map(lambda x: np.concatenate([x, np.repeat(x[:1], missing, axis=0)]), sessions)
        for places in (sessions.order, sessions.validation):
            places[len(members) :] = -1
        state = start_states(self.config, self.mode, self.start, self.chunk)
        state = state._replace(stopped=jnp.arange(self.chunk) >= len(members))
        shared = user_sharding(self.workspace.mesh)
        state, sessions = jax.device_put((state, sessions), shared)
        frozen = Frozen(self.workspace.params, *self.workspace.replicate((self.basis, table)))
        return state, sessions, frozen

    def _chunk(self, plan: dict[str, Any]) -> int:
        """Users in a chunk: as before where a tuning goes on, else from the settings or the memory."""
        path = None if self.directory is None else self.directory / "plan.json"
        if path is not None and path.exists():
            before = json.loads(path.read_text(encoding="utf-8"))
            if {**before, "chunk": None} != {**plan, "chunk": None}:
                raise CheckpointError(f"{path}: made with other settings, users or basis; choose another directory")
            return int(before["chunk"])
        users = len(self.data.members)
        most = self.config.users.chunk or self._most_users()
        chunk = even_chunk(users, most, devices=self.devices)
        if path is not None:
            write_text(path, json.dumps(plan | {"chunk": chunk}, indent=1))
        return chunk

    def _plan(self, seed: int) -> dict[str, Any]:
        """What the chunks on disk depend on."""
        basis = hashlib.sha256(np.asarray(self.start).tobytes())
        basis.update(b"" if self.basis is None else np.asarray(self.basis).tobytes())
        settings = hashlib.sha256(json.dumps(config_to_dict(self.config), sort_keys=True).encode())
        return {
            "users": [m.user for m in self.data.members],
            "mode": self.mode,
            "seed": seed,
            "basis": basis.hexdigest(),
            "settings": settings.hexdigest(),
            "backbone": self.workspace.backbone.fingerprint,
        }

    def _most_users(self) -> int:
        """Users that fit side by side on a device."""
        device = self.workspace.mesh.devices.flat[0]
        limit = min(-(-len(self.data.members) // self.devices), default_limit(device))
        return self.memory().most_users(memory_budget(device, self.config.users.memory_gb), limit, devices=self.devices)

    def memory(self) -> Memory:
        """What the program needs of a device, by its users."""
        first = self.data.members[:1]
        pages = self.data.pages(first)
        sessions = self.data.sessions_of(first, {page: i for i, page in enumerate(pages)})
        table = self.data.page_table(pages[:1], PROBE_PAGES)
        state = start_states(self.config, self.mode, self.start, 1)
        shared = user_sharding(self.workspace.mesh)
        frozen = Frozen(self.workspace.params, *self.workspace.replicate((self.basis, table)))

        def lower(users: int) -> Any:
            def abstract(x: Any) -> jax.ShapeDtypeStruct:
                return jax.ShapeDtypeStruct((users * self.devices, *x.shape[1:]), x.dtype, sharding=shared)

            shapes = jax.tree.map(abstract, state), jax.tree.map(abstract, sessions)
            return self.advance.lower(*shapes, frozen, jnp.int32(0), jnp.int32(0))

        return measure(
            lower,
            page=sum(x.nbytes for x in jax.tree.leaves(table)) / PROBE_PAGES,
            pages=len(self.data.pages(self.data.members)),
            pages_per_user=max(len(self.data.pages([m])) for m in self.data.members),
        )

    def _names(self, number: int) -> list[str]:
        return [m.user for m in self.chunks[number]]

    def _store(self, number: int) -> CheckpointStore:
        assert self.directory is not None
        return CheckpointStore(self.directory / f"chunk-{number:05d}" / "checkpoints", keep=1)

    def _finished(self) -> tuple[list[dict[str, np.ndarray]], list[dict[str, Any]]]:
        """Chunks on disk, from the first on, and their lines of the log."""
        finished: list[dict[str, np.ndarray]] = []
        rows: list[dict[str, Any]] = []
        for number in range(len(self.chunks) if self.directory else 0):
            state = start_states(self.config, self.mode, self.start, len(self.chunks[number]))
            restored = self._store(number).restore({name: np.asarray(getattr(state, name)) for name in KEPT})
            if restored is None:
                break
            finished.append({name: np.asarray(x) for name, x in restored.state.items()})
            rows += restored.meta["rows"]
        return finished, rows


def _log_rows(
    members: Sequence[UserIndices], step: int, parts: dict[str, np.ndarray], stopped: np.ndarray
) -> list[dict[str, Any]]:
    """Lines of the log for who had not stopped before; those of the first validation have no losses."""
    names = [name for name in parts if name != "attention_weight" and (step > 0 or name == "score")]
    return [
        {"user": member.user, "step": step, **{name: _number(parts[name][i]) for name in names}}
        for i, member in enumerate(members)
        if not stopped[i]
    ]


def _number(value: Any) -> float | str:
    """A number that JSON can hold: infinity, the score of who has no validation sessions, becomes an empty text."""
    return float(value) if math.isfinite(value) else ""


def _table(members: Sequence[UserIndices], kept: dict[str, np.ndarray]) -> pd.DataFrame:
    held = np.array([len(m.validation) > 0 for m in members])
    return pd.DataFrame(
        {
            "user": [m.user for m in members],
            "train": [len(m.train) for m in members],
            "validation": [len(m.validation) for m in members],
            "score_before": np.where(held, kept["start_score"], np.nan),
            "score_after": np.where(held, kept["best_score"], np.nan),
            "best_step": kept["best_step"],
            "steps": kept["steps"],
            "stopped_early": kept["stopped"],
        }
    )
