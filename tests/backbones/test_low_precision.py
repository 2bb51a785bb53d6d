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
from fixate_jax.backbones.tiny.random import TinySizes

STEP = "step, AttnLRP"


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A model and a batch in float32."""
    sizes = TinySizes(vocab=600, width=64, ff=96, layers=3, heads=4, kv_heads=2, head_dim=16, deepstack=(0,))
    directory: Path = tmp_path_factory.mktemp("low")
    with patch.object(setup, "BENCH_SIZES", sizes), patch.object(setup, "PAGE", (320, 192)):
        return make_case(directory)


@pytest.fixture(scope="module")
def low(wide: Case) -> Case:
    """The same in bfloat16."""
    config = replace(wide.config, backbone=replace(wide.config.backbone, dtype="bfloat16"))
    return replace(wide, config=config, backbone=load_backbone(config.backbone))


@pytest.fixture(scope="module")
def compiled(low: Case) -> Any:
    """The bfloat16 step."""
    return functions(low)[STEP].lower(low.prompt, low.backbone.params, low.cached).compile()


def test_loss_and_gradient_are_those_of_float32(wide: Case, low: Case, compiled: Any) -> None:
    """Of weights rounded to bfloat16 likewise; the prompt's gradient stays float32."""
    rounded = jax.tree.map(lambda w: np.asarray(w).astype("float32"), low.backbone.params)
    expected = functions(wide)[STEP](wide.prompt, rounded, wide.cached)
    found = compiled(low.prompt, low.backbone.params, low.cached)
    loss, cosine = agreement(expected, found)
    assert loss < 1e-2
    assert cosine > 0.99
    assert found[1].basis.dtype == np.float32


def test_no_stack_of_weights_is_copied_to_float32(low: Case, compiled: Any) -> None:
    """In the whole compiled step: forward, tail and both gradients."""
    program = compiled.as_text()
    stacks = {leaf.shape for leaf in jax.tree.leaves(low.backbone.params) if leaf.ndim == 3 and leaf.shape[0] > 1}
    assert stacks
    for shape in stacks:
        assert f"f32[{','.join(map(str, shape))}]" not in program
