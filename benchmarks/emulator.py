"""Visits a second: users × pages in one call of the emulator, beside loops over users and over visits.

python -m benchmarks.emulator                          20 users × 50 pages, a few minutes on 2 cores
python -m benchmarks.emulator --users 5 --pages 10     a quick look

The loops are calls of the same emulator, for one user and all pages, or for one user and one page, with batches of that
size; compiling is not counted. All take turns. The loop over visits goes over a part of them and is scaled up.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.__main__ import time_all
from fixate_jax.backbones import load_backbone
from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.data.carousel import draw_carousels, poster_boxes
from fixate_jax.data.readers.synthetic.carousel import LABELS, PROFILE, page_pool
from fixate_jax.emulation import Page, UserEmulator
from fixate_jax.lab.bundles.settings import emulator_of
from fixate_jax.lab.config import OperatorConfig, PromptConfig, RunConfig, TrainConfig
from fixate_jax.prompts import init_prompt

TOGETHER, BY_USER, BY_VISIT = "one call", "a call for each user", "a call for each visit"
PART = 40
"""Visits that the loop over visits goes over."""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=20)
    parser.add_argument("--pages", type=int, default=50)
    parser.add_argument("--batch", type=int, default=32, help="visits at a time")
    parser.add_argument("--operator", default="attention")
    parser.add_argument("--backbone", default="tiny-qwen3-vl")
    parser.add_argument("--pairs", type=int, default=5, help="rounds")
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        calls = make_calls(parsed, Path(work))
        seconds = {name: statistics.median(times) for name, times in time_all(calls, parsed.pairs).items()}
    visits = parsed.users * parsed.pages
    seconds[BY_VISIT] *= visits / min(visits, PART)
    table = Table(title=f"{parsed.users} users × {parsed.pages} pages, {parsed.backbone}, {jax.default_backend()}")
    for column in ("", "visits/s", "÷ one call"):
        table.add_column(column, justify="left" if not column else "right")
    for name, taken in seconds.items():
        table.add_row(name, f"{visits / taken:.1f}", f"{seconds[TOGETHER] / taken:.2f}")
    Console().print(table)


def make_calls(parsed: argparse.Namespace, work: Path) -> dict[str, Callable[[], object]]:
    """What is timed, each having run once and all agreeing."""
    config = RunConfig(
        backbone=BackboneConfig(path=parsed.backbone, tapped_layers=2, unroll=True),
        operator=OperatorConfig(name=parsed.operator, normalise="abs"),
        prompt=PromptConfig(init_scale=0.3),
        train=TrainConfig(eval_batch=parsed.batch),
    )
    backbone = load_backbone(config.backbone, work=work)
    key, other = jax.random.split(jax.random.key(0))
    prompt = init_prompt(key, **config.prompt.sizes, users=parsed.users, width=backbone.width)
    prompt = prompt._replace(coefficients=jax.random.normal(other, prompt.coefficients.shape))
    names = tuple(f"user {i}" for i in range(parsed.users))
    pages = [
        Page(
            relative=True,
            labelled=True,
            name=f"page {i}",
            image=draw_carousels(content, LABELS, width=320),
            boxes=poster_boxes(),
            labels=LABELS,
            profile=PROFILE,
        )
        for i, content in enumerate(page_pool(0)[: parsed.pages])
    ]

    def emulator(rows: int) -> UserEmulator:
        sized = replace(config, train=replace(config.train, eval_batch=rows))
        return emulator_of(sized, backbone, prompt, names)

    together, by_user, single = emulator(parsed.batch), emulator(min(parsed.batch, parsed.pages)), emulator(1)
    some = [(user, page) for user in names for page in pages][:PART]
    calls: dict[str, Callable[[], object]] = {
        TOGETHER: lambda: together.visit_all(pages),
        BY_USER: lambda: [by_user.visit_all(pages, [user]) for user in names],
        BY_VISIT: lambda: [single.visit([user], [page]) for user, page in some],
    }
    whole = together.visit_all(pages)
    for row, (user, page) in enumerate(some[:3]):
        np.testing.assert_allclose(single.visit([user], [page]).attention[0], whole.attention[row], atol=1e-5)
    by_user.visit_all(pages, names[:1])
    return calls


if __name__ == "__main__":
    main()
