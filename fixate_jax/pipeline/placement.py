"""Where on a mesh the arrays of a step are, and how they get there, on one process or on many.

Prompts are copied to every device, batches are shared by rows, frozen weights are cut by the table of
:mod:`fixate_jax.backbones.sharding`.
"""

import math
from collections.abc import Hashable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from fixate_jax.backbones.sharding import BATCH_AXES, make_mesh
from fixate_jax.errors import ConfigError
from fixate_jax.runtime import hosts

PAYS_FROM = 16 * 2**20
"""Bytes from which an array of the optimizer's state is cut. The moments of B never get there (2.6 MB at the widest
published decoder), those of z do from half a million people; below it, sending the parts around costs more than the
copies take up."""


class Placement(NamedTuple):
    """The shardings that a jitted step is compiled for.

    Attributes:
        mesh: the devices.
        params: shardings of the frozen weights.
        state: shardings of the training state; evaluation needs none.
    """

    mesh: Mesh
    params: PyTree
    state: PyTree = None

    def __hash__(self) -> int:
        return hash(self._parts())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Placement) and self._parts() == other._parts()

    def __ne__(self, other: object) -> bool:
        return not self == other

    def _parts(self) -> Hashable:
        """What makes two placements the same, so that they can share one jitted step."""
        shardings, structure = jax.tree.flatten((self.params, self.state))
        return self.mesh, tuple(shardings), structure

    @property
    def whole(self) -> NamedSharding:
        """A copy on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def rows(self) -> NamedSharding:
        """Rows of a batch."""
        return NamedSharding(self.mesh, PartitionSpec(BATCH_AXES))

    @property
    def micro_rows(self) -> NamedSharding:
        """Rows of each micro-batch of an optimizer step."""
        return NamedSharding(self.mesh, PartitionSpec(None, BATCH_AXES))

    def with_state(self, state: Any, *, pays_from: int = PAYS_FROM) -> "Placement":
        """The same with shardings for a training state: prompts copied, the optimizer's arrays cut where it pays.

        Args:
            state: a :class:`fixate_jax.tuning.step.TrainState`, of arrays or of shapes and types.
            pays_from: bytes of the smallest array that is cut, along its longest side if that divides.
        """
        devices = math.prod(self.mesh.shape[axis] for axis in BATCH_AXES)

        def optimizer(leaf: Any) -> NamedSharding:
            longest = max(range(leaf.ndim), key=lambda side: leaf.shape[side], default=None)
            if longest is None or leaf.size * leaf.dtype.itemsize < pays_from or leaf.shape[longest] % devices:
                return self.whole
            return NamedSharding(self.mesh, PartitionSpec(*[None] * longest, BATCH_AXES))

        places = jax.tree.map(lambda _: self.whole, state)
        return self._replace(state=places._replace(optimizer=jax.tree.map(optimizer, state.optimizer)))

    def fetch(self, tree: PyTree) -> PyTree:
        """Arrays on the mesh as one process can save them by itself; all processes have to ask."""
        if jax.process_count() == 1:
            return tree
        return hosts.local(jax.jit(lambda x: x, out_shardings=self.whole)(tree))

    def own_rows(self, rows: int) -> list[int]:
        """Which of so many rows this process's devices work on; all of them where there is one process."""
        parts = self.rows.addressable_devices_indices_map((rows,)).values()
        return sorted({row for part in parts if part for row in range(*part[0].indices(rows))})


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


def put(tree: PyTree, places: PyTree) -> PyTree:
    """Put arrays that every process has whole onto a mesh.

    Args:
        tree: arrays, the same on each process.
        places: a sharding for all of them, or one for each.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, places)
    if isinstance(places, NamedSharding):
        places = jax.tree.map(lambda _: places, tree)
    return jax.tree.map(_put_whole, tree, places)


def _put_whole(x: Any, place: NamedSharding) -> jax.Array:
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, place, lambda index: host[index])


def put_rows(tree: PyTree, place: NamedSharding, rows: list[int], total: int, *, axis: int = 0) -> PyTree:
    """Put a batch onto a mesh, of which this process has the rows that its devices need.

    Args:
        tree: arrays with this process's rows alone.
        place: sharding of the whole batch.
        rows: which ones these are, in ascending order, see :meth:`Placement.own_rows`.
        total: rows of the whole batch.
        axis: which axis counts rows.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, place)

    def one(x: Any) -> jax.Array:
        host = np.asarray(x)
        shape = (*host.shape[:axis], total, *host.shape[axis + 1 :])

        def part(index: Any) -> np.ndarray:
            wanted = range(*index[axis].indices(total))
            first = rows.index(wanted.start)
            return host[(*index[:axis], slice(first, first + len(wanted)), *index[axis + 1 :])]

        return jax.make_array_from_callback(shape, place, part)

    return jax.tree.map(one, tree)
