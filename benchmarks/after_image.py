"""The tuning step with the soft prompt behind the page, whose keys and values are cached, beside the default.

python -m benchmarks.after_image                  everything, about 5 minutes on 2 cores
python -m benchmarks.after_image --pairs 3        a quick look
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import BENCH_SIZES
from benchmarks.__main__ import time_all
from benchmarks.setup import BATCH, draw_page
from fixate_jax.backbones import EncodedSession, load_backbone
from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.backbones.tiny.random import write_tiny_random
from fixate_jax.data.session import StoredSession
from fixate_jax.lab.config import ObjectiveConfig, OperatorConfig, PromptConfig, RunConfig
from fixate_jax.lab.parts import objective_of
from fixate_jax.lab.planning import flops
from fixate_jax.pipeline.features import FeatureStore
from fixate_jax.pipeline.kept import CacheConfig
from fixate_jax.pipeline.page_keys import PageKeyStore
from fixate_jax.probing.batches import Batch, SessionData
from fixate_jax.probing.encode import encode_sessions
from fixate_jax.prompts import PromptParams, init_prompt
from fixate_jax.tuning.step import session_losses

VISUAL, TEXT, PAGE = 650, 64, (800, 832)
"""Visual and text tokens of a sequence; pixels of a page with so many of them."""
DEFAULT, AFTER = "prompt before everything", "after_image, keys cached"
IN_STEP = "after_image, keys computed in the step"
TARGETS = {AFTER: "≥ 5"}


def make_sessions() -> tuple[list[StoredSession], dict[str, Any]]:
    """A session a page, and the pages."""
    images, sessions = {}, []
    for i in range(BATCH):
        image, boxes = draw_page(i)
        images[str(i)] = image.resize(PAGE)
        dwell = np.random.default_rng(i).gamma(1.0, 400.0, len(boxes)) + 1
        sessions.append(
            StoredSession(
                session_id=str(i),
                user_id=str(i),
                page_id=str(i),
                boxes=boxes,
                labels=tuple(chr(ord("A") + slot) for slot in range(len(boxes))),
                dwell_ms={"fixation": dwell},
                click=i,
            )
        )

    return sessions, images


def cut(encoded: EncodedSession) -> EncodedSession:
    """The chat without so many tokens behind the page that as many are left as is wanted: time asks for no sense."""
    end, gone = encoded.page_end, len(encoded.token_ids) + 1 - VISUAL - TEXT
    kept = np.r_[:end, end + gone : len(encoded.token_ids)]
    return replace(
        encoded,
        token_ids=encoded.token_ids[kept],
        visual_index=encoded.visual_index[kept],
        positions=encoded.positions[kept] - np.where(kept < end, 0, gone)[:, None].astype(np.int32),
        last_position=encoded.last_position - gone,
    )


class Bench:
    """Model, sessions and batches."""

    def __init__(self, directory: Path):
        """Write the model and put the batches together."""
        model = write_tiny_random(directory / "model", sizes=BENCH_SIZES)
        self.config = RunConfig(
            backbone=BackboneConfig(path=str(model)),
            operator=OperatorConfig(name="attn_lrp", normalise="abs"),
            objective=ObjectiveConfig(alignment="weighted_kl", warmup=0),
        )
        self.backbone = load_backbone(self.config.backbone)
        sessions, images = make_sessions()
        how: dict[str, Any] = {"directory": directory, "batch": BATCH}
        pages = [s.page_id for s in sessions]
        self.features = FeatureStore(self.backbone, images.__getitem__, pages, CacheConfig(), **how)
        encoded = [cut(e) for e in encode_sessions(self.backbone, sessions, self.features.grids)]
        self.keys = PageKeyStore(self.backbone, self.features, pages, encoded, CacheConfig(), **how)
        rows = {s.user_id: i for i, s in enumerate(sessions)}

        def batch(**layout: Any) -> Batch:
            tokens = self.config.prompt.tokens
            data = SessionData(
                sessions,
                encoded,
                rows,
                features=self.features,
                prompt_tokens=tokens,
                signal="fixation",
                max_lengths=1,
                **layout,
            )
            return jax.device_put(data.batch(range(BATCH)))

        self.default, self.after = batch(), batch(position="after_image")
        self.cached = batch(position="after_image", page_keys=self.keys)
        prompt = init_prompt(jax.random.key(0), **self.config.prompt.sizes, users=BATCH, width=self.backbone.width)
        noise = jax.random.normal(jax.random.key(1), prompt.coefficients.shape)
        self.prompt = prompt._replace(coefficients=noise)

    def step(self, position: Any, batch: Batch, **operator: Any) -> Callable[[], Any]:
        """Loss and gradient, compiled, as a call without arguments."""
        config = replace(self.config, prompt=PromptConfig(position=position))

        objective = objective_of(config)

        def step(prompt: PromptParams, params: Any, batch: Batch) -> Any:
            model = self.backbone.merge(params)
            losses = lambda p: session_losses(p, model, batch, objective, jnp.float32(0.5))  # noqa: E731
            return jax.value_and_grad(losses, has_aux=True)(prompt)

        arguments = (self.prompt, self.backbone.params, batch)
        compiled = jax.jit(step).lower(*arguments).compile()
        return lambda: jax.block_until_ready(compiled(*arguments))

    def once(self, pages: Any) -> dict[str, Callable[[], Any]]:
        """What is done once per page, for a batch of pages."""
        merge, params = self.backbone.merge, self.backbone.params
        tower = jax.jit(lambda params, pages: merge(params).encode_pages(pages))
        keys = jax.jit(lambda params, inputs: merge(params).page_keys(inputs))
        return {
            "vision tower": lambda: jax.block_until_ready(tower(params, pages)),
            "keys and values": lambda: jax.block_until_ready(keys(params, self.after.inputs)),
        }


def same(ours: Any, theirs: Any) -> float:
    """Largest relative difference of two steps' losses and gradients in B."""
    (loss, _), gradient = ours
    (their_loss, _), their_gradient = theirs
    size = float(jnp.linalg.norm(their_gradient.basis))
    return max(abs(float(loss / their_loss) - 1), float(jnp.linalg.norm(gradient.basis - their_gradient.basis)) / size)


def print_tables(
    console: Console, times: dict[str, list[float]], once: dict[str, list[float]], ours: dict[str, Any]
) -> None:
    """A line a case, with its ratio to the default and its operations, and what is done once per page."""
    table = Table(
        "step: loss and gradient, AttnLRP",
        "median s",
        "min s",
        "default ÷ it",
        "target",
        "GFLOP/s",
        title=f"Medians of {len(times[DEFAULT])} interleaved rounds",
    )
    for name, seconds in times.items():
        ratio = statistics.median(a / b for a, b in zip(times[DEFAULT], seconds, strict=True))
        rate = f"{BATCH * ours[name].total / statistics.median(seconds) / 1e9:.0f}" if name in ours else "–"
        spread = [f"{f(seconds):.3f}" for f in (statistics.median, min)]
        table.add_row(name, *spread, f"{ratio:.2f}", TARGETS.get(name, "–"), rate)
    console.print(table)
    table = Table("once per page", "ms a page", title=f"Pages computed {BATCH} at a time")
    for name, seconds in once.items():
        table.add_row(name, f"{statistics.median(seconds) / BATCH * 1e3:.0f}")
    console.print(table)


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20, help="interleaved rounds")
    pairs = parser.parse_args().pairs
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        default, after = bench.default.inputs, bench.after.inputs
        assert after.page_valid is not None and bench.cached.inputs.page_keys is not None
        page, seq = after.page_valid.shape[1], after.token_ids.shape[1]
        text = default.token_ids.shape[1] - bench.config.prompt.tokens - VISUAL + 1
        console.print(
            f"batch {BATCH}, {VISUAL} visual and {text} text tokens, K = {bench.config.prompt.tokens}, "
            f"{seq - page} rows behind the page, {bench.cached.inputs.page_keys.nbytes / BATCH / 1e6:.1f} MB a page, "
            f"{jax.devices()[0].device_kind}"
        )
        calls = {
            DEFAULT: bench.step("before", bench.default),
            AFTER: bench.step("after_image", bench.cached),
            IN_STEP: bench.step("after_image", bench.after),
        }
        difference = same(calls[AFTER](), calls[IN_STEP]())
        console.print(f"cached keys and keys computed in the step give the same, relative difference {difference:.0e}")
        if difference > 1e-4:
            raise SystemExit("the two steps do not compute the same; timing them means nothing")
        times = time_all(calls, pairs)
        once = time_all(bench.once(bench.features.pages([str(i) for i in range(BATCH)])), max(pairs // 2, 1))
    decoder, sizes = bench.backbone.config.decoder, {"page": page, "rest": seq - page}
    ours = {
        DEFAULT: flops.train_step(decoder, seq=seq),
        AFTER: flops.after_image_step(decoder, **sizes),
        IN_STEP: flops.after_image_step(decoder, **sizes, cached=False),
    }
    print_tables(console, times, once, ours)


if __name__ == "__main__":
    main()
