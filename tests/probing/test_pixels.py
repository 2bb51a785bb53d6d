"""Relevance of pixels: the rules in each family's vision tower against a plain tower with gains held by hand."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fixate_jax.backbones import take_branches
from fixate_jax.backbones.inputs import EncodedPage, stack_pages
from fixate_jax.backbones.rope import rotate, vision_angles
from fixate_jax.errors import ConfigError
from fixate_jax.probing import Trace
from fixate_jax.probing.pixels import page_map, pixel_relevance
from fixate_jax.probing.rules import LrpRules
from fixate_jax.prompts import soft_prompt
from fixate_jax.tuning.step import target_logit
from tests.probing import whole_model
from tests.probing.embeddings import relative
from tests.probing.whole_model import CASES, small_world
from tests.worlds import World

hold = jax.lax.stop_gradient


@pytest.fixture(scope="module", params=CASES)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    return small_world(tmp_path_factory.mktemp("world"), request.param)


def held_norm(module: Any, x: jax.Array) -> jax.Array:
    centred = x - x.mean(-1, keepdims=True)
    deviation = hold(jnp.sqrt((centred**2).mean(-1, keepdims=True) + module.epsilon))
    return centred / deviation * module.scale[...] + module.bias[...]


def held_gelu(x: jax.Array, approximate: bool) -> jax.Array:
    return x * hold(jax.nn.gelu(x, approximate=approximate) / x)


def share(x: jax.Array, part: float) -> jax.Array:
    return part * x + hold((1 - part) * x)


def affine(module: Any, x: jax.Array) -> jax.Array:
    return x @ module.kernel[...] + module.bias[...]


def attended(module: Any, x: jax.Array, heads: int, mask: jax.Array, turn: Any) -> jax.Array:
    q, k, v = (y.reshape(*y.shape[:2], heads, -1) for y in jnp.split(affine(module.qkv, x), 3, axis=-1))
    q, k, v = share(turn(q), 0.25), share(turn(k), 0.25), share(v, 0.5)
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1])
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, -1e30), axis=-1)
    return affine(module.proj, jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape))


def each_layer(stack: Any, size: int) -> list[Any]:
    graph, weights = nnx.split(stack)
    return [nnx.merge(graph, jax.tree.map(lambda w, i=i: w[i], weights)) for i in range(size)]


def plain_qwen(tower: Any, pages: Any, patches: jax.Array) -> jax.Array:
    config = tower.config
    table = tower.position_table.embedding[...][pages.table_index]
    x = affine(tower.patch_embed, patches) + (table * pages.table_weight[..., None]).sum(2)
    angles = vision_angles(pages.position, head_dim=config.width // config.heads)
    layers = [m for stack, n in zip(tower.stacks, config.segments, strict=True) for m in each_layer(stack, n)]
    joined = config.width * config.merge**2
    deep: list[jax.Array] = []

    def merge(module: Any, x: jax.Array) -> jax.Array:
        x = x if module.norm_after_merge else held_norm(module.norm, x)
        x = x.reshape(len(x), -1, joined)
        x = held_norm(module.norm, x) if module.norm_after_merge else x
        return affine(module.fc2, held_gelu(affine(module.fc1, x), approximate=False))

    for i, module in enumerate(layers):
        normed = held_norm(module.attention_norm, x)
        x = x + attended(module, normed, config.heads, pages.valid, lambda y: rotate(y, angles))
        x = x + affine(module.fc2, held_gelu(affine(module.fc1, held_norm(module.mlp_norm, x)), approximate=True))
        if i in config.deepstack_after:
            deep.append(merge(tower.deepstack_mergers[len(deep)], x))
    return jnp.stack([merge(tower.merger, x), *deep], axis=2)


def plain_intern(tower: Any, pages: Any, pixels: jax.Array) -> jax.Array:
    config, merge = tower.config, tower.merge
    side, p = config.side, config.patch
    x = (
        pixels.reshape(-1, config.channels, side, p, side, p)
        .transpose(0, 2, 4, 1, 3, 5)
        .reshape(-1, side**2, 3 * p * p)
    )
    first = jnp.broadcast_to(tower.class_token[...], (len(x), 1, config.width))
    x = jnp.concatenate([first, affine(tower.patch_embed, x)], axis=1) + tower.positions[...]
    mask = jnp.ones(x.shape[:2], bool)
    for module in each_layer(tower.layers, config.layers):
        normed = held_norm(module.attention_norm, x)
        x = x + attended(module, normed, config.heads, mask, lambda y: y) * module.attention_scale[...]
        opened = held_gelu(affine(module.fc1, held_norm(module.mlp_norm, x)), approximate=False)
        x = x + affine(module.fc2, opened) * module.mlp_scale[...]
    cells = side // merge
    x = x[:, 1:].reshape(-1, cells, merge, cells, merge, config.width)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(len(x), cells**2, -1)
    projector = tower.projector
    x = affine(projector.fc2, held_gelu(affine(projector.fc1, held_norm(projector.norm, x)), approximate=False))
    return x.reshape(len(pixels), -1, 1, x.shape[-1])


def test_pixels_get_what_the_definition_gives_them(world: World) -> None:
    backbone, batch, prompt = world.backbone, world.batch(), soft_prompt(world.prompt(), world.batch().user)
    encoded = [backbone.page_processor(world.images[s.page_id]) for s in world.sessions]
    pages = jax.tree.map(jnp.asarray, stack_pages(encoded))
    plain = plain_qwen if "position" in pages._fields else plain_intern
    clicked = take_branches(batch.inputs, batch.click[:, None])
    rows = jnp.arange(len(batch.click))
    ids, mask = batch.answer_ids[rows, batch.click], batch.answer_mask[rows, batch.click]

    def ours(params: Any, pages: Any) -> tuple[jax.Array, ...]:
        model = backbone.merge(params)
        inputs = clicked._replace(features=model.encode_pages(pages))
        trace = Trace(model, model.prefill(inputs, prompt), target_logit(ids[:, None], mask[:, None]))
        pixels = pixel_relevance(trace, inputs, pages)
        return pixels.tokens[:, 0], pixels.pixels[:, 0], inputs.features, model.vision(pages, LrpRules())

    def definition(params: Any, pages: Any) -> tuple[jax.Array, ...]:
        tower = backbone.merge(params).vision
        features, to_pixels = jax.vjp(lambda x: plain(tower, pages, x), pages[0])

        def entering(features: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
            at = whole_model.sequence(backbone, params, clicked._replace(features=features), prompt, 0)
            return at.x, at.deep

        at = whole_model.sequence(backbone, params, clicked._replace(features=features), prompt, 0)
        _, *c = whole_model.lrp_coefficients(backbone, params, at, ids, mask)
        (c,) = jax.vjp(entering, features)[1](tuple(c))
        return (features * c).sum((-1, -2)), pages[0] * to_pixels(c)[0], features

    tokens, pixels, features, ruled = jax.jit(ours)(backbone.params, pages)
    true_tokens, true_pixels, true_features = jax.jit(definition)(backbone.params, pages)
    np.testing.assert_array_equal(features, ruled[:, :, : features.shape[2]])
    for name, found, wanted in (
        ("features", features, true_features),
        ("tokens", tokens, true_tokens),
        ("pixels", pixels, true_pixels),
    ):
        print(f"\n{name}: {relative(found, wanted):.1e} off", end="")
        assert relative(found, wanted) < 1e-4, name
    kept = pixels.reshape(len(pixels), -1).sum(1) / tokens.sum(1)
    print(f"\nsum over pixels / sum over page tokens: {np.asarray(kept).round(3)}")


def test_a_picture_of_pixels_lies_as_the_page_does(world: World) -> None:
    """Pixels put together again are the page."""
    session = world.sessions[0]
    image = world.images[session.page_id]
    page = world.backbone.page_processor(image)
    pixels = page.inputs[0][0].copy()
    frames = 1
    if page.inputs._fields[0] == "pixels":
        whole = page_map(pixels, page, world.backbone.config)
        assert whole.sum() == pytest.approx(pixels.sum(), rel=1e-4), "the thumbnail is shared out"
        pixels[-1] = 0
    else:
        frames = world.backbone.config.vision.temporal
    found = page_map(pixels, page, world.backbone.config)
    wanted = frames * ((np.asarray(image, np.float32) / 255 - 0.5) / 0.5).sum(-1)
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_pages_of_an_unknown_kind_are_refused(world: World) -> None:
    class Other(NamedTuple):
        valid: np.ndarray

    page = EncodedPage(inputs=Other(np.ones((1, 2), bool)), rows=1, columns=2)
    with pytest.raises(ConfigError, match=r"Other: say in fixate_jax\.probing\.pixels\.LAYOUTS"):
        page_map(np.zeros((2, 3, 4, 4), np.float32), page, world.backbone.config)
