"""The operators that read attention, as they are defined: on whole matrices A and G = ∂ℓ/∂A, in PyTorch.

Every list runs over the tapped layers, lowest first; a matrix is (heads, seq, seq), and so is R without its heads.
"""

import math
from typing import Any

import pytest

from fixate_jax.lab.config import OperatorConfig

torch = pytest.importorskip("torch", reason="PyTorch, in which the definitions are written, is not installed")

Tensor = Any
HEAD_TEMPERATURE, DEPTH_RATE = 0.5, 0.2


def relevance(config: OperatorConfig, matrices: list[Tensor], gradients: list[Tensor]) -> Tensor:
    """R of an operator by name, whole."""
    if config.stop_gradient:
        gradients = [g.detach() for g in gradients]
    gradients = [config.grad_scale * g for g in gradients]
    match config.name:
        case "attention":
            return by_depth([a.mean(0) for a in matrices])
        case "attn_lrp":
            pairs = zip(matrices, gradients, strict=True)
            return by_depth([normalised(a * g, config.normalise, config.eps).mean(0) for a, g in pairs])
        case "attention_gradient":
            return by_depth([(a * g).mean(0) for a, g in zip(matrices, gradients, strict=True)])
        case "rollout":
            return rollout(matrices)
        case "glimpse":
            return glimpse(matrices, gradients, eps=config.eps, masked=config.masked_gradients)
    raise ValueError(config.name)


def by_depth(layers: list[Tensor]) -> Tensor:
    """Σ w_l E_l with w_l = l / Σl. AttnLRP's I, which lies on nothing but src itself, is left out."""
    return sum(depth * layer for depth, layer in enumerate(layers, start=1)) / sum(range(1, len(layers) + 1))


def normalised(w: Tensor, how: str, eps: float) -> Tensor:
    """AttnLRP's rows W / D."""
    if how == "positive":
        return w.relu() / (w.relu().sum(-1, keepdim=True) + eps)
    if how == "abs":
        return w / (w.abs().sum(-1, keepdim=True) + eps)
    d = w.sum(-1, keepdim=True)
    d = d + eps * d.sign()
    return w / torch.where(d.abs() < eps, eps, d)


def rollout(matrices: list[Tensor]) -> Tensor:
    """The product of (A + I) / 2, rows normalised."""
    total = identity = torch.eye(matrices[0].shape[-1], dtype=matrices[0].dtype)
    for a in matrices:
        mixed = 0.5 * a.mean(0) + 0.5 * identity
        total = (mixed / mixed.sum(-1, keepdim=True)) @ total
    return total


def glimpse(matrices: list[Tensor], gradients: list[Tensor], *, eps: float, masked: bool) -> Tensor:
    """R ← R + α E R; places that causality masks are left out of the sums of G unless they are asked for."""
    if not masked:
        gradients = [g.tril() for g in gradients]
    maps, sizes = [], []
    for depth, (a, g) in enumerate(zip(matrices, gradients, strict=True), start=1):
        w = (a * g).relu()
        score = w.sum((1, 2)) / (g.relu().sum((1, 2)) + eps)
        fused = (torch.softmax(score / HEAD_TEMPERATURE, dim=0)[:, None, None] * w).sum(0)
        maps.append(fused / (fused.sum(-1, keepdim=True) + eps))
        sizes.append(g.sum(0).abs().sum() * math.exp(DEPTH_RATE * depth))
    share = sum(math.exp(DEPTH_RATE * depth) for depth in range(1, len(maps) + 1))
    total = sum(sizes) / share + eps
    result = torch.eye(matrices[0].shape[-1], dtype=matrices[0].dtype)
    for size, fused in zip(sizes, maps, strict=True):
        result = result + size / share / total * (fused @ result)
    return result
