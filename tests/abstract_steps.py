"""A model whose training step compiles quickly, and settings for it."""

import json
from pathlib import Path
from typing import Any

from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.lab.config import ObjectiveConfig, OperatorConfig, RunConfig, TrainConfig
from fixate_jax.lab.planning.published import published_files

TEXT = {
    "vocab_size": 1024,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 10,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
}
VISION = {"depth": 2, "hidden_size": 64, "intermediate_size": 96, "num_heads": 2}


def write_small(directory: Path, **text: Any) -> str:
    """The files of a Qwen3-VL of the usual proportions and few layers; returns the directory."""
    files = published_files("qwen3-vl-4b")
    config = files["config.json"]
    config["image_token_id"] = 1000
    config["text_config"] |= {**TEXT, "rope_scaling": {"mrope_section": [12, 10, 10]}, **text}
    config["vision_config"] |= {**VISION, "out_hidden_size": config["text_config"]["hidden_size"]}
    config["vision_config"]["deepstack_visual_indexes"] = [0, 1]
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content), encoding="utf-8")
    return str(directory)


def settings(
    *, batch: int, aligned: bool = True, backbone: BackboneConfig | None = None, mesh: tuple[int, int, int] = (1, 1, 1)
) -> RunConfig:
    """Settings of one micro-batch a step."""
    return RunConfig(
        backbone=backbone or BackboneConfig(),
        operator=OperatorConfig(normalise="abs"),
        objective=ObjectiveConfig(alignment="weighted_kl" if aligned else "none"),
        train=TrainConfig(batch=batch, eval_batch=batch, accumulate=1, mesh=mesh),
    )
