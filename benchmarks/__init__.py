"""Timings and memory of the tuning step beside the alternatives, and what they are compared with."""

from fixate_jax.backbones.tiny.random import TinySizes

BENCH_SIZES = TinySizes(
    vocab=600,
    width=512,
    ff=1536,
    layers=12,
    heads=8,
    kv_heads=2,
    head_dim=64,
    vision_layers=6,
    vision_width=256,
    vision_ff=1024,
    vision_heads=4,
    deepstack=(1, 3, 5),
)
"""The model that steps are timed with: a 1100×619 page is 646 visual tokens, a sequence about 900."""
