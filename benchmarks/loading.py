"""Loading a checkpoint of about 1 GB: seconds and memory beside transformers, each load in a process of its own.

python -m benchmarks.loading              about 4 minutes on 2 cores
python -m benchmarks.loading --rounds 1   a quick look
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from rich.console import Console
from rich.table import Table

from fixate_jax.backbones import load_backbone
from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.backbones.tiny.random import TinySizes, tensor_shapes, write_model
from fixate_jax.runtime.progress import track

SIZES = TinySizes(vocab=151_936, width=1024, ff=3072, layers=28, heads=16, kv_heads=8, head_dim=128)
"""The decoder of Qwen3-0.6B: 1.2 GB in bfloat16."""
SAFETENSORS, TRANSFORMERS = "safetensors", "transformers"
SLACK = 128 * 10**6
"""Bytes that loading may take beside what is placed and 1.3 times the largest parameter."""


def write_checkpoint(directory: Path, sizes: TinySizes, *, seed: int = 0) -> Path:
    """Write a random checkpoint in bfloat16, without ever holding it in float32."""
    rng = np.random.default_rng(seed)

    def tensor(shape: tuple[int, ...]) -> np.ndarray:
        values = rng.standard_normal(shape, dtype=np.float32) * np.float32(0.02)
        return (values + np.float32(len(shape) == 1)).astype(ml_dtypes.bfloat16)

    tensors = {name: tensor(shape) for name, shape in tensor_shapes(sizes).items()}
    return write_model(directory, replace(sizes, dtype="bfloat16"), tensors)


def anonymous_memory() -> int:
    """Bytes of this process that are no pages of a file (Linux)."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("RssAnon:")[1].split()[0]) * 1024


class PeakMemory:
    """Samples anonymous memory every millisecond; use as a context manager."""

    def __enter__(self) -> "PeakMemory":
        self.baseline = self.peak = anonymous_memory()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(1e-3):
            self.peak = max(self.peak, anonymous_memory())

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        self._thread.join()


def load_ours(directory: Path) -> list[Any]:
    """Our parameters."""
    settings = BackboneConfig(path=str(directory), dtype="bfloat16")
    return jax.tree.leaves(jax.block_until_ready(load_backbone(settings).params))


def load_theirs(directory: Path) -> list[Any]:
    """Those of transformers' model."""
    import torch
    from transformers import Qwen3VLForConditionalGeneration

    model = Qwen3VLForConditionalGeneration.from_pretrained(directory, dtype=torch.bfloat16)
    # What is only mapped into memory is not loaded yet.
    return [parameter.detach().clone() for parameter in model.parameters()]


def load_alone(how: str, directory: Path) -> None:
    """The process that :func:`measure` starts."""
    load = load_theirs if how == TRANSFORMERS else load_ours
    with tempfile.TemporaryDirectory() as folder:
        # Imports and first calls are paid for before.
        warm = write_checkpoint(Path(folder) / "warm", TinySizes())
        load(warm)
    for file in directory.rglob("*"):
        if file.is_file():
            with file.open("rb") as content:
                while content.read(2**24):
                    pass  # Now it is in the system's cache.
    with PeakMemory() as memory:
        start, busy = time.perf_counter(), time.process_time()
        placed = load(directory)
        seconds = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - busy}
    sizes = [int(x.nbytes) for x in placed]
    found = {"baseline": memory.baseline, "peak": memory.peak, "placed": sum(sizes), "largest": max(sizes)}
    print(json.dumps(seconds | found))


def measure(how: str, directory: Path) -> dict[str, float]:
    """Load in a fresh process.

    Returns:
        ``seconds`` on the clock and ``cpu_seconds`` of all threads; and in bytes the ``baseline`` and ``peak`` of
        anonymous memory, what is ``placed`` in all, and the ``largest`` parameter.
    """
    command = [sys.executable, "-m", "benchmarks.loading", "--one", how, "--directory", str(directory)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, float] = json.loads(out.splitlines()[-1])
    return found


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        load_alone(arguments.one, arguments.directory)
        return
    with tempfile.TemporaryDirectory() as folder:
        model = write_checkpoint(Path(folder) / "model", SIZES)
        cases = {SAFETENSORS: model, TRANSFORMERS: model}
        rounds = [
            {how: measure(how, directory) for how, directory in cases.items()}
            for _ in track(range(arguments.rounds), "Loading")
        ]
    show(rounds)


def show(rounds: list[dict[str, dict[str, float]]]) -> None:
    """Print medians over rounds, and what loading may take beside what it places."""
    size = rounds[0][SAFETENSORS]["placed"]
    title = f"Loading {size / 1e9:.2f} GB of bfloat16 weights on CPU, files cached, medians of {len(rounds)} processes"
    table = Table("", "s", "CPU s", "÷ transformers, s", "peak − baseline − placed, MB", "allowed, MB", title=title)
    for how in rounds[0]:
        beside = max(r[how]["peak"] - r[how]["baseline"] - r[how]["placed"] for r in rounds)
        allowed = 1.3 * rounds[0][how]["largest"] + SLACK
        table.add_row(
            how,
            *(f"{statistics.median(r[how][key] for r in rounds):.2f}" for key in ("seconds", "cpu_seconds")),
            f"{statistics.median(r[how]['seconds'] / r[TRANSFORMERS]['seconds'] for r in rounds):.2f}",
            f"{beside / 1e6:.0f}",
            f"{allowed / 1e6:.0f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
