"""Which variants a study has, and what their cells' settings are."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from fixate_jax.errors import ConfigError
from fixate_jax.lab.config import ObjectiveConfig, RunConfig
from fixate_jax.lab.experiments.cells import Cell, opened_with
from fixate_jax.lab.settings import load_config
from fixate_jax.lab.studies import ablation, matrix, sweep
from fixate_jax.lab.studies.matrix import REFERENCE, Variant, changed
from tests.studies.small import preset, study

CONFIGS = Path(__file__).parents[2] / "configs"
PARTS = {"random_prompt", "no_personalisation", "private_prompts", "no_alignment", "no_next_token"}
CONTROLS = {"mean_gaze", "other_session"}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """The small preset; its data are drawn once."""
    return preset(tmp_path_factory.mktemp("small"))


def names(config: RunConfig) -> set[str]:
    return {variant.name for variant in ablation.variants_of(config)}


def with_loss(config: RunConfig, alignment: str, gamma: float = 2.0) -> RunConfig:
    return replace(config, objective=ObjectiveConfig(alignment=alignment, gamma=gamma, warmup=0))  # type: ignore[arg-type]


def test_a_variant_that_would_be_the_preset_is_left_out(config: RunConfig) -> None:
    parts = PARTS | CONTROLS | {REFERENCE}
    assert names(with_loss(config, "kl")) == parts | {"weighted_kl", "coarse_kl", "i_divergence"}
    # Its plain form is the one without weights.
    assert names(with_loss(config, "weighted_kl")) == parts | {"no_weights", "coarse_kl", "i_divergence"}
    assert names(with_loss(config, "i_divergence")) == parts | {"no_weights", "kl", "weighted_kl", "coarse_kl"}
    without = names(with_loss(config, "i_divergence", gamma=0.0))
    assert without == parts | {"kl", "coarse_kl"}, "with γ = 0 the weighted KL is the plain one"
    assert "coarse_kl" in names(with_loss(config, "kl", gamma=0.0))
    assert "weighted_kl" not in names(with_loss(config, "kl", gamma=0.0))


def test_what_the_preset_lacks_is_not_left_out_again(config: RunConfig) -> None:
    shared = replace(config, prompt=replace(config.prompt, personal=False))
    assert "no_personalisation" not in names(shared)
    without = replace(config, objective=ObjectiveConfig(alignment="kl", attention_weight=0.0, warmup=0))
    # Where L_attn is off it makes no difference which it would be.
    assert names(without) == PARTS - {"no_alignment"} | {REFERENCE}
    assert "no_next_token" not in names(replace(config, objective=replace(config.objective, ntp_weight=0.0)))


def test_every_variant_changes_one_thing(config: RunConfig, tmp_path: Path) -> None:
    made = replace(study(tmp_path, tmp_path / "out", ablation.variants_of(config)), base=config)
    settings = {v.name: made.cells(v)[0].config for v in made.variants}
    assert len({repr(config) for config in settings.values()}) == len(settings)
    still = settings["random_prompt"]
    assert (still.optimizer.basis_lr, still.optimizer.user_lr, still.train.epochs) == (0, 0, 1)
    assert not settings["no_personalisation"].prompt.personal
    assert settings["no_alignment"].objective.alignment == "none"
    assert settings["no_next_token"].objective.ntp_weight == 0
    opened = {name: opened_with(settings[name]) for name in (*CONTROLS, REFERENCE, "no_alignment")}
    assert len(set(map(repr, opened.values()))) == 3, "what training sessions are aligned with is part of a workspace"
    assert opened["no_alignment"] == opened[REFERENCE]
    alone = settings["private_prompts"]
    # Of 8 training sessions each: two passes of two steps of 4, with a validation after each pass.
    assert alone.users.mode == "private" and alone.users.steps == 4
    assert alone.users.validate_every == 2 and alone.train.max_lengths == 1
    assert {cell.alone for cell in made.cells(made.variants[0])} == {False}


def test_the_cursor_is_tuned_to_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """And then every variant has the sessions with both signals, and is measured against the eyes."""
    config = load_config(CONFIGS / "demo.yaml")
    config = replace(config, data=replace(config.data, max_users=2))
    monkeypatch.setattr(ablation, "has_cursor", lambda config: True)
    base = ablation.with_cursor(config)
    assert base.data.common_sessions
    cursor = {v.name: v for v in ablation.variants_of(base)}["cursor"]
    made = study(Path("unused"), Path("unused"), (Variant(name=REFERENCE), cursor))
    made = replace(made, base=base)
    (own, *_), (other, *_) = (made.cells(v) for v in made.variants)
    assert (own.config.data.signal, own.also) == ("fixation", ())
    assert (other.config.data.signal, other.also) == ("cursor", ("fixation",))


def test_no_cursor_where_there_is_none(config: RunConfig) -> None:
    assert "cursor" not in names(config) and ablation.with_cursor(config) == config


def test_variants_are_chosen_by_name(config: RunConfig) -> None:
    every = ablation.variants_of(config)
    assert [v.name for v in ablation.chosen(every, ("no_next_token",))] == [REFERENCE, "no_next_token"]
    with pytest.raises(ConfigError, match="--variants nope: choose among preset, random_prompt"):
        ablation.chosen(every, ("nope",))


def test_axes_are_read_as_yaml(tmp_path: Path) -> None:
    axes = sweep.parse_axes(["optimizer.user_lr=1e-3,0.1", "data.train_sessions=1,null", "prompt.personal=true,false"])
    lists = sweep.parse_axes(["operator.layer_weights=[0.5, 0.5],[1, 0]"])
    assert lists["operator.layer_weights"] == ([0.5, 0.5], [1, 0])
    assert axes["optimizer.user_lr"] == (1e-3, 0.1) and axes["data.train_sessions"] == (1, None)
    assert axes["prompt.personal"] == (True, False)


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ([], "--over: name at least one setting"),
        (["objective.gamma"], "--over objective.gamma: give a setting and its values"),
        (["objective.gamma="], "give a setting and its values"),
        (["a.b=1", "a.b=2"], "--over a.b: given twice"),
        (["a.b=1,2,"], "--over a.b=1,2,: its values cannot be read"),
        (["a.b=1,,2"], "--over a.b=1,,2: its values cannot be read"),
        (["a.b=[1,2"], "its values cannot be read"),
    ],
)
def test_bad_axes_are_named(over: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sweep.parse_axes(over)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"objective.gama": (1,)}, r"--over: objective.gama: no such setting; did you mean 'gamma'"),
        ({"gamma": (1,)}, "--over: 'gamma' is no setting; name one as in objective.gamma"),
        ({"nothing.gamma": (1,)}, "--over: 'nothing.gamma' is no setting"),
        ({"data.split_seed": (1,)}, "--over data.split_seed: give the splits with --splits"),
        ({"data.gaze_temperature": (1.0,)}, "gaze of different temperatures would be measured against"),
        ({"prompt.basis": (0,)}, "prompt.basis = 0: at least 1 is needed"),
        ({"prompt.basis": ("two",)}, "--over: prompt.basis = 'two': should be a valid integer"),
    ],
)
def test_bad_values_are_named(axes: sweep.Axes, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sweep.variants_of(RunConfig(), axes)


def test_designs() -> None:
    axes = {"prompt.basis": (4, 8), "prompt.tokens": (8, 16, 32)}
    each = sweep.variants_of(RunConfig(), axes)
    # 8 and 16 are the preset's own.
    assert [v.name for v in each] == [REFERENCE, "basis=4", "tokens=8", "tokens=32"]
    assert [v.axis for v in each] == ["", "prompt.basis", "prompt.tokens", "prompt.tokens"]
    grid = sweep.variants_of(RunConfig(), axes, design="grid")
    assert len(grid) == 6 and grid[1].changes == {"prompt.basis": 4, "prompt.tokens": 8}
    some = [sweep.variants_of(RunConfig(), axes, design="random", draws=3, seed=s) for s in (0, 0, 1)]
    assert some[0] == some[1] != some[2] and set(v.name for v in some[0]) <= set(v.name for v in grid)
    with pytest.raises(ConfigError, match="--draws 7: there are only 6 combinations"):
        sweep.variants_of(RunConfig(), axes, design="random", draws=7)
    with pytest.raises(ConfigError, match="--draws 0, --draw-seed 0: at least one draw"):
        sweep.variants_of(RunConfig(), axes, design="random", draws=0)


def test_changed_settings_are_checked() -> None:
    assert changed(RunConfig(), {"data.train_sessions": 4}, source="x").data.train_sessions == 4
    with pytest.raises(ConfigError, match=r"x: objective\.gamma = -1"):
        changed(RunConfig(), {"objective.gamma": -1}, source="x")


def test_the_preset_alone_is_no_study(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to compare the preset with"):
        study(tmp_path, tmp_path, (Variant(name=REFERENCE),))


def test_another_split_of_made_up_data_has_other_people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(cells: list[Cell], *, signal: str) -> pd.DataFrame:
        keys = {"session_id": "s", "split": "test", "method": "FixATE", "mode": "FR", "seed": 1}
        kl = float(cells[0].config.data.split_seed)
        return pd.DataFrame([keys | {"user_id": "u", "kl": kl, "csh@1": 0, "log_loss": 1, "accuracy": 0}])

    monkeypatch.setattr(matrix, "read_cells", read)
    made = replace(study(tmp_path, tmp_path), splits=(3, 4))
    means, _ = made.measures(made.variants[0])
    assert dict(zip(means["user_id"], means["kl"], strict=True)) == {"3:u": 3.0, "4:u": 4.0}
    real = replace(made, base=replace(made.base, data=replace(made.base.data, name="human_choice", path=tmp_path)))
    assert set(real.measures(real.variants[0])[0]["user_id"]) == {"u"}


def test_two_variants_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a: there are two variants"):
        study(tmp_path, tmp_path, (Variant(name="a"), Variant(name="a")))
