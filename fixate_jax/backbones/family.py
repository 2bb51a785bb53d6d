"""What a backbone family offers: the one file to write for an architecture of one's own.

A family is a module with the functions below (or any object with them); :data:`fixate_jax.backbones.loading.FAMILIES`
maps the ``model_type`` of ``config.json`` to it. Everything else in the library reaches a backbone through these
functions, through the model that :meth:`Family.build` makes, and through two fields of its configuration: ``decoder``
(:class:`fixate_jax.backbones.decoder.decoder.DecoderConfig`) and ``image_token``.

Words used here. A page has *cells*, a grid of ``rows`` × ``columns`` over the page, in raster order, each of them the
place of one *page token*. A page may have page tokens beyond its cells (a thumbnail of the whole page); they are read
but are nobody's place, so relevance never counts them. Page tokens come in the order of the sequence. A page's *units*
are whatever the vision tower's batch is padded along: patches, or tiles.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int
from PIL import Image

from fixate_jax.backbones.decoder.decoder import Decoder
from fixate_jax.backbones.inputs import EncodedPage, Prefix, SequenceInputs, TailOutput
from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.backbones.weights.checkpoint import Rule
from fixate_jax.errors import CheckpointError


class Model(nnx.Module):
    """What the rest of the library calls, inside jit: a family's model adds its vision tower.

    Attributes:
        config: the family's configuration.
        decoder: takes page tokens and text from there.
    """

    config: Any
    decoder: Decoder

    def encode_pages(self, pages: Any) -> Float[Array, "batch tokens levels width"]:
        """Page tokens, which depend on nothing that is trained and so can be cached.

        Level 0 enters the sequence, level 1 + i is added after decoder layer i.
        """
        raise NotImplementedError(f"{type(self).__name__} must say what its pages' tokens are")

    def prefill(
        self,
        inputs: SequenceInputs,
        prompt: Float[Array, "batch soft width"],
        use_prompt: Bool[Array, ""] | bool = True,
    ) -> Prefix:
        """See :meth:`fixate_jax.backbones.decoder.decoder.Decoder.prefill`."""
        return self.decoder.prefill(inputs, prompt, use_prompt)

    def page_keys(self, inputs: SequenceInputs) -> Float[Array, "batch both layers page kv head"]:
        """See :meth:`fixate_jax.backbones.decoder.decoder.Decoder.page_keys`."""
        return self.decoder.page_keys(inputs)

    def tail(
        self, prefix: Prefix, taps: Float[Array, "layers batch branch heads tail keys"] | None = None
    ) -> TailOutput:
        """See :meth:`fixate_jax.backbones.decoder.decoder.Decoder.tail`."""
        return self.decoder.tail(prefix, taps)


@runtime_checkable
class PageProcessor(Protocol):
    """From images to what the vision tower reads."""

    def __call__(self, image: Image.Image) -> EncodedPage:
        """Encode one page."""

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """Rows and columns of cells that a page of this many pixels gets, without reading it."""


class ChatTurn(NamedTuple):
    """A turn of a chat.

    Attributes:
        role: "system" or "user".
        text: what is said.
        image: whether the page stands before the text.
    """

    role: str
    text: str
    image: bool = False


@runtime_checkable
class Family(Protocol):
    """An architecture."""

    def __hash__(self) -> int:
        """A module, or another object that can be looked up: what is made from it once is kept."""

    def read_config(self, directory: Path, settings: BackboneConfig) -> Any:
        """Read ``config.json`` into something hashable; a CheckpointError must name a field that is not supported."""

    def build(self, config: Any, rngs: nnx.Rngs) -> Model:
        """The model, with random weights; only ever traced, the checkpoint's weights take their place."""

    def rules(self, config: Any) -> list[Rule]:
        """The mapping of a whole checkpoint: one rule for each of the model's parameters."""

    def ignored_tensor(self, config: Any, name: str) -> bool:
        """Whether a checkpoint may hold this tensor without our using it."""

    def page_processor(self, directory: Path, settings: BackboneConfig, config: Any) -> PageProcessor:
        """The checkpoint's image processor, with the settings' limits on the page's size."""

    def page_units(self, rows: int, columns: int, config: Any) -> int:
        """Units of a page with so many cells."""

    def cell_tokens(self, rows: int, columns: int, config: Any) -> Int[np.ndarray, " cells"]:
        """Which page token shows each cell."""

    def image_positions(
        self, rows: int, columns: int, start: int, config: Any
    ) -> tuple[Int[np.ndarray, "tokens 3"], int]:
        """Rotary positions (time, height, width) of all page tokens of a page, and the position after them.

        Args:
            rows: of the page's cells.
            columns: of the page's cells.
            start: position of the first page token.
            config: from :meth:`read_config`.
        """

    def chat_text(self, tokenizer: Any, turns: Sequence[ChatTurn], config: Any) -> str:
        """The chat as text up to where the answer starts, thinking switched off, with ``config.image_token`` once."""


def template_chat(tokenizer: Any, turns: Sequence[ChatTurn]) -> str:
    """The chat as the tokenizer's own template writes it, up to where the answer starts, thinking switched off.

    Raises:
        CheckpointError: when the tokenizer has no template.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise CheckpointError(f"{tokenizer.name_or_path}: the tokenizer has no chat template")
    messages = []
    for turn in turns:
        pieces = [{"type": "image"}] if turn.image else []
        content = [*pieces, *([{"type": "text", "text": turn.text}] if turn.text else [])]
        messages.append({"role": turn.role, "content": content if turn.image else turn.text})
    text: str = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    return text
