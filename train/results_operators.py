"""The table of docs/results/operators.md: every operator on every tiny backbone, tuned on human_choice.

    python train/results_operators.py --data-path path/to/human_choice

Splits and seeds are those of docs/results/human_choice.md; tuning is cut short, so that all of it takes less than 90
minutes on two cores. Each worker process has a part of the cores and takes one backbone and split after the other. What
is finished is on disk and not repeated, so the command can be given again after an interruption. The settings were
chosen on the validation split; this script looks at the test split.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import tyro

from fixate_jax.errors import ConfigError
from fixate_jax.evaluation.statistics import holm
from fixate_jax.lab.config import RunConfig
from fixate_jax.lab.experiments.cells import OPERATORS, Cell, read_cells, run_cells, seconds_of, with_operator
from fixate_jax.lab.experiments.experiment import BACKBONE, FIXATE, SWAPPED, absolute_paths
from fixate_jax.lab.frames import summarise
from fixate_jax.lab.report.operators import operator_overview
from fixate_jax.lab.report.tables import comparison_table, pool_runs, to_markdown
from fixate_jax.lab.settings import load_config
from fixate_jax.lab.studies.jobs import Workers

ROOT = Path(__file__).resolve().parents[1]
BACKBONES = ("tiny-qwen3-vl", "tiny-internvl")
VARIANTS = tuple(name for name in OPERATORS if name != "attn_lrp paper")
"""Rows of the table; signed AttnLRP at the larger ε, at which it can be steered at all."""
PARTS = {"kl": ("user_mean", BACKBONE, SWAPPED), "accuracy": (BACKBONE, "majority_click", SWAPPED)}
"""Metric → what FixATE is compared with in it."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is tuned, and how briefly.

    Attributes:
        data_path: folder of human_choice.
        out: where everything goes.
        backbones: names or directories.
        variants: keys of ``VARIANTS``.
        splits: seeds of the train/validation/test split.
        seeds: of the prompts.
        epochs: of tuning.
        batch: sessions a step.
        swaps: other people's prompts in the swap control.
    """

    data_path: Path
    out: Path = Path("runs/operators")
    backbones: tuple[str, ...] = BACKBONES
    variants: tuple[str, ...] = VARIANTS
    splits: tuple[int, ...] = (0, 1, 2)
    seeds: tuple[int, ...] = (42, 123, 456)
    epochs: int = 1
    batch: int = 2
    swaps: int = 1

    def __post_init__(self) -> None:
        unknown = [name for name in self.variants if name not in VARIANTS]
        if unknown:
            raise ConfigError(f"--variants {unknown[0]}: choose among {', '.join(VARIANTS)}")

    def folder(self, backbone: str, variant: str, split: int) -> Path:
        """The run directory that the cells of all seeds are in."""
        return self.out / Path(backbone).name / variant.replace(" ", "-") / f"split-{split}"

    def seeds_of(self, backbone: str, variant: str, split: int) -> list[Cell]:
        """The cells that differ in their seed alone."""
        config = settings(self, backbone, variant, split)
        return [Cell(folder=self.folder(backbone, variant, split), config=config, seed=seed) for seed in self.seeds]

    def groups(self) -> list[list[Cell]]:
        """What one worker does in one go: a backbone on a split, every operator and seed."""
        return [
            [cell for variant in self.variants for cell in self.seeds_of(backbone, variant, split)]
            for split in self.splits
            for backbone in self.backbones
        ]


def settings(plan: Plan, backbone: str, variant: str, split: int) -> RunConfig:
    """Settings of a cell; only the operator differs between rows, and whose relevance is aligned."""
    config = load_config(ROOT / "configs" / "human_choice.yaml")
    config = replace(
        config,
        data=replace(config.data, path=plan.data_path, split_seed=split),
        backbone=replace(config.backbone, path=backbone),
        train=replace(
            config.train,
            seeds=plan.seeds,
            epochs=plan.epochs,
            batch=plan.batch,
            validate_every=plan.epochs,
            swaps=plan.swaps,
            ntp_baseline=False,
        ),
    )
    return absolute_paths(with_operator(config, variant))


def summary(plan: Plan, backbone: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A row for each operator: measures free-running over all runs, and the tests over people."""
    rows, tests = [], []
    for variant in plan.variants:
        frames = {split: read_cells(plan.seeds_of(backbone, variant, split)) for split in plan.splits}
        averaged, spread = pool_runs(frames)
        rows.append({"backbone": backbone, "operator": variant, **_measures(averaged, spread)})
        compared = comparison_table(averaged, reference=FIXATE, names=tuple(PARTS))
        compared = compared[compared["mode"] == "FR"]
        for metric, others in PARTS.items():
            of_metric = compared[compared["metric"].str.startswith(metric)]
            tests.append(of_metric[of_metric["against"].isin(others)].assign(backbone=backbone, operator=variant))
    return pd.DataFrame(rows), pd.concat(tests, ignore_index=True)


def _measures(averaged: pd.DataFrame, spread: pd.DataFrame) -> dict[str, float]:
    micro = summarise(averaged)
    micro = micro[micro["average"] == "micro"].set_index(["method", "mode"])
    sd = spread[spread["average"] == "micro"].set_index(["method", "mode"])
    free, own = micro.loc[(FIXATE, "FR")], sd.loc[(FIXATE, "FR")]
    return {
        "kl": free["kl"],
        "kl sd": own["kl sd"],
        "backbone kl": micro.loc[(BACKBONE, "FR"), "kl"],
        "told kl": micro.loc[(FIXATE, "TF"), "kl"],
        "cosine": free["cosine"],
        "csh@1": free["csh@1"],
        "tgo@1": free["tgo@1"],
        "accuracy": free["accuracy"],
        "accuracy sd": own["accuracy sd"],
        "log_loss": free["log_loss"],
    }


def baselines(plan: Plan, backbone: str) -> pd.DataFrame:
    """Measures of the predictors without a model, which no operator changes."""
    averaged, _ = pool_runs({s: read_cells(plan.seeds_of(backbone, plan.variants[0], s)) for s in plan.splits})
    found = summarise(averaged[~averaged["method"].isin((FIXATE, SWAPPED, BACKBONE))])
    return found[found["average"] == "micro"][["method", "mode", "kl", "cosine", "csh@1", "tgo@1", "accuracy"]]


def report(plan: Plan) -> Path:
    """Tables and figure from what is on disk."""
    pairs = [summary(plan, backbone) for backbone in plan.backbones]
    rows, tests = (pd.concat(frames, ignore_index=True) for frames in zip(*pairs, strict=True))
    for _, family in tests.groupby(["metric", "against"]):
        tests.loc[family.index, "p holm"] = holm(family["p"].to_numpy(float))
    trivial = baselines(plan, plan.backbones[0])
    rows.to_csv(plan.out / "operators.csv", index=False)
    tests.to_csv(plan.out / "tests.csv", index=False)
    trivial.to_csv(plan.out / "predictors.csv", index=False)
    text = [to_markdown(rows, 4), to_markdown(trivial, 4), to_markdown(tests, 4)]
    text.append(f"Seconds of all cells: {seconds_of([cell for group in plan.groups() for cell in group]):.0f}\n")
    (plan.out / "tables.md").write_text("\n".join(text), encoding="utf-8")
    return operator_overview(plan.out / "operators.png", rows, trivial)


TWO = Workers(jobs=2)


def main(plan: tyro.conf.OmitArgPrefixes[Plan], workers: tyro.conf.OmitArgPrefixes[Workers] = TWO) -> None:
    """Tune, measure and write the tables.

    Args:
        plan: what is tuned.
        workers: who does it.
    """
    run_cells(plan.groups(), out=plan.out, workers=workers, title="Operators")
    print(json.dumps({"tables": str(plan.out / "tables.md"), "figure": str(report(plan))}, indent=1))


if __name__ == "__main__":
    tyro.cli(main)
