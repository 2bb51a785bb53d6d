"""A training step compiled on shapes alone, and a model small enough to do so quickly."""

import json
import math
from pathlib import Path
from typing import Any

from fixate_jax.backbones.published import published_files
from fixate_jax.backbones.sharding import make_mesh, shardings
from fixate_jax.config import BackboneConfig, ObjectiveConfig, OperatorConfig, RunConfig, TrainConfig
from fixate_jax.memory import Mesh
from fixate_jax.tuning.abstract import AbstractBackbone, abstract_batch, abstract_state
from fixate_jax.tuning.placement import Placement
from fixate_jax.tuning.plan import Workload, sequence_shapes
from fixate_jax.tuning.step import make_train_step

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
    *, batch: int, aligned: bool = True, backbone: BackboneConfig | None = None, mesh: Mesh = (1, 1, 1)
) -> RunConfig:
    """Settings of one micro-batch a step."""
    return RunConfig(
        backbone=backbone or BackboneConfig(),
        operator=OperatorConfig(normalise="abs"),
        objective=ObjectiveConfig(alignment="weighted_kl" if aligned else "none"),
        train=TrainConfig(batch=batch, eval_batch=batch, accumulate=1, mesh=mesh),
    )


def compiled_step(backbone: AbstractBackbone, config: RunConfig, work: Workload) -> Any:
    """The step as XLA compiled it for each device of the mesh, simulated by this machine's CPU."""
    shapes, train = sequence_shapes(backbone, config, work), config.train
    state = abstract_state(config, users=work.users, width=backbone.config.decoder.width)
    batch = abstract_batch(shapes, backbone.config, rows=train.batch, accumulate=train.accumulate)
    placement = None
    if math.prod(train.mesh) > 1:
        mesh = make_mesh(train.mesh)
        placement = Placement(mesh, shardings(backbone.params, mesh)).with_state(state)
    step = make_train_step(backbone.graph, config, users=work.users, steps=100, placement=placement)
    return step.lower(state, backbone.params, batch).compile()


def compiled_bytes(compiled: Any) -> tuple[int, int]:
    """All bytes of a compiled program on each device, and those of its temporaries alone."""
    found = compiled.memory_analysis()
    whole = found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes
    return whole - found.alias_size_in_bytes, found.temp_size_in_bytes
