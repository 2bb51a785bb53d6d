"""The metrics log: JSON lines while a run goes on, a CSV when it is done, and nothing in it that a clock decides."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import pandas as pd

from fixate_jax.errors import CheckpointError
from fixate_jax.runtime import hosts
from fixate_jax.runtime.durable import write_text, writing

Row = Mapping[str, Any]
FLUSH_EVERY = 20


class MetricsLog:
    """Appends rows; values may still be on the device and are fetched some steps later, without stalling it.

    Of many processes the first one writes.
    """

    def __init__(self, path: Path, *, keep_lines: int = 0, check: Callable[[Row], None] | None = None):
        """Open the log.

        Args:
            path: the file.
            keep_lines: lines after these belong to steps that a resumed run takes again, and are dropped.
            check: called with each row before it is written; what it raises keeps that row and later ones out.

        Raises:
            CheckpointError: the file has fewer lines than are to be kept.
            DiskError: it cannot be written.
        """
        self.path, self.check, self.lines = path, check, keep_lines
        self._waiting: list[Row] = []
        hosts.by_first(self._drop_after, keep_lines)

    def _drop_after(self, keep_lines: int) -> None:
        path = self.path
        kept = path.read_text(encoding="utf-8").splitlines(keepends=True)[:keep_lines] if path.exists() else []
        if len(kept) < keep_lines:
            raise CheckpointError(
                f"{path}: {len(kept)} lines are left of the {keep_lines} that belong to the newest checkpoint; put the "
                "file back, or remove the checkpoints beside it to start anew"
            )
        write_text(path, "".join(kept))

    def add(self, row: Row) -> None:
        """Add a row; it reaches the disk with the next flush."""
        self._waiting.append(row)
        if len(self._waiting) >= FLUSH_EVERY:
            self.flush()

    def flush(self) -> None:
        """Write the waiting rows.

        Raises:
            DiskError: they cannot be written.
        """
        rows = jax.device_get(self._waiting)
        rows = [{k: v if isinstance(v, int | str) else float(v) for k, v in row.items()} for row in rows]
        self._waiting.clear()
        sound = 0
        try:
            for row in rows:
                if self.check is not None:
                    self.check(row)
                sound += 1
        finally:
            hosts.by_first(self._append, rows[:sound])
            self.lines += sound

    def _append(self, rows: list[dict[str, Any]]) -> None:
        with writing(self.path), self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
            file.flush()
            os.fsync(file.fileno())

    def frame(self) -> pd.DataFrame:
        """All rows so far; of many processes, all have to ask."""
        self.flush()
        hosts.barrier()
        return pd.DataFrame([json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()])

    def write_csv(self) -> Path:
        """The log as a CSV beside it."""
        path = self.path.with_suffix(".csv")
        text = self.frame().to_csv(index=False)
        hosts.by_first(write_text, path, text)
        hosts.barrier()
        return path
