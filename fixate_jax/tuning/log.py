"""The metrics log: JSON lines while a run goes on, a CSV when it is done, and nothing in it that a clock decides."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import pandas as pd

from fixate_jax import hosts

FLUSH_EVERY = 20


class MetricsLog:
    """Appends rows; values may still be on the device and are fetched some steps later, without stalling it.

    Of many processes the first one writes.
    """

    def __init__(self, path: Path, *, keep_lines: int = 0):
        """Open the log; lines after ``keep_lines`` belong to steps that a resumed run takes again and are dropped."""
        self.path = path
        self.lines = keep_lines
        self._waiting: list[Mapping[str, Any]] = []
        hosts.by_first(self._drop_after, keep_lines)

    def _drop_after(self, keep_lines: int) -> None:
        path = self.path
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = path.read_text(encoding="utf-8").splitlines(keepends=True)[:keep_lines] if path.exists() else []
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(kept), encoding="utf-8")
        os.replace(temporary, path)
        self.lines = len(kept)

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a row; it reaches the disk with the next flush."""
        self._waiting.append(row)
        if len(self._waiting) >= FLUSH_EVERY:
            self.flush()

    def flush(self) -> None:
        """Write the waiting rows."""
        rows = jax.device_get(self._waiting)
        hosts.by_first(self._append, rows)
        self.lines += len(rows)
        self._waiting.clear()

    def _append(self, rows: list[Mapping[str, Any]]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            for row in rows:
                plain = {k: v if isinstance(v, int | str) else float(v) for k, v in row.items()}
                file.write(json.dumps(plain) + "\n")
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
        temporary = path.with_suffix(".csv.tmp")
        frame = self.frame()
        if hosts.first():
            frame.to_csv(temporary, index=False)
            os.replace(temporary, path)
        hosts.barrier()
        return path
