"""The PyTorch alternative computes what it says: checked against loops over numbers and finite differences."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from fixate_jax.lab.config import ObjectiveConfig, OperatorConfig
from tests.backbones.tiny import make_torch_checkpoint
from tests.backbones.torch_parity import left_pad, load_torch_model, page_token_rows, torch_hidden_states

torch = pytest.importorskip("torch")
reference = pytest.importorskip("benchmarks.torch_reference", exc_type=ImportError)

K, M, USERS, SLOTS = 3, 2, 4, 3
ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2], "mrope_interleaved": True}


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[tuple[int, int, int], float]]:
    """Take the float32 casts out of transformers, so that finite differences mean something.

    Yields:
        Numbers to add to the last attention row, by (layer, head, key).
    """
    from transformers.models.qwen3_vl import modeling_qwen3_vl as theirs

    taps: dict[tuple[int, int, int], float] = {}

    plain = theirs.eager_attention_forward

    def attention(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: float, **_: Any) -> Any:
        if not isinstance(module, theirs.Qwen3VLTextAttention):
            return plain(module, query, key, value, attention_mask, scaling)
        key, value = (theirs.repeat_kv(x, module.num_key_value_groups) for x in (key, value))
        weights = (query @ key.transpose(2, 3) * scaling + attention_mask).softmax(-1)
        for (layer, head, place), amount in taps.items():
            if layer == module.layer_idx:
                change = torch.zeros_like(weights)
                change[:, head, -1, place] = amount
                weights = weights + change
        return (weights @ value).transpose(1, 2), weights

    def norm(self: Any, x: Any) -> Any:
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon)

    monkeypatch.setattr(theirs, "eager_attention_forward", attention)
    monkeypatch.setattr(theirs.Qwen3VLTextRMSNorm, "forward", norm)
    yield taps


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    text: dict[str, Any] = {
        "num_hidden_layers": 3,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 2,
    }
    text |= {"num_key_value_heads": 1, "head_dim": 16, "rope_parameters": ROPE}
    return make_torch_checkpoint(tmp_path_factory.mktemp("model") / "model", text=text, seed=5)


@cache
def _batch(directory: Path, *, answer: int = 1) -> dict[str, np.ndarray]:
    """Two pages of different sizes, left-padded, the second with two slots only; users 2 and 0."""
    rng = np.random.default_rng(0)
    model = load_torch_model(directory)
    processor = Qwen2VLImageProcessorPil.from_pretrained(directory)
    images = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((64, 96), (96, 64))]
    pages = [processor(image, return_tensors="np") for image in images]
    grids = np.concatenate([page["image_grid_thw"] for page in pages])
    pixels = np.concatenate([page["pixel_values"] for page in pages])
    rows = page_token_rows(grids, config=model.config, text=(3, 5))
    ids, mask = left_pad(rows, pad=0)
    seen = torch_hidden_states(
        directory, pixel_values=pixels, image_grid_thw=grids, input_ids=ids, attention_mask=mask, model=model
    )
    batch, total, visual = len(rows), ids.shape[1] + K, 6
    start = (1 - mask).sum(1)
    positions = np.zeros((3, batch, total), np.int64)
    index = np.full((batch, total), -1)
    for i, first in enumerate(start):
        positions[:, i, first : first + K] = np.arange(K)
        positions[:, i, first + K :] = seen["position_ids"][:, i, first:] + K
        index[i, K:][ids[i] == model.config.image_token_id] = np.arange(visual)
    slot_matrix = np.zeros((batch, SLOTS, visual))
    slot_matrix[0, np.arange(5) % 3, np.arange(5)] = 1
    slot_matrix[1, np.arange(6) % 2, np.arange(6)] = 1
    answer_mask = np.ones((batch, answer))
    answer_mask[1, :-1] = 0
    return {
        "token_ids": ids,
        "start": start,
        "positions": positions,
        "visual_index": index,
        "pixel_values": pixels,
        "image_grid_thw": grids,
        "slot_matrix": slot_matrix,
        "slot_mask": np.array([[1, 1, 1], [1, 1, 0]]),
        "gaze": np.array([[0.5, 0.2, 0.3], [0.1, 0.9, 0.0]]),
        "user": np.array([2, 0]),
        "answer_ids": rng.integers(0, 400, (batch, answer)),
        "answer_mask": answer_mask,
    }


def _trainer(checkpoint: Path, **settings: Any) -> Any:
    rng = np.random.default_rng(1)
    return reference.TorchTrainer(
        checkpoint,
        basis=rng.normal(0, 0.5, (M, K, 32)),
        coefficients=rng.normal(0, 0.5, (USERS, M)),
        tapped_layers=2,
        **settings,
    )


@pytest.mark.parametrize(("normalise", "answer"), [("signed", 2), ("abs", 1)])
def test_gradients_by_finite_differences(checkpoint: Path, exact: dict, normalise: Any, answer: int) -> None:
    trainer = _trainer(checkpoint, operator=OperatorConfig(normalise=normalise), dtype="float64")
    batch = _batch(checkpoint, answer=answer)
    result = trainer.loss_and_grads(batch)
    assert np.all(result.coefficients[[1, 3]] == 0) and np.any(result.coefficients[[0, 2]] != 0)
    entries: list[tuple[Any, tuple[int, ...]]]
    entries = [(trainer.basis, (0, 0, 3)), (trainer.basis, (1, 2, 20)), (trainer.basis, (0, 1, 31))]
    entries += [(trainer.coefficients[2], (0,)), (trainer.coefficients[0], (1,))]
    for parameter, entry in entries:
        losses = []
        for step in (1e-5, -2e-5):
            with torch.no_grad():
                parameter[entry] += step
            losses.append(trainer.loss_and_grads(batch).loss)
        with torch.no_grad():
            parameter[entry] += 1e-5
        of_user = next((u for u, z in enumerate(trainer.coefficients) if z is parameter), None)
        analytic = result.basis[entry] if of_user is None else result.coefficients[(of_user, *entry)]
        assert (losses[0] - losses[1]) / 2e-5 == pytest.approx(analytic, rel=1e-5, abs=1e-8)


def test_slot_attention_by_loops_over_numbers(checkpoint: Path, exact: dict) -> None:
    batch = _batch(checkpoint, answer=2)
    weighted = None
    for normalise in ("signed", "abs"):
        operator = OperatorConfig(normalise=normalise)
        trainer = _trainer(checkpoint, operator=operator, dtype="float64")
        if weighted is None:  # The same for both.
            weighted = _weighted_by_differences(trainer, _with_features(trainer, batch), exact, operator)
        result = trainer.loss_and_grads(batch)
        expected = _slot_attention_by_loops(weighted, batch, operator)
        np.testing.assert_allclose(result.slot_attention, expected, rtol=1e-5, atol=1e-9)
        assert result.slot_attention[1, 2] == 0, "the second page has no third slot"


def _with_features(trainer: Any, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The batch with page features instead of pages."""
    features, deepstack = trainer._visual_tokens(trainer._tensors(batch))
    cached = {k: v for k, v in batch.items() if k not in ("pixel_values", "image_grid_thw")}
    return cached | {"features": features.numpy(), "deepstack": torch.stack(deepstack).numpy()}


def _weighted_by_differences(trainer: Any, batch: dict, taps: dict, operator: OperatorConfig) -> list[np.ndarray]:
    """Of both tapped layers, attention times its gradient."""
    sessions, total = batch["visual_index"].shape

    def target() -> np.ndarray:
        logits = np.take_along_axis(trainer.forward(batch), batch["answer_ids"][..., None], -1)[..., 0]
        return (logits * batch["answer_mask"]).sum(-1)

    attentions = trainer._run(trainer._tensors(batch), attentions=True)[1]
    found = []
    for attention, layer in zip(attentions, (1, 2), strict=True):
        weighted = np.zeros((sessions, 2, total))
        for head in range(2):
            for key in range(total):
                differences = []
                for amount in (1e-5, -1e-5):
                    taps[layer, head, key] = amount
                    differences.append(target())
                    taps.clear()
                gradient = operator.grad_scale * (differences[0] - differences[1]) / 2e-5
                weighted[:, head, key] = attention[:, head, -1, key].detach().numpy() * gradient
        found.append(weighted)
    return found


def _slot_attention_by_loops(weighted: list[np.ndarray], batch: dict, operator: OperatorConfig) -> np.ndarray:
    sessions, total = batch["visual_index"].shape
    relevance = np.zeros((sessions, total))
    for depth, rows in enumerate(weighted, start=1):
        for session in range(sessions):
            for head in range(2):
                row = rows[session, head]
                if operator.normalise == "abs":
                    divisor = np.abs(row).sum() + operator.eps
                else:
                    divisor = row.sum() + operator.eps * np.sign(row.sum())
                relevance[session] += depth / 3 * row / divisor / 2
    attention = np.zeros((sessions, SLOTS))
    for session in range(sessions):
        for place, token in enumerate(batch["visual_index"][session]):
            if token >= 0:
                attention[session] += batch["slot_matrix"][session, :, token] * abs(relevance[session, place])
    return attention / (attention.sum(1, keepdims=True) + operator.eps)


def test_loss_parts(checkpoint: Path) -> None:
    objective = ObjectiveConfig(attention_weight=0.25, beta=0.5)
    trainer, batch = _trainer(checkpoint, objective=objective), _batch(checkpoint, answer=2)
    result = trainer.loss_and_grads(batch)
    logits = torch.from_numpy(trainer.forward(batch)).log_softmax(-1).numpy()
    ids = batch["answer_ids"]
    two, one = [logits[0, t, ids[0, t]] for t in (0, 1)], logits[1, 1, ids[1, 1]]
    assert result.parts["next_token"] == pytest.approx(-(np.mean(two) + one) / 2, rel=1e-5)
    z = np.random.default_rng(1)
    z.normal(0, 0.5, (M, K, 32))
    rows = z.normal(0, 0.5, (USERS, M))[batch["user"]]
    assert result.parts["penalty"] == pytest.approx((rows**2).sum(1).mean(), rel=1e-5)
    g, a = batch["gaze"], result.slot_attention
    weight = g**2 / (g**2).sum(1, keepdims=True)
    terms = weight * g * (np.log(g + 1e-4) - np.log(a + 1e-4))
    assert result.parts["alignment"] == pytest.approx(terms.sum(1).mean(), rel=1e-5)
    parts = result.parts
    whole = 0.5 * parts["next_token"] + 0.25 * parts["alignment"] + 0.5 * parts["penalty"]
    assert result.loss == pytest.approx(whole, rel=1e-5)


def test_one_row_is_enough_and_so_are_cached_features(checkpoint: Path) -> None:
    batch = _batch(checkpoint)
    whole = _trainer(checkpoint).loss_and_grads(batch)
    trainer = _trainer(checkpoint, rows="src")
    row = trainer.loss_and_grads(_with_features(trainer, batch))
    np.testing.assert_allclose(row.slot_attention, whole.slot_attention, rtol=1e-5)
    np.testing.assert_allclose(row.basis, whole.basis, rtol=1e-4, atol=1e-6)


def test_logits_are_those_of_transformers(checkpoint: Path) -> None:
    """Without soft tokens the batch contract is the ordinary one."""
    batch = _batch(checkpoint)
    mask = (np.arange(batch["token_ids"].shape[1]) >= batch["start"][:, None]).astype(np.int64)
    whole = torch_hidden_states(
        checkpoint,
        pixel_values=batch["pixel_values"],
        image_grid_thw=batch["image_grid_thw"],
        input_ids=batch["token_ids"],
        attention_mask=mask,
    )
    bare = batch | {"positions": whole["position_ids"], "visual_index": batch["visual_index"][:, K:]}
    trainer = reference.TorchTrainer(checkpoint, basis=np.zeros((M, 0, 32)), coefficients=np.zeros((USERS, M)))
    np.testing.assert_allclose(trainer.forward(bare)[:, 0], whole["logits"][:, -1], atol=1e-4)


def test_steps_leave_absent_users_alone(checkpoint: Path) -> None:
    trainer, batch = _trainer(checkpoint), _batch(checkpoint)
    before = [z.detach().clone() for z in trainer.coefficients]
    first = trainer.step(batch)
    losses = [trainer.ntp_step(batch).loss for _ in range(5)]
    for user, z in enumerate(trainer.coefficients):
        assert torch.equal(z, before[user]) == (user in (1, 3))
    assert first.slot_attention is not None and losses[-1] < losses[0]


def test_unknown_alignment(checkpoint: Path) -> None:
    trainer = _trainer(checkpoint, objective=ObjectiveConfig(alignment="i_divergence"))
    with pytest.raises(ValueError, match="i_divergence"):
        trainer.loss_and_grads(_batch(checkpoint))
