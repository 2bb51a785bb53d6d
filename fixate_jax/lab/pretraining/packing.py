"""Examples as arrays: one prefix a page, a branch a question.

The branches share the prefix's keys and values and do not see each other, so each question is asked just as the library
asks it, in one chat of its own, at a fraction of the cost.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from fixate_jax.backbones.inputs import EncodedPage, HostOrDevice, SequenceInputs, stack_pages
from fixate_jax.backbones.loading import Backbone
from fixate_jax.data.carousel import ASPECT
from fixate_jax.errors import ConfigError
from fixate_jax.lab.pretraining.tasks import ASKED, Example, Question
from fixate_jax.probing.slots import assign_slots

PAGE_SHAPES = (0.8, ASPECT)
"""Height over width of the pages with gambles and of those with carousels."""
WORDS = 6
"""Words that a visual token can show."""
_MARK = "\N{SECTION SIGN}"


class PackedBatch(NamedTuple):
    """A batch of examples.

    Attributes:
        pages: for the vision tower.
        inputs: prefixes, and a branch per question; ``features`` is empty.
        next_ids: the token that follows each tail position.
        next_mask: True where that token belongs to an answer, but not at ``src``.
        answer_ids: at ``src``: what the next token may be.
        answer_weight: and how likely it is; 0 at padding.
        gaze: where ``src`` should look, a share a slot; all 0 where nothing is asked of it.
        asked: the tail's tokens that say what is asked for; none where nothing is asked of ``src``.
        slot_matrix: which page token belongs to which slot.
        word_ids: tokens that name what a page token shows.
        word_weight: their shares; all 0 where there is nothing to be read.
    """

    pages: Any
    inputs: SequenceInputs
    next_ids: Int[HostOrDevice, "batch branch tail"]
    next_mask: Bool[HostOrDevice, "batch branch tail"]
    answer_ids: Int[HostOrDevice, "batch branch answers"]
    answer_weight: Float[HostOrDevice, "batch branch answers"]
    gaze: Float[HostOrDevice, "batch branch slots"]
    asked: Bool[HostOrDevice, "batch branch tail"]
    slot_matrix: Float[HostOrDevice, "batch slots visual"]
    word_ids: Int[HostOrDevice, "batch visual words"]
    word_weight: Float[HostOrDevice, "batch visual words"]


class Packer:
    """Tokenises examples and pads them to one shape.

    Args:
        backbone: its tokenizer, chat template and image processor are used.
        seq: prefix length.
        tail: tail length.
        visual: tokens a page.
        units: patches or tiles a page.
        answers: answers a question.

    Raises:
        ConfigError: when an example does not fit.
    """

    def __init__(self, backbone: Backbone, *, seq: int, tail: int, visual: int, units: int, answers: int = 15):
        self.backbone, self.seq, self.tail, self.answers = backbone, seq, tail, answers
        self.visual, self.units = visual, units
        encoder = backbone.encoder
        self.end = encoder.end_token
        self._tokens = lru_cache(maxsize=65536)(
            lambda text: tuple(encoder.tokenizer(text, add_special_tokens=False)["input_ids"])
        )
        self._asked = {self._tokens(word)[0] for word in ASKED}
        self._chat = lru_cache(maxsize=4096)(encoder.chat_text)

    def __call__(self, examples: list[Example]) -> PackedBatch:
        """The examples as one batch."""
        pages = [self.backbone.page_processor(example.page) for example in examples]
        rows = [self._pack(example, page) for example, page in zip(examples, pages, strict=True)]
        sequence, answers = zip(*rows, strict=True)
        return PackedBatch(
            stack_pages(pages, units=self.units),
            SequenceInputs(*(np.stack(x) for x in zip(*sequence, strict=True))),
            *(np.stack(x) for x in zip(*answers, strict=True)),
        )

    def _pack(self, example: Example, page: EncodedPage) -> tuple[tuple, tuple]:
        labels = tuple(sorted(example.labels)) if example.listed else ()
        text = self._chat(example.profile, labels, question=_MARK, persona=example.persona)
        before, after = text.split(_MARK)
        before = before.removesuffix(" ")  # it belongs to the question's first token
        ids = self._tokens(before)
        image = self.backbone.config.image_token
        at = ids.index(image)
        family, config = self.backbone.family, self.backbone.config
        image_positions, next_position = family.image_positions(page.rows, page.columns, at, config)
        visual = len(image_positions)
        length = len(ids) + visual - 1
        if length > self.seq or visual > self.visual:
            raise ConfigError(f"a page with {visual} visual tokens and {length} in all does not fit into {self.seq}")
        start = self.seq - length
        token_ids = np.zeros(self.seq, np.int32)
        token_ids[start:] = [*ids[:at], *[image] * visual, *ids[at + 1 :]]
        positions = np.zeros((self.seq, 3), np.int32)
        positions[start:] = np.concatenate(
            [
                np.repeat(np.arange(at)[:, None], 3, 1),
                image_positions,
                np.repeat(np.arange(next_position, next_position + len(ids) - at - 1)[:, None], 3, 1),
            ]
        )
        first = int(positions[-1, 0]) + 1
        visual_index = np.full(self.seq, -1, np.int32)
        visual_index[start + at : start + at + visual] = np.arange(visual)
        visual_position = np.zeros(self.visual, np.int32)
        visual_position[:visual] = np.arange(start + at, start + at + visual)
        branches = [self._branch(question, after, first) for question in example.questions]
        tail_ids, tail_positions, tail_valid, *answers = (np.stack(x) for x in zip(*branches, strict=True))
        features = np.zeros((self.visual, self.backbone.image_levels, 0), np.float32)
        sequence = (
            token_ids,
            np.int32(start),
            positions,
            visual_index,
            tail_ids,
            tail_positions,
            tail_valid,
            visual_position,
            features,
        )
        slots = np.zeros((self.answers, self.visual), np.float32)
        cells = family.cell_tokens(page.rows, page.columns, config)
        slots[: len(example.labels), cells] = assign_slots(example.boxes, page.rows, page.columns)
        return sequence, (*answers, slots, *self._words(example, page, cells))

    def _words(
        self, example: Example, page: EncodedPage, cells: Int[np.ndarray, " cells"]
    ) -> tuple[np.ndarray, np.ndarray]:
        """What each page token shows: of a spread mark wherever a quarter of the token or of the mark is."""
        grid = np.meshgrid(np.arange(page.rows) / page.rows, np.arange(page.columns) / page.columns, indexing="ij")
        y, x = (axis.ravel() for axis in grid)
        words: list[list[int]] = [[] for _ in range(self.visual)]
        for (x0, y0, x1, y1), names, spread in example.marks:
            wide = np.clip(np.minimum(x + 1 / page.columns, x1) - np.maximum(x, x0), 0, None)
            high = np.clip(np.minimum(y + 1 / page.rows, y1) - np.maximum(y, y0), 0, None)
            share = wide * high / min((x1 - x0) * (y1 - y0), 1 / (page.rows * page.columns))
            for cell in np.flatnonzero(share > 0.25) if spread else [int(share.argmax())]:
                words[cells[cell]] += [self._tokens(name)[0] for name in names]
        ids, weight = np.zeros((self.visual, WORDS), np.int32), np.zeros((self.visual, WORDS), np.float32)
        for token, found in enumerate(words):
            chosen = list(dict.fromkeys(found))[:WORDS]
            ids[token, : len(chosen)] = chosen
            weight[token, : len(chosen)] = 1 / max(len(chosen), 1)
        return ids, weight

    def _branch(self, question: Question, after: str, first: int) -> tuple:
        if question.drill:
            pieces = [(self._tokens(asked), self._tokens(answer)) for asked, answer in question.drill]
            answers, weights = [pieces[-1][1]], np.ones(1)
        else:
            answers, weights = [self._tokens(answer) for answer in question.answers], question.weights
            pieces = [(self._tokens(f" {question.text}{after}"), answers[0])]
        if len(answers) > 1 and any(len(answer) > 1 for answer in answers):
            raise ConfigError(f"answers {question.answers}: where there are several, each must be one token")
        chain = [token for asked, answer in pieces for token in (*asked, *answer)]
        answered = [a for asked, answer in pieces for a in (*[False] * len(asked), *[True] * len(answer))]
        tokens = chain[:-1]
        if len(tokens) > self.tail:
            raise ConfigError(f"question {question.text or question.drill!r}: {len(tokens)} tokens, over {self.tail}")
        pad = self.tail - len(tokens)
        tail_ids, next_ids = np.zeros(self.tail, np.int32), np.zeros(self.tail, np.int32)
        tail_ids[pad:], next_ids[pad:] = tokens, chain[1:]
        next_mask = np.zeros(self.tail, bool)
        next_mask[pad:-1] = answered[1:-1]
        positions = np.zeros((self.tail, 3), np.int32)
        positions[pad:] = (first + np.arange(len(tokens)))[:, None]
        ids, weight = np.zeros(self.answers, np.int32), np.zeros(self.answers, np.float32)
        ids[: len(answers)] = [answer[-1] for answer in answers]
        weight[: len(answers)] = weights
        gaze, asked_for = np.zeros(self.answers, np.float32), np.zeros(self.tail, bool)
        if question.gaze is not None:
            gaze[: len(question.gaze)] = question.gaze
            asked_for[pad:] = [token in self._asked for token in tokens]
        return tail_ids, positions, np.arange(self.tail) >= pad, next_ids, next_mask, ids, weight, gaze, asked_for


def make_packer(backbone: Backbone, *, page_width: int, seq: int, tail: int) -> Packer:
    """A packer with room for any drawn page of a width.

    Args:
        backbone: as of :class:`Packer`.
        page_width: of the pages in pixels.
        seq: prefix length.
        tail: tail length.
    """
    grids = [backbone.page_processor.grid(page_width, round(page_width * shape)) for shape in PAGE_SHAPES]
    visual, units = (max(count(*grid) for grid in grids) for count in (backbone.page_tokens, backbone.page_units))
    return Packer(backbone, seq=seq, tail=tail, visual=visual, units=units)
