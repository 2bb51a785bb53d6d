"""The subcommands of ``fixate``: a dataclass each, parsed by tyro."""

import os
import sys
import tempfile
import warnings
from contextlib import nullcontext
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.errors import ConfigError, FixateError
from fixate_jax.lab.cli.compare import Compare
from fixate_jax.lab.cli.controls import Controls
from fixate_jax.lab.cli.emulate import Emulate, Export
from fixate_jax.lab.cli.fidelity import Fidelity
from fixate_jax.lab.cli.plan import Plan
from fixate_jax.lab.cli.probe import Faithfulness, Probe
from fixate_jax.lab.cli.show import print_analysis, print_results
from fixate_jax.lab.cli.studies import Ablate, Sweep
from fixate_jax.lab.cli.transfer import Transfer
from fixate_jax.lab.config import RunConfig
from fixate_jax.lab.pretraining.recipe import Recipe
from fixate_jax.lab.settings import load_settings
from fixate_jax.lab.text import say, visible
from fixate_jax.runtime.durable import advice, is_full
from fixate_jax.runtime.lock import locked

Settings = Annotated[RunConfig, tyro.conf.arg(name="")]
Preset = Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="PRESET.yaml")]


@dataclass(frozen=True)
class Prepare:
    """Read a raw data set, draw its pages and write the session store."""

    preset: Preset = None
    """Settings to start from, e.g. configs/human_choice.yaml; flags override them."""
    settings: Settings = field(default_factory=RunConfig)

    def run(self) -> int:
        """Run the command."""
        from fixate_jax.data.registry import open_or_prepare

        store = open_or_prepare(self.settings.data)
        say(f"{len(store.sessions)} sessions of {len(store.users)} users in {store.directory}")
        for reason, count in store.dropped.items():
            say(f"left out: {count} ({reason})")
        for what, count in store.noted.items():
            say(f"noted: {count} ({what})")
        return 0


@dataclass(frozen=True)
class Train:
    """Tune prompts, evaluate them, write tables, pictures and a report. Run it again to resume."""

    preset: Preset = None
    """Settings to start from, e.g. configs/human_choice.yaml; flags override them."""
    run_dir: Annotated[Path | None, tyro.conf.arg(name="run")] = None
    """Run directory (None: runs/ and the preset's name)."""
    distributed: bool = False
    """One of many processes, which look for each other; they do without the flag in a SLURM step or on a TPU pod."""
    accept_other_backbone: bool = False
    """Go on although the backbone's files are not those that the prompts were tuned with."""
    settings: Settings = field(default_factory=RunConfig)

    def run(self) -> int:
        """Run the command."""
        from fixate_jax.lab.experiments.experiment import run_experiment
        from fixate_jax.runtime import hosts

        hosts.start(self.distributed)
        name = self.preset.stem if self.preset else self.settings.data.name
        run = self.run_dir or Path("runs") / name
        results = run_experiment(self.settings, run, accept_other_backbone=self.accept_other_backbone)
        hosts.by_first(print_results, results)
        return 0


@dataclass(frozen=True)
class TuneUsers:
    """Tune each user alone, many side by side, then evaluate. Run it again to resume."""

    preset: Preset = None
    """Settings to start from, e.g. configs/demo.yaml; flags override them."""
    run_dir: Annotated[Path | None, tyro.conf.arg(name="run")] = None
    """Run directory (None: runs/users- and the preset's name)."""
    basis: Path | None = None
    """Run of `fixate train` over whose trained basis coefficients are tuned (None: `users.basis`)."""
    accept_other_backbone: bool = False
    """Go on although the backbone's files are not those that the prompts were tuned with."""
    settings: Settings = field(default_factory=RunConfig)

    def run(self) -> int:
        """Run the command."""
        from dataclasses import replace

        from fixate_jax.lab.experiments.users_run import run_users

        name, settings = self.preset.stem if self.preset else self.settings.data.name, self.settings
        if self.basis is not None:
            settings = replace(settings, users=replace(settings.users, basis=self.basis))
        run = self.run_dir or Path("runs") / f"users-{name}"
        print_results(run_users(settings, run, accept_other_backbone=self.accept_other_backbone))
        return 0


@dataclass(frozen=True)
class Evaluate:
    """Evaluate a run's best prompts again: tables, pictures, report."""

    run_dir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Directory that `fixate train` made."""
    split: str = "test"
    """Sessions to evaluate on: train, validation or test."""
    accept_other_backbone: bool = False
    """Go on although the backbone's files are not those that the prompts were tuned with."""

    def run(self) -> int:
        """Run the command."""
        from fixate_jax.data.session import SPLITS
        from fixate_jax.lab.experiments.experiment import evaluate_run, open_run

        if self.split not in SPLITS:
            raise ConfigError(f"--split {self.split}: choose one of {', '.join(SPLITS)}")
        with locked(self.run_dir) if self.run_dir.is_dir() else nullcontext():
            _, workspace = open_run(self.run_dir, accept_other_backbone=self.accept_other_backbone)
            print_results(evaluate_run(workspace, self.run_dir, split=self.split))
        return 0


@dataclass(frozen=True)
class Verify:
    """Compare our forward pass with transformers' on your own checkpoint, layer by layer (needs torch)."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """Hugging Face model directory."""
    image: Path | None = None
    """Page to run (None: one of noise)."""
    tolerance: float | None = None
    """Largest difference that passes, relative to the reference at that position (None: 2e-4 in float32, 0.1 in
    bfloat16)."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """How to run it; `backbone.path` is set to the checkpoint."""

    def run(self) -> int:
        """Run the command; 1 if anything differs."""
        from dataclasses import replace

        from PIL import Image, UnidentifiedImageError

        from fixate_jax.lab.report.tables import print_table
        from fixate_jax.lab.verify.verify import verify

        try:
            image = None if self.image is None else Image.open(self.image)
        except (OSError, UnidentifiedImageError) as error:
            raise ConfigError(f"--image {self.image}: cannot be read as an image ({error})") from error
        settings = replace(self.backbone, path=str(self.checkpoint))
        table = verify(self.checkpoint, settings=settings, image=image, tolerance=self.tolerance)
        print_table(table, title=f"{self.checkpoint} against transformers")
        return 0 if table["ok"].all() else 1


@dataclass(frozen=True)
class Analyze:
    """Describe a data set before tuning: is gaze personal and stable, does it go with clicks."""

    preset: Preset = None
    """Settings to start from, e.g. configs/human_choice.yaml; flags override them."""
    out: Path | None = None
    """Directory to write to (None: analyses/ and the preset's name)."""
    splits: tuple[str, ...] = ("train", "validation")
    """Sessions to use: some of train, validation and test. The test split stays untouched unless it is named."""
    halvings: int = 100
    """How often each person's sessions are split into random halves."""
    min_sessions: int = 4
    """People with fewer sessions are left out and counted."""
    layouts: int = 1
    """How many of the commonest page layouts to analyse, each by itself."""
    alike: Literal["boxes", "labels"] = "boxes"
    """Pages are laid out alike when the same labels stand in the same boxes, or when they bear the same labels wherever
    these stand, as on pages that scroll."""
    seed: int = 0
    """Of the halves, the permutation test and the bootstrap."""
    settings: Settings = field(default_factory=RunConfig)

    def run(self) -> int:
        """Run the command."""
        from fixate_jax.data.registry import open_or_prepare, usable_sessions
        from fixate_jax.lab.analysis import AnalysisSettings, write_analysis

        data = self.settings.data
        wanted = AnalysisSettings(
            splits=self.splits,
            signal=data.signal,
            gaze_temperature=data.gaze_temperature,
            halvings=self.halvings,
            min_sessions=self.min_sessions,
            layouts=self.layouts,
            alike=self.alike,
            seed=self.seed,
        )
        out = self.out or Path("analyses") / (self.preset.stem if self.preset else data.name)
        store = open_or_prepare(data)
        print_analysis(write_analysis(store, out, wanted, sessions=usable_sessions(store, data)), out)
        return 0


@dataclass(frozen=True)
class PretrainTiny:
    """Train a tiny backbone that reads drawn pages, from nothing. Run it again to resume."""

    recipe: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE.yaml")] = None
    """The recipe, e.g. configs/pretrain_tiny.yaml; flags override it."""
    run_dir: Annotated[Path, tyro.conf.arg(name="run")] = Path("runs/pretrain-tiny")
    """Run directory; the finished model is `model/` in it."""
    until: int | None = None
    """Stop after this step (None: go to the end, examine the model and write its card)."""
    settings: Annotated[Recipe, tyro.conf.arg(name="")] = field(default_factory=Recipe)

    def run(self) -> int:
        """Run the command."""
        from fixate_jax.lab.pretraining.training import Pretraining

        with locked(self.run_dir):
            pretraining = Pretraining(self.settings, self.run_dir)
            weights = pretraining.run(self.until)
            say(f"weights after step {pretraining.step}: sha256 {weights}")
            if pretraining.step >= self.settings.steps and not (self.run_dir / "model").exists():
                pretraining.publish(self.run_dir / "model", commit="unknown")
        return 0


@dataclass(frozen=True)
class Read:
    """Ask a backbone questions about freshly drawn pages: what it can read, and where operators point in it."""

    backbone: Annotated[str, tyro.conf.Positional] = "tiny-qwen3-vl"
    """A Hugging Face directory, or the name of an embedded backbone."""
    pages: int = 128
    """Pages of each kind."""
    seed: int = 1_000_000
    """Of the pages."""
    tapped_layers: int = 4
    """How many of the last layers to look into."""

    def run(self) -> int:
        """Run the command."""
        from fixate_jax.backbones.loading import load_backbone
        from fixate_jax.lab.pretraining.reading import examine, pointing_game, read_outs
        from fixate_jax.lab.report.tables import print_table

        settings = BackboneConfig(path=self.backbone, tapped_layers=self.tapped_layers)
        with tempfile.TemporaryDirectory() as work:
            asked = examine(load_backbone(settings, work=Path(work)), pages=self.pages, seed=self.seed)
        print_table(read_outs(asked), title=f"{self.backbone}: right answers", digits=3)
        print_table(pointing_game(asked), title="Pointing game: operators and the slot that is answered", digits=3)
        return 0


KINDS: dict[str, Any] = {
    "prepare": Prepare,
    "train": Train,
    "tune-users": TuneUsers,
    "ablate": Ablate,
    "sweep": Sweep,
    "transfer": Transfer,
    "evaluate": Evaluate,
    "emulate": Emulate,
    "compare": Compare,
    "fidelity": Fidelity,
    "controls": Controls,
    "export": Export,
    "probe": Probe,
    "faithfulness": Faithfulness,
    "verify": Verify,
    "analyze": Analyze,
    "plan": Plan,
    "pretrain-tiny": PretrainTiny,
    "read": Read,
}
"""Name of each subcommand → its class."""


def parse(arguments: list[str]) -> Any:
    """The command that the arguments ask for; a preset's values become the defaults of the flags.

    Raises:
        ConfigError: naming the preset's file and field.
    """
    if not arguments or arguments[0] not in KINDS:
        wanted = f"{arguments[0]!r} is no command" if arguments else "a command is needed"
        raise ConfigError(f"fixate: {wanted}; choose one of {', '.join(KINDS)}")
    name, words = arguments[0], arguments[1:]
    kind = KINDS[name]
    how: dict[str, Any] = {"prog": f"fixate {name}", "args": words}
    slot = next((field.name for field in fields(kind) if field.name in ("preset", "recipe")), None)
    if slot and words and not words[0].startswith("-"):
        settings = load_settings(words[0], Recipe if slot == "recipe" else RunConfig)
        how["default"] = kind(**{slot: Path(words[0]), "settings": settings})
        return tyro.cli(kind, **how)
    command: Any = tyro.cli(kind, **how)
    late = getattr(command, slot) if slot else None
    if late is not None:
        raise ConfigError(f"give the preset first: fixate {name} {late} … (its values must be read before)")
    return command


def main(arguments: list[str] | None = None) -> None:
    """Run a command; exit status 0, 1 (a comparison failed), 2 (bad input, disk full) or 130 (stopped and saved)."""
    # transformers would say at each start that PyTorch is missing, which is how it should be.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    written, warnings.formatwarning = warnings.formatwarning, _warning
    try:
        status = parse(sys.argv[1:] if arguments is None else arguments).run()
    except KeyboardInterrupt:
        say("stopped: what was finished is kept; run the same command again to resume", error=True)
        status = 130
    except OSError as error:
        if not is_full(error):
            raise
        say(f"error: {error.filename or 'a file'}: {advice(error)}", error=True)
        status = 2
    except FixateError as error:
        from fixate_jax.lab.experiments.loop import Interrupted

        say(f"error: {error}", error=True)
        status = 130 if isinstance(error, Interrupted) else 2
    finally:
        warnings.formatwarning = written
    sys.exit(status)


def _warning(message: Warning | str, *where: Any, **more: Any) -> str:
    """A warning in a line, without the place in our code that a user can do nothing about."""
    del where, more
    return f"warning: {visible(message)}\n"
