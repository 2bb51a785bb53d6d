"""Stand-ins for tuning and measuring, for tests of what many runs are put together to."""

import dataclasses
import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fixate_jax.lab.experiments import cells
from fixate_jax.lab.experiments.workspace import Workspace

PREDICTORS = ("uniform", "user_mean", "user_mean_shrunk", "personal_content_regression")
CLICKS = ("majority_click", "content_click", "personal_content_click")
SESSIONS = 8


def load_script(name: str) -> ModuleType:
    """A script of train/ as a module."""
    path = Path(__file__).parents[1] / "train" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # Dataclasses look their module up.
    spec.loader.exec_module(module)
    return module


def metrics(
    methods: tuple[str, ...], rng: np.random.Generator, modes: tuple[str, ...], split: str = "test"
) -> pd.DataFrame:
    """Made-up measures of eight sessions of four people."""
    keys = [
        {"session_id": f"s{i}", "user_id": f"u{i % 4}", "split": split, "method": method, "mode": mode}
        for method in methods
        for mode in modes
        for i in range(SESSIONS)
    ]
    names = ("kl", "js", "cosine", "csh@1", "tgo@1", "tgo@3", "log_loss", "auc", "accuracy")
    return pd.DataFrame(keys).assign(**{name: rng.uniform(0.1, 0.9, len(keys)) for name in names})


class FakeWorkspace(Workspace):
    """As much of a workspace as is touched."""

    def __init__(self, **fields: Any) -> None:
        for name in (field.name for field in dataclasses.fields(Workspace)):
            object.__setattr__(self, name, fields.get(name))

    def sessions(self, split: str) -> list[Any]:
        return [
            SimpleNamespace(
                session_id=f"s{i}", split=split, gaze=lambda signal, temperature: np.array([float(len(signal))])
            )
            for i in range(SESSIONS)
        ]


def fake_cells(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, str]]:
    """Instead of tuning, made-up measures; returns operator, seed and split of the cells that were asked for."""
    asked: list[tuple[str, int, str]] = []

    def tuned_prompt(workspace: Any, cell: cells.Cell, directory: Path) -> tuple[str, int]:
        directory.mkdir(parents=True)
        return cell.config.operator.name, cell.seed

    def predict(workspace: Any, prompt: Any, split: str, method: str) -> pd.DataFrame:
        if prompt is not None:
            asked.append((*prompt, split))
        return metrics((method,), np.random.default_rng(len(asked)), ("TF", "FR"), split)

    def session_metrics(frame: pd.DataFrame, top_k: int) -> pd.DataFrame:
        return frame.assign(js=[gaze[0] for gaze in frame["gaze"]]).drop(columns="gaze")

    def run_cells(groups: Any, *, out: Path, workers: Any, title: str) -> None:
        for group in groups:
            cells.check_cells(group)
            for cell in group:
                cells.claim_run(cell.folder, cell.config)
            cells.run_group(group, out)

    rng = np.random.default_rng(0)
    for name, value in {
        "tuned_prompt": tuned_prompt,
        "predict": predict,
        "session_metrics": session_metrics,
        "swapped_metrics": lambda workspace, prompt, split, method, top_k: metrics((method,), rng, ("TF", "FR"), split),
        "predict_without_model": lambda workspace, split: metrics(PREDICTORS + CLICKS, rng, ("FR",), split),
        "open_or_prepare": lambda data: SimpleNamespace(slot_feature_names=()),
        "open_workspace": lambda config, store, directory: FakeWorkspace(config=config, store=store),
        "run_cells": run_cells,
        # Whose cells these are is `test_identity.py`'s subject.
        "check_people": lambda run, store, data: None,
        "claim_identity": lambda run, workspace: None,
    }.items():
        monkeypatch.setattr(cells, name, value)
    return asked
