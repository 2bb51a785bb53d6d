"""A study that takes seconds."""

from pathlib import Path

import pandas as pd

from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.data.options import DataConfig
from fixate_jax.lab.config import (
    ObjectiveConfig,
    OperatorConfig,
    OptimizerConfig,
    PromptConfig,
    RunConfig,
    TrainConfig,
)
from fixate_jax.lab.studies import report
from fixate_jax.lab.studies.jobs import Workers
from fixate_jax.lab.studies.matrix import Study, Variant
from fixate_jax.lab.studies.run import run_study
from fixate_jax.lab.studies.sweep import variants_of


def preset(folder: Path) -> RunConfig:
    return RunConfig(
        data=DataConfig(name="synthetic_choice", store=folder / "store", page_width=64, max_users=3, train_sessions=8),
        backbone=BackboneConfig(tapped_layers=1),
        prompt=PromptConfig(basis=2, tokens=2, init_scale=0.3),
        operator=OperatorConfig(name="attention"),
        objective=ObjectiveConfig(alignment="kl", warmup=0),
        optimizer=OptimizerConfig(basis_lr=0.05, user_lr=0.05),
        train=TrainConfig(epochs=2, batch=4, accumulate=1, eval_batch=8, validate_every=1, swap_control=False),
    )


def study(folder: Path, out: Path, variants: tuple[Variant, ...] | None = None) -> Study:
    base = preset(folder)
    if variants is None:
        variants = variants_of(base, {"objective.attention_weight": (0.5, 2.0)})
    return Study(
        out=out, base=base, variants=variants, seeds=(1,), splits=(0,), measured="validation", signal="fixation"
    )


def finished_study(folder: Path) -> Study:
    """The study that nothing happens to, with its cells on disk."""
    made = study(folder, folder / "whole")
    run_study(made, title="T", workers=Workers())
    return made


def tables(made: Study) -> tuple[pd.DataFrame, pd.DataFrame]:
    found = report.read(made)
    return report.measures_table(made, found), report.tests_table(made, found)
