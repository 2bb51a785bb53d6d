"""What a backbone can read, and whether the operators point at the slot that its answer comes from."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from flax import nnx
from jaxtyping import Array

from fixate_jax.backbones.loading import Backbone
from fixate_jax.lab.config import OperatorConfig
from fixate_jax.lab.parts import operator_of
from fixate_jax.lab.pretraining.packing import PackedBatch, make_packer
from fixate_jax.lab.pretraining.tasks import KINDS, Example
from fixate_jax.probing import Trace, gather_visual, slot_attention

BATCH = 16
POINTED = ("find", "compare", "choice", "gaze")
"""Kinds of questions (their first word) whose answer is a slot's label."""


def pointing_operators(layers: int) -> dict[str, OperatorConfig]:
    """Every operator on each tapped layer alone and on all of them, by a name such as ``"attention, layer 2"``."""
    operators = {
        "attention": OperatorConfig(name="attention"),
        "attn_lrp abs": OperatorConfig(name="attn_lrp", normalise="abs"),
        "attn_lrp signed": OperatorConfig(name="attn_lrp", normalise="signed"),
    }
    chosen = {}
    for name, config in operators.items():
        for layer in range(layers):
            weights = tuple(float(i == layer) for i in range(layers))
            chosen[f"{name}, layer {layer + 1}"] = replace(config, layer_weights=weights)
        chosen[f"{name}, all layers"] = config
    return chosen


def _examine(backbone: Backbone, operators: dict[str, OperatorConfig]) -> Any:
    """The jitted function from a batch and its slots to hits, own answers and slot attention for them."""
    graph = backbone.graph

    def examine(params: nnx.State, batch: PackedBatch) -> tuple[Array, Array, dict[str, Array]]:
        model, slots = nnx.merge(graph, params), batch.slot_matrix
        inputs = batch.inputs._replace(features=model.encode_pages(batch.pages))
        prefix = model.prefill(inputs, jnp.zeros((slots.shape[0], 0, backbone.width)), False)
        logits = model.tail(prefix).logits
        top = logits.argmax(-1)
        weight = batch.answer_weight
        right = jnp.where(top[:, :, -1, None] == batch.answer_ids, weight, 0).max(-1) >= weight.max(-1) - 1e-6
        hit = right & ((top == batch.next_ids) | ~batch.next_mask).all(-1)
        scores = jnp.take_along_axis(logits[:, :, -1], batch.answer_ids, axis=-1)
        real = jnp.arange(scores.shape[-1]) < slots.any(-1).sum(-1)[:, None, None]
        own = jnp.where(real, scores, -jnp.inf).argmax(-1)
        token = jnp.take_along_axis(batch.answer_ids, own[..., None], axis=-1)

        def target(logits: Array) -> Array:
            return jnp.take_along_axis(logits[:, :, -1], token, axis=-1)[..., 0]

        attention = {}
        for name, config in operators.items():
            _, relevance = operator_of(config)(Trace(model, prefix, target))
            attention[name] = slot_attention(
                gather_visual(relevance, inputs.visual_position, prefix.start.moved), slots, config.eps
            )
        return hit, own, attention

    return jax.jit(examine)


def _rows(
    example: Example, kind: str, hit: np.ndarray, own: np.ndarray, attention: dict[str, np.ndarray]
) -> Iterator[dict[str, Any]]:
    for i, question in enumerate(example.questions):
        row: dict[str, Any] = {"page": kind, "kind": question.kind, "hit": bool(hit[i])}
        # A guess knows the labels of the page; nothing is said of guessing numbers and genres.
        row["chance"] = (
            np.mean(question.weights >= question.weights.max() - 1e-6) if len(question.answers) > 1 else np.nan
        )
        if question.kind.split()[0] in POINTED:
            row["slots"] = len(example.labels)
            for name, a in attention.items():
                row[f"top {name}"] = bool(a[i].argmax() == own[i])
                row[f"share {name}"] = float(a[i][own[i]])
        yield row


def examine(
    backbone: Backbone, *, pages: int = 256, seed: int = 1_000_000, page_width: int = 320, seq: int = 192
) -> pd.DataFrame:
    """Ask a backbone questions about fresh pages.

    Args:
        backbone: with every layer tapped that is to be looked at.
        pages: pages of each kind.
        seed: of the pages; the recipe's own seed gives pages seen in training.
        page_width: in pixels.
        seq: room for the prefix, in tokens.

    Returns:
        A row per question: page and kind, whether it was answered right and how often a guess would be, and for
        label answers, per operator, whether the slot with most attention is that of the model's own answer, and the
        share of slot attention that falls on it.
    """
    packer = make_packer(backbone, page_width=page_width, seq=seq, tail=24)
    operators = pointing_operators(backbone.config.decoder.tapped)
    run = _examine(backbone, operators)
    rows: list[dict[str, Any]] = []
    for k, (kind, draw) in enumerate(KINDS.items()):
        for first in range(0, pages, BATCH):
            rng = np.random.default_rng([seed, k, first])
            examples = [draw(rng, width=page_width) for _ in range(BATCH)]
            hit, own, attention = jax.device_get(run(backbone.params, packer(examples)))
            for i, example in enumerate(examples[: pages - first]):
                rows += _rows(example, kind, hit[i], own[i], {name: a[i] for name, a in attention.items()})
    return pd.DataFrame(rows)


def read_outs(asked: pd.DataFrame) -> pd.DataFrame:
    """Share of right answers per kind of page and question, beside guessing among the page's labels."""
    table = asked.groupby(["page", "kind"]).agg(
        questions=("hit", "size"), accuracy=("hit", "mean"), chance=("chance", "mean")
    )
    return table.reset_index()


def pointing_game(asked: pd.DataFrame) -> pd.DataFrame:
    """Per operator: how often its top slot is that of the model's own answer, and that slot's share of attention.

    ``chance`` is one slot's share of the page, ``1 / slots``.
    """
    pointed = asked[asked["slots"].notna()]
    table = []
    for page, rows in pointed.groupby("page"):
        asked_for = {"find": rows["kind"].str.startswith("find"), "choice": rows["kind"] == "choice"}
        for name in (c.removeprefix("top ") for c in rows.columns if c.startswith("top ")):
            operator, layers = name.split(", ")
            row = {"page": page, "operator": operator, "layers": layers, "chance": (1 / rows["slots"]).mean()}
            for label, chosen in asked_for.items():
                row[f"{label}: top"] = rows.loc[chosen, f"top {name}"].astype(float).mean()
                row[f"{label}: share"] = rows.loc[chosen, f"share {name}"].mean()
            table.append(row)
    return pd.DataFrame(table)
