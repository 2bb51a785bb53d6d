"""Prompts are used with the people and the model that they were tuned for, or not at all."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.backbones.tiny.random import write_tiny_random
from fixate_jax.data.options import DataConfig
from fixate_jax.data.registry import open_or_prepare
from fixate_jax.emulation import Page
from fixate_jax.errors import CheckpointError, DataError
from fixate_jax.lab.bundles.bundle import load_bundle
from fixate_jax.lab.bundles.opening import load_run, open_emulator
from fixate_jax.lab.cli.fidelity import read_predictions
from fixate_jax.lab.cli.main import main
from fixate_jax.lab.config import RunConfig, UsersConfig
from fixate_jax.lab.experiments.experiment import absolute_paths, claim_run, evaluate_run, open_run, run_experiment
from fixate_jax.lab.experiments.identity import RECORD, IdentityWarning, check_people
from fixate_jax.lab.experiments.loop import BatchWarning
from fixate_jax.lab.experiments.users_run import run_users
from fixate_jax.lab.studies.jobs import Workers
from fixate_jax.lab.studies.matrix import Study
from fixate_jax.lab.studies.run import run_study
from fixate_jax.lab.studies.sweep import variants_of
from fixate_jax.lab.studies.transfer import TransferSettings, run_transfer
from tests.studies.small import preset

PEOPLE = ("b", "c", "d")


def write_people(folder: Path, people: tuple[str, ...], *, click: int = 0) -> None:
    """Own tables: eight pages with two slots, seen by everybody."""
    (folder / "pages").mkdir(parents=True, exist_ok=True)
    slots, sessions, dwell = [], [], []
    both = list(enumerate("AB"))
    for page in range(8):
        name = f"p{page}.png"
        Image.new("RGB", (96, 64), (20 * page, 90, 200 - 20 * page)).save(folder / "pages" / name)
        slots += [{"page": name, "label": x, "x0": 48 * i, "y0": 0, "x1": 48 * i + 48, "y1": 64} for i, x in both]
        for person in people:
            session = f"{person}{page}"
            sessions.append({"session_id": session, "user_id": person, "page": name, "click": "AB"[(page + click) % 2]})
            split = ("train", "train", "train", "train", "validation", "validation", "test", "test")[page]
            sessions[-1]["split"] = split
            dwell += [{"session_id": session, "label": x, "fixation_ms": 100 + 50 * i + page} for i, x in both]
    for name, rows in (("slots", slots), ("sessions", sessions), ("dwell", dwell)):
        pd.DataFrame(rows).to_csv(folder / f"{name}.csv", index=False)


def exit_status(*words: str) -> object:
    """Of a command."""
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    return ended.value.code


def settings(raw: Path, model: Path) -> RunConfig:
    base = preset(Path("."))
    short = {"epochs": 1, "eval_batch": 4, "ntp_baseline": False, "pictures": 0, "report_sessions": 0}
    return replace(
        base,
        data=DataConfig(name="own", path=raw, page_width=96, max_users=3),
        backbone=BackboneConfig(path=str(model), tapped_layers=1),
        users=UsersConfig(steps=2, batch=2, validate_every=1),
        train=replace(base.train, **short),  # type: ignore[arg-type]
    )


class Lab:
    """A folder with raw data, a model and what was made of them."""

    def __init__(self, root: Path):
        self.raw, self.model, self.run, self.users = (root / x for x in ("raw", "model", "run", "users"))
        self.study, self.bundle = root / "study", root / "bundle"

    @property
    def config(self) -> RunConfig:
        return settings(self.raw, self.model)

    def sweep(self) -> None:
        base = self.config
        variants = variants_of(base, {"objective.attention_weight": (0.25, 0.75)})
        how: dict[str, Any] = {"seeds": (1,), "splits": (0,), "measured": "validation", "signal": "fixation"}
        run_study(Study(out=self.study, base=base, variants=variants, **how), title="T", workers=Workers())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything tuned on three people."""
    root = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        lab = Lab(Path("."))
        write_people(lab.raw, PEOPLE)
        write_tiny_random(lab.model)
        run_experiment(lab.config, lab.run)
        run_users(lab.config, lab.users)
        lab.sweep()
        assert exit_status("export", "run", "bundle") == 0
    return root


@pytest.fixture
def lab(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """A copy of it, from where it can be used; paths in it lead to the copy."""
    root = Path(shutil.copytree(finished, tmp_path / "lab"))
    for file in root.rglob("config.yaml"):
        file.write_text(file.read_text().replace(str(finished), str(root)))
    monkeypatch.chdir(root)
    return Lab(Path("."))


def joined(lab: Lab) -> None:
    write_people(lab.raw, ("a", *PEOPLE))


def left(lab: Lab) -> None:
    write_people(lab.raw, PEOPLE[:2])


def renamed(lab: Lab) -> None:
    write_people(lab.raw, ("b", "c", "e"))


def moved(lab: Lab) -> None:
    table = pd.read_csv(lab.raw / "sessions.csv")
    table.loc[table["session_id"] == "b4", "split"] = "train"
    table.to_csv(lab.raw / "sessions.csv", index=False)


def clicked_otherwise(lab: Lab) -> None:
    write_people(lab.raw, PEOPLE, click=1)


STORIES: list[tuple[Callable[[Lab], None], str]] = [
    (joined, "came: a; went: d"),
    (left, "went: d"),
    (renamed, "came: e; went: d"),
    (moved, "sessions of another person or split: b4"),
    (clicked_otherwise, "the same sessions hold other gaze, clicks"),
]


def contents(folder: Path) -> dict[str, bytes]:
    found = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != ".lock")
    return {str(p): p.read_bytes() for p in found if "features" not in p.parts}


@pytest.mark.parametrize(("change", "told"), STORIES, ids=lambda x: getattr(x, "__name__", ""))
def test_other_people_are_refused_everywhere(
    lab: Lab, change: Callable[[Lab], None], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {folder: contents(folder) for folder in (lab.run, lab.users, lab.study)}
    known = Path("transfer")
    known.mkdir()
    claim_run(known, absolute_paths(replace(lab.config, train=replace(lab.config.train, max_lengths=1))))
    shutil.copyfile(lab.run / RECORD, known / RECORD)
    (known / "backbone.parquet").touch()  # The first thing that it computes.
    change(lab)
    uses: dict[str, Callable[[], object]] = {
        "train": lambda: run_experiment(lab.config, lab.run),
        "tune-users": lambda: run_users(lab.config, lab.users),
        "evaluate": lambda: open_run(lab.run),
        "emulate, export": lambda: load_run(lab.run),
        "fidelity": lambda: read_predictions(lab.run, "validation"),
        "studies": lab.sweep,
        "transfer": lambda: run_transfer(lab.config, known, TransferSettings()),
    }
    for name, use in uses.items():
        with pytest.raises(DataError, match=told):
            use()
        assert contents(lab.run) == before[lab.run], name
    assert {folder: contents(folder) for folder in before} == before
    for words in (("export", "run", "other"), ("emulate", "run", "pages"), ("compare", "run", "one", "two")):
        capsys.readouterr()
        assert exit_status(*words) == 2 and told in capsys.readouterr().err, words[0]
    assert not Path("other").exists()


def test_a_store_made_again_is_the_same(lab: Lab) -> None:
    shutil.rmtree("stores")
    check_people(lab.run, open_or_prepare(lab.config.data), lab.config.data)
    assert load_run(lab.run).users == PEOPLE == load_run(lab.users).users == load_bundle(lab.bundle).users


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer_config.json", "chat_template.jinja"])
def test_other_files_of_the_backbone_are_refused(lab: Lab, file: str) -> None:
    path = lab.model / file
    data = bytearray(path.read_bytes())
    if file.endswith(".safetensors"):
        data[-4:] = np.float32(0.25).tobytes()
    elif file.endswith(".json"):
        data = bytearray(json.dumps(json.loads(data) | {"noted": 1}).encode())
    else:
        data = bytearray(b"{# another one #}" + bytes(data))
    path.write_bytes(data)
    uses: list[Callable[[], object]] = [
        lambda: run_experiment(lab.config, lab.run),
        lambda: run_users(lab.config, lab.users),
        lambda: open_run(lab.run),
        lambda: open_emulator(lab.run),
        lambda: open_emulator(lab.users),
        lambda: open_emulator(lab.bundle, backbone=str(lab.model)),
    ]
    for use in uses if file.endswith(".safetensors") else uses[2:3]:
        with pytest.raises(CheckpointError, match="--accept-other-backbone"):
            use()
    with pytest.warns(IdentityWarning, match="going on all the same"):
        _, workspace = open_run(lab.run, accept_other_backbone=True)
    if file.endswith(".safetensors"):
        assert len(evaluate_run(workspace, lab.run).results)


def test_a_basis_of_other_weights_is_refused(lab: Lab) -> None:
    record = json.loads((lab.run / RECORD).read_text())
    (lab.run / RECORD).write_text(json.dumps(record | {"backbone": "another"}))
    config = replace(lab.config, train=replace(lab.config.train, seeds=lab.config.train.seeds))
    config = replace(config, users=replace(config.users, basis=lab.run, mode="coefficients"))
    with pytest.raises(CheckpointError, match=r"run was tuned with other weights"):
        run_users(config, Path("over"))


def test_a_run_of_an_earlier_release_is_told_of(lab: Lab) -> None:
    (lab.run / RECORD).unlink()
    with pytest.warns(IdentityWarning, match=r"run has no identity\.json: an earlier release made it"):
        assert load_run(lab.run).users == PEOPLE
    (lab.run / RECORD).write_text("{}")
    with pytest.raises(CheckpointError, match=r"identity\.json: is no note of people"):
        load_run(lab.run)


def test_a_batch_larger_than_the_data_is_made_smaller(lab: Lab) -> None:
    config = replace(lab.config, train=replace(lab.config.train, batch=4096))
    with pytest.warns(BatchWarning, match="train.batch = 4096: there are 12 sessions to tune on, so a batch has 12"):
        run_experiment(config, Path("large"))


def test_no_click_is_drawn_from_what_is_no_number(lab: Lab) -> None:
    emulator = load_run(lab.run)
    page = Page(image=Image.new("RGB", (96, 64)), boxes=[(0, 0, 48, 64), (48, 0, 96, 64)], labels=("A", "B"))
    basis = emulator.prompt.basis * jnp.nan
    broken = emulator.with_prompt(emulator.prompt._replace(basis=basis), emulator.users)
    with pytest.raises(CheckpointError, match=r"user 'b' on page 'page 0': what the model answers is no number"):
        broken.emulate([page])
