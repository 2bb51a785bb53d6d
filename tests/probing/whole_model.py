"""The model as it is defined, in PyTorch and float64: one sequence at a time, no padding, whole attention matrices.

Nothing here comes from the library but weights and token sequences. PyTorch has nothing to compile, and differentiates
what it has differentiated; the fast path is held against its numbers.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest
from flax import nnx

from fixate_jax.backbones import Backbone, SequenceInputs

torch = pytest.importorskip("torch", reason="PyTorch, in which the definitions are written, is not installed")
torch.set_num_threads(1)

Tensor = Any
Weights = Mapping[str, Any]
"""Tensors by name, in levels as in the checkpoint's tree; linear maps as (inputs, outputs)."""


def exactly(x: Any) -> Tensor:
    """Numbers in float64, anything else as it is."""
    x = np.asarray(x)
    return torch.tensor(x.astype(np.float64) if x.dtype.kind not in "biu" else x)


def as_tensors(tree: Any) -> Any:
    """A tree of weights as tensors."""
    return {k: as_tensors(v) for k, v in tree.items()} if isinstance(tree, Mapping) else exactly(tree)


def layer_of(stack: Any, index: int) -> Any:
    """One layer's weights from those of many."""
    return {k: layer_of(v, index) for k, v in stack.items()} if isinstance(stack, Mapping) else stack[index]


class Sequence(NamedTuple):
    """One session with one answer.

    Attributes:
        x: (seq, width), what enters the first layer.
        deep: the same shape for each DeepStack level, zero where there is nothing.
        page: True at page tokens.
        angles: (seq, half) of all layers.
        places: where each position stands in a batch, prefix then tail.
    """

    x: Tensor
    deep: list[Tensor]
    page: Tensor
    angles: Tensor
    places: np.ndarray


class Run(NamedTuple):
    """A forward pass: logits (seq, vocab), what enters each layer and the final norm, and A (heads, seq, seq)."""

    logits: Tensor
    states: list[Tensor]
    matrices: list[Tensor]


def gain(x: Tensor, scale: Tensor, eps: float) -> Tensor:
    """What a norm multiplies its input by."""
    return scale / torch.sqrt((x**2).mean(-1, keepdim=True) + eps)


def turn(x: Tensor, angles: Tensor) -> Tensor:
    """Each pair (i, i + half) of a head, as a complex number, turned by its angle; x is (seq, heads, 2 · half)."""
    first, second = x.chunk(2, dim=-1)
    turned = torch.complex(first, second) * torch.polar(torch.ones_like(angles), angles)[:, None]
    return torch.cat([turned.real, turned.imag], dim=-1)


class WholeModel:
    """A backbone's decoder, by its definition."""

    def __init__(self, backbone: Backbone, *, eps: float | None = None):
        """Take the weights over.

        Args:
            backbone: whose.
            eps: ε of the norms, if not the backbone's own.
        """
        self.config = backbone.config.decoder
        assert not self.config.attention_bias
        self.eps = self.config.norm_eps if eps is None else eps
        weights = as_tensors(nnx.to_pure_dict(backbone.params["decoder"]))
        self.embed, self.scale = weights["embed"]["embedding"], weights["norm"]["scale"]
        self.head = weights["head"]["kernel"] if "head" in weights else self.embed.T
        groups = [(weights[name], range(len(indices))) for name, indices in self.config.groups.items() if len(indices)]
        self.layers = [layer_of(stack, i) for stack, indices in groups for i in indices]

    def angles(self, positions: np.ndarray) -> Tensor:
        """Rotary angles; Qwen3-VL's frequencies take turns at following time, height and width."""
        half, section = self.config.head_dim // 2, self.config.mrope_section
        axes = [i % 3 if section and i < 3 * section[i % 3] else 0 for i in range(half)]
        # In float32, as every implementation computes them.
        inverse = (1 / self.config.rope_theta ** (np.arange(half, dtype=np.float32) / np.float32(half))).astype("f4")
        return exactly(positions[:, axes].astype(np.float32) * inverse)

    def sequence(
        self, inputs: SequenceInputs, row: int, branch: int, prompt: Tensor, features: Tensor | None = None
    ) -> Sequence:
        """What the decoder reads of a session and one answer.

        Args:
            inputs: a batch's.
            row: of the session.
            branch: of the answer.
            prompt: (tokens, width), the session's soft prompt.
            features: (tokens, levels, width), page tokens in place of the batch's.
        """
        start, seq = int(inputs.start[row]), inputs.token_ids.shape[1]
        tail = np.flatnonzero(inputs.tail_valid[row, branch])
        ids = np.concatenate([inputs.token_ids[row, start:], inputs.tail_ids[row, branch, tail]])
        positions = np.concatenate([inputs.positions[row, start:], inputs.tail_positions[row, branch, tail]])
        index = np.concatenate([inputs.visual_index[row, start:], np.full(len(tail), -1)])
        features = exactly(inputs.features[row]) if features is None else features
        page = torch.tensor(index >= 0)
        levels = features[np.maximum(index, 0)] * page[:, None, None]
        x = torch.where(page[:, None], levels[:, 0], self.embed[ids])
        x = torch.cat([prompt, x[len(prompt) :]])
        places = np.concatenate([np.arange(start, seq), seq + tail])
        return Sequence(x, list(levels[:, 1:].unbind(1)), page, self.angles(positions), places)

    def attention(self, w: Weights, x: Tensor, angles: Tensor) -> dict[str, Tensor]:
        """Every step of a layer's attention, by name; queries, keys and values are (seq, heads, head)."""
        heads = lambda name, x: (x @ w[name]["kernel"]).reshape(len(x), -1, self.config.head_dim)  # noqa: E731
        found = {"gain": gain(x, w["input_norm"]["scale"], self.eps)}
        normed = x * found["gain"]
        q, k, v = (heads(name, normed) for name in ("q_proj", "k_proj", "v_proj"))
        found |= {"q_gain": gain(q, w["q_norm"]["scale"], self.eps), "k_gain": gain(k, w["k_norm"]["scale"], self.eps)}
        group = q.shape[1] // k.shape[1]
        found["q"] = turn(q * found["q_gain"], angles)
        found["k"] = turn(k * found["k_gain"], angles).repeat_interleave(group, dim=1)
        found["v"] = v.repeat_interleave(group, dim=1)
        scores = torch.einsum("qhd,khd->hqk", found["q"], found["k"]) / math.sqrt(self.config.head_dim)
        seen = torch.ones(scores.shape[1:], dtype=torch.bool).tril()
        return found | {"a": torch.where(seen, scores, -torch.inf).softmax(-1)}

    def run(self, at: Sequence) -> Run:
        """The forward pass."""
        x, states, matrices = at.x, [at.x], []
        for i, w in enumerate(self.layers):
            found = self.attention(w, x, at.angles)
            mixed = torch.einsum("hqk,khd->qhd", found["a"], found["v"])
            x = x + mixed.reshape(len(x), -1) @ w["o_proj"]["kernel"]
            normed = x * gain(x, w["post_attention_norm"]["scale"], self.eps)
            gate, up = normed @ w["gate_proj"]["kernel"], normed @ w["up_proj"]["kernel"]
            x = x + (gate * gate.sigmoid() * up) @ w["down_proj"]["kernel"]
            x = x + at.deep[i] if i < len(at.deep) else x
            states.append(x)
            matrices.append(found["a"])
        return Run(x * gain(x, self.scale, self.eps) @ self.head, states, matrices)

    def input_gradient(self, at: Sequence, answer: np.ndarray) -> Tensor:
        """Input × gradient at every position, a page token's summed over its levels."""
        return self._times_gradient(at, answer, [at.x, *at.deep], [1.0])

    def integrated_gradients(self, at: Sequence, answer: np.ndarray, steps: int) -> Tensor:
        """Input × the mean gradient at the midpoints of the way from a page of zeros."""
        page = [x * at.page[:, None] for x in (at.x, *at.deep)]
        return self._times_gradient(at, answer, page, [(i + 0.5) / steps for i in range(steps)])

    def _times_gradient(self, at: Sequence, answer: np.ndarray, values: list[Tensor], points: list[float]) -> Tensor:
        total: Tensor = 0
        for point in points:
            inputs = [x - (1 - point) * part for x, part in zip((at.x, *at.deep), values, strict=True)]
            # Leaves of their own, where nothing else does: what is held constant has a gradient too.
            inputs = [x if x.requires_grad else x.clone().requires_grad_() for x in inputs]
            score = target(self.run(at._replace(x=inputs[0], deep=inputs[1:])).logits, answer)
            gradients = torch.autograd.grad(score, inputs, create_graph=True)
            total = total + sum((v * g).sum(-1) for v, g in zip(values, gradients, strict=True)) / len(points)
        return total

    def lrp(self, at: Sequence, states: list[Tensor], answer: np.ndarray) -> Tensor:
        """Every position's relevance by AttnLRP's rules."""
        c, *deep = self.lrp_coefficients(at, states, answer)
        return (at.x * c).sum(-1) + sum((x * c).sum(-1) for x, c in zip(at.deep, deep, strict=True))

    def lrp_coefficients(self, at: Sequence, states: list[Tensor], answer: np.ndarray) -> list[Tensor]:
        """What relevance is per unit of ``at.x`` and of each of ``at.deep``.

        Relevance is sent back layer by layer by AttnLRP's rules, no automatic differentiation being used. ``c`` is
        relevance per unit of the activation that it belongs to: R = Σ activation · c.
        """
        c = torch.cat([torch.zeros_like(at.x[: -len(answer)]), self.head.T[answer]])
        c = c * gain(states[-1], self.scale, self.eps)
        deep: list[Tensor] = []
        for i, w in reversed(list(enumerate(self.layers))):
            if i < len(at.deep):
                deep.insert(0, c)
            c = self._back_through(w, states[i], at.angles, c)
        return [c, *deep]

    def _back_through(self, w: Weights, x: Tensor, angles: Tensor, c: Tensor) -> Tensor:
        """c at a layer's input from c at its output."""
        seq, head = len(x), self.config.head_dim
        back = lambda c, name: c.reshape(seq, -1) @ w[name]["kernel"].T  # noqa: E731
        found = self.attention(w, x, angles)
        a, v = found["a"], found["v"]
        middle = x + torch.einsum("hqk,khd->qhd", a, v).reshape(seq, -1) @ w["o_proj"]["kernel"]
        middle_gain = gain(middle, w["post_attention_norm"]["scale"], self.eps)
        gate, up = ((middle * middle_gain) @ w[name]["kernel"] for name in ("gate_proj", "up_proj"))

        c_product = back(c, "down_proj")
        c_gate, c_up = 0.5 * c_product * up * gate.sigmoid(), 0.5 * c_product * gate * gate.sigmoid()
        c = c + middle_gain * (back(c_gate, "gate_proj") + back(c_up, "up_proj"))

        c_out = back(c, "o_proj").reshape(seq, -1, head)
        c_a = 0.5 * torch.einsum("qhd,khd->hqk", c_out, v)
        c_v = 0.5 * torch.einsum("hqk,qhd->khd", a, c_out)
        c_scores = a * (c_a - (a * c_a).sum(-1, keepdim=True)) / math.sqrt(head)
        c_q = turn(0.5 * torch.einsum("hqk,khd->qhd", c_scores, found["k"]), -angles) * found["q_gain"]
        group = c_q.shape[1] // found["k_gain"].shape[1]
        c_k, c_v = (
            y.reshape(seq, -1, group, head).sum(2)
            for y in (0.5 * torch.einsum("hqk,qhd->khd", c_scores, found["q"]), c_v)
        )
        c_k = turn(c_k, -angles) * found["k_gain"]
        return c + found["gain"] * (back(c_q, "q_proj") + back(c_k, "k_proj") + back(c_v, "v_proj"))


def target(logits: Tensor, answer: np.ndarray) -> Tensor:
    """ℓ: the answer tokens' logits, each at the position that predicts it."""
    return logits[np.arange(-len(answer), 0), answer].sum()
