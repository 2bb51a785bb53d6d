"""A loss of one look, by itself and side by side with others, on one device and on a mesh.

As a program, what `test_look.py` runs on eight simulated devices:
python -m tests.probing.looking FOLDER FAMILY OPERATOR ...; prints JSON.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from PIL import Image

import fixate_jax as fx
from fixate_jax.backbones import Backbone
from fixate_jax.backbones.sharding import BATCH_AXES, make_mesh
from fixate_jax.backbones.tiny.random import write_tiny_random
from fixate_jax.backbones.tiny.sizes import TinySizes
from fixate_jax.lab.parts import OPERATORS
from fixate_jax.probing import Operator
from fixate_jax.probing.batches import Batch

TOKENS = 3
PEOPLE = 2
SETTINGS: dict[str, dict[str, Any]] = {"attn_lrp": {"normalise": "abs"}, "integrated_gradients": {"steps": 2}}
EACH = {name: factory(**SETTINGS.get(name, {})) for name, factory in OPERATORS.items()}
MESH = (2, 2, 2)


def page(slots: int = 3, size: tuple[int, int] = (96, 64), seed: int = 0) -> fx.Page:
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8))
    side = size[0] // slots
    boxes = [(i * side, 0, (i + 1) * side, size[1]) for i in range(slots)]
    return fx.Page(image=image, boxes=boxes, labels=tuple("ABCDEF"[:slots]))


def write_model(folder: Path, family: Any) -> Path:
    """A small random model: two layers that are tapped, and one below them."""
    sizes = TinySizes(family=family, layers=3, width=48, ff=64, head_dim=16, vision_width=32, vision_ff=32)
    return write_tiny_random(folder, sizes=sizes)


def prompts(backbone: Backbone) -> jax.Array:
    return 0.5 * jax.random.normal(jax.random.key(0), (PEOPLE, TOKENS, backbone.width))


def gazes(batch: Batch) -> jax.Array:
    return jax.nn.softmax(jax.random.normal(jax.random.key(1), (PEOPLE, *batch.slot_mask.shape)))


def distance(prompt: jax.Array, gaze: jax.Array, backbone: Backbone, batch: Batch, operator: Operator) -> jax.Array:
    """Of gaze, and a little of the answers."""
    seen = fx.look(backbone, batch, prompt, operator)
    answered = jnp.where(batch.slot_mask, seen.label_log_probs, 0).sum()
    return fx.objective.kl(gaze, seen.slot_attention, batch.slot_mask).mean() + 0.1 * answered


def side_by_side(backbone: Backbone, batch: Batch, operator: Operator) -> tuple[jax.Array, jax.Array]:
    """Losses and gradients of all people's prompts: vmap(grad) under jit, with the backbone as an argument."""
    over_people = jax.vmap(jax.value_and_grad(distance), in_axes=(0, 0, None, None, None))
    return jax.jit(over_people, static_argnums=4)(prompts(backbone), gazes(batch), backbone, batch, operator)


def one_by_one(backbone: Backbone, batch: Batch, operator: Operator) -> tuple[jax.Array, jax.Array]:
    """The same, one call after another."""
    one = jax.jit(jax.value_and_grad(distance), static_argnums=4)
    each = [one(*person, backbone, batch, operator) for person in zip(prompts(backbone), gazes(batch), strict=True)]
    values, gradients = zip(*each, strict=True)
    return jnp.stack(values), jnp.stack(gradients)


def difference(found: tuple[jax.Array, jax.Array], expected: tuple[jax.Array, jax.Array]) -> float:
    """The largest, relative to each person's loss or largest derivative."""
    largest = 0.0
    for ours, theirs in zip(jax.device_get(found), jax.device_get(expected), strict=True):
        for mine, reference in zip(ours, theirs, strict=True):
            assert np.abs(reference).max() > 1e-6
            largest = max(largest, float(np.abs(mine - reference).max() / np.abs(reference).max()))
    return largest


def on_mesh(batch: Batch, mesh: Mesh) -> Batch:
    """The batch with its rows shared among devices."""
    return jax.device_put(batch, NamedSharding(mesh, PartitionSpec(BATCH_AXES)))


def main(folder: Path, family: str, names: Sequence[str]) -> None:
    """Print how far looks side by side on a mesh are from looks one by one on one device."""
    found: dict[str, Any] = {"devices": jax.device_count()}
    mesh, path = make_mesh(MESH), write_model(folder, family)
    backbone = fx.load_backbone(path, tapped_layers=2)
    batch = fx.encode(backbone, [page(), page(2, seed=1)] * 2, prompt_tokens=TOKENS)
    shared = fx.load_backbone(path, tapped_layers=2, mesh=mesh)
    assert not all(leaf.is_fully_replicated for leaf in jax.tree.leaves(shared))
    for name in names:
        many = side_by_side(shared, on_mesh(batch, mesh), EACH[name])
        found[name] = difference(many, one_by_one(backbone, batch, EACH[name]))
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
