"""Checkpoints of a run: written whole or not at all, and read back only when every byte is what was written.

Orbax stores the arrays. It reads a file with a flipped bit without a word, so each checkpoint carries SHA-256 sums of
its files, and one that does not match them is left aside for the one before.
"""

import json
import re
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from fixate_jax.errors import CheckpointError
from fixate_jax.runtime.durable import advice, checksums, flush, flush_entry, is_full, sha256

_STEP = re.compile(r"step_(\d{8,})")
_UNFINISHED = "unfinished_"
_STATE, _META, _SUMS, _BEST = "state", "meta.json", "checksums.json", "best"


class CheckpointWarning(UserWarning):
    """A checkpoint was left aside; the message names it and says why."""


class Restored(NamedTuple):
    """What a checkpoint held."""

    step: int
    """Optimizer steps done when it was written."""
    state: PyTree
    """Arrays, bit for bit, in the structure and on the devices of `like`."""
    meta: dict[str, Any]
    """The plain values saved beside them."""


class _DamagedError(Exception):
    """Why a checkpoint cannot be trusted."""


class CheckpointStore:
    """A folder of checkpoints ``step_00000100`` with `state/` (Orbax), `meta.json` and `checksums.json`.

    One process writes to a folder at a time.

    Args:
        directory: the folder; made at the first save.
        keep: newest checkpoints to keep; the newest one saved as best is kept besides.
    """

    def __init__(self, directory: Path | str, keep: int = 3) -> None:
        if keep < 1:
            raise CheckpointError(f"keep = {keep}: at least 1 checkpoint must be kept")
        self.directory = Path(directory).resolve()
        self.keep = keep
        # Each process for itself: Orbax would have all of them save together, and wait for those that do not.
        alone = ocp.options.MultiprocessingOptions(
            primary_host=jax.process_index(), active_processes={jax.process_index()}
        )
        self._orbax = ocp.Checkpointer(
            ocp.StandardCheckpointHandler(multiprocessing_options=alone), multiprocessing_options=alone
        )

    def steps(self) -> list[int]:
        """Steps of the checkpoints on disk, oldest first, sound or not."""
        if not self.directory.is_dir():
            return []
        matches = (_STEP.fullmatch(entry.name) for entry in self.directory.iterdir() if entry.is_dir())
        return sorted(int(match.group(1)) for match in matches if match)

    def save(self, step: int, state: PyTree, meta: Mapping[str, Any], *, best: bool = False) -> Path:
        """Write a checkpoint; when this returns, it is on disk and `state` may be donated.

        Afterwards only the newest `keep` and the newest best stay. Checkpoints of later steps go as well: a run that
        went back to an earlier one has left them behind.

        Args:
            step: optimizer steps done, ≥ 0; a checkpoint of the same step is replaced.
            state: pytree of arrays that are not empty (JAX arrays of any type, PRNG keys, NumPy arrays).
            meta: plain values that JSON can hold.
            best: pin it, until a newer one is saved as best.

        Returns:
            The checkpoint's folder.

        Raises:
            CheckpointError: a leaf or a value cannot be stored, or writing failed (disk full, no permission); earlier
                checkpoints are as they were and nothing half-written is left.
        """
        record = {"step": step, "leaves": _describe(state, self.directory), "meta": dict(meta)}
        final = self._folder(step)
        unfinished = self.directory / f"{_UNFINISHED}{final.name}"
        try:
            text = json.dumps(record, indent=1)
            self.directory.mkdir(parents=True, exist_ok=True)
            self._remove_unfinished()
            unfinished.mkdir()
            self._orbax.save(unfinished / _STATE, args=ocp.args.StandardSave(state))
            (unfinished / _META).write_text(text, encoding="utf-8")
            if best:
                (unfinished / _BEST).touch()
            (unfinished / _SUMS).write_text(json.dumps(checksums(unfinished), indent=1), encoding="utf-8")
            flush(unfinished)
            if final.exists():
                # A folder cannot be replaced in one motion; should the power fail in between, the one before is used.
                final.rename(self.directory / f"{_UNFINISHED}replaced_{final.name}")
            unfinished.rename(final)
            flush_entry(self.directory)
        except Exception as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            reason = advice(error) if isinstance(error, OSError) or is_full(error) else str(error)
            raise CheckpointError(f"{final}: could not be written, earlier ones are intact ({reason})") from error
        self._remove_unfinished()
        self._prune(step)
        return final

    def restore(self, like: PyTree, *, best: bool = False) -> Restored | None:
        """Read the newest sound checkpoint.

        One with a missing, truncated or altered file is left aside with a `CheckpointWarning` that names it.

        Args:
            like: pytree of the saved structure with arrays or `jax.ShapeDtypeStruct`; says on which devices arrays go.
            best: read the newest one that was saved as best.

        Returns:
            Step, state and meta; None if there is no checkpoint.

        Raises:
            CheckpointError: none is sound; or the checkpoint's arrays have other names, shapes or types than `like`.
        """
        for leftover in self._unfinished():
            _warn(leftover, "is unfinished: its save was cut short")
        steps = [step for step in self.steps() if not best or (self._folder(step) / _BEST).exists()]
        for step in reversed(steps):
            folder = self._folder(step)
            try:
                record = _verified(folder)
            except _DamagedError as damage:
                _warn(folder, str(damage))
                continue
            _require_same(folder, record["leaves"], _describe(like, folder))
            try:
                state = self._orbax.restore(folder / _STATE, args=ocp.args.StandardRestore(like))
            except Exception as error:
                raise CheckpointError(f"{folder}: sound, but Orbax cannot read it: {error}") from error
            return Restored(step, state, record["meta"])
        if steps:
            raise CheckpointError(
                f"{self.directory}: all {len(steps)} checkpoints are damaged; remove the folder to start the run anew"
            )
        return None

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every array in the newest checkpoint, by its name in the tree, e.g. "best.coefficients".

        Raises:
            CheckpointError: there is no checkpoint, or its record cannot be read.
        """
        steps = self.steps()
        if not steps:
            raise CheckpointError(f"{self.directory}: no checkpoint there")
        record = self._folder(steps[-1]) / _META
        try:
            leaves = json.loads(record.read_text(encoding="utf-8"))["leaves"]
            return {name: tuple(leaf["shape"]) for name, leaf in leaves.items()}
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(f"{record}: cannot be read ({error}); remove that checkpoint") from error

    def _folder(self, step: int) -> Path:
        return self.directory / f"step_{step:08d}"

    def _unfinished(self) -> list[Path]:
        return sorted(self.directory.glob(f"{_UNFINISHED}*"))

    def _remove_unfinished(self) -> None:
        for leftover in self._unfinished():
            shutil.rmtree(leftover)

    def _prune(self, current: int) -> None:
        earlier = [step for step in self.steps() if step <= current]
        pinned = [step for step in earlier if (self._folder(step) / _BEST).exists()]
        kept = {*earlier[-self.keep :], *pinned[-1:]}
        for step in set(self.steps()) - kept:
            shutil.rmtree(self._folder(step))


def _describe(tree: PyTree, where: Path) -> dict[str, dict[str, Any]]:
    """Shape and type of each leaf, by its path in the tree."""
    leaves = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if not isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct):
            raise CheckpointError(f"{where}: {name} is a {type(leaf).__name__}; only arrays can be stored")
        if leaf.size == 0:
            raise CheckpointError(f"{where}: {name} has shape {leaf.shape}; empty arrays cannot be stored")
        leaves[name] = {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}
    return leaves


def _require_same(folder: Path, stored: dict[str, dict[str, Any]], wanted: dict[str, dict[str, Any]]) -> None:
    problems = [f"{name} is not in it" for name in wanted if name not in stored]
    problems += [f"{name} is in it, but not in this run" for name in stored if name not in wanted]
    problems += [
        f"{name} is {stored[name]['dtype']}{stored[name]['shape']} there, {leaf['dtype']}{leaf['shape']} in this run"
        for name, leaf in wanted.items()
        if name in stored and stored[name] != leaf
    ]
    if problems:
        raise CheckpointError(f"{folder}: comes from a run with other settings: {'; '.join(problems)}")


def _verified(folder: Path) -> dict[str, Any]:
    """The record in meta.json, after every file was compared with its checksum."""
    try:
        sums = json.loads((folder / _SUMS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _DamagedError(f"{_SUMS} cannot be read ({error})") from error
    if not isinstance(sums, dict) or _META not in sums:
        raise _DamagedError(f"{_SUMS} is no list of checksums")
    for name, wanted in sums.items():
        try:
            found = sha256(folder / name)
        except OSError as error:
            raise _DamagedError(f"{name} cannot be read ({error.strerror})") from error
        if found != wanted:
            raise _DamagedError(f"{name} differs from its checksum")
    record: dict[str, Any] = json.loads((folder / _META).read_text(encoding="utf-8"))
    return record


def _warn(folder: Path, problem: str) -> None:
    warnings.warn(f"checkpoint {folder} left aside: {problem}", CheckpointWarning, stacklevel=3)
