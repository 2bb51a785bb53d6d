"""The recipe of a tiny backbone: its sizes, its pages, its optimizer, and the loop that follows it."""

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from fixate_jax.backbones import qwen3_vl
from fixate_jax.backbones.checkpoint import export_tensors
from fixate_jax.backbones.loading import Backbone, load_backbone
from fixate_jax.backbones.tiny_random import TinySizes, random_tensors, tensor_shapes, write_model
from fixate_jax.config import BackboneConfig
from fixate_jax.pretraining.packing import PackedBatch, Packer
from fixate_jax.pretraining.tasks import KINDS, WORDS
from fixate_jax.progress import bar
from fixate_jax.tuning.checkpoint import CheckpointStore
from fixate_jax.tuning.log import MetricsLog
from fixate_jax.tuning.loop import Interrupted, stop_requests


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that the weights depend on."""

    seed: int = 0
    """Of the weights at the start and of all pages."""
    steps: int = 1600
    """Optimizer steps."""
    batch: int = 32
    """Pages a step, half of them gambles, half carousels."""
    learning_rate: float = 2e-3
    """Highest learning rate of AdamW."""
    warmup: int = 100
    """Steps in which the rate grows; afterwards it falls along a half cosine to a hundredth."""
    weight_decay: float = 0.01
    """Decoupled weight decay of matrices."""
    clip: float = 1.0
    """Largest global gradient norm."""
    page_width: int = 320
    """Width of the drawn pages in pixels."""
    seq: int = 152
    """Prefix length: persona, page, profile, labels."""
    tail: int = 24
    """Tail length: question and answer."""
    checkpoint_every: int = 200
    """Steps between checkpoints."""
    width: int = 128
    """Width of the decoder."""
    layers: int = 4
    """Decoder layers."""
    ff: int = 384
    """Width of the decoder's feed-forward layers."""
    vision_width: int = 96
    """Width of the vision tower."""
    vision_ff: int = 192
    """Width of the vision tower's feed-forward layers."""

    @property
    def sizes(self) -> TinySizes:
        """Shape of the model and its tokenizer."""
        return TinySizes(
            vocab=1024,
            words=WORDS,
            merges=None,
            width=self.width,
            layers=self.layers,
            ff=self.ff,
            vision_width=self.vision_width,
            vision_ff=self.vision_ff,
            deepstack=(0,),
        )
