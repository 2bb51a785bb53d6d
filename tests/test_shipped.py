"""The backbones that come with the library: small, documented, and they read what their cards say."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from flax import nnx

from fixate_jax.backbones import Backbone, load_backbone
from fixate_jax.backbones.loading import SHIPPED
from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.lab.pretraining import reading
from fixate_jax.lab.pretraining.card import POINTING_FILE, READING_FILE, read_details
from fixate_jax.lab.pretraining.recipe import Recipe
from fixate_jax.lab.settings import load_settings

CONFIGS = Path(__file__).parents[1] / "configs"
RECIPES = {"tiny-qwen3-vl": "pretrain_tiny.yaml", "tiny-internvl": "pretrain_tiny_internvl.yaml"}
PAGES = 48
SEED = 20_260_722
"""Neither the recipe's nor the card's."""


@pytest.fixture(scope="module", params=RECIPES)
def model(request: pytest.FixtureRequest) -> Path:
    directory = SHIPPED / request.param
    if not directory.is_dir():
        pytest.skip(f"no weights are in this copy ({directory} is no folder)")
    return directory


@pytest.fixture(scope="module")
def backbone(model: Path) -> Backbone:
    layers = json.loads((model / "config.json").read_text(encoding="utf-8"))["text_config"]["num_hidden_layers"]
    return load_backbone(BackboneConfig(path=model.name, tapped_layers=layers))


@pytest.fixture(scope="module")
def pointing(model: Path) -> pd.DataFrame:
    """The card's table, to know which operator and layer to look at: all of them take a minute to compile."""
    table = pd.read_csv(model / POINTING_FILE)
    return table.loc[table.groupby("page")["find: top"].idxmax()]


@pytest.fixture(scope="module")
def examined(backbone: Backbone, pointing: pd.DataFrame) -> pd.DataFrame:
    """Answers and slot attention on pages that neither training nor card have seen."""
    best = set(pointing["operator"] + ", " + pointing["layers"])
    operators = reading.pointing_operators(backbone.config.decoder.layers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "pointing_operators", lambda _: {name: operators[name] for name in best})
        return reading.examine(backbone, pages=PAGES, seed=SEED)


def test_it_is_small_and_says_how_it_was_made(model: Path, backbone: Backbone) -> None:
    files = [path for path in model.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 5e6
    names = {path.name for path in files}
    assert {"README.md", "recipe.json", READING_FILE, POINTING_FILE, "curves.png", "model.safetensors"} <= names
    details, recipe = read_details(model), load_settings(CONFIGS / RECIPES[model.name], Recipe)
    assert Recipe(**details["recipe"]) == recipe
    assert set(details["fingerprints"]) == {str(recipe.steps), str(recipe.early)}
    card = (model / "README.md").read_text(encoding="utf-8")
    parameters = sum(int(np.prod(leaf[...].shape)) for _, leaf in nnx.to_flat_state(backbone.params))
    assert f"{parameters:,} parameters" in card and f"{recipe.steps:,} steps" in card
    assert f"fixate pretrain-tiny configs/{RECIPES[model.name]}" in card
    assert "license: apache-2.0" in card


def test_its_vision_tower_does_not_attend(backbone: Backbone) -> None:
    projections = 0
    for path, leaf in nnx.to_flat_state(backbone.params):
        name = ".".join(map(str, path))
        if name.startswith(("vision.stacks.", "vision.layers.")) and ".proj." in name:
            assert not np.asarray(leaf[...]).any(), name
            projections += 1
        elif name.endswith("kernel"):
            assert np.asarray(leaf[...]).any(), name
    assert projections >= 2


@pytest.mark.parametrize("kind", ["read chance", "read amount", "find genre"])
def test_it_reads(examined: pd.DataFrame, kind: str) -> None:
    hits = examined.loc[examined["kind"] == kind, "hit"]
    print(f"\n{kind}: {hits.mean():.3f} of {len(hits)}")
    assert len(hits) > PAGES / 3
    assert hits.mean() >= 0.95


@pytest.mark.parametrize("page", ["gambles", "carousels"])
def test_the_best_operator_points_at_what_it_finds(examined: pd.DataFrame, pointing: pd.DataFrame, page: str) -> None:
    table, best = reading.pointing_game(examined), pointing.set_index("page").loc[page]
    chosen = (table["operator"] == best["operator"]) & (table["layers"] == best["layers"])
    (found,) = table.loc[chosen & (table["page"] == page), "find: top"]
    print(f"\n{page}: {best['operator']}, {best['layers']} points there in {found:.2f} (card: {best['find: top']:.2f})")
    assert found >= 0.6
