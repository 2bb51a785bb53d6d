"""Which part of a model's weights goes to which device."""

import math
from collections.abc import Callable

import jax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

MODEL_AXES = ("fsdp", "model")
"""Axes of a mesh that weights are shared along; along any other axis every device holds a copy."""
SHARED = ("kernel", "embedding")
"""Last names of the parameters that are shared; the others are small."""
ShardingRule = Callable[[nnx.State, Mesh], nnx.State]


def shardings(abstract: nnx.State, mesh: Mesh | AbstractMesh) -> nnx.State:
    """Where each parameter goes: matrices are cut along their longer side, all else is copied to every device.

    A side is cut only where its length is a multiple of the number of devices along :data:`MODEL_AXES`, and layers are
    never taken apart: they are scanned one by one.

    Args:
        abstract: parameters as arrays, or as shapes and types.
        mesh: the devices.

    Returns:
        The same structure with a ``NamedSharding`` in each parameter's place.
    """
    axes = tuple(name for name in MODEL_AXES if name in mesh.shape)
    parts = math.prod(mesh.shape[name] for name in axes)
    places = []
    for path, leaf in nnx.to_flat_state(abstract):
        spec: list[tuple[str, ...] | None] = [None] * len(leaf.shape)
        sides = [side for side in (-2, -1) if leaf.shape[side] % parts == 0] if path[-1] in SHARED and axes else []
        if sides:
            spec[max(sides, key=lambda side: leaf.shape[side])] = axes
        places.append(NamedSharding(mesh, PartitionSpec(*spec)))
    return jax.tree.unflatten(jax.tree.structure(abstract), places)
