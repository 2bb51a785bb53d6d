"""Prompts on their way out and back in: bundles, runs, and what else is in the folder."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save, save_file

from fixate_jax.backbones import load_backbone
from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.emulation import UserEmulator
from fixate_jax.errors import CheckpointError, ConfigError
from fixate_jax.lab.bundles.bundle import load_bundle, write_bundle
from fixate_jax.lab.bundles.card import Origin
from fixate_jax.lab.bundles.opening import open_emulator
from fixate_jax.lab.bundles.settings import emulator_of
from fixate_jax.lab.config import PromptConfig, RunConfig
from fixate_jax.lab.experiments.identity import IdentityWarning
from fixate_jax.lab.settings import config_to_dict, dump_config
from fixate_jax.prompts import PromptParams, init_prompt, private_prompts
from tests.worlds import USERS

CONFIG = RunConfig(backbone=BackboneConfig(tapped_layers=2), prompt=PromptConfig(basis=3, tokens=4))
ORIGIN = Origin(data="made_up", seed=42, licence="CC0-1.0", note="Nobody: all of them are made up.")


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> UserEmulator:
    backbone = load_backbone(CONFIG.backbone, work=tmp_path_factory.mktemp("model"))
    rng = np.random.default_rng(0)
    arrays = (np.float32(0.5 * rng.normal(size=size)) for size in ((3, 4, backbone.width), (len(USERS), 3)))
    return emulator_of(CONFIG, backbone, PromptParams(*map(jax.device_put, arrays)), USERS)


@pytest.fixture
def bundle(emulator: UserEmulator, tmp_path: Path) -> Path:
    return write_bundle(emulator, tmp_path / "bundle", ORIGIN)


def test_a_bundle_brings_the_same_users_back(emulator: UserEmulator, bundle: Path) -> None:
    back = load_bundle(bundle)
    assert back.users == USERS and back.operator == emulator.operator
    assert back.backbone.fingerprint == emulator.backbone.fingerprint
    for there, here in zip(back.prompt, emulator.prompt, strict=True):
        np.testing.assert_array_equal(there, here)


def test_the_file_holds_what_stands_before_the_input(emulator: UserEmulator, bundle: Path) -> None:
    tensors = load_file(bundle / "prompts.safetensors")
    assert {name: x.shape for name, x in tensors.items()} == {
        "prompts": (3, 4, 128),
        "population": (4, 128),
        "basis": (3, 4, 128),
        "coefficients": (3, 3),
    }
    weights = np.exp(tensors["coefficients"])
    weights /= weights.sum(axis=1, keepdims=True)
    mixed = np.einsum("um,mkd->ukd", weights, tensors["basis"])
    np.testing.assert_allclose(tensors["prompts"], mixed, atol=1e-6)
    np.testing.assert_allclose(tensors["population"], mixed.mean(axis=0), atol=1e-6)
    np.testing.assert_array_equal(tensors["prompts"], emulator.soft_prompts[:-1])


def test_the_card_says_whose_and_for_what(bundle: Path) -> None:
    card = (bundle / "README.md").read_text(encoding="utf-8")
    for part in ("3 people on made_up", "tiny-random", "4 soft tokens before", "CC0-1.0", "Nobody:", "personal data"):
        assert part in card
    facts = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    assert facts["users"] == list(USERS) and facts["position"] == "before" and facts["seed"] == 42


def test_nothing_says_where_files_lay(emulator: UserEmulator, tmp_path: Path) -> None:
    secret = tmp_path / "home" / "jane"
    data = replace(CONFIG.data, path=secret / "raw", store=secret / "store")
    config = replace(CONFIG, data=data, cache=replace(CONFIG.cache, directory=secret / "cache"))
    made = write_bundle(replace(emulator, origin=config_to_dict(config)), tmp_path / "b", ORIGIN)
    assert all(b"jane" not in path.read_bytes() for path in made.iterdir())


def test_some_users_leave_nothing_of_the_others(emulator: UserEmulator, tmp_path: Path) -> None:
    own = jax.random.normal(jax.random.key(0), (3, 4, 128))
    private = emulator.with_prompt(private_prompts(own), USERS)
    made = write_bundle(private, tmp_path / "b", ORIGIN, users=["u2"], pseudonyms=True)
    tensors = load_file(made / "prompts.safetensors")
    assert tensors["basis"].shape == (1, 4, 128)
    np.testing.assert_allclose(tensors["prompts"][0], own[2], rtol=1e-6)
    assert load_bundle(made).users == ("user-1",)
    assert all(b"u2" not in (made / name).read_bytes() for name in ("bundle.json", "README.md"))


def test_bad_wishes_are_refused_and_nothing_is_left(emulator: UserEmulator, bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="bundle: exists"):
        write_bundle(emulator, bundle, ORIGIN)
    for users in (["u9"], ["u1", "u1"], []):
        with pytest.raises(ConfigError, match="name at least one, each once; there are u0, u1, u2"):
            write_bundle(emulator, tmp_path / "other", ORIGIN, users=users)
    assert {path.name for path in tmp_path.iterdir()} == {"bundle"}


def test_damage_is_named(bundle: Path, tmp_path: Path) -> None:
    facts = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))

    def damaged(change: str, content: bytes) -> Path:
        copy = tmp_path / f"copy-{change}"
        shutil.copytree(bundle, copy)
        (copy / change).write_bytes(content)
        return copy

    with pytest.raises(CheckpointError, match=r"prompts\.safetensors: differs from its checksum"):
        load_bundle(damaged("prompts.safetensors", b"no tensors"))
    shutil.rmtree(tmp_path / "copy-prompts.safetensors")
    # As bundles were before they had checksums.
    plain = json.dumps({k: v for k, v in facts.items() if k != "checksums"}).encode()

    def unsummed(tensors: bytes) -> Path:
        copy = damaged("prompts.safetensors", tensors)
        (copy / "bundle.json").write_bytes(plain)
        return copy

    with pytest.raises(CheckpointError, match=r"prompts\.safetensors: cannot be read"):
        load_bundle(unsummed(b"no tensors"))
    shutil.rmtree(tmp_path / "copy-prompts.safetensors")
    tensors = load_file(bundle / "prompts.safetensors")
    tensors["coefficients"][0] = np.nan
    with pytest.raises(CheckpointError, match=r"coefficients of user '.*': hold numbers that are not finite"):
        load_bundle(unsummed(save(tensors)))
    with pytest.raises(CheckpointError, match=r"bundle\.json: not valid JSON"):
        load_bundle(damaged("bundle.json", b"{"))
    shutil.rmtree(tmp_path / "copy-bundle.json")
    with pytest.raises(CheckpointError, match="lacks settings"):
        load_bundle(damaged("bundle.json", json.dumps({k: v for k, v in facts.items() if k != "settings"}).encode()))
    shutil.rmtree(tmp_path / "copy-bundle.json")
    with pytest.raises(CheckpointError, match="version 9, this release reads fixate-prompts version 1"):
        load_bundle(damaged("bundle.json", json.dumps(facts | {"version": 9}).encode()))
    shutil.rmtree(tmp_path / "copy-bundle.json")
    with pytest.raises(CheckpointError, match="do not fit 1 users"):
        load_bundle(damaged("bundle.json", json.dumps(facts | {"users": ["a"]}).encode()))
    shutil.rmtree(tmp_path / "copy-bundle.json")
    with pytest.raises(ConfigError, match="tuned for a internvl of width 128"):
        load_bundle(damaged("bundle.json", json.dumps(facts | {"architecture": "internvl"}).encode()))
    shutil.rmtree(tmp_path / "copy-bundle.json")
    other = damaged("bundle.json", json.dumps(facts | {"fingerprint": "0"}).encode())
    with pytest.raises(CheckpointError, match=r"not those that the prompts were tuned for.*--accept-other"):
        load_bundle(other)
    with pytest.warns(IdentityWarning, match="are not those that the prompts were tuned for"):
        load_bundle(other, accept_other_backbone=True)
    with pytest.raises(ConfigError, match=r"nowhere: no such folder; .* demo-users"):
        open_emulator(tmp_path / "nowhere")


def test_a_run_of_tune_users_can_be_opened(emulator: UserEmulator, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "seed-42").mkdir(parents=True)
    (run / "config.yaml").write_text(dump_config(CONFIG), encoding="utf-8")
    start = init_prompt(jax.random.key(1), **CONFIG.prompt.sizes, users=1, width=128)
    kept = {"coefficients": jnp.ones((2, 3)), "basis": start.basis, "start": jnp.zeros(3)}
    arrays = {name: np.asarray(x) for name, x in kept.items()}
    save_file(arrays, run / "seed-42" / "prompts.safetensors", {"users": '["ann", "bob"]'})
    opened = open_emulator(run)
    assert opened.users == ("ann", "bob")
    np.testing.assert_array_equal(opened.prompt.basis, start.basis)
    with pytest.raises(ConfigError, match=r"seed 7: .* has the seeds 42"):
        open_emulator(run, seed=7)
    (run / "seed-42" / "prompts.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="not the prompts of `fixate tune-users`"):
        open_emulator(run)
    with pytest.raises(ConfigError, match="only bundles can be told another place"):
        open_emulator(run, backbone="elsewhere")


def test_private_prompts_are_nobody_elses(emulator: UserEmulator) -> None:
    own = jax.random.normal(jax.random.key(0), (3, 4, 128))
    prompt: PromptParams = private_prompts(own)
    np.testing.assert_allclose(emulator.with_prompt(prompt, USERS).soft_prompts[:-1], own, rtol=1e-6)
