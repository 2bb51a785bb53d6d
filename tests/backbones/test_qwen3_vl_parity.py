"""Our Qwen3-VL against transformers', every tensor random, and proof that the comparison would notice a mistake."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from fixate_jax.backbones import Backbone, SequenceInputs, load_backbone, stack_pages
from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.lab.verify.verify import plain_inputs
from tests.backbones.tiny import make_torch_checkpoint
from tests.backbones.torch_parity import (
    largest_difference,
    left_pad,
    load_torch_model,
    page_token_rows,
    swap,
    torch_hidden_states,
)

TOLERANCE = 2e-4
PAGE_SIZES = ((320, 192), (160, 256))


class Case(NamedTuple):
    backbone: Backbone
    decode: Callable[[nnx.State, SequenceInputs], tuple[jax.Array, jax.Array]]
    see: Callable[[nnx.State, Any], tuple[jax.Array, jax.Array]]
    inputs: SequenceInputs
    pages: Any
    mask: np.ndarray
    torch: dict[str, Any]


def make_case(directory: Path, **checkpoint: Any) -> Case:
    make_torch_checkpoint(directory, **checkpoint)
    backbone = load_backbone(BackboneConfig(path=str(directory), tapped_layers=2, attention_block=32))
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8)) for w, h in PAGE_SIZES]
    encoded = [backbone.page_processor(image) for image in images]
    merge = backbone.config.vision.merge
    grids = np.array([[1, e.rows * merge, e.columns * merge] for e in encoded])
    model = load_torch_model(directory)
    ids, mask = left_pad(page_token_rows(grids, config=model.config), pad=0)
    torch = torch_hidden_states(
        directory,
        pixel_values=np.concatenate([e.inputs.patches[0] for e in encoded]),
        image_grid_thw=grids,
        input_ids=ids,
        attention_mask=mask,
        model=model,
    )
    pages = jax.device_put(stack_pages(encoded))
    see = jax.jit(lambda params, pages: backbone.merge(params).vision.with_states(pages))
    features, _ = see(backbone.params, pages)
    positions = np.moveaxis(torch["position_ids"], 0, -1)
    inputs = plain_inputs(ids, mask, positions, backbone.config.image_token, features)

    @jax.jit
    def decode(params: nnx.State, inputs: SequenceInputs) -> tuple[jax.Array, jax.Array]:
        decoder = backbone.merge(params).decoder
        _, states = decoder.forward(inputs, jnp.zeros((len(mask), 0, backbone.width)))
        return states, decoder.logits(states[-1])

    return Case(backbone, decode, see, inputs, pages, mask, torch)


def decoder_differences(case: Case, params: nnx.State, inputs: SequenceInputs) -> dict[str, float]:
    """Largest absolute difference of the residual stream after each layer, and of the logits."""
    states, logits = case.decode(params, inputs)
    real = case.mask.astype(bool)
    table = {
        f"decoder layer {i}": largest_difference(state[real], theirs[real])
        for i, (state, theirs) in enumerate(zip(states, case.torch["states"][1:], strict=True))
    }
    return table | {"logits": largest_difference(logits[real], case.torch["logits"][real])}


def vision_differences(case: Case, params: nnx.State, pages: Any) -> dict[str, float]:
    """Largest absolute difference of the patches after each layer, of visual tokens and of DeepStack features."""
    features, states = case.see(params, pages)
    valid = np.asarray(case.pages.valid)
    table = {
        f"vision layer {i}": largest_difference(np.asarray(state)[valid], theirs)
        for i, (state, theirs) in enumerate(zip(states, case.torch["vision_blocks"], strict=True))
    }
    deepstack = case.torch["deepstack_features"] or [[]] * len(PAGE_SIZES)
    for page, (tokens, deep) in enumerate(zip(case.torch["visual_features"], deepstack, strict=True)):
        theirs = np.stack([tokens, *deep], axis=1)
        table[f"features, page {page}"] = largest_difference(features[page, : len(tokens)], theirs)
    return table


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    vision = {"depth": 4, "deepstack_visual_indexes": [0, 2]}
    return make_case(tmp_path_factory.mktemp("parity") / "model", seed=1, vision=vision)


def test_every_layer_agrees(case: Case) -> None:
    table = vision_differences(case, case.backbone.params, case.pages)
    table |= decoder_differences(case, case.backbone.params, case.inputs)
    print("\n" + "\n".join(f"{name:20s} {value:.1e}" for name, value in table.items()))
    assert max(table.values()) <= TOLERANCE


@pytest.mark.parametrize(
    "checkpoint",
    [
        {"text": {"attention_bias": True, "num_hidden_layers": 2}, "tie": False, "sharded": True, "seed": 3},
        {"vision": {"deepstack_visual_indexes": []}, "seed": 4},
    ],
    ids=["untied, sharded, attention bias, all layers tapped", "no DeepStack"],
)
def test_other_checkpoints_agree(tmp_path: Path, checkpoint: dict[str, Any]) -> None:
    case = make_case(tmp_path / "model", **checkpoint)
    assert max(vision_differences(case, case.backbone.params, case.pages).values()) <= TOLERANCE
    assert max(decoder_differences(case, case.backbone.params, case.inputs).values()) <= TOLERANCE


Mutation = Callable[[Case], tuple[nnx.State, SequenceInputs, Any]]


def mutations() -> dict[str, Mutation]:
    def weights(first: str, second: str) -> Mutation:
        return lambda c: (swap(c.backbone.params, first, second), c.inputs, c.pages)

    def sequence(change: Callable[[SequenceInputs], SequenceInputs]) -> Mutation:
        return lambda c: (c.backbone.params, jax.device_put(change(jax.device_get(c.inputs))), c.pages)

    def page(change: Callable[[Any], Any]) -> Mutation:
        return lambda c: (c.backbone.params, c.inputs, jax.device_put(change(jax.device_get(c.pages))))

    flat = lambda p: np.broadcast_to(np.arange(p.shape[1], dtype=np.int32)[:, None], p.shape)  # noqa: E731

    def without_deepstack(features: np.ndarray) -> np.ndarray:
        return np.concatenate([features[:, :, :1], np.zeros_like(features[:, :, 1:])], axis=2)

    return {
        "q and k norm swapped": weights("q_norm.scale", "k_norm.scale"),
        "layer norms swapped": weights("input_norm.scale", "post_attention_norm.scale"),
        "gate and up swapped": weights("gate_proj.kernel", "up_proj.kernel"),
        "flat positions": sequence(lambda i: i._replace(positions=flat(i.positions))),
        "rows and columns of positions swapped": sequence(lambda i: i._replace(positions=i.positions[..., [0, 2, 1]])),
        "DeepStack off": sequence(lambda i: i._replace(features=without_deepstack(i.features))),
        "DeepStack reordered": sequence(lambda i: i._replace(features=i.features[:, :, [0, 2, 1]])),
        "visual tokens reversed": sequence(lambda i: i._replace(features=i.features[:, ::-1])),
        "padding seen": sequence(lambda i: i._replace(start=np.zeros_like(i.start))),
        "vision norms swapped": weights("attention_norm.scale", "mlp_norm.scale"),
        "vision norm biases swapped": weights("attention_norm.bias", "mlp_norm.bias"),
        "DeepStack mergers swapped": lambda c: (swap_mergers(c.backbone.params), c.inputs, c.pages),
        "vision rows and columns swapped": page(lambda p: p._replace(position=p.position[..., ::-1])),
        "position table read at one corner": page(
            lambda p: p._replace(table_weight=np.eye(4, dtype=np.float32)[np.zeros(p.table_weight.shape[:2], int)])
        ),
        "padding patches seen": page(lambda p: p._replace(valid=np.ones_like(p.valid))),
    }


def swap_mergers(params: nnx.State) -> nnx.State:
    flat: dict[Any, Any] = dict(nnx.to_flat_state(params))
    out = {
        (path[:2] + (1 - path[2],) + path[3:] if path[:2] == ("vision", "deepstack_mergers") else path): leaf
        for path, leaf in flat.items()
    }
    return nnx.from_flat_state(list(out.items()))


def test_every_mutation_is_noticed(case: Case) -> None:
    rows = []
    for name, mutate in mutations().items():
        params, inputs, pages = mutate(case)
        if "vision" in name or "patches" in name or "table" in name or "mergers" in name:
            moved = max(vision_differences(case, params, pages).values())
        else:
            moved = max(decoder_differences(case, params, inputs).values())
        rows.append((name, moved))
    print("\n" + "\n".join(f"{name:40s} {moved:9.2e} {moved / TOLERANCE:9.0f} × tolerance" for name, moved in rows))
    assert min(moved for _, moved in rows) > 100 * TOLERANCE
