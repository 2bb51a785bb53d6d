"""Everything a run needs, made from its settings: backbone, sessions, page features, jitted functions."""

import importlib.metadata
import math
import platform
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from jaxtyping import PyTree
from PIL import Image

from fixate_jax import hosts
from fixate_jax.backbones import Backbone, EncodedSession, load_backbone, resolve
from fixate_jax.backbones.sharding import make_mesh, shardings
from fixate_jax.config import RunConfig
from fixate_jax.data import usable_sessions
from fixate_jax.data.few import few_sessions
from fixate_jax.data.session import SPLITS, Session
from fixate_jax.data.store import SessionStore
from fixate_jax.errors import ConfigError
from fixate_jax.probing.batches import SessionData
from fixate_jax.probing.encode import Question, encode_sessions
from fixate_jax.progress import track
from fixate_jax.tuning.features import FeatureStore, Track
from fixate_jax.tuning.page_keys import NOWHERE, PageKeyStore, wants_page_keys
from fixate_jax.tuning.placement import Placement, put, put_rows
from fixate_jax.tuning.step import Jitted, make_evaluate

PACKAGES = ("fixate-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "transformers", "numpy")


class SlotWarning(UserWarning):
    """Slots are too small for the grid of visual tokens."""


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """What all runs on the same data and backbone share.

    Attributes:
        config: the settings.
        backbone: the frozen model.
        store: the sessions on disk.
        features: cached page features (nothing is kept where ``data.page_keys`` is given).
        data: the encoded sessions.
        splits: indices of the sessions of each split.
        mesh: the devices.
    """

    config: RunConfig
    backbone: Backbone
    store: SessionStore
    features: FeatureStore
    data: SessionData
    splits: dict[str, list[int]]
    mesh: Mesh

    @property
    def users(self) -> tuple[str, ...]:
        """Users in the order of their coefficients."""
        return self.store.users

    def sessions(self, split: str) -> list[Session]:
        """Sessions of a split."""
        return [self.data.sessions[i] for i in self.splits[split]]

    @cached_property
    def evaluate(self) -> Jitted:
        """The jitted evaluation, shared by every seed and method so that it is compiled once per bucket."""
        end_token = self.backbone.encoder.end_token
        return make_evaluate(self.backbone.graph, self.config, end_token, placement=self.placement)

    @cached_property
    def placement(self) -> Placement:
        """What the jitted steps are compiled for."""
        return Placement(self.mesh, shardings(self.backbone.params, self.mesh))

    @cached_property
    def params(self) -> PyTree:
        """The frozen weights on the mesh; sharded ones were loaded to their places."""
        return jax.device_put(self.backbone.params, self.placement.params)

    def replicate(self, tree: PyTree) -> PyTree:
        """Put a copy on every device of the mesh."""
        return put(tree, self.placement.whole)

    def own_rows(self, *, micro: bool = False) -> list[int]:
        """The rows of a micro-batch, or of a batch in evaluation, that this process puts together."""
        return self.placement.own_rows(self._rows(micro))

    def place(self, batch: Any, *, micro: bool = False) -> Any:
        """Put a batch on the mesh, its rows shared among the devices.

        Args:
            batch: arrays with this process's rows, see :meth:`own_rows`.
            micro: a step's micro-batches; else a batch of evaluation.
        """
        place = self.placement.micro_rows if micro else self.placement.rows
        return put_rows(batch, place, self.own_rows(micro=micro), self._rows(micro), axis=int(micro))

    def _rows(self, micro: bool) -> int:
        return self.config.train.batch if micro else self.config.train.eval_batch


def open_workspace(config: RunConfig, store: SessionStore, *, directory: Path) -> Workspace:
    """Load the backbone, encode the sessions, run the vision tower over their pages.

    Args:
        config: the settings.
        store: the prepared sessions.
        directory: where embedded backbones and the disk cache go.

    Raises:
        FixateError: naming what is wrong with checkpoint, data or settings.
    """
    sessions = usable_sessions(store, config.data)
    splits: dict[str, list[int]] = {split: [i for i, s in enumerate(sessions) if s.split == split] for split in SPLITS}
    empty = [split for split in SPLITS if not splits[split]]
    if empty:
        raise ConfigError(f"data: no sessions in split {', '.join(empty)}; use more users or another split seed")
    if config.data.train_sessions is not None:
        splits["train"] = few_sessions(
            sessions, splits["train"], config.data.train_sessions, seed=config.data.split_seed
        )
    mesh = open_mesh(config.train.mesh)
    with hosts.first_alone():
        resolve(config.backbone.path, work=directory, revision=config.backbone.revision)
    backbone = load_backbone(config.backbone, work=directory, mesh=None if mesh.size == 1 else mesh)
    placement = Placement(mesh, shardings(backbone.params, mesh))
    features, encoded, page_keys = read_pages(
        config, backbone, store.image, sessions, directory=directory, placement=placement
    )
    data = SessionData(
        sessions,
        encoded,
        {user: row for row, user in enumerate(store.users)},
        features=features,
        prompt_tokens=config.prompt.tokens,
        signal=config.data.signal,
        gaze_temperature=config.data.gaze_temperature,
        max_lengths=config.train.max_lengths,
        assignment=config.operator.assignment,
        position=config.prompt.position,
        page_keys=page_keys,
    )
    warn_of_empty_slots(data)
    return Workspace(
        config=config, backbone=backbone, store=store, features=features, data=data, splits=splits, mesh=mesh
    )


def open_mesh(shape: tuple[int, int, int]) -> Mesh:
    """The mesh that ``train.mesh`` asks for.

    Raises:
        ConfigError: when there are too few devices; with several processes, when there are too many.
    """
    wanted, there, processes = math.prod(shape), jax.device_count(), jax.process_count()
    if wanted > there:
        raise ConfigError(f"train.mesh = {shape}: {wanted} devices are needed, and {there} are here")
    if processes > 1 and wanted < there:
        raise ConfigError(
            f"train.mesh = {shape}: {wanted} of the {there} devices of {processes} processes; all have to be used"
        )
    return make_mesh(shape)


def read_pages(
    config: RunConfig,
    backbone: Backbone,
    images: Callable[[str], Image.Image],
    sessions: Sequence[Session],
    *,
    directory: Path,
    placement: Placement,
    known: dict[Question, EncodedSession] | None = None,
    bar: Track = track,
) -> tuple[FeatureStore, list[EncodedSession], PageKeyStore | None]:
    """Page features, or keys and values in their place where the settings want those and they fit; the sequences.

    Args:
        config: the settings.
        backbone: the frozen model.
        images: from page id to page.
        sessions: whose pages.
        directory: where the disk cache goes.
        placement: the mesh.
        known: sequences of earlier calls, see :func:`encode_sessions`.
        bar: wraps the pages in a progress bar.
    """
    page_ids = [s.page_id for s in sessions]
    how: dict[str, Any] = {
        "directory": config.cache.directory or directory / "features",
        "batch": config.train.eval_batch,
        "placement": placement,
        "track": bar,
    }
    wanted = wants_page_keys(config)
    features = FeatureStore(backbone, images, page_ids, NOWHERE if wanted else config.cache, **how)
    encoded = encode_sessions(backbone, sessions, features.grids, known)
    if not wanted:
        return features, encoded, None
    keys = PageKeyStore(backbone, features, page_ids, encoded, config.cache, **how)
    if keys.tier != "step":
        return features, encoded, keys
    # Too large to keep: the step computes them, from features that may still fit.
    return FeatureStore(backbone, images, page_ids, config.cache, **how), encoded, None


def warn_of_empty_slots(data: SessionData) -> None:
    """Say how many slots no visual token belongs to, if any."""
    empty, slots = data.empty_slots()
    if empty:
        warnings.warn(
            f"{empty} of {slots} slots hold no token's centre: their slot attention is always 0; "
            "use operator.assignment area or a larger page (data.page_width); of emulated users, --assignment area or "
            "--page-width",
            SlotWarning,
            stacklevel=3,
        )


def versions() -> dict[str, str]:
    """Versions of what a result depends on, and the device."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    device = jax.devices()[0]
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "device": f"{device.platform}: {device.device_kind} × {jax.device_count()}",
        **found,
    }
