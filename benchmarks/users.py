"""Users a second: many users side by side under vmap, beside a plain loop that tunes one at a time.

python -m benchmarks.users                                  several minutes on 2 cores
python -m benchmarks.users --users 1 8 --steps 2 --pairs 3  a quick look

Both run the same program, compiled for a chunk of users and for one; compiling is not counted. A round is some steps of
every user and a validation. The two take turns.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.__main__ import time_all
from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.data.options import DataConfig
from fixate_jax.data.registry import open_or_prepare
from fixate_jax.lab.config import ObjectiveConfig, OperatorConfig, PromptConfig, RunConfig, TrainConfig, UsersConfig
from fixate_jax.lab.experiments.workspace import Workspace, open_workspace
from fixate_jax.lab.users.data import UserData, UserIndices
from fixate_jax.lab.users.memory import default_limit, even_chunk
from fixate_jax.lab.users.step import Frozen, make_advance, start_states
from fixate_jax.lab.users.tune import start_of
from fixate_jax.prompts import PromptParams, init_prompt

USERS = (1, 8, 64, 256)
TARGETS = {"cpu": "≥ 1", "gpu": "≥ 5", "tpu": "≥ 5"}
"""At 64 users, by platform."""


def settings(parsed: argparse.Namespace, folder: Path) -> RunConfig:
    """Synthetic users on drawn carousels, as in configs/demo.yaml."""
    return RunConfig(
        data=DataConfig(name="synthetic_carousel", max_users=max(parsed.users), store=folder / "store"),
        backbone=BackboneConfig(path=parsed.backbone, tapped_layers=2, unroll=True),
        operator=OperatorConfig(name=parsed.operator, normalise="abs"),
        objective=ObjectiveConfig(alignment="kl", warmup=0),
        prompt=PromptConfig(init_scale=0.3),
        train=TrainConfig(max_lengths=1),
        users=UsersConfig(steps=parsed.steps, batch=parsed.batch),
    )


class Tuner:
    """Coefficients of users over a random basis; their sessions and all pages are on the device."""

    def __init__(self, workspace: Workspace):
        """Put pages and basis in place."""
        self.workspace, self.config = workspace, workspace.config
        self.data = UserData(workspace, self.config.users, None, seed=0)
        pages = self.data.pages(self.data.members)
        self.page = {page: i for i, page in enumerate(pages)}
        width = workspace.backbone.width
        basis: PromptParams = init_prompt(jax.random.key(0), **self.config.prompt.sizes, users=1, width=width)
        self.start = start_of(self.config, "coefficients", basis, width=width, seed=0)
        self.frozen = Frozen(workspace.params, basis.basis, self.data.page_table(pages, len(pages)))
        self.advance = make_advance(workspace.backbone.graph, self.config, "coefficients", mesh=workspace.mesh)

    def tune(self, members: Sequence[UserIndices], chunk: int) -> Callable[[], None]:
        """What tunes some users, ``chunk`` at a time: all steps and a validation."""
        steps, parts = jnp.int32(self.config.users.steps), []
        for i in range(0, len(members), chunk):
            some = list(members[i : i + chunk])
            some += some[:1] * (chunk - len(some))
            state = start_states(self.config, "coefficients", self.start, chunk)
            parts.append((state, jax.device_put(self.data.sessions_of(some, self.page))))

        def call() -> None:
            for i, (state, sessions) in enumerate(parts):
                new, scores = self.advance(state, sessions, self.frozen, jnp.int32(0), steps)
                if not np.isfinite(scores["score"]).all():
                    raise RuntimeError("a score is not finite: there is nothing to time")
                parts[i] = new, sessions

        return call


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", nargs="+", type=int, default=list(USERS), help="how many users")
    parser.add_argument("--chunk", type=int, help="users side by side (default: the library's for this device)")
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps of a round")
    parser.add_argument("--batch", type=int, default=4, help="sessions a step")
    parser.add_argument("--pairs", type=int, default=5, help="interleaved rounds")
    parser.add_argument("--backbone", default="tiny-qwen3-vl", help="which one")
    parser.add_argument("--operator", default="attention", help="which one")
    parsed = parser.parse_args(arguments)
    console, device = Console(width=120), jax.devices()[0]
    limit = parsed.chunk or default_limit(device)
    title = f"Medians of {parsed.pairs} interleaved rounds of {parsed.steps} steps of {parsed.batch} and a validation"
    table = Table("users", "side by side", "users/s", "one by one, users/s", "ratio", title=title)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        config = settings(parsed, folder)
        tuner = Tuner(open_workspace(config, open_or_prepare(config.data), directory=folder))
        for users in parsed.users:
            members, chunk = tuner.data.members[:users], even_chunk(users, limit)
            calls = {"vmapped": tuner.tune(members, chunk), "loop": tuner.tune(members, 1)}
            times = time_all(calls, parsed.pairs)
            ratio = statistics.median(b / a for a, b in zip(times["vmapped"], times["loop"], strict=True))
            rates = (f"{users / statistics.median(times[name]):.2f}" for name in calls)
            table.add_row(str(users), str(chunk), *rates, f"{ratio:.2f}")
    console.print(f"{parsed.backbone}, operator {parsed.operator}, {device.device_kind}")
    console.print(table, f"target at 64 users: {TARGETS.get(device.platform, '≥ 1')}")


if __name__ == "__main__":
    main()
