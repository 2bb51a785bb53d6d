"""Presets: strict reading, messages that name the field, and a round trip."""

from dataclasses import replace
from pathlib import Path

import pytest

from fixate_jax.data.options import DataConfig
from fixate_jax.errors import ConfigError
from fixate_jax.lab.config import ObjectiveConfig, OptimizerConfig, RunConfig
from fixate_jax.lab.settings import config_from_dict, config_to_dict, dump_config, load_config


def preset(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "preset.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_what_a_preset_leaves_out_keeps_its_default(tmp_path: Path) -> None:
    config = load_config(preset(tmp_path, "train: {seeds: [7]}\ndata: {path: some/folder}\n"))
    assert config.train.seeds == (7,)
    assert config.data.path == Path("some/folder")
    assert config == replace(
        RunConfig(), train=replace(RunConfig().train, seeds=(7,)), data=DataConfig(path=Path("some/folder"))
    )
    assert type(config) is RunConfig
    assert load_config(preset(tmp_path, "")) == RunConfig()


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "1.0e-3", "0.001", "10e-4", "1.e-3", "+1e-3"])
def test_all_spellings_of_a_number(tmp_path: Path, text: str) -> None:
    config = load_config(preset(tmp_path, f"optimizer: {{basis_lr: {text}}}"))
    assert config.optimizer.basis_lr == pytest.approx(1e-3)


def test_whole_numbers_do_for_fractions_and_dates_for_folders(tmp_path: Path) -> None:
    config = load_config(preset(tmp_path, "objective: {gamma: 1}\ndata: {path: 2024-01-01, max_users: null}"))
    assert isinstance(config.objective.gamma, float)
    assert config.data.path == Path("2024-01-01")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("objective: {gamma: abc}", r"preset\.yaml: objective\.gamma = 'abc': should be a valid number"),
        ("objective: {gamma: '2'}", r"objective\.gamma = '2': should be a valid number"),
        ("objective: {gamma: true}", r"objective\.gamma = True: should be a valid number"),
        ("train: {epochs: 2.5}", r"train\.epochs = 2\.5"),
        ("train: {epochs: 1e1}", r"train\.epochs = 10\.0"),
        ("train: {epochs: null}", r"train\.epochs = None"),
        ("prompt: {personal: 1}", r"prompt\.personal = 1"),
        ("data: {name: no}", r"data\.name = False"),
        ("data: {path: 3}", r"data\.path = 3"),
        ("objective: {alignment: mse}", r"objective\.alignment = 'mse': choose one of kl"),
        ("objective: {gama: 1}", r"preset\.yaml: objective\.gama: no such setting; did you mean 'gamma'\?"),
        ("objective: {xyz: 1}", r"objective\.xyz: no such setting; known here: alignment, relevance, gaze, gamma"),
        ("objectiv: {gamma: 1}", r"objectiv: no such setting; did you mean 'objective'\?"),
        ("1: 2", r"preset\.yaml: 1: no such setting; known here: data, backbone"),
        ("objective: 3", r"objective = 3"),
        ("objective: [1]", r"objective = \[1\]"),
        ("objective: {gamma: -1}", r"preset\.yaml: objective\.gamma = -1\.0: must not be negative"),
        ("objective: {gamma: .nan}", r"preset\.yaml: objective\.gamma = nan: must not be negative"),
        ("train: {seed: 1, seed: 2}", r"preset\.yaml: no valid YAML: line 1: 'seed' is given twice"),
        ("train: {seed: 1", r"preset\.yaml: no valid YAML"),
        ("data: {path: !!python/name:os.system }", r"preset\.yaml: no valid YAML"),
        ("- 1", r"preset\.yaml: holds a list; sections"),
    ],
)
def test_bad_presets_name_file_and_field(tmp_path: Path, text: str, wanted: str) -> None:
    with pytest.raises(ConfigError, match=wanted):
        load_config(preset(tmp_path, text))


def test_every_bad_field_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(preset(tmp_path, "train: {epochs: 0}\nobjective: {gamma: x}\nprompt: {token: 1}"))
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert all("preset.yaml: " in line for line in lines)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.yaml: cannot be read"):
        load_config(tmp_path / "nothing.yaml")


def test_values_that_are_no_settings() -> None:
    with pytest.raises(ConfigError, match="run 3: only numbers"):
        config_from_dict({"train": {"seed": object()}}, source="run 3")


def test_round_trip(tmp_path: Path) -> None:
    config = RunConfig(
        data=DataConfig(path=Path("ä/data"), max_users=3, name="no"),
        optimizer=OptimizerConfig(basis_lr=1.2345678901234567e-05, user_clip=float("inf")),
        objective=ObjectiveConfig(alignment="none", gamma=0.1),
    )
    assert load_config(preset(tmp_path, dump_config(config))) == config
    assert config_from_dict(config_to_dict(config)) == config
    assert load_config(preset(tmp_path, dump_config(RunConfig()))) == RunConfig()


CONFIGS = Path(__file__).parents[1] / "configs"
PRESETS = sorted(path for path in CONFIGS.glob("*.yaml") if "pretrain" not in path.stem)


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_shipped_presets_load(path: Path) -> None:
    assert isinstance(load_config(path), RunConfig)
