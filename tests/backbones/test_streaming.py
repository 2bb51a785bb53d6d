"""Loading tensor by tensor: only what is wanted is read, nothing is held twice, every device gets its own part."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, PartitionSpec
from safetensors.numpy import save_file

from benchmarks.loading import SAFETENSORS, SLACK, measure, write_checkpoint
from fixate_jax.backbones.sharding import shardings
from fixate_jax.backbones.tiny.random import TinySizes, write_tiny_random
from fixate_jax.backbones.weights import checkpoint
from fixate_jax.backbones.weights.checkpoint import SINGLE_FILE, Rule, export_tensors, load_parameters, transpose
from fixate_jax.backbones.weights.streaming import StackedSource
from fixate_jax.errors import CheckpointError
from tests import environment

ROOT = Path(__file__).parents[2]
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def random(*shape: int, dtype: Any = np.float32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16])
@pytest.mark.parametrize("source_dtype", [np.float32, np.float16, BFLOAT16])
@pytest.mark.parametrize(
    "index",
    [np.s_[:, :, :], np.s_[1:3, :, :], np.s_[:, 100:700, :], np.s_[:, :, 40:90], np.s_[2:, 5:9, 60:61]],
    ids=str,
)
def test_a_part_is_cut_cast_and_joined_and_nothing_else_is_read(index: Any, dtype: Any, source_dtype: Any) -> None:
    # Larger than a block of the transposing copy, and no multiple of it.
    rows = [[random(n, 700, dtype=source_dtype, seed=10 * layer + n).T for n in (30, 70)] for layer in range(3)]
    whole = np.stack([np.concatenate(parts, axis=1) for parts in rows])
    read: list[int] = []
    with ThreadPoolExecutor(2) as pool:
        source = StackedSource(rows, whole.shape, dtype, pool, read.append)
        part = source.read(index)
    assert part.dtype == dtype
    np.testing.assert_array_equal(part, whole[index].astype(dtype))
    assert sum(read) == whole[index].nbytes


def test_scalars_and_rows_that_are_not_stacked() -> None:
    with ThreadPoolExecutor(1) as pool:
        one = StackedSource([[np.array(3, np.float32)]], (), np.float32, pool)
        np.testing.assert_array_equal(one.place(None), 3)
        stacked = StackedSource([[np.array(i, np.float32)] for i in range(3)], (3,), np.float32, pool)
        np.testing.assert_array_equal(stacked.place(None), [0, 1, 2])
        row = StackedSource([[random(4, 5), random(4, 2)]], (4, 7), np.float32, pool)
        np.testing.assert_array_equal(row.place(None), np.concatenate([random(4, 5), random(4, 2)], axis=1))


class Toy(nnx.Module):
    """A joined parameter, two that are cut out of one tensor, and a stacked one."""

    def __init__(self, dtype: Any) -> None:
        self.joined = nnx.Param(jnp.zeros((6, 9), dtype))
        self.top = nnx.Param(jnp.zeros((2, 5), dtype))
        self.bottom = nnx.Param(jnp.zeros((3, 5), dtype))
        self.stack = nnx.Param(jnp.zeros((2, 6, 4), dtype))


TOY = [
    Rule("joined", ("q", "k", "v"), transpose),
    Rule("top", "both", lambda x: x[:2]),
    Rule("bottom", "both", lambda x: x[2:]),
    Rule("stack", "layers.{layer}", transpose, range(2)),
]
TOY_SHAPES = {"q": (4, 6), "k": (2, 6), "v": (3, 6), "both": (5, 5), "layers.0": (4, 6), "layers.1": (4, 6)}


def toy_parameters(directory: Path, rules: list[Rule] = TOY, **options: Any) -> Any:
    abstract = nnx.state(nnx.eval_shape(lambda: Toy(jnp.float32)), nnx.Param)
    return load_parameters(directory, abstract, rules, **options)


def test_joined_and_divided_tensors_there_and_back(tmp_path: Path) -> None:
    tensors = {name: random(*shape, seed=i) for i, (name, shape) in enumerate(TOY_SHAPES.items())}
    save_file(tensors, tmp_path / SINGLE_FILE)
    params = toy_parameters(tmp_path)
    np.testing.assert_array_equal(params["joined"][...], np.concatenate([tensors[n].T for n in "qkv"], axis=1))
    np.testing.assert_array_equal(params["bottom"][...], tensors["both"][2:])
    np.testing.assert_array_equal(params["stack"][1], tensors["layers.1"].T)
    back = export_tensors(params, TOY, TOY_SHAPES)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor)


@pytest.mark.parametrize(
    ("name", "shape"), [("k", (3, 6)), ("v", (3, 5)), ("both", (1, 5)), ("both", ()), ("layers.1", (6, 4))]
)
def test_misshapen_parts_are_named_before_anything_is_read(
    name: str, shape: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StackedSource, "place", lambda self, sharding: pytest.fail("read first"))
    tensors = {n: random(*(shape if n == name else s)) for n, s in TOY_SHAPES.items()}
    save_file(tensors, tmp_path / SINGLE_FILE)
    with pytest.raises(CheckpointError) as caught:
        toy_parameters(tmp_path)
    assert f"{name!r} has shape {shape}" in str(caught.value)


def test_a_transform_that_copies_is_a_mistake(tmp_path: Path) -> None:
    save_file({name: random(*shape) for name, shape in TOY_SHAPES.items()}, tmp_path / SINGLE_FILE)
    with pytest.raises(AssertionError, match="the transform of top copies"):
        toy_parameters(tmp_path, [TOY[0], Rule("top", "both", lambda x: x[:2] + 1), *TOY[2:]])


def test_numbers_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    tensors = {name: random(*shape) for name, shape in TOY_SHAPES.items()}
    save_file(tensors | {"v": np.zeros((3, 6), np.int8)}, tmp_path / SINGLE_FILE)
    with pytest.raises(CheckpointError, match=r"tensor 'v' is of type I8.*quantised"):
        toy_parameters(tmp_path)


def test_large_checkpoints_get_a_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({name: random(*shape) for name, shape in TOY_SHAPES.items()}, tmp_path / SINGLE_FILE)
    toy_parameters(tmp_path)
    assert capsys.readouterr().err == ""
    size = 4 * sum(int(np.prod(shape)) for shape in TOY_SHAPES.values())
    monkeypatch.setattr(checkpoint, "BAR_FROM", size)
    monkeypatch.setenv("COLUMNS", "200")
    toy_parameters(tmp_path)
    shown = capsys.readouterr().err
    assert "Loading" in shown and f"{size}/{size} bytes" in shown and "left" in shown


@pytest.mark.parametrize(
    ("axes", "cut"),
    [
        ({"tensor": 8}, ("tensor",)),
        ({"fsdp": 4, "tensor": 2}, ("fsdp", "tensor")),
        ({"data": 2, "fsdp": 8}, ("fsdp",)),
        ({"data": 8}, ()),
    ],
)
def test_matrices_are_cut_by_their_rules_where_sides_divide(axes: dict[str, int], cut: tuple[str, ...]) -> None:
    shapes: dict[tuple[str, ...], tuple[tuple[int, ...], tuple[str | None, ...]]] = {
        ("decoder", "lower", "up_proj", "kernel"): ((8, 16, 48), (None, "fsdp", "tensor")),
        ("decoder", "lower", "down_proj", "kernel"): ((8, 48, 16), (None, "tensor", "fsdp")),
        ("decoder", "lower", "q_proj", "kernel"): ((8, 16, 49), (None, "fsdp", None)),
        ("decoder", "lower", "k_proj", "kernel"): ((8, 15, 49), (None, None, None)),
        ("decoder", "lower", "q_proj", "bias"): ((8, 16), (None, None)),
        ("decoder", "lower", "input_norm", "scale"): ((8, 16), (None, None)),
        ("vision", "layers", "qkv", "kernel"): ((8, 16, 48), (None, "fsdp", "tensor")),
        ("vision", "stacks", "0", "fc2", "kernel"): ((8, 48, 16), (None, "tensor", "fsdp")),
        ("vision", "positions"): ((64, 16), (None, None)),
        ("decoder", "embed", "embedding"): ((64, 16), ("tensor", "fsdp")),
        ("decoder", "head", "kernel"): ((16, 64), ("fsdp", "tensor")),
        ("decoder", "norm", "scale"): ((16,), (None,)),
    }
    abstract = nnx.from_flat_state(
        [(path, nnx.Param(jax.ShapeDtypeStruct(s, jnp.float32))) for path, (s, _) in shapes.items()]
    )
    found = shardings(abstract, AbstractMesh(tuple(axes.values()), tuple(axes)))
    paths: list[Any] = [path for path, _ in nnx.to_flat_state(abstract)]
    for path, place in zip(paths, jax.tree.leaves(found), strict=True):
        wanted = [axis if axis in cut else None for axis in shapes[path][1]]
        assert place.spec == PartitionSpec(*wanted), path


EIGHT = """
import json, sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from fixate_jax.backbones import load_backbone
from fixate_jax.lab.verify.verify import plain_inputs
from fixate_jax.backbones.options import BackboneConfig

@jax.jit
def logits(params):
    ids = np.arange(24)[None]
    features = jnp.zeros((1, 1, plain.image_levels, plain.width))
    inputs = plain_inputs(ids, np.ones_like(ids), np.repeat(ids[..., None], 3, axis=2), -1, features)
    return plain.merge(params).decoder.forward(inputs, jnp.zeros((1, 0, plain.width)))[0]

settings = BackboneConfig(path=sys.argv[1], tapped_layers=2)
plain = load_backbone(settings)
found = {"devices": len(jax.devices())}
for name, shape in (("tensor", (8,)), ("data fsdp", (2, 4))):
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(shape), tuple(name.split()))
    shared = load_backbone(settings, mesh=mesh)
    jax.tree.map(np.testing.assert_array_equal, shared.params, plain.params)
    leaves = jax.tree.leaves(shared.params)
    per_device = [sum(leaf.addressable_shards[i].data.nbytes for leaf in leaves) for i in range(8)]
    difference = np.abs(np.asarray(logits(shared.params)) - np.asarray(logits(plain.params))).max()
    found[name] = [max(per_device), min(per_device), sum(leaf.nbytes for leaf in leaves), float(difference)]
print(json.dumps(found))
"""


def test_eight_devices_hold_an_eighth_each(tmp_path: Path) -> None:
    directory = write_tiny_random(tmp_path / "model", sizes=TinySizes(vocab=1024))
    done = subprocess.run(
        [sys.executable, "-c", EIGHT, str(directory)],
        env=environment.of_child(devices=8),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.pop("devices") == 8
    for name, parts in (("tensor", 8), ("data fsdp", 4)):
        largest, smallest, whole, difference = found[name]
        assert difference < 1e-4
        assert largest == smallest
        # Norms, biases and positions are on every device.
        assert whole / parts <= largest <= 1.1 * whole / parts


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux says how much memory is anonymous")
def test_memory_holds_the_weights_once(tmp_path: Path) -> None:
    sizes = TinySizes(vocab=4096, width=1024, ff=3072, layers=6, heads=16, kv_heads=8, head_dim=128)
    directory = write_checkpoint(tmp_path / "model", sizes)
    found = measure(SAFETENSORS, directory)
    size = (directory / SINGLE_FILE).stat().st_size
    assert size > 1.5 * SLACK, "a second copy must not fit"
    assert abs(found["placed"] - size) < 0.01 * size
    assert found["peak"] - found["baseline"] - found["placed"] <= 1.3 * found["largest"] + SLACK
