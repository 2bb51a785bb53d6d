"""The subcommand `fixate transfer`: people whom the basis has not seen."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from fixate_jax.lab.config import RunConfig
from fixate_jax.lab.text import say

SHOWN = ("method", "k", "metric", "mean", "sd")


@dataclass(frozen=True)
class Transfer:
    """Train a basis on half of the people and fit the others from a few sessions. Run it again to resume."""

    preset: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="PRESET.yaml")] = None
    """Settings to start from, e.g. configs/human_choice.yaml; flags override them."""
    run_dir: Annotated[Path | None, tyro.conf.arg(name="run")] = None
    """Run directory (None: runs/transfer- and the preset's name)."""
    sessions: tuple[int, ...] = (1, 2, 4, 8, 16)
    """How many sessions of a new person are known, each count by itself; all of them come on top."""
    halves_seed: int = 0
    """Seed of the cut of the people into two halves."""
    jobs: int = 1
    """Processes of this machine, each with its share of the cores (1: this process)."""
    cluster: str | None = None
    """Address of a Dask scheduler whose workers tune instead, such as tcp://host:8786."""
    settings: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)

    def run(self) -> int:
        """Run the command."""
        from fixate_jax.lab.report.tables import print_table
        from fixate_jax.lab.studies.jobs import Workers
        from fixate_jax.lab.studies.transfer import TransferSettings, run_transfer

        name = self.preset.stem if self.preset else self.settings.data.name
        run = self.run_dir or Path("runs") / f"transfer-{name}"
        wanted = TransferSettings(sessions=self.sessions, halves_seed=self.halves_seed)
        workers = Workers(jobs=self.jobs, cluster=self.cluster)
        measures, _ = run_transfer(self.settings, run, wanted, workers=workers)
        shown = measures[measures["metric"].isin(("kl ↓", "accuracy ↑"))]
        print_table(shown[list(SHOWN)], title="New people: means, sd over seeds")
        say(f"written: {run / 'page.md'} and next to it")
        return 0
