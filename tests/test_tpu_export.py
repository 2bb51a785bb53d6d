"""Prefill, tail and the whole train step lower for a TPU on a machine without one, the TPU's kernel in them."""

import re
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from benchmarks.real_case import MODELS, RealCase, make_real_case
from benchmarks.setup import BATCH
from fixate_jax.backbones import take_branches
from fixate_jax.lab.experiments.loop import start_state
from fixate_jax.lab.experiments.programs import make_train_step

KERNEL = "@tpu_custom_call"
HOWS = ("auto", "blocked")


@pytest.fixture(scope="module", params=list(MODELS))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RealCase:
    """A tiny model of each architecture, in shapes only: nothing runs here."""
    case = make_real_case(request.param, tmp_path_factory.mktemp("model"), tiny=True)
    assert case.seq >= 128, "shorter sequences do not take the kernel"
    return case


def with_attention(case: RealCase, how: Any) -> nnx.GraphDef:
    shape = replace(case.shape, decoder=replace(case.shape.decoder, attention=how))
    return nnx.split(nnx.eval_shape(lambda: case.family.build(shape, nnx.Rngs(0))))[0]


def exported(function: Any, *arguments: Any, platform: str = "tpu") -> str:
    program = jax.export.export(jax.jit(function), platforms=[platform])(*arguments)
    assert program.platforms == (platform,)
    return program.mlir_module()


def kernels(program: str) -> set[str]:
    names = set(re.findall(r'kernel_name = "(\w+)"', program))
    assert program.count(KERNEL) >= len(names)
    return names


def test_prefill_holds_the_kernel_and_the_tail_none(case: RealCase) -> None:
    inputs = take_branches(case.batch.inputs, case.batch.click[:, None])
    soft = jnp.zeros((BATCH, case.config.prompt.tokens, case.shape.decoder.width))

    def prefill(graph: nnx.GraphDef, params: nnx.State) -> Any:
        return nnx.merge(graph, params).prefill(inputs, soft)

    found = {how: exported(partial(prefill, with_attention(case, how)), case.params) for how in HOWS}
    # Layers of one shape share one program.
    assert kernels(found["auto"]) == {"splash_mha_fwd_no_residuals"} and KERNEL not in found["blocked"]
    assert KERNEL not in exported(partial(prefill, case.graph), case.params, platform="cpu")
    prefix = jax.eval_shape(partial(prefill, case.graph), case.params)
    assert KERNEL not in exported(lambda p, prefix: nnx.merge(case.graph, p).tail(prefix), case.params, prefix)


def test_train_step_holds_the_kernel_and_its_gradient(case: RealCase) -> None:
    state = start_state(case.config, users=BATCH, width=case.shape.decoder.width, seed=0)
    batch = jax.tree.map(lambda x: x[None], case.batch)
    step = make_train_step(with_attention(case, "auto"), case.config, users=BATCH, steps=10)
    # Forward pass with what the way back needs, gradient of queries, gradient of keys and values.
    phases = ("fwd_residuals", "dq_no_residuals", "dkv_no_residuals")
    assert kernels(exported(step, state, case.params, batch)) == {f"splash_mha_{phase}" for phase in phases}
