"""Progress bars with rate and time left, on stderr."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

T = TypeVar("T")
Track = Callable[[Sequence[Any], str], Iterator[Any]]
"""Wraps a sequence in a progress bar of that title."""
LINE_SECONDS = 60.0
"""Where no bar can be drawn, a line comes so often."""


def _console() -> Console:
    console = Console(stderr=True)
    if console.is_jupyter and find_spec("ipywidgets") is None:
        # There rich would warn at each bar that it cannot draw it: only its end is shown then.
        return Console(stderr=True, force_jupyter=False, force_terminal=False)
    return console


class RateColumn(ProgressColumn):
    """Items a second."""

    def render(self, task: Task) -> Text:
        """The rate, once there is one."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f}/s", style="cyan")


class _Bars(Progress):
    """Bars in a terminal; elsewhere, as in a file or a job's log, a line a minute."""

    def __init__(self, *columns: ProgressColumn) -> None:
        super().__init__(*columns, console=_console())
        self._lines = not (self.console.is_terminal or self.console.is_jupyter)
        self._told = time.monotonic()

    def update(self, task_id: TaskID, **fields: Any) -> None:
        """Note what has been done, and tell it if nothing was told for a minute."""
        super().update(task_id, **fields)
        if self._lines and time.monotonic() - self._told >= LINE_SECONDS:
            self._told = time.monotonic()
            task = self._tasks[task_id]
            left = "" if task.time_remaining is None else f", about {math.ceil(task.time_remaining / 60)} min left"
            line = f"{task.description}: {task.completed:,.0f} of {task.total or 0:,.0f}{left}"
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def bar(title: str, total: int, *, done: int = 0) -> Iterator[tuple[Progress, TaskID]]:
    """A bar to advance by hand: ``progress.update(task, advance=1, note="loss 0.3")``."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with _Bars(*columns) as progress:
        yield progress, progress.add_task(title, total=total, completed=done, note="")


def track(items: Sequence[T], title: str) -> Iterator[T]:
    """Iterate over a sequence under a bar."""
    with bar(title, len(items)) as (progress, task):
        for item in items:
            yield item
            progress.update(task, advance=1)


@contextmanager
def bytes_bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar over bytes; call what it gives with the number of bytes that were done."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with _Bars(*columns) as progress:
        task = progress.add_task(title, total=total)
        yield lambda done: progress.update(task, advance=done)


def silent(items: Sequence[Any], title: str) -> Iterator[Any]:
    """No progress bar."""
    del title
    return iter(items)
