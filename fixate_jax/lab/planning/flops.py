"""Floating-point operations of the method's matrix products, from shapes alone.

XLA's own count takes the body of a scan once, and counts what an implementation recomputes; a utilisation of the
hardware wants the operations that the method needs. Only matrix products count, two operations for a multiplication
and its addition. Causal attention counts the pairs that may see each other. All counts are for one session.
"""

from dataclasses import dataclass, replace
from typing import Any

from fixate_jax.backbones.decoder.decoder_layer import DecoderConfig
from fixate_jax.backbones.internvl.config import InternVLConfig
from fixate_jax.backbones.qwen3_vl.model import Qwen3VLConfig


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Operations of one pass.

    Attributes:
        weights: products with weights.
        attention: products of queries with keys and of attention with values.
        head: products with the output head.
    """

    weights: int
    attention: int = 0
    head: int = 0

    @property
    def total(self) -> int:
        """All together."""
        return self.weights + self.attention + self.head


def causal_pairs(rows: int) -> int:
    """Pairs of a position and one that it sees, itself included."""
    return rows * (rows + 1) // 2


def _layers(config: DecoderConfig, layers: int, *, rows: int, pairs: int) -> Flops:
    """Whole decoder layers over so many rows, whose queries meet so many keys all together."""
    query, key = config.heads * config.head_dim, config.kv_heads * config.head_dim
    weights = config.width * (2 * query + 2 * key + 3 * config.ff)
    return Flops(weights=2 * layers * rows * weights, attention=4 * layers * pairs * query)


def _sum(*parts: Flops) -> Flops:
    return Flops(
        weights=sum(part.weights for part in parts),
        attention=sum(part.attention for part in parts),
        head=sum(part.head for part in parts),
    )


def _tail_pairs(seq: int, answer: int, branches: int) -> int:
    return branches * (answer * seq + causal_pairs(answer))


def prefill(config: DecoderConfig, *, seq: int, answer: int = 1, branches: int = 1, cached: int = 0) -> Flops:
    """Prefix through all layers, and the tail through those below the tap; the last layer makes keys and values only.

    Args:
        config: the decoder's shape.
        seq: positions of the prefix.
        answer: tokens of an answer, which is as wide as a tail.
        branches: tails that share the prefix.
        cached: the first positions, whose keys and values are known.
    """
    lower, tails = config.layers - config.tapped, _tail_pairs(seq, answer, branches)
    rows = seq - cached
    pairs = causal_pairs(rows) + rows * cached
    return _sum(
        _layers(config, lower, rows=rows + branches * answer, pairs=pairs + tails),
        _layers(config, config.tapped - 1, rows=rows, pairs=pairs),
        Flops(weights=4 * rows * config.width * config.kv_heads * config.head_dim),
    )


def tail(config: DecoderConfig, *, seq: int, answer: int = 1, branches: int = 1) -> Flops:
    """The tail through the tapped layers and the output head; arguments as in :func:`prefill`."""
    rows = branches * answer
    layers = _layers(config, config.tapped, rows=rows, pairs=_tail_pairs(seq, answer, branches))
    return _sum(layers, Flops(weights=0, head=2 * rows * config.width * config.vocab))


def train_parts(
    config: DecoderConfig, *, seq: int, answer: int = 1, aligned: bool = True, cached: int = 0
) -> dict[str, Flops]:
    """What a training step of one session is made of: forward, the inner gradient, the gradient of the prompt.

    Weights are frozen, so a product with weights has one product behind it on the way back, and an attention product
    two, or one where its keys and values are known (in the tail, whose few rows attend to those and others together, it
    is counted like any other). The tail of an aligned step is differentiated with respect to its
    taps first, which takes as many products as it has itself, but no gradient of the prefix's keys and values; and the
    outer gradient passes through both. The head has no second order: the target's gradient is constant there.

    Args:
        config: the decoder's shape.
        seq: positions of the prefix.
        answer: tokens of the answer.
        aligned: whether AttnLRP's relevance is part of the loss, or next-token prediction alone.
        cached: the first positions, whose keys and values are known.
    """
    below = prefill(config, seq=seq, answer=answer, cached=cached)
    above = tail(config, seq=seq, answer=answer)
    known = 4 * config.heads * config.head_dim * (config.layers - 1) * (seq - cached) * cached
    inner = above if aligned else Flops(weights=0)
    passes = 2 if aligned else 1
    back = Flops(
        weights=below.weights + passes * above.weights,
        attention=2 * (below.attention + passes * above.attention) - known,
        head=above.head,
    )
    return {"forward": _sum(below, above), "inner gradient": inner, "backward": back}


def train_step(config: DecoderConfig, *, seq: int, answer: int = 1, aligned: bool = True, cached: int = 0) -> Flops:
    """Forward and backward pass of one session, page features given, nothing recomputed; see :func:`train_parts`."""
    return _sum(*train_parts(config, seq=seq, answer=answer, aligned=aligned, cached=cached).values())


def encode_page(config: Qwen3VLConfig | InternVLConfig, *, units: int) -> Flops:
    """The vision tower on one page.

    Args:
        config: the backbone's shape.
        units: patches (Qwen3-VL) or tiles (InternVL) of the page.
    """
    return _qwen3_vl_page(config, units) if isinstance(config, Qwen3VLConfig) else _internvl_page(config, units)


def _tower(vision: Any, *, rows: int, pairs: int) -> Flops:
    weights = 2 * vision.layers * rows * vision.width * (4 * vision.width + 2 * vision.ff)
    return Flops(weights=weights, attention=4 * vision.layers * pairs * vision.width)


def _qwen3_vl_page(config: Qwen3VLConfig, patches: int) -> Flops:
    vision = config.vision
    joined, cells = vision.width * vision.merge**2, patches // vision.merge**2
    mergers = (1 + len(vision.deepstack_after)) * 2 * cells * joined * (joined + vision.out_width)
    ends = Flops(weights=2 * patches * vision.patch_values * vision.width + mergers)
    return _sum(_tower(vision, rows=patches, pairs=patches**2), ends)


def _internvl_page(config: InternVLConfig, tiles: int) -> Flops:
    vision, width = config.vision, config.decoder.width
    patches, joined = vision.side**2, vision.width * config.merge**2
    projector = 2 * tiles * config.tile_side**2 * width * (joined + width)
    ends = Flops(weights=2 * tiles * patches * vision.channels * vision.patch**2 * vision.width + projector)
    return _sum(_tower(vision, rows=tiles * (patches + 1), pairs=tiles * (patches + 1) ** 2), ends)


def after_image_step(
    config: DecoderConfig, *, page: int, rest: int, answer: int = 1, aligned: bool = True, cached: bool = True
) -> Flops:
    """:func:`train_step` with the soft prompt behind the page, through which no gradient passes.

    An attention product with the page's keys or values has one product behind it on the way back, not two. In the
    tail, whose few rows attend to both, it is counted like any other.

    Args:
        config: the decoder's shape.
        page: positions up to the page's end.
        rest: positions behind it, the soft prompt's included.
        answer: tokens of the answer.
        aligned: whether AttnLRP's relevance is part of the loss, or next-token prediction alone.
        cached: whether the page's keys and values are given, or computed in the step.
    """
    lower, seq = config.layers - config.tapped, page + rest
    own, tails = causal_pairs(rest), _tail_pairs(seq, answer, 1)
    below = _sum(
        _layers(config, lower, rows=rest + answer, pairs=own + tails),
        _layers(config, config.tapped - 1, rows=rest, pairs=own),
        Flops(weights=4 * rest * config.width * config.kv_heads * config.head_dim),
    )
    over_page = _layers(config, config.layers - 1, rows=0, pairs=rest * page)
    above = tail(config, seq=seq, answer=answer)
    weights, attention, head = (4, 6, 3) if aligned else (2, 3, 2)
    step = Flops(
        weights=2 * below.weights + weights * above.weights,
        attention=3 * below.attention + 2 * over_page.attention + attention * above.attention,
        head=head * above.head,
    )
    return step if cached else _sum(step, page_keys(config, page=page))


def page_keys(config: DecoderConfig, *, page: int) -> Flops:
    """Keys and values of so many positions, up to a page's end, in every layer."""
    return prefill(replace(config, tapped_layers=config.layers), seq=page, answer=0, branches=0)
