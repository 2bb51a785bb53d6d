"""Many processes as one: finding each other, waiting for each other, and who writes.

Every process runs the same program on devices of its own, and all of them take every jitted step together. What one of
them alone may do, such as writing into the run directory, is done by the first. The run directory, the session store
and the backbone are on a file system that all processes see.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import count
from pathlib import Path
from typing import ParamSpec, TypeVar

import jax
import numpy as np
from jaxtyping import PyTree

from fixate_jax.errors import ConfigError
from fixate_jax.runtime.lock import locked

COORDINATOR, PROCESSES, PROCESS = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
"""Environment variables that say where the first process listens (host:port), how many there are, and which this is."""
PATIENCE_S = 4 * 3600
"""How long a process waits for the others: the first may be drawing the pages of a large data set."""

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
_barriers = count()


def wanted() -> bool:
    """Whether the environment is that of one process among many: ours, a SLURM step's or a TPU pod's."""
    if COORDINATOR in os.environ:
        return True
    slurm = "SLURM_STEP_NODELIST" in os.environ and int(os.environ.get("SLURM_NTASKS", "1")) > 1
    return slurm or "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")


def start(distributed: bool = False) -> None:
    """Find the other processes; called once, before anything else touches a device.

    Args:
        distributed: look for them even where the environment does not say that there are any.

    Raises:
        ConfigError: when they cannot be found.
    """
    if not (distributed or wanted()) or jax.distributed.is_initialized():
        return
    given = {name: os.environ.get(name) for name in (PROCESSES, PROCESS)}
    try:
        numbers = {name: None if text is None else int(text) for name, text in given.items()}
        jax.distributed.initialize(num_processes=numbers[PROCESSES], process_id=numbers[PROCESS])
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"--distributed: no other processes found ({error}); start it with srun or on a TPU pod, or set "
            f"{COORDINATOR} (host:port of the first process), {PROCESSES} and {PROCESS} for each process"
        ) from error


def first() -> bool:
    """Whether this is the process that writes."""
    return jax.process_index() == 0


def barrier() -> None:
    """Wait until every process is here."""
    if jax.process_count() == 1:
        return
    # Imported here: most runs have one process. It waits without occupying the devices, whose own waits are short.
    from orbax.checkpoint import multihost

    everybody = set(range(jax.process_count()))
    multihost.get_barrier_sync_fn(processes=everybody)(key=f"fixate_{next(_barriers)}", timeout_ms=PATIENCE_S * 1000)


@contextmanager
def first_alone() -> Iterator[None]:
    """The first process runs the block alone, then the others do, and find what it made; no jitted steps in here."""
    if not first():
        barrier()
    try:
        yield
    finally:
        if first():
            barrier()


def by_first(function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result | None:
    """Call a function that writes on the first process; the others get None and do not wait."""
    return function(*args, **kwargs) if first() else None


def locked_by_first(directory: Path) -> AbstractContextManager[None]:
    """Keep other runs out of a directory that the first process writes to, see `fixate_jax.runtime.lock`."""
    return locked(directory) if first() else nullcontext()


def anywhere(flag: bool, after: PyTree = ()) -> bool:
    """Whether a flag is up on any process; all of them have to ask.

    Args:
        flag: this process's.
        after: what is being computed, which is waited for: on a CPU two programs whose devices wait for each other can
            run at the same time, and then none may end.
    """
    if jax.process_count() == 1:
        return flag
    from jax.experimental import multihost_utils

    jax.block_until_ready(after)
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def local(tree: PyTree) -> PyTree:
    """Arrays that every device has whole as one process can use them, or save them, by itself."""
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(lambda x: np.asarray(x.addressable_data(0) if isinstance(x, jax.Array) else x), tree)
