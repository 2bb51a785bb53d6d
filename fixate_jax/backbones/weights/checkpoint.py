"""Hugging Face safetensors into a model's parameters, tensor by tensor, and nothing else: no pickle, no remote code.

A backbone describes its mapping as one table of :class:`Rule` rows. Every parameter of the model must be covered by
exactly one row and every tensor of the checkpoint must be wanted; anything else is an error that names the tensors.

The files are mapped into memory, not read: a tensor is a view, a rule's transform is a view of that view, and what a
device gets of it is a slice. Only that slice is read, into the stacked parameter, which is all that is ever copied.
"""

import json
import mmap
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open

from fixate_jax.backbones.weights.streaming import THREADS, StackedSource, fill
from fixate_jax.errors import CheckpointError
from fixate_jax.runtime.files import read_json as read_any_json
from fixate_jax.runtime.files import require_ordinary
from fixate_jax.runtime.progress import bytes_bar

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
"""What a cache made of a checkpoint says of itself, the checkpoint's tensors included."""
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
"""Types of tensors that can be read, by their name in a safetensors file."""
BAR_FROM = 2**30
"""Bytes of weights from which on a progress bar is shown."""
Transform = Callable[[np.ndarray], np.ndarray]


def keep(x: np.ndarray) -> np.ndarray:
    """The tensor as it is."""
    return x


def transpose(x: np.ndarray) -> np.ndarray:
    """torch keeps a linear layer's weight as (outputs, inputs), Flax as (inputs, outputs)."""
    return x.T


def flatten_transpose(x: np.ndarray) -> np.ndarray:
    """A convolution over whole patches as a linear layer."""
    return x.reshape(x.shape[0], -1).T


@dataclass(frozen=True)
class Rule:
    """Where one parameter comes from.

    Attributes:
        path: the parameter's path in the model, joined with dots.
        tensor: the tensor's name; ``{layer}`` stands for each of ``layers``, which are stacked. Several names are
            joined along the last axis, after the transform.
        transform: from the checkpoint's layout to ours. It must return a view (a transposition, a slice, a reshape),
            never a copy: a device's part of the view is read alone, and export writes through it. Several rows may
            read different parts of one tensor.
        layers: layer indices of a stacked parameter, or None.
    """

    path: str
    tensor: str | tuple[str, ...]
    transform: Transform = keep
    layers: range | None = None

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """Names of the tensors of each layer (of the only one, where nothing is stacked)."""
        names = (self.tensor,) if isinstance(self.tensor, str) else self.tensor
        if self.layers is None:
            return [names]
        return [tuple(name.format(layer=i) for name in names) for i in self.layers]

    @property
    def tensors(self) -> list[str]:
        """Names of all tensors this row reads."""
        return [name for names in self.rows for name in names]


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: naming the file, when it is missing or not JSON.
    """
    try:
        content = read_any_json(path, CheckpointError, "download it again")
    except FileNotFoundError:
        raise CheckpointError(f"{path}: not found; a Hugging Face model directory with {path.name} is needed") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a JSON {type(content).__name__}, an object is needed")
    return content


class TensorFiles:
    """The safetensors files of a model directory, opened without reading them.

    Use as a context manager.

    Raises:
        CheckpointError: naming the file, when files are missing, truncated, or only pickled weights are there.
    """

    def __init__(self, directory: Path):
        """Find the files of ``directory``: one, or those that the index names."""
        self.directory = directory
        if (directory / SINGLE_FILE).exists():
            # Shards and index beside it are of an older save; transformers takes the single file too.
            self.files = [SINGLE_FILE]
        elif (directory / INDEX_FILE).exists():
            index = read_json(directory / INDEX_FILE)
            if not isinstance(index.get("weight_map"), dict):
                raise CheckpointError(f"{directory / INDEX_FILE}: has no 'weight_map' object")
            self.files = sorted({self._shard(tensor, file) for tensor, file in index["weight_map"].items()})
        else:
            pickled = sorted(p.name for pattern in PICKLED for p in directory.glob(pattern))
            if pickled:
                raise CheckpointError(
                    f"{directory / pickled[0]}: pickled weights are never loaded, they can run code; "
                    "save the model again with safe_serialization=True to get .safetensors files"
                )
            raise CheckpointError(f"{directory}: holds neither {SINGLE_FILE} nor {INDEX_FILE}")
        self._header: dict[str, dict[str, Any]] = {}
        self._buffers: dict[str, tuple[mmap.mmap, int]] = {}

    def _shard(self, tensor: str, file: Any) -> str:
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            raise CheckpointError(
                f"{self.directory / INDEX_FILE}: weight_map[{tensor!r}] = {file!r} is no safetensors file of this "
                "folder; nothing outside it is ever read"
            )
        return file

    def __enter__(self) -> "TensorFiles":
        for name in self.files:
            path = self.directory / name
            require_ordinary(path, CheckpointError)
            if not path.exists():
                raise CheckpointError(f"{path}: not found, but {INDEX_FILE} names it; download it again")
            try:
                with safe_open(path, framework="numpy"):
                    pass  # Makes sure that header and size of the file agree.
            except SafetensorError as error:
                raise CheckpointError(f"{path}: truncated or not a safetensors file ({error})") from error
            with path.open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(size))
                buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            header.pop("__metadata__", None)
            self._header |= header
            self._buffers |= dict.fromkeys(header, (buffer, 8 + size))
        return self

    def __exit__(self, *exc: object) -> None:
        # A mapping ends with the last view of it.
        self._buffers.clear()

    @property
    def names(self) -> set[str]:
        """Names of all tensors."""
        return set(self._header)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from the header."""
        return tuple(self._header[name]["shape"])

    def dtype(self, name: str) -> np.dtype:
        """Type of a tensor, from the header.

        Raises:
            CheckpointError: naming the tensor, when it does not hold plain floating-point numbers.
        """
        kind = self._header[name]["dtype"]
        if kind not in DTYPES:
            raise CheckpointError(
                f"{self.directory}: tensor {name!r} is of type {kind}; {', '.join(DTYPES)} are supported "
                "(quantised checkpoints are not)"
            )
        return np.dtype(DTYPES[kind])

    def read(self, name: str) -> np.ndarray:
        """One tensor, as a view of the file: what is not used of it is not read."""
        buffer, start = self._buffers[name]
        offset = start + self._header[name]["data_offsets"][0]
        return np.ndarray(self.shape(name), self.dtype(name), buffer=buffer, offset=offset)


def tensor_names(directory: Path) -> set[str]:
    """Names of a checkpoint's tensors.

    Raises:
        CheckpointError: see :class:`TensorFiles`.
    """
    with TensorFiles(directory) as files:
        return files.names


def _short(names: Sequence[str], limit: int = 6) -> str:
    listed = ", ".join(names[:limit])
    return listed if len(names) <= limit else f"{listed}, … ({len(names)} in all)"


def _check_names(rules: Sequence[Rule], files: TensorFiles, ignored: Callable[[str], bool]) -> None:
    wanted = [name for rule in rules for name in rule.tensors]
    missing = [name for name in wanted if name not in files.names]
    extra = sorted(name for name in files.names - set(wanted) if not ignored(name))
    problems = []
    if missing:
        problems.append(f"missing tensors: {_short(missing)}")
    if extra:
        problems.append(f"tensors that this architecture does not have: {_short(extra)}")
    if problems:
        raise CheckpointError(f"{files.directory}: {'; '.join(problems)}. Does config.json belong to these weights?")


def load_parameters(
    directory: Path,
    abstract: nnx.State,
    rules: Sequence[Rule],
    *,
    ignored: Callable[[str], bool] = lambda name: False,
    shardings: nnx.State | None = None,
) -> nnx.State:
    """Fill a model's parameters from a directory of safetensors.

    One parameter after the other is read, cast, stacked and placed. Beside what is placed, memory holds one of them.

    Args:
        directory: the Hugging Face model directory.
        abstract: the model's parameters as shapes and types.
        rules: the mapping table.
        ignored: tensors that may be there without being used.
        shardings: for each parameter, where its parts go (None: whole, to the default device).

    Returns:
        The parameters in the types of ``abstract``.

    Raises:
        CheckpointError: naming missing, extra and misshapen tensors and unusable files.
    """
    flat = {path: leaf for path, leaf in _flat(abstract)}
    by_path = {rule.path: rule for rule in rules}
    if set(by_path) != set(flat) or len(by_path) != len(rules):
        raise AssertionError(f"mapping table and model disagree on: {sorted(set(by_path) ^ set(flat))}")
    places = [None] * len(flat) if shardings is None else jax.tree.leaves(shardings)
    loaded = []
    with TensorFiles(directory) as files, ThreadPoolExecutor(THREADS) as pool:
        _check_names(rules, files, ignored)
        sources = {path: _sources(files, by_path[path], leaf) for path, leaf in flat.items()}
        size = sum(part.nbytes for rows in sources.values() for parts in rows for part in parts)
        with bytes_bar("Loading", size) if size >= BAR_FROM else nullcontext(lambda read: None) as advance:
            for (path, leaf), place in zip(flat.items(), places, strict=True):
                source = StackedSource(sources.pop(path), leaf.shape, leaf.dtype, pool, advance)
                loaded.append(jax.block_until_ready(source.place(place)))
    return jax.tree.unflatten(jax.tree.structure(abstract), loaded)


def _flat(state: nnx.State) -> Iterator[tuple[str, Any]]:
    """Parameters by path, in the order of the state's leaves."""
    for path, leaf in nnx.to_flat_state(state):
        yield ".".join(map(str, path)), leaf


def _sources(files: TensorFiles, rule: Rule, leaf: Any) -> list[list[np.ndarray]]:
    """Views of all that a parameter is made of: for each layer, the parts to join along the last axis."""
    shape = tuple(leaf.shape) if rule.layers is None else tuple(leaf.shape)[1:]
    rows = [[_transformed(files, rule, name) for name in names] for names in rule.rows]
    for names, parts in zip(rule.rows, rows, strict=True):
        found = (*parts[0].shape[:-1], sum(part.shape[-1] for part in parts)) if parts[0].ndim else ()
        if found != shape or any(part.shape[:-1] != shape[:-1] for part in parts):
            raise _misshapen(files, rule, names, shape)
    return rows


def _transformed(files: TensorFiles, rule: Rule, name: str) -> np.ndarray:
    tensor = files.read(name)
    try:
        view = rule.transform(tensor)
    except (ValueError, IndexError):
        raise _misshapen(files, rule, (name,), None) from None
    assert np.may_share_memory(view, tensor) or not view.size, f"the transform of {rule.path} copies"
    return view


def _misshapen(files: TensorFiles, rule: Rule, names: Sequence[str], wanted: tuple[int, ...] | None) -> CheckpointError:
    found = ", ".join(f"tensor {name!r} has shape {files.shape(name)}" for name in names)
    of_shape = "" if wanted is None else f" of shape {wanted}"
    return CheckpointError(
        f"{files.directory}: {found}, which does not fit {rule.path!r}{of_shape}; config.json and weights disagree"
    )


def export_tensors(
    params: nnx.State, rules: Sequence[Rule], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """The inverse of :func:`load_parameters`: tensors by name, in the parameters' types.

    Args:
        params: the parameters.
        rules: the mapping table.
        shapes: shape of every tensor in the checkpoint.
    """
    flat = dict(_flat(params))
    tensors: dict[str, np.ndarray] = {}
    for rule in rules:
        value = np.asarray(flat[rule.path][...])
        for row, names in zip(value if rule.layers is not None else value[None], rule.rows, strict=True):
            start = 0
            for name in names:
                if name not in tensors:
                    tensors[name] = np.empty(shapes[name], value.dtype)
                view = rule.transform(tensors[name])
                width = view.shape[-1] if view.ndim else 0
                fill(view, row[..., start : start + width] if view.ndim else row)
                start += width
    return tensors
