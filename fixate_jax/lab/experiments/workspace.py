"""Everything a run needs, made from its settings: backbone, sessions, page features, jitted functions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, PyTree
from PIL import Image

from fixate_jax.backbones import Backbone, load_backbone, resolve
from fixate_jax.backbones.sharding import shardings
from fixate_jax.data.few import few_sessions
from fixate_jax.data.options import DataConfig
from fixate_jax.data.registry import usable_sessions
from fixate_jax.data.session import SPLITS, StoredSession
from fixate_jax.data.store import SessionStore
from fixate_jax.errors import ConfigError
from fixate_jax.evaluation.calibration import Calibration
from fixate_jax.evaluation.forward import Jitted
from fixate_jax.lab.config import RunConfig
from fixate_jax.lab.experiments.predictors import mean_gaze
from fixate_jax.lab.experiments.programs import make_evaluate
from fixate_jax.lab.notes import tell_of_foreign_pages
from fixate_jax.lab.parts import operator_of
from fixate_jax.pipeline.features import FeatureStore
from fixate_jax.pipeline.page_keys import wants_page_keys
from fixate_jax.pipeline.pages import read_pages, warn_of_empty_slots
from fixate_jax.pipeline.placement import Placement, open_mesh, put, put_rows
from fixate_jax.probing.batches import SessionData
from fixate_jax.runtime import hosts


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

    def sessions(self, split: str) -> list[StoredSession]:
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
    splits = splits_of(sessions, config.data)
    empty = [split for split in SPLITS if not splits[split]]
    if empty:
        raise ConfigError(f"data: no sessions in split {', '.join(empty)}; use more users or another split seed")
    mesh = open_mesh(config.train.mesh)
    with hosts.first_alone():
        resolve(config.backbone.path, work=directory, revision=config.backbone.revision)
    tell_of_foreign_pages(config.backbone.path, config.data.name)
    backbone = load_backbone(config.backbone, work=directory, mesh=None if mesh.size == 1 else mesh)
    features, data = stage(
        config,
        backbone,
        sessions,
        store.image,
        users=store.users,
        mesh=mesh,
        directory=directory,
        targets=control_gaze(config, sessions, splits),
    )
    warn_of_empty_slots(data)
    return Workspace(
        config=config, backbone=backbone, store=store, features=features, data=data, splits=splits, mesh=mesh
    )


def stage(
    config: RunConfig,
    backbone: Backbone,
    sessions: Sequence[StoredSession],
    image: Callable[[str], Image.Image],
    *,
    users: Sequence[str],
    mesh: Mesh,
    directory: Path,
    targets: Mapping[int, Float[np.ndarray, " _slots"]] | None = None,
) -> tuple[FeatureStore, SessionData]:
    """Encode sessions and run the vision tower over their pages.

    Args:
        config: the settings.
        backbone: the frozen model.
        sessions: what is shown to it.
        image: from a page's id to the page.
        users: in the order of their coefficients.
        mesh: the devices.
        directory: where the disk cache goes.
        targets: what some sessions are aligned with instead of their own gaze.
    """
    placement = Placement(mesh, shardings(backbone.params, mesh))
    how = reading(config, directory)
    features, encoded, page_keys = read_pages(backbone, image, sessions, placement=placement, **how)
    data = SessionData(
        sessions,
        encoded,
        {user: row for row, user in enumerate(users)},
        features=features,
        prompt_tokens=config.prompt.tokens,
        signal=config.data.signal,
        gaze_temperature=config.data.gaze_temperature,
        max_lengths=config.train.max_lengths,
        assignment=config.operator.assignment,
        position=config.prompt.position,
        page_keys=page_keys,
        targets=targets,
    )
    return features, data


def control_gaze(
    config: RunConfig, sessions: Sequence[StoredSession], splits: Mapping[str, Sequence[int]]
) -> dict[int, Float[np.ndarray, " _slots"]]:
    """What the training sessions are aligned with instead of their own gaze, see `ObjectiveConfig.gaze`.

    Another session is the next one, in an order drawn from `data.split_seed`, of those of the same person with as many
    slots; where there is no other one, and for the mean, it is the person's mean gaze by slot.
    """
    if config.objective.gaze == "session":
        return {}
    signal, temperature = config.data.signal, config.data.gaze_temperature
    parts = {name: [sessions[i] for i in splits[name]] for name in ("train", "validation")}
    habits, _ = mean_gaze(parts["train"], parts["validation"], signal=signal, gaze_temperature=temperature)
    means = Calibration(habits=habits)
    alike: dict[tuple[str, int], list[int]] = {}
    for i in np.random.default_rng(config.data.split_seed).permutation(splits["train"]).tolist():
        alike.setdefault((sessions[i].user_id, sessions[i].slots), []).append(i)
    targets = {}
    for (user, slots), members in alike.items():
        for i, after in zip(members, members[1:] + members[:1], strict=True):
            swapped = config.objective.gaze == "other_session" and after != i
            mean = means.habit_on([user], np.ones((1, slots), bool))[0]
            targets[i] = (sessions[after].gaze(signal, temperature) if swapped else mean).astype(np.float32)
    return targets


def splits_of(sessions: Sequence[StoredSession], data: DataConfig) -> dict[str, list[int]]:
    """Indices of the sessions of each split; of the training ones those that are learned from."""
    splits: dict[str, list[int]] = {split: [i for i, s in enumerate(sessions) if s.split == split] for split in SPLITS}
    if data.train_sessions is not None:
        splits["train"] = few_sessions(sessions, splits["train"], data.train_sessions, seed=data.split_seed)
    return splits


def reading(config: RunConfig, directory: Path) -> dict[str, Any]:
    """How a run with these settings reads its pages, see :func:`fixate_jax.pipeline.pages.read_pages`."""
    return {
        "cache": config.cache,
        "directory": config.cache.directory or directory / "features",
        "batch": config.train.eval_batch,
        "page_keys": wants_page_keys(config.prompt.position, operator_of(config.operator)),
    }
