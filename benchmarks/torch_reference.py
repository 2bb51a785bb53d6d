"""The named alternative: one FixATE step in PyTorch on transformers, with whole attention matrices.

Written the way a competent researcher would write it: eager attention, ``output_attentions=True``, the gradient of
the answer's logits with respect to every attention matrix of the last layers by ``torch.autograd.grad`` with
``create_graph=True``, and one backward pass through all of that to the soft prompt. Values are compared with the JAX
step first, then times. Needs the ``torch`` extra.

A batch is a mapping of numpy arrays. A sequence of ``total`` positions is ``[padding | K soft tokens | text]``:

============== ===================== =====================================================================
token_ids      [batch, total - K]    left-padded tokens without the soft prompt, image placeholders repeated
start          [batch]               first row of the soft prompt; everything before it is padding
valid          [batch, total]        optional: False where nobody may look (default: everything before start)
positions      [3, batch, total]     rotary positions (time, height, width)
visual_index   [batch, total]        which visual token stands at a position, -1 for none
features       [batch, visual, d]    visual tokens, and deepstack [levels, batch, visual, d]; or instead of both
pixel_values   [patches, pixels]     patches of all pages, and image_grid_thw [batch, 3]
slot_matrix    [batch, slots, visual] 1 where a visual token belongs to a slot
slot_mask      [batch, slots]        False beyond a page's slots
gaze           [batch, slots]        human distribution g
user           [batch]               row of z
answer_ids     [batch, T]            position total - T + t predicts answer_ids[:, t]
answer_mask    [batch, T]            False at padding; the last position, src, predicts the last answer token
============== ===================== =====================================================================
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import transformers
from jaxtyping import Float, Int
from torch import Tensor

from fixate_jax.lab.config import ObjectiveConfig, OperatorConfig, OptimizerConfig

Batch = Mapping[str, np.ndarray]
LOG_EPS = 1e-4


class StepResult(NamedTuple):
    """Loss and gradients of a batch.

    Attributes:
        loss: the objective.
        parts: ``next_token``, ``alignment`` and ``penalty`` before weighting.
        slot_attention: a, or None where nothing was aligned.
        basis: gradient of the loss in B.
        coefficients: gradient in z, 0 for users who are not in the batch.
    """

    loss: float
    parts: dict[str, float]
    slot_attention: Float[np.ndarray, "batch slots"] | None
    basis: Float[np.ndarray, "basis tokens width"]
    coefficients: Float[np.ndarray, "users basis"]


def attn_lrp(
    attentions: Sequence[Float[Tensor, "batch heads total total"]],
    gradients: Sequence[Float[Tensor, "batch heads total total"]],
    *,
    config: OperatorConfig,
    rows: Literal["all", "src"] = "all",
) -> Float[Tensor, "batch total"]:
    """AttnLRP relevance |R[src, :]| of every position, R = I + Σ_l w_l E_l (FixATE, probing operators).

    Args:
        attentions: post-softmax attention of the last m layers, lowest first.
        gradients: ∂ℓ/∂A of each.
        config: scale of the gradient, ε, and how rows are normalised.
        rows: compute whole matrices and read one row off R, or cut the row out first.
    """
    total = sum(range(1, len(attentions) + 1))
    relevance: Any = 0.0
    for depth, (attention, gradient) in enumerate(zip(attentions, gradients, strict=True), start=1):
        if rows == "src":
            attention, gradient = attention[:, :, -1:], gradient[:, :, -1:]
        weighted = _full(attention) * (config.grad_scale * _full(gradient))
        if config.normalise == "abs":
            divisor = weighted.abs().sum(-1, keepdim=True) + config.eps
        else:
            divisor = weighted.sum(-1, keepdim=True)
            divisor = divisor + config.eps * divisor.sign()
            divisor = torch.where(divisor.abs() < config.eps, config.eps, divisor)
        relevance = relevance + depth / total * (weighted / divisor).mean(1)
    if rows == "all":
        relevance = relevance + torch.eye(relevance.shape[-1], dtype=relevance.dtype, device=relevance.device)
        return relevance[:, -1].abs()
    identity = torch.zeros_like(relevance[0, 0])
    identity[-1] = 1.0
    return (relevance[:, 0] + identity).abs()


def slot_shares(
    relevance: Float[Tensor, "batch visual"],
    slot_matrix: Float[Tensor, "batch slots visual"],
    *,
    eps: float,
) -> Float[Tensor, "batch slots"]:
    """Slot attention a = M·r / (Σ M·r + ε)."""
    mass = (slot_matrix @ relevance[..., None])[..., 0]
    return mass / (mass.sum(-1, keepdim=True) + eps)


def alignment_loss(
    gaze: Float[Tensor, "batch slots"],
    attention: Float[Tensor, "batch slots"],
    mask: Float[Tensor, "batch slots"],
    *,
    config: ObjectiveConfig,
) -> Float[Tensor, ""]:
    """Mean over the batch of Σ_n ω_n g_n (log(g_n + ε) − log(a_n + ε)), with Σω = 1 over a page's slots, or ω = 1.

    Raises:
        ValueError: for alignments other than ``kl`` and ``weighted_kl``.
    """
    if config.alignment not in ("kl", "weighted_kl"):
        raise ValueError(f"objective.alignment = {config.alignment!r}: the reference knows kl and weighted_kl")
    importance = mask
    if config.alignment == "weighted_kl" and config.gamma > 0:
        importance = (gaze + 1e-8) ** config.gamma * mask
        importance = importance / importance.sum(-1, keepdim=True)
    terms = gaze * ((gaze + LOG_EPS).log() - (attention + LOG_EPS).log())
    return (importance * terms * mask).sum(-1).mean()


def next_token_loss(
    logits: Float[Tensor, "batch answer vocab"], ids: Int[Tensor, "batch answer"], mask: Float[Tensor, "batch answer"]
) -> Float[Tensor, ""]:
    """Cross-entropy of the answer tokens, mean over a session's tokens, then over sessions."""
    picked = logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    return -((picked * mask).sum(-1) / mask.sum(-1)).mean()


def reference_batch(batch: Any, *, prompt_tokens: int) -> dict[str, np.ndarray]:
    """Rewrite a batch of the library (``fixate_jax.probing.batches.Batch``) as one of this module.

    Args:
        batch: real sessions only, the clicked slot's label being the answer.
        prompt_tokens: soft tokens, K.

    Raises:
        ValueError: if some rows only fill the batch.
    """
    if not np.all(np.asarray(batch.weight) == 1):
        raise ValueError("the batch holds rows of weight 0; the reference takes real sessions only")
    inputs, sessions = batch.inputs, np.arange(len(batch.click))
    branch = np.minimum(batch.click, inputs.tail_ids.shape[1] - 1)
    tail_ids, tail_positions, tail_valid = (
        np.asarray(x)[sessions, branch] for x in (inputs.tail_ids, inputs.tail_positions, inputs.tail_valid)
    )
    start = np.asarray(inputs.start)
    ids = np.concatenate([inputs.token_ids, tail_ids], axis=1)
    soft = start[:, None] + np.arange(prompt_tokens)
    places = np.arange(inputs.token_ids.shape[1])
    rewritten = {
        "token_ids": np.stack([np.delete(row, gone) for row, gone in zip(ids, soft, strict=True)]),
        "start": start,
        "valid": np.concatenate([places >= start[:, None], tail_valid], axis=1),
        "positions": np.moveaxis(np.concatenate([inputs.positions, tail_positions], axis=1), -1, 0),
        "visual_index": np.concatenate([inputs.visual_index, np.full_like(tail_ids, -1)], axis=1),
        "answer_ids": np.asarray(batch.answer_ids)[sessions, batch.click],
        "answer_mask": np.asarray(batch.answer_mask)[sessions, batch.click],
    }
    rewritten |= {name: np.asarray(getattr(batch, name)) for name in ("slot_matrix", "slot_mask", "gaze", "user")}
    if batch.pages is None:
        features = np.moveaxis(np.asarray(inputs.features, np.float32), 2, 0)
        return rewritten | {"features": features[0], "deepstack": features[1:]}
    valid, corner = np.asarray(batch.pages.valid), np.asarray(batch.pages.position).max(1) + 1
    grid = np.concatenate([np.ones_like(corner[:, :1]), corner], axis=1)
    return rewritten | {"pixel_values": np.asarray(batch.pages.patches)[valid], "image_grid_thw": grid}


class TorchTrainer:
    """Tunes a prompt basis B and user coefficients z of a frozen Qwen3-VL."""

    def __init__(
        self,
        model_dir: Path,
        *,
        basis: Float[np.ndarray, "basis tokens width"],
        coefficients: Float[np.ndarray, "users basis"],
        tapped_layers: int = 6,
        operator: OperatorConfig | None = None,
        objective: ObjectiveConfig | None = None,
        optimizer: OptimizerConfig | None = None,
        rows: Literal["all", "src"] = "all",
        dtype: str = "float32",
        device: str = "cpu",
    ):
        """Load the model, freeze it, and start from given prompt parameters (kept in float32 or float64).

        Args:
            model_dir: checkpoint.
            basis: B at the start.
            coefficients: z at the start.
            tapped_layers: m, the layers whose attention is looked at.
            operator: settings of AttnLRP (None: the defaults).
            objective: settings of the loss; ``kl`` and ``weighted_kl`` alignments are known here.
            optimizer: rates, weight decay and gradient clipping.
            rows: see :func:`attn_lrp`.
            dtype: of the frozen weights, e.g. ``"bfloat16"``. In ``"float64"`` left padding gives NaN, since
                transformers takes the softmax of a float64 mask in float32, unless that is patched.
            device: where to compute.
        """
        self.device = torch.device(device)
        # The decoder must be eager to give its attention away; nobody asks that of the vision tower.
        how = {"text_config": "eager", "vision_config": "sdpa"}
        self.model = self.make_model(model_dir, dtype=getattr(torch, dtype), attn_implementation=how)
        self.model.eval().requires_grad_(False).to(self.device)
        self.tapped_layers, self.rows = tapped_layers, rows
        self.operator = OperatorConfig() if operator is None else operator
        self.objective = ObjectiveConfig() if objective is None else objective
        self.limits = OptimizerConfig() if optimizer is None else optimizer
        exact = torch.float64 if dtype == "float64" else torch.float32
        self.basis = torch.nn.Parameter(torch.tensor(basis, dtype=exact, device=self.device))
        # One parameter a user: without a gradient it is passed over, so that absent users stay as they are.
        self.coefficients = [
            torch.nn.Parameter(torch.tensor(row, dtype=exact, device=self.device)) for row in coefficients
        ]
        rates = self.limits
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [self.basis], "lr": rates.basis_lr, "weight_decay": rates.basis_weight_decay},
                {"params": self.coefficients, "lr": rates.user_lr, "weight_decay": rates.user_weight_decay},
            ]
        )

    def make_model(self, model_dir: Path, **how: Any) -> Any:
        """The checkpoint's model."""
        return transformers.Qwen3VLForConditionalGeneration.from_pretrained(model_dir, **how)

    def forward(self, batch: Batch) -> Float[np.ndarray, "batch answer vocab"]:
        """Logits at the positions that predict the answer, without any gradient."""
        with torch.no_grad():
            return _full(self._run(self._tensors(batch), attentions=False)[0]).cpu().numpy()

    def loss_and_grads(self, batch: Batch, *, attention_weight: float | None = None) -> StepResult:
        """Objective and its gradients.

        Args:
            batch: see the module.
            attention_weight: λ (None: its final value). The alignment is computed also where it is 0.
        """
        weight = self.objective.attention_weight if attention_weight is None else attention_weight
        tensors = self._tensors(batch)
        logits, attentions = self._run(tensors, attentions=True)
        mask = tensors["answer_mask"]
        target = (_full(logits).gather(-1, tensors["answer_ids"][..., None])[..., 0] * mask).sum()
        gradients = torch.autograd.grad(target, attentions, create_graph=True)
        relevance = attn_lrp(attentions, gradients, config=self.operator, rows=self.rows)
        slots = slot_shares(self._of_visual_tokens(relevance, tensors), tensors["slot_matrix"], eps=self.operator.eps)
        alignment = alignment_loss(tensors["gaze"], slots, tensors["slot_mask"], config=self.objective)
        return self._finish(tensors, logits, alignment=alignment, weight=weight, slots=slots)

    def ntp_loss_and_grads(self, batch: Batch) -> StepResult:
        """The same without alignment: plain soft-prompt tuning on the answers."""
        tensors = self._tensors(batch)
        logits, _ = self._run(tensors, attentions=False)
        return self._finish(tensors, logits, alignment=None, weight=0.0, slots=None)

    def step(self, batch: Batch, *, attention_weight: float | None = None) -> StepResult:
        """One aligned AdamW step on a batch."""
        result = self.loss_and_grads(batch, attention_weight=attention_weight)
        self._update()
        return result

    def ntp_step(self, batch: Batch) -> StepResult:
        """One AdamW step of plain soft-prompt tuning."""
        result = self.ntp_loss_and_grads(batch)
        self._update()
        return result

    def _update(self) -> None:
        torch.nn.utils.clip_grad_norm_([self.basis], self.limits.basis_clip)
        torch.nn.utils.clip_grad_norm_(self.coefficients, self.limits.user_clip)
        self.optimizer.step()

    def _tensors(self, batch: Batch) -> dict[str, Tensor]:
        tensors = {}
        for name, value in batch.items():
            kind = self.basis.dtype if name in FLOATS else torch.int64
            tensors[name] = torch.tensor(np.asarray(value), dtype=kind, device=self.device)
        return tensors

    def _run(
        self, batch: dict[str, Tensor], *, attentions: bool
    ) -> tuple[Float[Tensor, "batch answer vocab"], tuple[Float[Tensor, "batch heads total total"], ...]]:
        hidden, deepstack, is_visual = self._embed(batch)
        places = torch.arange(hidden.shape[1], device=self.device)
        mask = batch["valid"] if "valid" in batch else (places >= batch["start"][:, None]).long()
        output = self.model.model.language_model(
            inputs_embeds=hidden,
            attention_mask=mask,
            position_ids=batch["positions"],
            visual_pos_masks=is_visual,
            deepstack_visual_embeds=deepstack,
            use_cache=False,
            output_attentions=attentions,
        )
        answer = output.last_hidden_state[:, -batch["answer_ids"].shape[1] :]
        return self.model.lm_head(answer), output.attentions[-self.tapped_layers :] if attentions else ()

    def _embed(
        self, batch: dict[str, Tensor]
    ) -> tuple[Float[Tensor, "batch total width"], list[Float[Tensor, "found width"]], Tensor]:
        """Input embeddings with soft prompt and visual tokens in place, DeepStack terms, and where they go."""
        mixture = torch.stack([self.coefficients[user] for user in batch["user"].tolist()]).softmax(-1)
        prompt = torch.einsum("bm,mkd->bkd", mixture, self.basis).to(self.model.dtype)
        words = self.model.get_input_embeddings()(batch["token_ids"])
        rows = zip(words, prompt, batch["start"].tolist(), strict=True)
        hidden = torch.stack([torch.cat([word[:first], soft, word[first:]]) for word, soft, first in rows])
        features, deepstack = self._visual_tokens(batch)
        is_visual = batch["visual_index"] >= 0
        sample = torch.nonzero(is_visual)[:, 0]
        index = batch["visual_index"][is_visual]
        hidden[is_visual] = features[sample, index]
        return hidden, [level[sample, index] for level in deepstack], is_visual

    def _visual_tokens(
        self, batch: dict[str, Tensor]
    ) -> tuple[Float[Tensor, "batch visual width"], list[Float[Tensor, "batch visual width"]]]:
        if "features" in batch:
            return batch["features"].to(self.model.dtype), list(batch["deepstack"].to(self.model.dtype))
        with torch.no_grad():
            output = self.model.model.get_image_features(batch["pixel_values"], batch["image_grid_thw"])

        def pad(pages: Sequence[Float[Tensor, "tokens width"]]) -> Float[Tensor, "batch visual width"]:
            return torch.nn.utils.rnn.pad_sequence(list(pages), batch_first=True)

        return pad(output.pooler_output), [pad(level) for level in output.deepstack_features]

    def _of_visual_tokens(
        self, relevance: Float[Tensor, "batch total"], batch: dict[str, Tensor]
    ) -> Float[Tensor, "batch visual"]:
        index = batch["visual_index"]
        sample, place = torch.nonzero(index >= 0, as_tuple=True)
        found = relevance.new_zeros(index.shape[0], batch["slot_matrix"].shape[-1])
        return found.index_put((sample, index[sample, place]), relevance[sample, place])

    def _finish(
        self,
        batch: dict[str, Tensor],
        logits: Float[Tensor, "batch answer vocab"],
        *,
        alignment: Float[Tensor, ""] | None,
        weight: float,
        slots: Float[Tensor, "batch slots"] | None,
    ) -> StepResult:
        next_token = next_token_loss(_full(logits), batch["answer_ids"], batch["answer_mask"])
        present = torch.stack([self.coefficients[user] for user in batch["user"].tolist()])
        penalty = present.square().sum(-1).mean()
        loss = self.objective.ntp_weight * next_token + self.objective.beta * penalty
        parts = {"next_token": next_token, "penalty": penalty}
        if alignment is not None:
            loss = loss + weight * alignment
            parts["alignment"] = alignment
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        assert self.basis.grad is not None
        rows = [torch.zeros_like(z) if z.grad is None else z.grad for z in self.coefficients]
        return StepResult(
            loss=loss.item(),
            parts={name: value.item() for name, value in parts.items()},
            slot_attention=None if slots is None else slots.detach().cpu().numpy(),
            basis=self.basis.grad.cpu().numpy().copy(),
            coefficients=torch.stack(rows).cpu().numpy(),
        )


FLOATS = ("features", "deepstack", "pixel_values", "slot_matrix", "slot_mask", "gaze", "answer_mask")


def _full(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
