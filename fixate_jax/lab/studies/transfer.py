"""Does a basis of some people serve others: a new person's coefficients, from a few sessions.

People are cut into two halves. A basis is trained on one half; people of the other half are new and have nothing but
their first k training sessions. Both directions are done, so that everybody is new once.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas as pd

from fixate_jax.data.few import few_sessions
from fixate_jax.data.registry import open_or_prepare
from fixate_jax.data.session import StoredSession
from fixate_jax.errors import ConfigError
from fixate_jax.lab.config import RunConfig
from fixate_jax.lab.experiments.cells import Cell, open_cell
from fixate_jax.lab.experiments.evaluate import predict
from fixate_jax.lab.experiments.experiment import BACKBONE, absolute_paths, check_run, claim_run, seed_directory
from fixate_jax.lab.experiments.identity import check_people, claim_identity
from fixate_jax.lab.experiments.loop import train
from fixate_jax.lab.experiments.workspace import Workspace
from fixate_jax.lab.frames import session_metrics
from fixate_jax.lab.studies.few import new_person_predictions, population_predictions
from fixate_jax.lab.studies.jobs import Workers, spread
from fixate_jax.lab.studies.provenance import provenance
from fixate_jax.lab.studies.report import provenance_lines
from fixate_jax.lab.studies.transfer_report import (
    ALL,
    COEFFICIENTS,
    NOTHING,
    POPULATION,
    SWAPPED,
    TOGETHER,
    write_transfer,
)
from fixate_jax.lab.text import say
from fixate_jax.lab.users.memory import default_limit
from fixate_jax.lab.users.tune import UserPrompts, tune_users
from fixate_jax.prompts import PromptParams, population_prompt
from fixate_jax.runtime.durable import replacing, write_text
from fixate_jax.runtime.lock import locked

HALVES_FILE, FACTS_FILE = "halves.json", "facts.json"


@dataclass(frozen=True, kw_only=True)
class TransferSettings:
    """What the study adds to a run's settings.

    Attributes:
        sessions: how many sessions of a new person are known, each count by itself; all of them come on top.
        halves_seed: of the cut of the people.
    """

    sessions: tuple[int, ...] = (1, 2, 4, 8, 16)
    halves_seed: int = 0

    def __post_init__(self) -> None:
        if not self.sessions or min(self.sessions) < 1 or len(set(self.sessions)) < len(self.sessions):
            raise ConfigError(f"--sessions {self.sessions}: counts of at least 1 are needed, each once")
        if self.halves_seed < 0:
            raise ConfigError(f"--halves-seed {self.halves_seed}: must not be negative")

    @property
    def counts(self) -> tuple[int, ...]:
        """Values of the column `k`, from little to everything."""
        return (*sorted(self.sessions), ALL)


def run_transfer(
    config: RunConfig, run: Path, wanted: TransferSettings, *, workers: Workers | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train the bases, fit the new people, measure, and write tables and figures.

    Run again after a stop at any moment it ends with the same tables; what is finished is not done again.

    Args:
        config: the settings; `users.steps`, `users.batch` and the optimizer's are those of a new person.
        run: the run directory.
        wanted: what the study adds.
        workers: who does it (None: this process).

    Returns:
        Measures and tests, see :mod:`fixate_jax.lab.studies.transfer_report`.

    Raises:
        FixateError: naming what is wrong with settings, data or run directory.
    """
    config, workers = absolute_paths(config), workers or Workers()
    config = replace(config, train=replace(config.train, max_lengths=1))
    with locked(run):
        check_run(run, config)
        check_people(run, open_or_prepare(config.data), config.data)
        claim_run(run, config)
        _claim_halves(run, wanted)
        study = open_transfer(config, run.absolute(), wanted)
        claim_identity(run, study.workspace)
        parts = study.parts()
        todo = [name for name, pieces in parts.items() if not all(path.exists() for path, _ in pieces)]
        if todo:
            _note(run)
        work = partial(compute_part, config=config, run=run.absolute(), wanted=wanted)
        for done, _ in enumerate(spread(work, todo, workers=workers, out=run), 1):
            say(f"transfer: {len(parts) - len(todo) + done} of {len(parts)} parts done", error=True)
        paths = [path for pieces in parts.values() for path, _ in pieces]
        measured = pd.concat([pd.read_parquet(path) for path in paths], ignore_index=True)
        return write_transfer(
            run,
            measured,
            counts=wanted.counts,
            most=study.most_sessions,
            about=_about(config, wanted, _facts(run)),
        )


def open_transfer(config: RunConfig, run: Path, wanted: TransferSettings) -> "_Transfer":
    """The study on the workspace that this process holds."""
    return _Transfer(open_cell(Cell(folder=run, config=config, seed=0), run), run, wanted)


def compute_part(name: str, *, config: RunConfig, run: Path, wanted: TransferSettings) -> None:
    """The pieces of a part that are not on disk yet, one after the other."""
    for path, compute in open_transfer(config, run, wanted).parts()[name]:
        if not path.exists():
            with replacing(path) as temporary:
                compute().to_parquet(temporary, index=False)


def _about(config: RunConfig, wanted: TransferSettings, facts: Sequence[dict[str, Any]]) -> str:
    what = (
        f"`{Path(config.backbone.path).name}`, operator `{config.operator.name}`, {config.data.name}; seeds "
        f"{', '.join(map(str, config.train.seeds))}; halves by seed {wanted.halves_seed}; test sessions."
    )
    return "\n".join([what, "", *provenance_lines(facts)])


def halves(users: Sequence[str], *, seed: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The people cut in two, in shuffled order; the second half has one more where they are odd.

    Raises:
        ConfigError: fewer than four people, so that a half has nobody to swap with.
    """
    if len(users) < 4:
        raise ConfigError(f"data: {len(users)} users; a transfer between halves needs at least 4")
    order = [users[i] for i in np.random.default_rng(seed).permutation(len(users))]
    return tuple(order[: len(order) // 2]), tuple(order[len(order) // 2 :])


def _claim_halves(run: Path, wanted: TransferSettings) -> None:
    path = run / HALVES_FILE
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))["halves_seed"]
        if before != wanted.halves_seed:
            raise ConfigError(
                f"{run} was made with --halves-seed {before}, now {wanted.halves_seed}; choose another --run"
            )
    else:
        write_text(path, json.dumps({"halves_seed": wanted.halves_seed}))


def _note(run: Path) -> None:
    """Keep by which commands, on which commits and machines, the pieces were computed."""
    write_text(run / FACTS_FILE, json.dumps([*_facts(run), provenance()], indent=1))


def _facts(run: Path) -> list[dict[str, Any]]:
    path = run / FACTS_FILE
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return found


Piece = tuple[Path, Callable[[], pd.DataFrame]]


class _Transfer:
    """The pieces of the study; each is a file of session metrics with the columns `seed` and `k`."""

    def __init__(self, workspace: Workspace, run: Path, wanted: TransferSettings):
        self.workspace, self.config, self.run, self.wanted = workspace, workspace.config, run, wanted
        learnt = {workspace.data.sessions[i].user_id for i in workspace.splits["train"]}
        people = [user for user in workspace.users if user in learnt]
        both = halves(people, seed=wanted.halves_seed)
        self.directions = [_Direction(self, number, *pair) for number, pair in enumerate((both, both[::-1]))]

    @property
    def most_sessions(self) -> float:
        """Training sessions of a person, the median over people."""
        sessions = self.workspace.sessions("train")
        return float(pd.Series([s.user_id for s in sessions]).value_counts().median())

    def parts(self) -> dict[str, list[Piece]]:
        """The pieces that build on each other, part by part."""
        seeds = self.config.train.seeds
        found: dict[str, list[Piece]] = {"backbone": [(self.run / "backbone.parquet", partial(self._backbone, seeds))]}
        for seed in seeds:
            together = seed_directory(self.run, seed) / "together.parquet"
            found[f"seed {seed}, together"] = [(together, partial(self._together, seed))]
            for direction in self.directions:
                found[f"seed {seed}, half {direction.number}"] = list(direction.pieces(seed))
        return found

    def _backbone(self, seeds: Sequence[int]) -> pd.DataFrame:
        frame = self.measure(predict(self.workspace, None, "test", BACKBONE), seed=0, k=NOTHING)
        return pd.concat([frame.assign(seed=seed) for seed in seeds], ignore_index=True)

    def _together(self, seed: int) -> pd.DataFrame:
        """The ordinary run: everybody's training sessions, all in one."""
        directory = seed_directory(self.run, seed) / TOGETHER
        prompt = train(
            self.workspace, self.config, directory, seed=seed, title=f"Everybody together, seed {seed}"
        ).prompt
        return self.measure(predict(self.workspace, prompt, "test", TOGETHER), seed=seed, k=NOTHING)

    def measure(self, predictions: pd.DataFrame, *, seed: int, k: int) -> pd.DataFrame:
        return session_metrics(predictions, top_k=self.config.objective.top_k).assign(seed=seed, k=k)


class _Direction:
    """A basis from one half of the people, the other half being new."""

    def __init__(self, study: _Transfer, number: int, known: tuple[str, ...], new: tuple[str, ...]):
        self.study, self.number, self.known, self.new = study, number, known, new
        self.config = study.config

    @cached_property
    def workspace(self) -> Workspace:
        """Training and validation sessions of the known, test sessions of the new people; one for all seeds."""
        workspace = self.study.workspace
        who = {"train": self.known, "validation": self.known, "test": self.new}
        return replace(workspace, splits={split: _of(workspace, split, users) for split, users in who.items()})

    def few(self, seed: int, k: int) -> Workspace:
        """The new people alone: k training sessions of each, no validation sessions."""
        whole = self.study.workspace
        indices = _of(whole, "train", self.new)
        if k != ALL:
            indices = few_sessions(whole.data.sessions, indices, k, seed=seed)
        return replace(whole, splits={"train": indices, "validation": [], "test": self.workspace.splits["test"]})

    def folder(self, seed: int) -> Path:
        return seed_directory(self.study.run, seed) / f"half-{self.number}"

    def pieces(self, seed: int) -> Iterator[Piece]:
        """The pieces of one seed."""
        yield self.folder(seed) / "population.parquet", partial(self._population, seed)
        for k in self.study.wanted.counts:
            yield self.folder(seed) / f"{_name(k)}.parquet", partial(self._new_people, seed, k)

    def basis(self, seed: int) -> PromptParams:
        """The known people's prompts: a basis, and the rows of none but them."""
        title = f"Basis of half {self.number + 1}, seed {seed}"
        prompt = train(self.workspace, self.config, self.folder(seed) / "basis", seed=seed, title=title).prompt
        rows = np.array([self.workspace.users.index(user) for user in self.known])
        return PromptParams(prompt.basis, jnp.asarray(prompt.coefficients)[rows])

    def fit(self, seed: int, k: int) -> UserPrompts:
        """Coefficients of the new people."""
        chunk = self.config.users.chunk
        device = self.workspace.mesh.devices.flat[0]
        if chunk is None and device.platform == "cpu":  # Else the program is compiled twice more to measure it.
            chunk = default_limit(device)
        users = replace(self.config.users, mode="coefficients", basis=None, only=None, chunk=chunk)
        return tune_users(
            self.few(seed, k),
            replace(self.config, users=users),
            users=self.new,
            basis=self.basis(seed),
            seed=seed,
            directory=self.folder(seed) / f"fit-{_name(k)}",
        )

    def _population(self, seed: int) -> pd.DataFrame:
        """What is said of somebody of whom nothing is known."""
        shared = population_prompt(self.basis(seed))[None]
        prompt = PromptParams(shared, jnp.zeros((len(self.workspace.users), 1)))
        known = self.workspace.sessions("train")
        people = {session.user_id for session in known}
        trivial = population_predictions(
            known,
            self.workspace.sessions("test"),
            validation=[s for s in self.workspace.sessions("validation") if s.user_id in people],
            hidden=self.workspace.store.hidden_features,
            **self._reading(),
        )
        both = pd.concat([predict(self.workspace, prompt, "test", POPULATION), trivial], ignore_index=True)
        return self.study.measure(both, seed=seed, k=NOTHING)

    def _new_people(self, seed: int, k: int) -> pd.DataFrame:
        """Coefficients from k sessions; under another new person's, where all are known; predictors beside them."""
        tuned, users = self.fit(seed, k), self.workspace.users
        frames = [predict(self.workspace, tuned.prompt_params(users), "test", COEFFICIENTS)]
        if k == ALL:
            frames.append(predict(self.workspace, swapped(tuned).prompt_params(users), "test", SWAPPED))
        frames.append(
            new_person_predictions(
                self.workspace.sessions("train"),
                self.few(seed, k).sessions("train"),
                self.workspace.sessions("test"),
                **self._reading(),
            )
        )
        return self.study.measure(pd.concat(frames, ignore_index=True), seed=seed, k=k)

    def _reading(self) -> dict[str, Any]:
        data = self.config.data
        return {
            "slot_feature_names": self.workspace.store.slot_feature_names,
            "signal": data.signal,
            "gaze_temperature": data.gaze_temperature,
        }


def swapped(tuned: UserPrompts) -> UserPrompts:
    """Everybody with the coefficients of the next one, so that nobody keeps their own."""
    return replace(tuned, own=jnp.roll(tuned.own, -1, axis=0))


def _of(workspace: Workspace, split: str, users: Sequence[str]) -> list[int]:
    """Sessions of some people in a split."""
    sessions: Sequence[StoredSession] = workspace.data.sessions
    return [i for i in workspace.splits[split] if sessions[i].user_id in users]


def _name(k: int) -> str:
    return "all" if k == ALL else f"k-{k}"
