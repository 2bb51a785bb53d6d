"""Subcommands of experiments that are made of many runs."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fixate_jax.data.session import SPLITS, Split
from fixate_jax.errors import ConfigError
from fixate_jax.lab.config import RunConfig
from fixate_jax.lab.text import say

Settings = Annotated[RunConfig, tyro.conf.arg(name="")]
Preset = Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="PRESET.yaml")]
SEEDS = (42, 123, 456)


@dataclass(frozen=True)
class Ablate:
    """Tune a preset without each of its parts, and say which earn their place. Run it again to resume."""

    preset: Preset = None
    """Settings to start from, e.g. configs/human_choice.yaml; flags override them."""
    out: Path | None = None
    """Where everything goes (None: runs/ablation- and the preset's name)."""
    variants: tuple[str, ...] | None = None
    """Which variants, beside the preset itself (None: all that make a difference)."""
    seeds: tuple[int, ...] = SEEDS
    """Seeds of the prompts; `train.seeds` is not used."""
    splits: tuple[int, ...] | None = None
    """Seeds of the train/validation/test split (None: that of the settings). Of synthetic users each
    seed draws others, who count as more users."""
    measure: str = "test"
    """Sessions to measure on: validation or test."""
    jobs: int = 2
    """Processes of this machine, each with its share of the cores (1: this process)."""
    cluster: str | None = None
    """Address of a Dask scheduler whose workers tune instead, such as tcp://host:8786."""
    settings: Settings = field(default_factory=RunConfig)

    def run(self) -> int:
        """Run the command."""
        from fixate_jax.lab.studies.ablation import chosen, variants_of, with_cursor
        from fixate_jax.lab.studies.jobs import Workers
        from fixate_jax.lab.studies.matrix import Study
        from fixate_jax.lab.studies.run import run_study

        name = self.preset.stem if self.preset else self.settings.data.name
        base = with_cursor(_swapping(self.settings))
        study = Study(
            out=(self.out or Path("runs") / f"ablation-{name}").absolute(),
            base=base,
            variants=chosen(variants_of(base), self.variants),
            seeds=self.seeds,
            splits=self.splits or (base.data.split_seed,),
            measured=_split(self.measure),
            signal=base.data.signal,
        )
        workers = Workers(jobs=self.jobs, cluster=self.cluster)
        _say(run_study(study, title=f"Ablation, {name}", workers=workers))
        return 0


@dataclass(frozen=True)
class Sweep:
    """Tune a preset at many values of some settings, measured on validation. Run it again to resume."""

    preset: Preset = None
    """Settings to start from, e.g. configs/human_choice.yaml; flags override them."""
    over: tuple[str, ...] = ()
    """Settings and their values, as in `--over prompt.basis=2,4,8 objective.attention_weight=0,1,4`."""
    design: Literal["each", "grid", "random"] = "each"
    """Change one setting at a time, take every combination, or draw some of them."""
    draws: int = 8
    """How many combinations `random` draws."""
    draw_seed: int = 0
    """Seed of the draws."""
    out: Path | None = None
    """Where everything goes (None: runs/sweep- and the preset's name)."""
    seeds: tuple[int, ...] = SEEDS
    """Seeds of the prompts; `train.seeds` is not used."""
    splits: tuple[int, ...] | None = None
    """Seeds of the train/validation/test split (None: that of the settings). Of synthetic users each
    seed draws others, who count as more users."""
    measure: str = "validation"
    """Sessions to measure on: validation, or test where nothing is chosen by it."""
    jobs: int = 2
    """Processes of this machine, each with its share of the cores (1: this process)."""
    cluster: str | None = None
    """Address of a Dask scheduler whose workers tune instead, such as tcp://host:8786."""
    settings: Settings = field(default_factory=RunConfig)

    def run(self) -> int:
        """Run the command."""
        from fixate_jax.lab.studies.jobs import Workers
        from fixate_jax.lab.studies.matrix import Study
        from fixate_jax.lab.studies.run import run_study
        from fixate_jax.lab.studies.sweep import parse_axes, variants_of

        name = self.preset.stem if self.preset else self.settings.data.name
        axes = parse_axes(self.over)
        variants = variants_of(self.settings, axes, design=self.design, draws=self.draws, seed=self.draw_seed)
        study = Study(
            out=(self.out or Path("runs") / f"sweep-{name}").absolute(),
            base=replace(self.settings, train=replace(self.settings.train, swap_control=False)),
            variants=variants,
            seeds=self.seeds,
            splits=self.splits or (self.settings.data.split_seed,),
            measured=_split(self.measure),
            signal=self.settings.data.signal,
        )
        workers = Workers(jobs=self.jobs, cluster=self.cluster)
        _say(run_study(study, title=f"Sweep, {name}", workers=workers))
        return 0


def _swapping(settings: RunConfig) -> RunConfig:
    """With one other person's prompt in the swap control, unless the settings say how many."""
    return replace(settings, train=replace(settings.train, swaps=settings.train.swaps or 1))


def _split(name: str) -> Split:
    for split in SPLITS:
        if split == name:
            return split
    raise ConfigError(f"--measure {name}: choose one of {', '.join(SPLITS)}")


def _say(page: Path) -> None:
    say(f"tables and figure: {page}")
