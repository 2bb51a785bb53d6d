"""The job of `fixate ablate` and `fixate sweep`: cells, tables, page."""

import json
import time
from pathlib import Path
from typing import Any

from fixate_jax.errors import CheckpointError
from fixate_jax.lab.experiments.cells import check_cells, run_cells
from fixate_jax.lab.studies.jobs import Workers
from fixate_jax.lab.studies.matrix import Study
from fixate_jax.lab.studies.provenance import provenance
from fixate_jax.lab.studies.report import write_report
from fixate_jax.lab.text import say
from fixate_jax.runtime.durable import write_text
from fixate_jax.runtime.lock import locked

HISTORY = "study.json"


def run_study(study: Study, *, title: str, workers: Workers) -> Path:
    """Tune and measure what is not on disk yet, then write tables, figure and page.

    Run again after a stop at any moment it ends with the same tables; a cell that is done is not done again.

    Args:
        study: the cells.
        title: of bar and figure.
        workers: who does it.

    Returns:
        The page.

    Raises:
        FixateError: naming what is wrong with settings, data or a folder.
    """
    study.out.mkdir(parents=True, exist_ok=True)
    with locked(study.out):
        history, groups = _history(study.out), study.groups()
        check_cells([cell for group in groups for cell in group])
        todo = sum(not cell.measures.exists() for group in groups for cell in group)
        say(f"{todo} of {sum(map(len, groups))} cells to do")
        if todo:
            begun, facts = time.perf_counter(), provenance()
            _note(study.out, [*history, facts | {"outcome": "not finished"}])
            run_cells(groups, out=study.out, workers=workers, title=title)
            took = time.perf_counter() - begun
            outcome = f"{todo} cells in {took / 60:.1f} min"
            history = [*history, facts | {"outcome": outcome, "seconds": round(took, 1)}]
            _note(study.out, history)
        return write_report(study, title=title, facts=history)


def _history(out: Path) -> list[dict[str, Any]]:
    path = out / HISTORY
    if not path.exists():
        return []
    try:
        found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: no valid JSON ({error}); remove the file, the cells stay") from error
    return found


def _note(out: Path, facts: list[dict[str, Any]]) -> None:
    write_text(out / HISTORY, json.dumps(facts, indent=1))
