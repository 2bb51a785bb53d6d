"""The subcommands that look into a model: `fixate probe` and `fixate faithfulness`."""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from fixate_jax.errors import ConfigError
from fixate_jax.lab.config import RunConfig
from fixate_jax.lab.settings import load_config
from fixate_jax.lab.text import say

Source = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|PRESET.yaml")]
SHOWN = ("operator", "deletion", "deletion p", "insertion", "insertion p", "points at answer", "points at click")
"""What fits into 80 columns of a terminal; the CSV file holds everything."""


@dataclass(frozen=True)
class Probe:
    """Draw where the model looks on one session's page, with and without the user's prompt."""

    source: Source
    """Directory that `fixate train` made; or a preset, whose backbone is then drawn alone."""
    session: str | None = None
    """Session id (None: the first test session)."""
    operator: str | None = None
    """How to look (None: as the settings say)."""
    seed: int | None = None
    """Which seed's prompts (None: the run's first)."""
    smooth: bool = False
    """Draw a heat map over the page instead of the tokens' cells."""
    out: Path = Path("probe.png")
    """Picture to write."""
    data_path: Path | None = None
    """Folder of the raw data set (None: as the settings say)."""
    accept_other_backbone: bool = False
    """Go on although the backbone's files are not those that the prompts were tuned with."""

    def run(self) -> int:
        """Run the command."""
        from fixate_jax.lab.parts import operator_of

        config, run = open_source(self.source, self.data_path)
        if self.operator is not None:
            config = replace(config, operator=replace(config.operator, name=self.operator))
        operator_of(config.operator)
        drawn = self._alone(config) if run is None else self._tuned(config, run)
        say(f"drawn: {drawn}")
        return 0

    def _tuned(self, config: RunConfig, run: Path) -> Path:
        from fixate_jax.data.registry import open_or_prepare
        from fixate_jax.lab.experiments.experiment import load_prompt, picture, seed_directory
        from fixate_jax.lab.experiments.identity import check_backbone, check_people
        from fixate_jax.lab.experiments.workspace import open_workspace

        store = open_or_prepare(config.data)
        check_people(run, store, config.data)
        workspace = open_workspace(config, store, directory=run)
        check_backbone(run, workspace.backbone, accept=self.accept_other_backbone)
        index = self._index([s.session_id for s in workspace.data.sessions], workspace.splits["test"][0])
        seed = config.train.seeds[0] if self.seed is None else self.seed
        prompt = load_prompt(workspace, seed_directory(run, seed), seed=seed)
        return picture(workspace, prompt, index, self.out, smooth=self.smooth)

    def _alone(self, config: RunConfig) -> Path:
        from fixate_jax.backbones import load_backbone
        from fixate_jax.data.registry import open_or_prepare
        from fixate_jax.lab.experiments.probe import probe
        from fixate_jax.lab.report.figures import page_figure

        if self.seed is not None:
            raise ConfigError(f"--seed {self.seed}: a preset has no tuned prompts; give the directory of a run")
        store = open_or_prepare(config.data)
        first = next((i for i, s in enumerate(store.sessions) if s.split == "test"), 0)
        session = store.sessions[self._index([s.session_id for s in store.sessions], first)]
        image = store.image(session.page_id).convert("RGB")
        with tempfile.TemporaryDirectory() as work:
            backbone = load_backbone(config.backbone, work=Path(work))
        found = probe(backbone, backbone.params, session, image=image, operator=config.operator)
        name = config.operator.name
        return page_figure(
            self.out,
            image=np.asarray(image),
            boxes=session.boxes,
            labels=session.labels,
            gaze=session.gaze(config.data.signal, config.data.gaze_temperature),
            click=session.click,
            relevance={name: found.heat_map(*image.size) if self.smooth else found.magnitude},
            slot_attention={name: found.slot_attention.astype(np.float64)},
            title=f"user {session.user_id}, session {session.session_id}, the backbone alone answers "
            f"{session.labels[found.answer]}",
        )

    def _index(self, ids: list[str], first: int) -> int:
        if self.session is None:
            return first
        if self.session not in ids:
            raise ConfigError(f"--session {self.session}: no such session; for example {', '.join(ids[:3])}")
        return ids.index(self.session)


@dataclass(frozen=True)
class Faithfulness:
    """Mask what operators point at and watch the answer: deletion, insertion, pointing game. Run it again to resume."""

    source: Source
    """Directory that `fixate train` made, to look under its users' prompts; or a preset, for the backbone alone."""
    operators: tuple[str, ...] = ()
    """Which operators, e.g. attention "attn_lrp abs" glimpse (none named: all)."""
    sessions: int = 48
    """How many sessions, evenly from all users."""
    split: str = "test"
    """Sessions to draw them from: train, validation or test."""
    draws: int = 4
    """Random orders that the baseline is the mean of."""
    seed: int = 0
    """Of the choice of sessions, the random orders and the bootstrap."""
    out: Path | None = None
    """Directory to write to (None: faithfulness/ and the run's or preset's name)."""
    data_path: Path | None = None
    """Folder of the raw data set (None: as the settings say)."""

    def run(self) -> int:
        """Run the command."""
        from fixate_jax.lab.analysis.faithfulness_run import TABLE, FaithfulnessSettings, run_faithfulness
        from fixate_jax.lab.report.tables import print_table

        config, run = open_source(self.source, self.data_path)
        wanted = FaithfulnessSettings(
            operators=self.operators, sessions=self.sessions, split=self.split, draws=self.draws, seed=self.seed
        )
        out = self.out or Path("faithfulness") / (self.source.stem if run is None else run.resolve().name)
        table = run_faithfulness(config, out, wanted, run=run)
        print_table(table[list(SHOWN)], title="Faithfulness: means over users", digits=3)
        say(f"everything: {out / TABLE} and beside it")
        return 0


def open_source(source: Path, data_path: Path | None) -> tuple[RunConfig, Path | None]:
    """Settings of a run directory, and that directory; or of a preset, and None.

    Raises:
        ConfigError: when it is neither.
    """
    preset = source.suffix in (".yaml", ".yml")
    if not preset and not (source / "config.yaml").exists():
        wanted = "give the directory of a run made by `fixate train`, or a preset"
        raise ConfigError(f"{source}: no config.yaml there; {wanted}")
    config = load_config(source if preset else source / "config.yaml")
    if data_path is not None:
        config = replace(config, data=replace(config.data, path=data_path))
    return config, None if preset else source
