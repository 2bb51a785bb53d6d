"""Work spread over processes of this machine, or over the workers of a Dask cluster."""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
from joblib import Parallel, delayed, parallel_config
from joblib.externals.loky.process_executor import TerminatedWorkerError

from fixate_jax.errors import ConfigError, FixateError

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Who does the work.

    Attributes:
        jobs: processes of this machine, each with its share of the cores; 1: this process.
        cluster: address of a Dask scheduler, such as tcp://host:8786, whose workers do it instead. They need this
            package, and the same files under the same paths.

    Raises:
        ConfigError: fewer than one process.
    """

    jobs: int = 1
    cluster: str | None = None

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise ConfigError(f"--jobs {self.jobs}: at least 1 is needed")

    @property
    def elsewhere(self) -> bool:
        """Whether other processes do the work."""
        return self.cluster is not None or self.jobs > 1


class Host(NamedTuple):
    """The process whose work is spread over its own machine, and the threads that each worker may take."""

    parent: int
    threads: int


def spread(work: Callable[[T], None], items: Sequence[T], *, workers: Workers, out: Path) -> Iterator[None]:
    """Do something with each item; yields each time that one is done, in any order.

    Args:
        work: a function of a module, or a partial of one.
        items: what to do it with.
        workers: who does it.
        out: where compiled programs, and the output of processes of this machine, go.

    Raises:
        ConfigError: there is no such cluster.
        FixateError: a process died, or what the work raises.
    """
    if not workers.elsewhere:
        for item in items:
            work(item)
            yield
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    host = None if workers.cluster else Host(parent=os.getpid(), threads=max(1, cores // workers.jobs))
    try:
        yield from _parallel(workers)(delayed(_work)(work, item, out.absolute(), host) for item in items)
    except TerminatedWorkerError as error:
        raise FixateError(
            f"a worker process died, see {out}/worker-*.log; where memory ran out, fewer --jobs need less. What is "
            "done is kept: run the same command again to resume"
        ) from error


def _parallel(workers: Workers) -> Any:
    how: dict[str, Any] = {"n_jobs": workers.jobs, "return_as": "generator_unordered", "batch_size": 1}
    if workers.cluster is None:
        return Parallel(backend="loky", **how)
    try:
        from distributed import Client
    except ModuleNotFoundError as error:
        raise ConfigError('--cluster needs the package distributed: pip install ".[cluster]"') from error
    try:
        client = Client(workers.cluster)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--cluster {workers.cluster}: no scheduler answers there ({error})") from error
    with parallel_config(backend="dask", client=client):
        return Parallel(**how | {"n_jobs": -1})


def _work(work: Callable[[T], None], item: T, out: Path, host: Host | None) -> None:
    """In a worker."""
    _settle(out, host)
    work(item)


@cache
def _settle(out: Path, host: Host | None) -> None:
    """Keep compiled programs; on the machine of the command also leave it the terminal, and end when it has ended."""
    jax.config.update("jax_compilation_cache_dir", str(out / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    if host is None:
        return
    os.environ["NPROC"] = str(host.threads)  # Of XLA, which has not started yet.
    log = os.open(out / f"worker-{os.getpid()}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    threading.Thread(target=_leave_with, args=(host.parent,), daemon=True).start()


def _leave_with(parent: int) -> None:
    """End this process when the command was killed: whoever runs it again finds nobody at work."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
