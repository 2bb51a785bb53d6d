"""Checkpoints written in a thread: the same on disk, of the step they were asked for at, and no error is lost."""

import threading
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from benchmarks import checkpoint
from fixate_jax.errors import CheckpointError
from fixate_jax.tuning.background import BackgroundSaver, snapshot
from fixate_jax.tuning.checkpoint import CheckpointStore, CheckpointWarning
from tests.test_checkpoint import same, small


def test_a_snapshot_outlives_the_donated_arrays() -> None:
    state: dict[str, Any] = {
        "a": jnp.arange(5.0),
        "half": jnp.ones(3, jnp.bfloat16),
        "key": jax.random.key(3),
        "host": np.arange(2),
    }
    kept = snapshot(state)
    jax.jit(lambda x: jax.tree.map(lambda leaf: leaf * 0 - 1, x), donate_argnums=0)({"a": state["a"]})
    state["host"][:] = 9
    np.testing.assert_array_equal(kept["a"], np.arange(5.0))
    np.testing.assert_array_equal(kept["host"], np.arange(2))
    assert isinstance(kept["a"], np.ndarray) and kept["half"].dtype == ml_dtypes.bfloat16
    assert kept["key"] == state["key"]


class Slow(CheckpointStore):
    """Waits to be told before it writes, and can fail."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.go, self.fails = threading.Event(), False

    def save(self, *args: Any, **kwargs: Any) -> Path:
        assert self.go.wait(60)
        if self.fails:
            raise CheckpointError("no space")
        return super().save(*args, **kwargs)


@pytest.fixture
def store(tmp_path: Path) -> Slow:
    return Slow(tmp_path / "checkpoints")


def test_the_caller_goes_on_and_what_changes_then_is_not_written(store: Slow) -> None:
    state, meta = {"x": jnp.arange(3.0)}, {"lines": 1, "batches": {"next": 4}}
    with BackgroundSaver(store) as saver:
        saver.save(1, snapshot(state), meta)
        assert store.steps() == [], "the step goes on meanwhile"
        meta["lines"], meta["batches"]["next"] = 2, 5  # type: ignore[index]
        state["x"] = state["x"] + 1
        store.go.set()
    restored = store.restore(state)
    assert restored is not None and restored.step == 1
    assert restored.meta == {"lines": 1, "batches": {"next": 4}}
    assert same(restored.state, {"x": jnp.arange(3.0)})
    assert isinstance(restored.state["x"], jax.Array)


def test_one_checkpoint_is_written_at_a_time_in_order(store: Slow) -> None:
    store.go.set()
    with BackgroundSaver(store) as saver:
        for step in range(1, 6):
            saver.save(step, snapshot(small(step)), {})
    assert store.steps() == [3, 4, 5]
    for name in ("state", "meta.json", "checksums.json"):
        assert (store.directory / "step_00000005" / name).exists()


def test_an_error_comes_with_the_next_checkpoint_or_at_the_end(store: Slow) -> None:
    store.go.set()
    store.fails = True
    with pytest.raises(CheckpointError, match="no space"), BackgroundSaver(store) as saver:
        saver.save(1, snapshot(small()), {})
    with BackgroundSaver(store) as saver:
        saver.save(1, snapshot(small()), {})
        with pytest.raises(CheckpointError, match="no space"):
            saver.save(2, snapshot(small()), {})
        saver.wait()  # Reported once.
    with pytest.raises(CheckpointError, match=r"step 3 could not be written \(Object of type PosixPath"):
        BackgroundSaver(store).save(3, snapshot(small()), {"path": Path("x")})


def test_the_error_that_ends_a_run_waits_for_the_checkpoint_and_is_not_hidden_by_it(store: Slow) -> None:
    store.go.set()
    with pytest.raises(KeyboardInterrupt), BackgroundSaver(store) as saver:
        saver.save(1, snapshot(small()), {})
        raise KeyboardInterrupt
    assert store.steps() == [1]
    store.fails = True
    with (
        pytest.warns(CheckpointWarning, match="no space"),
        pytest.raises(KeyboardInterrupt),
        BackgroundSaver(store) as saver,
    ):
        saver.save(2, snapshot(small()), {})
        raise KeyboardInterrupt


def test_what_a_thread_writes_is_what_a_plain_save_writes(store: Slow, tmp_path: Path) -> None:
    store.go.set()
    state = {"basis": jnp.arange(6.0).reshape(2, 3), "half": jnp.ones(3, jnp.bfloat16), "step": jnp.int32(3)}
    with BackgroundSaver(store) as saver:
        saver.save(1, snapshot(state), {"lines": 3})
    plain = CheckpointStore(tmp_path / "plain")
    plain.save(1, state, {"lines": 3})
    first, second = (s.directory / "step_00000001" for s in (store, plain))
    assert (first / "meta.json").read_bytes() == (second / "meta.json").read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one, other = store.restore(state), plain.restore(state)
    assert one is not None and other is not None and same(one.state, other.state)


def test_the_benchmark_runs_in_a_small_form(capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint.main(["--pairs", "2", "--busy", "1"])
    rows = [line.split("│")[1:-1] for line in capsys.readouterr().out.splitlines() if line.count("│") == 7]
    assert [row[0].strip() for row in rows] == ["12", "40", "200"]
    assert all(float(cell) > 0 for row in rows for cell in row)
