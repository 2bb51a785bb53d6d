"""``make bench``: the tuning step beside what it is compared with, in one process, interleaved, as medians.

python -m benchmarks                  everything, about 15 minutes on 2 cores
python -m benchmarks --pairs 3        a quick look
python -m benchmarks --no-torch       without the PyTorch alternative
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.setup import BATCH, Case, functions, make_case
from fixate_jax.runtime.progress import track

STEP, NTP, FORWARD = "step, AttnLRP", "step, NTP (plain soft-prompt tuning)", "forward pass"
VISION = "step, AttnLRP, vision in the step"
TORCH = "PyTorch step, AttnLRP, whole matrices"
TARGETS = [
    (STEP, NTP, "≤ 1.05"),
    (VISION, STEP, "–"),
    (STEP, FORWARD, "≤ 3.0"),
    (TORCH, STEP, "≥ 3.5"),
    (TORCH, VISION, "–"),
]


def compile_all(case: Case) -> tuple[dict[str, Callable[[], Any]], dict[str, float]]:
    """Every JAX case as a call without arguments, and the temporary memory it was compiled to, in MB."""
    calls: dict[str, Callable[[], Any]] = {}
    memory = {}
    jitted = functions(case)
    for name, batch in {**dict.fromkeys(jitted, case.cached), VISION: case.uncached}.items():
        arguments = (case.prompt, case.backbone.params, batch)
        compiled = jitted[STEP if name == VISION else name].lower(*arguments).compile()
        calls[name] = partial(_run, compiled, arguments)
        memory[name] = compiled.memory_analysis().temp_size_in_bytes / 1e6
    return calls, memory


def _run(function: Any, arguments: tuple[Any, ...]) -> Any:
    return jax.block_until_ready(function(*arguments))


def torch_calls(case: Case) -> dict[str, Callable[[], Any]]:
    """The PyTorch alternative on the same weights and the same batch."""
    from benchmarks.torch_reference import TorchTrainer, reference_batch

    trainer = TorchTrainer(
        case.directory,
        basis=np.asarray(case.prompt.basis),
        coefficients=np.asarray(case.prompt.coefficients),
        tapped_layers=case.config.backbone.tapped_layers,
        operator=case.config.operator,
        objective=case.config.objective,
    )
    batch = reference_batch(jax.device_get(case.cached), prompt_tokens=case.config.prompt.tokens)
    return {
        TORCH: lambda: trainer.loss_and_grads(batch, attention_weight=0.5),
    }


def compare_values(ours: Any, theirs: Any) -> dict[str, float]:
    """Relative differences of loss and gradients between our step and PyTorch's."""
    (loss, _), gradient = ours

    def relative(a: Any, b: Any) -> float:
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        return float(np.linalg.norm(a - b) / np.linalg.norm(b))

    return {
        "loss": relative(loss, theirs.loss),
        "gradient in B": relative(gradient.basis, theirs.basis),
        "gradient in z": relative(gradient.coefficients, theirs.coefficients),
    }


def peak_memory(name: str, directory: str) -> float:
    """Largest resident memory in MB of a fresh process that takes three such steps and nothing else."""
    command = [sys.executable, "-m", "benchmarks", "--peak-of", name, "--directory", directory]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(json.loads(out.splitlines()[-1]))


def run_alone(name: str, directory: Path) -> None:
    """The process that :func:`peak_memory` starts."""
    case = make_case(directory)
    if name.startswith("PyTorch"):
        call = torch_calls(case)[name]
    else:
        batch = case.uncached if name == VISION else case.cached
        function = functions(case)[STEP if name == VISION else name]
        call = partial(_run, function, (case.prompt, case.backbone.params, batch))
    for _ in range(3):
        call()
    # Not getrusage: a started process inherits the largest size that its parent had.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    print(json.dumps(int(status.split("VmHWM:")[1].split()[0]) / 1024))


def time_all(calls: dict[str, Callable[[], Any]], pairs: int) -> dict[str, list[float]]:
    """Seconds of every call in ``pairs`` interleaved rounds, after a round to warm up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in track(range(pairs), "Timing"):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return times


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20, help="interleaved rounds")
    parser.add_argument("--no-torch", action="store_true", help="leave the PyTorch alternative out")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak_of:
        run_alone(arguments.peak_of, arguments.directory)
        return
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        case = make_case(Path(folder))
        seq = case.cached.inputs.token_ids.shape[1] + case.cached.inputs.tail_ids.shape[2]
        device = jax.devices()[0].device_kind
        console.print(f"batch {BATCH}, {seq} positions, {case.cached.slot_matrix.shape[2]} visual tokens, {device}")
        calls, memory = compile_all(case)
        if not arguments.no_torch:
            calls |= torch_calls(case)
            differences = compare_values(calls[STEP](), calls[TORCH]())
            console.print("same values, relative difference of ours to PyTorch's:", differences)
            if max(differences.values()) > 1e-3:
                raise SystemExit("the two steps do not compute the same; timing them means nothing")
        times = time_all(calls, arguments.pairs)
        alone = [name for name in calls if name != FORWARD]
        peaks = {name: peak_memory(name, folder) for name in track(alone, "Memory, each in a process of its own")}
    _print(console, times, memory, peaks)


def _print(console: Console, times: dict[str, list[float]], memory: dict[str, float], peaks: dict[str, float]) -> None:
    table = Table("", "median s", "min s", "max s", "compiled temporaries MB", "peak resident MB", title="Cases")
    for name, seconds in times.items():
        spread = [f"{f(seconds):.2f}" for f in (statistics.median, min, max)]
        table.add_row(
            name,
            *spread,
            f"{memory[name]:.0f}" if name in memory else "–",
            f"{peaks[name]:.0f}" if name in peaks else "–",
        )
    console.print(table)
    table = Table("", "÷", "median ratio", "target", title=f"Ratios, medians of {len(times[STEP])} interleaved pairs")
    for first, second, target in TARGETS:
        if first in times and second in times:
            ratio = statistics.median(a / b for a, b in zip(times[first], times[second], strict=True))
            table.add_row(first, second, f"{ratio:.2f}", target)
    if TORCH in peaks:
        table.add_row(f"peak memory, {STEP}", TORCH, f"{peaks[STEP] / peaks[TORCH]:.2f}", "≤ 0.25")
    console.print(table)


if __name__ == "__main__":
    main()
