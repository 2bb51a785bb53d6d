"""Settings that must change speed and memory only, and settings that must change what they say."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fixate_jax.backbones import load_backbone
from fixate_jax.backbones.decoder.decoder_layer import Remat
from fixate_jax.backbones.decoder.flash import Attention
from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.errors import ConfigError
from fixate_jax.lab.config import ObjectiveConfig, OperatorConfig, PromptConfig, RunConfig
from fixate_jax.lab.experiments import loop
from fixate_jax.lab.parts import objective_of
from fixate_jax.tuning.step import session_losses
from tests.tuning.test_loop import SEED, settings
from tests.worlds import World

CONFIG = RunConfig(
    backbone=BackboneConfig(tapped_layers=2, attention_block=32),
    prompt=PromptConfig(basis=3, tokens=4),
    operator=OperatorConfig(normalise="abs"),
    objective=ObjectiveConfig(warmup=0),
)
Found = tuple[float, np.ndarray]


def loss_and_gradient(directory: Path, backbone: BackboneConfig) -> Found:
    """Of a batch with padding and of several attention blocks."""
    world = World(directory, sizes=((3, 192, 128), (5, 192, 128)), config=replace(CONFIG, backbone=backbone))
    batch = world.batch()
    assert batch.inputs.start.max() > 0 and batch.inputs.token_ids.shape[1] > 2 * CONFIG.backbone.attention_block

    objective = objective_of(world.config)

    @jax.jit
    def derived(prompt: Any, params: Any, batch: Any) -> Any:
        losses = lambda p: session_losses(p, world.backbone.merge(params), batch, objective, jnp.float32(0.5))[0]  # noqa: E731
        return jax.value_and_grad(losses)(prompt)

    loss, gradient = derived(world.prompt(), world.backbone.params, batch)
    return float(loss), np.asarray(gradient.basis, np.float32)


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return loss_and_gradient(tmp_path_factory.mktemp("exact"), CONFIG.backbone)


@pytest.mark.parametrize(
    ("remat", "block", "attention"), [("full", 32, "blocked"), ("none", 512, "auto")], ids=["full", "none"]
)
def test_rematerialisation_blocks_and_place_of_padding_change_nothing_but_speed_and_memory(
    exact: Found, tmp_path: Path, remat: Remat, block: int, attention: Attention
) -> None:
    how = replace(CONFIG.backbone, remat=remat, attention_block=block, attention=attention)
    loss, gradient = loss_and_gradient(tmp_path, how)
    assert loss == pytest.approx(exact[0], rel=1e-5)
    np.testing.assert_allclose(gradient, exact[1], rtol=1e-3, atol=1e-5)


def test_bfloat16_weights_give_nearly_the_same(exact: Found, tmp_path: Path) -> None:
    rough = loss_and_gradient(tmp_path, replace(CONFIG.backbone, dtype="bfloat16"))
    assert rough[0] == pytest.approx(exact[0], rel=0.03)
    cosine = (rough[1] * exact[1]).sum() / np.linalg.norm(rough[1]) / np.linalg.norm(exact[1])
    print(f"\nbfloat16: loss {rough[0]:.4f} for {exact[0]:.4f}, cosine of the gradients in B {cosine:.4f}")
    assert cosine > 0.9
    weights = load_backbone(replace(CONFIG.backbone, dtype="bfloat16"), work=tmp_path).params
    assert {x.dtype for x in jax.tree.leaves(weights)} == {jnp.dtype("bfloat16")}


def test_page_area_limits_change_the_grid(tmp_path: Path) -> None:
    full = load_backbone(CONFIG.backbone, work=tmp_path).page_processor.grid(640, 640)
    small = replace(CONFIG.backbone, max_pixels=128 * 128)
    large = replace(CONFIG.backbone, min_pixels=960 * 960)
    assert full == (20, 20)
    assert load_backbone(small, work=tmp_path).page_processor.grid(640, 640) == (4, 4)
    assert load_backbone(large, work=tmp_path).page_processor.grid(640, 640) == (30, 30)


def test_training_stops_after_validations_without_gain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fixate_jax.data.registry import open_or_prepare
    from fixate_jax.lab.experiments.workspace import open_workspace

    config = settings(tmp_path / "store")
    config = replace(config, train=replace(config.train, epochs=6, patience=2, selection="TF"))
    workspace = open_workspace(config, open_or_prepare(config.data), directory=tmp_path)
    score, means = loop.validate(workspace, config, loop.start_state(config, users=2, width=128, seed=0).prompt)
    assert score == means["score"] and 0 < means["kl"] < 20
    scores = iter([0.5, 0.9, 0.8, 0.7, 0.6])
    monkeypatch.setattr(loop, "validate", lambda *_: ((s := next(scores)), {"score": s}))
    tuned = loop.train(workspace, config, tmp_path / "run", seed=SEED)
    assert (tuned.best_epoch, tuned.steps) == (2, 4 * 4)
    with pytest.raises(ConfigError, match=r"train\.mesh = \(1, 2, 1\): 2 devices are needed, and 1 are here"):
        open_workspace(
            replace(config, train=replace(config.train, mesh=(1, 2, 1))),
            open_or_prepare(config.data),
            directory=tmp_path,
        )
