"""Gaze against clicks on human_choice: which settings have both, chosen on other people.

    python train/results_frontier.py --data-path path/to/human_choice

People are cut into two halves. Every setting is tuned on each half by itself; the one with the best validation score on
the first half is reported on the test sessions of the second, and the other way round, so that nobody's sessions have
a say in the settings they are tested with. As tuned and as calibrated, each is chosen by its own score. Finished runs
are not repeated.
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
from fixate_jax.lab.experiments.calibrate import SUFFIX, calibrate, calibrated
from fixate_jax.lab.experiments.cells import Cell, open_cell
from fixate_jax.lab.experiments.evaluate import predict
from fixate_jax.lab.experiments.experiment import (
    CONFIG_FILE,
    FIXATE,
    NTP,
    absolute_paths,
    load_prompt,
    run_experiment,
    seed_directory,
)
from fixate_jax.lab.frames import compare_methods, reported_score, session_metrics, user_means, with_uniform
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
CALIBRATED = FIXATE + SUFFIX
CHOSEN = "chosen on the other half"
BARS = ("user_mean_shrunk", "personal_content_regression", "personal_content_click", "backbone")


def halves(users: tuple[str, ...], seed: int) -> list[tuple[str, ...]]:
    """People in two halves, each in the order of the data set."""
    order = np.random.default_rng(seed).permutation(len(users))
    cut = -(-len(users) // 2)
    return [tuple(users[i] for i in sorted(part)) for part in (order[:cut], order[cut:])]


def settings_of(base: RunConfig, name: str, users: tuple[str, ...], seed: int) -> RunConfig:
    """A setting on some of the people; only the preset also has the baseline without alignment and swapped prompts."""
    config, plain = changed(base, SETTINGS[name], source=name), not SETTINGS[name]
    train = replace(config.train, seeds=(seed,), pictures=0, ntp_baseline=plain, swap_control=plain)
    return replace(config, data=replace(config.data, users=users), train=train)


def run_setting(config: RunConfig, run: Path) -> pd.DataFrame:
    """Metrics of the test sessions, from disk where they are finished."""
    kept = run / "metrics.parquet"
    if kept.exists() and load_config(run / CONFIG_FILE) != absolute_paths(config):
        raise SystemExit(f"{run} was made with other settings; remove it or choose another --out")
    if not kept.exists():
        metrics = run_experiment(config, run).metrics
        temporary = kept.with_suffix(".tmp")
        metrics.to_parquet(temporary, index=False)
        os.replace(temporary, kept)
    return pd.read_parquet(kept)


def validation_scores(config: RunConfig, run: Path, out: Path) -> dict[str, float]:
    """How well a run meets its validation sessions, as tuned and as calibrated on them; kept on disk."""
    kept = run / "scores.json"
    if not kept.exists():
        kept.write_text(json.dumps(_scores(config, run, out)))
    found: dict[str, float] = json.loads(kept.read_text())
    return found


def _scores(config: RunConfig, run: Path, out: Path) -> dict[str, float]:
    workspace = open_cell(Cell(folder=run, config=absolute_paths(config), seed=config.train.seeds[0]), out)
    found: dict[str, list[float]] = {FIXATE: [], CALIBRATED: []}
    for seed in config.train.seeds:
        prompt = load_prompt(workspace, seed_directory(run, seed), seed=seed)
        frame = predict(workspace, prompt, "validation", FIXATE)
        frame = frame[frame["mode"] == "FR"]
        for name, shown in ((FIXATE, frame), (CALIBRATED, calibrated(calibrate(workspace, frame), frame))):
            metrics = session_metrics(with_uniform(shown), top_k=config.objective.top_k)
            found[name].append(reported_score(metrics, looks=True, clicks=True))
    return {name: float(np.mean(values)) for name, values in found.items()}


def chosen(scores: pd.DataFrame) -> dict[tuple[int, str], str]:
    """For each half and method, the setting that did best on the validation sessions of the other half."""
    return {(half, name): str(scores[1 - half, name].idxmax()) for half in (0, 1) for name in (FIXATE, CALIBRATED)}


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
    kinds = pd.MultiIndex.from_product([(0, 1), (FIXATE, CALIBRATED)])
    scores = pd.DataFrame(index=list(settings), columns=kinds, dtype=float)
    configs = {
        (name, half): settings_of(base, name, users, seed) for name in settings for half, users in enumerate(people)
    }
    runs = {key: out / f"half-{key[1]}" / key[0].replace(" ", "").replace(":", "-") for key in configs}
    for (name, half), config in configs.items():
        metrics = run_setting(config, runs[name, half])
        frames.append(metrics[metrics["mode"] == "FR"].assign(setting=name, half=half))
    for name, half in sorted(configs, key=lambda key: key[1]):  # Those on the same people share what is opened.
        for method, score in validation_scores(configs[name, half], runs[name, half], out).items():
            scores.loc[name, (half, method)] = score
    together = pd.concat(frames, ignore_index=True)
    winner = chosen(scores)
    keys = list(zip(together["half"], together["method"], strict=True))
    picked = together[[winner.get(key) == name for key, name in zip(keys, together["setting"], strict=True)]]
    picked = picked.assign(setting=CHOSEN)
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
    wanted = ["kl", "log_loss", "accuracy"]
    parts = [user_means(part, wanted).assign(setting=name) for name, part in frame.groupby("setting", sort=False)]
    return pd.concat(parts, ignore_index=True)


def _table(per_user: pd.DataFrame) -> pd.DataFrame:
    wanted = [FIXATE, CALIBRATED, NTP]
    rows = per_user[per_user["method"].isin(wanted)]
    means = rows.groupby(["setting", "method"], sort=False)[["kl", "log_loss", "accuracy"]].mean().reset_index()
    return means


def _bars(per_user: pd.DataFrame) -> dict[str, pd.Series]:
    preset = per_user[per_user["setting"] == next(iter(SETTINGS))]
    return {name: preset[preset["method"] == name][["kl", "log_loss"]].mean() for name in BARS}


def _choice(scores: pd.DataFrame, winner: dict[tuple[int, str], str]) -> str:
    lines = [
        f"- half {half}, {name}: “{setting}”, the best of half {1 - half}" for (half, name), setting in winner.items()
    ]
    best = scores.set_axis([f"half {half}, {name}" for half, name in scores.columns], axis=1)
    return "\n".join([*lines, "", to_markdown(best.reset_index(names="validation score"), 4)])


def _against(per_user: pd.DataFrame) -> pd.DataFrame:
    """The chosen settings, plain and calibrated, against the bars and against clicks alone, over all people."""
    preset = per_user[(per_user["setting"] == next(iter(SETTINGS))) & per_user["method"].isin([*BARS, NTP])]
    own = per_user[per_user["setting"] == CHOSEN]
    rows = []
    for method in (FIXATE, CALIBRATED):
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
