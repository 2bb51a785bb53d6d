"""What a model still answers when slots of the page are masked, one after the other."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from fixate_jax.backbones import Backbone
from fixate_jax.lab.experiments.probe import soft_tokens
from fixate_jax.probing.batches import Batch, SessionData
from fixate_jax.probing.passes import label_log_probs, with_features


class Masks(NamedTuple):
    """Which page tokens go with which slot.

    Attributes:
        share: how much of each page token is masked with each slot: the slot matrix in the order of the sequence.
        cells: weights of the page's mean token, which takes their place: equal for all cells' tokens.
        beside: 1 at page tokens that are no cell's (InternVL's thumbnail). They show the whole page again, so they are
            masked from the start.
    """

    share: Float[Any, "batch slots tokens"]
    cells: Float[Any, "batch tokens"]
    beside: Float[Any, "batch tokens"]


def slot_masks(data: SessionData, batch: Batch) -> Masks:
    """The masks of a batch's sessions."""
    slots, size = batch.slot_matrix.shape[1:]
    rows = []
    for index in np.where(batch.session >= 0, batch.session, batch.session[0]).tolist():
        encoded, matrix = data.encoded[index], data.slot_matrix(index)
        share, cells, beside = (
            np.zeros((slots, size), np.float32),
            np.zeros(size, np.float32),
            np.zeros(size, np.float32),
        )
        share[: len(matrix), encoded.cell_tokens] = matrix
        cells[encoded.cell_tokens] = 1 / len(encoded.cell_tokens)
        beside[: encoded.page_tokens] = cells[: encoded.page_tokens] == 0
        rows.append(Masks(share, cells, beside))
    return Masks(*(np.stack(leaves) for leaves in zip(*rows, strict=True)))


def masked_log_probs(
    backbone: Backbone,
    params: nnx.State,
    data: SessionData,
    batch: Batch,
    rank: Int[np.ndarray, "batch slots"],
    soft: Callable[[Batch], Float[Array, "batch tokens width"]] | None = None,
) -> Float[np.ndarray, "steps batch slots"]:
    """Answers while slots are masked one after the other, from none (step 0) to all (step N).

    A masked slot's visual tokens are replaced by the mean over the page's cells, at every level of features: what
    enters the sequence and what DeepStack adds to later layers. A token that belongs to a slot in part
    (``operator.assignment`` area) is moved towards the mean by that share.

    Args:
        backbone: the model.
        params: its weights.
        data: the sessions.
        batch: some of them, on the host.
        rank: place of each slot in the order of masking, from 0; padding slots come last.
        soft: from the batch to its soft tokens; None for the backbone alone.

    Returns:
        Log-probability of every slot's label as the answer, -inf at padding slots; N is that of the longest page.
    """
    prompt = soft_tokens(backbone, data, batch, soft)
    masks = jax.device_put(slot_masks(data, batch))
    found = _answers(
        params,
        jax.device_put(batch),
        prompt,
        masks,
        jnp.asarray(rank),
        graph=backbone.graph,
        end_token=backbone.encoder.end_token,
        prompted=soft is not None,
    )
    return np.asarray(found)


@partial(jax.jit, static_argnames=("graph", "end_token", "prompted"))
def _answers(
    params: nnx.State,
    batch: Batch,
    soft: Float[Array, "batch tokens width"],
    masks: Masks,
    rank: Int[Array, "batch slots"],
    *,
    graph: nnx.GraphDef,
    end_token: int,
    prompted: bool,
) -> Float[Array, "steps batch slots"]:
    model: Any = nnx.merge(graph, params)
    inputs = with_features(model, batch)
    # The tower may give more tokens than the longest sequence of the bucket has.
    features = inputs.features[:, : masks.cells.shape[1]]
    mean = jnp.einsum("bv,bvld->bld", masks.cells, features.astype(jnp.float32))[:, None]

    def one(step: Int[Array, ""]) -> Float[Array, "batch slots"]:
        gone = jnp.einsum("bn,bnv->bv", (rank < step).astype(jnp.float32), masks.share) + masks.beside
        shown = features + gone[..., None, None] * (mean - features)
        prefix = model.prefill(inputs._replace(features=shown.astype(features.dtype)), soft, prompted)
        return label_log_probs(model.tail(prefix).logits, batch, end_token)

    return jax.lax.map(one, jnp.arange(rank.shape[1] + 1))
