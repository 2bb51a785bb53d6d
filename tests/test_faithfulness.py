"""Deletion, insertion and the pointing game: what is masked, what is counted, and what is kept on disk."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fixate_jax.backbones import Backbone, load_backbone, stack_pages
from fixate_jax.backbones.loading import SHIPPED
from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.data.options import DataConfig
from fixate_jax.data.session import StoredSession
from fixate_jax.errors import ConfigError
from fixate_jax.lab.analysis import faithfulness, faithfulness_run
from fixate_jax.lab.analysis.faithfulness import (
    ANSWER_FIRST,
    RANDOM,
    Subject,
    area,
    choose_sessions,
    choose_variants,
    faithfulness_table,
    mean_curves,
    operator_curves,
    random_curves,
    variants,
)
from fixate_jax.lab.analysis.faithfulness_run import FaithfulnessSettings, run_faithfulness
from fixate_jax.lab.analysis.masking import masked_log_probs, slot_masks
from fixate_jax.lab.config import OperatorConfig, PromptConfig, RunConfig, TrainConfig
from fixate_jax.lab.experiments.loop import Interrupted
from fixate_jax.lab.experiments.programs import make_evaluate
from fixate_jax.lab.parts import OPERATORS
from fixate_jax.lab.pretraining.tasks import KINDS
from fixate_jax.lab.report.curves import faithfulness_curves
from fixate_jax.probing.batches import Batch, SessionData
from fixate_jax.probing.encode import encode_sessions
from fixate_jax.prompts import soft_prompt
from tests.worlds import World


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"), sizes=((3, 192, 128), (5, 128, 128), (4, 128, 128)))


def mean_masked(data: SessionData, batch: Batch, gone: list[list[int]]) -> Batch:
    """The batch with the tokens of some slots replaced by hand."""
    features = np.array(batch.inputs.features)
    for row, slots in enumerate(gone):
        cells = data.encoded[int(batch.session[row])].cell_tokens
        mean = features[row, cells].mean(axis=0)
        for slot in slots:
            features[row, cells[batch.slot_matrix[row, slot, : len(cells)] == 1]] = mean
    return batch._replace(inputs=batch.inputs._replace(features=features))


def test_a_masked_slot_shows_the_pages_mean_token(world: World) -> None:
    """Step k is the evaluation of pages whose first k slots were replaced by hand, DeepStack's levels with them."""
    assert world.backbone.image_levels > 1
    data, params = world.data, world.backbone.params
    host = data.batch([0, 1, 2])
    orders = [[2, 0, 1], [4, 1, 3, 0, 2], [0, 1, 2, 3]]
    rank = np.full((3, 5), 5, np.int32)
    for row, order in enumerate(orders):
        rank[row, order] = np.arange(len(order))
    tuned = world.prompt()
    soft = soft_prompt(tuned, jnp.asarray(host.user))
    found = masked_log_probs(world.backbone, params, data, host, rank, lambda batch: soft)
    assert found.shape == (6, 3, 5)
    cheap = replace(world.config, operator=OperatorConfig(name="attention"))
    evaluate = make_evaluate(world.backbone.graph, cheap, world.backbone.encoder.end_token)
    for step in (0, 1, 3, 5):
        by_hand = mean_masked(data, host, [order[:step] for order in orders])
        seen = evaluate(soft, True, params, jax.device_put(by_hand)).log_probs
        np.testing.assert_allclose(found[step], seen, atol=3e-5)
    assert np.abs(found[1, :, :3] - found[0, :, :3]).max() > 1e-3, "masking changes the answers"
    np.testing.assert_allclose(found[3, 0], found[5, 0], atol=1e-5, err_msg="a page of three slots is masked by then")


def test_tokens_that_are_no_cells_are_masked_from_the_start() -> None:
    """A thumbnail would show what the cells no longer do."""
    encoded = SimpleNamespace(cell_tokens=np.array([1, 0, 3, 2]), page_tokens=6)
    matrix = np.array([[1, 0.25, 0, 0], [0, 0, 0, 1]], np.float32)
    data = object.__new__(SessionData)
    vars(data).update(encoded=[encoded], slot_matrix=lambda index: matrix)
    empty: dict[str, Any] = dict.fromkeys(Batch._fields)
    batch = Batch(**empty)._replace(slot_matrix=np.zeros((2, 3, 7)), session=np.array([0, -1]))
    masks = slot_masks(data, batch)
    wanted = [[0.25, 1, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0, 0], [0] * 7]
    for row in (0, 1):
        np.testing.assert_array_equal(masks.share[row], wanted)
        np.testing.assert_array_equal(masks.cells[row], [0.25] * 4 + [0] * 3)
        np.testing.assert_array_equal(masks.beside[row], [0, 0, 0, 0, 1, 1, 0])


def test_area_is_the_mean_height() -> None:
    assert area([0.4, 0.4, 0.4]) == pytest.approx(0.4)
    assert area([1.0, 0.0]) == pytest.approx(0.5)
    assert area([1.0, 0.0, 0.0, 0.0, 0.0]) == pytest.approx(1 / 8)


def test_an_operator_is_followed_from_its_top_slot_down(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots go in order of attention; insertion is the reverse order read backwards; the answer is the one given."""
    subject = Subject(backbone=world.backbone, data=world.data, soft=None, batch=2)
    asked: list[np.ndarray] = []

    def masked(backbone: Any, params: Any, data: SessionData, batch: Batch, rank: np.ndarray, soft: Any) -> np.ndarray:
        asked.append(rank)
        steps, slots = rank.shape[1] + 1, np.arange(rank.shape[1])
        # The probability of slot 0's label tells how many slots are masked, weighted by which.
        score = np.stack([(rank < step) @ (1.0 + slots) for step in range(steps)])
        return np.where(slots == 0, score[..., None], 0.0) + np.zeros((steps, *rank.shape))

    monkeypatch.setattr(faithfulness, "masked_log_probs", masked)
    attention = {"s0": [0.2, 0.5, 0.3], "s1": [0.1, 0.1, 0.4, 0.3, 0.1], "s2": [0.7, 0.0, 0.2, 0.1]}
    looked = [SimpleNamespace(slot_attention=np.array(attention[s.session_id])) for s in world.sessions]
    monkeypatch.setattr(faithfulness, "probe_data", lambda *args, **named: looked)
    frame = operator_curves(subject, "mine", OperatorConfig(name="attention"), [0, 0, 1], seed=0)
    assert list(frame["operator"].unique()) == ["mine"] and frame["top"].tolist() == [1, 2, 0]
    np.testing.assert_array_equal(asked[0][0][:3], [2, 0, 1])

    def softmax(score: float, others: int) -> float:
        return float(np.exp(score) / (np.exp(score) + others))

    # Session s0: slots 1, 2, 0 weigh 2, 3, 1; masked one after the other, and shown in the same order.
    np.testing.assert_allclose(frame["deletion curve"][0], [softmax(s, 2) for s in (0, 2, 5, 6)])
    np.testing.assert_allclose(frame["insertion curve"][0], [softmax(s, 2) for s in (6, 4, 1, 0)])
    assert frame["deletion"][0] == pytest.approx(area(frame["deletion curve"][0]))
    assert len(frame["deletion curve"][1]) == 6 and len(frame["deletion curve"][2]) == 5
    np.testing.assert_allclose(frame["deletion curve"][2], [(1 - softmax(s, 3)) / 3 for s in (0, 1, 4, 8, 10)])
    # Equal slots come in an order of chance.
    asked.clear()
    for seed in range(8):
        operator_curves(subject, "mine", OperatorConfig(name="attention"), [0, 0, 1], seed=seed)
    assert len({tuple(rank[1]) for rank in asked[::4]}) > 1


def test_random_order_is_a_mean_over_orders_and_watches_the_models_own_answer(world: World) -> None:
    subject = Subject(backbone=world.backbone, data=world.data, soft=None, batch=3)
    frame = random_curves(subject, draws=3, seed=0)
    alone = [random_curves(subject, draws=1, seed=seed) for seed in (0, 0, 1)]
    pd.testing.assert_frame_equal(alone[0], alone[1])
    assert not np.allclose(alone[0]["deletion"], alone[2]["deletion"])
    assert frame["operator"].unique().tolist() == [RANDOM]
    for row in frame.itertuples():
        curve = np.array(row[frame.columns.get_loc("deletion curve") + 1])
        assert curve[0] >= 1 / row.slots and curve.min() > 0
        assert row.deletion == pytest.approx(area(curve))
    answers = [int(answer) for answer in frame["answer"]]
    orders: list[list[np.ndarray]] = []

    def note(_: Subject, order: list[np.ndarray], *rest: object) -> pd.DataFrame:
        orders.append(order)
        return frame

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faithfulness, "_curves", note)
        first = random_curves(subject, draws=4, seed=0, first=answers)
    assert first["operator"].unique().tolist() == [ANSWER_FIRST] and first["top"].tolist() == answers
    for row, session in enumerate(world.sessions):
        assert all(order[row][0] == answers[row] for order in orders)
        assert all(sorted(order[row]) == list(range(session.slots)) for order in orders)
    assert len({tuple(order[1]) for order in orders}) > 1
    # Both ends are the same page whatever the order.
    ends = [[(c[0], c[-1]) for c in f["deletion curve"]] for f in (frame, *alone)]
    np.testing.assert_allclose(ends, [ends[0]] * 4, atol=1e-5)


def made_up_curves() -> pd.DataFrame:
    """Six users with two sessions each; the operator falls faster than chance for five of them."""
    rows = []
    for user in range(6):
        for trial in range(2):
            shared = {"session_id": f"{user}/{trial}", "user_id": str(user), "slots": 2, "click": 1, "answer": trial}
            for name, low, top in ((RANDOM, 0.5, -1), ("good", 0.6 if user == 5 else 0.3 - 0.01 * user, 1)):
                curve = [1.0, low, 0.0]
                both = {"deletion curve": curve, "insertion curve": curve[::-1]}
                areas = {"deletion": area(curve), "insertion": 1 - area(curve)}
                rows.append({**shared, "operator": name, "top": top, **areas, **both})
    return pd.DataFrame(rows)


def test_the_table_compares_with_random_order_over_users() -> None:
    table = faithfulness_table(made_up_curves(), seed=0).set_index("operator")
    good = table.loc["good"]
    assert (good["sessions"], good["users"]) == (12, 6)
    assert good["deletion"] == pytest.approx(0.25 + np.mean([0.3, 0.29, 0.28, 0.27, 0.26, 0.6]) / 2)
    assert good["deletion low"] < good["deletion"] < good["deletion high"]
    assert good["deletion better"] == 5 and good["insertion better"] == 5
    assert 0.05 < good["deletion p"] < 0.2
    assert good["points at answer"] == 0.5 and good["points at click"] == 1.0
    assert np.isnan(table.loc[RANDOM, ["deletion p", "points at answer"]].astype(float)).all()
    assert table.loc["any slot", "points at answer"] == 0.5
    assert table.loc["commonest slot", ["points at answer", "points at click"]].tolist() == [0.5, 1.0]
    assert "deletion p, answer first" not in table.columns
    curves = made_up_curves()
    first = curves[curves["operator"] == RANDOM].assign(operator=ANSWER_FIRST, deletion=0.3, insertion=0.9)
    table = faithfulness_table(pd.concat([curves, first]), seed=0).set_index("operator")
    assert table.loc["good", ["deletion better", "deletion better, answer first"]].tolist() == [5, 0]
    assert table.loc["good", "insertion better, answer first"] == 0
    assert table.loc[RANDOM, "deletion better, answer first"] == 0 and table.loc[ANSWER_FIRST, "deletion better"] == 6
    means = mean_curves(made_up_curves())
    np.testing.assert_allclose(means[RANDOM]["deletion"][[0, 5, 10, 20]], [1, 0.75, 0.5, 0])


def test_sessions_come_evenly_from_all_users(world: World) -> None:
    sessions = [replace(world.sessions[0], session_id=str(i), user_id="a" if i < 20 else "b") for i in range(24)]
    chosen = choose_sessions(sessions, 6, seed=0)
    assert sorted(s.user_id for s in chosen) == ["a"] * 3 + ["b"] * 3
    assert [s.session_id for s in chosen] == [s.session_id for s in choose_sessions(sessions, 6, seed=0)]
    assert {s.session_id for s in chosen} != {s.session_id for s in choose_sessions(sessions, 6, seed=1)}
    assert [s.user_id for s in choose_sessions(sessions, 12, seed=0)].count("b") == 4, "all that there are"
    assert len(choose_sessions(sessions, 100, seed=0)) == 24


def test_every_operator_has_its_variants() -> None:
    every = variants(OperatorConfig(eps=0.1))
    assert {v.name for v in every.values()} == set(OPERATORS) and {v.eps for v in every.values()} == {0.1}
    assert every["attn_lrp abs"].normalise == "abs"
    assert list(choose_variants(OperatorConfig(), ["rollout"])) == ["rollout"]
    with pytest.raises(ConfigError, match="--operators lrp2: choose among attn_lrp signed, attn_lrp abs"):
        choose_variants(OperatorConfig(), ["rollout", "lrp2"])


def test_the_figure_draws_every_operator_and_the_baseline(tmp_path: Path) -> None:
    curves = mean_curves(made_up_curves())
    few = faithfulness_curves(tmp_path / "few.png", curves, baseline=RANDOM)
    more = {**curves, "worse": {kind: 0.5 * both + 0.4 for kind, both in curves["good"].items()}}
    first, second = (
        np.asarray(Image.open(p).convert("RGB"))
        for p in (few, faithfulness_curves(tmp_path / "m.png", more, baseline=RANDOM))
    )
    assert (first != 255).any(-1).mean() > 0.01
    assert first.shape == second.shape and (first != second).any()


def settings(store: Path) -> RunConfig:
    return RunConfig(
        data=DataConfig(name="synthetic_choice", store=store, page_width=64, max_users=2),
        backbone=BackboneConfig(tapped_layers=2),
        prompt=PromptConfig(basis=2, tokens=2),
        train=TrainConfig(eval_batch=4),
    )


def test_a_stopped_command_goes_on_and_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, wanted = settings(tmp_path / "store"), FaithfulnessSettings(operators=("attention",), sessions=4, draws=1)
    table = run_faithfulness(config, tmp_path / "whole", wanted)
    written = pd.read_csv(tmp_path / "whole" / "faithfulness.csv")
    pd.testing.assert_frame_equal(written, table, check_dtype=False)
    assert (tmp_path / "whole" / "faithfulness.png").stat().st_size > 1000
    assert table["operator"].tolist()[:3] == [RANDOM, ANSWER_FIRST, "attention"]
    first = table.set_index("operator").loc[ANSWER_FIRST]
    assert first["points at answer"] == 1 and first["deletion"] > 0

    def stop(*args: object, **named: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(faithfulness_run, "operator_curves", stop)
        with pytest.raises(Interrupted, match="run the same command again"):
            run_faithfulness(config, tmp_path / "part", wanted)
    kept = {p.name for p in (tmp_path / "part" / "curves").iterdir()}
    assert kept == {"random-order.parquet", "answer-first.parquet"}
    monkeypatch.setattr(faithfulness_run, "random_curves", stop)  # Done already.
    pd.testing.assert_frame_equal(run_faithfulness(config, tmp_path / "part", wanted), table)
    with pytest.raises(ConfigError, match="was made with another sessions; choose another --out"):
        run_faithfulness(config, tmp_path / "part", replace(wanted, sessions=5))
    more = run_faithfulness(config, tmp_path / "part", replace(wanted, operators=("attention", "rollout")))
    assert more["operator"].tolist()[2:4] == ["attention", "rollout"]


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("a", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"full is not empty and holds no settings.json"):
        run_faithfulness(settings(tmp_path / "store"), tmp_path / "full", FaithfulnessSettings())
    for wrong in ({"sessions": 0}, {"draws": 0}, {"split": "tset"}):
        with pytest.raises(ConfigError, match=f"--{next(iter(wrong))}"):
            FaithfulnessSettings(**cast(Any, wrong))


def find_questions(backbone: Backbone, kind: str, count: int, monkeypatch: pytest.MonkeyPatch) -> SessionData:
    """Pages of which one slot is asked for; a session's profile stands for the wording of its question."""
    write, asked = backbone.encoder.chat_text, {}
    sessions: list[StoredSession] = []
    pages = {}
    for seed in range(10 * count):
        example = KINDS[kind](np.random.default_rng([20_261_122, seed]), width=320)
        found = [
            q
            for q in example.questions
            if q.kind.startswith("find") and q.kind != "find place" and q.weights.max() == 1
        ]
        if len(sessions) == count or not found:
            continue
        name, question = f"s{seed}", found[0]
        labels = tuple(sorted(example.labels)) if example.listed else ()
        asked[name] = write(example.profile, labels, question=question.text, persona=example.persona)
        pages[name] = backbone.page_processor(example.page)
        sessions.append(
            StoredSession(
                session_id=name,
                user_id=f"u{len(sessions) % 8}",
                page_id=name,
                boxes=example.boxes,
                labels=example.labels,
                dwell_ms={"fixation": np.ones(len(example.labels))},
                click=question.slots[int(question.weights.argmax())],
                profile=name,
            )
        )
    monkeypatch.setattr(backbone.encoder, "chat_text", lambda profile, labels: asked[profile])
    grids = {name: (page.rows, page.columns) for name, page in pages.items()}
    return SessionData(
        sessions,
        encode_sessions(backbone, sessions, grids),
        {s.user_id: 0 for s in sessions},
        features=lambda ids: (None, stack_pages([pages[i] for i in ids])),
        prompt_tokens=0,
        signal=None,
        max_lengths=1,
    )


@pytest.mark.skipif(not (SHIPPED / "tiny-qwen3-vl").is_dir(), reason="no weights are in this copy")
@pytest.mark.parametrize(("kind", "how", "pages"), [("carousels", "attn_lrp abs", 8), ("gambles", "attention", 16)])
def test_a_good_operator_beats_random_order_where_the_shipped_backbone_reads(
    kind: str, how: str, pages: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = load_backbone(BackboneConfig(path="tiny-qwen3-vl", tapped_layers=4))
    data = find_questions(backbone, kind, pages, monkeypatch)
    subject = Subject(backbone=backbone, data=data, soft=None, batch=pages)
    chance = random_curves(subject, draws=1, seed=0)
    assert (chance["answer"] == chance["click"]).mean() >= 0.8, "it reads these pages"
    answers = [int(answer) for answer in chance["answer"]]
    good = operator_curves(subject, how, variants(OperatorConfig())[how], answers, seed=0)
    table = faithfulness_table(pd.concat([chance, good], ignore_index=True), seed=0).set_index("operator")
    print(f"\n{kind}\n{table.T}")
    row = table.loc[how]
    assert row["deletion"] < 0.8 * table.loc[RANDOM, "deletion"] and row["deletion p"] < 0.05
    assert row["insertion"] > table.loc[RANDOM, "insertion"] and row["insertion p"] < 0.05
    assert row["points at answer"] > 2 * table.loc["any slot", "points at answer"]
