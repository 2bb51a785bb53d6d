"""A backbone is one file and one line: a third one, which the library knows nothing of, goes all the way."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from fixate_jax.backbones import load_backbone, loading
from fixate_jax.backbones.family import Family, Model, PageProcessor
from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.backbones.weights.checkpoint import export_tensors
from fixate_jax.errors import CheckpointError
from fixate_jax.lab.config import ObjectiveConfig, OperatorConfig, PromptConfig, RunConfig
from fixate_jax.lab.experiments.loop import start_state
from fixate_jax.lab.experiments.programs import make_evaluate, make_train_step
from fixate_jax.prompts import soft_prompt
from tests.backbones import toy_family
from tests.worlds import USERS, World


@pytest.fixture(scope="module", autouse=True)
def line() -> Any:
    """The one line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(loading.FAMILIES, toy_family.MODEL_TYPE, toy_family)
        yield


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_family.write_colours(tmp_path_factory.mktemp("toy") / "model")


@pytest.fixture(scope="module")
def world(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    config = RunConfig(
        backbone=BackboneConfig(path=str(directory), tapped_layers=2, attention_block=32),
        prompt=PromptConfig(basis=3, tokens=4),
        operator=OperatorConfig(name="attention"),
        objective=ObjectiveConfig(warmup=0, alignment="kl"),
    )
    return World(tmp_path_factory.mktemp("world"), sizes=((3, 320, 192), (4, 192, 160)), config=config)


def test_without_its_line_it_is_not_known(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(loading.FAMILIES, toy_family.MODEL_TYPE)
    with pytest.raises(
        CheckpointError, match="model_type 'colours' is not supported; supported are qwen3_vl, internvl"
    ):
        load_backbone(BackboneConfig(path=str(directory)))


def test_it_keeps_the_protocol(world: World) -> None:
    for family in loading.FAMILIES.values():
        assert isinstance(family, Family)
    backbone = world.backbone
    assert isinstance(backbone.merge(backbone.params), Model) and isinstance(backbone.page_processor, PageProcessor)
    assert backbone.family is toy_family


def test_page_tokens_are_mean_colours(world: World) -> None:
    """The features that training reads are what this vision tower says of the page, cell by cell."""
    backbone = world.backbone
    image = Image.new("RGB", (64, 32), (255, 0, 0))
    image.paste((0, 0, 255), (32, 0, 64, 32))
    page = backbone.page_processor(image)
    assert (page.rows, page.columns) == (1, 2)
    tokens = np.asarray(backbone.merge(backbone.params).encode_pages(page.inputs))[0, :, 0]
    kernel, bias = (np.asarray(backbone.params["colours"][name][...]) for name in ("kernel", "bias"))
    np.testing.assert_allclose(tokens, np.array([[1, -1, -1], [-1, -1, 1]]) @ kernel + bias, rtol=1e-5)


def test_it_trains_and_evaluates(world: World) -> None:
    config, backbone, batch = world.config, world.backbone, world.batch()
    state = start_state(config, users=len(USERS), width=backbone.width, seed=0)
    before = jax.device_get(state.prompt)
    step = make_train_step(backbone.graph, config, users=len(USERS), steps=4)
    losses = []
    for _ in range(4):
        state, parts = step(state, backbone.params, jax.tree.map(lambda x: x[None], batch))
        assert np.isfinite(float(parts["loss"])) and float(parts["basis_gradient"]) > 1e-6
        losses.append(float(parts["loss"]))
    assert losses[-1] < losses[0]
    assert np.abs(jax.device_get(state.prompt).basis - before.basis).max() > 1e-4

    evaluate = make_evaluate(backbone.graph, config, backbone.encoder.end_token)
    soft = soft_prompt(world.prompt(), batch.user)
    tuned, plain = (jax.device_get(evaluate(soft, use, backbone.params, batch)) for use in (True, False))
    for i, session in enumerate(world.sessions):
        a, b = tuned.teacher_forced[i, : session.slots], plain.teacher_forced[i, : session.slots]
        assert a.sum() == pytest.approx(1, abs=0.02) and b.sum() == pytest.approx(1, abs=0.02)
        assert (a >= 0).all() and np.abs(a - b).max() > 1e-3
    real = np.isfinite(plain.log_probs)
    assert real.sum() == sum(s.slots for s in world.sessions)
    assert np.abs(tuned.log_probs[real] - plain.log_probs[real]).max() > 1e-3


def test_its_tensors_go_there_and_back(directory: Path) -> None:
    before = load_file(directory / "model.safetensors")
    backbone = load_backbone(BackboneConfig(path=str(directory), tapped_layers=2))
    shapes = {name: tensor.shape for name, tensor in before.items()}
    after = export_tensors(backbone.params, backbone.family.rules(backbone.config), shapes)
    assert set(before) == set(after)
    for name, tensor in before.items():
        np.testing.assert_array_equal(after[name], tensor, err_msg=name)
