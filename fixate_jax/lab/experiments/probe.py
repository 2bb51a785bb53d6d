"""Where a model looks on a page, asked in one call."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, NoReturn, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int
from PIL import Image

from fixate_jax.backbones import Backbone, stack_pages
from fixate_jax.data.session import StoredSession
from fixate_jax.errors import DataError
from fixate_jax.lab.config import OperatorConfig
from fixate_jax.lab.parts import operator_of
from fixate_jax.probing import Operator, heat_map
from fixate_jax.probing.batches import Batch, SessionData, evaluation_batches
from fixate_jax.probing.encode import encode_sessions
from fixate_jax.probing.passes import branches_of, label_log_probs, look_for, ready_inputs
from fixate_jax.prompts import Position, PromptParams, soft_prompt
from fixate_jax.runtime.progress import Track, silent

OWN = -1
"""Stands for the model's own answer in place of a slot."""
Prompt: TypeAlias = Float[Array, "tokens width"] | Float[np.ndarray, "tokens width"] | tuple[PromptParams, int]
"""Soft tokens as they are, or tuned prompts and the user's row in them."""
Target: TypeAlias = str | int
"""Whose label's relevance is asked for: "own" (the model's own answer), "click", a label, or a slot's index."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Relevance:
    """Where a model looks on one page when it gives one answer.

    Attributes:
        session_id: of the session.
        operator: the operator and its settings.
        signed: relevance of each visual token in its place on the page, sign and all.
        slot_attention: a, the share of the relevance's magnitude on each slot; it sums to just under 1, or to 0 where
            no slot holds a visual token.
        target: the slot whose label's relevance it is.
        answer: the slot with the most probable label, the model's own answer.
        log_probs: log-probability of each slot's label as the answer, among everything that the model could say.
    """

    session_id: str
    operator: OperatorConfig
    signed: Float[np.ndarray, "rows columns"]
    slot_attention: Float[np.ndarray, " slots"]
    target: int
    answer: int
    log_probs: Float[np.ndarray, " slots"]

    @property
    def magnitude(self) -> Float[np.ndarray, "rows columns"]:
        """|relevance| of each visual token, which slot attention is made of."""
        return np.abs(self.signed)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of visual tokens."""
        rows, columns = self.signed.shape
        return rows, columns

    @property
    def probabilities(self) -> Float[np.ndarray, " slots"]:
        """Probability of each slot's label among the labels of the page; they sum to 1."""
        odds = np.exp(self.log_probs - self.log_probs.max())
        return odds / odds.sum()

    def heat_map(self, width: int, height: int, *, signed: bool = False) -> Float[np.ndarray, "{height} {width}"]:
        """Magnitude (or signed relevance) at every pixel of the page, see :func:`fixate_jax.probing.heat_map`."""
        return heat_map(self.signed if signed else self.magnitude, width, height)


def probe(
    backbone: Backbone,
    params: nnx.State,
    session: StoredSession,
    *,
    image: Image.Image,
    operator: str | OperatorConfig = "glimpse",
    prompt: Prompt | None = None,
    position: Position = "before",
    target: Target = "own",
) -> Relevance:
    """Where a model looks on a session's page.

    The same call compiles once for each shape of page and question, see :func:`probe_batch` for many sessions.

    Args:
        backbone: the model; ``backbone.tapped_layers`` of its settings says how many layers are looked into.
        params: its weights, ``backbone.params`` as a rule.
        session: whose page, labels and profile to ask about.
        image: the page.
        operator: its name, or its settings.
        prompt: soft tokens, or tuned prompts with the user's row; None for the backbone alone.
        position: where the prompt stands, ``prompt.position`` of the run that tuned it.
        target: whose label's relevance: "own", "click", a label of the page or the index of a slot.

    Raises:
        ConfigError: no such operator.
        DataError: naming the session and what does not fit it: image, target or prompt.
        LabelError: the page's labels do not suit the tokenizer.
    """
    prompts = None if prompt is None else [prompt]
    return probe_batch(
        backbone,
        params,
        [session],
        images=lambda _: image,
        operator=operator,
        prompts=prompts,
        position=position,
        targets=target,
        batch=1,
    )[0]


def probe_batch(
    backbone: Backbone,
    params: nnx.State,
    sessions: Sequence[StoredSession],
    *,
    images: Callable[[str], Image.Image],
    operator: str | OperatorConfig = "glimpse",
    prompts: Sequence[Prompt] | None = None,
    position: Position = "before",
    targets: Target | Sequence[Target] = "own",
    batch: int = 8,
    max_lengths: int = 1,
    track: Track = silent,
) -> list[Relevance]:
    """:func:`probe` for many sessions, a batch at a time.

    Args:
        backbone: the model.
        params: its weights.
        sessions: whose pages, labels and profiles to ask about.
        images: from page id to page, such as ``store.image``.
        operator: its name, or its settings.
        prompts: one for each session, all of as many tokens; None for the backbone alone.
        position: where they stand.
        targets: one for all sessions, or one for each.
        batch: sessions at a time.
        max_lengths: into how many groups to sort sequences by length: each is one compilation, and within one all are
            padded to the longest.
        track: wraps the batches in a progress bar.

    Returns:
        As many as there are sessions, in their order.

    Raises:
        FixateError: as :func:`probe`.
    """
    config = OperatorConfig(name=operator) if isinstance(operator, str) else operator
    operator_of(config)
    if not sessions:
        return []
    each = [targets] * len(sessions) if isinstance(targets, str | int) else list(targets)
    for name, given in (("targets", each), ("prompts", prompts)):
        if given is not None and len(given) != len(sessions):
            raise DataError(f"{name}: {len(given)} for {len(sessions)} sessions; give one for each")
    soft = None if prompts is None else _soft_tokens(backbone, sessions, prompts)
    tokens = 0 if soft is None else soft.shape[1]
    data = _session_data(backbone, sessions, images, config, tokens, position, max_lengths)
    return probe_data(
        backbone,
        params,
        data,
        range(len(sessions)),
        operator=config,
        targets={i: _slot(s, t) for i, (s, t) in enumerate(zip(sessions, each, strict=True))},
        soft=None if soft is None else lambda rows: soft[np.maximum(rows.session, 0)],
        batch=batch,
        track=track,
    )


def probe_data(
    backbone: Backbone,
    params: nnx.State,
    data: SessionData,
    indices: Sequence[int],
    *,
    operator: OperatorConfig,
    targets: Mapping[int, int] | None = None,
    soft: Callable[[Batch], Float[Array, "batch tokens width"]] | None = None,
    batch: int = 8,
    track: Track = silent,
) -> list[Relevance]:
    """:func:`probe` for sessions that are encoded already, such as a workspace's.

    Args:
        backbone: the model.
        params: its weights.
        data: the sessions; ``data.assignment`` says whose a visual token is.
        indices: which of them.
        operator: its settings.
        targets: slot whose label's relevance is asked for, by index of the session; the model's own answer for
            sessions that are not named.
        soft: from a batch on the host to its soft tokens; None for the backbone alone.
        batch: sessions at a time.
        track: wraps the batches in a progress bar.
    """
    found: dict[int, Relevance] = {}
    for rows in track(evaluation_batches(data, indices, batch), operator.name):
        host = data.batch(rows)
        wanted = np.array([(targets or {}).get(i, OWN) for i in rows], np.int32)
        looked = _look(
            params,
            jax.device_put(host),
            soft_tokens(backbone, data, host, soft),
            wanted,
            graph=backbone.graph,
            operator=operator_of(operator),
            eps=operator.eps,
            end_token=backbone.encoder.end_token,
            prompted=soft is not None,
        )
        looked = jax.device_get(looked)
        found |= {i: _relevance(data, i, row, looked, operator) for row, i in enumerate(rows) if i >= 0}
    return [found[i] for i in indices]


def soft_tokens(
    backbone: Backbone,
    data: SessionData,
    batch: Batch,
    soft: Callable[[Batch], Float[Array, "batch tokens width"]] | None,
) -> Float[Array, "batch tokens width"]:
    """A batch's soft tokens; zeros, which nothing reads, where there are none."""
    if soft is None:
        return jnp.zeros((len(batch.user), data.buckets[0].prompt, backbone.width), jnp.float32)
    return soft(batch)


class _Looked(NamedTuple):
    log_probs: Float[Array, "batch slots"]
    answer: Int[Array, " batch"]
    target: Int[Array, " batch"]
    signed: Float[Array, "batch visual"]
    attention: Float[Array, "batch slots"]


@partial(jax.jit, static_argnames=("graph", "operator", "eps", "end_token", "prompted"))
def _look(
    params: nnx.State,
    batch: Batch,
    soft: Float[Array, "batch tokens width"],
    wanted: Int[Array, " batch"],
    *,
    graph: nnx.GraphDef,
    operator: Operator,
    eps: float,
    end_token: int,
    prompted: bool,
) -> _Looked:
    """Compiled once for each combination of shapes, backbone and operator in a process."""
    model: Any = nnx.merge(graph, params)
    prefix = model.prefill(ready_inputs(model, batch, operator), soft, prompted)
    log_probs = label_log_probs(model.tail(prefix).logits, batch, end_token)
    answer = jnp.argmax(log_probs, axis=-1)
    target = jnp.where(wanted == OWN, answer, wanted)
    chosen = target[:, None]
    _, signed, attention = look_for(operator, model, branches_of(prefix, chosen), batch, chosen, eps)
    return _Looked(log_probs, answer, target, signed[:, 0], attention[:, 0])


def _relevance(data: SessionData, index: int, row: int, looked: _Looked, operator: OperatorConfig) -> Relevance:
    session, encoded = data.sessions[index], data.encoded[index]
    rows, columns = encoded.rows, encoded.columns
    return Relevance(
        session_id=session.session_id,
        operator=operator,
        signed=np.asarray(looked.signed[row][: rows * columns].reshape(rows, columns)),
        slot_attention=np.asarray(looked.attention[row][: session.slots]),
        target=int(looked.target[row]),
        answer=int(looked.answer[row]),
        log_probs=np.asarray(looked.log_probs[row][: session.slots]),
    )


def _session_data(
    backbone: Backbone,
    sessions: Sequence[StoredSession],
    images: Callable[[str], Image.Image],
    config: OperatorConfig,
    prompt_tokens: int,
    position: Position,
    max_lengths: int,
) -> SessionData:
    """The sessions encoded, their pages to be read in the same jitted call."""
    pages: dict[str, Image.Image] = {}
    for session in sessions:
        pages[session.page_id] = image = images(session.page_id)
        if not isinstance(image, Image.Image):
            _fail(session, "image", f"must be a PIL image, got {type(image).__name__}")
    grids = {page: backbone.page_processor.grid(*image.size) for page, image in pages.items()}
    units = max(backbone.page_units(*grid) for grid in grids.values())
    return SessionData(
        sessions,
        encode_sessions(backbone, sessions, grids),
        {s.user_id: 0 for s in sessions},
        features=lambda ids: (None, stack_pages([backbone.page_processor(pages[i]) for i in ids], units=units)),
        prompt_tokens=prompt_tokens,
        position=position,
        signal=None,
        max_lengths=max_lengths,
        assignment=config.assignment,
    )


def _soft_tokens(
    backbone: Backbone, sessions: Sequence[StoredSession], prompts: Sequence[Prompt]
) -> Float[Array, "sessions tokens width"]:
    """Every session's soft tokens."""
    soft: list[Array] = []
    for session, prompt in zip(sessions, prompts, strict=True):
        if isinstance(prompt, tuple):
            tuned, user = prompt
            if not 0 <= user < len(tuned.coefficients):
                _fail(session, "prompt", f"there is no row {user} of {len(tuned.coefficients)} users' coefficients")
            soft.append(soft_prompt(tuned, jnp.array([user]))[0])
        else:
            soft.append(jnp.asarray(prompt, jnp.float32))
        tokens, width = soft[0].shape[0], backbone.width
        if soft[-1].shape != (tokens, width):
            _fail(session, "prompt", f"has shape {soft[-1].shape}; {tokens} soft tokens of width {width} are needed")
    return jnp.stack(soft)


def _slot(session: StoredSession, target: Target) -> int:
    """The slot that a target means."""
    if target == "own":
        return OWN
    if target == "click":
        return session.click
    if isinstance(target, str):
        if target not in session.labels:
            _fail(session, "target", f"{target!r} is no label of the page; choose one of {', '.join(session.labels)}")
        return session.labels.index(target)
    if not 0 <= target < session.slots:
        _fail(session, "target", f"slot {target} is not on the page of {session.slots} slots")
    return target


def _fail(session: StoredSession, field: str, problem: str) -> NoReturn:
    raise DataError(f"session {session.session_id!r}, {field}: {problem}")
