"""Which part of what goes to which device: the mesh's axes, and one table of rules for all frozen weights.

Along ``data`` every device holds the weights whole and works on its rows of the batch. Along ``fsdp`` it works on its
rows too, but keeps only its part of each matrix and is sent a layer's other parts when it comes to that layer. Along
``tensor`` the devices share the rows and each multiplies with its part of a matrix.
"""

import math
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

AXES = ("data", "fsdp", "tensor")
"""Axes of a mesh, outermost first: neighbours talk most along the last."""
BATCH_AXES = ("data", "fsdp")
"""Those that the rows of a batch are shared along."""

RULES: tuple[tuple[str, tuple[str | None, str | None]], ...] = (
    # Into heads or hidden units: each device of `tensor` makes some of them, ...
    (r"(q|k|v|gate|up)_proj\.kernel", ("fsdp", "tensor")),
    (r"(qkv|fc1|patch_embed)\.kernel", ("fsdp", "tensor")),
    # ... and back to the residual stream: each adds up what it made.
    (r"(o|down)_proj\.kernel", ("tensor", "fsdp")),
    (r"(proj|fc2)\.kernel", ("tensor", "fsdp")),
    # Vocabulary × width, and width × vocabulary.
    (r"embed\.embedding", ("tensor", "fsdp")),
    (r"head\.kernel", ("fsdp", "tensor")),
)
"""End of a parameter's path → axes along its last two sides. What no rule names (norms, biases, positions, scales) is
copied to every device: it is small."""

ShardingRule = Callable[[nnx.State, Mesh], nnx.State]


def make_mesh(shape: tuple[int, int, int]) -> Mesh:
    """The first devices of all processes as a mesh with the axes :data:`AXES`, neighbours where the wires are short."""
    devices = jax.devices()[: math.prod(shape)]
    return jax.make_mesh(shape, AXES, devices=devices, axis_types=(AxisType.Auto,) * len(AXES))


def rule_of(path: str) -> tuple[str | None, str | None]:
    """The axes along the last two sides of the parameter at a dotted path."""
    return next((axes for pattern, axes in RULES if re.search(rf"(^|\.){pattern}$", path)), (None, None))


def shardings(abstract: nnx.State, mesh: Mesh | AbstractMesh) -> nnx.State:
    """Where each parameter goes, by :data:`RULES`.

    A side is cut only where its length is a multiple of the number of devices along its axis, else it is copied along
    that axis. Layers are never taken apart: they are scanned one by one.

    Args:
        abstract: parameters as arrays, or as shapes and types.
        mesh: the devices; axes that it does not have count as one device.

    Returns:
        The same structure with a ``NamedSharding`` in each parameter's place.
    """
    places = []
    for path, leaf in nnx.to_flat_state(abstract):
        wanted = rule_of(".".join(map(str, path)))
        sides = [
            axis if axis in mesh.shape and size % mesh.shape[axis] == 0 else None
            for axis, size in zip(wanted, leaf.shape[-2:], strict=False)
        ]
        spec = PartitionSpec(*[None] * (len(leaf.shape) - len(sides)), *sides)
        places.append(NamedSharding(mesh, spec))
    return jax.tree.unflatten(jax.tree.structure(abstract), places)


def batch_axes(mesh: Mesh | AbstractMesh, rows: int) -> tuple[str, ...] | None:
    """The axes of a mesh that so many rows can be shared along, None where they cannot."""
    axes = tuple(axis for axis in BATCH_AXES if axis in mesh.shape)
    return axes if axes and rows % math.prod(mesh.shape[axis] for axis in axes) == 0 else None


def by_rows(x: Float[Array, "batch *dims last"], last: str | None = None) -> Float[Array, "batch *dims last"]:
    """The same array with its rows where those of the batch are, whole along other sides (the last: cut by `last`).

    Where weights are cut along ``fsdp``, XLA left alone prefers to send whole batches of activations around and leaves
    the weights where they are. This is heeded inside :func:`sharing_rows` alone, and on more than one device.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = None if mesh.empty or mesh.size == 1 else batch_axes(mesh, x.shape[0])
    if axes is None:
        return x
    along = last if last is not None and x.shape[-1] % mesh.shape[last] == 0 else None
    return jax.lax.with_sharding_constraint(x, PartitionSpec(axes, *[None] * (x.ndim - 2), along))


def by_width(x: Float[Array, "batch *dims width"]) -> Float[Array, "batch *dims width"]:
    """The same array with its last side where that of the weights is, for a product with few rows and a large matrix.

    The rows are sent to the weights, and what comes out goes back through :func:`by_rows`: for the output head that is
    a thousandth of what sending the head would be.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or x.shape[-1] % mesh.shape["fsdp"]:
        return x
    rows = "data" if x.shape[0] % mesh.shape["data"] == 0 else None
    return jax.lax.with_sharding_constraint(x, PartitionSpec(rows, *[None] * (x.ndim - 2), "fsdp"))


def sharing_rows(mesh: Mesh | None) -> AbstractContextManager[Any]:
    """While a function is traced in this context, :func:`by_rows` and :func:`by_width` mean that mesh."""
    return nullcontext() if mesh is None else jax.sharding.use_abstract_mesh(mesh.abstract_mesh)
