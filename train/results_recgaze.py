"""The tables of docs/results/recgaze.md: FixATE on made-up people's RecGaze logs, aligned with gaze or with the cursor.

    python train/results_recgaze.py

First every operator is tuned briefly and measured on the validation split, where the best one of each backbone is
chosen. That one and the paper's AttnLRP are then tuned with several seeds to either signal and measured on the test
split, whose screens nobody saw in training. What is finished is on disk and not repeated, so the command can be given
again after an interruption.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import tyro

from fixate_jax.config import RunConfig
from fixate_jax.data import Split
from fixate_jax.errors import ConfigError
from fixate_jax.metrics import summarise, user_means
from fixate_jax.report.figures import method_differences
from fixate_jax.report.tables import comparison_table, pool_runs, to_markdown
from fixate_jax.settings import load_config
from fixate_jax.statistics import holm
from fixate_jax.tuning.cells import OPERATORS, Cell, read_cells, run_cells, seconds_of, with_operator
from fixate_jax.tuning.experiment import BACKBONE, FIXATE, absolute_paths

ROOT = Path(__file__).resolve().parents[1]
PAPER = "attn_lrp paper"
SIGNALS = ("fixation", "cursor")
USER_MEAN = "user_mean_shrunk"
"""The bar for KL; with few and short sessions a mean that is not shrunk is punished for its zeros."""
COMPARED = ("kl", "csh@1", "accuracy")
SHOWN = ["kl", "js", "cosine", "csh@1", "tgo@1", "tgo@3", "log_loss", "auc", "accuracy"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is tuned, and for how long.

    Attributes:
        out: where everything goes.
        backbones: names or directories.
        users: made-up people.
        candidates: operators to choose from.
        seeds: of the prompts; the choice uses the first.
        choosing_epochs: of tuning where operators are compared.
        epochs: of tuning where it counts.
        swaps: other people's prompts in the swap control.
    """

    out: Path = Path("runs/recgaze")
    backbones: tuple[str, ...] = ("tiny-qwen3-vl", "tiny-internvl")
    users: int = 40
    candidates: tuple[str, ...] = tuple(name for name in OPERATORS if name != PAPER)
    seeds: tuple[int, ...] = (42, 123, 456)
    choosing_epochs: int = 3
    epochs: int = 10
    swaps: int = 3

    def __post_init__(self) -> None:
        unknown = [name for name in self.candidates if name not in OPERATORS]
        if unknown:
            raise ConfigError(f"--candidates {unknown[0]}: choose among {', '.join(OPERATORS)}")

    def cells(self, backbone: str, operator: str, *, split: Split = "test", signal: str = "fixation") -> list[Cell]:
        """The cells of an operator: to choose by (split "validation"), or those that count (split "test")."""
        part = "choosing" if split == "validation" else signal
        return [
            Cell(
                folder=self.out / Path(backbone).name / part / operator.replace(" ", "-"),
                config=settings(self, backbone, operator, split=split, signal=signal),
                seed=seed,
                split=split,
                also=SIGNALS if split == "test" else (),
            )
            for seed in self.seeds[: 1 if split == "validation" else None]
        ]


def settings(plan: Plan, backbone: str, operator: str, *, split: Split, signal: str) -> RunConfig:
    """Settings of a cell. Both signals use the sessions that have both."""
    config = load_config(ROOT / "configs" / "synthetic_recgaze.yaml")
    epochs = plan.choosing_epochs if split == "validation" else plan.epochs
    config = replace(
        config,
        data=replace(config.data, max_users=plan.users, signal=signal, common_sessions=True),
        backbone=replace(config.backbone, path=backbone),
        train=replace(
            config.train,
            seeds=plan.seeds,
            epochs=epochs,
            swaps=plan.swaps,
            swap_control=split == "test",
            ntp_baseline=False,
        ),
    )
    return absolute_paths(with_operator(config, operator))


def choose(plan: Plan, backbone: str) -> tuple[str, pd.DataFrame]:
    """The operator with the smallest free-running KL on the validation split, and the measures of all."""
    rows = []
    for operator in plan.candidates:
        found = summarise(read_cells(plan.cells(backbone, operator, split="validation")).drop(columns="seed"))
        micro = found[found["average"] == "micro"].set_index(["method", "mode"])
        own, alone = micro.loc[(FIXATE, "FR")], micro.loc[(BACKBONE, "FR")]
        rows.append({"backbone": backbone, "operator": operator, "backbone kl": alone["kl"]} | own[SHOWN].to_dict())
    table = pd.DataFrame(rows)
    return str(table.loc[table["kl"].idxmin(), "operator"]), table


def variants(plan: Plan) -> list[tuple[str, str, str]]:
    """Backbone, signal and operator of each row that counts."""
    return [
        (backbone, signal, operator)
        for backbone in plan.backbones
        for signal in SIGNALS
        for operator in dict.fromkeys((choose(plan, backbone)[0], PAPER))
    ]


def measures(plan: Plan, backbone: str, signal: str, operator: str) -> pd.DataFrame:
    """A row for each method and mode, against the signal of tuning and against the other; sd over the seeds."""
    rows = []
    for against in SIGNALS:
        found = read_cells(plan.cells(backbone, operator, signal=signal), signal=against)
        averaged, spread = pool_runs({0: found})
        mean, sd = (f[f["average"] == "micro"].set_index(["method", "mode"]) for f in (summarise(averaged), spread))
        for key, own in mean.iterrows():
            head = {"backbone": backbone, "operator": operator, "tuned to": signal, "against": against}
            spreads = {f"{name} sd": sd.loc[key, f"{name} sd"] for name in ("kl", "accuracy")}
            rows.append(head | dict(zip(("method", "mode"), key, strict=True)) | own[SHOWN].to_dict() | spreads)
    return pd.DataFrame(rows)


def compare(plan: Plan, backbone: str, signal: str, operator: str) -> pd.DataFrame:
    """FixATE against every other method, over people."""
    averaged, _ = pool_runs({0: read_cells(plan.cells(backbone, operator, signal=signal))})
    table = comparison_table(averaged, reference=FIXATE, names=COMPARED)
    return table.assign(backbone=backbone, operator=operator, signal=signal)


def report(plan: Plan) -> None:
    """Tables and figures from what is on disk."""
    choices = pd.concat([choose(plan, backbone)[1] for backbone in plan.backbones], ignore_index=True)
    rows = pd.concat([measures(plan, *variant) for variant in variants(plan)], ignore_index=True)
    tests = pd.concat([compare(plan, *variant) for variant in variants(plan)], ignore_index=True)
    for _, family in tests.groupby(["metric", "against", "mode"]):
        tests.loc[family.index, "p holm"] = holm(family["p"].to_numpy(float))
    text = []
    for name, table in {"choices": choices, "measures": rows, "tests": tests}.items():
        table.to_csv(plan.out / f"{name}.csv", index=False)
        text += [f"### {name}", "", to_markdown(table, 4), ""]
    done = [c for b in plan.backbones for o in plan.candidates for c in plan.cells(b, o, split="validation")]
    done += [cell for b, signal, operator in variants(plan) for cell in plan.cells(b, operator, signal=signal)]
    text.append(f"Seconds of all cells: {seconds_of(done):.0f}\n")
    (plan.out / "tables.md").write_text("\n".join(text), encoding="utf-8")
    per_user = {
        f"{Path(b).name}, {operator}, {signal}": user_means(
            pool_runs({0: read_cells(plan.cells(b, operator, signal=signal))})[0]
        )
        for b, signal, operator in variants(plan)
    }
    for other in (USER_MEAN, BACKBONE):
        method_differences(
            plan.out / f"people-{other}.png",
            per_user,
            reference=FIXATE,
            against={"kl": other, "accuracy": "majority_click" if other == USER_MEAN else other},
        )


def main(plan: tyro.conf.OmitArgPrefixes[Plan], jobs: int = 2) -> None:
    """Choose, tune, measure and write the tables.

    Args:
        plan: what is tuned.
        jobs: worker processes; each gets its part of the cores.
    """
    choosing = [
        [cell for operator in plan.candidates for cell in plan.cells(backbone, operator, split="validation")]
        for backbone in plan.backbones
    ]
    run_cells(choosing, out=plan.out, jobs=jobs, title="Choosing")
    groups: dict[tuple[str, str], list[Cell]] = {}
    for backbone, signal, operator in variants(plan):
        groups.setdefault((backbone, signal), []).extend(plan.cells(backbone, operator, signal=signal))
    run_cells(list(groups.values()), out=plan.out, jobs=jobs, title="Tuning")
    report(plan)
    print(json.dumps({"tables": str(plan.out / "tables.md")}, indent=1))


if __name__ == "__main__":
    tyro.cli(main)
