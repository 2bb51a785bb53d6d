"""`fixate tune-users` from a preset to its tables, and users shared among eight devices."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from fixate_jax.data.registry import open_or_prepare
from fixate_jax.errors import CheckpointError, ConfigError
from fixate_jax.lab.cli import commands as cli
from fixate_jax.lab.config import RunConfig, UsersConfig
from fixate_jax.lab.experiments.loop import start_state
from fixate_jax.lab.experiments.users_run import load_basis, run_users
from fixate_jax.lab.experiments.workspace import open_workspace
from fixate_jax.lab.settings import dump_config
from fixate_jax.lab.users.tune import tune_users
from fixate_jax.tuning.checkpoint import CheckpointStore
from tests import environment
from tests.tuning import test_users

ROOT = Path(__file__).parents[2]
WIDTH = 128
"""Of the tiny random backbone."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data") / "store"


@pytest.fixture(scope="module")
def config(store: Path) -> RunConfig:
    made = test_users.settings(store)
    return replace(made, train=replace(made.train, seeds=(7,)), users=UsersConfig(steps=4, validate_every=2, chunk=3))


@pytest.fixture(scope="module")
def trained(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as `fixate train` leaves it, of six other users."""
    run = tmp_path_factory.mktemp("runs") / "trained"
    state = start_state(config, users=6, width=WIDTH, seed=7)
    best = state.prompt._replace(coefficients=jax.random.normal(jax.random.key(1), (6, 3)))
    CheckpointStore(run / "seed-7" / "checkpoints").save(5, {"state": state, "best": best}, {})
    (run / "config.yaml").write_text(dump_config(config))
    return run


def tune(preset: Path, *arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        cli.main(["tune-users", str(preset), *arguments])
    assert isinstance(left.value.code, int)
    return left.value.code


def test_the_command_writes_everything_and_can_be_given_again(
    config: RunConfig,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")
    preset = tmp_path / "small.yaml"
    preset.write_text(dump_config(config))
    flags = ("--basis", str(trained), "--users.only", "1", "4", "0", "2")
    assert tune(preset, *flags) == 0
    run = tmp_path / "runs" / "users-small"
    assert "population_prompt" in capsys.readouterr().out
    for name in ("config.yaml", "versions.json", "report.html", "comparison-test.csv", "seed-7/metrics.csv"):
        assert (run / name).stat().st_size > 0, name
    users = pd.read_csv(run / "seed-7" / "users.csv")
    assert list(users["user"].astype(str)) == ["1", "4", "0", "2"]
    assert (users["score_after"] <= users["score_before"]).all() and (users["train"] == 42).all()
    tensors = load_file(run / "seed-7" / "prompts.safetensors")
    theirs = load_basis(trained, seed=7, width=WIDTH)
    np.testing.assert_array_equal(tensors["basis"], np.asarray(theirs.basis))
    assert tensors["coefficients"].shape == (4, 3)
    results = pd.read_csv(run / "results-test.csv")
    assert {"fixate", "population_prompt", "backbone", "uniform", "user_mean"} <= set(results["method"])
    assert set(results["users"]) == {4}, "only these users are evaluated"
    against = pd.read_csv(run / "comparison-test.csv")["against"]
    assert {"population_prompt", "backbone"} <= set(against)
    assert json.loads((run / "run.json").read_text())["users"]["seed 7"] in (
        {"chunk": 2, "compilations": n} for n in (0, 1)
    )

    assert tune(preset, *flags) == 0
    assert json.loads((run / "run.json").read_text())["users"]["seed 7"] == {"chunk": 2, "compilations": 0}
    pd.testing.assert_frame_equal(pd.read_csv(run / "results-test.csv"), results)
    capsys.readouterr()
    assert tune(preset, *flags, "--users.steps", "5") == 2
    assert "made with other settings (users.steps: 4 there, 5 now)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": 3}, r"does not fit: prompt\.tokens is 2 there, 3 here"),
        ({"tapped_layers": 1}, r"does not fit: backbone\.tapped_layers is 2 there, 1 here"),
        ({"seeds": (8,)}, r"not tuned with seed 8; there are 7: set --train\.seeds"),
    ],
)
def test_a_basis_of_another_kind_is_refused(
    config: RunConfig, trained: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    sections = {"tokens": "prompt", "tapped_layers": "backbone", "seeds": "train"}
    (section,) = (sections[name] for name in change)
    other = replace(config, users=replace(config.users, basis=trained))
    other = replace(other, **{section: replace(getattr(other, section), **change)})
    with pytest.raises(ConfigError, match=message):
        run_users(other, tmp_path / "run")
    assert not (tmp_path / "run").exists(), "nothing was done"


def test_what_is_no_basis_is_refused(config: RunConfig, trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.yaml there; give the directory of a run of `fixate train`"):
        run_users(replace(config, users=replace(config.users, basis=tmp_path)), tmp_path / "run")
    with pytest.raises(ConfigError, match="does not fit: prompts of width 128, the backbone's is 64"):
        load_basis(trained, seed=7, width=64)
    with pytest.raises(CheckpointError, match="no checkpoint there"):
        CheckpointStore(tmp_path).shapes()


ON_EIGHT_DEVICES = """
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from fixate_jax.data.registry import open_or_prepare
from fixate_jax.lab.experiments.workspace import open_workspace
from fixate_jax.lab.users.tune import _UserTuning
from tests.tuning.test_users import few_sessions, settings

store, out = Path(sys.argv[1]), Path(sys.argv[2])
config = settings(store)
config = replace(config, train=replace(config.train, mesh=(8, 1, 1), batch=8))
workspace = few_sessions(open_workspace(config, open_or_prepare(config.data), directory=out.parent))
run = _UserTuning(workspace, config, None, None, 3, None)
assert run.chunk == 8 and jax.device_count() == 8
state, sessions, frozen = run._arguments(run.data.members)
assert {s.data.shape[0] for s in state.own.addressable_shards} == {1}
text = run.advance.lower(state, sessions, frozen, jnp.int32(0), jnp.int32(0)).compile().as_text()
for talk in ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter"):
    assert talk not in text, f"devices talk to each other: {talk}"
np.savez(out, own=np.asarray(run.run(lambda *_: None).own))
"""


def test_eight_devices_give_what_one_gives(store: Path, tmp_path: Path) -> None:
    """Private prompts from nothing, so that this way of starting is seen as well."""
    config = test_users.settings(store)
    opened = open_workspace(config, open_or_prepare(config.data), directory=tmp_path)
    alone = tune_users(test_users.few_sessions(opened), config, seed=3)
    assert alone.basis is None and alone.chunk == 5
    done = subprocess.run(
        [sys.executable, "-c", ON_EIGHT_DEVICES, str(store), str(tmp_path / "own.npz")],
        env=environment.of_child(devices=8),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    shared = np.load(tmp_path / "own.npz", allow_pickle=False)["own"]
    np.testing.assert_allclose(shared, np.asarray(alone.own), rtol=1e-5, atol=1e-5)
