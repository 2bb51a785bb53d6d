"""The command line: help, overrides, and one clear message for every mistake, before anything is written."""

import dataclasses
import re
from dataclasses import replace
from pathlib import Path

import pytest

from fixate_jax.data.store import SessionStore
from fixate_jax.lab.cli import commands as cli
from fixate_jax.lab.cli import main as light
from fixate_jax.lab.config import RunConfig
from fixate_jax.lab.experiments import experiment
from fixate_jax.lab.pretraining.recipe import Recipe
from fixate_jax.lab.settings import load_settings

CONFIGS = Path(__file__).parents[1] / "configs"
DEMO = str(CONFIGS / "demo.yaml")
CAROUSEL = str(CONFIGS / "demo.yaml")
RECIPE = str(CONFIGS / "pretrain_tiny.yaml")
RECIPES = sorted(CONFIGS.glob("pretrain_tiny*.yaml"))
PRESETS = sorted(set(CONFIGS.glob("*.yaml")) - set(RECIPES))
COMMANDS = (
    "prepare, train, tune-users, ablate, sweep, transfer, evaluate, emulate, compare, fidelity, controls, export, "
    "probe, faithfulness, verify, analyze, plan, pretrain-tiny, read"
)


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands run in a folder of their own; a wide terminal keeps messages on one line."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "400")
    return folder


def call(*arguments: str) -> int:
    """Exit status of a command."""
    with pytest.raises(SystemExit) as left:
        cli.main(list(arguments))
    assert isinstance(left.value.code, int)
    return left.value.code


def flags(settings: object, prefix: str = "") -> list[str]:
    """Flags of every field within a dataclass, as `fixate --help` spells them."""
    found: list[str] = []
    for field in dataclasses.fields(settings):  # type: ignore[arg-type]
        value = getattr(settings, field.name)
        name = f"{prefix}{field.name.replace('_', '-')}"
        if dataclasses.is_dataclass(value):
            found += flags(value, f"{name}.")
        elif isinstance(value, bool):
            found.append(f"--{name}, --{prefix}no-{name.removeprefix(prefix)} ")
        else:
            found.append(f"--{name} ")
    return found


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    light.main(["--help"])
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS.split(", "))


@pytest.mark.parametrize(
    ("command", "wanted"),
    [
        ("prepare", flags(RunConfig())),
        ("train", [*flags(RunConfig()), "--run "]),
        ("tune-users", [*flags(RunConfig()), "--run ", "--basis "]),
        ("ablate", [*flags(RunConfig()), "--variants ", "--seeds ", "--splits ", "--jobs ", "--cluster "]),
        ("sweep", [*flags(RunConfig()), "--over ", "--design ", "--draws ", "--measure ", "--jobs ", "--cluster "]),
        ("transfer", [*flags(RunConfig()), "--run ", "--sessions ", "--halves-seed "]),
        ("evaluate", ["RUN", "--split "]),
        ("probe", ["RUN", "--session ", "--operator ", "--seed ", "--smooth", "--out ", "--data-path "]),
        ("faithfulness", ["RUN", "--operators ", "--sessions ", "--split ", "--draws ", "--seed ", "--out "]),
        ("verify", ["--image ", "--tolerance ", *flags(RunConfig().backbone, "backbone.")]),
        ("plan", [*flags(RunConfig()), "--models ", "--device ", "--device-gb ", "--devices ", "--page ", "--pages "]),
        ("pretrain-tiny", [*flags(Recipe()), "--run ", "--until "]),
        ("read", ["--pages ", "--seed ", "--tapped-layers "]),
    ],
)
def test_help_lists_every_field_with_its_meaning(
    command: str, wanted: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")  # Wider, and the help has two columns.
    assert call(command, "--help") == 0
    lines = capsys.readouterr().out.splitlines()
    for flag in wanted:
        at = next((i for i, line in enumerate(lines) if flag in line and not line.startswith("usage")), None)
        assert at is not None, f"{flag} is not in the help of {command}"
        text = " ".join(lines[at : at + 2]).split(flag.strip(), 1)[1]
        meaning = re.sub(r"\{[^}]*\}|\|?\b[A-Z]{3,}\b|[│\s]", "", text.split("(default")[0].split("(required")[0])
        assert len(meaning) >= 6, f"{flag} is not explained: {text}"


def test_a_presets_values_are_the_defaults_of_the_flags(capsys: pytest.CaptureFixture[str]) -> None:
    command = cli.parse(["train", DEMO, "--train.epochs", "3", "--train.seeds", "1", "2", "--prompt.no-personal"])
    assert isinstance(command, cli.Train)
    assert command.settings.data.name == "synthetic_carousel"
    assert command.settings.train.eval_batch == 36
    assert (command.settings.train.epochs, command.settings.train.seeds) == (3, (1, 2))
    assert command.settings.prompt.personal is False
    assert call("train", DEMO, "--help") == 0
    assert "(default: synthetic_carousel)" in capsys.readouterr().out


def test_a_recipes_values_are_the_defaults_of_the_flags() -> None:
    command = cli.parse(["pretrain-tiny", RECIPE, "--steps", "7", "--no-matched", "--run", "here"])
    assert isinstance(command, cli.PretrainTiny)
    assert command.settings == replace(load_settings(RECIPE, Recipe), steps=7, matched=False)
    assert (command.recipe, command.run_dir, command.until) == (Path(RECIPE), Path("here"), None)
    assert load_settings(RECIPE, Recipe).steps != 7


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_parses(recipe: Path) -> None:
    command = cli.parse(["pretrain-tiny", str(recipe), "--run", "here"])
    assert isinstance(command, cli.PretrainTiny) and command.settings == load_settings(recipe, Recipe)


@pytest.mark.parametrize("preset", PRESETS, ids=lambda p: p.stem)
@pytest.mark.parametrize("command", ["prepare", "train"])
def test_every_shipped_preset_parses(preset: Path, command: str) -> None:
    parsed = cli.parse([command, str(preset)])
    assert isinstance(parsed, cli.Prepare | cli.Train)
    assert parsed.preset == preset


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ([], COMMANDS),
        (["tune"], f"error: fixate: 'tune' is no command; choose one of {COMMANDS}"),
        (["train", DEMO, "--train.epochs", "many"], "--train.epochs: invalid literal for int()"),
        (["train", "--train.epochs", "many"], "--train.epochs: invalid literal for int()"),
        (["train", DEMO, "--train.epochs", "0"], "train.epochs = 0: at least 1 is needed"),
        (["train", "--train.epochs", "0"], "train.epochs = 0: at least 1 is needed"),
        (["train", DEMO, "--objective.gamma", "-1"], "objective.gamma = -1.0: must not be negative"),
        (["train", DEMO, "--train.epohcs", "3"], "--train.epochs INT"),
        (["train", DEMO, "--objective.alignment", "mse"], "objective.alignment"),
        (["train", "nothing.yaml"], "error: nothing.yaml: cannot be read"),
        (["prepare", "nothing.yaml"], "error: nothing.yaml: cannot be read"),
        (["train", DEMO, "--data.name", "human_choice"], "error: data.path = None: give the folder of human_choice"),
        (
            ["train", DEMO, "--data.name", "human_choice", "--data.path", "nowhere"],
            "nowhere is not there",
        ),
        (["prepare", DEMO, "--data.name", "human_choice", "--data.path", "x"], "error: data.path = x: x is not there"),
        (
            ["train", DEMO, "--data.name", "nope"],
            "error: data.name = 'nope': choose one of human_choice, recgaze, adserp, ",
        ),
        (
            ["train", DEMO, "--operator.name", "nope"],
            "error: operator.name = 'nope': choose one of attn_lrp, attention",
        ),
        (["train", DEMO, "--backbone.path", "nowhere"], "nowhere' is neither a directory nor"),
        (["evaluate", "nowhere"], "error: nowhere: no config.yaml there; give the directory of a run"),
        (["evaluate", "nowhere", "--split", "tset"], "error: --split tset: choose one of train, validation, test"),
        (["probe", "nowhere"], "error: nowhere: no config.yaml there; give the directory of a run"),
        (["probe", "nothing.yaml"], "error: nothing.yaml: cannot be read"),
        (["probe", DEMO, "--operator", "nope"], "error: operator.name = 'nope': choose one of attn_lrp, attention"),
        (["probe", DEMO, "--seed", "1"], "error: --seed 1: a preset has no tuned prompts"),
        (["faithfulness", "nowhere"], "error: nowhere: no config.yaml there; give the directory of a run"),
        (["faithfulness", DEMO, "--operators", "nope"], "error: --operators nope: choose among attn_lrp signed"),
        (["faithfulness", DEMO, "--split", "tset"], "error: --split tset: choose one of train, validation, test"),
        (["faithfulness", DEMO, "--sessions", "0"], "error: --sessions 0: at least 1 is needed"),
        (["pretrain-tiny", "nothing.yaml"], "error: nothing.yaml: cannot be read"),
        (["pretrain-tiny", RECIPE, "--batch", "many"], "--batch: invalid literal for int()"),
        (["pretrain-tiny", "--batch", "many"], "--batch: invalid literal for int()"),
        (["pretrain-tiny", "--until", "1", RECIPE], f"give the preset first: fixate pretrain-tiny {RECIPE}"),
        (["pretrain-tiny", DEMO], "demo.yaml: data: no such setting"),
        (["read", "nowhere"], "nowhere' is neither a directory nor"),
        (["read", "--pages", "few"], "--pages: invalid literal for int()"),
    ],
    ids=lambda value: " ".join(a for a in value if a not in (DEMO, RECIPE))[:60] if isinstance(value, list) else None,
)
def test_a_mistake_is_one_message_and_leaves_nothing_behind(
    arguments: list[str], wanted: str, capsys: pytest.CaptureFixture[str], empty_folder: Path
) -> None:
    assert call(*arguments) == 2
    shown = capsys.readouterr()
    assert wanted in shown.err
    assert "Traceback" not in shown.err
    assert shown.out == ""
    assert list(empty_folder.iterdir()) == []


def test_a_wrong_preset_names_file_and_field(capsys: pytest.CaptureFixture[str], empty_folder: Path) -> None:
    preset = empty_folder / "my.yaml"
    preset.write_text("objective: {gama: 1}\ntrain: {epochs: 0}\n", encoding="utf-8")
    assert call("train", "my.yaml") == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "error: my.yaml: objective.gama: no such setting; did you mean 'gamma'?"
    assert lines[1] == "my.yaml: train.epochs = 0: at least 1 is needed"
    assert len(lines) == 2
    assert list(empty_folder.iterdir()) == [preset]


@pytest.mark.parametrize("command", ["prepare", "train"])
def test_a_preset_after_the_flags_is_not_ignored(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(command, "--train.epochs", "3", DEMO) == 2
    assert "give the preset first" in capsys.readouterr().err


def test_a_wrong_operator_is_found_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "open_or_prepare", lambda config: pytest.fail("prepared data first"))
    assert call("train", DEMO, "--operator.name", "nope") == 2


def test_a_command_that_failed_can_be_given_again_with_other_settings(empty_folder: Path) -> None:
    assert call("train", DEMO, "--run", "mine", "--data.name", "human_choice") == 2
    assert not (empty_folder / "mine").exists()


def test_a_directory_that_is_no_run(capsys: pytest.CaptureFixture[str], empty_folder: Path) -> None:
    (empty_folder / "letters").mkdir()
    (empty_folder / "letters" / "a.txt").write_text("a", encoding="utf-8")
    for command in (["evaluate", "letters"], ["probe", "letters"], ["faithfulness", "letters"]):
        assert call(*command) == 2
        assert "error: letters: no config.yaml there" in capsys.readouterr().err
    assert call("train", DEMO, "--run", "letters") == 2
    assert "letters is not empty and holds no config.yaml; choose another --run" in capsys.readouterr().err
    assert [p.name for p in (empty_folder / "letters").iterdir()] == ["a.txt"]
    assert not (empty_folder / "stores").exists()


def test_prepare_writes_a_store_and_says_what_is_in_it(capsys: pytest.CaptureFixture[str], empty_folder: Path) -> None:
    arguments = ["prepare", CAROUSEL, "--data.store", "made", "--data.max-users", "2", "--data.page-width", "64"]
    assert call(*arguments) == 0
    assert "120 sessions of 2 users in made" in capsys.readouterr().out
    assert [p.name for p in empty_folder.iterdir()] == ["made"]
    assert SessionStore.open(Path("made")).users == ("0", "1")
    assert call(*arguments) == 0, "a store that is there is used again"
    capsys.readouterr()
    assert call(*arguments, "--data.split-seed", "1") == 2
    assert "made was prepared with other settings or raw data (split_seed" in capsys.readouterr().err


def test_bad_rows_stop_prepare_or_are_counted(capsys: pytest.CaptureFixture[str], empty_folder: Path) -> None:
    from fixate_jax.data.readers.synthetic.choice import synthetic_trials

    trials = synthetic_trials(users=1, trials=20, seed=0)
    trials.loc[3, "pA"] = 1.5
    trials.to_csv(empty_folder / "trials.csv", index=False)
    arguments = ["prepare", "--data.path", ".", "--data.store", "../made", "--data.page-width", "64"]
    assert call(*arguments) == 2
    assert "trials.csv, line 5, field 'pA' = '1.5'" in capsys.readouterr().err
    assert not Path("../made").exists()
    assert call(*arguments, "--data.on-bad-row", "skip") == 0
    shown = capsys.readouterr().out
    assert "19 sessions of 1 users" in shown
    assert "left out: 1 (probability out of range)" in shown


def test_verify_names_a_missing_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    assert call("verify", "nowhere") == 2
    assert "nowhere/config.json: not found" in capsys.readouterr().err


def test_probe_draws_a_presets_backbone_with_any_operator(
    capsys: pytest.CaptureFixture[str], empty_folder: Path
) -> None:
    from PIL import Image

    preset = empty_folder / "my.yaml"
    preset.write_text(
        "data: {name: synthetic_choice, page_width: 96, max_users: 1, store: made}\nbackbone: {tapped_layers: 1}\n",
        encoding="utf-8",
    )
    assert call("prepare", "my.yaml") == 0
    other = SessionStore.open(Path("made")).sessions[-1].session_id
    pictures: list[Image.Image] = []
    attention = ["--operator", "attention"]
    for extra in (attention, [*attention, "--smooth"], [*attention, "--session", other]):
        assert call("probe", "my.yaml", "--out", f"{len(pictures)}.png", *extra) == 0
        assert f"drawn: {len(pictures)}.png" in capsys.readouterr().out
        pictures.append(Image.open(f"{len(pictures)}.png").convert("RGB"))
    assert len({picture.tobytes() for picture in pictures}) == 3
    assert call("probe", "my.yaml", "--session", "none") == 2
    assert "--session none: no such session; for example" in capsys.readouterr().err
