"""AttnLRP against its authors' package, on a text model whose every tensor is random."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fixate_jax.backbones import load_backbone
from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.lab.verify.verify import plain_inputs
from fixate_jax.probing import Trace, conservation_error
from fixate_jax.probing.operators.lrp import lrp
from tests.backbones.tiny_internvl import make_internvl_checkpoint

TOKENS = 24
BROKEN = {
    "bert": "modeling_bert",
    "gemma3": "modeling_gemma3",
    "gpt2": "modeling_gpt2",
    "vit_torch": "vision_transformer",
}
"""Models of lxt 2.1 that do not import beside transformers 5 or without torchvision, and what is read of each."""


def with_lxt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put lxt's AttnLRP rules into transformers' Qwen3; the test's end takes them out again.

    lxt 2.1 is for transformers 4: the models that no longer import are replaced by empty ones, and attention is wrapped
    by hand, since the table of attention functions is no dictionary any more.
    """
    for name, attribute in BROKEN.items():
        stub: Any = ModuleType(f"lxt.efficient.models.{name}")
        setattr(stub, attribute, object())
        stub.attnLRP = stub.cp_LRP = {}
        monkeypatch.setitem(sys.modules, stub.__name__, stub)
    pytest.importorskip("lxt.efficient", reason="lxt is not installed: pip install --no-deps lxt==2.1")
    from lxt.efficient.models.qwen3 import attnLRP
    from lxt.efficient.patches import wrap_attention_forward
    from transformers.models.qwen3 import modeling_qwen3

    target: Any
    for target, patch in attnLRP.items():
        if hasattr(target, "forward"):
            # Setting what is there already makes pytest put it back.
            monkeypatch.setattr(target, "forward", target.forward)
            assert patch(target), target
    wrapped = wrap_attention_forward(modeling_qwen3.eager_attention_forward)
    monkeypatch.setattr(modeling_qwen3, "eager_attention_forward", wrapped)


def times_gradient(directory: Path, ids: np.ndarray, answer: int) -> tuple[np.ndarray, float]:
    """Input × gradient of every position for the answer's logit at the last one, and that logit."""
    import torch
    import transformers

    model = transformers.InternVLForConditionalGeneration.from_pretrained(directory, attn_implementation="eager")
    model.requires_grad_(False)
    text = model.model.language_model
    embeddings = model.get_input_embeddings()(torch.from_numpy(ids)).requires_grad_()
    logit = model.lm_head(text(inputs_embeds=embeddings, use_cache=False).last_hidden_state)[0, -1, answer]
    logit.backward()
    return (embeddings * embeddings.grad).sum(-1)[0].detach().numpy(), float(logit.detach())


def test_relevance_equals_that_of_lxt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="torch, which lxt needs, is not installed")
    directory = make_internvl_checkpoint(tmp_path / "model", tie=False)
    ids = np.random.default_rng(0).integers(0, 256, (1, TOKENS))
    answer = 77
    plain, _ = times_gradient(directory, ids, answer)
    with_lxt(monkeypatch)
    theirs, logit = times_gradient(directory, ids, answer)

    backbone = load_backbone(BackboneConfig(path=str(directory), tapped_layers=2))
    positions = np.repeat(np.arange(TOKENS)[None, :, None], 3, axis=2)
    no_page = jnp.asarray(np.zeros((1, 1, 1, backbone.width), np.float32))
    inputs = plain_inputs(ids, np.ones_like(ids), positions, backbone.config.image_token, no_page)

    @jax.jit
    def run(params: Any, prompt: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        model = backbone.merge(params)
        prefix = model.prefill(inputs, prompt)
        trace = Trace(model, prefix, lambda logits: logits[..., -1, answer])
        probe = lrp()(trace)
        return probe.relevance[0, 0], probe.logits[0, 0, 0, answer], conservation_error(probe, trace)[0, 0]

    ours, own_logit, error = jax.device_get(run(backbone.params, np.zeros((1, 0, backbone.width), np.float32)))
    assert float(own_logit) == pytest.approx(logit, rel=1e-4)
    scale = np.abs(theirs).max()
    difference = np.abs(ours - theirs) / scale
    at_each = (np.abs(ours - theirs) / np.abs(theirs)).max()
    print(f"\nLRP against lxt: {difference.max():.1e} of the largest relevance, {at_each:.1e} of each position's own")
    print(
        f"sum of lxt's relevance {theirs.sum():.4f}, ours {ours.sum():.4f}, logit {logit:.4f}, error {float(error):.1%}"
    )
    assert difference.max() < 1e-5
    assert at_each < 1e-3
    assert np.abs(plain - theirs).max() / scale > 0.1, "the rules change something"
