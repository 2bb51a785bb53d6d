"""``make bench-gpu``: published sizes with random bfloat16 weights, batch 4, on the accelerator that is there.

python -m benchmarks.real_size                          Qwen3-VL-4B and InternVL3.5-4B
python -m benchmarks.real_size --models qwen3-vl-4b     one of them
python -m benchmarks.real_size --tiny --pairs 2         the same program with tiny models, on any machine

Utilisation is the operations that the method needs (``fixate_jax.lab.planning.flops``), over the time and the device's
peak.
"""

import argparse
import gc
import os
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

# One process holds both libraries' models: take memory as it is needed.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console
from rich.table import Table

from benchmarks.__main__ import time_all
from benchmarks.real_case import MODELS, RealCase, make_real_case
from benchmarks.setup import BATCH
from fixate_jax.errors import CheckpointError
from fixate_jax.lab.config import RunConfig
from fixate_jax.lab.experiments.loop import start_state
from fixate_jax.lab.experiments.programs import make_train_step
from fixate_jax.lab.planning import flops
from fixate_jax.prompts import init_prompt, soft_prompt

VISION, PREFILL, PREFILL_BLOCKED = "vision tower", "prefill", "prefill, row blocks"
STEP, STEP_BLOCKED, NTP = "train step", "train step, row blocks", "train step, NTP alone"
TORCH = "PyTorch train step, whole matrices"
RATIOS = [(STEP, NTP), (STEP, PREFILL), (STEP_BLOCKED, STEP), (PREFILL_BLOCKED, PREFILL), (TORCH, STEP)]

PEAK_TFLOPS = {
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "H200": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "TPU v6": 918.0,
    "TPU v5 lite": 197.0,
    "TPU v5": 459.0,
    "TPU v4": 275.0,
}
"""Dense bfloat16 operations per second, in 10¹², by part of the device's name (makers' data sheets); first match."""


@dataclass(frozen=True, kw_only=True)
class Timed:
    """Something to time.

    Attributes:
        call: runs it and waits.
        flops: operations that it needs (None: not counted).
        memory: bytes: arguments, results and temporaries of the compiled program, or torch's peak.
    """

    call: Callable[[], Any]
    flops: int | None
    memory: Callable[[], float | None]


def peak_of(device: str) -> float | None:
    """Peak operations per second of a device by its name, if it is known."""
    return next((1e12 * peak for name, peak in PEAK_TFLOPS.items() if name in device), None)


def _memory(compiled: Any) -> float:
    analysis = compiled.memory_analysis()
    kinds = ("argument", "output", "temp")
    return sum(getattr(analysis, f"{kind}_size_in_bytes") for kind in kinds) - analysis.alias_size_in_bytes


def _compiled(function: Any, *arguments: Any, flops: int) -> Timed:
    compiled = jax.jit(function).lower(*arguments).compile()
    call = lambda: jax.block_until_ready(compiled(*arguments))  # noqa: E731
    return Timed(call=call, flops=flops, memory=partial(_memory, compiled))


def _step(case: RealCase, graph: nnx.GraphDef, config: RunConfig, *, aligned: bool) -> Timed:
    """A train step whose state goes on from call to call, as in training."""
    step = make_train_step(graph, config, users=BATCH, steps=1000)
    states = [start_state(config, users=BATCH, width=case.shape.decoder.width, seed=0)]
    batch = jax.tree.map(lambda x: x[None], case.batch)
    compiled = step.lower(states[0], case.params, batch).compile()

    def call() -> None:
        states[0], parts = compiled(states[0], case.params, batch)
        jax.block_until_ready((states[0], parts))

    needed = flops.train_step(case.shape.decoder, seq=case.seq, aligned=aligned).total * BATCH
    return Timed(call=call, flops=needed, memory=partial(_memory, compiled))


def our_calls(case: RealCase) -> dict[str, Timed]:
    """Everything of ours that is timed, compiled."""
    decoder, config, params = case.shape.decoder, case.config, case.params
    by_blocks = replace(case.shape, decoder=replace(decoder, attention="blocked"))
    blocked, _ = nnx.split(nnx.eval_shape(lambda: case.family.build(by_blocks, nnx.Rngs(0))))
    prompt = init_prompt(jax.random.key(0), **config.prompt.sizes, users=BATCH, width=decoder.width)
    soft = soft_prompt(prompt, jnp.arange(BATCH))
    plain = replace(config, objective=replace(config.objective, alignment="none"))

    def prefill(graph: nnx.GraphDef, params: nnx.State, soft: jax.Array, inputs: Any) -> Any:
        return nnx.merge(graph, params).prefill(inputs, soft)

    def encode(params: nnx.State, pages: Any) -> jax.Array:
        return nnx.merge(case.graph, params).encode_pages(pages)

    once = flops.prefill(decoder, seq=case.seq).total * BATCH
    page = flops.encode_page(case.shape, units=case.units).total * BATCH
    arguments = (params, soft, case.batch.inputs)
    calls = {
        VISION: _compiled(encode, params, case.pages, flops=page),
        PREFILL: _compiled(partial(prefill, case.graph), *arguments, flops=once),
        STEP: _step(case, case.graph, config, aligned=True),
        NTP: _step(case, case.graph, plain, aligned=False),
    }
    if jax.default_backend() == "cpu":
        return calls
    # Where there may be a kernel, what it is worth.
    return calls | {
        PREFILL_BLOCKED: _compiled(partial(prefill, blocked), *arguments, flops=once),
        STEP_BLOCKED: _step(case, blocked, config, aligned=True),
    }


def torch_call(case: RealCase, *, device: str) -> Timed:
    """The same step in PyTorch, of a model of the same shape with random weights of its own."""
    import torch
    import transformers

    from benchmarks.torch_reference import TorchTrainer, reference_batch

    class RandomTrainer(TorchTrainer):
        def make_model(self, model_dir: Path, **how: Any) -> Any:
            config = transformers.AutoConfig.from_pretrained(model_dir)
            with torch.device(device):
                return transformers.AutoModelForImageTextToText.from_config(config, **how)

    prompt = start_state(case.config, users=BATCH, width=case.shape.decoder.width, seed=0).prompt
    trainer = RandomTrainer(
        case.directory,
        basis=np.asarray(prompt.basis),
        coefficients=np.asarray(prompt.coefficients),
        tapped_layers=case.config.backbone.tapped_layers,
        operator=case.config.operator,
        objective=case.config.objective,
        dtype=case.config.backbone.dtype,
        device=device,
    )
    batch = reference_batch(jax.device_get(case.batch), prompt_tokens=case.config.prompt.tokens)
    cuda = device == "cuda"

    def call() -> None:
        trainer.step(batch)
        if cuda:
            torch.cuda.synchronize()

    return Timed(call=call, flops=None, memory=lambda: torch.cuda.max_memory_allocated() if cuda else None)


def torch_device(*, tiny: bool) -> str | None:
    """Where PyTorch would run: a GPU, or for tiny models the CPU; None where it is not installed or has none."""
    try:
        import torch
    except ImportError:
        return None
    return "cuda" if torch.cuda.is_available() else "cpu" if tiny else None


def tables(case: RealCase, calls: dict[str, Timed], times: dict[str, list[float]], peak: float | None) -> list[Table]:
    """Figures of each call, and ratios between them."""
    figures = Table("", "median ms", "min ms", "max ms", "tokens/s", "TFLOP", "utilisation", "memory GB")
    for name, seconds in times.items():
        median, needed, memory = statistics.median(seconds), calls[name].flops, calls[name].memory()
        tokens = f"{BATCH * case.seq / median:,.0f}" if name.startswith("prefill") else "–"
        figures.add_row(
            name,
            *(f"{1000 * f(seconds):.1f}" for f in (statistics.median, min, max)),
            tokens,
            "–" if needed is None else f"{needed / 1e12:.3g}",
            "–" if needed is None or peak is None else f"{needed / median / peak:.1%}",
            "–" if memory is None else f"{memory / 1e9:.3g}",
        )
    ratios = Table("", "÷", "median ratio", title=f"{len(times[STEP])} interleaved pairs")
    for first, second in RATIOS:
        if first in times and second in times:
            ratio = statistics.median(a / b for a, b in zip(times[first], times[second], strict=True))
            ratios.add_row(first, second, f"{ratio:.2f}")
    return [figures, ratios]


def run_model(name: str, console: Console, arguments: argparse.Namespace) -> None:
    """Time one model and print its tables; say so where its architecture is not there."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            case = make_real_case(name, Path(folder), tiny=arguments.tiny).with_weights()
        except CheckpointError as error:
            console.print(f"{name}: left out ({error})")
            return
        weights = sum(x.nbytes for x in jax.tree.leaves(case.params)) / 1e9
        cells = case.batch.slot_matrix.shape[2]
        console.rule(f"{name}: {weights:.2f} GB of weights, {case.seq} positions, {cells} page tokens")
        calls, device = our_calls(case), torch_device(tiny=arguments.tiny)
        if arguments.no_torch or device is None:
            console.print("Without the PyTorch alternative (--no-torch, or PyTorch has no GPU here).")
        elif case.shape.decoder.mrope_section is None:
            console.print("The PyTorch alternative knows Qwen3-VL only, whose decoder is of the same size.")
        else:
            calls[TORCH] = torch_call(case, device=device)
        times = time_all({name: timed.call for name, timed in calls.items()}, arguments.pairs)
        peak = 1e12 * arguments.peak_tflops if arguments.peak_tflops else peak_of(jax.devices()[0].device_kind)
        for table in tables(case, calls, times, peak):
            console.print(table)
        used = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
        if used is not None:
            console.print(f"largest memory of all that JAX held at a time: {used / 1e9:.2f} GB")


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS), help="which models")
    parser.add_argument("--pairs", type=int, default=20, help="interleaved rounds")
    parser.add_argument("--peak-tflops", type=float, help="the device's peak, where its name is not known")
    parser.add_argument("--tiny", action="store_true", help="tiny models in float32, to try the program out")
    parser.add_argument("--no-torch", action="store_true", help="leave the PyTorch alternative out")
    parsed = parser.parse_args(arguments)
    console = Console(width=140)
    device = jax.devices()[0]
    console.print(f"batch {BATCH}, {device.device_kind}, JAX {jax.__version__}")
    if device.platform == "cpu" and not parsed.tiny:
        raise SystemExit("no accelerator is here; models of this size take hours on a CPU: give --tiny")
    for name in parsed.models:
        run_model(name, console, parsed)
        gc.collect()


if __name__ == "__main__":
    main()
