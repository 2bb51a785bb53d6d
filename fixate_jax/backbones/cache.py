"""A loaded backbone on disk as it is in memory, for fast restarts: cast, transposed and stacked already.

Orbax stores the arrays. It reads a file with a flipped bit without a word, so SHA-256 sums of all files lie beside
them and are compared before anything is used.
"""

import json
import math
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from fixate_jax.backbones.checkpoint import MANIFEST, read_json
from fixate_jax.durable import checksums, sha256_all
from fixate_jax.errors import CheckpointError

FORMAT = 1
SUMS, PARAMETERS = "checksums.json", "parameters"
CACHE_FILES = (MANIFEST, SUMS)


def is_cache(directory: Path) -> bool:
    """Whether a model directory was written by :func:`write_cache`."""
    return (directory / MANIFEST).is_file()


def read_manifest(directory: Path) -> dict[str, Any]:
    """What a cache says of itself.

    Raises:
        CheckpointError: when it is of another format.
    """
    manifest = read_json(directory / MANIFEST)
    if manifest.get("format") != FORMAT:
        raise CheckpointError(
            f"{directory / MANIFEST}: format {manifest.get('format')!r}, this version reads {FORMAT}; convert again"
        )
    return manifest


def write_cache(directory: Path, params: nnx.State, manifest: dict[str, Any]) -> None:
    """Write parameters, manifest and the sums of all files, those that are there already included.

    Args:
        directory: an existing folder with the model's configuration and tokenizer.
        params: the parameters.
        manifest: plain values to keep beside them.
    """
    import orbax.checkpoint as ocp  # Takes a second to import, and few need it.

    _handler(params).save((directory / PARAMETERS).resolve(), args=ocp.args.PyTreeSave(_by_path(params)))
    manifest = {"format": FORMAT, **manifest, "parameters": describe(params)}
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    (directory / SUMS).write_text(json.dumps(checksums(directory), indent=1), encoding="utf-8")


def read_cache(directory: Path, abstract: nnx.State, *, shardings: nnx.State | None = None) -> nnx.State:
    """Read parameters back, each device its part.

    Args:
        directory: the cache.
        abstract: parameters as shapes and types, as the settings want them.
        shardings: for each parameter, where its parts go (None: whole, to the default device).

    Raises:
        CheckpointError: naming a file that is missing or altered, or what differs between cache and settings.
    """
    manifest = read_manifest(directory)
    _require_same(directory, manifest, describe(abstract))
    require_sound(directory)
    default = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    leaves = jax.tree.leaves(abstract)
    places = [default] * len(leaves) if shardings is None else jax.tree.leaves(shardings)
    wanted = {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)
        for path, leaf, place in zip(_by_path(abstract), leaves, places, strict=True)
    }
    import orbax.checkpoint as ocp

    arguments = ocp.args.PyTreeRestore(wanted, restore_args=ocp.checkpoint_utils.construct_restore_args(wanted))
    found = _handler(abstract).restore((directory / PARAMETERS).resolve(), args=arguments)
    return jax.tree.unflatten(jax.tree.structure(abstract), [found[path] for path in wanted])


def describe(state: nnx.State) -> dict[str, dict[str, Any]]:
    """Shape and type of each parameter, by path."""
    return {path: {"shape": list(leaf.shape), "dtype": str(leaf.dtype)} for path, leaf in _by_path(state).items()}


def _by_path(state: nnx.State) -> dict[str, Any]:
    paths = (".".join(map(str, path)) for path, _ in nnx.to_flat_state(state))
    return dict(zip(paths, jax.tree.leaves(state), strict=True))


def _handler(state: nnx.State) -> Any:
    """Reads and writes with room in memory for the largest parameter, not for all of them; weights do not compress."""
    import orbax.checkpoint as ocp

    largest = max(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    limit = largest // 10**9 + 1
    return ocp.Checkpointer(
        ocp.PyTreeCheckpointHandler(use_compression=False, save_concurrent_gb=limit, restore_concurrent_gb=limit)
    )


def _require_same(directory: Path, manifest: dict[str, Any], wanted: dict[str, dict[str, Any]]) -> None:
    stored = manifest["parameters"]
    if stored == wanted:
        return
    path = next(path for path in {**stored, **wanted} if stored.get(path) != wanted.get(path))
    there, here = (f"{x['dtype']}{x['shape']}" if x else "missing" for x in (stored.get(path), wanted.get(path)))
    settings = ", ".join(f"backbone.{name} = {value}" for name, value in manifest["settings"].items())
    raise CheckpointError(
        f"{directory}: was converted with {settings}, and these settings or its config.json want something else "
        f"({path!r} is {there} there, {here} here); set them to the same, or run `fixate convert` again"
    )


def require_sound(directory: Path, *, small: bool = False) -> None:
    """Hold a cache's files against their checksums.

    Args:
        directory: the cache.
        small: only tokenizer, templates and the like, which cost no time to read.

    Raises:
        CheckpointError: naming a file that is missing or altered.
    """
    sums = read_json(directory / SUMS)
    if small:
        later = (MANIFEST, "config.json")  # which have errors of their own
        sums = {name: s for name, s in sums.items() if PARAMETERS not in Path(name).parts and name not in later}
    for name in sums:
        if not (directory / name).is_file():
            raise CheckpointError(f"{directory / name}: not found; run `fixate convert` again")
    for (name, wanted), found in zip(sums.items(), sha256_all([directory / name for name in sums]), strict=True):
        if found != wanted:
            raise CheckpointError(f"{directory / name}: differs from its checksum; run `fixate convert` again")
