"""The platforms' attention kernels, behind our wrapping, compute what row blocks do."""

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fixate_jax.backbones.decoder import decoder
from fixate_jax.backbones.decoder.attention import blocked_attention
from fixate_jax.backbones.decoder.decoder import Decoder
from fixate_jax.backbones.decoder.decoder_layer import DecoderConfig
from fixate_jax.backbones.decoder.flash import prefill_attention, splash_attention
from fixate_jax.backbones.inputs import SequenceInputs
from tests import environment

INTERPRETED = partial(splash_attention, interpret=True)
BLOCKED = partial(blocked_attention, valid=None, causal=True, block=64)


def draw(seed: int, seq: int, heads: int, kv: int, width: int, dtype: Any = jnp.float32) -> list[jax.Array]:
    """Queries, keys, values of two sequences."""
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.standard_normal((2, seq, n, width)), dtype) for n in (heads, kv, kv)]


def value_and_gradients(attention: Any, arrays: list[jax.Array]) -> Any:
    weight = jnp.asarray(np.random.default_rng(9).standard_normal(arrays[0].shape), jnp.float32)

    def total(*arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = attention(*arrays)
        return (out * weight).sum(), out

    (_, out), gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))(*arrays)
    return out, gradients


def lowered(platform: str, arrays: list[jax.Array], *, how: Any = "auto") -> str:
    """The program for a platform, gradient included, made on whatever machine this is."""

    def total(*arrays: jax.Array) -> jax.Array:
        return prefill_attention(*arrays, how=how, block=64).astype(jnp.float32).sum()

    traced = jax.jit(jax.grad(total, argnums=(0, 1, 2))).trace(*arrays)
    return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize(
    ("seq", "heads", "kv", "width"),
    [(256, 2, 2, 128), (300, 4, 2, 64), (130, 3, 1, 16)],
    ids=["whole tiles", "padded, grouped", "one key head"],
)
def test_tpu_kernel_equals_row_blocks(seq: int, heads: int, kv: int, width: int) -> None:
    arrays = draw(seq, seq, heads, kv, width)
    ours, theirs = value_and_gradients(INTERPRETED, arrays), value_and_gradients(BLOCKED, arrays)
    difference = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), ours, theirs)
    print(f"\nlargest difference of value and of gradients: {difference}")
    assert max(jax.tree.leaves(difference)) < 2e-5


def test_tpu_kernel_in_bfloat16() -> None:
    arrays = draw(1, 140, 2, 1, 128, jnp.bfloat16)
    out = jax.jit(INTERPRETED)(*arrays)
    exact = jax.jit(BLOCKED)(*(x.astype(jnp.float32) for x in arrays))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), exact, atol=0.02)


CONFIG = DecoderConfig(
    vocab=50,
    layers=3,
    width=32,
    ff=48,
    heads=4,
    kv_heads=2,
    head_dim=16,
    rope_theta=1e4,
    tapped_layers=2,
    attention_block=48,
    deepstack_levels=1,
)


def left_padded(seq: int, start: tuple[int, ...], soft: int) -> SequenceInputs:
    """Sequences whose rows at padding hold other numbers than nought, with some page tokens."""
    rng, batch = np.random.default_rng(0), len(start)
    ids = lambda *shape: jnp.asarray(rng.integers(0, CONFIG.vocab, shape), jnp.int32)  # noqa: E731
    visual = np.full((batch, seq), -1, np.int32)
    for row, first in enumerate(start):
        visual[row, first + soft + 3 : first + soft + 9] = np.arange(6)
    positions = np.repeat(np.maximum(np.arange(seq) - np.array(start)[:, None], 0)[..., None], 3, axis=-1)
    return SequenceInputs(
        token_ids=ids(batch, seq),
        start=jnp.asarray(start, jnp.int32),
        positions=jnp.asarray(positions, jnp.int32),
        visual_index=jnp.asarray(visual),
        tail_ids=ids(batch, 1, 2),
        tail_positions=jnp.asarray(positions[:, None, -2:] + 2, jnp.int32),
        tail_valid=jnp.ones((batch, 1, 2), bool),
        visual_position=jnp.zeros((batch, 1), jnp.int32),
        features=jnp.asarray(rng.standard_normal((batch, 6, 2, CONFIG.width)), jnp.float32),
    )


def test_left_padding_behind_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefill by the kernel and tail, against a plain forward pass that masks padding where it stands."""
    seq, soft = 150, 5
    inputs = left_padded(seq, (0, 61), soft)
    graph, params = jax.jit(lambda: nnx.split(Decoder(CONFIG, nnx.Rngs(0))))()
    prompt = jnp.asarray(np.random.default_rng(1).standard_normal((2, soft, CONFIG.width)), jnp.float32)
    monkeypatch.setattr(decoder, "prefill_attention", lambda *arrays, how, block, valid: INTERPRETED(*arrays))

    def fast(prompt: jax.Array, use_prompt: jax.Array) -> tuple[jax.Array, Any]:
        model = nnx.merge(graph, params)
        prefix = model.prefill(inputs, prompt, use_prompt)
        logits = model.tail(prefix).logits[:, 0]
        return (logits[..., :7] ** 2).sum(), (logits, prefix.start)

    def plain(prompt: jax.Array, use_prompt: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits, _ = nnx.merge(graph, params).forward(inputs, prompt, use_prompt)
        return (logits[..., :7] ** 2).sum(), logits

    fast, plain = (jax.jit(jax.value_and_grad(f, has_aux=True)) for f in (fast, plain))
    for use_prompt in (True, False):
        (_, (logits, start)), gradient = fast(prompt, jnp.asarray(use_prompt))
        (_, expected), wanted = plain(prompt, jnp.asarray(use_prompt))
        first = np.array([0, 61]) + (0 if use_prompt else soft)
        np.testing.assert_array_equal(start.valid, np.arange(seq) < seq - first[:, None])
        np.testing.assert_array_equal(start.moved, first)
        np.testing.assert_allclose(logits, expected, atol=2e-5)
        np.testing.assert_allclose(gradient, wanted, atol=2e-5 * max(1.0, float(jnp.abs(wanted).max())))
        assert bool(jnp.abs(wanted).max() > 0.01) == use_prompt


def test_the_kernel_is_chosen_by_platform_setting_and_length() -> None:
    long, short = draw(0, 140, 2, 1, 32), draw(0, 100, 2, 1, 32)
    assert lowered("tpu", long).count("@tpu_custom_call") == 3, "forward pass, gradient of queries, and of the rest"
    assert "tpu_custom_call" not in lowered("cpu", long)
    assert "tpu_custom_call" not in lowered("tpu", long, how="blocked")
    assert "tpu_custom_call" not in lowered("tpu", short)
    assert "tpu_custom_call" not in lowered("tpu", [x.astype(jnp.float16) for x in long])


def test_gpu_kernel_takes_half_precision_only(monkeypatch: pytest.MonkeyPatch) -> None:
    half = draw(0, 141, 2, 1, 32, jnp.bfloat16)
    assert "cudnn" not in lowered("cuda", half), "there is no cuDNN on this machine"
    # The version is all that is asked for before a program is compiled.
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    program = lowered("cuda", half)
    assert program.count("@__cudnn$fmhaSoftmax(") == program.count("@__cudnn$fmhaSoftmaxBackward(") == 1
    assert "CAUSAL" in program
    assert "cudnn" not in lowered("cuda", half, how="blocked")
    assert "cudnn" not in lowered("cuda", [x.astype(jnp.float32) for x in half])
    assert "cudnn" not in lowered("cuda", draw(0, 141, 2, 1, 30, jnp.bfloat16)), "no head width that cuDNN takes"


def test_a_batch_of_batches_is_a_larger_batch() -> None:
    """What tuning many users at once does to the kernel."""
    arrays = draw(2, 130, 2, 1, 16)
    several = [jnp.stack([x, x[::-1]]) for x in arrays]
    out = jax.jit(jax.vmap(INTERPRETED))(*several)
    expected = jax.jit(BLOCKED)(*arrays)
    np.testing.assert_allclose(out[0], expected, atol=2e-5)
    np.testing.assert_allclose(out[1], expected[::-1], atol=2e-5)
    program = jax.jit(jax.vmap(partial(prefill_attention, how="auto", block=64))).trace(*several)
    assert "tpu_custom_call" in program.lower(lowering_platforms=("tpu",)).as_text()


def test_a_second_gradient_through_the_kernel_is_refused() -> None:
    """The train step takes none: it lowers for a TPU (``tests/test_tpu_export.py``)."""
    arrays = draw(0, 140, 2, 1, 32)

    def first(query: jax.Array) -> jax.Array:
        return jax.grad(lambda q: (splash_attention(q, *arrays[1:]) ** 2).sum())(query).sum()

    with pytest.raises(NotImplementedError):
        jax.jit(jax.grad(first)).trace(arrays[0])


DEVICES = """
import sys
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from benchmarks.real_case import BATCH, make_real_case
from fixate_jax.backbones.sharding import shardings
from fixate_jax.lab.experiments.loop import start_state
from fixate_jax.pipeline.placement import Placement
from fixate_jax.lab.experiments.programs import make_train_step
from tests.backbones.test_flash import BLOCKED, INTERPRETED, draw, lowered, value_and_gradients

rows, whole, heads = PartitionSpec("data"), PartitionSpec(), PartitionSpec(None, None, "tensor")
# One head of keys for each device that shares them.
arrays = draw(3, 140, 2, 2, 16)
expected = value_and_gradients(BLOCKED, arrays)
for axes, spec in ((("data", "fsdp"), rows), (("fsdp",), PartitionSpec("fsdp")), (("tensor",), heads)):
    mesh = Mesh(np.array(jax.devices()).reshape([-1] + [1] * (len(axes) - 1)), axes)
    placed = jax.device_put(arrays, NamedSharding(mesh, spec))
    found = value_and_gradients(INTERPRETED, placed)
    assert found[0].sharding.is_equivalent_to(placed[0].sharding, 4), found[0].sharding
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, expected)
    assert lowered("tpu", placed).count("@tpu_custom_call") == 3

mesh = Mesh(np.array(jax.devices()).reshape(1, 2, 1), ("data", "fsdp", "tensor"))
case = make_real_case("qwen3-vl-4b", Path(sys.argv[1]), tiny=True)
state = start_state(case.config, users=BATCH, width=case.shape.decoder.width, seed=0)
params = jax.tree.map(
    lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), case.params, shardings(case.params, mesh)
)
placement = Placement(mesh, shardings(case.params, mesh)).with_state(state)
batch = jax.tree.map(lambda x: x[None], case.batch)
step = make_train_step(case.graph, case.config, users=BATCH, steps=10, placement=placement)
traced = step.trace(state, params, batch)
assert "tpu_custom_call" in traced.lower(lowering_platforms=("tpu",)).as_text()
print("same on", jax.device_count())
"""


def test_devices_share_the_batch(tmp_path: Path) -> None:
    """The kernel alone gives the same numbers; a whole train step lowers with it."""
    command = [sys.executable, "-c", DEVICES, str(tmp_path)]
    out = subprocess.run(command, env=environment.of_child(devices=2), capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr[-2000:]
    assert out.stdout.splitlines()[-1] == "same on 2"
