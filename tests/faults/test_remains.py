"""What a failed or killed command leaves hinders nobody, and goes with the next one."""

import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

from fixate_jax.errors import ConfigError, DiskError
from fixate_jax.lab.experiments.experiment import CONFIG_FILE, absolute_paths, check_run, claim_run, run_experiment
from fixate_jax.lab.settings import load_config
from fixate_jax.runtime.durable import remove_leftovers, replacing, staging, staging_name, unfinished_name
from fixate_jax.runtime.lock import LOCK_FILE
from tests.faults.harness import in_memory


def test_a_run_that_failed_before_its_first_checkpoint_takes_the_corrected_settings(tmp_path: Path) -> None:
    good, run = absolute_paths(in_memory(tmp_path / "store")), tmp_path / "run"
    bad = replace(good, train=replace(good.train, mesh=(1, 1, 64)))
    with pytest.raises(ConfigError, match=r"train\.mesh = \(1, 1, 64\): 64 devices are needed"):
        run_experiment(bad, run)
    assert load_config(run / CONFIG_FILE) == bad
    claim_run(run, good)
    assert load_config(run / CONFIG_FILE) == good
    for made in ("seed-7/checkpoints/step_00000002/meta.json", "seed-7.parquet", "results-test.csv"):
        (run / made).parent.mkdir(parents=True, exist_ok=True)
        (run / made).touch()
        with pytest.raises(ConfigError, match=r"run was made with other settings \(train\.batch: 4 there, 8 now"):
            check_run(run, replace(good, train=replace(good.train, batch=8)))
        check_run(run, good)
        (run / made).unlink()
        if "step" in made:
            (run / made).parent.rmdir()


def test_a_run_that_was_killed_while_it_wrote_its_settings_can_be_given_again(tmp_path: Path) -> None:
    config = absolute_paths(in_memory(tmp_path / "store"))
    for name in (LOCK_FILE, unfinished_name(Path(CONFIG_FILE)).name):
        (tmp_path / name).write_text("half")
    claim_run(tmp_path, config)
    assert load_config(tmp_path / CONFIG_FILE) == config
    assert {path.name for path in tmp_path.iterdir()} == {LOCK_FILE, CONFIG_FILE}


def test_folders_of_dead_writers_go_and_those_of_others_stay(tmp_path: Path) -> None:
    program = """
        import os, signal, sys
        from pathlib import Path
        from fixate_jax.runtime.durable import staging
        with staging(Path(sys.argv[1])) as folder:
            (folder / "half").touch()
            os.kill(os.getpid(), signal.SIGKILL)
    """
    directory = tmp_path / "made"
    command = [sys.executable, "-c", textwrap.dedent(program), str(directory)]
    assert subprocess.run(command, cwd=Path(__file__).parents[2]).returncode == -signal.SIGKILL
    (dead,) = tmp_path.iterdir()
    alive = dead.with_name(staging_name(directory).name.replace(str(os.getpid()), str(os.getppid())))
    elsewhere, another = tmp_path / ".made.otherhost-1.unfinished", tmp_path / ".other.unfinished"
    for folder in (alive, elsewhere, another):
        folder.mkdir()
    with staging(directory) as mine:
        assert set(tmp_path.iterdir()) == {mine, alive, elsewhere, another}
    remove_leftovers(directory)
    assert set(tmp_path.iterdir()) == {alive, elsewhere, another}


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "made" / "table.csv"
    with replacing(path) as temporary:
        temporary.write_text("first")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("second")
        raise RuntimeError
    assert path.read_text() == "first" and list(path.parent.iterdir()) == [path]
    with pytest.raises(DiskError, match=r"letter: could not be written: .*; fix that and run the same command again"):
        (tmp_path / "file").touch()
        with replacing(tmp_path / "file" / "letter"):
            pass
