"""Hugging Face safetensors into a model's parameters, tensor by tensor, and nothing else: no pickle, no remote code.

A backbone describes its mapping as one table of :class:`Rule` rows. Every parameter of the model must be covered by
exactly one row and every tensor of the checkpoint must be wanted; anything else is an error that names the tensors.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open

from fixate_jax.errors import CheckpointError

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
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
        tensor: the tensor's name; ``{layer}`` stands for each of ``layers``, which are stacked.
        transform: from the checkpoint's layout to ours.
        layers: layer indices of a stacked parameter, or None.
    """

    path: str
    tensor: str
    transform: Transform = keep
    layers: range | None = None

    @property
    def tensors(self) -> list[str]:
        """Names of all tensors this row reads."""
        if self.layers is None:
            return [self.tensor]
        return [self.tensor.format(layer=i) for i in self.layers]


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: naming the file, when it is missing or not JSON.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: not found; a Hugging Face model directory with {path.name} is needed") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})") from error
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
        if (directory / INDEX_FILE).exists():
            index = read_json(directory / INDEX_FILE)
            if not isinstance(index.get("weight_map"), dict):
                raise CheckpointError(f"{directory / INDEX_FILE}: has no 'weight_map' object")
            self.files = sorted(set(index["weight_map"].values()))
        elif (directory / SINGLE_FILE).exists():
            self.files = [SINGLE_FILE]
        else:
            pickled = sorted(p.name for pattern in PICKLED for p in directory.glob(pattern))
            if pickled:
                raise CheckpointError(
                    f"{directory / pickled[0]}: pickled weights are never loaded, they can run code; "
                    "save the model again with safe_serialization=True to get .safetensors files"
                )
            raise CheckpointError(f"{directory}: holds neither {SINGLE_FILE} nor {INDEX_FILE}")
        self._stack = ExitStack()
        self._handles: dict[str, Any] = {}

    def __enter__(self) -> "TensorFiles":
        for name in self.files:
            path = self.directory / name
            if not path.exists():
                raise CheckpointError(f"{path}: not found, but {INDEX_FILE} names it; download it again")
            try:
                handle = self._stack.enter_context(safe_open(path, framework="numpy"))
            except SafetensorError as error:
                raise CheckpointError(f"{path}: truncated or not a safetensors file ({error})") from error
            for tensor in handle.keys():  # noqa: SIM118  (a safetensors handle, no dict)
                self._handles[tensor] = handle
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    @property
    def names(self) -> set[str]:
        """Names of all tensors."""
        return set(self._handles)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from the header."""
        return tuple(self._handles[name].get_slice(name).get_shape())

    def read(self, name: str) -> np.ndarray:
        """One tensor."""
        return self._handles[name].get_tensor(name)


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
    on_tensor: Callable[[str], None] = lambda name: None,
) -> nnx.State:
    """Fill a model's parameters from a directory of safetensors.

    Args:
        directory: the Hugging Face model directory.
        abstract: the model's parameters as shapes and types.
        rules: the mapping table.
        ignored: tensors that may be there without being used.
        on_tensor: called with each tensor's name once it is read (for progress).

    Returns:
        The parameters, on the default device, in the types of ``abstract``.

    Raises:
        CheckpointError: naming missing, extra and misshapen tensors and unusable files.
    """
    flat: Mapping[str, Any] = {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(abstract)}
    by_path = {rule.path: rule for rule in rules}
    if set(by_path) != set(flat) or len(by_path) != len(rules):
        raise AssertionError(f"mapping table and model disagree on: {sorted(set(by_path) ^ set(flat))}")
    with TensorFiles(directory) as files:
        _check_names(rules, files, ignored)
        loaded = {path: _load_one(files, by_path[path], leaf, on_tensor) for path, leaf in flat.items()}
    return jax.tree.unflatten(jax.tree.structure(abstract), _in_order(abstract, loaded))


def export_tensors(
    params: nnx.State, rules: Sequence[Rule], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """The inverse of :func:`load_parameters`: a model's parameters as the tensors of a checkpoint.

    Args:
        params: the parameters.
        rules: the mapping table.
        shapes: shape of every tensor in the checkpoint.
    """
    flat = {".".join(map(str, path)): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(params)}
    tensors = {}
    for rule in rules:
        value = flat[rule.path]
        for name, row in zip(rule.tensors, value if rule.layers is not None else value[None], strict=True):
            # Each transform is a transposition of a flattened tensor, or nothing.
            tensors[name] = np.ascontiguousarray(row if rule.transform is keep else row.T).reshape(shapes[name])
    return tensors


def _in_order(abstract: nnx.State, loaded: Mapping[str, jax.Array]) -> Iterator[jax.Array]:
    for path, _ in nnx.to_flat_state(abstract):
        yield loaded[".".join(map(str, path))]


def _load_one(files: TensorFiles, rule: Rule, leaf: Any, on_tensor: Callable[[str], None]) -> jax.Array:
    shape, dtype = tuple(leaf.shape), leaf.dtype
    target = np.empty(shape, dtype)
    rows = target if rule.layers is not None else target[None]
    for row, name in zip(rows, rule.tensors, strict=True):
        tensor = rule.transform(files.read(name))
        if tensor.shape != row.shape:
            raise CheckpointError(
                f"{files.directory}: tensor {name!r} has shape {files.shape(name)}, which does not fit "
                f"{rule.path!r} of shape {row.shape}; config.json and weights disagree"
            )
        row[...] = tensor
        on_tensor(name)
    return jax.device_put(target)
