"""Pages with questions whose answers are known: read-outs, comparisons, what a made-up person looks at and chooses."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image

from fixate_jax.backbones.processing import LABELS, QUESTION
from fixate_jax.data.carousel import COLUMNS, GENRES, ROWS, SHADES, Poster, draw_carousels, poster_boxes
from fixate_jax.data.readers import human_choice, synthetic
from fixate_jax.data.render import Alternative, alternative_boxes, draw_page, text_marks
from fixate_jax.lab.pretraining.personas import LEVELS, TRAITS, Gambler, Viewer, judge_neutrally

CHOICE = QUESTION
GAZE = "Which item does this user look at most? Answer with the label alone."
QUESTIONS = 8
"""Questions a page."""
END = "<|im_end|>"
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
PERSONA_SHARE = 0.85
"""Share of pages shown to somebody in particular."""
PROFILE_SHARE = 0.85
"""Share of pages with the text about the task."""
SHUFFLED_SHARE = 0.6
"""Share of carousel pages whose letters are any, in no order and not told in the text, so that they have to be read:
where all pages have the same letters, there is nothing to be gained from copying one before knowing which."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question and its answer.

    Attributes:
        kind: what is asked, for the tables.
        text: the wording.
        answers: what may be answered.
        weights: how likely each of these is.
        slots: for each answer its slot (label answers), else the slot to read (number and genre answers).

        gaze: where the answering position should look, a share a slot; None where nothing is asked of it.
        drill: instead of all that, short questions and answers in one line; text and answers are empty.

    A number or genre is followed by the end token, so that "7" is not half of "70".
    """

    kind: str
    text: str
    answers: tuple[str, ...]
    weights: Float[np.ndarray, " answers"]
    slots: tuple[int, ...]
    gaze: Float[np.ndarray, " slots"] | None = None
    drill: tuple[tuple[str, str], ...] = ()


class Mark(NamedTuple):
    """Something to be read in one place of the page.

    Attributes:
        box: in relative page coordinates.
        words: what is there, as the tokens that name it.
        spread: whether it shows all over the box, and not as one thing in it.
    """

    box: Sequence[float]
    words: tuple[str, ...]
    spread: bool


@dataclass(frozen=True, kw_only=True)
class Example:
    """A page, who sees it, and questions.

    Attributes:
        page: the image.
        profile: the text about the task that follows the page.
        persona: the system message; empty for nobody in particular.
        labels: of the slots.
        listed: whether the text says which labels there are.
        places: index of each slot among the page's places.
        boxes: of the slots, in relative page coordinates.
        questions: always the same number.
        marks: what is to be read where.
    """

    page: Image.Image
    profile: str
    persona: str
    labels: tuple[str, ...]
    listed: bool
    places: tuple[int, ...]
    boxes: Float[np.ndarray, "slots 4"]
    questions: tuple[Question, ...]
    marks: tuple[Mark, ...]


def _pointing(
    kind: str,
    text: str,
    labels: Sequence[str],
    weights: Bool[np.ndarray, " slots"] | Float[np.ndarray, " slots"],
    gaze: Float[np.ndarray, " slots"] | None = None,
) -> Question:
    """A question answered with a label; one looks at what is answered, unless a gaze is given."""
    weights = weights / weights.sum()
    slots = tuple(range(len(labels)))
    gaze = weights if gaze is None else gaze
    return Question(kind=kind, text=text, answers=tuple(labels), weights=weights, slots=slots, gaze=gaze)


def _reading(kind: str, text: str, answer: str, slot: int) -> Question:
    return Question(kind=kind, text=text, answers=(answer + END,), weights=np.ones(1), slots=(slot,))


def _drill(kind: str, pairs: Sequence[tuple[str, str]]) -> Question:
    return Question(kind=kind, text="", answers=(), weights=np.zeros(0), slots=(), drill=tuple(pairs))


def _listing(
    labels: Sequence[str], measures: Mapping[str, np.ndarray], order: np.ndarray, rng: np.random.Generator
) -> list[tuple[str, str]]:
    """All of one measure, then two of another: what is asked for is said once, before the labels."""
    first, second = (("chance", "amount"), ("amount", "chance"))[rng.integers(2)]
    cells = [(first, i) for i in order] + [(second, i) for i in order[1:]]
    said = [f" {kind}" if n in (0, 3) else "" for n, (kind, _) in enumerate(cells)]
    return [(f"{word} {labels[i]}", str(measures[kind][i])) for word, (kind, i) in zip(said, cells, strict=True)]


def draw_gambles(rng: np.random.Generator) -> list[Alternative]:
    """Three gambles: half of the pages with amounts that make up for low chances, half with any."""
    p = rng.integers(5, 96, size=3)
    value = 8 * np.exp(0.35 * rng.standard_normal(3))
    m = np.round(100 * value / p) if rng.random() < 0.5 else rng.integers(1, 66, size=3)
    return [
        Alternative(int(a) / 100, int(np.clip(b, 1, 70)), bool(rng.random() < 0.5)) for a, b in zip(p, m, strict=True)
    ]


def gamble_example(rng: np.random.Generator, *, width: int = 320) -> Example:
    """A gamble page."""
    gambles = draw_gambles(rng)
    labels = tuple("ABC")
    person = Gambler.draw(rng) if rng.random() < PERSONA_SHARE else None
    gaze, choice = person.judge(gambles) if person else judge_neutrally(gambles)
    p = np.array([round(100 * a.probability) for a in gambles])
    m = np.array([a.amount for a in gambles])
    measures = {"chance": p, "amount": m, "value": p * m}
    first, second, third = (int(i) for i in rng.integers(3, size=3))
    name = ("chance", "amount")[rng.integers(2)]
    extreme, best = (("highest", np.max), ("lowest", np.min))[rng.integers(2)]
    shown = f"{p[third]}%" if name == "chance" else f"{m[third]}€"
    wordy = (
        _reading("read chance", f"What is the chance of item {labels[first]}?", str(p[first]), first),
        _reading("read amount", f"What is the amount of item {labels[second]}?", str(m[second]), second),
        _pointing(f"find {name}", f"Which item shows {shown}?", labels, measures[name] == measures[name][third]),
        _pointing("compare", f"Which item has the {extreme} {name}?", labels, measures[name] == best(measures[name])),
        _pointing("compare value", "Which item has the highest value?", labels, measures["value"] == max(p * m)),
    )
    order = rng.permutation(3)
    extremes = [(e, f, k) for e, f in (("highest", np.argmax), ("lowest", np.argmin)) for k in measures]
    questions = (
        _pointing("choice", CHOICE, labels, choice, gaze),
        _pointing("gaze", GAZE, labels, gaze),
        *(wordy[i] for i in sorted(rng.permutation(len(wordy))[:3])),
        _drill("drill reading", [pair for i in order for pair in ((f" {labels[i]}", str(p[i])), (",", str(m[i])))]),
        _drill("drill listing", _listing(labels, measures, order, rng)),
        _drill("drill comparing", [(f" {e} {k}", f" {labels[int(f(measures[k]))]}") for e, f, k in extremes]),
    )
    page = draw_page(gambles, labels, alternative_boxes(), width=width)
    persona = f"user {person.text}" if person else ""
    return Example(
        page=page,
        profile=human_choice.PROFILE if rng.random() < PROFILE_SHARE else "",
        persona=persona,
        labels=labels,
        listed=True,
        places=(0, 1, 2),
        boxes=alternative_boxes(),
        questions=questions,
        marks=_gamble_marks(gambles, labels),
    )


def _gamble_marks(gambles: list[Alternative], labels: tuple[str, ...]) -> tuple[Mark, ...]:
    """Digits one by one; what a text is, wherever its characters stand; the label, in its corner."""
    marks = []
    for character, column, box in text_marks(gambles):
        upper = box[1] < 0.5
        kind = " chance" if upper == gambles[column].probability_on_top else " amount"
        label = labels[column]
        marks.append(Mark(box, (kind, label, f" {label}"), spread=True))
        if character.isdigit():
            marks.append(Mark(box, (character,), spread=False))
    for (x, y, _, _), label in zip(alternative_boxes(), labels, strict=True):
        marks.append(Mark((x, y, x + 0.05, y + 0.06), (label, f" {label}"), spread=False))
    return tuple(marks)


def draw_posters(rng: np.random.Generator) -> list[Poster | None]:
    """A page of posters; some pages have empty places."""
    genres = list(GENRES)
    density = 1.0 if rng.random() < 0.4 else rng.uniform(0.3, 0.9)
    posters: list[Poster | None] = [
        Poster(genres[rng.integers(len(genres))], int(rng.integers(SHADES))) if rng.random() < density else None
        for _ in range(ROWS * COLUMNS)
    ]
    return posters if sum(p is not None for p in posters) >= 3 else draw_posters(rng)


def carousel_example(rng: np.random.Generator, *, width: int = 320) -> Example:
    """A carousel page."""
    posters = draw_posters(rng)
    places = [i for i, poster in enumerate(posters) if poster]
    there = [poster for poster in posters if poster]
    letters = list(ALPHABET[: len(places)])
    shuffled = bool(rng.random() < SHUFFLED_SHARE)
    if shuffled:
        letters = [ALPHABET[i] for i in rng.permutation(len(ALPHABET))[: len(places)]]
    labels = tuple(letters)
    person = Viewer.draw(rng) if rng.random() < PERSONA_SHARE else None
    even = np.full(len(there), 1 / len(there))
    gaze, choice = person.judge(posters) if person else (even, even)
    genre = np.array([poster.genre for poster in there])
    on_page = sorted(set(genre))
    asked = [on_page[i] for i in rng.integers(len(on_page), size=2)]
    read = int(rng.integers(len(there)))
    at = int(rng.integers(len(there)))
    row, column = divmod(places[at], COLUMNS)
    order = rng.permutation(len(there))[:9]
    questions = (
        _pointing("choice", CHOICE, labels, choice, gaze),
        _pointing("gaze", GAZE, labels, gaze),
        *(_pointing("find genre", f"Which item shows {g}?", labels, genre == g) for g in asked),
        _reading("read genre", f"What film is item {labels[read]}?", there[read].genre, read),
        _pointing(
            "find place", f"Which item is in row {row + 1} column {column + 1}?", labels, np.arange(len(there)) == at
        ),
        _drill("drill finding", [(f" {there[i].genre}", f" {labels[i]}") for i in order]),
        _drill("drill reading", [(f" {labels[i]}", f" {there[i].genre}") for i in order[::-1]]),
    )
    by_place: list[str | None] = [None] * len(posters)
    for place, label in zip(places, labels, strict=True):
        by_place[place] = label
    return Example(
        page=draw_carousels(posters, by_place, width=width),
        profile=synthetic.carousel.PROFILE if rng.random() < PROFILE_SHARE else "",
        persona=f"user {person.text}" if person else "",
        labels=labels,
        listed=not shuffled,
        places=tuple(places),
        boxes=poster_boxes()[places],
        questions=questions,
        marks=tuple(
            Mark(_corner(poster_boxes()[i]), (label, f" {label}", poster.genre, f" {poster.genre}"), spread=False)
            for i, poster, label in zip(places, there, labels, strict=True)
        ),
    )


def _corner(box: Float[np.ndarray, "4"]) -> tuple[float, ...]:
    x0, y0, x1, y1 = box
    return x0, y0, x0 + 0.4 * (x1 - x0), y0 + 0.4 * (y1 - y0)


WORDS = " ".join(
    sorted(
        set(
            re.findall(
                "[A-Za-z]+",
                f"{human_choice.PROFILE} {synthetic.carousel.PROFILE} {LABELS} {CHOICE} {GAZE} system assistant "
                "What is the chance of item amount highest lowest value shows film in row column rows columns "
                f"{' '.join(TRAITS)} {' '.join(ALPHABET)} {' '.join(GENRES)}",
            )
        )
    )
)
"""Every word that the questions use: each becomes one token, at the start of a text and after a space."""

TRAIT_WORDS = tuple(trait + level for trait in TRAITS for level in LEVELS)
"""Every word that describes a person: each becomes one token after a space."""

ASKED = frozenset(
    [
        *(f" {word}" for word in (*GENRES, *ALPHABET, "chance", "amount", "value", "highest", "lowest")),
        *(f" {word}" for word in ("row", "column", "choose", "look")),
        *"0123456789",
    ]
)
"""Tokens that say what a question asks for; the others only word it."""

KINDS: dict[str, Callable[..., Example]] = {"gambles": gamble_example, "carousels": carousel_example}
"""Kinds of pages."""
