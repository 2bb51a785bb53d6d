"""The job of `fixate ablate` and `fixate sweep`: forecast, cells, tables, page."""

import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from fixate_jax.durable import write_text
from fixate_jax.errors import CheckpointError
from fixate_jax.lock import locked
from fixate_jax.studies.forecast import forecast
from fixate_jax.studies.matrix import Study
from fixate_jax.studies.provenance import provenance
from fixate_jax.studies.report import check_marks, write_report
from fixate_jax.tuning.cells import check_cells, run_cells

HISTORY = "study.json"


def run_study(
    study: Study, *, title: str, jobs: int, page: Path | None = None, only_forecast: bool = False
) -> Path | None:
    """Forecast, tune and measure what is not on disk yet, then write tables, figure and page.

    Given again after a stop at any moment it ends with the same tables; a cell that is done is not done again.

    Args:
        study: the cells.
        title: of bar and figure.
        jobs: worker processes.
        page: see :func:`fixate_jax.studies.report.write_report`.
        only_forecast: say how long it will take, and stop.

    Returns:
        The page's text as a file; None where only the forecast was asked for.

    Raises:
        FixateError: naming what is wrong with settings, data, page or a folder.
    """
    if page is not None:
        check_marks(page, study.out.name)  # Before the work, not after it.
    study.out.mkdir(parents=True, exist_ok=True)
    with locked(study.out):
        history = _history(study.out)
        groups = study.groups()
        check_cells([cell for group in groups for cell in group])
        if all(cell.measures.exists() for group in groups for cell in group):
            Console().print(f"all {sum(map(len, groups))} cells are done")
            return None if only_forecast else write_report(study, title=title, facts=history, page=page)
        ahead = forecast(groups, out=study.out, jobs=jobs)
        write_text(study.out / "forecast.json", json.dumps(ahead, indent=1))
        minutes = ahead["seconds"] / 60
        Console().print(
            f"{ahead['open']} of {ahead['cells']} cells to do: about {minutes:.0f} minutes with {jobs} workers "
            f"(found out in {ahead['trials']:.0f} s)"
        )
        if only_forecast:
            return None
        begun, facts = time.perf_counter(), provenance()
        _note(study.out, [*history, facts | {"outcome": "not finished"}])
        run_cells(groups, out=study.out, jobs=jobs, title=title)
        took = time.perf_counter() - begun
        outcome = f"{ahead['open']} cells in {took / 60:.1f} min, {minutes:.1f} foreseen"
        history = [*history, facts | {"outcome": outcome, "seconds": round(took, 1), "foreseen": ahead["seconds"]}]
        _note(study.out, history)
        return write_report(study, title=title, facts=history, page=page)


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
