"""One run in a directory at a time: the second names the first, and a dead one holds nothing."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fixate_jax import cli
from fixate_jax.errors import ConfigError
from fixate_jax.lock import LOCK_FILE, LockWarning, locked
from fixate_jax.settings import dump_config
from fixate_jax.tuning import cells
from tests.faults.harness import settings


@contextmanager
def held(directory: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process that has the directory."""
    program = """
        import sys, time
        from pathlib import Path
        from fixate_jax.lock import locked
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


def test_the_second_ends_at_once_and_names_the_first_until_that_is_dead(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    with held(directory) as process:
        with pytest.raises(ConfigError) as caught, locked(directory):
            pass
        for part in (str(directory), "in use", f"process {process.pid} on {socket.gethostname()}, since 20"):
            assert part in str(caught.value)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (directory / LOCK_FILE).exists()
        with locked(directory):
            assert str(os.getpid()) in (directory / LOCK_FILE).read_text()
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


def test_a_file_that_its_holder_removed_meanwhile_is_not_taken_for_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening the file and locking it, the one before may remove it, and somebody else make a new one."""
    flock = fcntl.flock
    tries: list[int] = []

    def late(descriptor: int, how: int) -> None:
        if not tries:
            (tmp_path / LOCK_FILE).unlink()
        tries.append(descriptor)
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with locked(tmp_path):
        assert len(tries) == 2
        monkeypatch.undo()
        with pytest.raises(ConfigError, match="in use"), locked(tmp_path):
            pass


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    told = "cannot be locked .*: see to it that no other run writes there"
    with pytest.warns(LockWarning, match=told), locked(tmp_path):
        (tmp_path / "result").touch()


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
        assert f"run is in use by another run: process {os.getpid()}" in capsys.readouterr().err
        assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK_FILE]
    assert not (tmp_path / "stores").exists(), "nothing was prepared"


def test_many_runs_for_one_table_hold_their_folders(tmp_path: Path) -> None:
    cell = cells.Cell(folder=tmp_path / "cell", config=settings(), seed=7)
    with locked(cell.folder), pytest.raises(ConfigError, match="cell is in use by another run"):
        cells.run_cells([[cell]], out=tmp_path, jobs=1, title="")
    assert list(tmp_path.iterdir()) == []
