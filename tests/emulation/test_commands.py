"""`fixate emulate` and `fixate export` from files to files, and newcomers."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fixate_jax.backbones import load_backbone
from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.data.registry import open_or_prepare
from fixate_jax.emulation import pages_of_sessions
from fixate_jax.emulation.emulator import BACKBONE
from fixate_jax.errors import ConfigError
from fixate_jax.lab.bundles.bundle import write_bundle
from fixate_jax.lab.bundles.card import Origin
from fixate_jax.lab.bundles.few_shot import learn_users
from fixate_jax.lab.bundles.opening import open_emulator
from fixate_jax.lab.bundles.settings import emulator_of, settings_of
from fixate_jax.lab.cli import commands as cli
from fixate_jax.lab.cli.emulate import picture_names
from fixate_jax.lab.config import OperatorConfig, PromptConfig, RunConfig, TrainConfig, UsersConfig
from fixate_jax.pipeline.pages import SlotWarning
from fixate_jax.prompts import PromptParams
from tests.tuning import test_users
from tests.worlds import USERS

NARROW = ("--page-width", "192")
"""The same in all tests, so that they share what is compiled."""


def random_prompt(shape: tuple[int, int, int], *, users: int) -> PromptParams:
    """Basis and coefficients of the size of real embeddings."""
    rng = np.random.default_rng(0)
    arrays = (np.float32(0.5 * rng.normal(size=size)) for size in (shape, (users, shape[0])))
    return PromptParams(*map(jax.device_put, arrays))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("emulate")
    config = RunConfig(
        backbone=BackboneConfig(tapped_layers=2, attention_block=32),
        prompt=PromptConfig(basis=3, tokens=4),
        operator=OperatorConfig(name="attention"),
        train=TrainConfig(eval_batch=4),
    )
    backbone = load_backbone(config.backbone, work=folder)
    prompt = random_prompt((3, 4, backbone.width), users=len(USERS))
    emulator = emulator_of(config, backbone, prompt, USERS)
    return write_bundle(emulator, folder / "bundle", Origin(data="noise", seed=0))


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    rows = ["page,x0,y0,x1,y1,item"]
    for name in ("one.png", "two.png", "three.png"):
        Image.fromarray(np.random.default_rng(len(name)).integers(0, 255, (200, 320, 3), np.uint8)).save(folder / name)
        rows += [f"{name},{x},20,{x + 140},180,item {x}" for x in (10, 160)]
    (folder / "slots.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        cli.main(list(arguments))
    assert isinstance(left.value.code, int)
    return left.value.code


def test_screenshots_become_a_table_of_clicks(
    bundle: Path, pages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, drawn = tmp_path / "clicks.parquet", tmp_path / "drawn"
    wanted = (*NARROW, "--users", "u2", "backbone", "--click-seed", "5", "--heat-maps", str(drawn))
    assert run("emulate", str(bundle), str(pages), "--out", str(out), *wanted) == 0
    table = pd.read_parquet(out)
    assert len(table) == 2 * 3 * 2
    assert list(dict.fromkeys(table["user_id"])) == ["u2", BACKBONE]
    assert set(table["item"]) == {"item 10", "item 160"} and set(table["label"]) == {"A", "B"}
    assert table.groupby(["user_id", "page_id"])["click"].sum().eq(1).all()
    assert {path.name for path in drawn.iterdir()} >= {"u2_one.png", "backbone_three.png"}
    assert Image.open(drawn / "u2_one.png").size > (100, 25)
    assert "12 rows" in capsys.readouterr().out

    again = tmp_path / "again.csv"
    assert run("emulate", str(bundle), str(pages), "--out", str(again), *wanted[:7]) == 0
    assert (pd.read_csv(again)["click"] == table["click"]).all()


def test_pictures_do_not_overwrite_each_other() -> None:
    visits = [("a b", "home.png"), ("a-b", "home.png"), ("a-b", "home.jpg"), ("c", "mobile/home.png")]
    assert picture_names(visits) == ["a-b_home", "a-b_home-2", "a-b_home-3", "c_home"]


def test_slots_without_a_token_are_told(bundle: Path, tmp_path: Path) -> None:
    """They count with `area`."""
    Image.new("RGB", (320, 200), "white").save(tmp_path / "one.png")
    (tmp_path / "slots.csv").write_text("page,x0,y0,x1,y1\none.png,10,10,14,14\none.png,100,20,300,180\n")
    with pytest.warns(SlotWarning, match="1 of 2 slots hold no token's centre"):
        assert run("emulate", str(bundle), str(tmp_path), "--out", str(tmp_path / "a.csv"), *NARROW) == 0
    area = ("--assignment", "area")
    assert run("emulate", str(bundle), str(tmp_path), "--out", str(tmp_path / "b.csv"), *NARROW, *area) == 0
    centre, fair = (pd.read_csv(tmp_path / name).query("label == 'A'")["attention"] for name in ("a.csv", "b.csv"))
    assert (centre == 0).all() and (fair > 0).all()


def test_bad_wishes_end_before_any_work(
    bundle: Path, pages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, message in (
        ((str(bundle), str(pages), "--out", "x.xlsx"), "must end in .parquet or .csv"),
        ((str(bundle), str(pages), "--temperature", "1e-300"), "must be at least 0.001"),
        ((str(bundle), str(pages), "--temperature", "inf"), "--temperature inf: must be at least 0.001, and finite"),
        ((str(bundle), str(pages), "--page-width", "0"), "--page-width 0: at least 64 pixels"),
        ((str(bundle), str(tmp_path)), "neither is there"),
        ((str(bundle), str(pages), "--users", "nobody"), "nobody: not tuned here"),
        ((str(tmp_path), str(pages)), "give the directory of a run or a bundle"),
    ):
        assert run("emulate", *arguments) == 2
        assert message in " ".join(capsys.readouterr().err.split())


def test_newcomers_join_and_nobody_else_moves(tmp_path: Path) -> None:
    config = test_users.settings(tmp_path / "store")
    config = replace(
        config,
        data=replace(config.data, max_users=3),
        users=UsersConfig(steps=3, validate_every=3, chunk=2),
    )
    store = open_or_prepare(config.data)
    backbone = load_backbone(config.backbone, work=tmp_path)
    prompt = random_prompt((config.prompt.basis, config.prompt.tokens, backbone.width), users=1)
    known = emulator_of(config, backbone, prompt, (store.users[0],))
    grown = learn_users(known, store, sessions=2, users=store.users[1:3])
    assert grown.users == store.users[:3]
    np.testing.assert_array_equal(np.asarray(grown.prompt.coefficients)[:1], prompt.coefficients)
    assert np.abs(np.diff(np.asarray(grown.prompt.coefficients)[1:], axis=0)).max() > 1e-4
    page = pages_of_sessions(store, store.sessions[:1])
    both = [emulator.visit_all(page, [store.users[0]]).log_probs for emulator in (known, grown)]
    np.testing.assert_allclose(both[0], both[1], atol=1e-5)
    with pytest.raises(ConfigError, match="emulated already"):
        learn_users(grown, store, users=store.users[2:3])
    everybody = PromptParams(prompt.basis, jnp.zeros((len(store.users), config.prompt.basis)))
    with pytest.raises(ConfigError, match="nobody in the store is new"):
        learn_users(known.with_prompt(everybody, store.users), store)


def test_the_users_that_come_with_the_library_follow_their_people() -> None:
    emulator = open_emulator("demo-users")
    assert len(emulator.users) == 12 and settings_of(emulator).data.name == "synthetic_carousel"
