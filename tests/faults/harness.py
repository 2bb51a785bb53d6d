"""`fixate train` in a process of its own, killed wherever chance has it, and what it leaves behind."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import jax
import numpy as np

from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.backbones.tiny.sizes import TinySizes
from fixate_jax.data.options import DataConfig
from fixate_jax.lab.config import (
    ObjectiveConfig,
    OperatorConfig,
    OptimizerConfig,
    PromptConfig,
    RunConfig,
    TrainConfig,
)
from fixate_jax.lab.experiments.experiment import seed_directory
from fixate_jax.lab.experiments.loop import start_state
from fixate_jax.lab.settings import dump_config
from fixate_jax.pipeline.kept import CacheConfig
from fixate_jax.tuning.checkpoint import CheckpointStore

SEED = 7
ENDED = 0
PAUSE = 0.003
"""Seconds between two looks at the files."""
STOPPED = 130
"""Exit status after SIGTERM."""


def settings() -> RunConfig:
    """Two made-up people on the random backbone, page features on disk; a few seconds."""
    return RunConfig(
        data=DataConfig(name="synthetic_choice", page_width=64, max_users=2, train_sessions=24),
        backbone=BackboneConfig(path="tiny-random", tapped_layers=2),
        prompt=PromptConfig(basis=2, tokens=2, init_scale=0.3),
        operator=OperatorConfig(name="attention"),
        objective=ObjectiveConfig(alignment="kl", warmup=3),
        optimizer=OptimizerConfig(basis_lr=0.05, user_lr=0.05),
        train=TrainConfig(
            seeds=(SEED,),
            epochs=2,
            batch=4,
            accumulate=2,
            eval_batch=18,
            validate_every=1,
            checkpoint_every=2,
            keep_checkpoints=2,
            ntp_baseline=False,
            swap_control=False,
            pictures=0,
            report_sessions=0,
        ),
        cache=CacheConfig(device_bytes=0, host_bytes=0),
    )


def in_memory(store: Path) -> RunConfig:
    """The same run with its store elsewhere and page features in memory."""
    config = settings()
    return replace(config, data=replace(config.data, store=store), cache=CacheConfig())


@dataclass
class Place:
    """Folders of one run: where it is started, with its store and run directory below, and its temporary files.

    Attributes:
        root: of both.
        log: file of what the commands say (None: below the root).
        history: what was done to it, for messages.
    """

    root: Path
    log: Path | None = None
    history: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.work.mkdir(parents=True)
        self.temporary.mkdir()
        (self.work / "preset.yaml").write_text(dump_config(settings()))

    @property
    def work(self) -> Path:
        return self.root / "work"

    @property
    def temporary(self) -> Path:
        return self.root / "tmp"

    @property
    def run(self) -> Path:
        return self.work / "run"

    def start(self, *flags: str) -> "subprocess.Popen[bytes]":
        """The command, its messages kept in a file."""
        command = [sys.executable, "-m", "fixate_jax", "train", "preset.yaml", "--run", "run", *flags]
        env = os.environ | {"JAX_PLATFORMS": "cpu", "TMPDIR": str(self.temporary)}
        env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        with (self.log or self.root / "messages.txt").open("ab") as messages:
            return subprocess.Popen(command, cwd=self.work, env=env, stdout=messages, stderr=messages)

    def finish(self, *flags: str) -> None:
        """Let the command come to its end."""
        status = self.start(*flags).wait(timeout=600)
        assert status == ENDED, f"exit status {status} after {self.history}:\n{self.messages()}"

    def messages(self) -> str:
        """What the commands said, without the bars."""
        lines = (self.log or self.root / "messages.txt").read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(line for line in lines if "━" not in line)[-6000:]

    def kill_after(self, seconds: float, how: signal.Signals) -> bool:
        """Start the command and send it a signal; False if it came to its end before."""
        process = self.start()
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(how)
        return self._killed(process, f"{how.name} after {seconds:.2f} s", how)

    def kill_at_change(self, count: int, how: signal.Signals) -> bool:
        """The same when so many changes to files were seen: right where something is written."""
        process = self.start()
        self._changes(process, count)
        process.send_signal(how)
        return self._killed(process, f"{how.name} at change {count} of files", how)

    def finish_watched(self) -> tuple[float, int]:
        """Let the command come to its end; returns seconds, and how many changes to files were seen."""
        begin, process = time.monotonic(), self.start()
        changes = self._changes(process, None)
        assert process.wait() == ENDED, self.messages()
        return time.monotonic() - begin, changes

    def _changes(self, process: "subprocess.Popen[bytes]", most: int | None) -> int:
        """Watch files until so many changes were seen, or the process ends."""
        seen, before = 0, self.snapshot()
        while process.poll() is None and seen != most:
            time.sleep(PAUSE)
            now = self.snapshot()
            seen += now != before
            before = now
        return seen

    def _killed(self, process: "subprocess.Popen[bytes]", what: str, how: signal.Signals) -> bool:
        status = process.wait(timeout=600)
        self.history.append(f"{what}: exit status {status}")
        # SIGTERM is waited for by the steps alone; at any other time it ends the process like any other.
        expected = {-signal.SIGKILL} if how == signal.SIGKILL else {STOPPED, -signal.SIGTERM}
        assert status in {ENDED, *expected}, f"{self.history}\n{self.messages()}"
        return status != ENDED

    def snapshot(self) -> frozenset[tuple[str, int]]:
        """Names and sizes of all files."""
        found = []
        for folder, _, names in os.walk(self.root):
            for name in names:
                path = os.path.join(folder, name)
                try:
                    found.append((path, os.stat(path).st_size))
                except FileNotFoundError:
                    continue
        return frozenset(entry for entry in found if not entry[0].endswith("messages.txt"))

    def files(self) -> set[str]:
        """Paths of everything that the run left, but for checkpoints, of which a stopped run keeps other ones."""
        paths = [*self.work.rglob("*"), *self.temporary.rglob("*")]
        names = {path.relative_to(self.root).as_posix() for path in paths}
        return {name for name in names if "/checkpoints/step_" not in name and "torchinductor" not in name}


def assert_same(place: Place, whole: Place) -> None:
    """Final parameters, metrics, predictions and tables are those of the run that nobody disturbed, bit by bit."""
    told = f"{place.history}\n{place.messages()}"
    assert place.files() == whole.files(), told
    directory = seed_directory(whole.run, SEED)
    compared = [*whole.run.glob("*.csv"), *(p for p in directory.iterdir() if p.is_file())]
    assert len(compared) == 7, compared
    for path in [*compared, *whole.work.glob("stores/*/*.parquet"), *whole.run.glob("features/*")]:
        mine = place.root / path.relative_to(whole.root)
        assert mine.read_bytes() == path.read_bytes(), f"{mine} differs\n{told}"
    for ours, theirs in zip(final_arrays(place), final_arrays(whole), strict=True):
        np.testing.assert_array_equal(ours, theirs, err_msg=told)


def final_arrays(place: Place) -> list[np.ndarray]:
    """Prompts, the best ones and the optimizer's state."""
    state = start_state(settings(), users=2, width=TinySizes().width, seed=SEED)
    store = CheckpointStore(seed_directory(place.run, SEED) / "checkpoints")
    restored = store.restore({"state": state, "best": state.prompt})
    assert restored is not None and restored.meta["finished"]
    return [np.asarray(leaf) for leaf in jax.tree.leaves(restored.state)]
