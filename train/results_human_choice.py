"""The table of docs/results/human_choice.md: every variant on every split, pooled over splits and seeds.

    python train/results_human_choice.py --data-path path/to/human_choice
    python train/results_human_choice.py --data-path path/to/human_choice --backbone tiny-internvl --out runs/internvl

Finished runs are not repeated, so it can be given again after an interruption. Choose settings on the validation split
before; this script looks at the test split.
"""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import tyro

from fixate_jax.data.registry import open_or_prepare
from fixate_jax.lab.config import RunConfig
from fixate_jax.lab.experiments.experiment import CONFIG_FILE, FIXATE, absolute_paths, run_experiment
from fixate_jax.lab.frames import summarise, user_means
from fixate_jax.lab.report.figures import method_differences
from fixate_jax.lab.report.tables import comparison_table, pool_runs, results_table, to_markdown
from fixate_jax.lab.settings import load_config

ROOT = Path(__file__).resolve().parents[1]
VARIANTS: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    "attention": ("human_choice.yaml", {}),
    "attn_lrp abs": (
        "human_choice.yaml",
        {"operator": {"name": "attn_lrp", "normalise": "abs"}, "objective": {"relevance": "own"}},
    ),
    "attn_lrp signed": (
        "human_choice.yaml",
        {"operator": {"name": "attn_lrp", "normalise": "signed", "eps": 0.1}, "objective": {"relevance": "own"}},
    ),
    "paper's settings": ("human_choice_paper.yaml", {"train": {"epochs": 6, "seeds": (42,)}}),
}
"""Name → preset, and what of it is changed."""
SHOWN = ["kl", "js", "cosine", "csh@1", "tgo@1", "log_loss", "auc", "accuracy"]
COMPARED = ("kl", "accuracy", "csh@1")


def settings(
    variant: str,
    *,
    data_path: Path,
    split: int,
    seeds: tuple[int, ...],
    swaps: int,
    ntp_baseline: bool,
    backbone: str | None = None,
) -> RunConfig:
    """Settings of one run, on the preset's backbone where none is named."""
    preset, changes = VARIANTS[variant]
    config = load_config(ROOT / "configs" / preset)
    config = replace(
        config,
        data=replace(config.data, path=data_path, split_seed=split),
        backbone=replace(config.backbone, path=config.backbone.path if backbone is None else backbone),
        train=replace(config.train, seeds=seeds, swaps=swaps, pictures=1, ntp_baseline=ntp_baseline),
    )
    return replace(config, **{part: replace(getattr(config, part), **fields) for part, fields in changes.items()})


def run_variant(config: RunConfig, run: Path) -> pd.DataFrame:
    """Metrics of every session, method, mode and seed of a run, from disk where it is finished."""
    kept = run / "metrics.parquet"
    if kept.exists():
        if load_config(run / CONFIG_FILE) != absolute_paths(config):
            raise SystemExit(f"{run} was made with other settings; remove it or choose another --out")
        return pd.read_parquet(kept)
    metrics = run_experiment(config, run).metrics
    temporary = kept.with_suffix(".tmp")
    metrics.to_parquet(temporary, index=False)
    os.replace(temporary, kept)
    return metrics


def main(
    data_path: Path,
    out: Path = Path("runs/human-choice"),
    splits: tuple[int, ...] = (0, 1, 2),
    seeds: tuple[int, ...] = (42, 123, 456),
    swaps: int = 5,
    ntp_baseline: bool = False,
    variants: tuple[str, ...] = tuple(VARIANTS),
    backbone: str | None = None,
) -> None:
    """Run and pool.

    Args:
        data_path: folder of human_choice.
        out: where the runs, tables and figure go.
        splits: seeds of the train/validation/test split.
        seeds: of the prompts (the paper's settings run with one).
        swaps: how many other people's prompts in the swap control.
        ntp_baseline: also tune every prompt on the answers alone, which takes as long again.
        variants: which ones.
        backbone: directory, repository on the Hub or embedded name instead of the presets'. Runs on another one need
            another `out`.
    """
    text, differences = [], {}
    for variant in variants:
        frames = {}
        for split in splits:
            config = settings(
                variant,
                data_path=data_path,
                split=split,
                seeds=seeds,
                swaps=swaps,
                ntp_baseline=ntp_baseline,
                backbone=backbone,
            )
            open_or_prepare(config.data)
            frames[split] = run_variant(config, out / variant.replace(" ", "-").replace("'", "") / f"split-{split}")
        averaged, deviation = pool_runs(frames)
        results = results_table(summarise(averaged), SHOWN)
        results = results[results["average"] == "micro"].drop(columns=["average", "users"])
        comparison = comparison_table(averaged, reference=FIXATE, names=COMPARED)
        stem = variant.replace(" ", "-").replace("'", "")
        for name, table in {"results": results, "comparison": comparison, "deviation": deviation}.items():
            table.to_csv(out / f"{stem}-{name}.csv", index=False)
        text += [f"### {variant}", "", to_markdown(results, 3), "", to_markdown(comparison, 4), ""]
        differences[variant] = user_means(averaged)
    (out / "tables.md").write_text("\n".join(text), encoding="utf-8")
    method_differences(
        out / "human_choice.png", differences, reference=FIXATE, against={"kl": "user_mean", "accuracy": "backbone"}
    )
    print(json.dumps({"tables": str(out / "tables.md"), "figure": str(out / "human_choice.png")}, indent=1))


if __name__ == "__main__":
    tyro.cli(main)
