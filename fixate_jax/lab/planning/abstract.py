"""The arguments of a training step as shapes and types, for any model and batch: nothing is read or allocated."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fixate_jax.backbones.family import Family, PageProcessor
from fixate_jax.backbones.inputs import SequenceInputs
from fixate_jax.backbones.loading import EMBEDDED, abstract_model, family_of
from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.errors import CheckpointError
from fixate_jax.lab.config import RunConfig
from fixate_jax.lab.experiments.loop import start_state
from fixate_jax.lab.planning.published import PUBLISHED, write_published
from fixate_jax.probing.batches import Batch, Shapes
from fixate_jax.tuning.step import TrainState


@dataclass(frozen=True, kw_only=True)
class AbstractBackbone:
    """A backbone without weights.

    Attributes:
        config: shape and special tokens, of the family's own kind.
        family: its architecture.
        graph: the model's structure.
        params: shapes and types of the weights.
        pages: the image processor, which knows how many cells a page gets.
    """

    config: Any
    family: Family
    graph: nnx.GraphDef
    params: nnx.State
    pages: PageProcessor


def open_abstract(model: str, settings: BackboneConfig) -> AbstractBackbone:
    """A backbone by its JSON files alone.

    Args:
        model: a published size (:data:`fixate_jax.lab.planning.published.PUBLISHED`), a model directory, of which
            ``config.json`` and ``preprocessor_config.json`` are enough, or the name of an embedded backbone.
        settings: how it is to be run; its path is not read.

    Raises:
        CheckpointError: when there is no such model, or a file does not say what is needed.
    """
    with tempfile.TemporaryDirectory() as work:
        directory = _directory(model, Path(work))
        family = family_of(directory)
        config = family.read_config(directory, settings)
        graph, params = abstract_model(family, config)
        pages = family.page_processor(directory, settings, config)
    return AbstractBackbone(config=config, family=family, graph=graph, params=params, pages=pages)


def _directory(model: str, work: Path) -> Path:
    if model in PUBLISHED:
        return write_published(model, work)
    if model in EMBEDDED:
        return EMBEDDED[model](work)
    if not (Path(model) / "config.json").is_file():
        raise CheckpointError(
            f"{model!r} is neither a published size ({', '.join(PUBLISHED)}) nor an embedded backbone "
            f"({', '.join(EMBEDDED)}) nor a directory with a config.json"
        )
    return Path(model)


def abstract_state(config: RunConfig, *, users: int, width: int) -> TrainState:
    """Prompt and optimizer state."""
    state: TrainState = jax.eval_shape(lambda: start_state(config, users=users, width=width, seed=0))
    return state


def abstract_batch(shapes: Shapes, backbone: Any, *, rows: int, accumulate: int) -> Batch:
    """The batch of an optimizer step whose page features, or keys and values of pages, come from the cache.

    Args:
        shapes: positions, page tokens, slots, answer tokens.
        backbone: the backbone's configuration.
        rows: sessions of a micro-batch.
        accumulate: micro-batches.
    """
    decoder, page = backbone.decoder, shapes.page
    branches = 1 if shapes.tail == 1 else shapes.slots

    def array(*sides: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((accumulate, rows, *sides), dtype)

    features = array(shapes.visual, 1 + decoder.deepstack_levels, decoder.width, dtype=decoder.dtype)
    keys = array(2, decoder.layers, page, decoder.kv_heads, decoder.head_dim, dtype=decoder.dtype)
    inputs = SequenceInputs(
        token_ids=array(shapes.seq),
        start=array(),
        positions=array(shapes.seq, 3),
        visual_index=array(shapes.seq),
        tail_ids=array(branches, shapes.tail),
        tail_positions=array(branches, shapes.tail, 3),
        tail_valid=array(branches, shapes.tail, dtype=bool),
        visual_position=array(shapes.visual),
        features=None if page else features,
        page_valid=array(page, dtype=bool) if page else None,
        page_keys=keys if page else None,
    )
    return Batch(
        inputs=inputs,
        pages=None,
        answer_ids=array(shapes.slots, shapes.tail),
        answer_mask=array(shapes.slots, shapes.tail, dtype=bool),
        stop=array(shapes.slots, 2),
        slot_matrix=array(shapes.slots, shapes.visual, dtype=jnp.float32),
        slot_mask=array(shapes.slots, dtype=bool),
        gaze=array(shapes.slots, dtype=jnp.float32),
        click=array(),
        user=array(),
        weight=array(dtype=jnp.float32),
        session=array(),
    )
