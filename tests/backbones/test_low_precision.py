"""A tuning step in bfloat16 beside the same step in float32."""

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import jax
import numpy as np
import pytest

from benchmarks import setup
from benchmarks.low_precision import agreement
from benchmarks.setup import Case, functions, make_case
from fixate_jax.backbones import load_backbone
from fixate_jax.backbones.tiny_random import TinySizes

STEP = "step, AttnLRP"


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, Case]:
    """The same model, weights and batch in float32 and in bfloat16."""
    sizes = TinySizes(vocab=600, width=64, ff=96, layers=3, heads=4, kv_heads=2, head_dim=16)
    directory: Path = tmp_path_factory.mktemp("low")
    with patch.object(setup, "BENCH_SIZES", sizes), patch.object(setup, "PAGE", (400, 240)):
        wide = make_case(directory)
    config = replace(wide.config, backbone=replace(wide.config.backbone, dtype="bfloat16"))
    low = load_backbone(config.backbone)
    rounded = jax.tree.map(lambda w: w.astype("float32"), low.params)
    backbone = replace(wide.backbone, params=rounded)
    return replace(wide, backbone=backbone), replace(wide, config=config, backbone=low)


def _step(case: Case) -> Any:
    return functions(case)[STEP](case.prompt, case.backbone.params, case.cached)


def test_loss_and_gradient_are_those_of_float32(cases: tuple[Case, Case]) -> None:
    """Of weights rounded to bfloat16 likewise; the prompt's gradient stays float32."""
    wide, low = (_step(case) for case in cases)
    loss, cosine = agreement(wide, low)
    assert loss < 1e-2
    assert cosine > 0.99
    assert low[1].basis.dtype == np.float32


def test_no_stack_of_weights_is_copied_to_float32(cases: tuple[Case, Case]) -> None:
    """In the whole compiled step: forward, tail and both gradients."""
    low = cases[1]
    program = functions(low)[STEP].lower(low.prompt, low.backbone.params, low.cached).compile().as_text()
    stacks = {leaf.shape for leaf in jax.tree.leaves(low.backbone.params) if leaf.ndim == 3 and leaf.shape[0] > 1}
    assert stacks
    for shape in stacks:
        assert f"f32[{','.join(map(str, shape))}]" not in program
