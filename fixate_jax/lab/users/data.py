"""Sessions of many users as arrays of one shape; what a user learns from, and in which order, is the user's own."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fixate_jax.backbones.inputs import HostOrDevice
from fixate_jax.errors import ConfigError, DataError
from fixate_jax.lab.config import UsersConfig
from fixate_jax.lab.experiments.workspace import Workspace
from fixate_jax.pipeline.page_keys import PageKeyStore
from fixate_jax.probing.batches import Batch


class UserSessions(NamedTuple):
    """The sessions of a chunk of users; without the first axis, of one user.

    Attributes:
        rows: sessions for training and validation, without their pages; filled up with copies.
        page: which row of the page table each of them shows.
        order: place in ``rows`` of each session of each optimizer step, -1 for none.
        validation: place of the validation sessions, a micro-batch a row, -1 for none.
    """

    rows: Batch
    page: Int[HostOrDevice, "users sessions"]
    order: Int[HostOrDevice, "users steps batch"]
    validation: Int[HostOrDevice, "users micro batch"]


class PageTable(NamedTuple):
    """What a chunk's sessions need of their pages, once for each page.

    Attributes:
        features: cached features; None where the vision tower runs in the step, or there are keys.
        keys: keys and values of pages that the soft prompt follows, or None.
        pages: pages for the vision tower, or None.
    """

    features: Any
    keys: Any
    pages: Any


@dataclass(frozen=True, kw_only=True)
class UserIndices:
    """A user's sessions, by their index in the data."""

    user: str
    train: tuple[int, ...]
    validation: tuple[int, ...]


def user_number(user: str) -> int:
    """A number of 63 bits that stands for a user, the same in every process and whoever else is there."""
    return int.from_bytes(hashlib.sha256(user.encode("utf-8")).digest()[:8]) >> 1


def session_order(user: str, sessions: int, *, steps: int, batch: int, seed: int) -> Int[np.ndarray, "steps batch"]:
    """Which of a user's sessions make up which optimizer step.

    Every epoch is shuffled and cut into steps, the last one filled up with -1. Nothing but the arguments counts, so
    that a user learns from the same sessions in the same order in any company.

    Args:
        user: whose shuffle.
        sessions: how many the user has to learn from, ≥ 1.
        steps: optimizer steps.
        batch: sessions a step.
        seed: of the run.
    """
    rng = np.random.default_rng([seed, user_number(user)])
    per_epoch = -(-sessions // batch)
    epochs = [rng.permutation(sessions) for _ in range(-(-steps // per_epoch))]
    filled = [np.pad(epoch, (0, per_epoch * batch - sessions), constant_values=-1) for epoch in epochs]
    return np.concatenate(filled).reshape(-1, batch)[:steps].astype(np.int32)


class UserData:
    """Sessions of the users that are tuned, and the sizes that all of them fit into.

    Attributes:
        members: the users, in the order asked for.
        sessions: rows for the user with most sessions for training and validation.
        micro: micro-batches for the user with most validation sessions.
    """

    def __init__(self, workspace: Workspace, settings: UsersConfig, users: Sequence[str] | None, *, seed: int):
        """Collect the sessions.

        Args:
            workspace: backbone and data; all sequences padded to one length (``train.max_lengths: 1``).
            settings: steps and batch.
            users: whom to tune (None: everybody with a session to learn from).
            seed: of the shuffles.

        Raises:
            ConfigError: there are several sequence lengths, or a user is unknown or named twice.
            DataError: a user has nothing to learn from.
        """
        if len(workspace.data.buckets) > 1:
            raise ConfigError("train.max_lengths: per-user tuning wants one length of sequences; set it to 1")
        self.workspace, self.settings, self.seed = workspace, settings, seed
        self.members = _members(workspace, users)
        self.sessions = max(len(m.train) + len(m.validation) for m in self.members)
        self.micro = max(1, *(-(-len(m.validation) // settings.batch) for m in self.members))

    def pages(self, members: Sequence[UserIndices]) -> list[str]:
        """Pages of some users' sessions, each once."""
        return list(dict.fromkeys(self._page(i) for m in members for i in (*m.train, *m.validation)))

    def _page(self, index: int) -> str:
        """What a session's page is known by: with keys kept, the chat before it counts as well."""
        data = self.workspace.data
        if isinstance(data.page_keys, PageKeyStore):
            return str(data.page_keys.entry_of[index])
        return data.sessions[index].page_id

    def sessions_of(self, members: Sequence[UserIndices], page: dict[str, int]) -> UserSessions:
        """Sessions of a chunk of users.

        Args:
            members: the users.
            page: row of each page in the page table.
        """
        made = [self._of_one(member, page) for member in members]
        chunk: UserSessions = jax.tree.map(lambda *leaves: np.stack(leaves), *made)
        return chunk

    def page_table(self, pages: Sequence[str], size: int) -> PageTable:
        """Features of some pages, filled up to ``size`` with copies of the first."""
        data, step = self.workspace.data, self.workspace.config.train.eval_batch
        first = {self._page(i): i for i in reversed(range(len(data.sessions)))}
        shown = [first[page] for page in pages]
        shown += shown[:1] * (size - len(shown))
        parts = []
        for i in range(0, size, step):
            batch = data.batch(shown[i : i + step])
            parts.append(PageTable(batch.inputs.features, batch.inputs.page_keys, batch.pages))
        table: PageTable = jax.tree.map(lambda *leaves: jnp.concatenate([jnp.asarray(x) for x in leaves]), *parts)
        return table

    def _of_one(self, member: UserIndices, page: dict[str, int]) -> UserSessions:
        indices = [*member.train, *member.validation]
        settings, train, held = self.settings, len(member.train), len(member.validation)
        at = np.full(self.micro * settings.batch, -1, np.int32)
        at[:held] = np.arange(train, train + held)
        shown = [page[self._page(i)] for i in indices]
        missing = self.sessions - len(indices)
        return UserSessions(
            rows=self._rows(indices + indices[:1] * missing),
            page=np.array(shown + shown[:1] * missing, np.int32),
            order=session_order(member.user, train, steps=settings.steps, batch=settings.batch, seed=self.seed),
            validation=at.reshape(self.micro, settings.batch),
        )

    def _rows(self, indices: list[int]) -> Batch:
        step = self.workspace.config.train.eval_batch
        parts = []
        for i in range(0, len(indices), step):
            batch = self.workspace.data.batch(indices[i : i + step])
            parts.append(batch._replace(inputs=batch.inputs._replace(features=None, page_keys=None), pages=None))
        rows: Batch = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
        return rows


def _members(workspace: Workspace, users: Sequence[str] | None) -> list[UserIndices]:
    sessions = workspace.data.sessions
    split: dict[str, dict[str, list[int]]] = {"train": {}, "validation": {}}
    for name, by_user in split.items():
        for i in workspace.splits[name]:
            by_user.setdefault(sessions[i].user_id, []).append(i)
    known = [user for user in workspace.users if user in split["train"]]
    wanted = known if users is None else list(users)
    if not wanted:
        raise ConfigError("users: nobody to tune; name at least one user")
    strangers = [user for user in wanted if user not in workspace.users]
    if strangers:
        raise ConfigError(f"users: {', '.join(strangers)}: not in these data; there are {_few(workspace.users)}")
    if len(set(wanted)) < len(wanted):
        raise ConfigError(f"users: {', '.join(sorted({u for u in wanted if wanted.count(u) > 1}))}: named twice")
    idle = [user for user in wanted if user not in split["train"]]
    if idle:
        raise DataError(f"users: {', '.join(idle)}: no session in split train to learn from; leave them out")
    return [
        UserIndices(user=user, train=tuple(split["train"][user]), validation=tuple(split["validation"].get(user, ())))
        for user in wanted
    ]


def _few(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f", … ({len(names)} in all)" if len(names) > most else "")


def take_batch(sessions: UserSessions, table: PageTable, where: Int[Array, " batch"]) -> Batch:
    """A micro-batch of one user, gathered on the device.

    Args:
        sessions: of this user alone, without an axis of users.
        table: of the chunk's pages.
        where: place of each session in ``sessions.rows``; -1 for a row of weight 0.
    """
    at = jnp.maximum(where, 0)
    page = sessions.page[at]
    batch: Batch = jax.tree.map(lambda x: x[at], sessions.rows)
    shown: PageTable = jax.tree.map(lambda x: x[page], table)
    weight: Float[Array, " batch"] = (where >= 0).astype(jnp.float32)
    return batch._replace(
        inputs=batch.inputs._replace(features=shown.features, page_keys=shown.keys),
        pages=shown.pages,
        user=jnp.zeros_like(at),
        weight=weight,
    )
