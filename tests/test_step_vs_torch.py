"""The tuning step and the PyTorch alternative, from the same checkpoint and the same batch, give the same numbers."""

from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from fixate_jax.backbones import stack_pages
from fixate_jax.backbones.loading import Backbone, load_backbone
from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.data.session import StoredSession
from fixate_jax.lab.config import ObjectiveConfig, OperatorConfig, PromptConfig, RunConfig
from fixate_jax.lab.parts import objective_of
from fixate_jax.probing.batches import Batch, SessionData
from fixate_jax.prompts import PromptParams
from fixate_jax.tuning.step import session_losses
from tests.backbones.tiny import make_torch_checkpoint

pytest.importorskip("torch")
reference = pytest.importorskip("benchmarks.torch_reference", exc_type=ImportError)

K, M, USERS, TAPPED = 4, 3, 4, 3
SHORT = (("A", "B", "C"), ("C", "A", "B", "E", "D"))
LONG = (("A", "B", "C"), ("1", "10", "12", "2"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_torch_checkpoint(tmp_path_factory.mktemp("model") / "model", seed=3)


@pytest.fixture(scope="module")
def backbone(checkpoint: Path) -> Backbone:
    return load_backbone(BackboneConfig(path=str(checkpoint), tapped_layers=TAPPED))


def _batch(backbone: Backbone, labels: tuple[tuple[str, ...], ...], *, seed: int, cached: bool) -> Batch:
    """A page a set of labels, of different sizes, left-padded to one length; users 2 and 0."""
    rng = np.random.default_rng(seed)
    pages, sessions, encoded = {}, [], []
    for i, names in enumerate(labels):
        height, width = rng.integers(64, 200, 2)
        pages[str(i)] = backbone.page_processor(
            Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        )
        edges = np.linspace(0, 1, len(names) + 1)
        zeros, ones = np.zeros(len(names)), np.ones(len(names))
        session = StoredSession(
            session_id=str(i),
            user_id=str(i),
            page_id=str(i),
            boxes=np.stack([edges[:-1], zeros, edges[1:], ones], axis=1),
            labels=names,
            dwell_ms={"fixation": 1000 * rng.dirichlet(ones)},
            click=1,
            profile="likes film " * i,
        )
        page = pages[str(i)]
        sessions.append(session)
        encoded.append(backbone.encoder(profile=session.profile, labels=names, rows=page.rows, columns=page.columns))

    def features(page_ids: Any) -> tuple[Any, Any]:
        stacked = stack_pages([pages[i] for i in page_ids])
        if not cached:
            return None, stacked
        encode = jax.jit(lambda params, pages: backbone.merge(params).encode_pages(pages))
        return np.asarray(encode(backbone.params, jax.device_put(stacked))), None

    data = SessionData(
        sessions, encoded, {"0": 2, "1": 0}, features=features, prompt_tokens=K, signal="fixation", max_lengths=1
    )
    return data.batch(list(range(len(labels))))


@pytest.mark.parametrize(
    ("normalise", "labels", "seed", "cached"), [("signed", LONG, 1, True), ("abs", SHORT, 2, False)]
)
def test_same_loss_and_gradient(
    checkpoint: Path,
    backbone: Backbone,
    normalise: Literal["signed", "abs"],
    labels: tuple[tuple[str, ...], ...],
    seed: int,
    cached: bool,
) -> None:
    rng = np.random.default_rng(seed)
    basis = rng.normal(0, 0.3, (M, K, backbone.width)).astype(np.float32)
    coefficients = rng.normal(0, 0.5, (USERS, M)).astype(np.float32)
    config = RunConfig(
        prompt=PromptConfig(tokens=K, basis=M),
        operator=OperatorConfig(normalise=normalise),
        objective=ObjectiveConfig(),
    )
    batch = _batch(backbone, labels, seed=seed, cached=cached)

    # Compiled once for one call: LLVM's optimisations would take longer than they save.
    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def ours(prompt: PromptParams, params: Any, batch: Batch) -> Any:
        def loss(prompt: PromptParams) -> Any:
            return session_losses(prompt, backbone.merge(params), batch, objective_of(config), jnp.float32(0.5))

        return jax.value_and_grad(loss, has_aux=True)(prompt)

    prompt = PromptParams(*jax.device_put((basis, coefficients)))
    (_, parts), gradient = ours(prompt, backbone.params, jax.device_put(batch))
    trainer = reference.TorchTrainer(
        checkpoint,
        basis=basis,
        coefficients=coefficients,
        tapped_layers=TAPPED,
        operator=config.operator,
        objective=config.objective,
    )
    theirs = trainer.loss_and_grads(reference.reference_batch(batch, prompt_tokens=K), attention_weight=0.5)
    assert float(parts["loss"]) == pytest.approx(theirs.loss, rel=1e-5)
    for name, value in theirs.parts.items():
        assert float(parts[name]) == pytest.approx(value, rel=1e-5), name
    for name in ("basis", "coefficients"):
        mine, other = np.asarray(getattr(gradient, name)), getattr(theirs, name)
        assert np.linalg.norm(mine - other) / np.linalg.norm(other) < 1e-4, name


def test_rows_that_only_fill_a_batch_are_refused(backbone: Backbone) -> None:
    batch = _batch(backbone, SHORT, seed=0, cached=False)
    with pytest.raises(ValueError, match="weight 0"):
        reference.reference_batch(batch._replace(weight=np.array([1.0, 0.0], np.float32)), prompt_tokens=K)
