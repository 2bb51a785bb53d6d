"""One run in a directory at a time; a dead one holds nothing."""

import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fixate_jax.errors import ConfigError
from fixate_jax.lab.cli import commands as cli
from fixate_jax.lab.experiments import cells
from fixate_jax.lab.settings import dump_config
from fixate_jax.lab.studies.jobs import Workers
from fixate_jax.runtime.lock import LOCK_FILE, locked
from tests.faults.harness import settings


@contextmanager
def held(directory: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process that has the directory."""
    program = """
        import sys, time
        from pathlib import Path
        from fixate_jax.runtime.lock import locked
        with locked(Path(sys.argv[1])):
            print("held", flush=True)
            time.sleep(600)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_the_second_ends_at_once_until_the_first_is_dead(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    with held(directory) as process:
        with pytest.raises(ConfigError, match=f"{directory} is in use by another run; wait"), locked(directory):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (directory / LOCK_FILE).exists()
        with locked(directory):
            pass
    assert not directory.exists(), "an empty directory is not left behind"


def test_what_is_in_the_directory_stays(tmp_path: Path) -> None:
    (tmp_path / "result").touch()
    with locked(tmp_path):
        assert (tmp_path / LOCK_FILE).exists()
    assert [path.name for path in tmp_path.iterdir()] == ["result"]
    with pytest.raises(RuntimeError), locked(tmp_path):
        raise RuntimeError
    with locked(tmp_path):
        pass


@pytest.mark.parametrize("command", ["train", "evaluate", "pretrain-tiny"])
def test_commands_that_write_a_run_take_the_lock(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "preset.yaml").write_text(dump_config(settings()))
    arguments = {
        "train": ["train", "preset.yaml", "--run", "run"],
        "evaluate": ["evaluate", "run"],
        "pretrain-tiny": ["pretrain-tiny", "--run", "run"],
    }[command]
    with locked(tmp_path / "run"):
        with pytest.raises(SystemExit, match="2"):
            cli.main(arguments)
        assert "run is in use by another run" in capsys.readouterr().err
        assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK_FILE]
    assert not (tmp_path / "stores").exists(), "nothing was prepared"


def test_many_runs_for_one_table_hold_their_folders(tmp_path: Path) -> None:
    cell = cells.Cell(folder=tmp_path / "cell", config=settings(), seed=7)
    with locked(cell.folder), pytest.raises(ConfigError, match="cell is in use by another run"):
        cells.run_cells([[cell]], out=tmp_path, workers=Workers(), title="")
    assert list(tmp_path.iterdir()) == []
