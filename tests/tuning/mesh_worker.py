"""What `test_mesh.py` runs on eight simulated devices: python -m tests.tuning.mesh_worker FOLDER; prints JSON."""

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx

from fixate_jax.backbones import load_backbone
from fixate_jax.backbones.decoder.decoder_layer import Remat
from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.backbones.sharding import make_mesh, shardings
from fixate_jax.backbones.tiny.random import TinySizes, write_tiny_random
from fixate_jax.lab.config import ObjectiveConfig, OperatorConfig, PromptConfig, RunConfig
from fixate_jax.lab.experiments.loop import start_state
from fixate_jax.lab.experiments.programs import make_evaluate, make_train_step
from fixate_jax.pipeline.placement import Placement, put
from fixate_jax.prompts import soft_prompt
from tests.worlds import USERS, World

FAMILIES: tuple[Literal["qwen3_vl", "internvl"], ...] = ("qwen3_vl", "internvl")
MESHES = {"qwen3_vl": ((8, 1, 1), (2, 2, 2), (1, 1, 8)), "internvl": ((2, 2, 2),)}
"""The decoder is the same in both families: the second shows that nothing of the first is special."""
FSDP = (1, 8, 1)
ROWS = 8
SEEDS = {"qwen3_vl": 5, "internvl": 0}
"""Of prompts whose gradient the last bit of a number moves by 1e-6 or less: on one device it is 1e-4 for some others,
where rows of AttnLRP's weights all but cancel, and no mesh can agree better than that."""


class Case:
    """A tiny model, a step's batch with rows that only fill it, and a state from which anything moves."""

    def __init__(self, folder: Path, family: Literal["qwen3_vl", "internvl"]):
        # Two layers a stack where the compiled program is looked at, fewer to compile where it is not.
        layers = 5 if family == "qwen3_vl" else 3
        remat: Remat = "dots" if family == "qwen3_vl" else "none"
        sizes = TinySizes(family=family, vocab=1024, width=64, ff=96, layers=layers, heads=4, kv_heads=2, head_dim=16)
        directory = write_tiny_random(folder / family, sizes=sizes)
        self.config = RunConfig(
            backbone=BackboneConfig(path=str(directory), tapped_layers=layers // 2 + 1, remat=remat),
            prompt=PromptConfig(basis=3, tokens=4),
            operator=OperatorConfig(name="attn_lrp", normalise="abs"),
            objective=ObjectiveConfig(warmup=0),
        )
        pages = [(3, 96, 64), (4, 96, 96)] * (ROWS // 2)
        self.world = World(directory, config=self.config, sizes=pages)
        self.rows = self.world.data.batch([*range(ROWS - 3), -1, -1, -1])
        other = self.world.data.batch(list(reversed(range(ROWS))))
        self.batch = jax.tree.map(lambda *leaves: np.stack(leaves), self.rows, other)
        state = start_state(self.config, users=len(USERS), width=self.world.backbone.width, seed=0)
        self.state = jax.device_get(state._replace(prompt=self.world.prompt(SEEDS[family])))

    def place(self, shape: tuple[int, int, int], **options: Any) -> tuple[nnx.State, Placement]:
        """The weights, loaded straight to a mesh, and where everything is on it."""
        mesh = make_mesh(shape)
        params = load_backbone(self.config.backbone, mesh=mesh).params
        return params, Placement(mesh, shardings(params, mesh)).with_state(self.state, **options)

    def make_step(self, placement: Placement | None) -> Any:
        graph, end = self.world.backbone.graph, self.world.backbone.encoder.end_token
        return make_train_step(graph, self.config, users=len(USERS), steps=9, end_token=end, placement=placement)

    def run(self, params: nnx.State, placement: Placement | None) -> tuple[dict[str, np.ndarray], Any, str]:
        """Loss and gradients of a step, the state after it, and the compiled program.

        Adam's first moment is a tenth of the gradient after the first step (nothing is clipped here).
        """
        state, batch = self.state, self.batch
        if placement is not None:
            state, batch = put(state, placement.state), put(batch, placement.micro_rows)
        compiled = self.make_step(placement).lower(state, params, batch).compile()
        state, parts = compiled(state, params, batch)
        moments = (10 * group[1][0].mu for group in (state.optimizer.basis, state.optimizer.coefficients))
        found = {"loss": parts["loss"], "alignment": parts["alignment"]} | dict(zip(("B", "z"), moments, strict=True))
        return jax.device_get(found), state, compiled.as_text()

    def evaluate(self, params: nnx.State, placement: Placement | None) -> Any:
        graph, end = self.world.backbone.graph, self.world.backbone.encoder.end_token
        evaluate: Any = make_evaluate(graph, self.config, end, placement=placement)
        soft = np.asarray(soft_prompt(self.world.prompt(), self.rows.user))
        return jax.device_get(evaluate(soft, np.asarray(True), params, self.rows))


def gathered(hlo: str, params: nnx.State) -> list[str]:
    """Paths of the matrices that a compiled program gathers whole: all layers of a stack, embedding, head."""
    found = set()
    for line in re.findall(r"^.* all-gather(?:-start)?\(", hlo, re.MULTILINE):
        for shape in re.findall(r"\w+\[([\d,]+)\]", line):
            found.add(tuple(int(n) for n in shape.split(",") if n != "1"))
    matrices = {".".join(map(str, path)): leaf.shape for path, leaf in nnx.to_flat_state(params)}
    layers = {path: shape for path, shape in matrices.items() if len(shape) == 3 and shape[0] > 1}
    whole = layers | {
        path: shape for path, shape in matrices.items() if path.endswith(("embed.embedding", "head.kernel"))
    }
    return [path for path, shape in whole.items() if tuple(shape) in found]


def difference(found: Any, expected: Any) -> float:
    """Largest difference, relative to the largest value."""
    found, expected = (np.asarray(x, np.float64) for x in (found, expected))
    finite = np.isfinite(expected)
    assert np.array_equal(finite, np.isfinite(found))
    return float(np.abs(found[finite] - expected[finite]).max() / (np.abs(expected[finite]).max() or 1.0))


def careless(case: Case, placement: Placement) -> str:
    """The compiled step with all weights asked for whole before the layers are scanned: what must not happen."""
    step, whole = case.make_step(placement).__wrapped__, placement.whole

    def gathering(state: Any, params: Any, batch: Any) -> Any:
        return step(state, jax.lax.with_sharding_constraint(params, whole), batch)

    places = (placement.state, placement.params, placement.micro_rows)
    results = (placement.state, placement.whole)
    jitted = jax.jit(gathering, in_shardings=places, out_shardings=results)
    compiled: Any = jitted.lower(case.state, case.world.backbone.params, case.batch).compile()
    return str(compiled.as_text())


def compare(
    case: Case, meshes: Sequence[tuple[int, int, int]], expected: dict[str, np.ndarray]
) -> dict[str, dict[str, float]]:
    """A step on every mesh next to one on one device."""
    report = {}
    for shape in meshes:
        params, placement = case.place(shape)
        found, _, _ = case.run(params, placement)
        report[str(shape)] = {name: difference(found[name], expected[name]) for name in expected}
    return report


def fsdp(case: Case, expected: dict[str, np.ndarray]) -> dict[str, Any]:
    """The same with all weights cut along one axis: what a device holds, and what is sent around."""
    params, placement = case.place(FSDP, pays_from=0)
    found, state, hlo = case.run(params, placement)
    leaves, moment = jax.tree.leaves(params), state.optimizer.basis[1][0].mu
    cut = [leaf for leaf in leaves if not leaf.sharding.is_fully_replicated]
    return {
        "differences": {name: difference(found[name], expected[name]) for name in expected},
        "gathered": gathered(hlo, params),
        "careless": gathered(careless(case, placement), params),
        "share": sum(leaf.addressable_shards[0].data.nbytes for leaf in cut) / sum(leaf.nbytes for leaf in cut),
        "copied": sum(leaf.nbytes for leaf in leaves if leaf.sharding.is_fully_replicated),
        "bytes": sum(leaf.nbytes for leaf in leaves),
        "moment": [moment.size, moment.addressable_shards[0].data.size, state.prompt.basis.is_fully_replicated],
    }


def evaluations(case: Case) -> dict[str, float]:
    """An evaluation on a mesh beside one on one device."""
    expected = case.evaluate(case.world.backbone.params, None)
    found = case.evaluate(*case.place((2, 2, 2)))
    return {name: difference(getattr(found, name), getattr(expected, name)) for name in expected._fields}


def main(folder: Path) -> None:
    """Print what was found."""
    found: dict[str, Any] = {"devices": jax.device_count()}
    for family in FAMILIES:
        case = Case(folder, family)
        expected, _, _ = case.run(case.world.backbone.params, None)
        found[family] = compare(case, MESHES[family], expected)
        if family == FAMILIES[0]:
            found |= {"fsdp": fsdp(case, expected), "evaluation": evaluations(case)}
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
