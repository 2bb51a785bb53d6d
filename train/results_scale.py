"""The tables of docs/results/scale.md: what bfloat16 weights and a soft prompt after the page cost on human_choice.

    python train/results_scale.py --data-path path/to/human_choice

Every variant is tuned with several seeds on both tiny backbones, on the same split and with the settings of the preset
but for the one that gives it its name. What is finished is on disk and not repeated.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import tyro

from fixate_jax.errors import ConfigError
from fixate_jax.lab.config import RunConfig
from fixate_jax.lab.experiments.cells import Cell, read_cells, run_cells, seconds_of
from fixate_jax.lab.experiments.experiment import BACKBONE, FIXATE, absolute_paths
from fixate_jax.lab.frames import summarise
from fixate_jax.lab.report.tables import comparison_table, pool_runs, to_markdown
from fixate_jax.lab.settings import load_config
from fixate_jax.lab.studies.jobs import Workers

ROOT = Path(__file__).resolve().parents[1]
DEFAULT = "default"
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    DEFAULT: {},
    "bfloat16": {"backbone": {"dtype": "bfloat16"}},
    "after_image": {"prompt": {"position": "after_image"}},
}
"""Name → what of the preset is changed."""
SHOWN = ["kl", "js", "cosine", "csh@1", "tgo@1", "log_loss", "auc", "accuracy"]
COMPARED = ("kl", "accuracy", "csh@1", "log_loss")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is tuned.

    Attributes:
        data_path: folder of human_choice.
        out: where everything goes.
        backbones: names or directories.
        variants: keys of ``VARIANTS``; the first is what the others are compared with.
        seeds: of the prompts.
        splits: seeds of the train/validation/test split.
        swaps: other people's prompts in the swap control.
    """

    data_path: Path
    out: Path = Path("runs/scale")
    backbones: tuple[str, ...] = ("tiny-qwen3-vl", "tiny-internvl")
    variants: tuple[str, ...] = tuple(VARIANTS)
    seeds: tuple[int, ...] = (42, 123, 456)
    splits: tuple[int, ...] = (0,)
    swaps: int = 3

    def __post_init__(self) -> None:
        unknown = [name for name in self.variants if name not in VARIANTS]
        if unknown:
            raise ConfigError(f"--variants {unknown[0]}: choose among {', '.join(VARIANTS)}")

    def cells(self, backbone: str, variant: str, split: int) -> list[Cell]:
        """A cell for each seed."""
        folder = self.out / Path(backbone).name / variant / f"split-{split}"
        config = settings(self, backbone, variant, split)
        return [Cell(folder=folder, config=config, seed=seed) for seed in self.seeds]


def settings(plan: Plan, backbone: str, variant: str, split: int) -> RunConfig:
    """Settings of a cell: the preset's, but for what the variant changes."""
    config = load_config(ROOT / "configs" / "human_choice.yaml")
    config = replace(
        config,
        data=replace(config.data, path=plan.data_path, split_seed=split),
        backbone=replace(config.backbone, path=backbone),
        train=replace(config.train, seeds=plan.seeds, swaps=plan.swaps, ntp_baseline=False),
    )
    changes = VARIANTS[variant]
    config = replace(config, **{part: replace(getattr(config, part), **fields) for part, fields in changes.items()})
    return absolute_paths(config)


def pooled(plan: Plan, backbone: str, variant: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Measures averaged over seeds, and their spread over seeds and splits."""
    return pool_runs({split: read_cells(plan.cells(backbone, variant, split)) for split in plan.splits})


def measures(plan: Plan, backbone: str, variant: str) -> pd.DataFrame:
    """A row for each method and mode, with the sd over runs."""
    averaged, spread = pooled(plan, backbone, variant)
    mean, sd = (f[f["average"] == "micro"].set_index(["method", "mode"]) for f in (summarise(averaged), spread))
    rows = []
    for key, own in mean.iterrows():
        head = {"backbone": Path(backbone).name, "variant": variant, **dict(zip(("method", "mode"), key, strict=True))}
        spreads = {f"{name} sd": sd.loc[key, f"{name} sd"] for name in ("kl", "accuracy")}
        rows.append(head | own[SHOWN].to_dict() | spreads)
    return pd.DataFrame(rows)


def compare(plan: Plan, backbone: str) -> pd.DataFrame:
    """Every variant against the first, over people: tuned, and the backbone alone."""
    frames = []
    for method in (FIXATE, BACKBONE):
        rows = []
        for variant in plan.variants:
            averaged, _ = pooled(plan, backbone, variant)
            rows.append(averaged[averaged["method"] == method].assign(method=variant))
        together = pd.concat(rows, ignore_index=True)
        table = comparison_table(together, reference=plan.variants[0], names=COMPARED)
        frames.append(table.assign(backbone=Path(backbone).name, method=method))
    return pd.concat(frames, ignore_index=True)


def report(plan: Plan) -> None:
    """Tables from what is on disk."""
    rows = pd.concat([measures(plan, b, v) for b in plan.backbones for v in plan.variants], ignore_index=True)
    tests = pd.concat([compare(plan, backbone) for backbone in plan.backbones], ignore_index=True)
    text = []
    for name, table in {"measures": rows, "tests": tests}.items():
        table.to_csv(plan.out / f"{name}.csv", index=False)
        text += [f"### {name}", "", to_markdown(table, 4), ""]
    for backbone in plan.backbones:
        for variant in plan.variants:
            done = [cell for split in plan.splits for cell in plan.cells(backbone, variant, split)]
            text.append(f"Seconds of {Path(backbone).name}, {variant}: {seconds_of(done):.0f}\n")
    (plan.out / "tables.md").write_text("\n".join(text), encoding="utf-8")


TWO = Workers(jobs=2)


def main(plan: tyro.conf.OmitArgPrefixes[Plan], workers: tyro.conf.OmitArgPrefixes[Workers] = TWO) -> None:
    """Tune, measure and write the tables.

    Args:
        plan: what is tuned.
        workers: who does it.
    """
    groups = [plan.cells(b, v, split) for v in plan.variants for b in plan.backbones for split in plan.splits]
    run_cells(groups, out=plan.out, workers=workers, title="Tuning")
    report(plan)
    print(json.dumps({"tables": str(plan.out / "tables.md")}, indent=1))


if __name__ == "__main__":
    tyro.cli(main)
