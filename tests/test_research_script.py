"""What a researcher writes with the library, from public names alone, runs as it stands."""

import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".." / "shared" / "acceptance" / "research_script.py"


@pytest.mark.slow
def test_all_parts_run(capsys: pytest.CaptureFixture[str]) -> None:
    if not SCRIPT.is_file():
        pytest.skip(f"the script is not here ({SCRIPT} is no file)")
    runpy.run_path(str(SCRIPT))
    assert capsys.readouterr().out.splitlines()[-1] == "all parts ran"
