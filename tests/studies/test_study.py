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
from fixate_jax.settings import dump_config
from fixate_jax.studies import forecast, report
from fixate_jax.studies.forecast import Work, makespan
from fixate_jax.studies.matrix import Study
from fixate_jax.studies.run import run_study
from fixate_jax.studies.sweep import variants_of
from fixate_jax.tuning import cells
from tests import environment
from tests.studies.small import preset, study

OVER = "objective.attention_weight=0.5,2"


def finish(made: Study) -> None:
    for group in made.groups():
        for cell in group:
            cells.claim_run(cell.folder, cell.config)
        cells.run_group(group, made.out)


def tables(made: Study) -> tuple[pd.DataFrame, pd.DataFrame]:
    found = report.read(made)
    return report.measures_table(made, found), report.tests_table(made, found)


def measured(made: Study) -> list[Path]:
    return [cell.measures for group in made.groups() for cell in group if cell.measures.exists()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The study that nothing happens to."""
    folder = tmp_path_factory.mktemp("whole")
    made = study(folder, folder / "out")
    finish(made)
    return made


def test_killed_and_given_again_it_ends_with_the_same_tables(whole: Study, tmp_path: Path) -> None:
    folder = whole.out.parent
    settings, out = tmp_path / "preset.yaml", tmp_path / "out"
    settings.write_text(dump_config(preset(folder)))
    command = [sys.executable, "-m", "fixate_jax.cli", "sweep", str(settings), "--out", str(out), "--over", OVER]
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
    workers = [int(path.stem.removeprefix("worker-")) for path in out.glob("worker-*.log")]
    assert workers
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(alive, workers)), "a worker outlived the command"
    before = {path: path.stat().st_mtime_ns for path in measured(made)}
    assert len(before) == 1
    finish(made)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    for ours, expected in zip(tables(made), tables(whole), strict=True):
        pd.testing.assert_frame_equal(ours, expected, check_exact=True)


def test_cells_of_other_settings_or_of_another_split_are_not_taken(whole: Study) -> None:
    def run(made: Study) -> None:
        run_study(made, title="T", jobs=1)

    run(whole)  # All is done: tables alone.
    other = replace(whole.base, objective=replace(whole.base.objective, ntp_weight=0.125))
    with pytest.raises(ConfigError, match=r"cells.*was made with other settings \(objective.ntp_weight: .* 0.125 now"):
        run(replace(whole, base=other))
    with pytest.raises(ConfigError, match=r"seed-1.parquet was measured on validation, now test is asked for"):
        run(replace(whole, measured="test"))


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False


def test_a_trial_tells_what_a_cell_takes(whole: Study, tmp_path: Path) -> None:
    """In the same process, both warm: within a factor; the real check is a study's own line."""
    cell = whole.groups()[0][0]
    pace = forecast.pace_of(cell, tmp_path)
    assert pace.steps == len(pd.read_json(cell.folder / "seed-1" / "metrics.jsonl", lines=True)["loss"].dropna())
    assert pace.validations == 2 and pace.sessions == pd.read_parquet(cell.measures)["session_id"].nunique()
    assert min(pace.open, pace.step, pace.session, pace.beside) > 0
    assert list(tmp_path.glob("trial-*")) == [], "nothing of a trial is kept"
    twice = pace.cell(cell.config) - forecast.COMPILED_AGAIN * pace.compile
    assert twice == pytest.approx(pace.steps * pace.step + 2 * pace.validation + pace.sessions * pace.session)


def test_programs_that_differ_in_numbers_alone_are_tried_once(whole: Study) -> None:
    first, second = (group[0] for group in whole.groups())
    assert first.config != second.config and forecast._programs(first) == forecast._programs(second)
    sizes = variants_of(preset(whole.out.parent), {"prompt.basis": (1, 2), "prompt.tokens": (2, 3)})
    other = study(whole.out.parent, whole.out, sizes)
    assert len({forecast._programs(group[0]) for group in other.groups()}) == 3


def test_when_the_last_worker_is_done() -> None:
    works = [Work(seconds=s, open=1.0, workspaces=(w,)) for s, w in ((5.0, "a"), (3.0, "a"), (3.0, "a"), (1.0, "b"))]
    assert makespan(works, 1) == 12 + 2  # "a" is opened once, then "b".
    several = [Work(seconds=5.0, open=1.0, workspaces=tuple(w)) for w in ("abc", "cab", "a")]
    assert makespan(several, 1) == 15 + 3 + 2 + 1, "the last of a group is held"
    assert makespan(works, 2) == 8  # 6, then b; 4, then a: 7, and b: 8 or 9.
    assert makespan([], 2) == 0
