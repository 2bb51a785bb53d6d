"""Each family's vision tower as it is defined, in PyTorch and float64, one page at a time, under AttnLRP's rules.

What the rules take for a constant is detached from the graph, so that a plain gradient is the ruled one.
"""

import math
from typing import Any

import numpy as np
from flax import nnx

from fixate_jax.backbones import Backbone
from tests.probing.whole_model import Tensor, Weights, as_tensors, exactly, layer_of, torch, turn


def tower_of(backbone: Backbone) -> Any:
    """From a page's inputs, its pixels apart, to page tokens (tokens, levels, width)."""
    weights = as_tensors(nnx.to_pure_dict(backbone.params["vision"]))
    tower = qwen_tower if backbone.config.decoder.mrope_section else intern_tower
    return lambda pixels, page: tower(backbone, weights, pixels, page)


def norm(w: Weights, x: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    deviation = torch.sqrt((centred**2).mean(-1, keepdim=True) + eps).detach()
    return centred / deviation * w["scale"] + w["bias"]


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    return x * (torch.nn.functional.gelu(x, approximate=approximate) / x).detach()


def share(x: Tensor, part: float) -> Tensor:
    """x, of whose gradient only a part flows on."""
    return part * x + (1 - part) * x.detach()


def affine(w: Weights, x: Tensor) -> Tensor:
    return x @ w["kernel"] + w["bias"]


def attended(w: Weights, x: Tensor, heads: int, angles: Tensor | None) -> Tensor:
    """x is (..., rows, width), every row attending to all."""
    q, k, v = (y.unflatten(-1, (heads, -1)) for y in affine(w["qkv"], x).chunk(3, dim=-1))
    if angles is not None:
        q, k = turn(q, angles), turn(k, angles)
    q, k, v = share(q, 0.25), share(k, 0.25), share(v, 0.5)
    a = (torch.einsum("...qhd,...khd->...hqk", q, k) / math.sqrt(q.shape[-1])).softmax(-1)
    return affine(w["proj"], torch.einsum("...hqk,...khd->...qhd", a, v).flatten(-2))


def qwen_tower(backbone: Backbone, weights: Weights, patches: Tensor, page: Any) -> Tensor:
    config, eps = backbone.config.vision, 1e-6
    table = weights["position_table"]["embedding"][page.table_index[0]]
    x = affine(weights["patch_embed"], patches) + (table * exactly(page.table_weight[0])[..., None]).sum(1)
    half = config.width // config.heads // 2
    inverse = 1 / np.float32(config.rope_theta) ** (np.arange(0, half, 2, dtype=np.float32) / np.float32(half))
    angles = page.position[0].astype(np.float32)[:, :, None] * inverse.astype(np.float32)
    angles = exactly(angles.reshape(len(angles), half))

    def merge(w: Weights, x: Tensor, *, first: bool) -> Tensor:
        x = norm(w["norm"], x, eps) if first else x
        x = x.reshape(-1, config.width * config.merge**2)
        x = x if first else norm(w["norm"], x, eps)
        return affine(w["fc2"], gelu(affine(w["fc1"], x)))

    layers = [layer_of(weights["stacks"][i], j) for i, size in enumerate(config.segments) for j in range(size)]
    deep: list[Tensor] = []
    for i, w in enumerate(layers):
        x = x + attended(w, norm(w["attention_norm"], x, eps), config.heads, angles)
        x = x + affine(w["fc2"], gelu(affine(w["fc1"], norm(w["mlp_norm"], x, eps)), "tanh"))
        if i in config.deepstack_after:
            deep.append(merge(weights["deepstack_mergers"][len(deep)], x, first=False))
    return torch.stack([merge(weights["merger"], x, first=True), *deep], dim=1)


def intern_tower(backbone: Backbone, weights: Weights, pixels: Tensor, page: Any) -> Tensor:
    config, merge = backbone.config.vision, backbone.config.merge
    side, patch, eps = config.side, config.patch, config.norm_eps
    x = pixels.reshape(-1, config.channels, side, patch, side, patch).permute(0, 2, 4, 1, 3, 5)
    x = affine(weights["patch_embed"], x.reshape(len(x), side**2, -1))
    first = weights["class_token"].expand(len(x), 1, -1)
    x = torch.cat([first, x], dim=1) + weights["positions"]
    for i in range(config.layers):
        w = layer_of(weights["layers"], i)
        x = x + attended(w, norm(w["attention_norm"], x, eps), config.heads, None) * w["attention_scale"]
        x = x + affine(w["fc2"], gelu(affine(w["fc1"], norm(w["mlp_norm"], x, eps)))) * w["mlp_scale"]
    cells = side // merge
    x = x[:, 1:].reshape(-1, cells, merge, cells, merge, config.width).permute(0, 1, 3, 2, 4, 5)
    x = x.reshape(len(x), cells**2, -1)
    w = weights["projector"]
    x = affine(w["fc2"], gelu(affine(w["fc1"], norm(w["norm"], x, 1e-5))))
    return x.reshape(-1, 1, x.shape[-1])
