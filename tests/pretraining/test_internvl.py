"""The recipe on the other architecture: the same pages, cut into tiles."""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from fixate_jax.backbones import load_backbone
from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.backbones.tiny.random import random_tensors, write_model
from fixate_jax.lab.pretraining.recipe import sizes_of
from fixate_jax.lab.pretraining.tasks import KINDS
from fixate_jax.lab.pretraining.training import Pretraining, first_tensors
from fixate_jax.probing.slots import assign_slots
from tests.pretraining.small import RECIPE, packer_of

INTERNVL = replace(RECIPE, family="internvl", page_width=320, seq=160, steps=2)


def test_words_and_slots_stand_at_the_tokens_of_their_cells(tmp_path: Path) -> None:
    """The tokens come tile by tile, and what a token shows is known by the place of its cell on the page."""
    sizes = sizes_of(INTERNVL)
    backbone = load_backbone(
        BackboneConfig(path=str(write_model(tmp_path / "m", sizes, random_tensors(sizes, seed=1))))
    )
    packer = packer_of(INTERNVL, backbone)
    assert (packer.visual, packer.units) == (84, 21)
    for kind, (rows, columns) in (("gambles", (8, 10)), ("carousels", (6, 10))):
        example = KINDS[kind](np.random.default_rng(3), width=320)
        batch = packer([example])
        # Tiles of 2 × 2 cells in raster order: cell (r, c) is token 4 · tile + 2 · (r mod 2) + c mod 2.
        tokens = [
            4 * ((r // 2) * (columns // 2) + c // 2) + 2 * (r % 2) + c % 2 for r in range(rows) for c in range(columns)
        ]
        slots = len(example.labels)
        expected = assign_slots(example.boxes, rows, columns)
        np.testing.assert_array_equal(batch.slot_matrix[0][:slots, tokens], expected)
        assert batch.slot_matrix[0].sum() == expected.sum(), "the thumbnail is nobody's place"
        assert not batch.word_weight[0][rows * columns :].any()
        corner = example.marks[0]
        middle = (corner[0][0] + corner[0][2]) / 2 * columns, (corner[0][1] + corner[0][3]) / 2 * rows
        token = tokens[int(middle[1]) * columns + int(middle[0])]
        named = {backbone.encoder.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in corner[1]}
        assert named <= set(batch.word_ids[0][token].tolist())


def test_it_trains_and_leaves_an_ordinary_checkpoint(tmp_path: Path) -> None:
    run = Pretraining(INTERNVL, tmp_path / "run")
    first = jax.device_get(run.state.params)
    run.run()
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), jax.device_get(run.state.params), first)
    for path, value in jax.tree_util.tree_leaves_with_path(moved):
        name = jax.tree_util.keystr(path)
        still = "'vision'" in name and "'proj'" in name
        # Without attention these have no gradient; some decay all the same.
        unused = any(part in name for part in ("'qkv'", "'attention_norm'", "'attention_scale'", "'class_token'"))
        assert unused or (value == 0) == still, name
    exported = run.export(tmp_path / "model")
    loaded = load_backbone(BackboneConfig(path=str(exported), dtype="bfloat16"))
    ours, theirs = (jax.tree.leaves(p) for p in (run.state.params, loaded.params))
    assert sum(x.size for x in ours) == sum(x.size for x in theirs)
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    _, info = transformers.InternVLForConditionalGeneration.from_pretrained(exported, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]


def test_the_first_weights_leave_out_attention_of_the_tower_and_scale_nothing() -> None:
    for name, value in first_tensors(INTERNVL).items():
        if ".attention.projection_layer." in name or name.endswith("bias"):
            assert not value.any(), name
        elif ".lambda_" in name or "norm" in name.split(".")[-2]:
            assert (value == 1).all(), name
        else:
            assert value.std() > 0, name
