"""Users in a box: tuned prompts and a frozen model, asked what they look at and click."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PyTree
from PIL import Image

from fixate_jax.backbones import Backbone, EncodedSession
from fixate_jax.backbones.sharding import shardings
from fixate_jax.data.page import Page
from fixate_jax.data.session import StoredSession
from fixate_jax.emulation.pages import require_distinct
from fixate_jax.emulation.visits import Emulation, Visits
from fixate_jax.errors import CheckpointError, ConfigError
from fixate_jax.evaluation.calibration import Calibration
from fixate_jax.evaluation.forward import Evaluation, Jitted, jitted_evaluation
from fixate_jax.pipeline.kept import CacheConfig
from fixate_jax.pipeline.page_keys import wants_page_keys
from fixate_jax.pipeline.pages import read_pages, warn_of_empty_slots
from fixate_jax.pipeline.placement import Placement, open_mesh, put_rows
from fixate_jax.probing import Operator, attn_lrp
from fixate_jax.probing.batches import SessionData
from fixate_jax.probing.encode import Question
from fixate_jax.probing.passes import EPS
from fixate_jax.prompts import Position, PromptParams, population_prompt, soft_prompt
from fixate_jax.runtime.progress import Track, silent
from fixate_jax.tuning.tune import Tuned

BACKBONE = "backbone"
"""Stands for the model without a prompt in place of a user."""
MULTIPLE = 16
"""Sizes of a call are rounded up to multiples of it, so that the next one is likely to fit what is compiled."""


@dataclass(frozen=True, eq=False)
class UserEmulator:
    """Emulated users of pages.

    Attributes:
        backbone: the frozen model.
        tuned: trained basis and coefficients; or what :func:`fixate_jax.tuning.tune.tune` returns, which brings users,
            operator, position and assignment along.
        users: whose the rows of the coefficients are.
        operator: how to tell where the model looks (None: FixATE's AttnLRP).
        eps: ε of slot attention.
        position: where the soft prompt stands.
        assignment: how tokens are assigned to slots.
        batch: visits in a batch.
        max_lengths: sequence lengths that pages are padded to, each one compilation, at most.
        mesh_shape: devices along (data, fsdp, tensor) that share a batch.
        cache: budgets of what is kept of pages.
        directory: for page features that fit nowhere but on disk (None: those are computed each time).
        page_width: width in pixels of the pages that the prompts were tuned on.
        origin: under which settings the prompts were tuned, as plain values; only kept here.
        calibration: fitted on validation sessions after tuning, for :meth:`calibrated` (None: there is none).
        encoded: token sequences of questions asked before.

    Raises:
        ConfigError: users or prompts do not fit together or the backbone.
    """

    backbone: Backbone
    tuned: PromptParams | Tuned
    users: tuple[str, ...] = ()
    operator: Operator | None = None
    eps: float = EPS
    position: Position = "before"
    assignment: Literal["centre", "area"] = "centre"
    batch: int = 16
    max_lengths: int = 4
    mesh_shape: tuple[int, int, int] = (1, 1, 1)
    cache: CacheConfig = field(default_factory=CacheConfig)
    directory: Path | None = None
    page_width: int = 320
    origin: Mapping[str, Any] = field(default_factory=dict, repr=False)
    calibration: Calibration | None = None
    encoded: dict[Question, EncodedSession] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        values: dict[str, Any] = {"users": tuple(self.users), "operator": self.operator or attn_lrp()}
        tuned = self.tuned
        if isinstance(tuned, Tuned):
            if self.users or self.operator is not None:
                raise ConfigError("tuned prompts bring users and operator; leave users and operator out")
            values = {name: getattr(tuned, name) for name in ("users", "operator", "position", "assignment")}
            values["tuned"] = tuned.prompt
        for name, value in values.items():
            object.__setattr__(self, name, value)
        people = len(self.prompt.coefficients)
        if people != len(self.users) or len(set(self.users)) < people or BACKBONE in self.users:
            raise ConfigError(
                f"users: {people} rows of coefficients want as many names, each once and none {BACKBONE!r}"
            )
        width = self.prompt.basis.shape[2]
        if width != self.backbone.width:
            raise ConfigError(f"prompt: tokens of width {width}, where the backbone's width is {self.backbone.width}")

    @property
    def prompt(self) -> PromptParams:
        """The trained basis and coefficients."""
        assert isinstance(self.tuned, PromptParams)
        return self.tuned

    def __deepcopy__(self, memo: object) -> "UserEmulator":
        """Itself: weights and compiled programs are never changed, and whoever copies settings must not copy them."""
        return self

    @cached_property
    def mesh(self) -> Mesh:
        """The devices that share a batch."""
        return open_mesh(self.mesh_shape)

    @cached_property
    def placement(self) -> Placement:
        """Where weights and batches are on the mesh."""
        return Placement(self.mesh, shardings(self.backbone.params, self.mesh))

    @cached_property
    def params(self) -> PyTree:
        """The frozen weights on the mesh."""
        return jax.device_put(self.backbone.params, self.placement.params)

    @cached_property
    def evaluate(self) -> Jitted:
        """The jitted evaluation, the same as in tuning."""
        assert self.operator is not None
        end, how = self.backbone.encoder.end_token, {"eps": self.eps, "placement": self.placement}
        found: Jitted = jitted_evaluation(self.backbone.graph, self.operator, end, **how)
        return found

    @cached_property
    def soft_prompts(self) -> Float[Array, "rows tokens width"]:
        """The prompt of each user, and last the population prompt, for who is not among them."""
        return _soft_prompts(self.prompt)

    def emulate(
        self,
        pages: Sequence[Page],
        users: Sequence[str] | None = None,
        *,
        unknown: Literal["error", "population"] = "error",
    ) -> Emulation:
        """Show every page to every user: arrays of users × pages × slots.

        Args:
            pages: what to show.
            users: to whom (None: to all); ``"backbone"`` is the model without a prompt.
            unknown: what to do with users who were not tuned: stop, or take the population prompt for them.

        Raises:
            FixateError: as :meth:`visit_all`, which has more to ask for and returns a visit a row.
        """
        shown = [page if page.name else replace(page, name=f"page {i}") for i, page in enumerate(pages)]
        visits = self.visit_all(shown, users, unknown=unknown)
        shape = (len(visits) // len(shown), len(shown), visits.attention.shape[1])
        return Emulation(
            users=visits.users[:: len(shown)],
            attention=visits.attention.reshape(shape),
            click_probability=visits.probabilities().reshape(shape),
            visits=visits,
        )

    def visit_all(
        self,
        pages: Sequence[Page],
        users: Sequence[str] | None = None,
        *,
        profiles: Mapping[str, str] | None = None,
        unknown: Literal["error", "population"] = "error",
        relevance: bool = False,
        track: Track = silent,
    ) -> Visits:
        """Show every page to every user.

        Args:
            pages: what to show.
            users: to whom (None: to all); ``"backbone"`` is the model without a prompt.
            profiles: text about a user, instead of the page's own, by user.
            unknown: what to do with users who were not tuned: stop, or take the population prompt for them.
            relevance: keep the relevance of each visual token, for heat maps.
            track: wraps the batches in a progress bar.

        Returns:
            Visits in the order of the users, and for each in that of the pages.

        Raises:
            ConfigError: a user is not known.
            DataError: two pages have the same id.
            LabelError: labels of a page do not suit the tokenizer.
        """
        require_distinct(pages)
        shown = tuple(self.users if users is None else users)
        visitors = [user for user in shown for _ in pages]
        return self.visit(
            visitors,
            list(pages) * len(shown),
            profiles=profiles,
            unknown=unknown,
            relevance=relevance,
            track=track,
        )

    def visit(
        self,
        users: Sequence[str],
        pages: Sequence[Page],
        *,
        profiles: Mapping[str, str] | None = None,
        unknown: Literal["error", "population"] = "error",
        relevance: bool = False,
        track: Track = silent,
    ) -> Visits:
        """Show one page to each user, arguments otherwise as in :meth:`visit_all`.

        Args:
            users: who; a user may come again.
            pages: what each of them sees.
            profiles: text about a user, by user.
            unknown: what to do with users who were not tuned.
            relevance: keep the relevance of each visual token.
            track: wraps the batches in a progress bar.

        Raises:
            ConfigError: a user is not known, or there are not as many users as pages, or none.
        """
        if len(users) != len(pages) or not users:
            raise ConfigError(f"visits: {len(users)} users and {len(pages)} pages; give one page for each user")
        rows = self._rows(users, unknown)
        sessions, images, of_visit = _sessions(users, pages, profiles or {})
        data = self._data(sessions, images)
        found = _Gathered(users, pages, data, of_visit, relevance=relevance)
        waiting: tuple[list[int], Evaluation] | None = None
        for visits in track(_batches(data, of_visit, rows < 0, self.batch), "Emulating"):
            asked = self._ask(data, of_visit, rows, visits)
            # The device works on this batch while the one before is brought to the host.
            if waiting is not None:
                found.take(*waiting)
            waiting = visits, asked
        assert waiting is not None
        found.take(*waiting)
        return found.visits()

    def calibrated(self, visits: Visits) -> Visits:
        """The same visits with slot attention and answers calibrated; those of the model without a prompt stay.

        Habits are known by the place of a slot, so they suit pages that are laid out like those tuned on.

        Args:
            visits: from :meth:`visit_all` or :meth:`visit`.

        Raises:
            ConfigError: these users have no calibration.
        """
        if self.calibration is None:
            raise ConfigError(
                "these users have no calibration; `fixate train` and `fixate evaluate` fit one; export after it"
            )
        mask, users = np.isfinite(visits.log_probs), list(visits.users)
        own = np.array([user != BACKBONE for user in users])[:, None]
        attention = self.calibration.look(visits.attention, users, mask).astype(np.float32)
        log_probs = self.calibration.answer(visits.log_probs, mask).astype(np.float32)
        return replace(
            visits,
            attention=np.where(own, attention, visits.attention),
            log_probs=np.where(own, log_probs, visits.log_probs),
        )

    @cached_property
    def _by_batch(self) -> dict[int, "UserEmulator"]:
        return {}

    def with_batch(self, size: int) -> "UserEmulator":
        """The same users, asked so many visits at a time; the same one for the same size, compiled once.

        Args:
            size: visits in a batch; devices that share it must divide it.
        """
        if size == self.batch:
            return self
        if size not in self._by_batch:
            self._by_batch[size] = replace(self, batch=size)
        return self._by_batch[size]

    def with_prompt(self, prompt: PromptParams, users: Sequence[str]) -> "UserEmulator":
        """The same model with other users."""
        return replace(self, tuned=prompt, users=tuple(users))

    def _rows(self, users: Sequence[str], unknown: str) -> Int[np.ndarray, " visits"]:
        """Row of each visit's soft prompt, -1 for the model without one."""
        known = {user: row for row, user in enumerate(self.users)} | {BACKBONE: -1}
        strangers = [user for user in dict.fromkeys(users) if user not in known]
        if strangers and unknown == "error":
            raise ConfigError(
                f"users: {', '.join(strangers[:8])}: not tuned here; give unknown='population' to take the mean "
                f"prompt for them. There are {', '.join(self.users[:8])}{', …' if len(self.users) > 8 else ''}"
            )
        return np.array([known.get(user, len(self.users)) for user in users], np.int64)

    def _data(self, sessions: list[StoredSession], images: dict[str, Image.Image]) -> SessionData:
        assert self.operator is not None
        features, encoded, keys = read_pages(
            self.backbone,
            images.__getitem__,
            sessions,
            cache=self.cache if self.directory else replace(self.cache, disk_bytes=0),
            directory=self.directory or Path(),
            batch=self.batch,
            placement=self.placement,
            page_keys=wants_page_keys(self.position, self.operator),
            known=self.encoded,
            bar=silent,
        )
        data = SessionData(
            sessions,
            encoded,
            {session.user_id: 0 for session in sessions},
            features=features,
            prompt_tokens=self.prompt.basis.shape[1],
            signal=None,
            max_lengths=self.max_lengths,
            assignment=self.assignment,
            position=self.position,
            page_keys=keys,
            multiple=MULTIPLE,
        )
        if self.assignment == "centre":
            warn_of_empty_slots(data)
        return data

    def _ask(
        self, data: SessionData, of_visit: Sequence[int], rows: Int[np.ndarray, " visits"], visits: list[int]
    ) -> Evaluation:
        """One batch, all of it with prompts or all without."""
        size = self.batch
        filled = visits + [visits[0]] * (size - len(visits))
        own = self.placement.own_rows(size)
        batch = data.batch([of_visit[v] for v in filled], own)
        chosen = rows[filled]
        soft = jnp.take(self.soft_prompts, np.maximum(chosen, 0)[own], axis=0)
        placed, placed_batch = (put_rows(x, self.placement.rows, own, size) for x in (soft, batch))
        return self.evaluate(placed, np.asarray(chosen[0] >= 0), self.params, placed_batch)


@jax.jit
def _soft_prompts(prompt: PromptParams) -> Float[Array, "rows tokens width"]:
    """The prompt of each row, and last the population prompt."""
    own = soft_prompt(prompt, jnp.arange(len(prompt.coefficients)))
    return jnp.concatenate([own, population_prompt(prompt)[None]])


def _sessions(
    users: Sequence[str], pages: Sequence[Page], profiles: Mapping[str, str]
) -> tuple[list[StoredSession], dict[str, Image.Image], list[int]]:
    """What is asked, each page and profile once; the pages' pictures; which question each visit is."""
    index: dict[tuple[int, str], int] = {}
    sessions: list[StoredSession] = []
    images: dict[str, Image.Image] = {}
    of_visit = []
    for user, page in zip(users, pages, strict=True):
        profile = profiles.get(user, page.profile)
        key = (id(page), profile)
        if key not in index:
            index[key] = len(sessions)
            # Pages are told apart by what they show: two of one name may differ, two names may show the same.
            shown = page.picture()
            picture = hashlib.sha256(f"{shown.size}".encode() + shown.tobytes()).hexdigest()
            images[picture] = shown
            sessions.append(replace(page.stored(profile=profile), page_id=picture))
        of_visit.append(index[key])
    return sessions, images, of_visit


def _batches(
    data: SessionData, of_visit: Sequence[int], alone: Bool[np.ndarray, " visits"], size: int
) -> list[list[int]]:
    """Visits in batches of one sequence length, those of one page after another, those without prompt by themselves."""
    groups: dict[tuple[int, bool], list[int]] = {}
    for visit in sorted(range(len(of_visit)), key=of_visit.__getitem__):
        groups.setdefault((data.bucket_of[of_visit[visit]], bool(alone[visit])), []).append(visit)
    return [members[i : i + size] for members in groups.values() for i in range(0, len(members), size)]


class _Gathered:
    """What comes back, batch by batch, put in the order of the visits."""

    def __init__(
        self,
        users: Sequence[str],
        pages: Sequence[Page],
        data: SessionData,
        of_visit: Sequence[int],
        *,
        relevance: bool,
    ):
        slots = max(page.slots for page in pages)
        self.users, self.pages, self.data, self.of_visit = tuple(users), tuple(pages), data, of_visit
        self.attention = np.zeros((len(pages), slots), np.float32)
        self.log_probs = np.full((len(pages), slots), -np.inf, np.float32)
        self.tokens: list[np.ndarray] | None = [np.zeros((0, 0))] * len(pages) if relevance else None

    def take(self, visits: list[int], asked: Evaluation) -> None:
        """The rows of one batch."""
        slots = self.attention.shape[1]
        self.attention[visits] = np.asarray(asked.free_running)[: len(visits), :slots]
        self.log_probs[visits] = np.asarray(asked.log_probs)[: len(visits), :slots]
        if self.tokens is None:
            return
        for visit, tokens in zip(visits, np.asarray(asked.tokens_free), strict=False):
            encoded = self.data.encoded[self.of_visit[visit]]
            shape = encoded.rows, encoded.columns
            self.tokens[visit] = tokens[: encoded.rows * encoded.columns].reshape(shape)

    def visits(self) -> Visits:
        """All of them.

        Raises:
            CheckpointError: attention or answers that are no numbers.
        """
        bad = ~np.isfinite(self.attention).all(axis=1) | ~np.isfinite(self.log_probs.max(axis=1))
        if bad.any():
            user, page = self.users[int(np.argmax(bad))], self.pages[int(np.argmax(bad))].name
            raise CheckpointError(
                f"user {user!r} on page {page!r}: what the model answers is no number; its weights, or this user's "
                "prompt, hold values that are not finite"
            )
        answered = scipy.special.logsumexp(self.log_probs, axis=1)
        return Visits(
            users=self.users,
            pages=self.pages,
            attention=self.attention,
            log_probs=self.log_probs - answered[:, None],
            answered=answered,
            relevance=None if self.tokens is None else tuple(self.tokens),
        )
