"""Our InternVL against transformers', every tensor random, and proof that the comparison would notice a mistake."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from fixate_jax.backbones import Backbone, SequenceInputs, load_backbone, stack_pages
from fixate_jax.backbones.internvl import model as internvl
from fixate_jax.backbones.internvl import vision as internvl_vision
from fixate_jax.backbones.internvl.pages import PageInputs
from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.lab.verify.torch_side import internvl_states
from fixate_jax.lab.verify.verify import plain_inputs
from tests.backbones.tiles import CELLS, SIDE
from tests.backbones.tiny_internvl import VISION_6B, make_internvl_checkpoint
from tests.backbones.torch_parity import largest_difference, left_pad, load_torch_model, swap

TOLERANCE = 2e-4
TILINGS = {"1×1": (1, 1), "2×1": (2, 1), "1×3": (1, 3), "3×2": (3, 2)}
"""Columns and rows of tiles; all but the first have a thumbnail too."""
TOWERS = {
    "layer norm": {},
    "layer norm, q/k norm": {"use_qk_norm": True},
    "RMS norm, q/k norm, no qkv bias": VISION_6B,
}
See = Callable[[nnx.State, Any], tuple[jax.Array, jax.Array]]


class Case(NamedTuple):
    backbone: Backbone
    decode: Callable[[nnx.State, SequenceInputs], tuple[jax.Array, jax.Array, jax.Array]]
    see: See
    inputs: SequenceInputs
    pages: PageInputs
    mask: np.ndarray
    torch: dict[str, Any]


def seeing(graph: nnx.GraphDef) -> See:
    return jax.jit(lambda params, pages: nnx.merge(graph, params).vision.with_states(pages))


def token_rows(backbone: Backbone, tiles: list[int]) -> list[np.ndarray]:
    """Random text around the image tokens of one page a row."""
    rng = np.random.default_rng(0)
    rows = []
    for i, count in enumerate(tiles):
        before, after = rng.integers(0, 400, (2, 5 + 3 * i))
        rows.append(np.concatenate([before, np.full(count * CELLS**2, backbone.config.image_token), after]))
    return rows


def make_case(directory: Path, **checkpoint: Any) -> Case:
    make_internvl_checkpoint(directory, **checkpoint)
    backbone = load_backbone(BackboneConfig(path=str(directory), tapped_layers=2, attention_block=32))
    rng = np.random.default_rng(0)
    sizes = [(rows * SIDE, columns * SIDE) for columns, rows in TILINGS.values()]
    encoded = [backbone.page_processor(Image.fromarray(rng.integers(0, 256, (*s, 3), np.uint8))) for s in sizes]
    tiles = [e.inputs.pixels.shape[1] for e in encoded]
    assert tiles == [1, 3, 4, 7]
    ids, mask = left_pad(token_rows(backbone, tiles), pad=0)
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    torch = internvl_states(
        load_torch_model(directory),
        pixel_values=np.concatenate([e.inputs.pixels[0] for e in encoded]),
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
    )
    pages = jax.device_put(stack_pages(encoded))
    see = seeing(backbone.graph)
    features, _ = see(backbone.params, pages)
    inputs = plain_inputs(ids, mask, np.repeat(positions[..., None], 3, -1), backbone.config.image_token, features)

    @jax.jit
    def decode(params: nnx.State, inputs: SequenceInputs) -> tuple[jax.Array, jax.Array, jax.Array]:
        model, prompt = backbone.merge(params), jnp.zeros((len(mask), 0, backbone.width))
        _, states = model.decoder.forward(inputs, prompt)
        return states, model.decoder.logits(states[-1]), model.tail(model.prefill(inputs, prompt)).logits[:, 0, -1]

    return Case(backbone, decode, see, inputs, pages, mask, torch)


def decoder_differences(case: Case, params: nnx.State, inputs: SequenceInputs) -> dict[str, float]:
    """Largest absolute difference of the residual stream after each layer, and of the logits."""
    states, logits, fast = case.decode(params, inputs)
    real = case.mask.astype(bool)
    table = {
        f"decoder layer {i}": largest_difference(state[real], theirs[real])
        for i, (state, theirs) in enumerate(zip(states, case.torch["states"][1:], strict=True))
    }
    last = {"logits after prefill and tail": largest_difference(fast, case.torch["logits"][:, -1])}
    return table | {"logits": largest_difference(logits[real], case.torch["logits"][real])} | last


def vision_differences(case: Case, params: nnx.State, pages: PageInputs, see: See | None = None) -> dict[str, float]:
    """Largest absolute difference of each tile's state after every layer, and of each page's tokens."""
    features, states = (see or case.see)(params, pages)
    valid = np.asarray(case.pages.valid)
    table = {
        f"vision layer {i}": largest_difference(np.asarray(state)[valid], theirs)
        for i, (state, theirs) in enumerate(zip(states, case.torch["vision_blocks"], strict=True))
    }
    first = 0
    for page, (name, tiles) in enumerate(zip(TILINGS, valid.sum(1), strict=True)):
        theirs = case.torch["visual_features"][first : first + tiles].reshape(tiles * CELLS**2, -1)
        table[f"page tokens, {name} tiles"] = largest_difference(features[page, : len(theirs), 0], theirs)
        first += tiles
    return table


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    directory = tmp_path_factory.mktemp("internvl") / "model"
    return make_case(directory, seed=1, vision=TOWERS["layer norm, q/k norm"])


def test_every_layer_agrees(case: Case) -> None:
    table = vision_differences(case, case.backbone.params, case.pages)
    table |= decoder_differences(case, case.backbone.params, case.inputs)
    print("\n" + "\n".join(f"{name:30s} {value:.1e}" for name, value in table.items()))
    assert max(table.values()) <= TOLERANCE


@pytest.mark.parametrize(
    "checkpoint",
    [
        {"vision": TOWERS["layer norm"], "text": {"attention_bias": True}, "tie": False, "max_shard_size": 100_000},
        {"vision": TOWERS["RMS norm, q/k norm, no qkv bias"], "save_original_format": False},
    ],
    ids=["layer norm, untied, sharded", "RMS norm, q/k norm, names as in memory"],
)
def test_other_checkpoints_agree(tmp_path: Path, checkpoint: dict[str, Any]) -> None:
    case = make_case(tmp_path / "model", seed=2, **checkpoint)
    assert case.backbone.config.prefix == ("" if checkpoint.get("save_original_format", True) else "model.")
    assert max(vision_differences(case, case.backbone.params, case.pages).values()) <= TOLERANCE
    assert max(decoder_differences(case, case.backbone.params, case.inputs).values()) <= TOLERANCE


Mutation = Callable[[Case], dict[str, float]]


def change(params: nnx.State, path: str, how: Callable[[np.ndarray], np.ndarray]) -> nnx.State:
    """The parameters with one of them changed."""
    flat = nnx.to_flat_state(params)
    assert path in {".".join(map(str, p)) for p, _ in flat}
    changed = [
        (p, leaf.replace(jax.device_put(how(np.asarray(leaf[...])))) if ".".join(map(str, p)) == path else leaf)
        for p, leaf in flat
    ]
    return nnx.from_flat_state(changed)


def without_vision_qk_norm(case: Case) -> dict[str, float]:
    config = replace(case.backbone.config, vision=replace(case.backbone.config.vision, qk_norm=False))
    graph, _ = nnx.split(nnx.eval_shape(lambda: internvl.build(config, nnx.Rngs(0))))
    flat = nnx.to_flat_state(case.backbone.params)
    kept = [(p, x) for p, x in flat if p[0] != "vision" or not {"q_norm", "k_norm"} & {*p}]
    assert len(kept) == len(flat) - 2
    return vision_differences(case, nnx.from_flat_state(kept), case.pages, seeing(graph))


def vision_qk_norm_by_head(case: Case) -> dict[str, float]:
    heads = case.backbone.config.vision.heads

    class NormByHead(nnx.RMSNorm):
        def __call__(self, x: Any, mask: Any = None) -> Any:
            apart = x.reshape(*x.shape[:-1], heads, -1)
            normed = apart / jnp.sqrt((apart**2).mean(-1, keepdims=True) + 1e-6)
            assert self.scale is not None
            return normed.reshape(x.shape) * self.scale[...]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nnx, "RMSNorm", NormByHead)
        graph, _ = nnx.split(nnx.eval_shape(lambda: internvl.build(case.backbone.config, nnx.Rngs(0))))
    return vision_differences(case, case.backbone.params, case.pages, seeing(graph))


def other_pixel_shuffle(order: tuple[int, ...]) -> Mutation:
    """Pixel shuffle that lays (tile, row, row in cell, column, column in cell, width) out in another order."""

    def shuffle(x: jax.Array, merge: int) -> jax.Array:
        tiles, patches, width = x.shape
        cells = round(patches**0.5) // merge
        x = x.reshape(tiles, cells, merge, cells, merge, width)
        return x.transpose(*order).reshape(tiles, cells * cells, -1)

    def mutate(case: Case) -> dict[str, float]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(internvl_vision, "pixel_shuffle", shuffle)
            return vision_differences(case, case.backbone.params, case.pages, seeing(case.backbone.graph))

    return mutate


def mutations() -> dict[str, Mutation]:
    def vision(how: Callable[[nnx.State], nnx.State]) -> Mutation:
        return lambda c: vision_differences(c, how(c.backbone.params), c.pages)

    def pixels(how: Callable[[np.ndarray], np.ndarray]) -> Mutation:
        other = lambda pages: jax.device_put(pages._replace(pixels=how(np.asarray(pages.pixels))))  # noqa: E731
        return lambda c: vision_differences(c, c.backbone.params, other(c.pages))

    def decoder(first: str, second: str) -> Mutation:
        return lambda c: decoder_differences(c, swap(c.backbone.params, first, second), c.inputs)

    def sequence(how: Callable[[SequenceInputs], SequenceInputs]) -> Mutation:
        other = lambda inputs: jax.device_put(how(jax.device_get(inputs)))  # noqa: E731
        return lambda c: decoder_differences(c, c.backbone.params, other(c.inputs))

    layers = "vision.layers."
    roll = lambda n, axis: lambda x: np.roll(x, n, axis)  # noqa: E731
    return {
        "vision norms swapped": vision(lambda p: swap(p, "attention_norm.scale", "mlp_norm.scale")),
        "vision norm biases swapped": vision(lambda p: swap(p, "attention_norm.bias", "mlp_norm.bias")),
        "layer scales swapped": vision(lambda p: swap(p, layers + "attention_scale", layers + "mlp_scale")),
        "layer scales off": vision(lambda p: change(p, layers + "attention_scale", np.ones_like)),
        # Swapping the two changes nothing: without rotary positions only the product of their scales counts.
        "scale of vision k norm off": vision(lambda p: change(p, layers + "k_norm.scale", np.ones_like)),
        "vision q and k norm off": without_vision_qk_norm,
        "vision q and k norm head by head": vision_qk_norm_by_head,
        "queries, keys, values exchanged": vision(lambda p: change(p, layers + "qkv.kernel", roll(32, -1))),
        "qkv biases exchanged": vision(lambda p: change(p, layers + "qkv.bias", roll(32, -1))),
        "class token off": vision(lambda p: change(p, "vision.class_token", np.zeros_like)),
        "class token's position last": vision(lambda p: change(p, "vision.positions", roll(-1, 0))),
        "positions of rows and columns swapped": vision(
            lambda p: change(
                p,
                "vision.positions",
                lambda x: np.concatenate([x[:1], x[1:].reshape(8, 8, -1).swapaxes(0, 1).reshape(64, -1)]),
            )
        ),
        "rows and columns of pixels swapped": pixels(lambda x: x.swapaxes(-1, -2)),
        "colours reversed": pixels(lambda x: x[:, :, ::-1]),
        "tiles reversed": pixels(lambda x: x[:, ::-1]),
        "thumbnail first": pixels(roll(1, 1)),
        "pixel shuffle, columns before rows in a cell": other_pixel_shuffle((0, 1, 3, 4, 2, 5)),
        "pixel shuffle, version 1 (transposed)": other_pixel_shuffle((0, 3, 1, 2, 4, 5)),
        "pixel shuffle, width before place": other_pixel_shuffle((0, 1, 3, 5, 2, 4)),
        "projector's norm off": vision(lambda p: change(p, "vision.projector.norm.scale", np.ones_like)),
        "decoder's q and k norm swapped": decoder("q_norm.scale", "k_norm.scale"),
        "decoder's layer norms swapped": decoder("input_norm.scale", "post_attention_norm.scale"),
        "gate and up swapped": decoder("gate_proj.kernel", "up_proj.kernel"),
        "positions stand still on the page": sequence(
            lambda i: i._replace(positions=np.where(i.visual_index[..., None] >= 0, 9, i.positions))
        ),
        "page tokens reversed": sequence(lambda i: i._replace(features=i.features[:, ::-1])),
        "padding seen": sequence(lambda i: i._replace(start=np.zeros_like(i.start))),
    }


def test_every_mutation_is_noticed(case: Case) -> None:
    rows = [(name, max(mutate(case).values())) for name, mutate in mutations().items()]
    print("\n" + "\n".join(f"{name:46s} {moved:9.2e} {moved / TOLERANCE:9.0f} × tolerance" for name, moved in rows))
    assert min(moved for _, moved in rows) > 100 * TOLERANCE


def test_padding_tiles_change_nothing(case: Case) -> None:
    params, pages = case.backbone.params, case.pages
    host = jax.device_get(pages)
    pixels = np.where(host.valid[..., None, None, None], host.pixels, np.float32(7))
    found, others = (np.asarray(case.see(params, p)[0]) for p in (pages, jax.device_put(host._replace(pixels=pixels))))
    for page, tiles in enumerate(np.asarray(pages.valid).sum(1)):
        real = np.s_[page, : tiles * CELLS**2]
        np.testing.assert_array_equal(found[real], others[real])


def test_a_tower_without_attention_is_one_whose_projection_is_zero(case: Case) -> None:
    config = replace(case.backbone.config, vision=replace(case.backbone.config.vision, attends=False))
    graph, _ = nnx.split(nnx.eval_shape(lambda: internvl.build(config, nnx.Rngs(0))))
    params = case.backbone.params
    for name in ("kernel", "bias"):
        params = change(params, f"vision.layers.proj.{name}", np.zeros_like)
    with_zeros, without = case.see(params, case.pages)[0], seeing(graph)(params, case.pages)[0]
    assert largest_difference(with_zeros, without) <= 1e-5
    assert largest_difference(without, case.see(case.backbone.params, case.pages)[0]) > 100 * TOLERANCE
