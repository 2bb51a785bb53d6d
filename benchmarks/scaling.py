"""What a mesh costs: the training step on 1, 2, 4 and 8 simulated devices that share this machine's processors.

python -m benchmarks.scaling               about 15 minutes on 2 cores
python -m benchmarks.scaling --pairs 3     a quick look

The devices are one processor under several names, so nothing can become faster: a perfect mesh takes as long as one
device, and what it takes longer is the price of cutting and sending around. Memory is that of one device.
"""

import os

# Before jax is imported. A device that waits for another one occupies a thread; with too few of them all would wait.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
os.environ.setdefault("NPROC", "32")

import argparse
import math
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.__main__ import time_all
from fixate_jax.backbones import load_backbone
from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.backbones.sharding import make_mesh, shardings
from fixate_jax.backbones.tiny.random import TinySizes, write_tiny_random
from fixate_jax.data.options import DataConfig
from fixate_jax.data.registry import open_or_prepare
from fixate_jax.lab.config import ObjectiveConfig, OperatorConfig, RunConfig
from fixate_jax.lab.experiments.loop import start_state
from fixate_jax.lab.experiments.programs import make_train_step
from fixate_jax.lab.experiments.workspace import Workspace, open_workspace
from fixate_jax.pipeline.placement import Placement, put

SIZES = TinySizes(vocab=4096, width=256, ff=768, layers=8, heads=8, kv_heads=8, head_dim=32)
BATCH = 8
MESHES = (
    *((1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2), (4, 1, 1), (1, 4, 1), (1, 1, 4), (1, 2, 2)),
    *((8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2), (1, 4, 2)),
)
"""(data, fsdp, tensor)."""


class Trainer:
    """The step on one mesh, over the same batch again and again."""

    def __init__(self, workspace: Workspace, shape: tuple[int, int, int]):
        """Load the weights to the mesh and compile."""
        config, users, mesh = workspace.config, len(workspace.users), make_mesh(shape)
        state = start_state(config, users=users, width=workspace.backbone.width, seed=0)
        self.params = load_backbone(config.backbone, mesh=mesh).params
        placement = Placement(mesh, shardings(self.params, mesh)).with_state(state)
        indices = [i for i, bucket in enumerate(workspace.data.bucket_of) if bucket == 0][:BATCH]
        batch = jax.tree.map(lambda x: np.asarray(x)[None], workspace.data.batch(indices))
        self.batch, self.state = put(batch, placement.micro_rows), put(state, placement.state)
        step = make_train_step(workspace.backbone.graph, config, users=users, steps=1000, placement=placement)
        self.compiled = step.lower(self.state, self.params, self.batch).compile()

    def __call__(self) -> Any:
        """One step."""
        self.state, parts = self.compiled(self.state, self.params, self.batch)
        return jax.block_until_ready(parts)

    def megabytes(self) -> tuple[float, float]:
        """Weights and temporary memory of one device."""
        weights = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(self.params))
        return weights / 1e6, self.compiled.memory_analysis().temp_size_in_bytes / 1e6


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20, help="interleaved rounds")
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4, 8], help="how many")
    parsed = parser.parse_args(arguments)
    console = Console(width=140)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        config = RunConfig(
            data=DataConfig(name="synthetic_choice", max_users=2, page_width=320, store=folder / "store"),
            backbone=BackboneConfig(path=str(write_tiny_random(folder / "model", sizes=SIZES)), tapped_layers=4),
            operator=OperatorConfig(normalise="abs"),
            objective=ObjectiveConfig(warmup=0),
        )
        config = replace(config, train=replace(config.train, batch=BATCH, accumulate=1))
        workspace = open_workspace(config, open_or_prepare(config.data), directory=folder)
        shapes = [shape for shape in MESHES if math.prod(shape) in {1, *parsed.devices}]
        trainers = {str(shape): Trainer(workspace, shape) for shape in shapes}
        times = time_all(dict(trainers), parsed.pairs)
    alone = times[str(shapes[0])]
    title = (
        f"Overhead, not speed-up: simulated devices on {os.cpu_count()} processors, {BATCH} sessions a step, "
        f"{workspace.data.buckets[0].seq} positions, medians of {parsed.pairs} interleaved rounds"
    )
    headings = ("ms a step", "sessions/s", "time ÷ one device", "MB of weights a device", "MB of temporaries a device")
    table = Table("(data, fsdp, tensor)", "devices", *headings, title=title)
    for shape in shapes:
        found, trainer = times[str(shape)], trainers[str(shape)]
        seconds = statistics.median(found)
        ratio = statistics.median(b / a for a, b in zip(alone, found, strict=True))
        numbers = (f"{1e3 * seconds:.0f}", f"{BATCH / seconds:.1f}", f"{ratio:.2f}")
        table.add_row(str(shape), str(math.prod(shape)), *numbers, *(f"{size:.1f}" for size in trainer.megabytes()))
    console.print(table)


if __name__ == "__main__":
    main()
