"""Analytic operation counts against XLA's own count of the same computation with every layer laid out."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from fixate_jax.backbones.decoder.decoder import Decoder
from fixate_jax.backbones.decoder.decoder_layer import DecoderConfig
from fixate_jax.backbones.inputs import SequenceInputs
from fixate_jax.backbones.internvl import pages as internvl_pages
from fixate_jax.backbones.internvl import vision as internvl_vision
from fixate_jax.backbones.internvl.config import InternVLConfig
from fixate_jax.backbones.internvl.config import VisionConfig as InternVisionConfig
from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.backbones.qwen3_vl import vision as qwen3_vl_vision
from fixate_jax.backbones.qwen3_vl.model import Qwen3VLConfig
from fixate_jax.lab.planning import flops
from fixate_jax.lab.planning.abstract import open_abstract
from fixate_jax.lab.planning.plan import Workload, lower_step, sequence_shapes, train_parts
from fixate_jax.probing import Trace, attn_lrp
from tests.abstract_steps import settings, write_small

WIDTH, SOFT = 256, 4
DECODER = DecoderConfig(
    vocab=700,
    layers=3,
    width=WIDTH,
    ff=512,
    heads=4,
    kv_heads=2,
    head_dim=128,
    rope_theta=1e4,
    tapped_layers=2,
    attention="blocked",
    attention_block=512,
    remat="none",
    unroll=True,
)


@pytest.fixture(autouse=True)
def nothing_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loops laid out, attention as one block whose scores are not computed again on the way back."""
    monkeypatch.setattr(jax.lax, "scan", partial(jax.lax.scan, unroll=True))
    monkeypatch.setattr(jax, "checkpoint", lambda function, **how: function)
    # One block computes the masked half too.
    monkeypatch.setattr(flops, "causal_pairs", lambda rows: rows * rows)


def counted(function: Any, *arguments: Any) -> float:
    """XLA's count before optimisation, which for these differs from that after it by less than 0.1%."""
    costs: Any = jax.jit(function).lower(*arguments).cost_analysis()
    return costs["flops"]


def inputs(seq: int, answer: int) -> SequenceInputs:
    zeros = partial(jnp.zeros, dtype=jnp.int32)
    return SequenceInputs(
        token_ids=zeros((1, seq)),
        start=zeros((1,)),
        positions=zeros((1, seq, 3)),
        visual_index=zeros((1, seq)) - 1,
        tail_ids=zeros((1, 1, answer)),
        tail_positions=zeros((1, 1, answer, 3)),
        tail_valid=jnp.ones((1, 1, answer), bool),
        visual_position=zeros((1, 1)),
        features=jnp.zeros((1, 1, 1, WIDTH)),
    )


def abstract(make: Any) -> tuple[nnx.GraphDef, nnx.State]:
    return nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))


@pytest.mark.parametrize(
    ("tapped", "seq", "answer", "tolerance", "names"),
    [
        (2, 96, 2, 0.02, ("prefill", "tail", "plain", "aligned")),
        # Nearly all tail, whose attention to itself has more products behind it than are counted.
        (3, 64, 64, 0.07, ("aligned",)),
    ],
)
def test_decoder_counts(tapped: int, seq: int, answer: int, tolerance: float, names: tuple[str, ...]) -> None:
    config = replace(DECODER, tapped_layers=tapped)
    graph, params = abstract(partial(Decoder, config))
    sequence, prompt = inputs(seq, answer), jnp.zeros((1, SOFT, WIDTH))

    def prefill(prompt: Any, params: Any) -> Any:
        return nnx.merge(graph, params).prefill(sequence, prompt)

    def loss(prompt: Any, params: Any, aligned: bool) -> Any:
        model = nnx.merge(graph, params)
        prefix = model.prefill(sequence, prompt)
        if not aligned:
            return model.tail(prefix).logits[..., 7].sum() ** 2
        shell = SimpleNamespace(config=SimpleNamespace(decoder=config), tail=model.tail)
        probe = attn_lrp()(Trace(shell, prefix, lambda x: x[..., 3].sum(-1)))
        return (probe.relevance**2).sum() + probe.logits[..., 7].sum() ** 2

    prefix = jax.eval_shape(prefill, prompt, params)
    sizes: Any = {"seq": seq, "answer": answer}
    cases: dict[str, tuple[Any, Any, flops.Flops]] = {
        "prefill": (prefill, prompt, flops.prefill(config, **sizes)),
        "tail": (lambda prefix, params: nnx.merge(graph, params).tail(prefix), prefix, flops.tail(config, **sizes)),
        "plain": (jax.grad(partial(loss, aligned=False)), prompt, flops.train_step(config, **sizes, aligned=False)),
        "aligned": (jax.grad(partial(loss, aligned=True)), prompt, flops.train_step(config, **sizes)),
    }
    for name in names:
        function, first, analytic = cases[name]
        ratio = counted(function, first, params) / analytic.total
        print(f"\n{name}: XLA's count / ours {ratio:.3f}")
        # XLA also counts norms, activations and softmax.
        assert 1 <= ratio < 1 + tolerance, name


@pytest.mark.parametrize("cached", [True, False])
def test_counts_of_a_step_behind_the_page(cached: bool) -> None:
    page, rest, answer = 96, 40, 1
    graph, params = abstract(partial(Decoder, DECODER))
    given = inputs(page + rest, answer)._replace(
        start=jnp.full((1,), page),
        page_valid=jnp.ones((1, page), bool),
        page_keys=jnp.zeros((1, 2, DECODER.layers, page, DECODER.kv_heads, DECODER.head_dim)) if cached else None,
    )

    def loss(prompt: Any, params: Any) -> Any:
        model, sequence = nnx.merge(graph, params), given
        if not cached:
            sequence = sequence._replace(page_keys=model.page_keys(sequence))
        shell = SimpleNamespace(config=SimpleNamespace(decoder=DECODER), tail=model.tail)
        prefix = model.prefill(sequence, prompt)
        probe = attn_lrp()(Trace(shell, prefix, lambda x: x[..., 3].sum(-1)))
        return (probe.relevance**2).sum() + probe.logits[..., 7].sum() ** 2

    count = counted(jax.grad(loss), jnp.zeros((1, SOFT, WIDTH)), params)
    ours = flops.after_image_step(DECODER, page=page, rest=rest, answer=answer, cached=cached)
    print(f"\ncached {cached}: XLA's count / ours {count / ours.total:.3f}")
    assert 1 <= count / ours.total < 1.03


def test_vision_counts() -> None:
    vision = qwen3_vl_vision.VisionConfig(
        layers=3, width=256, ff=512, heads=2, out_width=WIDTH, patch=8, table=64, deepstack_after=(0,)
    )
    graph, params = abstract(partial(qwen3_vl_vision.VisionTower, vision))
    patches = 96
    zeros = partial(jnp.zeros, dtype=jnp.int32)
    pages: Any = qwen3_vl_vision.PageInputs(
        jnp.zeros((1, patches, vision.patch_values)),
        zeros((1, patches, 4)),
        jnp.zeros((1, patches, 4)),
        zeros((1, patches, 2)),
        jnp.ones((1, patches), bool),
    )
    count = counted(lambda params, pages: nnx.merge(graph, params)(pages), params, pages)
    ours = flops.encode_page(Qwen3VLConfig(decoder=DECODER, vision=vision, image_token=0), units=patches)
    assert count / ours.total == pytest.approx(1.01, abs=0.012)


def test_tile_counts() -> None:
    vision = InternVisionConfig(layers=3, width=256, ff=512, heads=2, image_size=56, patch=7, activation="silu")
    config = InternVLConfig(decoder=DECODER, vision=vision, image_token=0, projector_activation="silu")
    graph, params = abstract(partial(internvl_vision.VisionTower, config))
    pages = internvl_pages.PageInputs(jnp.zeros((1, 2, 3, 56, 56)), jnp.ones((1, 2), bool))
    count = counted(lambda params, pages: nnx.merge(graph, params)(pages), params, pages)
    assert count / flops.encode_page(config, units=2).total == pytest.approx(1.01, abs=0.012)


def test_counts_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert flops.causal_pairs(4) == 10
    shape = {"vocab": 7, "layers": 3, "width": 2, "ff": 5, "heads": 2, "kv_heads": 1, "head_dim": 4}
    config = DecoderConfig(**shape, rope_theta=1.0, tapped_layers=2)  # type: ignore[arg-type]
    # A row of a layer: query and output 2·8 each, key and value 2·4 each, feed-forward 3·2·5.
    row = 2 * (16 + 16 + 8 + 8 + 30)
    two = flops.prefill(config, seq=3, answer=2, branches=2)
    assert two.weights == row * (3 + 4) + row * 3 + 2 * 3 * 16
    assert two.attention == 4 * 8 * (6 + 2 * (2 * 3 + 3)) + 4 * 8 * 6
    assert flops.tail(config, seq=3).head == 2 * 2 * 7


@pytest.mark.parametrize("aligned", [True, False], ids=["aligned", "plain"])
def test_a_whole_step_as_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, aligned: bool) -> None:
    """The real step with optimizer, causality as it is, blocks computed again on the way back: nothing is arranged."""
    monkeypatch.undo()
    how = BackboneConfig(tapped_layers=2, unroll=True, attention_block=32)
    backbone = open_abstract(write_small(tmp_path, num_hidden_layers=3), how)
    work = Workload(page=(320, 320), text=12, before=4, slots=3, users=5)
    config = settings(batch=2, aligned=aligned, backbone=how)
    shapes = sequence_shapes(backbone, config, work)
    assert shapes.seq == 16 + 100 + 12
    parts = {name: 2 * part.total for name, part in train_parts(backbone.config.decoder, config, shapes).items()}
    ratio = lower_step(backbone, config, work).compile().cost_analysis()["flops"] / sum(parts.values())
    print(f"\nXLA's count / ours {ratio:.3f}")
    assert 1 <= ratio < 1.05
    assert set(parts) == {"forward", "inner gradient", "backward"}
    assert (parts["inner gradient"] > 0) is aligned


def test_a_cached_page_has_no_gradient_of_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    whole, none = (flops.train_step(DECODER, seq=100, cached=n) for n in (0, 100))
    assert none.weights < whole.weights / 20 and none.head == whole.head
    some = flops.prefill(DECODER, seq=100, cached=60)
    below, rows, pairs = DECODER.layers - DECODER.tapped, 40, 40 * 41 // 2 + 40 * 60
    layers = below + DECODER.tapped - 1
    assert some.attention == 4 * 512 * (layers * pairs + below * (100 + 1))
    # Of the prefix's attention over the page: the product itself, and one on the way back.
    lost = flops.train_step(DECODER, seq=100, cached=60).attention
    full = 3 * some.attention + 6 * flops.tail(DECODER, seq=100).attention
    assert full - lost == 4 * 512 * 60 * layers * rows


def test_parts_make_up_the_step() -> None:
    parts = flops.train_parts(DECODER, seq=40, answer=2)
    assert sum(part.total for part in parts.values()) == flops.train_step(DECODER, seq=40, answer=2).total
    assert parts["forward"].total == (
        flops.prefill(DECODER, seq=40, answer=2).total + flops.tail(DECODER, seq=40, answer=2).total
    )
