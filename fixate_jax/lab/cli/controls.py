"""The subcommand `fixate controls`: why tuned prompts look where they look."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from fixate_jax.errors import ConfigError
from fixate_jax.lab.text import say


@dataclass(frozen=True)
class Controls:
    """Say why tuned prompts look where they look: placebo gaze, blank and rearranged pages."""

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Directory that `fixate train` made; the control prompts go to its folder controls."""
    out: Path | None = None
    """Folder for tables, figure and page (None: controls/ and the run's name)."""
    seed: int | None = None
    """Which of the run's seeds (None: its first)."""
    draw_seed: int = 0
    """Random seed of the rearranged pages."""
    accept_other_backbone: bool = False
    """Go on although the backbone's files are not those that the prompts were tuned with."""

    def run(self) -> int:
        """Run the command."""
        from fixate_jax.lab.controls.controls import run_controls
        from fixate_jax.lab.experiments.experiment import CONFIG_FILE, open_run
        from fixate_jax.lab.report.controls import reading, write_controls
        from fixate_jax.lab.report.tables import print_table
        from fixate_jax.runtime.lock import locked
        from fixate_jax.runtime.progress import track

        if not (self.source / CONFIG_FILE).is_file():
            raise ConfigError(f"{self.source}: no {CONFIG_FILE} there; give the directory of a run of `fixate train`")
        if self.draw_seed < 0:
            raise ConfigError(f"--draw-seed {self.draw_seed}: must not be negative")
        with locked(self.source):
            config, workspace = open_run(self.source, accept_other_backbone=self.accept_other_backbone)
            seed = config.train.seeds[0] if self.seed is None else self.seed
            if seed not in config.train.seeds:
                raise ConfigError(
                    f"--seed {seed}: {self.source} has the seeds {', '.join(map(str, config.train.seeds))}"
                )
            found = run_controls(workspace, self.source, seed=seed, draw=self.draw_seed, track=track)
        name = self.source.resolve().name
        page = write_controls(self.out or Path("controls") / name, found, title=f"Controls of {name}, seed {seed}")
        shown = found.pages[found.pages["metric"] == "kl"].drop(columns=["metric", "low", "high"])
        print_table(shown, title="KL to the gaze on the pages as they were", digits=3)
        if len(found.changes):
            print_table(found.changes[["prompts", "correlation", "slope", "users"]], title=f"Moves with {found.known}")
        say(reading(found), wrap=True)
        say(f"everything: {page}")
        return 0
