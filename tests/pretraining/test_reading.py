"""What a backbone can read and where operators point: the tables, and the questions put to a model that cannot read."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from fixate_jax.backbones import Backbone
from fixate_jax.backbones.tiny.random import random_tensors
from fixate_jax.lab.pretraining import reading
from fixate_jax.lab.pretraining.packing import PackedBatch
from fixate_jax.lab.pretraining.recipe import sizes_of
from fixate_jax.lab.pretraining.tasks import KINDS
from tests.pretraining.small import RECIPE, packer_of, random_backbone

NAMES = [
    f"{operator}, {layers}"
    for operator in ("attention", "attn_lrp abs", "attn_lrp signed")
    for layers in ("layer 1", "layer 2", "all layers")
]
PAGES = 6


def row(page: str, kind: str, hit: bool, chance: float, slots: float = np.nan, **pointing: tuple) -> dict:
    found: dict = {"page": page, "kind": kind, "hit": hit, "chance": chance, "slots": slots}
    for layers, (top, share) in pointing.items():
        found |= {
            f"top attention, {layers.replace('_', ' ')}": top,
            f"share attention, {layers.replace('_', ' ')}": share,
        }
    return found


@pytest.fixture
def asked() -> pd.DataFrame:
    return pd.DataFrame(
        [
            row("gambles", "find chance", True, 1 / 3, 3, layer_1=(True, 0.5), all_layers=(False, 0.1)),
            row("gambles", "find chance", False, 2 / 3, 3, layer_1=(True, 0.7), all_layers=(False, 0.1)),
            row("gambles", "find amount", True, 1 / 3, 3, layer_1=(False, 0.3), all_layers=(False, 0.4)),
            row("gambles", "compare", True, 1 / 3, 3, layer_1=(False, 0.0), all_layers=(True, 1.0)),
            row("gambles", "choice", False, 1 / 3, 3, layer_1=(True, 0.8), all_layers=(True, 0.6)),
            row("gambles", "read chance", True, np.nan),
            row("carousels", "find genre", True, 0.2, 10, layer_1=(True, 0.9), all_layers=(True, 0.2)),
            row("carousels", "gaze", False, 0.25, 4, layer_1=(False, 0.1), all_layers=(True, 0.3)),
        ]
    )


def test_read_outs_are_shares_of_right_answers_beside_guessing(asked: pd.DataFrame) -> None:
    table = reading.read_outs(asked).set_index(["page", "kind"])
    assert list(table.columns) == ["questions", "accuracy", "chance"] and len(table) == 7
    assert list(table.loc[("gambles", "find chance")]) == pytest.approx([2, 0.5, 0.5])
    assert list(table.loc[("carousels", "gaze")]) == pytest.approx([1, 0, 0.25])
    read = table.loc[("gambles", "read chance")]
    assert read["accuracy"] == 1 and np.isnan(read["chance"]), "numbers are not guessed"


def test_the_pointing_game_counts_top_slots_by_page_operator_and_layers(asked: pd.DataFrame) -> None:
    table = reading.pointing_game(asked).set_index(["page", "operator", "layers"])
    assert len(table) == 4
    first, everything = (
        table.loc[("gambles", "attention", "layer 1")],
        table.loc[("gambles", "attention", "all layers")],
    )
    assert first["chance"] == everything["chance"] == pytest.approx(1 / 3)
    assert first["find: top"] == pytest.approx(2 / 3) and first["find: share"] == pytest.approx(0.5)
    assert first["choice: top"] == 1 and first["choice: share"] == pytest.approx(0.8)
    assert everything["find: top"] == 0 and everything["find: share"] == pytest.approx(0.2)
    carousel = table.loc[("carousels", "attention", "all layers")]
    assert carousel["chance"] == pytest.approx((1 / 10 + 1 / 4) / 2)
    assert carousel["find: top"] == 1 and np.isnan(carousel["choice: top"]), "no choice was asked there"


@pytest.fixture(scope="module")
def babbling(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """A model of random weights that says hardly anything but A, B and C: their embeddings are large."""
    tensors = random_tensors(sizes_of(RECIPE), seed=1)
    directory = tmp_path_factory.mktemp("model")
    tokenizer = random_backbone(directory / "plain").encoder.tokenizer
    letters = [tokenizer(letter, add_special_tokens=False)["input_ids"][0] for letter in "ABC"]
    tensors["model.language_model.embed_tokens.weight"][letters] *= 30
    return random_backbone(directory / "babbling", tensors=tensors)


@pytest.fixture(scope="module")
def examined(babbling: Backbone) -> pd.DataFrame:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "BATCH", 4)
        return reading.examine(babbling, pages=PAGES, seed=9, page_width=RECIPE.page_width, seq=RECIPE.seq)


def test_a_model_that_cannot_read_is_right_by_chance(examined: pd.DataFrame) -> None:
    table = reading.read_outs(examined)
    print(f"\n{table}")
    gambles = examined[(examined["page"] == "gambles") & (examined["slots"] == 3)]
    assert gambles["chance"].between(1 / 3, 1).all()
    assert gambles["hit"].mean() == pytest.approx(gambles["chance"].mean(), abs=0.25)
    assert 0 < gambles["hit"].mean() < 1
    assert (examined.loc[examined["chance"].isna(), "hit"] == False).all()  # noqa: E712


def test_a_hit_is_a_best_answer_to_its_last_token(babbling: Backbone, examined: pd.DataFrame) -> None:
    """The first batch of gambles, its answers read off the logits one by one."""
    rng = np.random.default_rng([9, 0, 0])
    pages = [KINDS["gambles"](rng, width=RECIPE.page_width) for _ in range(4)]
    batch = packer_of(RECIPE, babbling)(pages)

    @jax.jit
    def most_probable(params: Any, batch: PackedBatch) -> jax.Array:
        model = babbling.merge(params)
        inputs = batch.inputs._replace(features=model.encode_pages(batch.pages))
        prefix = model.prefill(inputs, jnp.zeros((len(pages), 0, babbling.width)), False)
        return model.tail(prefix).logits.argmax(-1)

    said, tokenizer = np.asarray(most_probable(babbling.params, batch)), babbling.encoder.tokenizer
    hits = []
    for i, page in enumerate(pages):
        for b, question in enumerate(page.questions):
            inner = batch.next_mask[i, b]
            best = [a for a, w in zip(question.answers, question.weights, strict=True) if w >= max(question.weights)]
            best = best or [question.drill[-1][1]]
            last = {tokenizer(answer, add_special_tokens=False)["input_ids"][-1] for answer in best}
            hits.append(said[i, b, -1] in last and (said[i, b, inner] == batch.next_ids[i, b, inner]).all())
    assert list(examined.loc[examined["page"] == "gambles", "hit"][: len(hits)]) == hits
    assert 0 < sum(hits) < len(hits)


def test_every_question_is_examined_by_every_operator_on_every_layer(examined: pd.DataFrame) -> None:
    assert list(reading.pointing_operators(2)) == NAMES
    first = reading.pointing_operators(2)["attn_lrp abs, layer 1"]
    assert (first.name, first.normalise, first.layer_weights) == ("attn_lrp", "abs", (1.0, 0.0))
    assert set(examined.columns) == {
        *("page", "kind", "hit", "chance", "slots"),
        *(f"{what} {name}" for what in ("top", "share") for name in NAMES),
    }
    assert list(examined.groupby("page").size()[list(KINDS)]) == [8 * PAGES, 8 * PAGES]
    pointed = examined["kind"].str.split().str[0].isin(("find", "compare", "choice", "gaze"))
    assert examined["slots"].notna().equals(pointed)
    for name in NAMES:
        share, top = examined.loc[pointed, f"share {name}"], examined.loc[pointed, f"top {name}"].astype(bool)
        assert share.between(0, 1).all()
        assert examined.loc[~pointed, f"share {name}"].isna().all()
        if name.startswith("attention"):
            assert (share[top] >= 0.99 / examined.loc[pointed, "slots"][top]).all()
            assert (share[~top] <= 0.5).all()
    assert not np.allclose(examined.loc[pointed, f"share {NAMES[0]}"], examined.loc[pointed, f"share {NAMES[1]}"])
    table = reading.pointing_game(examined)
    assert len(table) == 2 * len(NAMES) and (table["operator"] + ", " + table["layers"]).isin(NAMES).all()
