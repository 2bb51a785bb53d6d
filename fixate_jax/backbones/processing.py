"""From a page image and a question to what the model reads, through the checkpoint's own tokenizer and processor.

The wording is one for training, probing, answering and the backbone alone. The answer is a slot's label, right after
the chat template's generation prompt. Its contract (checked by :meth:`SessionEncoder.answer_tokens`):

* the label's tokens do not change the tokens before them, so every answer shares one prefix;
* thinking is switched off in the template, and a template that opens a thinking block all the same is refused;
* scores use the answer tokens only. Where a label is the beginning of another one on the page ("1" and "10"), the
  shorter one also has to stop there, so the end token's log-probability is added to its score.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int

from fixate_jax.backbones.chat import rendered
from fixate_jax.backbones.family import ChatTurn, Family
from fixate_jax.backbones.weights.checkpoint import read_json
from fixate_jax.errors import CheckpointError, LabelError

LABELS = "This page shows items with the labels {labels}."
QUESTION = "Which item does this user choose? Answer with the label alone."


@dataclass(frozen=True, kw_only=True)
class EncodedSession:
    """A question about a page, without padding and soft prompt.

    Attributes:
        token_ids: chat tokens but the last, image placeholders repeated per visual token.
        positions: rotary positions (time, height, width), from 0.
        visual_index: which page token stands at a position, -1 for none.
        cell_tokens: which page token shows each cell of the grid.
        last_token: the chat's last token; it predicts the answer's first.
        last_position: its rotary position.
        answers: tokens of every label.
        stops: for a label that begins another one, (that other's index, number of own tokens); else (-1, -1).
        rows, columns: the page's grid of cells.
    """

    token_ids: Int[np.ndarray, " tokens"]
    positions: Int[np.ndarray, "tokens 3"]
    visual_index: Int[np.ndarray, " tokens"]
    cell_tokens: Int[np.ndarray, " cells"]
    last_token: int
    last_position: int
    answers: tuple[tuple[int, ...], ...]
    stops: tuple[tuple[int, int], ...]
    rows: int
    columns: int

    @property
    def page_tokens(self) -> int:
        """Page tokens in the sequence, those that are no cell's included."""
        return int(self.visual_index.max()) + 1

    @property
    def page_end(self) -> int:
        """Tokens up to the page's end: the chat before it, the page, and the token that closes it."""
        return min(int(np.flatnonzero(self.visual_index >= 0)[-1]) + 2, len(self.token_ids))


class SessionEncoder:
    """Renders the chat template and tokenises it."""

    def __init__(
        self, directory: Path, family: Family, config: Any, *, instruction_role: Literal["user", "system"] = "user"
    ):
        """Load the tokenizer of a checkpoint.

        Args:
            directory: of the checkpoint.
            family: its architecture.
            config: its configuration.
            instruction_role: whether profile and question follow the page or come before it as a system message.

        Raises:
            CheckpointError: when there is no usable tokenizer, chat template or end token.
        """
        from transformers import AutoTokenizer

        self.directory, self.family, self.config = directory, family, config
        self.instruction_role = instruction_role
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
        except Exception as error:  # The tokenizers' own errors are plain ones.
            raise CheckpointError(f"{directory}: no usable tokenizer ({error})") from error
        # Where a processor's template lies in a file of its own, it comes before the tokenizer's, as in transformers.
        template = directory / "chat_template.json"
        if template.exists() and not (directory / "chat_template.jinja").exists():
            found = read_json(template).get("chat_template")
            if not isinstance(found, str):
                raise CheckpointError(f"{template}: field 'chat_template' must be a text, got {found!r:.80}")
            self.tokenizer.chat_template = found
        # transformers makes an empty tokenizer where the files are missing.
        if len(self.tokenizer) <= config.image_token:
            raise CheckpointError(
                f"{directory}: no usable tokenizer (it has {len(self.tokenizer)} tokens, but config.json's "
                f"image_token_id is {config.image_token}); copy tokenizer.json and tokenizer_config.json there"
            )
        if self.tokenizer.eos_token_id is None:
            raise CheckpointError(f"{directory}: the tokenizer has no end token (eos_token)")
        self.end_token = int(self.tokenizer.eos_token_id)
        # A chat that cannot be written is refused now, not at the first session.
        self.chat_text("", ())

    def chat_text(self, profile: str, labels: tuple[str, ...], *, question: str = QUESTION, persona: str = "") -> str:
        """The chat as text, with one image placeholder, up to where the answer starts.

        Args:
            profile: text about the person or the task, after the page; may be empty.
            labels: of the slots (empty: they are not named).
            question: what is asked.
            persona: a system message before the page (empty: none).
        """
        if labels:
            question = f"{LABELS.format(labels=', '.join(labels))} {question}"
        instruction = f"{profile}\n{question}" if profile else question
        turns = [ChatTurn("user", instruction, image=True)]
        if self.instruction_role == "system":
            persona, turns = "\n".join(filter(None, [persona, instruction])), [ChatTurn("user", "", image=True)]
        if persona:
            turns = [ChatTurn("system", persona), *turns]
        text = rendered(lambda: self.family.chat_text(self.tokenizer, turns, self.config), self.directory)
        if text.count("<think>") > text.count("</think>"):
            raise CheckpointError(
                f"{self.directory}: the chat template opens a thinking block even with thinking off; "
                "use an Instruct checkpoint"
            )
        return text

    def _tokens(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def answer_tokens(self, text: str, prompt_tokens: list[int], label: str) -> tuple[int, ...]:
        """Tokens of a label in its place after the chat.

        Raises:
            LabelError: when the label merges with what stands before it, or is empty.
        """
        tokens = self._tokens(text + label)
        answer = tuple(tokens[len(prompt_tokens) :])
        if tokens[: len(prompt_tokens)] != prompt_tokens or not answer:
            raise LabelError(
                f"label {label!r} merges with the chat template's text before it in {self.directory}'s tokenizer; "
                "use other labels (capital letters or numbers)"
            )
        return answer

    def __call__(self, *, profile: str, labels: tuple[str, ...], rows: int, columns: int) -> EncodedSession:
        """Encode the question about a page with a grid of ``rows`` × ``columns`` cells."""
        text = self.chat_text(profile, labels)
        tokens = self._tokens(text)
        image = self.config.image_token
        if tokens.count(image) != 1:
            raise CheckpointError(
                f"{self.directory}: the chat template gives {tokens.count(image)} image placeholders "
                f"(token {image}) for one image; config.json and tokenizer disagree"
            )
        at = tokens.index(image)
        answers = tuple(self.answer_tokens(text, tokens, label) for label in labels)
        if len(set(answers)) != len(answers):
            raise LabelError(f"two of the labels {labels} have the same tokens in {self.directory}'s tokenizer")
        image_positions, after = self.family.image_positions(rows, columns, at, self.config)
        visual = len(image_positions)
        text_after = np.arange(after, after + len(tokens) - at - 1)
        positions = np.concatenate(
            [np.repeat(np.arange(at)[:, None], 3, 1), image_positions, np.repeat(text_after[:, None], 3, 1)]
        )
        ids = np.array([*tokens[:at], *[image] * visual, *tokens[at + 1 :]], np.int32)
        index = np.full(len(ids), -1, np.int32)
        index[at : at + visual] = np.arange(visual)
        return EncodedSession(
            token_ids=ids[:-1],
            positions=positions[:-1].astype(np.int32),
            visual_index=index[:-1],
            cell_tokens=self.family.cell_tokens(rows, columns, self.config).astype(np.int32),
            last_token=int(ids[-1]),
            last_position=int(positions[-1, 0]),
            answers=answers,
            stops=_stops(answers),
            rows=rows,
            columns=columns,
        )


def _stops(answers: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, int], ...]:
    """For each answer that begins a longer one: the longer one's index and how many tokens they share."""

    def longer(answer: tuple[int, ...]) -> tuple[int, int]:
        for i, other in enumerate(answers):
            if len(other) > len(answer) and other[: len(answer)] == answer:
                return i, len(answer)
        return -1, -1

    return tuple(longer(answer) for answer in answers)
