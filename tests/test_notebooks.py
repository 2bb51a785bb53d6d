"""The notebooks run from top to bottom, in the order of their numbers, and are kept without outputs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
SECONDS = 600
"""Far above what one takes (10 to 30), for machines that are busy with other tests."""


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]


def test_they_are_all_there() -> None:
    assert [path.stem[:2] for path in NOTEBOOKS] == [f"{i + 1:02d}" for i in range(len(NOTEBOOKS))]
    assert len(NOTEBOOKS) >= 4


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_kept_without_outputs(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)  # type: ignore[no-untyped-call]
    for cell in notebook.cells:
        assert not cell.get("outputs") and not cell.get("execution_count"), "strip the outputs: diffs stay readable"


@pytest.fixture(scope="module")
def kernel() -> Iterator[KernelManager]:
    """One for all: imports, and what is traced and compiled, are the most of what a notebook takes."""
    manager = KernelManager()
    manager.start_kernel()
    yield manager
    manager.shutdown_kernel(now=True)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path, kernel: KernelManager, tmp_path: Path) -> None:
    notebook = read(path)
    # Every notebook begins in an empty folder and without the names of the one before.
    begin = nbformat.v4.new_code_cell(f"%cd -q {tmp_path}\n%reset -f")  # type: ignore[no-untyped-call]
    notebook.cells.insert(0, begin)
    client = NotebookClient(notebook, km=kernel, timeout=SECONDS)
    client.execute()
    assert client.kc is not None
    client.kc.stop_channels()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in shown), "it shows a picture"
