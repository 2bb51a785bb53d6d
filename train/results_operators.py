"""The table of docs/results/operators.md: every operator on every tiny backbone, tuned on human_choice.

    python train/results_operators.py --data-path path/to/human_choice

Splits and seeds are those of docs/results/human_choice.md; tuning is cut short, so that all of it takes less than 90
minutes on two cores. Each worker process has a part of the cores and takes one backbone and split after the other. What
is finished is on disk and not repeated, so the command can be given again after an interruption. The settings were
chosen on the validation split; this script looks at the test split.
"""

import json
import multiprocessing
import os
import time
from concurrent.futures import Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import pandas as pd
import tyro

from fixate_jax.config import RunConfig
from fixate_jax.data import open_or_prepare
from fixate_jax.errors import ConfigError
from fixate_jax.metrics import session_metrics, summarise
from fixate_jax.progress import bar
from fixate_jax.report.operators import operator_overview
from fixate_jax.report.tables import comparison_table, pool_runs, to_markdown
from fixate_jax.settings import load_config
from fixate_jax.statistics import holm
from fixate_jax.tuning.evaluate import predict, swapped_metrics
from fixate_jax.tuning.experiment import BACKBONE, FIXATE, SWAPPED, absolute_paths, claim_run, seed_directory
from fixate_jax.tuning.loop import train
from fixate_jax.tuning.predictors import trivial_predictions
from fixate_jax.tuning.setup import Workspace, open_workspace

ROOT = Path(__file__).resolve().parents[1]
BACKBONES = ("tiny-qwen3-vl", "tiny-internvl")
VARIANTS: dict[str, dict[str, Any]] = {
    "attention": {"name": "attention"},
    "rollout": {"name": "rollout"},
    "attention_gradient": {"name": "attention_gradient"},
    "attn_lrp signed": {"name": "attn_lrp", "normalise": "signed", "eps": 0.1},
    "attn_lrp abs": {"name": "attn_lrp", "normalise": "abs"},
    "attn_lrp positive": {"name": "attn_lrp", "normalise": "positive"},
    "glimpse": {"name": "glimpse"},
    "lrp": {"name": "lrp"},
}
"""Row of the table → its operator. Plain and integrated gradients of the inputs are left out: a step takes too long."""
ASKED = ("attention", "rollout")
"""Operators that do not ask for one answer, so that it makes no difference whose relevance is aligned."""
CELL = "cell.json"
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
    variants: tuple[str, ...] = tuple(VARIANTS)
    splits: tuple[int, ...] = (0, 1, 2)
    seeds: tuple[int, ...] = (42, 123, 456)
    epochs: int = 1
    batch: int = 2
    swaps: int = 1

    def __post_init__(self) -> None:
        unknown = [name for name in self.variants if name not in VARIANTS]
        if unknown:
            raise ConfigError(f"--variants {unknown[0]}: choose among {', '.join(VARIANTS)}")

    @property
    def groups(self) -> list[tuple[str, int]]:
        """What one worker does in one go: a backbone on a split."""
        return [(backbone, split) for split in self.splits for backbone in self.backbones]

    def folder(self, backbone: str, variant: str, split: int) -> Path:
        """The run directory that the cells of all seeds are in."""
        return self.out / Path(backbone).name / variant.replace(" ", "-") / f"split-{split}"

    def cells(self) -> list[Path]:
        """Where each cell's measures will be."""
        return [
            self.folder(backbone, variant, split) / f"seed-{seed}.parquet"
            for backbone, split in self.groups
            for variant in self.variants
            for seed in self.seeds
        ]


def settings(plan: Plan, backbone: str, variant: str, split: int) -> RunConfig:
    """Settings of a cell; only the operator differs between rows, and whose relevance is aligned."""
    config = load_config(ROOT / "configs" / "human_choice.yaml")
    relevance: Literal["click", "own"] = "click" if VARIANTS[variant]["name"] in ASKED else "own"
    config = replace(
        config,
        data=replace(config.data, path=plan.data_path, split_seed=split),
        backbone=replace(config.backbone, path=backbone),
        operator=replace(config.operator, **VARIANTS[variant]),
        objective=replace(config.objective, relevance=relevance),
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
    return absolute_paths(config)


def run_group(plan: Plan, backbone: str, split: int) -> None:
    """All rows of one backbone on one split, every seed."""
    open_cells = [
        (variant, seed)
        for variant in plan.variants
        for seed in plan.seeds
        if not (plan.folder(backbone, variant, split) / f"seed-{seed}.parquet").exists()
    ]
    if not open_cells:
        return
    config = settings(plan, backbone, plan.variants[0], split)
    shared = open_workspace(config, open_or_prepare(config.data), directory=plan.out / Path(backbone).name)
    for variant in plan.variants:
        workspace = replace(shared, config=settings(plan, backbone, variant, split))
        for seed in [seed for name, seed in open_cells if name == variant]:
            run_cell(workspace, plan.folder(backbone, variant, split), seed)


def run_cell(workspace: Workspace, folder: Path, seed: int) -> None:
    """Tune with one seed and measure on the test split."""
    config, top_k = workspace.config, workspace.config.objective.top_k
    begin = time.perf_counter()
    directory = seed_directory(folder, seed)
    prompt = train(workspace, config, directory, seed=seed).prompt
    tuned = time.perf_counter()
    beside = _beside(workspace, folder)
    own = session_metrics(predict(workspace, prompt, "test", FIXATE), top_k=top_k)
    swapped = swapped_metrics(workspace, prompt, "test", SWAPPED, top_k=top_k)
    seconds = {"tune": tuned - begin, "evaluate": time.perf_counter() - tuned}
    found = pd.concat([own, swapped, beside], ignore_index=True).assign(seed=seed)
    (directory / CELL).write_text(json.dumps({k: round(v, 1) for k, v in seconds.items()}))
    _write(found, folder / f"seed-{seed}.parquet")


def _beside(workspace: Workspace, folder: Path) -> pd.DataFrame:
    """Measures of the backbone alone and of the predictors without a model, the same for every seed."""
    path, config = folder / "beside.parquet", workspace.config
    if not path.exists():
        trivial = trivial_predictions(
            workspace.sessions("train"),
            workspace.sessions("test"),
            slot_feature_names=workspace.store.slot_feature_names,
            signal=config.data.signal,
            gaze_temperature=config.data.gaze_temperature,
        )
        both = pd.concat([predict(workspace, None, "test", BACKBONE), trivial], ignore_index=True)
        _write(session_metrics(both, top_k=config.objective.top_k), path)
    return pd.read_parquet(path)


def _write(frame: pd.DataFrame, path: Path) -> None:
    temporary = path.with_suffix(".tmp")
    frame.to_parquet(temporary, index=False)
    os.replace(temporary, path)


def claim(plan: Plan) -> None:
    """Make every folder of cells a run directory, or make sure that the one there was made with the same settings.

    Raises:
        ConfigError: naming those that differ.
    """
    for backbone, split in plan.groups:
        for variant in plan.variants:
            claim_run(plan.folder(backbone, variant, split), settings(plan, backbone, variant, split))


def start_worker(cores: "Queue[set[int]]", out: Path) -> None:
    """Take a part of the cores, keep compiled programs, and leave the terminal to the parent's bar."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores.get())
    log = os.open(out / f"worker-{os.getpid()}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    jax.config.update("jax_compilation_cache_dir", str(out / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def run_all(plan: Plan, jobs: int) -> None:
    """Every cell that is not on disk yet."""
    for split in plan.splits:  # Once, before the workers ask for them.
        open_or_prepare(settings(plan, plan.backbones[0], plan.variants[0], split).data)
    context = multiprocessing.get_context("spawn")
    cores: Queue[set[int]] = context.Queue()
    there = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    for part in np.array_split(there, jobs):
        cores.put({int(core) for core in part})
    cells = plan.cells()
    done = sum(cell.exists() for cell in cells)
    with (
        ProcessPoolExecutor(jobs, mp_context=context, initializer=start_worker, initargs=(cores, plan.out)) as pool,
        bar("Operators", len(cells), done=done) as (progress, task),
    ):
        waiting: set[Future[None]] = {pool.submit(run_group, plan, *group) for group in plan.groups}
        while waiting:
            finished, waiting = wait(waiting, timeout=5.0, return_when="FIRST_COMPLETED")
            progress.update(task, completed=sum(cell.exists() for cell in cells))
            for future in finished:
                future.result()


def summary(plan: Plan, backbone: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A row for each operator: measures free-running over all runs, and the tests over people."""
    rows, tests = [], []
    for variant in plan.variants:
        frames = {
            split: pd.concat(
                [pd.read_parquet(plan.folder(backbone, variant, split) / f"seed-{seed}.parquet") for seed in plan.seeds]
            )
            for split in plan.splits
        }
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
    folder = {split: plan.folder(backbone, plan.variants[0], split) / "beside.parquet" for split in plan.splits}
    averaged, _ = pool_runs({split: pd.read_parquet(path).assign(seed=0) for split, path in folder.items()})
    found = summarise(averaged[averaged["method"] != BACKBONE])
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
    seconds = [json.loads(path.read_text()) for path in plan.out.glob(f"*/*/*/*/{CELL}")]
    text = [to_markdown(rows, 4), to_markdown(trivial, 4), to_markdown(tests, 4)]
    text.append(f"Seconds of all cells: {sum(sum(cell.values()) for cell in seconds):.0f}\n")
    (plan.out / "tables.md").write_text("\n".join(text), encoding="utf-8")
    return operator_overview(plan.out / "operators.png", rows, trivial)


def main(plan: tyro.conf.OmitArgPrefixes[Plan], jobs: int = 2) -> None:
    """Tune, measure and write the tables.

    Args:
        plan: what is tuned.
        jobs: worker processes; each gets its part of the cores.
    """
    claim(plan)
    run_all(plan, jobs)
    print(json.dumps({"tables": str(plan.out / "tables.md"), "figure": str(report(plan))}, indent=1))


if __name__ == "__main__":
    tyro.cli(main)
