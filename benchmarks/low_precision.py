"""The tuning step and a forward pass in float32, in bfloat16 as JAX multiplies it, and in bfloat16 as we do.

python -m benchmarks.low_precision               about 10 minutes on 2 cores
python -m benchmarks.low_precision --pairs 3     a quick look
"""

import argparse
import contextlib
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.__main__ import FORWARD, STEP, time_all
from benchmarks.setup import Case, functions, make_case
from fixate_jax.backbones import load_backbone
from fixate_jax.backbones.decoder import products

WIDE, DEFAULT, OURS = "float32", "bfloat16, JAX's products", "bfloat16"


@contextlib.contextmanager
def default_products() -> Iterator[None]:
    """Products, residuals and slices of weights as JAX and XLA make them; for what is traced inside."""
    with (
        patch.object(products, "takes", lambda a, b: False),
        patch("fixate_jax.backbones.decoder.decoder.packed", lambda weights: weights),
    ):
        yield


def compile_all(folder: Path) -> tuple[dict[str, Callable[[], Any]], dict[str, float]]:
    """Every case as a call without arguments, and the temporary memory it was compiled to, in MB."""
    wide = make_case(folder)
    config = replace(wide.config, backbone=replace(wide.config.backbone, dtype="bfloat16"))
    low = replace(wide, config=config, backbone=load_backbone(config.backbone))
    calls: dict[str, Callable[[], Any]] = {}
    memory = {}
    kinds: dict[str, tuple[Case, Callable[[], contextlib.AbstractContextManager[None]]]] = {
        WIDE: (wide, contextlib.nullcontext),
        DEFAULT: (low, default_products),
        OURS: (low, contextlib.nullcontext),
    }
    for kind, (case, context) in kinds.items():
        arguments = (case.prompt, case.backbone.params, case.cached)
        with context():
            jitted = functions(case)
            compiled = {name: jitted[name].lower(*arguments).compile() for name in (STEP, FORWARD)}
        for name, program in compiled.items():
            calls[f"{name}, {kind}"] = partial(_run, program, arguments)
            memory[f"{name}, {kind}"] = program.memory_analysis().temp_size_in_bytes / 1e6
    return calls, memory


def _run(program: Any, arguments: tuple[Any, ...]) -> Any:
    return jax.block_until_ready(program(*arguments))


def agreement(wide: Any, low: Any) -> tuple[float, float]:
    """Relative difference of two steps' losses, and cosine of their gradients in the prompt basis."""
    (expected, _), full = wide
    (loss, _), gradient = low
    a, b = (np.asarray(g.basis, np.float64).ravel() for g in (full, gradient))
    return abs(float(loss) / float(expected) - 1), float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20, help="interleaved rounds")
    arguments = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        calls, memory = compile_all(Path(folder))
        for kind in (DEFAULT, OURS):
            loss, cosine = agreement(calls[f"{STEP}, {WIDE}"](), calls[f"{STEP}, {kind}"]())
            console.print(f"{kind} beside float32: loss {loss:.1e} off, cosine of the gradients {cosine:.4f}")
        times = time_all(calls, arguments.pairs)
    table = Table("", "median s", "min s", "max s", "× as fast as float32", "compiled temporaries MB")
    for name, seconds in times.items():
        wide = times[f"{name.removesuffix(DEFAULT).removesuffix(OURS).removesuffix(WIDE)}{WIDE}"]
        faster = statistics.median(a / b for a, b in zip(wide, seconds, strict=True))
        spread = [f"{f(seconds):.2f}" for f in (statistics.median, min, max)]
        table.add_row(name, *spread, f"{faster:.2f}", f"{memory[name]:.0f}")
    console.print(table)


if __name__ == "__main__":
    main()
