"""A whole small study: killed and given again it ends with the same tables, and no finished cell is done again."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from fixate_jax.errors import ConfigError
from fixate_jax.lab.settings import dump_config
from fixate_jax.lab.studies.jobs import Workers
from fixate_jax.lab.studies.matrix import Study
from fixate_jax.lab.studies.run import run_study
from tests import environment
from tests.studies.small import finished_study, preset, study, tables

OVER = "objective.attention_weight=0.5,2"


def measured(made: Study) -> list[Path]:
    return [cell.measures for group in made.groups() for cell in group if cell.measures.exists()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The study that nothing happens to."""
    folder = tmp_path_factory.mktemp("whole")
    return finished_study(folder)


def test_killed_and_given_again_it_ends_with_the_same_tables(whole: Study, tmp_path: Path) -> None:
    folder = whole.out.parent
    settings, out = tmp_path / "preset.yaml", tmp_path / "out"
    settings.write_text(dump_config(preset(folder)))
    command = [
        sys.executable,
        "-m",
        "fixate_jax",
        "sweep",
        str(settings),
        "--out",
        str(out),
        "--over",
        OVER,
    ]
    command += ["--seeds", "1", "--jobs", "1"]
    # Its workers find there what was compiled for the study that nothing happens to.
    compiled = Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
    compiled.mkdir(parents=True, exist_ok=True)
    out.mkdir()
    (out / "compiled").symlink_to(compiled.resolve())
    env = environment.of_child()
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    made = study(folder, out)
    expected = [cell.measures for group in made.groups() for cell in group]
    deadline = time.monotonic() + 480
    while not any(path.exists() for path in expected) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the sweep ended before it could be killed"
    before = {path: path.stat().st_mtime_ns for path in measured(made)}
    assert len(before) == 1
    run_study(made, title="T", workers=Workers())
    assert {path: path.stat().st_mtime_ns for path in before} == before
    for ours, expected in zip(tables(made), tables(whole), strict=True):
        pd.testing.assert_frame_equal(ours, expected, check_exact=True)


def test_cells_of_other_settings_or_of_another_split_are_not_taken(whole: Study) -> None:
    def run(made: Study) -> None:
        run_study(made, title="T", workers=Workers())

    run(whole)  # All is done: tables alone.
    other = replace(whole.base, objective=replace(whole.base.objective, ntp_weight=0.125))
    with pytest.raises(ConfigError, match=r"cells.*was made with other settings \(objective.ntp_weight: .* 0.125 now"):
        run(replace(whole, base=other))
    with pytest.raises(ConfigError, match=r"seed-1.parquet was measured on validation, now test is asked for"):
        run(replace(whole, measured="test"))
