"""Gaze against clicks on human_choice: which settings have both, chosen on other people.

    python train/results_frontier.py --data-path path/to/human_choice

People are cut into two halves. Every setting is tuned on each half by itself; the one with the best validation score on
the first half is reported on the test sessions of the second, and the other way round, so that nobody's sessions have
a say in the settings they are tested with. Finished runs are not repeated.
"""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tyro

from fixate_jax.data.registry import open_or_prepare
from fixate_jax.lab.config import RunConfig
from fixate_jax.lab.experiments.experiment import CONFIG_FILE, FIXATE, NTP, absolute_paths, run_experiment
from fixate_jax.lab.frames import compare_methods, user_means
from fixate_jax.lab.report.frontier import frontier_figure
from fixate_jax.lab.report.tables import to_markdown
from fixate_jax.lab.settings import load_config
from fixate_jax.lab.studies.matrix import changed

PRESET = Path(__file__).resolve().parents[1] / "configs" / "human_choice.yaml"
LONG = {"train.epochs": 12}


def weighted(attention: float, answers: float) -> dict[str, Any]:
    """Both weights of the objective, and half as many epochs again as the preset has."""
    return {"objective.attention_weight": attention, "objective.ntp_weight": answers} | LONG


SETTINGS: dict[str, dict[str, Any]] = {
    "preset (4 : 0.2, 8 epochs)": {},
    "2 : 0.5": weighted(2.0, 0.5),
    "1 : 1": weighted(1.0, 1.0),
    "2 : 0.5, 8 + 8 tokens": weighted(2.0, 0.5) | {"objective.aligned_tokens": 8},
    "0.3 : 1": weighted(0.3, 1.0),
    "4 : 0.2": weighted(4.0, 0.2),
    "1 : 1, four layers": weighted(1.0, 1.0) | {"backbone.tapped_layers": 4},
    "1 : 1, 32 tokens": weighted(1.0, 1.0) | {"prompt.tokens": 32},
    "1 : 1, 8 tokens": weighted(1.0, 1.0) | {"prompt.tokens": 8},
}
"""Name → what of the preset is changed. Weights are alignment : next token."""
BARS = ("user_mean_shrunk", "personal_content_regression", "personal_content_click", "backbone")


def halves(users: tuple[str, ...], seed: int) -> list[tuple[str, ...]]:
    """People in two halves, each in the order of the data set."""
    order = np.random.default_rng(seed).permutation(len(users))
    cut = -(-len(users) // 2)
    return [tuple(users[i] for i in sorted(part)) for part in (order[:cut], order[cut:])]


def run_setting(config: RunConfig, run: Path) -> tuple[pd.DataFrame, float]:
    """Metrics of the test sessions, and the best validation score, from disk where they are finished."""
    kept = run / "metrics.parquet"
    if kept.exists() and load_config(run / CONFIG_FILE) != absolute_paths(config):
        raise SystemExit(f"{run} was made with other settings; remove it or choose another --out")
    if not kept.exists():
        metrics = run_experiment(config, run).metrics
        temporary = kept.with_suffix(".tmp")
        metrics.to_parquet(temporary, index=False)
        os.replace(temporary, kept)
    logs = [pd.read_csv(run / f"seed-{seed}" / "metrics.csv") for seed in config.train.seeds]
    score = float(np.mean([log["validation/score"].max() for log in logs]))
    return pd.read_parquet(kept), score


def chosen(scores: pd.DataFrame) -> dict[int, str]:
    """For each half, the setting that did best on the validation sessions of the other one."""
    return {half: str(scores[1 - half].idxmax()) for half in (0, 1)}


def main(
    data_path: Path,
    out: Path = Path("runs/frontier"),
    seed: int = 42,
    halves_seed: int = 0,
    settings: tuple[str, ...] = tuple(SETTINGS),
) -> None:
    """Tune all settings on both halves, choose, and report.

    Args:
        data_path: folder of human_choice.
        out: where runs, tables and the figure go.
        seed: of the prompts.
        halves_seed: of the cut of the people.
        settings: which of them.
    """
    base = load_config(PRESET)
    base = replace(base, data=replace(base.data, path=data_path))
    people = halves(open_or_prepare(base.data).users, halves_seed)
    frames: list[pd.DataFrame] = []
    scores = pd.DataFrame(index=list(settings), columns=[0, 1], dtype=float)
    for name in settings:
        for half, users in enumerate(people):
            config = changed(base, SETTINGS[name], source=name)
            # The baseline without alignment and the swapped prompts are asked of the preset alone.
            plain = not SETTINGS[name]
            train = replace(config.train, seeds=(seed,), pictures=0, ntp_baseline=plain, swap_control=plain)
            config = replace(config, data=replace(config.data, users=users), train=train)
            metrics, score = run_setting(config, out / f"half-{half}" / name.replace(" ", "").replace(":", "-"))
            scores.loc[name, half] = score
            frames.append(metrics[metrics["mode"] == "FR"].assign(setting=name, half=half))
    together = pd.concat(frames, ignore_index=True)
    winner = chosen(scores)
    picked = together[together["setting"] == together["half"].map(winner)].assign(setting="chosen on the other half")
    per_user = _per_user(pd.concat([together, picked], ignore_index=True))
    table = _table(per_user)
    text = ["### Settings", "", to_markdown(table, 3), "", "### Chosen", "", _choice(scores, winner), ""]
    text += ["### The chosen settings against the bars", "", to_markdown(_against(per_user), 4)]
    (out / "tables.md").write_text("\n".join(text), encoding="utf-8")
    table.to_csv(out / "frontier.csv", index=False)
    frontier_figure(out / "frontier.png", table, bars=_bars(per_user))
    print("\n".join(text))
    print(json.dumps({"tables": str(out / "tables.md"), "figure": str(out / "frontier.png")}, indent=1))


def _per_user(frame: pd.DataFrame) -> pd.DataFrame:
    """Means of each user under each setting and method; what depends on no setting is taken from the preset."""
    parts = [user_means(part).assign(setting=name) for name, part in frame.groupby("setting", sort=False)]
    return pd.concat(parts, ignore_index=True)


def _table(per_user: pd.DataFrame) -> pd.DataFrame:
    wanted = [FIXATE, f"{FIXATE}_calibrated", NTP]
    rows = per_user[per_user["method"].isin(wanted)]
    means = rows.groupby(["setting", "method"], sort=False)[["kl", "log_loss", "accuracy"]].mean().reset_index()
    return means


def _bars(per_user: pd.DataFrame) -> dict[str, pd.Series]:
    preset = per_user[per_user["setting"] == next(iter(SETTINGS))]
    return {name: preset[preset["method"] == name][["kl", "log_loss"]].mean() for name in BARS}


def _choice(scores: pd.DataFrame, winner: dict[int, str]) -> str:
    lines = [f"- half {half} is tested with “{name}”, the best of half {1 - half}" for half, name in winner.items()]
    best = scores.rename(columns={0: "half 0", 1: "half 1"}).reset_index(names="validation score")
    return "\n".join([*lines, "", to_markdown(best, 4)])


def _against(per_user: pd.DataFrame) -> pd.DataFrame:
    """The chosen settings, plain and calibrated, against the bars and against clicks alone, over all people."""
    preset = per_user[(per_user["setting"] == next(iter(SETTINGS))) & per_user["method"].isin([*BARS, NTP])]
    own = per_user[(per_user["setting"] == "chosen on the other half")]
    rows = []
    for method in (FIXATE, f"{FIXATE}_calibrated"):
        both = pd.concat([own[own["method"] == method], preset], ignore_index=True)
        for other in (*BARS, NTP):
            for metric in ("kl", "log_loss", "accuracy"):
                if both.loc[both["method"] == other, metric].isna().all():
                    continue
                test, interval = compare_methods(both, metric, first=(method, "FR"), second=(other, "FR"))
                row = {"method": method, "against": other, "metric": metric, "difference": test.mean_difference}
                row |= {"low": interval.low, "high": interval.high, "p": test.p_value}
                rows.append(row | {"better": f"{test.better} of {test.users}"})
    return pd.DataFrame(rows)


if __name__ == "__main__":
    tyro.cli(main)
