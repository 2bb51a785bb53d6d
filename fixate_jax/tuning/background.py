"""Checkpoints written in a thread, while the steps go on.

Orbax has an asynchronous checkpointer of its own. It makes its arrays' folder whole, and no more; ours is whole once
`meta.json` and the checksums are beside them, which can only be written afterwards. So the thread is around our save.
"""

import json
import warnings
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from fixate_jax.errors import CheckpointError
from fixate_jax.tuning.checkpoint import CheckpointStore, CheckpointWarning


def snapshot(state: PyTree) -> PyTree:
    """A copy on the host, which stays as it is when the arrays on the device are donated to the next step."""

    def copy(leaf: Any) -> Any:
        # Typed PRNG keys have no NumPy form.
        return jnp.copy(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else np.array(leaf)

    # On a CPU what device_get gives may share the device's memory, so it is copied once more.
    return jax.tree.map(copy, jax.device_get(state))


class BackgroundSaver:
    """Writes a store's checkpoints one after the other in a thread; leaving its context waits for the last one.

    Args:
        store: where they go.
    """

    def __init__(self, store: CheckpointStore) -> None:
        self.store = store
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[Path] | None = None

    def save(self, step: int, state: PyTree, meta: Mapping[str, Any]) -> None:
        """Begin to write a checkpoint, once the one before is on disk.

        Args:
            step: optimizer steps done.
            state: from `snapshot`, or anything else that nobody changes.
            meta: plain values that JSON can hold; taken as they are now.

        Raises:
            CheckpointError: the one before could not be written, see :meth:`CheckpointStore.save`.
        """
        self.wait()
        try:
            now = json.loads(json.dumps(dict(meta)))
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{self.store.directory}: step {step} could not be written ({error})") from error
        self._pending = self._pool.submit(self.store.save, step, state, now)

    def wait(self) -> None:
        """Return when the last checkpoint is on disk.

        Raises:
            CheckpointError: it could not be written.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def __enter__(self) -> "BackgroundSaver":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.wait()
        except CheckpointError as lost:
            if error is None:
                raise
            # The error that ended the run is the one to report.
            warnings.warn(str(lost), CheckpointWarning, stacklevel=2)
        finally:
            self._pool.shutdown()
