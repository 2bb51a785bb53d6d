"""The tuning step with every operator, beside plain soft-prompt tuning and beside whole matrices, in one process.

python -m benchmarks.operators                  everything, about 15 minutes on 2 cores
python -m benchmarks.operators --pairs 3        a quick look
python -m benchmarks.operators --memory         only how memory grows with the length of the sequence
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from benchmarks import whole_matrix
from benchmarks.__main__ import NTP, time_all
from benchmarks.setup import BATCH, Case, aligned_step, functions, make_case
from fixate_jax.backbones import take_branches
from fixate_jax.lab.config import OperatorConfig
from fixate_jax.lab.parts import OPERATORS, alignment_of
from fixate_jax.objective import next_token_loss, session_mean
from fixate_jax.probing import slot_attention
from fixate_jax.probing.batches import Batch
from fixate_jax.prompts import PromptParams, soft_prompt
from fixate_jax.runtime.progress import track

WHOLE = "attn_lrp, whole matrices in JAX"
TARGETS = {"attn_lrp": "≤ 1.05", "rollout": "≤ 1.3", "glimpse": "≤ 4 (2.5)"}
LENGTHS = (512, 1024, 2048, 4096)
LINEAR = ("attn_lrp", "rollout")


def step_with(case: Case, name: str) -> Any:
    """The step with one operator, AttnLRP by magnitudes."""
    return aligned_step(case, OperatorConfig(name=name, normalise="abs"))


def whole_matrix_step(case: Case) -> Any:
    """The same loss with AttnLRP by its definition: taps on whole matrices, differentiated twice."""
    config = case.config

    def loss(prompt: PromptParams, params: Any, batch: Batch) -> Any:
        rows = jnp.arange(len(batch.click))
        ids, mask = batch.answer_ids[rows, batch.click], batch.answer_mask[rows, batch.click]
        inputs = take_branches(batch.inputs, batch.click[:, None])
        logits, matrices, gradients = whole_matrix.tapped_matrices(
            case.backbone, params, inputs, soft_prompt(prompt, batch.user), ids, mask
        )
        operator = config.operator
        relevance = whole_matrix.attn_lrp(
            matrices, gradients, how=operator.normalise, scale=operator.grad_scale, eps=operator.eps
        )
        tokens = jnp.abs(jnp.take_along_axis(relevance[:, -1], inputs.visual_position, axis=-1))
        attention = slot_attention(tokens[:, None], batch.slot_matrix, operator.eps)[:, 0]
        each = alignment_of(config.objective)(batch.gaze, attention, batch.slot_mask)  # type: ignore[misc]
        alignment = session_mean(each, batch.weight)
        return 0.5 * next_token_loss(logits, ids, mask, batch.weight) + 0.5 * alignment

    return jax.jit(jax.value_and_grad(loss))


def longer(batch: Batch, seq: int) -> Batch:
    """The shapes of the batch with sequences of ``seq`` positions, a third of them visual."""

    def resized(x: Any, axis: int, size: int) -> Any:
        shape = (*x.shape[:axis], size, *x.shape[axis + 1 :])
        return jax.ShapeDtypeStruct(shape, x.dtype)

    shapes: Batch = jax.eval_shape(lambda b: b, batch)
    inputs, visual = shapes.inputs, seq // 3
    inputs = inputs._replace(
        token_ids=resized(inputs.token_ids, 1, seq),
        positions=resized(inputs.positions, 1, seq),
        visual_index=resized(inputs.visual_index, 1, seq),
        visual_position=resized(inputs.visual_position, 1, visual),
        features=resized(inputs.features, 1, visual),
    )
    return shapes._replace(inputs=inputs, slot_matrix=resized(shapes.slot_matrix, 2, visual))


def temporaries(function: Any, *arguments: Any) -> float:
    """Temporary memory of the compiled program in MB."""
    return float(function.lower(*arguments).compile().memory_analysis().temp_size_in_bytes / 1e6)


def memory_table(case: Case) -> Table:
    """Temporary memory at growing lengths, nothing being run."""
    table = Table("operator", *map(str, LENGTHS), "4096 ÷ 512 (8 is linear)", title="Temporaries in MB by positions")
    for name in track(LINEAR, "Compiling"):
        step = step_with(case, name)
        sizes = [temporaries(step, case.prompt, case.backbone.params, longer(case.cached, n)) for n in LENGTHS]
        table.add_row(name, *(f"{x:.0f}" for x in sizes), f"{sizes[-1] / sizes[0]:.1f}")
    return table


def step_table(case: Case, pairs: int, names: Sequence[str]) -> Table:
    """Seconds and memory of some operators' steps as ratios to the plain step."""
    steps = {NTP: functions(case)[NTP]}
    for name in names:
        steps[name] = whole_matrix_step(case) if name == WHOLE else step_with(case, name)
    arguments = (case.prompt, case.backbone.params, case.cached)
    calls: dict[str, Callable[[], Any]] = {}
    memory = {}
    for name, step in track(list(steps.items()), "Compiling"):
        compiled = step.lower(*arguments).compile()
        memory[name] = compiled.memory_analysis().temp_size_in_bytes / 1e6
        calls[name] = partial(lambda run: jax.block_until_ready(run(*arguments)), compiled)
    times = time_all(calls, pairs)
    columns = ("median s", "÷ NTP", "target", "temporaries MB", "÷ NTP")
    table = Table("step", *columns, title=f"Medians of {pairs} interleaved rounds")
    for name, seconds in times.items():
        ratio = statistics.median(a / b for a, b in zip(seconds, times[NTP], strict=True))
        size = memory[name] / memory[NTP]
        middle = f"{statistics.median(seconds):.2f}"
        table.add_row(name, middle, f"{ratio:.2f}", TARGETS.get(name, "–"), f"{memory[name]:.0f}", f"{size:.2f}")
    return table


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20, help="interleaved rounds")
    parser.add_argument("--operators", nargs="+", default=[*OPERATORS, WHOLE], help="which ones")
    parser.add_argument("--memory", action="store_true", help="only how memory grows")
    arguments = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        case = make_case(Path(folder))
        seq = case.cached.inputs.token_ids.shape[1] + case.cached.inputs.tail_ids.shape[2]
        console.print(f"batch {BATCH}, {seq} positions, AttnLRP by magnitudes, {jax.devices()[0].device_kind}")
        if not arguments.memory:
            console.print(step_table(case, arguments.pairs, arguments.operators))
        console.print(memory_table(case))


if __name__ == "__main__":
    main()
