"""From pages to arrays: what a frozen model reads of them, in one batch."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from fixate_jax.backbones.inputs import stack_pages
from fixate_jax.backbones.loading import Backbone
from fixate_jax.backbones.processing import EncodedSession
from fixate_jax.data.page import Page, Session
from fixate_jax.data.session import StoredSession
from fixate_jax.errors import DataError
from fixate_jax.probing.batches import Batch, SessionData
from fixate_jax.prompts import Position

Question: TypeAlias = tuple[str, tuple[str, ...], int, int]
"""What a token sequence depends on: profile, labels, rows and columns of the page."""
AT_ONCE = 8
"""Pages that go through the vision tower together."""


def encode(
    backbone: Backbone,
    pages: Sequence[Page | Session],
    *,
    prompt_tokens: int = 16,
    position: Position = "before",
    assignment: Literal["centre", "area"] = "centre",
) -> Batch:
    """Pages, or sessions with their gaze and click, as one batch of arrays with a leading axis of pages.

    Labels are drawn where they are not on the page yet. The vision tower runs here, once for each page: what the batch
    holds depends on the backbone. Pages may differ in size and number of slots; all are padded to the largest.

    Args:
        backbone: whose tokenizer, image processor and vision tower to use.
        pages: at least one. The gaze of a page that nobody has looked at is 0, its click 0.
        prompt_tokens: soft tokens that the sequences have room for.
        position: where they stand, before the whole input (FixATE) or behind the page.
        assignment: how tokens are assigned to slots, see :func:`fixate_jax.probing.assign_slots`.

    Returns:
        The batch. ``batch.user`` counts users in the order in which they first come up.

    Raises:
        DataError: no page.
        LabelError: labels of a page do not suit the tokenizer.
    """
    data = session_data(
        backbone, pages, prompt_tokens=prompt_tokens, position=position, assignment=assignment, signal=None
    )
    batch = data.batch(range(len(pages)))
    for row, given in enumerate(pages):
        if isinstance(given, Session):
            batch.gaze[row, : len(given.page.labels)] = data.sessions[row].gaze()
    placed: Batch = jax.device_put(with_soft_position(batch, prompt_tokens))
    return placed


def session_data(
    backbone: Backbone,
    pages: Sequence[Page | Session],
    *,
    prompt_tokens: int,
    position: Position,
    assignment: Literal["centre", "area"],
    signal: str | None,
    users: Sequence[str] = (),
) -> SessionData:
    """Pages read and encoded once, from which any batch can be put together; arguments as of :func:`encode`.

    Args:
        signal: "fixation" where all pages are sessions and batches hold their gaze, else None.
        users: whose rows of coefficients come first, in this order.

    Raises:
        DataError: no page.
    """
    if not pages:
        raise DataError("no page is given; give at least one")
    stored = [page.stored(f"page {i}") for i, page in enumerate(pages)]
    shown = [page.page if isinstance(page, Session) else page for page in pages]
    unique = {id(page): page for page in shown}
    read = [backbone.page_processor(page.picture()) for page in unique.values()]
    place = {key: i for i, key in enumerate(unique)}
    page_of = {session.page_id: place[id(page)] for session, page in zip(stored, shown, strict=True)}
    features = _page_features(backbone, read)
    return SessionData(
        stored,
        encode_sessions(backbone, stored, {name: (read[i].rows, read[i].columns) for name, i in page_of.items()}),
        {user: i for i, user in enumerate(dict.fromkeys([*users, *(s.user_id for s in stored)]))},
        features=lambda ids: (features[np.array([page_of[name] for name in ids])], None),
        prompt_tokens=prompt_tokens,
        signal=signal,
        max_lengths=1,
        assignment=assignment,
        position=position,
    )


def with_soft_position(batch: Batch, prompt_tokens: int) -> Batch:
    """A batch that says where its soft tokens stand, as :func:`fixate_jax.probing.look.look` has to know."""
    where = np.asarray(batch.inputs.start)[:, None] + np.arange(prompt_tokens)
    return batch._replace(soft_position=where.astype(np.int32))


@partial(jax.jit, static_argnums=0)
def _encode_pages(graph: nnx.GraphDef, params: Any, pages: Any) -> Array:
    model: Any = nnx.merge(graph, params)
    found: Array = model.encode_pages(pages)
    return found


def _page_features(backbone: Backbone, read: Sequence[Any]) -> Float[Array, "pages tokens levels width"]:
    """Page tokens of each page, some pages at a time, all padded alike."""
    units = max(page.inputs.valid.shape[1] for page in read)
    size, parts = min(AT_ONCE, len(read)), []
    for first in range(0, len(read), size):
        part = list(read[first : first + size])
        part += [part[0]] * (size - len(part))
        parts.append(_encode_pages(backbone.graph, backbone.params, stack_pages(part, units=units)))
    return jnp.concatenate(parts)[: len(read)]


def encode_sessions(
    backbone: Backbone,
    sessions: Sequence[StoredSession],
    grids: Mapping[str, tuple[int, int]],
    known: dict[Question, EncodedSession] | None = None,
) -> list[EncodedSession]:
    """The sessions' token sequences; those that ask the same of pages with the same grid are encoded once.

    Args:
        backbone: whose tokenizer and template to use.
        sessions: the sessions.
        grids: rows and columns of cells of each page.
        known: what was encoded before; gets what is new.
    """
    encoded = {} if known is None else known
    keys = [(s.profile, s.labels, *grids[s.page_id]) for s in sessions]
    for key in keys:
        if key not in encoded:
            encoded[key] = backbone.encoder(profile=key[0], labels=key[1], rows=key[2], columns=key[3])
    return [encoded[key] for key in keys]
