"""A pretraining run: the same bits every time, stopped or not, and a model directory at the end."""

import json
import os
import shutil
import signal
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from flax import nnx

from fixate_jax.backbones import Backbone, load_backbone
from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.backbones.tiny.random import random_tensors, tokenizer_of
from fixate_jax.errors import ConfigError
from fixate_jax.lab.cli import commands as cli
from fixate_jax.lab.config import OperatorConfig
from fixate_jax.lab.experiments.log import MetricsLog
from fixate_jax.lab.experiments.loop import Interrupted
from fixate_jax.lab.pretraining import reading, training
from fixate_jax.lab.pretraining.card import read_details
from fixate_jax.lab.pretraining.personas import LEVELS, TRAITS
from fixate_jax.lab.pretraining.recipe import Recipe, sizes_of
from fixate_jax.lab.pretraining.tasks import KINDS
from fixate_jax.lab.pretraining.training import Pretraining, first_tensors, local_graph, make_optimizer
from fixate_jax.lab.settings import load_settings
from tests.pretraining.small import RECIPE, SHIPPED_RECIPE, random_backbone


def leaves(params: Any) -> dict[str, np.ndarray]:
    """Weights by name, such as ``decoder.upper.q_proj.kernel``."""
    flat = nnx.to_flat_state(params)
    return {".".join(map(str, path)): np.asarray(leaf[...]) for path, leaf in flat}


class Run(Pretraining):
    """One compilation does for all runs of a recipe: arrays are tied to the device from the start, as after a restart.

    The step that is shared is the first run's.
    """

    updates: ClassVar[dict[str, Any]] = {}

    def __init__(self, recipe: Recipe, directory: Path):
        super().__init__(recipe, directory)
        self.state = jax.device_put(self.state, jax.devices()[0])
        self._update = self.updates.setdefault(repr(recipe), self._update)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Pretraining:
    """A run from start to end."""
    run = Run(RECIPE, tmp_path_factory.mktemp("whole") / "run")
    assert run.run() == run.fingerprints["4"]
    return run


def start(run: Pretraining) -> Backbone:
    """The model of step 0; the run itself has given its arrays away."""
    return load_backbone(run.backbone.settings)


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(asdict(RECIPE)), encoding="utf-8")
    return path


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        cli.main(list(arguments))
    assert isinstance(left.value.code, int)
    return left.value.code


def test_weights_move_but_for_the_projection_of_the_vision_towers_attention(whole: Pretraining) -> None:
    before, after = leaves(start(whole).params), leaves(whole.state.params)
    # Nothing comes out of that attention, so nothing is learned for what goes into it; decay alone moves the matrices.
    idle = {"qkv.bias", "attention_norm.scale", "attention_norm.bias", "proj.kernel", "proj.bias"}
    for name, value in after.items():
        same = np.array_equal(value, before[name])
        assert same == (name.startswith("vision.stacks") and any(name.endswith(i) for i in idle)), name
        if ".proj." in name:
            assert not value.any(), name
    assert sum(".proj." in name for name in after) == 4


def test_fingerprints_are_noted_early_and_at_the_end(whole: Pretraining) -> None:
    assert RECIPE.early == 1 and SHIPPED_RECIPE.early == SHIPPED_RECIPE.steps // 20
    assert set(whole.fingerprints) == {"1", "4"}
    assert len(set(whole.fingerprints.values())) == 2
    log = pd.read_json(whole.directory / "metrics.jsonl", lines=True)
    assert list(log["step"]) == [1, 2, 3, 4]
    assert np.isfinite(log.to_numpy()).all()


def test_stopped_killed_and_gone_on_is_bit_identical(
    whole: Pretraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = MetricsLog.add

    def interrupting(self: MetricsLog, row: Any) -> None:
        add(self, row)
        if row["step"] == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "add", interrupting)
        with pytest.raises(Interrupted, match="SIGTERM: saved after step 3; the same command goes on"):
            Run(RECIPE, tmp_path).run()
    checkpoints = tmp_path / "checkpoints"
    assert sorted(p.name for p in checkpoints.iterdir()) == ["step_00000002", "step_00000003"]
    # As if it had been killed before the newest checkpoint, with a step in the log that will be taken again.
    shutil.rmtree(checkpoints / "step_00000003")
    again = Run(RECIPE, tmp_path)
    assert again.step == 2
    assert again.run() == whole.fingerprints["4"]
    assert again.fingerprints == whole.fingerprints
    assert (tmp_path / "metrics.jsonl").read_bytes() == (whole.directory / "metrics.jsonl").read_bytes()
    for name, value in leaves(again.state.params).items():
        np.testing.assert_array_equal(value, leaves(whole.state.params)[name], err_msg=name)


def test_the_command_gives_the_same_weights_and_says_so(
    whole: Pretraining,
    recipe_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(training, "Pretraining", Run)
    run = tmp_path / "run"
    assert call("pretrain-tiny", str(recipe_file), "--run", str(run), "--until", "1") == 0
    assert f"weights after step 1: sha256 {whole.fingerprints['1']}" in capsys.readouterr().out
    assert not (run / "model").exists()
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["step_00000001"]


def test_the_finished_run_is_published(
    whole: Pretraining, recipe_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command, given to the end of a run, examines the model and writes it with its card."""
    examine = reading.examine
    monkeypatch.setattr(reading, "BATCH", 2)
    monkeypatch.setattr(
        reading, "pointing_operators", lambda _: {"attention, all layers": OperatorConfig(name="attention")}
    )

    def examined(backbone: Backbone, *, pages: int, page_width: int, seq: int) -> pd.DataFrame:
        assert (pages, page_width, seq) == (256, RECIPE.page_width, RECIPE.seq)
        return examine(backbone, pages=2, page_width=page_width, seq=seq)

    monkeypatch.setattr(reading, "examine", examined)
    command = ("pretrain-tiny", str(recipe_file), "--run", str(whole.directory))
    assert call(*command) == 0
    assert f"weights after step 4: sha256 {whole.fingerprints['4']}" in capsys.readouterr().out
    model = whole.directory / "model"
    card = (model / "README.md").read_text(encoding="utf-8")
    details = read_details(model)
    assert details["recipe"] == asdict(RECIPE) and details["fingerprints"] == whole.fingerprints
    assert set(details["versions"]) >= {"jax", "numpy", "fixate-jax", "device"}
    read, pointing = (pd.read_csv(model / name) for name in ("reading.csv", "pointing.csv"))
    for table in (read, pointing):
        assert set(table["page"]) == {"gambles", "carousels"}
    assert all(kind in card for kind in read["kind"]) and all(name in card for name in pointing["operator"])
    assert "4 steps of 2 drawn pages" in card and "after 1 steps" in card
    parameters = sum(value.size for value in leaves(whole.state.params).values())
    assert f"{parameters:,} parameters" in card
    assert (model / "curves.png").read_bytes()[:4] == b"\x89PNG" and "(curves.png)" in card
    assert load_backbone(BackboneConfig(path=str(model))).config.decoder.layers == RECIPE.layers
    written = {p.name: p.stat().st_mtime_ns for p in model.iterdir()}
    monkeypatch.setattr(reading, "examine", lambda *_, **__: pytest.fail("examined twice"))
    assert call(*command) == 0
    assert {p.name: p.stat().st_mtime_ns for p in model.iterdir()} == written


def test_an_exported_model_has_the_weights_rounded_to_bfloat16(whole: Pretraining, tmp_path: Path) -> None:
    written = whole.export(tmp_path / "model", extra={"note.txt": "hello"})
    loaded = load_backbone(BackboneConfig(path=str(written), tapped_layers=RECIPE.layers))
    assert json.loads((written / "config.json").read_text())["dtype"] == "bfloat16"
    assert (written / "note.txt").read_text() == "hello"
    exact = leaves(whole.state.params)
    assert leaves(loaded.params).keys() == exact.keys()
    rounding = 0.0
    for name, value in leaves(loaded.params).items():
        np.testing.assert_array_equal(value, exact[name].astype(jnp.bfloat16).astype(np.float32), err_msg=name)
        rounding = max(rounding, float(np.abs(value - exact[name]).max()))
    assert rounding > 0


def test_weight_decay_takes_matrices_and_nothing_moves_the_projection(whole: Pretraining) -> None:
    params = start(whole).params
    optimizer = make_optimizer(RECIPE, params)
    step = jax.jit(lambda gradient, params: optimizer.update(gradient, optimizer.init(params), params)[0])
    started = leaves(params)
    for name, value in leaves(step(jax.tree.map(jnp.zeros_like, params), params)).items():
        decays = name.endswith("kernel") and ".proj." not in name
        wanted = -RECIPE.learning_rate * RECIPE.weight_decay * started[name] if decays else 0 * started[name]
        np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=1e-12, err_msg=name)
    for name, value in leaves(step(jax.tree.map(jnp.ones_like, params), params)).items():
        if name.startswith("vision.stacks") and ".proj." in name:
            assert not value.any(), name
        else:
            assert (value < 0).all(), name


def test_the_first_weights_match_queries_to_keys_and_leave_out_the_rest() -> None:
    first, sizes = first_tensors(RECIPE), sizes_of(RECIPE)
    for name, value in first.items():
        if name.endswith("bias") or ".attn.proj." in name:
            assert not value.any(), name
        elif "norm" in name.split(".")[-2]:
            assert (value == 1).all(), name
        else:
            assert value.std() > 0, name
        if name.endswith("q_proj.weight"):
            heads = value.reshape(sizes.kv_heads, sizes.heads // sizes.kv_heads, sizes.head_dim, sizes.width)
            keys = first[name.replace("q_proj", "k_proj")].reshape(sizes.kv_heads, 1, sizes.head_dim, sizes.width)
            assert (heads == keys).all(), name
    plain = first_tensors(replace(RECIPE, matched=False))
    differing = {name for name in first if not np.array_equal(first[name], plain[name])}
    assert differing == {name for name in first if name.endswith("q_proj.weight")}


def test_a_trait_starts_as_what_it_is_about_and_its_level() -> None:
    """Words of one trait lie evenly spaced on a line around the word itself, and the line is the same for all."""
    vocabulary = tokenizer_of(sizes_of(RECIPE)).get_vocab()
    embedding = first_tensors(RECIPE)["model.language_model.embed_tokens.weight"]
    spans = []
    for trait in TRAITS:
        words = np.stack([embedding[vocabulary[f"Ġ{trait}{letter}"]] for letter in LEVELS])
        np.testing.assert_allclose(words.mean(0), embedding[vocabulary[f"Ġ{trait}"]], atol=1e-6)
        np.testing.assert_allclose(np.diff(words, axis=0), np.tile((words[-1] - words[0]) / 6, (6, 1)), atol=1e-6)
        spans.append(words[-1] - words[0])
    np.testing.assert_allclose(spans, np.tile(spans[0], (len(TRAITS), 1)), atol=1e-6)
    assert np.linalg.norm(spans[0]) > 0.1


def features(backbone: Backbone, graph: Any, whole: Pretraining) -> np.ndarray:
    pages = whole.packer([make(np.random.default_rng(0), width=160) for make in KINDS.values()]).pages
    return np.asarray(jax.jit(lambda p, pages: nnx.merge(graph, p).encode_pages(pages))(backbone.params, pages))


def test_attention_of_the_vision_tower_can_be_left_out_where_its_projection_is_zero(
    whole: Pretraining, tmp_path: Path
) -> None:
    tensors = random_tensors(sizes_of(RECIPE), seed=2)
    attending = random_backbone(tmp_path / "attending", tensors=tensors)
    for name, value in tensors.items():
        if ".attn.proj." in name:
            value[...] = 0
    local = random_backbone(tmp_path / "local", tensors=tensors)
    for backbone, same in ((attending, False), (local, True)):
        full, short = (features(backbone, graph, whole) for graph in (backbone.graph, local_graph(backbone)))
        difference = np.linalg.norm(full - short) / np.linalg.norm(full)
        assert (difference < 1e-6) == same
        assert same or difference > 0.01


def test_recipes_are_read_strictly(tmp_path: Path) -> None:
    assert SHIPPED_RECIPE.steps > 1000
    path = tmp_path / "recipe.yaml"
    path.write_text("steps: 7\nlearning_rate: 1e-4\n", encoding="utf-8")
    assert load_settings(path, Recipe) == replace(Recipe(), steps=7, learning_rate=1e-4)
    path.write_text("", encoding="utf-8")
    assert load_settings(path, Recipe) == Recipe()
    for text, wanted in (
        ("stepz: 3", r"recipe\.yaml: stepz: no such setting; did you mean 'steps'\?"),
        ("xyz: {epochs: 3}", r"xyz: no such setting; known here: family, seed, steps"),
        ("steps: 2.5", r"steps = 2\.5"),
        ("batch: many", r"batch = 'many'"),
        ("matched: 1", r"matched = 1"),
        ("looking_layers: 4", r"looking_layers = 4: must lie between 1 and layers - 1 = 3"),
        ("looking_layers: 0", r"looking_layers = 0: must lie between 1 and layers - 1 = 3"),
        ("batch: 1", r"batch = 1: at least 2 are needed, a page of each kind"),
        ("steps: 0", r"steps = 0: at least 1 is needed"),
        ("checkpoint_every: 0", r"checkpoint_every = 0: at least 1 is needed"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match=wanted):
            load_settings(path, Recipe)


def test_a_misspelt_recipe_ends_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")
    Path("recipe.yaml").write_text("learning_rat: 1e-3\n", encoding="utf-8")
    assert call("pretrain-tiny", "recipe.yaml", "--run", "run", "--until", "1") == 2
    assert "recipe.yaml: learning_rat: no such setting; did you mean 'learning_rate'?" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize(("field", "value"), [("seed", RECIPE.seed + 1), ("ff", 40), ("learning_rate", 1e-4)])
def test_a_run_of_another_recipe_is_refused(whole: Pretraining, field: str, value: Any) -> None:
    before = getattr(RECIPE, field)
    with pytest.raises(ConfigError, match=rf"follows another recipe \({field}: {before} there, {value} now\)"):
        Pretraining(replace(RECIPE, **{field: value}), whole.directory)
