"""Looking at pages in memory: what jit, grad and vmap give is what one call after another gives."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageDraw

import fixate_jax as fx
from fixate_jax.backbones import Backbone
from fixate_jax.errors import DataError
from fixate_jax.probing.batches import Batch
from tests import environment
from tests.probing.looking import (
    EACH,
    TOKENS,
    difference,
    one_by_one,
    page,
    prompts,
    side_by_side,
    write_model,
)

ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-5
EVERYTHING = os.environ.get("LOOK_CASES") == "all"
"""Every operator on both architectures, as `make test-operators` wants it."""
FAMILIES = ("qwen3_vl", "internvl")
CASES = [("qwen3_vl", name) for name in ("attn_lrp", "rollout", "glimpse", "lrp")]
"""Operators that share no code with each other; the decoder is the same in both architectures."""
ON_MESH = {"internvl": ["attention"]}
if EVERYTHING:
    CASES = [(family, name) for family in FAMILIES for name in EACH]
    ON_MESH = {family: list(EACH) for family in FAMILIES}


@pytest.fixture(scope="module", params=["qwen3_vl"])
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return fx.load_backbone(write_model(tmp_path_factory.mktemp("model") / "model", request.param), tapped_layers=2)


@pytest.fixture(scope="module")
def batch(backbone: Backbone) -> Batch:
    return fx.encode(backbone, [page(), page(2, seed=1)], prompt_tokens=TOKENS)


@pytest.mark.parametrize(("backbone", "name"), CASES, indirect=["backbone"])
def test_side_by_side_is_one_by_one(backbone: Backbone, batch: Batch, name: str) -> None:
    many, each = (way(backbone, batch, EACH[name]) for way in (side_by_side, one_by_one))
    assert difference(many, each) <= TOLERANCE


@pytest.mark.parametrize("family", ON_MESH)
def test_side_by_side_on_a_mesh_is_one_by_one_on_a_device(tmp_path: Path, family: str) -> None:
    """Weights and pages shared among eight devices."""
    command = [sys.executable, "-m", "tests.probing.looking", str(tmp_path / "model"), family, *ON_MESH[family]]
    done = subprocess.run(command, env=environment.of_child(devices=8), capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"\n{family}: {found}")
    assert found.pop("devices") == 8 and set(found) == set(ON_MESH[family])
    assert max(found.values()) <= TOLERANCE, found


def test_what_is_seen(backbone: Backbone, batch: Batch) -> None:
    operator = fx.probing.attention()
    look = jax.jit(fx.look, static_argnums=3)
    alone, prompted = look(backbone, batch, None, operator), look(backbone, batch, prompts(backbone)[0], operator)
    assert isinstance(alone, fx.Look) and alone.slot_attention.shape == (2, 3)
    np.testing.assert_allclose(alone.slot_attention.sum(-1), 1, atol=0.02)
    assert alone.slot_attention[1, 2] == 0 and np.isneginf(alone.label_log_probs[1, 2])
    np.testing.assert_array_equal(alone.answer, np.argmax(alone.label_log_probs, axis=-1))
    assert float(jnp.abs(alone.slot_attention - prompted.slot_attention).max()) > 1e-3
    each = jnp.stack([prompts(backbone)[0]] * 2)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), look(backbone, batch, each, operator), prompted)


def test_relevance_is_asked_for_given_slots(backbone: Backbone, batch: Batch) -> None:
    seen = jax.jit(partial(fx.look, operator=EACH["attn_lrp"]))
    own = seen(backbone, batch, prompts(backbone)[0])
    asked = seen(backbone, batch, prompts(backbone)[0], answer=own.answer)
    np.testing.assert_allclose(asked.slot_attention, own.slot_attention, rtol=1e-5)
    other = seen(backbone, batch, prompts(backbone)[0], answer=1 - own.answer.clip(0, 1))
    assert float(jnp.abs(other.slot_attention - own.slot_attention).max()) > 1e-5


def test_a_backbone_is_a_pytree(backbone: Backbone) -> None:
    leaves, structure = jax.tree.flatten(backbone)
    assert leaves and all(isinstance(leaf, jax.Array) for leaf in leaves)
    again = jax.tree.unflatten(structure, leaves)
    assert isinstance(again, Backbone) and again.width == backbone.width
    assert bool(jax.tree.structure(again) == structure)  # type: ignore[operator]
    halved = jax.tree.map(lambda x: x.astype(jnp.bfloat16), backbone)
    assert {leaf.dtype for leaf in jax.tree.leaves(halved)} == {jnp.dtype("bfloat16")}


def test_sessions_bring_gaze_and_click(backbone: Backbone) -> None:
    shown = page()
    people = [fx.Session(page=shown, user=user, gaze=[1, 2, 1], click="C") for user in ("ada", "ben", "ada")]
    batch = fx.encode(backbone, [*people, shown], prompt_tokens=TOKENS)
    assert batch.user.tolist() == [0, 1, 0, 2] and batch.click.tolist() == [2, 2, 2, 0]
    np.testing.assert_allclose(batch.gaze, [[0.25, 0.5, 0.25]] * 3 + [[0, 0, 0]])


def test_labels_are_drawn_where_they_are_not_on_the_page(tmp_path: Path) -> None:
    plain = Image.new("RGB", (120, 60), "navy")
    boxes, labels = [(0, 0, 60, 60), (60, 0, 120, 60)], ("A", "B")
    drawn = fx.Page(image=plain, boxes=boxes, labels=labels).picture()
    assert len(drawn.crop((0, 0, 60, 60)).getcolors(10_000) or []) > 1
    assert plain.getcolors() == [(7200, (0, 0, 128))], "the picture given is left as it is"
    ImageDraw.Draw(plain).text((5, 5), "A")
    assert fx.Page(image=plain, boxes=boxes, labels=labels, labelled=True).picture().tobytes() == plain.tobytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ("A", "A", "B")}, "labels must be unique"),
        ({"boxes": [(0, 0, 10, 10)]}, r"boxes of shape \(1, 4\) for 3 labels"),
        ({"boxes": [0, 0, 10, 10]}, r"boxes of shape \(4,\)"),
        ({"boxes": [(0, 0, 500, 10)] * 3}, "reaches off the page"),
    ],
)
def test_pages_that_do_not_fit_together(change: dict[str, Any], message: str) -> None:
    boxes, labels = [(0, 0, 30, 60)] * 3, ("A", "B", "C")
    right: dict[str, Any] = {"image": Image.new("RGB", (90, 60)), "boxes": boxes, "labels": labels}
    with pytest.raises(DataError, match=message):
        fx.Page(**(right | change))


def test_sessions_and_prompts_that_do_not_fit(backbone: Backbone, batch: Batch) -> None:
    with pytest.raises(DataError, match=r"click 'Z' is none of \['A', 'B', 'C'\]"):
        fx.Session(page=page(), user="ada", gaze=[1, 1, 1], click="Z")
    with pytest.raises(DataError, match=r"gaze of shape \(2,\) for 3 slots"):
        fx.Session(page=page(), user="ada", gaze=[1, 1], click=0)
    with pytest.raises(DataError, match=r"a prompt of shape \(4, 48\), where the batch has room for \(3, 48\)"):
        fx.look(backbone, batch, jnp.zeros((4, 48)), fx.probing.attention())
    with pytest.raises(DataError, match="make it with encode"):
        fx.look(backbone, batch._replace(soft_position=None), None, fx.probing.attention())
    with pytest.raises(DataError, match="at least one"):
        fx.encode(backbone, [])


def test_what_the_package_offers() -> None:
    names = dir(fx)
    assert {"Page", "Session", "encode", "look", "load_backbone", "probing", "objective", "__version__"} <= set(names)
    for name in names:
        assert getattr(fx, name) is not None
    with pytest.raises(AttributeError, match=r"has no attribute 'loook'; it has .*look"):
        fx.loook  # noqa: B018
