"""A recipe small enough for tests, and models of its shape."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fixate_jax.backbones import Backbone, load_backbone
from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.backbones.tiny.random import random_tensors, write_model
from fixate_jax.lab.pretraining.packing import Packer, make_packer
from fixate_jax.lab.pretraining.recipe import Recipe, sizes_of
from fixate_jax.lab.settings import load_settings

SHIPPED_RECIPE = load_settings(Path(__file__).parents[2] / "configs" / "pretrain_tiny.yaml", Recipe)
RECIPE = Recipe(
    seed=3,
    steps=4,
    batch=2,
    learning_rate=0.01,
    warmup=0,
    page_width=160,
    seq=112,
    checkpoint_every=2,
    looking_layers=1,
    width=32,
    layers=2,
    ff=32,
    vision_width=16,
    vision_ff=16,
)


def random_backbone(
    directory: Path, *, tapped: int = RECIPE.layers, tensors: Mapping[str, np.ndarray] | None = None
) -> Backbone:
    """A model of the small recipe's shape whose every weight is random, so that nothing is left out by being zero."""
    sizes = sizes_of(RECIPE)
    written = write_model(directory, sizes, random_tensors(sizes, seed=1) if tensors is None else tensors)
    return load_backbone(BackboneConfig(path=str(written), tapped_layers=tapped))


def packer_of(recipe: Recipe, backbone: Backbone) -> Packer:
    """A packer of the recipe's lengths."""
    return make_packer(backbone, page_width=recipe.page_width, seq=recipe.seq, tail=recipe.tail)
