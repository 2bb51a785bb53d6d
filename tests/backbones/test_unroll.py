"""Layers laid out one by one compute what scanned ones do."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fixate_jax.backbones import load_backbone
from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.backbones.tiny.random import TinySizes, write_tiny_random
from fixate_jax.lab.config import PromptConfig, RunConfig
from fixate_jax.prompts import soft_prompt
from tests.worlds import World


def test_unrolled_layers_give_the_same_logits_and_the_same_gradient(tmp_path: Path) -> None:
    sizes = TinySizes(layers=3, width=32, ff=32, vision_width=16, vision_ff=16, deepstack=(0,))
    settings = BackboneConfig(
        path=str(write_tiny_random(tmp_path / "model", sizes=sizes)), tapped_layers=3, remat="none"
    )
    config = RunConfig(backbone=settings, prompt=PromptConfig(basis=2, tokens=2))
    world = World(tmp_path, sizes=((3, 128, 96), (4, 96, 96)), config=config)
    batch, prompt = world.batch(), world.prompt()
    found, loops = [], []
    for unroll in (False, True):
        backbone = load_backbone(replace(settings, unroll=unroll), work=tmp_path)
        assert backbone.config.decoder.unroll == unroll

        def score(prompt: Any, params: Any, backbone: Any = backbone) -> tuple[Any, Any]:
            model = backbone.merge(params)
            logits = model.tail(model.prefill(batch.inputs, soft_prompt(prompt, batch.user))).logits
            return jax.nn.log_softmax(logits, axis=-1)[..., 7].mean(), logits

        derived = jax.jit(jax.value_and_grad(score, has_aux=True))
        loops.append(derived.lower(prompt, world.backbone.params).as_text().count("stablehlo.while"))
        (_, logits), gradient = derived(prompt, world.backbone.params)
        found.append([logits, gradient.basis, gradient.coefficients])
    assert loops[1] < loops[0], "only stacks of one layer are loops still"
    for scanned, unrolled in zip(*found, strict=True):
        scanned, unrolled = np.asarray(scanned), np.asarray(unrolled)
        difference = np.linalg.norm(unrolled - scanned) / np.linalg.norm(scanned)
        print(f"\nrelative difference: {float(difference):.1e}")
        assert float(difference) < 1e-6
        assert scanned.any()
