"""The script behind the table of operators: its rows differ in the operator alone, and it goes on where it stopped."""

import dataclasses
import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fixate_jax.errors import ConfigError
from fixate_jax.probing import OPERATORS
from fixate_jax.settings import load_config
from fixate_jax.tuning.experiment import CONFIG_FILE

SCRIPT = Path(__file__).parents[1] / "train" / "results_operators.py"
VARIANTS = ("attention", "attn_lrp abs")
PREDICTORS = ("uniform", "user_mean", "personal_content_regression")
CLICKS = ("majority_click", "content_click", "personal_content_click")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("results_operators", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["results_operators"] = module  # Dataclasses look their module up.
    spec.loader.exec_module(module)
    return module


def small(script: ModuleType, out: Path, **changes: Any) -> Any:
    return script.Plan(data_path=Path("x"), out=out, variants=VARIANTS, splits=(0, 1), seeds=(7, 8), **changes)


def test_rows_differ_in_the_operator_alone(script: ModuleType, tmp_path: Path):
    plan = script.Plan(data_path=Path("x"), out=tmp_path)
    first = script.settings(plan, "tiny-qwen3-vl", "attention", 1)
    assert (first.data.split_seed, first.train.seeds, first.train.epochs) == (1, (42, 123, 456), plan.epochs)
    for variant in plan.variants:
        config = script.settings(plan, "tiny-qwen3-vl", variant, 1)
        assert config.operator.name in OPERATORS
        same = dataclasses.replace(first.objective, relevance=config.objective.relevance)
        assert dataclasses.replace(config, operator=first.operator, objective=first.objective) == first
        assert config.objective == same
        assert (config.objective.relevance == "own") == (variant not in ("attention", "rollout"))
    assert len(plan.cells()) == len(set(plan.cells())) == 2 * len(plan.variants) * 9
    with pytest.raises(ConfigError, match="--variants attnlrp: choose among attention, "):
        script.Plan(data_path=Path("x"), out=tmp_path, variants=("attnlrp",))


def metrics(methods: tuple[str, ...], rng: np.random.Generator, modes: tuple[str, ...]) -> pd.DataFrame:
    keys = [
        {"session_id": f"s{i}", "user_id": f"u{i % 4}", "split": "test", "method": method, "mode": mode}
        for method in methods
        for mode in modes
        for i in range(8)
    ]
    names = ("kl", "js", "cosine", "csh@1", "tgo@1", "log_loss", "auc", "accuracy")
    return pd.DataFrame(keys).assign(**{name: rng.uniform(0.1, 0.9, len(keys)) for name in names})


def fake_cells(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Instead of tuning, made-up measures; returns the cells that were asked for."""
    asked: list[tuple[str, int]] = []

    def train(workspace: Any, config: Any, directory: Path, *, seed: int) -> SimpleNamespace:
        directory.mkdir(parents=True)
        asked.append((config.operator.name, seed))
        return SimpleNamespace(prompt=None)

    def predict(workspace: Any, prompt: Any, split: str, method: str) -> pd.DataFrame:
        return metrics((method,), np.random.default_rng(len(asked)), ("TF", "FR"))

    rng = np.random.default_rng(0)
    for name, value in {
        "train": train,
        "predict": predict,
        "session_metrics": lambda frame, top_k: frame,
        "swapped_metrics": lambda workspace, prompt, split, method, top_k: metrics((method,), rng, ("TF", "FR")),
        "trivial_predictions": lambda *args, **kwargs: metrics(PREDICTORS + CLICKS, rng, ("FR",)),
        "open_or_prepare": lambda data: SimpleNamespace(slot_feature_names=()),
        "open_workspace": lambda config, store, directory: Shared(config=config, store=store),
    }.items():
        monkeypatch.setattr(script, name, value)
    return asked


@dataclasses.dataclass(frozen=True)
class Shared:
    """As much of a workspace as the script touches itself."""

    config: Any
    store: Any

    def sessions(self, split: str) -> list[str]:
        return [split]


def test_a_group_goes_on_where_it_stopped_and_ends_in_tables(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked = fake_cells(script, monkeypatch)
    plan = small(script, tmp_path / "operators", backbones=("tiny-qwen3-vl", "tiny-internvl"))
    script.claim(plan)
    for backbone, split in plan.groups:
        script.run_group(plan, backbone, split)
    assert len(asked) == len(plan.cells()) == 16 and all(cell.exists() for cell in plan.cells())
    gone = plan.cells()[5]
    before = {cell: cell.read_bytes() for cell in plan.cells()}
    gone.unlink()
    (gone.with_suffix("") / script.CELL).unlink()
    gone.with_suffix("").rmdir()
    for backbone, split in plan.groups:
        script.run_group(plan, backbone, split)
    assert len(asked) == 17 and asked[-1][1] == int(gone.stem.removeprefix("seed-"))
    assert all(cell.read_bytes() == content for cell, content in before.items() if cell != gone)

    figure = script.report(plan)
    assert figure.stat().st_size > 10_000
    rows, tests = pd.read_csv(plan.out / "operators.csv"), pd.read_csv(plan.out / "tests.csv")
    assert list(zip(rows["backbone"], rows["operator"], strict=True)) == [
        (b, v) for b in plan.backbones for v in VARIANTS
    ]
    folder = plan.folder("tiny-internvl", "attn_lrp abs", 0).parent
    cells = pd.concat([pd.read_parquet(path) for path in sorted(folder.glob("*/seed-*.parquet"))])
    own = cells[(cells["method"] == "fixate") & (cells["mode"] == "FR")]
    assert rows["kl"].iloc[-1] == pytest.approx(own["kl"].mean()) and rows["kl sd"].iloc[-1] > 0
    families = tests.groupby(["metric", "against"])
    assert {len(family) for _, family in families} == {4} and len(families) == 6
    assert (tests["p holm"] >= tests["p"]).all() and set(tests["users"]) == {4}


def test_other_settings_do_not_mix(script: ModuleType, tmp_path: Path):
    plan = small(script, tmp_path)
    script.claim(plan)
    script.claim(plan)
    first = plan.folder("tiny-qwen3-vl", "attention", 0)
    assert load_config(first / CONFIG_FILE) == script.settings(plan, "tiny-qwen3-vl", "attention", 0)
    with pytest.raises(ConfigError, match=r"split-0 was made with other settings \(train.epochs: 1 there, 9 now"):
        script.claim(small(script, tmp_path, epochs=9))
