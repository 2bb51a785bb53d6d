"""Checkpoints: bit-exact, atomic, and never trusted without their checksums."""

import resource
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fixate_jax.errors import CheckpointError
from fixate_jax.lab.config import OptimizerConfig, PromptConfig
from fixate_jax.lab.parts import optimizer_of
from fixate_jax.prompts import init_prompt
from fixate_jax.tuning.checkpoint import CheckpointStore, CheckpointWarning


def small(value: float = 0.0) -> dict[str, Any]:
    return {"prompt": {"basis": jnp.full((2, 3), value, jnp.float32)}, "step": jnp.int32(value)}


def bits(leaf: Any) -> tuple[str, tuple[int, ...], bytes]:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return str(leaf.dtype), leaf.shape, np.asarray(jax.random.key_data(leaf)).tobytes()
    return str(leaf.dtype), leaf.shape, np.asarray(leaf).tobytes()


def same(one: Any, other: Any) -> bool:
    """Same structure, types, shapes and bytes; a tree of another structure makes jax.tree.map raise."""
    return all(jax.tree.leaves(jax.tree.map(lambda a, b: bits(a) == bits(b), one, other)))


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def largest(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "run" / "checkpoints", keep=3)


def test_all_kinds_of_arrays_come_back_bit_for_bit(store: CheckpointStore) -> None:
    state = {
        "key": jax.random.key(3),
        "keys": jax.random.split(jax.random.key(1, impl="rbg"), 4),
        "count": jnp.int32(7),
        "flags": jnp.array([True, False]),
        "half": jnp.array([1.1, -2.7], jnp.bfloat16),
        "minus_zero": jnp.full((3,), -0.0),
        "odd_nan": jnp.asarray(np.array([0x7FC00001, 0xFFC00000], np.uint32).view(np.float32)),
        "host": np.arange(5),
        "nested": [(jnp.ones((2, 2)), None), ()],
    }
    meta = {"epoch": 3, "best": 0.1 + 0.2, "users": ["a", "ä"], "loader": {"position": 17}}
    store.save(12, state, meta)
    restored = store.restore(state)
    assert restored is not None
    assert restored.step == 12
    assert restored.meta == meta
    assert same(restored.state, state)
    assert isinstance(restored.state["host"], np.ndarray)


def test_prompt_and_optimizer_come_back_from_their_shapes_alone(store: CheckpointStore) -> None:
    params = init_prompt(jax.random.key(0), **PromptConfig().sizes, users=5, width=8)
    optimizer = optimizer_of(OptimizerConfig(), personal=True)
    state = {"prompt": params, "optimizer": optimizer.init(params), "key": jax.random.key(9)}
    store.save(1, state, {})
    restored = store.restore(jax.eval_shape(lambda: state))
    assert restored is not None
    assert same(restored.state, state)


def test_nothing_saved(store: CheckpointStore) -> None:
    assert store.restore(small()) is None
    assert store.steps() == []
    assert not store.directory.exists()


def test_keeps_the_newest_and_the_best(store: CheckpointStore) -> None:
    for step in range(1, 8):
        store.save(step * 10, small(step), {}, best=step in (1, 2))
    assert store.steps() == [20, 50, 60, 70]
    assert min(path.name for path in store.directory.iterdir()) == "step_00000020"
    newest, best = store.restore(small()), store.restore(small(), best=True)
    assert newest is not None and best is not None
    assert (newest.step, best.step) == (70, 20)
    assert same(best.state, small(2))
    store.save(80, small(8), {}, best=True)
    assert store.steps() == [60, 70, 80]


def test_no_best_saved(store: CheckpointStore) -> None:
    store.save(1, small(), {})
    assert store.restore(small(), best=True) is None


def test_the_same_step_is_replaced_and_later_ones_are_dropped(store: CheckpointStore) -> None:
    for step in (1, 2, 3):
        store.save(step, small(step), {})
    store.save(2, small(9), {"again": True})
    assert store.steps() == [1, 2]
    restored = store.restore(small())
    assert restored is not None
    assert restored.meta == {"again": True}
    assert same(restored.state, small(9))
    assert len(list(store.directory.iterdir())) == 2


def truncate(folder: Path) -> None:
    path = largest(folder / "state")
    path.write_bytes(path.read_bytes()[:-1])


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped array bit": (lambda folder: flip_bit(largest(folder / "state")), "differs from its checksum"),
    "flipped meta bit": (lambda folder: flip_bit(folder / "meta.json"), "meta.json differs from its checksum"),
    "truncated": (truncate, "differs from its checksum"),
    "missing file": (lambda folder: largest(folder / "state").unlink(), "cannot be read"),
    "missing meta": (lambda folder: (folder / "meta.json").unlink(), "meta.json cannot be read"),
    "missing sums": (lambda folder: (folder / "checksums.json").unlink(), "checksums.json cannot be read"),
    "cut sums": (lambda folder: (folder / "checksums.json").write_text('{"state'), "checksums.json cannot be read"),
    "empty sums": (lambda folder: (folder / "checksums.json").write_text("{}"), "no list of checksums"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_left_aside_and_named(store: CheckpointStore, kind: str) -> None:
    damage, why = DAMAGE[kind]
    store.save(1, small(1), {"step": 1})
    folder = store.save(2, small(2), {"step": 2})
    damage(folder)
    with pytest.warns(CheckpointWarning, match=f"step_00000002 left aside: .*{why}"):
        restored = store.restore(small())
    assert restored is not None
    assert (restored.step, restored.meta) == (1, {"step": 1})
    assert same(restored.state, small(1))
    store.save(2, small(5), {})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = store.restore(small())
    assert again is not None
    assert same(again.state, small(5))


def test_any_flipped_bit_anywhere_is_seen(store: CheckpointStore) -> None:
    folder = store.save(1, small(1), {})
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size):
        before = path.read_bytes()
        flip_bit(path)
        with pytest.warns(CheckpointWarning), pytest.raises(CheckpointError, match="all 1 checkpoints are damaged"):
            store.restore(small())
        path.write_bytes(before)
    assert store.restore(small()) is not None


def test_a_save_that_was_cut_short_is_named_and_later_removed(store: CheckpointStore) -> None:
    store.save(1, small(1), {})
    leftover = store.directory / "unfinished_step_00000002"
    (leftover / "state").mkdir(parents=True)
    with pytest.warns(CheckpointWarning, match="unfinished_step_00000002 left aside: is unfinished"):
        restored = store.restore(small())
    assert restored is not None and restored.step == 1
    store.save(2, small(2), {})
    assert not leftover.exists()


def test_a_run_with_other_settings(store: CheckpointStore) -> None:
    store.save(1, small(), {})

    def refused(like: Any) -> str:
        with pytest.raises(CheckpointError) as caught:
            store.restore(like)
        return str(caught.value)

    message = refused({"prompt": {"basis": jnp.zeros((2, 4))}, "step": jnp.int32(0)})
    assert "step_00000001: comes from a run with other settings" in message
    assert "prompt.basis is float32[2, 3] there, float32[2, 4] in this run" in message
    assert "bfloat16[2, 3] in this run" in refused(jax.tree.map(lambda x: x.astype(jnp.bfloat16), small()))
    assert "step is in it, but not in this run" in refused({"prompt": small()["prompt"]})
    assert "seed is not in it" in refused({**small(), "seed": jnp.int32(0)})


def test_a_full_disk_leaves_earlier_checkpoints_alone(store: CheckpointStore) -> None:
    store.save(1, small(1), {})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(CheckpointError, match="step_00000002: could not be written, earlier ones are intact"):
            store.save(2, {"noise": jax.random.normal(jax.random.key(0), (100_000,))}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in store.directory.iterdir()] == ["step_00000001"]
    restored = store.restore(small())
    assert restored is not None and same(restored.state, small(1))
    store.save(2, small(2), {})
    assert store.steps() == [1, 2]


def test_an_interrupt_while_saving(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.save(1, small(1), {})

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("fixate_jax.tuning.checkpoint.flush", interrupt)
        with pytest.raises(KeyboardInterrupt):
            store.save(2, small(2), {})
    assert store.steps() == [1]


@pytest.mark.parametrize(
    ("state", "meta", "wanted"),
    [
        ({"lr": 0.1}, {}, "lr is a float; only arrays"),
        ({"a": {"b": jnp.zeros((0, 2))}}, {}, r"a\.b has shape \(0, 2\); empty arrays"),
        (small(), {"path": Path("x")}, "could not be written"),
    ],
)
def test_what_cannot_be_stored(store: CheckpointStore, state: Any, meta: dict[str, Any], wanted: str) -> None:
    with pytest.raises(CheckpointError, match=wanted):
        store.save(1, state, meta)
    assert store.steps() == []


def test_keep_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="keep = 0"):
        CheckpointStore(tmp_path, keep=0)


def test_saving_is_quick_and_quiet(store: CheckpointStore, capfd: pytest.CaptureFixture[str]) -> None:
    params = init_prompt(jax.random.key(0), **PromptConfig().sizes, users=200, width=1024)
    state = {"prompt": params, "optimizer": optax.adamw(1e-3).init(params)}
    store.save(0, state, {})
    seconds = []
    for step in range(1, 4):
        start = time.perf_counter()
        store.save(step, state, {})
        seconds.append(time.perf_counter() - start)
    # Usually 0.05 s; generous, for the machine may be busy.
    assert min(seconds) < 1.0
    assert capfd.readouterr().err == ""
