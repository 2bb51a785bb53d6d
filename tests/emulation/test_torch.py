"""An exported prompt, run by torch and transformers as the documentation says, gives our logits."""

import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.data.carousel import Poster, draw_carousels, poster_boxes
from fixate_jax.data.readers.synthetic.carousel import LABELS, PROFILE
from fixate_jax.emulation import BACKBONE, Page
from fixate_jax.lab.bundles.bundle import write_bundle
from fixate_jax.lab.bundles.card import Origin
from fixate_jax.lab.bundles.settings import emulator_of
from fixate_jax.lab.config import OperatorConfig, PromptConfig, RunConfig, TrainConfig
from fixate_jax.prompts import init_prompt

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
DOCS = Path(__file__).parents[2] / "docs" / "howto" / "export.md"


def documented() -> str:
    """The program of the documentation."""
    (block,) = re.findall(r"^```python\n(import json.*?)^```$", DOCS.read_text(encoding="utf-8"), re.M | re.S)
    return str(block)


@pytest.mark.parametrize("positions", ["mrope", "flat"])
def test_an_exported_prompt_gives_our_logits(positions: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = RunConfig(
        backbone=BackboneConfig(path="tiny-qwen3-vl", tapped_layers=2, positions=positions),
        prompt=PromptConfig(basis=2, tokens=4, init_scale=2.0),
        operator=OperatorConfig(name="attention"),
        train=TrainConfig(eval_batch=1),
    )
    from fixate_jax.backbones import load_backbone

    backbone = load_backbone(config.backbone, work=tmp_path)
    key, other = jax.random.split(jax.random.key(5))
    prompt = init_prompt(key, **config.prompt.sizes, users=2, width=backbone.width)
    prompt = prompt._replace(coefficients=jax.random.normal(other, (2, 2)))
    emulator = emulator_of(config, backbone, prompt, ("ann", "bob"))
    posters = [Poster("horror", 1), *[Poster(genre) for genre in ("drama", "comedy") * 7]]
    image = draw_carousels(posters, LABELS, width=320)
    page = Page(
        relative=True, labelled=True, name="page", image=image, boxes=poster_boxes(), labels=LABELS, profile=PROFILE
    )
    write_bundle(emulator, tmp_path / "bundle", Origin(data="made up", seed=5))
    image.save(tmp_path / "page.png")

    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {"MODEL": str(backbone.directory), "USER": "bob"}
    exec(compile(documented(), str(DOCS), "exec"), found)
    theirs = found["logits"].numpy()

    data = emulator._data([page.stored()], {page.name: page.image})
    batch = jax.device_put(data.batch([0]))

    @jax.jit
    def logits(params: Any, inputs: Any, soft: Any) -> Any:
        model: Any = nnx.merge(backbone.graph, params)
        return model.tail(model.prefill(inputs, soft, True)).logits

    ours = np.asarray(logits(backbone.params, batch.inputs, emulator.soft_prompts[1:2]))[0, 0, -1]
    np.testing.assert_allclose(theirs, ours, atol=2e-4)
    visits = emulator.visit_all([page], ["bob", BACKBONE])
    np.testing.assert_allclose(found["probabilities"].numpy(), visits.probabilities()[0], atol=1e-4)
    assert np.abs(visits.log_probs[0] - visits.log_probs[1]).max() > 0.05, "the prompt does something"
