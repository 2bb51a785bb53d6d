"""A packed page asks each question exactly as the library asks it, in tokens, positions and probabilities."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fixate_jax.backbones import Backbone
from fixate_jax.data.readers.human_choice import PROFILE
from fixate_jax.data.session import StoredSession
from fixate_jax.errors import ConfigError
from fixate_jax.lab.config import OperatorConfig, PromptConfig, RunConfig
from fixate_jax.lab.experiments.programs import make_evaluate
from fixate_jax.lab.pretraining.packing import WORDS, PackedBatch, Packer
from fixate_jax.lab.pretraining.tasks import KINDS, Example, Mark, Question
from fixate_jax.pipeline.features import FeatureStore
from fixate_jax.pipeline.kept import CacheConfig
from fixate_jax.probing.batches import SessionData
from tests.pretraining.small import RECIPE, SHIPPED_RECIPE, packer_of, random_backbone


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """One of two layers is tapped, so that the branches go through a layer below as well."""
    return random_backbone(tmp_path_factory.mktemp("model") / "random", tapped=1)


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    """Two pages of each kind shown to nobody in particular, with and without a profile."""
    found = []
    for kind, make in KINDS.items():
        for seed, profile in ((1, ""), (3, PROFILE)):
            example = make(np.random.default_rng([8, len(kind), seed]), width=RECIPE.page_width)
            found.append(replace(example, persona="", profile=profile, listed=True))
    # Letters in no order: the text tells them in order, the answers come in the order of the slots.
    assert any(list(example.labels) != sorted(example.labels) for example in found)
    return found


@pytest.fixture(scope="module")
def packer(backbone: Backbone) -> Packer:
    return packer_of(RECIPE, backbone)


@pytest.fixture(scope="module")
def packed(packer: Packer, examples: list[Example]) -> PackedBatch:
    return packer(examples)


@pytest.fixture(scope="module")
def data(backbone: Backbone, examples: list[Example], tmp_path_factory: pytest.TempPathFactory) -> SessionData:
    """The same pages as sessions, the labels in the order in which the packer's text has them."""
    sessions = [
        StoredSession(
            session_id=f"s{i}",
            user_id="somebody",
            page_id=f"page{i}",
            boxes=example.boxes[np.argsort(example.labels)],
            labels=tuple(sorted(example.labels)),
            dwell_ms={"fixation": np.ones(len(example.labels))},
            click=0,
            profile=example.profile,
        )
        for i, example in enumerate(examples)
    ]
    images = {session.page_id: example.page for session, example in zip(sessions, examples, strict=True)}
    features = FeatureStore(
        backbone, images.__getitem__, list(images), CacheConfig(), directory=tmp_path_factory.mktemp("f"), batch=2
    )
    encoded = []
    for s in sessions:
        rows, columns = features.grids[s.page_id]
        encoded.append(backbone.encoder(profile=s.profile, labels=s.labels, rows=rows, columns=columns))
    return SessionData(
        sessions, encoded, {"somebody": 0}, features=features, prompt_tokens=1, signal="fixation", max_lengths=1
    )


def test_a_choice_is_asked_with_the_librarys_own_tokens_and_positions(
    packed: PackedBatch, data: SessionData, examples: list[Example], backbone: Backbone
) -> None:
    inputs = packed.inputs
    for i, (example, encoded) in enumerate(zip(examples, data.encoded, strict=True)):
        assert example.questions[0].kind == "choice"
        start, valid = int(inputs.start[i]), inputs.tail_valid[i, 0]
        tokens = [*inputs.token_ids[i, start:], *inputs.tail_ids[i, 0, valid]]
        assert tokens == [*encoded.token_ids, encoded.last_token]
        positions = np.concatenate([inputs.positions[i, start:], inputs.tail_positions[i, 0, valid]])
        np.testing.assert_array_equal(positions[:-1], encoded.positions)
        np.testing.assert_array_equal(positions[-1], 3 * [encoded.last_position])
        prefix = RECIPE.seq - start
        np.testing.assert_array_equal(inputs.visual_index[i, start:], encoded.visual_index[:prefix])
        assert (encoded.visual_index[prefix:] == -1).all(), "the page lies in the prefix"
        visual = encoded.rows * encoded.columns
        np.testing.assert_array_equal(
            inputs.visual_index[i, inputs.visual_position[i, :visual]], np.arange(visual), err_msg="there and back"
        )
        answers = dict(zip(sorted(example.labels), encoded.answers, strict=True))
        n = len(example.labels)
        assert [(token,) for token in packed.answer_ids[i, 0, :n]] == [answers[label] for label in example.labels]
        np.testing.assert_allclose(packed.answer_weight[i, 0, :n], example.questions[0].weights, rtol=1e-6)
        assert (packed.answer_weight[i, 0, n:] == 0).all()
    assert backbone.encoder.end_token == Packer(backbone, seq=1, tail=1, visual=1, units=4).end


def test_padding_is_on_the_left(packed: PackedBatch) -> None:
    inputs = packed.inputs
    padding = np.arange(RECIPE.seq) < inputs.start[:, None]
    assert padding.any(axis=1).all() and not padding.all(axis=1).any()
    assert (inputs.token_ids[padding] == 0).all() and (inputs.positions[padding] == 0).all()
    assert (inputs.visual_index[padding] == -1).all()
    valid = inputs.tail_valid
    assert (valid[..., 1:] >= valid[..., :-1]).all() and valid[..., -1].all() and not valid[..., 0].all()
    assert (inputs.tail_ids[~valid] == 0).all() and not packed.next_mask[~valid].any()
    assert not packed.next_mask[..., -1].any(), "src has its own answers"


def test_every_question_is_a_chat_of_its_own(packer: Packer, backbone: Backbone) -> None:
    """Prefix and branch together are what the tokenizer makes of the whole text, persona and answer included."""
    tokenizer, image = backbone.encoder.tokenizer, backbone.config.image_token
    made = [make(np.random.default_rng(2), width=RECIPE.page_width) for make in KINDS.values()]
    made = [replace(e, listed=listed, persona="user leftA middleB") for e in made for listed in (True, False)]
    for example in made:
        batch = packer([example])
        start = int(batch.inputs.start[0])
        prefix = [int(t) for t in batch.inputs.token_ids[0, start:]]
        at, visual = prefix.index(image), prefix.count(image)
        prefix[at : at + visual] = [image]
        for b, question in enumerate(example.questions):
            if question.drill:
                continue
            # Where no labels are told, a space stands before the question all the same.
            labels, space = (tuple(sorted(example.labels)), "") if example.listed else ((), " ")
            text = backbone.encoder.chat_text(
                example.profile, labels, question=space + question.text, persona=example.persona
            )
            assert "middleB" in text.split("<|image_pad|>")[0]
            whole = tokenizer(text + question.answers[0], add_special_tokens=False)["input_ids"]
            branch = batch.inputs.tail_ids[0, b, batch.inputs.tail_valid[0, b]]
            assert [*prefix, *branch, batch.answer_ids[0, b, 0]] == whole


def test_what_follows_is_asked_of_answers_alone(packer: Packer, backbone: Backbone) -> None:
    tokens = lambda text: backbone.encoder.tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    for make in KINDS.values():
        example = make(np.random.default_rng(4), width=RECIPE.page_width)
        batch = packer([example])
        for b, question in enumerate(example.questions):
            valid = batch.inputs.tail_valid[0, b]
            ids, following, mask = (x[0, b][valid] for x in (batch.inputs.tail_ids, batch.next_ids, batch.next_mask))
            np.testing.assert_array_equal(ids[1:], following[:-1])
            asked = [*following[mask], batch.answer_ids[0, b, 0]]
            if question.drill:
                assert asked == [t for _, answer in question.drill for t in tokens(answer)]
                assert [ids[0], *following] == tokens("".join(a + b for a, b in question.drill))
            else:
                assert asked == tokens(question.answers[0])


def packed_log_probs(backbone: Backbone, batch: PackedBatch) -> np.ndarray:
    """log p of every answer of every branch, one prefix a page."""
    graph = backbone.graph

    @jax.jit
    def run(params: Any, batch: PackedBatch) -> Any:
        model = nnx.merge(graph, params)
        inputs = batch.inputs._replace(features=model.encode_pages(batch.pages))
        logits = model.tail(model.prefill(inputs, jnp.zeros((len(inputs.start), 0, backbone.width)), False)).logits
        return jnp.take_along_axis(jax.nn.log_softmax(logits[:, :, -1], axis=-1), batch.answer_ids, axis=-1)

    return np.asarray(run(backbone.params, batch))


def test_labels_are_as_probable_as_when_the_library_asks(
    backbone: Backbone, packed: PackedBatch, data: SessionData, examples: list[Example]
) -> None:
    ours = packed_log_probs(backbone, packed)[:, 0]
    config = RunConfig(operator=OperatorConfig(name="attention"), prompt=PromptConfig(tokens=1))
    evaluate = make_evaluate(backbone.graph, config, backbone.encoder.end_token)
    batch = jax.device_put(data.batch(range(len(examples))))
    nothing = jnp.zeros((len(examples), 1, backbone.width))
    theirs = np.asarray(evaluate(nothing, False, backbone.params, batch).log_probs)
    worst = 0.0
    for i, example in enumerate(examples):
        for slot, label in enumerate(example.labels):
            worst = max(worst, abs(ours[i, slot] - theirs[i, sorted(example.labels).index(label)]))
        assert np.ptp(theirs[i, : len(example.labels)]) > 0.01, "labels all alike would hide a mistake"
    print(f"\nlargest difference of a label's log-probability: {worst:.1e}")
    assert worst < 1e-5


def named(batch: PackedBatch, backbone: Backbone) -> dict[int, set[str]]:
    """Of the first page, the words of each visual token that shows any."""
    decode = backbone.encoder.tokenizer.decode
    weights = batch.word_weight[0]
    assert all(w.sum() == pytest.approx(1) or not w.any() for w in weights)
    return {
        int(token): {decode([i]) for i, w in zip(batch.word_ids[0, token], weights[token], strict=True) if w}
        for token in np.flatnonzero(weights.any(-1))
    }


def test_the_corner_token_of_a_poster_names_its_letter_and_genre(backbone: Backbone) -> None:
    packer = packer_of(SHIPPED_RECIPE, backbone)
    pages = (KINDS["carousels"](np.random.default_rng(seed), width=320) for seed in range(20))
    example = next(page for page in pages if len(page.labels) < 15 and list(page.labels) != sorted(page.labels))
    genres = {pair[0]: pair[1] for q in example.questions for pair in q.drill if q.kind == "drill reading"}
    found = named(packer([example]), backbone)
    corners = {
        2 * (place // 5) * 10 + 2 * (place % 5): label
        for place, label in zip(example.places, example.labels, strict=True)
    }
    assert set(found) == set(corners), "6 × 10 tokens, 2 × 2 a place"
    for token, label in corners.items():
        assert {label, f" {label}"} < found[token] and len(found[token]) == 4
        if f" {label}" in genres:
            assert genres[f" {label}"] in found[token]


def test_the_tokens_of_a_gamble_name_label_digits_and_kind_of_text(backbone: Backbone) -> None:
    packer = packer_of(SHIPPED_RECIPE, backbone)
    example = KINDS["gambles"](np.random.default_rng(1), width=320)
    found = named(packer([example]), backbone)
    for (x0, y0, _, _), label in zip(example.boxes, example.labels, strict=True):
        token = int((y0 + 0.03) * 8) * 10 + int((x0 + 0.02) * 10)
        assert {label, f" {label}"} <= found[token]
    for kind in ("chance", "amount"):
        for label in example.labels:
            digits = "".join(a for q in example.questions for b, a in q.drill if b in (f" {kind} {label}", f" {label}"))
            assert any({f" {kind}", f" {label}"} <= words and words & set(digits) for words in found.values())


def test_a_spread_mark_names_all_that_it_covers_and_others_one_token(backbone: Backbone) -> None:
    packer = packer_of(SHIPPED_RECIPE, backbone)
    example = KINDS["gambles"](np.random.default_rng(1), width=320)

    def words(*marks: Mark) -> dict[int, set[str]]:
        return named(packer([replace(example, marks=marks)]), backbone)

    assert words(Mark((0.0, 0.0, 0.13, 0.125), ("A",), True)) == {0: {"A"}, 1: {"A"}}
    assert words(Mark((0.0, 0.0, 0.12, 0.125), ("A",), True)) == {0: {"A"}}
    assert words(Mark((0.09, 0.13, 0.16, 0.2), ("A",), False)) == {11: {"A"}}
    assert words(Mark((0.95, 0.9, 1.0, 1.0), ("A", "B", "A"), False)) == {79: {"A", "B"}}
    many = Mark((0.0, 0.0, 0.1, 0.1), tuple("ABCDEFGH"), False)
    assert words(many) == {0: set("ABCDEFGH"[:WORDS])}


def test_what_does_not_fit_is_refused(backbone: Backbone, examples: list[Example]) -> None:
    visual = 20
    with pytest.raises(ConfigError, match=r"visual tokens and .* in all does not fit into 40"):
        Packer(backbone, seq=40, tail=20, visual=visual, units=4 * visual)(examples)
    with pytest.raises(ConfigError, match="does not fit"):
        Packer(backbone, seq=112, tail=20, visual=10, units=40)(examples)
    with pytest.raises(ConfigError, match="tokens, over 5"):
        Packer(backbone, seq=112, tail=5, visual=visual, units=4 * visual)(examples)
    vague = Question(kind="odd", text="What?", answers=("12", "3"), weights=np.full(2, 0.5), slots=(0, 1))
    with pytest.raises(ConfigError, match="each must be one token"):
        Packer(backbone, seq=112, tail=20, visual=visual, units=4 * visual)([replace(examples[0], questions=(vague,))])


def test_no_branch_sees_another(backbone: Backbone, packer: Packer) -> None:
    """A question's probabilities are the same when the other questions of its page are others."""
    example = KINDS["carousels"](np.random.default_rng(5), width=RECIPE.page_width)
    choice, gaze, *others = example.questions
    turned = replace(example, questions=(choice, *others, gaze))
    found = packed_log_probs(backbone, packer([example, turned]))
    np.testing.assert_allclose(found[0, 0], found[1, 0], atol=1e-5)
    np.testing.assert_allclose(found[0, 1], found[1, -1], atol=1e-5)
