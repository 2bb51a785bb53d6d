"""Backbones from one form on disk to the other: Hugging Face safetensors to a cache of our own, and back."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Shaped
from safetensors.numpy import save_file

from fixate_jax.backbones.cache import CACHE_FILES, is_cache, read_manifest, write_cache
from fixate_jax.backbones.checkpoint import DTYPES, INDEX_FILE, SINGLE_FILE, TensorFiles, exported
from fixate_jax.backbones.hub import FILES
from fixate_jax.backbones.loading import Backbone, load_backbone, resolve
from fixate_jax.config import BackboneConfig
from fixate_jax.durable import flush, flush_entry, sha256_all
from fixate_jax.errors import CheckpointError, FixateError

Form = Literal["cache", "safetensors"]
Dtype = Literal["float32", "bfloat16"]
MAX_SHARD_BYTES = 5 * 10**9
"""Largest safetensors file, as transformers writes them (a larger tensor gets a file of its own)."""


def convert(
    settings: BackboneConfig,
    out: Path,
    *,
    to: Form = "cache",
    dtype: Dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    work: Path = Path("."),
) -> BackboneConfig:
    """Write a backbone in another form, with its configuration, tokenizer and image processor settings beside it.

    The directory appears whole or not at all. A cache holds weights in one type, and decoder layers stacked for one
    number of tapped layers. Safetensors get each tensor's name, shape and type in the original checkpoint, so that
    there and back again gives the same bytes; only where the cache was cast to a shorter type, they keep that type.

    Args:
        settings: which backbone, its ``tapped_layers`` and its ``revision``.
        out: directory to write; must not exist.
        to: a cache, or safetensors in the checkpoint's layout.
        dtype: of the weights (None: bfloat16 where all of the checkpoint's are, float32 otherwise; a cache's own).
        max_shard_bytes: start another safetensors file before one gets larger.
        work: folder for embedded backbones to be written to.

    Returns:
        The settings that load what was written.

    Raises:
        CheckpointError: naming what is wrong with the checkpoint, or that ``out`` is there already.
    """
    source = resolve(settings.path, work=work, revision=settings.revision)
    if is_cache(source):
        if to == "cache":
            raise CheckpointError(f"{source}: is a cache already; give the directory it was made from, or a Hub id")
        manifest = read_manifest(source)
        form = manifest["settings"] if dtype is None else manifest["settings"] | {"dtype": dtype}
    else:
        form = {"dtype": dtype or _own_dtype(source), "tapped_layers": settings.tapped_layers}
        manifest = {"settings": form, "source": _content(source), "tensors": _tensors(source)}
    _require_free(out, manifest if to == "cache" else None)
    settings = replace(settings, path=str(source), revision=None, **form)
    backbone = load_backbone(settings, work=work)
    with _staged(out) as staging:
        for file in _companions(source):
            shutil.copyfile(file, staging / file.name)
        if to == "cache":
            write_cache(staging, backbone.params, manifest)
        else:
            _write_safetensors(staging, _original_tensors(backbone, manifest["tensors"]), max_shard_bytes)
    return replace(settings, path=str(out))


def _own_dtype(directory: Path) -> str:
    with TensorFiles(directory) as files:
        return "bfloat16" if {files.dtype(name) for name in files.names} == {np.dtype(DTYPES["BF16"])} else "float32"


def _tensors(directory: Path) -> dict[str, dict[str, Any]]:
    with TensorFiles(directory) as files:
        return {n: {"shape": list(files.shape(n)), "dtype": str(files.dtype(n))} for n in sorted(files.names)}


def _content(directory: Path) -> str:
    """Changes with any file that the backbone is read from."""
    paths = sorted([*_companions(directory), *directory.glob("*.safetensors")])
    return hashlib.sha256("\n".join(sha256_all(paths)).encode()).hexdigest()


def _companions(directory: Path) -> list[Path]:
    """Configuration, tokenizer and the like."""
    found = {path for pattern in FILES for path in directory.glob(pattern)}
    return sorted(p for p in found if p.suffix != ".safetensors" and p.name not in (INDEX_FILE, *CACHE_FILES))


def _require_free(out: Path, manifest: dict[str, Any] | None) -> None:
    if not out.exists():
        return
    if manifest is None or not is_cache(out):
        raise CheckpointError(f"{out}: is there already; name a new directory")
    found = read_manifest(out)
    differing = [
        name
        for name, there, here in (
            ("checkpoint", found["source"], manifest["source"]),
            *((name, found["settings"][name], value) for name, value in manifest["settings"].items()),
        )
        if there != here
    ]
    if differing:
        raise CheckpointError(
            f"{out}: holds a cache with another {' and '.join(differing)}; remove it or name a new directory"
        )
    raise CheckpointError(f"{out}: holds the cache of this very checkpoint already; use it, or remove it first")


@contextmanager
def _staged(out: Path) -> Iterator[Path]:
    """A folder to write to that gets its name when all is on disk; nothing is left of it when something fails."""
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        yield staging
        staging.chmod(0o755)
        flush(staging)
        os.rename(staging, out)
        flush_entry(out.parent)
    except FixateError:
        raise
    except Exception as error:
        raise CheckpointError(f"{out}: could not be written, nothing is left of it ({error})") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _original_tensors(
    backbone: Backbone, tensors: dict[str, dict[str, Any]]
) -> Iterator[tuple[str, Shaped[np.ndarray, "..."]]]:
    """The checkpoint's tensors, in their own types where the weights were widened and not cast to a shorter one."""
    shapes = {name: tuple(tensor["shape"]) for name, tensor in tensors.items()}
    for name, value in exported(backbone.params, backbone.family.rules(backbone.config), shapes):
        original = np.dtype(tensors[name]["dtype"])
        widened = value.dtype == np.float32 and original.itemsize < value.dtype.itemsize
        yield name, value.astype(original) if widened else value


def _write_safetensors(
    directory: Path, tensors: Iterable[tuple[str, Shaped[np.ndarray, "..."]]], max_bytes: int
) -> None:
    """Write tensors to files of at most ``max_bytes``, and their index where it takes more than one."""
    parts: list[list[str]] = []
    part: dict[str, np.ndarray] = {}
    total = 0

    def write() -> None:
        save_file(part, directory / f"part-{len(parts)}", metadata={"format": "pt"})
        parts.append(list(part))
        part.clear()

    for name, value in tensors:
        if part and sum(x.nbytes for x in part.values()) + value.nbytes > max_bytes:
            write()
        part[name] = value
        total += value.nbytes
    write()
    if len(parts) == 1:
        (directory / "part-0").rename(directory / SINGLE_FILE)
        return
    places: dict[str, str] = {}
    for i, names in enumerate(parts):
        file = f"model-{i + 1:05d}-of-{len(parts):05d}.safetensors"
        (directory / f"part-{i}").rename(directory / file)
        places |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    (directory / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
