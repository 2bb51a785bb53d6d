"""Models of a published size with random weights, and a batch for them: what ``benchmarks.real_size`` times."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.setup import BATCH, SLOTS, draw_page
from fixate_jax.backbones.family import Family
from fixate_jax.backbones.inputs import EncodedPage, stack_pages
from fixate_jax.backbones.loading import family_of
from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.backbones.processing import EncodedSession
from fixate_jax.data.session import StoredSession
from fixate_jax.lab.config import ObjectiveConfig, OperatorConfig, PromptConfig, RunConfig
from fixate_jax.lab.planning.published import write_published
from fixate_jax.probing.batches import Batch, SessionData

BEFORE, AFTER = 16, 112
"""Tokens of the chat before and after the page: the template, a profile and the instruction."""

TINY_DECODER = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}
TINY_BACKBONE = BackboneConfig(tapped_layers=2)

TINY: dict[str, dict[str, dict[str, Any]]] = {
    "qwen3-vl": {
        "config.json": {
            "image_token_id": 500,
            "text_config": {**TINY_DECODER, "rope_scaling": {"mrope_section": [6, 5, 5]}},
            "vision_config": {
                "depth": 2,
                "hidden_size": 64,
                "intermediate_size": 96,
                "num_heads": 2,
                "out_hidden_size": 64,
                "deepstack_visual_indexes": [0],
            },
        },
        "preprocessor_config.json": {"size": {"shortest_edge": 4_096, "longest_edge": 65_536}},
    },
    "internvl": {
        "config.json": {
            "image_token_id": 500,
            "text_config": TINY_DECODER,
            "vision_config": {
                "num_hidden_layers": 2,
                "hidden_size": 64,
                "intermediate_size": 96,
                "num_attention_heads": 2,
                "image_size": [112, 112],
            },
        },
        "preprocessor_config.json": {"max_patches": 3, "size": {"height": 112, "width": 112}},
    },
}
"""What changes in the files of a published size for a quick run on a CPU, by the start of its name."""

MODELS = ("qwen3-vl-4b", "internvl3.5-4b")


def write_files(name: str, directory: Path, *, tiny: bool) -> None:
    """Write a model directory's JSON files, small or in full size."""
    write_published(name, directory)
    changes = next(files for start, files in TINY.items() if name.startswith(start)) if tiny else {}
    for file, fields in changes.items():
        content = json.loads((directory / file).read_text(encoding="utf-8"))
        (directory / file).write_text(json.dumps(_merged(content, fields)), encoding="utf-8")


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The first, with the second's fields in place of its own, section by section."""
    sections = {k: _merged(base[k], v) if isinstance(v, dict) else v for k, v in changes.items()}
    return {**base, **sections}


@dataclass(frozen=True, kw_only=True)
class RealCase:
    """A model, and one batch for it.

    Attributes:
        directory: the model's JSON files; there are no weights in it.
        config: the run's settings.
        family: the architecture.
        shape: the model's shape, of the family's own kind.
        graph: the model's structure.
        params: its weights; only their shapes and types until :meth:`with_weights`.
        batch: sessions of equal length, page features given.
        pages: their pages, for the vision tower.
        units: patches or tiles of a page.
    """

    directory: Path
    config: RunConfig
    family: Family
    shape: Any
    graph: nnx.GraphDef
    params: nnx.State
    batch: Batch
    pages: Any
    units: int

    def with_weights(self) -> "RealCase":
        """The same with random weights on the default device."""
        return replace(self, params=random_weights(self.params))

    @property
    def seq(self) -> int:
        """Positions of a prefix."""
        return self.batch.inputs.token_ids.shape[1]


def random_weights(abstract: nnx.State) -> nnx.State:
    """Weights made on the device where they are used, of a size that keeps activations near 1."""
    leaves = []
    # One at a time: random bits take more room than what is made of them.
    for i, (path, leaf) in enumerate(nnx.to_flat_state(abstract)):
        size = leaf.shape[-2] ** -0.5 if path[-1] == "kernel" else 0.02
        key = jax.random.fold_in(jax.random.key(0), i)
        noise = size * jax.random.normal(key, leaf.shape, leaf.dtype)
        leaves.append(jnp.ones(leaf.shape, leaf.dtype) if path[-1] == "scale" else noise)
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves)


def encode(family: Family, config: Any, rows: int, columns: int) -> EncodedSession:
    """A chat of arbitrary words around a page; no tokenizer is needed where nothing is read."""
    rng = np.random.default_rng(0)
    page, after = family.image_positions(rows, columns, BEFORE, config)
    words = lambda first, count: np.repeat(np.arange(first, first + count)[:, None], 3, axis=1)  # noqa: E731
    positions = np.concatenate([words(0, BEFORE), page, words(after, AFTER)])
    visual_index = np.concatenate([np.full(BEFORE, -1), np.arange(len(page)), np.full(AFTER, -1)])
    return EncodedSession(
        token_ids=rng.integers(0, 256, len(positions)),
        positions=positions,
        visual_index=visual_index,
        cell_tokens=family.cell_tokens(rows, columns, config),
        last_token=1,
        last_position=after + AFTER,
        answers=tuple((2 + slot,) for slot in range(SLOTS)),
        stops=((-1, -1),) * SLOTS,
        rows=rows,
        columns=columns,
    )


def _data(family: Family, shape: Any, config: RunConfig, pages: list[EncodedPage]) -> SessionData:
    """A session a page, each by another user, with page features made up."""
    encoded = encode(family, shape, pages[0].rows, pages[0].columns)
    rng = np.random.default_rng(0)
    levels = 1 + shape.decoder.deepstack_levels
    features = rng.standard_normal((BATCH, encoded.page_tokens, levels, shape.decoder.width), np.float32)
    sessions = [
        StoredSession(
            session_id=str(i),
            user_id=str(i),
            page_id=str(i),
            boxes=draw_page(i)[1],
            labels=tuple(chr(ord("A") + slot) for slot in range(SLOTS)),
            dwell_ms={"fixation": rng.gamma(1.0, 400.0, SLOTS) + 1},
            click=i % SLOTS,
        )
        for i in range(BATCH)
    ]
    return SessionData(
        sessions,
        [encoded] * BATCH,
        {str(i): i for i in range(BATCH)},
        features=lambda ids: (features.astype(shape.decoder.dtype), None),
        prompt_tokens=config.prompt.tokens,
        signal="fixation",
    )


def make_real_case(name: str, directory: Path, *, tiny: bool) -> RealCase:
    """A model by its published name, with a batch of drawn pages of 1100 × 619 pixels.

    Raises:
        CheckpointError: when the model's architecture is not registered.
    """
    write_files(name, directory, tiny=tiny)
    config = RunConfig(
        backbone=TINY_BACKBONE if tiny else BackboneConfig(dtype="bfloat16"),
        prompt=PromptConfig(basis=2, tokens=4) if tiny else PromptConfig(),
        operator=OperatorConfig(name="attn_lrp", normalise="abs"),
        objective=ObjectiveConfig(alignment="weighted_kl", warmup=0),
    )
    family = family_of(directory)
    shape = family.read_config(directory, config.backbone)
    graph, abstract = nnx.split(nnx.eval_shape(lambda: family.build(shape, nnx.Rngs(0))))
    processor = family.page_processor(directory, config.backbone, shape)
    pages = [processor(draw_page(i)[0]) for i in range(BATCH)]
    return RealCase(
        directory=directory,
        config=config,
        family=family,
        shape=shape,
        graph=graph,
        params=abstract,
        batch=jax.device_put(_data(family, shape, config, pages).batch(range(BATCH))),
        pages=jax.device_put(stack_pages(pages)),
        units=family.page_units(pages[0].rows, pages[0].columns, shape),
    )
