"""Tuning users by themselves: company changes nothing, early stopping is personal, a killed run ends the same."""

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.data.options import DataConfig
from fixate_jax.data.registry import open_or_prepare
from fixate_jax.errors import CheckpointError, ConfigError, DataError
from fixate_jax.lab.config import (
    ObjectiveConfig,
    OperatorConfig,
    OptimizerConfig,
    PromptConfig,
    RunConfig,
    TrainConfig,
    UsersConfig,
)
from fixate_jax.lab.experiments.loop import Interrupted
from fixate_jax.lab.experiments.workspace import Workspace, open_workspace
from fixate_jax.lab.parts import attention_weight_of, objective_of
from fixate_jax.lab.users import tune as module
from fixate_jax.lab.users.data import session_order, user_number
from fixate_jax.lab.users.memory import Memory, even_chunk, program_bytes
from fixate_jax.lab.users.step import UserState, _judge
from fixate_jax.lab.users.tune import UserPrompts, append_users, start_of, tune_users
from fixate_jax.prompts import PromptParams, population_prompt, soft_prompt
from fixate_jax.tuning.optimizer import rate_factor
from fixate_jax.tuning.step import loss_and_gradient

SEED = 3
COUNTS = {"0": (9, 4), "1": (1, 0), "2": (7, 0), "3": (2, 1), "4": (14, 7)}
"""Training and validation sessions of each user: nobody has as many as another."""


def settings(store: Path) -> RunConfig:
    """Rates so high that some users get worse and stop early."""
    return RunConfig(
        data=DataConfig(name="synthetic_choice", store=store, page_width=64, max_users=len(COUNTS)),
        backbone=BackboneConfig(tapped_layers=2),
        prompt=PromptConfig(basis=3, tokens=2, init_scale=0.3),
        operator=OperatorConfig(name="attention", assignment="area"),
        objective=ObjectiveConfig(alignment="kl", warmup=2),
        optimizer=OptimizerConfig(user_lr=0.7, basis_lr=0.05, user_clip=0.05, decay="cosine"),
        train=TrainConfig(eval_batch=8, max_lengths=1),
        users=UsersConfig(steps=8, batch=3, validate_every=2, patience=1, chunk=len(COUNTS)),
    )


def few_sessions(workspace: Workspace) -> Workspace:
    """Everybody keeps as many sessions as `COUNTS` says."""
    kept: dict[str, list[int]] = {"train": [], "validation": [], "test": workspace.splits["test"]}
    for user, counts in COUNTS.items():
        for split, count in zip(("train", "validation"), counts, strict=True):
            own = [i for i in workspace.splits[split] if workspace.data.sessions[i].user_id == user]
            kept[split] += own[:count]
    return replace(workspace, splits={name: sorted(indices) for name, indices in kept.items()})


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    config = settings(tmp_path_factory.mktemp("data") / "store")
    opened = open_workspace(config, open_or_prepare(config.data), directory=tmp_path_factory.mktemp("work"))
    return few_sessions(opened)


@pytest.fixture(scope="module")
def basis(workspace: Workspace) -> PromptParams:
    """A basis as if trained with two users."""
    key, other = jax.random.split(jax.random.key(0))
    return PromptParams(
        0.5 * jax.random.normal(key, (3, 2, workspace.backbone.width)), jax.random.normal(other, (2, 3))
    )


def tune(workspace: Workspace, basis: PromptParams | None, config: RunConfig | None = None, **more: Any) -> UserPrompts:
    return tune_users(workspace, config or workspace.config, basis=basis, seed=SEED, **more)


@pytest.fixture(scope="module")
def together(workspace: Workspace, basis: PromptParams) -> UserPrompts:
    """Everybody side by side."""
    tuned = tune(workspace, basis)
    assert tuned.users == tuple(COUNTS) and tuned.chunk == len(COUNTS) and tuned.compilations <= 1
    return tuned


def of_user(tuned: UserPrompts, user: str) -> tuple[np.ndarray, dict[str, Any]]:
    row = tuned.users.index(user)
    return np.asarray(tuned.own[row]), tuned.table.iloc[row].to_dict()


def assert_same(first: UserPrompts, second: UserPrompts, users: tuple[str, ...]) -> None:
    for user in users:
        (own, row), (other, its_row) = of_user(first, user), of_user(second, user)
        np.testing.assert_allclose(own, other, rtol=1e-5, atol=1e-5)
        for name in row:
            same = pytest.approx(its_row[name], rel=1e-5, nan_ok=True) if name.startswith("score") else its_row[name]
            assert row[name] == same, f"{name} of user {user}"


SHUFFLED = ("3", "0", "4", "2", "1")


def in_pairs(config: RunConfig) -> RunConfig:
    return replace(config, users=replace(config.users, chunk=2))


def test_company_order_and_chunks_change_nothing(
    workspace: Workspace, basis: PromptParams, together: UserPrompts
) -> None:
    config = in_pairs(workspace.config)
    pairs = tune(workspace, basis, config, users=SHUFFLED)
    assert pairs.chunk == 2 and pairs.compilations <= 1  # Three chunks, the last one filled up.
    assert_same(together, pairs, SHUFFLED)
    alone = tune(workspace, basis, config, users=["0"])
    assert alone.chunk == 1
    assert_same(together, alone, ("0",))
    assert np.abs(np.asarray(alone.own[0]) - np.asarray(together.own[-1])).max() > 1e-2, "users should differ"


def test_the_same_with_private_prompts_and_attn_lrp(workspace: Workspace, basis: PromptParams) -> None:
    config = replace(in_pairs(workspace.config), operator=OperatorConfig(name="attn_lrp", normalise="abs"))
    config = replace(config, users=replace(config.users, mode="private"))
    pairs, others = (tune(workspace, basis, config, users=users) for users in (("3", "0", "1"), ("1", "0")))
    assert pairs.own.shape == (3, 2, workspace.backbone.width) and pairs.basis is None
    assert_same(pairs, others, ("0", "1"))
    assert np.abs(np.asarray(pairs.own - pairs.start)).max() > 0.1


def test_a_user_gets_what_a_plain_loop_over_own_sessions_gives(
    workspace: Workspace, basis: PromptParams, together: UserPrompts
) -> None:
    """Users without validation sessions keep their last parameters, so these can be compared."""
    config, model = workspace.config, workspace.backbone.merge(workspace.backbone.params)
    start = start_of(config, "coefficients", basis, width=workspace.backbone.width, seed=SEED)
    for user in ("1", "2"):
        own = [i for i in workspace.splits["train"] if workspace.data.sessions[i].user_id == user]
        assert len(own) == COUNTS[user][0]
        order = session_order(user, len(own), steps=8, batch=3, seed=SEED)
        rule = optax.chain(optax.clip_by_global_norm(0.05), optax.adamw(0.7, weight_decay=1e-3))
        z, state = start, rule.init(start)
        gradient = jax.jit(lambda p, b, w: loss_and_gradient(p, model, b, objective_of(config), w)[1])
        for step, places in enumerate(order):
            batch = workspace.data.batch(sorted((own[p] if p >= 0 else -1 for p in places), reverse=True))
            micro = jax.tree.map(lambda x: jnp.asarray(x)[None], batch._replace(user=np.zeros(3, np.int32)))
            weight = attention_weight_of(config.objective, step)
            slope = gradient(PromptParams(basis.basis, z[None]), micro, weight).coefficients[0]
            updates, state = rule.update(slope, state, z)
            z = z + rate_factor(config.optimizer.decay, jnp.int32(step), 8) * updates
        np.testing.assert_allclose(of_user(together, user)[0], z, rtol=1e-4, atol=1e-5)
        assert np.abs(z - start).max() > 0.1


def test_everybody_stops_by_their_own_validation(together: UserPrompts) -> None:
    table = together.table.set_index("user")
    assert table[["train", "validation"]].apply(tuple, axis=1).to_dict() == COUNTS
    assert len(set(table["steps"])) > 1, "with these rates some stop and some do not"
    for user, (_, validation) in COUNTS.items():
        row, log = table.loc[user], together.log[together.log["user"] == user]
        assert list(log["step"]) == list(range(0, row["steps"] + 1, 2)), "nothing is logged after the stop"
        if not validation:
            assert (row["steps"], row["best_step"], row["stopped_early"]) == (8, 8, False)
            assert np.isnan(row["score_before"]) and np.isnan(row["score_after"])
            continue
        scores = log["score"].to_numpy(dtype=float)
        assert row["score_before"] == pytest.approx(scores[0])
        assert row["score_after"] == pytest.approx(scores.min())
        assert row["best_step"] == 2 * int(scores.argmin())
        assert row["stopped_early"] == (row["steps"] == row["best_step"] + 2)
        assert row["stopped_early"] or row["steps"] == 8


def test_the_prompt_that_scored_best_is_kept(workspace: Workspace, basis: PromptParams, together: UserPrompts) -> None:
    """Scored again, what was kept scores what the table says."""
    run = module._UserTuning(workspace, workspace.config, None, basis, SEED, None)
    state, sessions, frozen = run._arguments(run.data.members)
    # A copy, since the state is donated.
    _, parts = run.advance(state._replace(own=jnp.copy(together.own)), sessions, frozen, jnp.int32(0), jnp.int32(0))
    held = together.table["validation"] > 0
    assert (together.table["best_step"] < together.table["steps"])[held].any()
    np.testing.assert_allclose(np.asarray(parts["score"])[held], together.table["score_after"][held], rtol=1e-5)


def test_users_are_scored_on_their_validation_sessions(
    workspace: Workspace, basis: PromptParams, together: UserPrompts
) -> None:
    run = module._UserTuning(workspace, workspace.config, None, basis, SEED, None)
    _, sessions, _ = run._arguments(run.data.members)
    places = {"order": sessions.order, "validation": sessions.validation}
    for row, member in enumerate(run.data.members):
        shown = {name: sessions.rows.session[row][np.unique(at[row][at[row] >= 0])] for name, at in places.items()}
        assert sorted(shown["validation"].tolist()) == sorted(member.validation)
        assert set(shown["order"].tolist()) <= set(member.train)

    def scores(**changed: Any) -> np.ndarray:
        state, sessions, frozen = run._arguments(run.data.members)
        sessions = sessions._replace(**changed)
        return np.asarray(run.advance(state, sessions, frozen, jnp.int32(0), jnp.int32(0))[1]["score"])

    before, held = scores(), np.array([len(m.validation) > 0 for m in run.data.members])
    np.testing.assert_allclose(before[held], together.table["score_before"][held], rtol=1e-5)
    np.testing.assert_array_equal(scores(order=jnp.zeros_like(sessions.order)), before)
    other = jnp.where(sessions.validation >= 0, 0, -1)
    assert (np.abs(scores(validation=other) - before)[held] > 1e-3).all()


def judged(scores: list[float], *, held: bool = True, patience: int = 2) -> UserState:
    """The state after validations with these scores; the parameters say after how many steps they were so."""
    infinity, none = jnp.float32(jnp.inf), jnp.int32(0)
    state = UserState(jnp.zeros(2), (), jnp.zeros(2), infinity, infinity, none, none, none, jnp.asarray(False))
    for steps, score in enumerate(scores):
        own, taken = jnp.full(2, steps, jnp.float32), jnp.int32(steps)
        state = _judge(state, own, (), jnp.float32(score), taken, held=jnp.asarray(held), patience=patience)
    return state


@pytest.mark.parametrize(
    ("scores", "best", "stopped"),
    [
        ([3.0, 1.0, 2.0], 1, False),
        ([3.0, 1.0, 2.0, 1.5], 1, True),
        ([3.0, 1.0, 1.0, 0.5], 3, False),
        ([1.0, np.nan, np.nan], 0, True),
        ([1.0, 2.0, 3.0], 0, True),
    ],
)
def test_the_best_step_is_kept_and_not_the_last(scores: list[float], best: int, stopped: bool) -> None:
    state = judged(scores)
    assert (int(state.best_step), float(state.best[0]), bool(state.stopped)) == (best, best, stopped)
    assert float(state.best_score) == scores[best] and float(state.start_score) == scores[0]
    last = judged([np.inf] * len(scores), held=False)
    assert (int(last.best_step), float(last.best[0]), bool(last.stopped)) == (len(scores) - 1, len(scores) - 1, False)


def test_the_order_of_sessions_is_the_users_own() -> None:
    order = session_order("someone", 5, steps=7, batch=2, seed=1)
    assert order.shape == (7, 2)
    for epoch in (order[:3], order[3:6]):
        assert sorted(epoch.ravel().tolist()) == [-1, 0, 1, 2, 3, 4]
    np.testing.assert_array_equal(session_order("someone", 5, steps=3, batch=2, seed=1), order[:3])
    assert not np.array_equal(session_order("else", 5, steps=7, batch=2, seed=1), order)
    assert not np.array_equal(session_order("someone", 5, steps=7, batch=2, seed=2), order)
    assert user_number("someone") == 1525852549020974099  # The same in every process.


def test_it_starts_from_the_population_prompt(workspace: Workspace, basis: PromptParams) -> None:
    config, width = workspace.config, workspace.backbone.width
    wanted = population_prompt(basis)
    z = start_of(config, "coefficients", basis, width=width, seed=0)
    np.testing.assert_allclose(soft_prompt(PromptParams(basis.basis, z[None]), jnp.zeros(1, int))[0], wanted, atol=1e-6)
    np.testing.assert_array_equal(start_of(config, "private", basis, width=width, seed=0), wanted)
    fresh = start_of(config, "private", None, width=width, seed=0)
    assert fresh.shape == (2, width) and np.std(fresh) == pytest.approx(0.3, rel=0.2)


def test_a_stopped_tuning_goes_on_bit_for_bit(
    workspace: Workspace, basis: PromptParams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(workspace.config, users=replace(workspace.config.users, chunk=1))

    def go(folder: str, config: RunConfig = config, **more: Any) -> UserPrompts:
        return tune(workspace, basis, config, users=SHUFFLED[:3], directory=tmp_path / folder, **more)

    whole = go("whole")

    def terminate(done: int, users: int, note: str) -> None:
        assert users == 3
        if done == 1 and "step 2/8" in note:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="SIGTERM: 1 of 3 chunks are done; run the same command again"):
        go("cut", report=terminate)
    # Killed after the log was written and before the second chunk was whole.
    with monkeypatch.context() as patch:
        patch.setattr(module.CheckpointStore, "save", lambda *_: (_ for _ in ()).throw(RuntimeError("killed")))
        with pytest.raises(RuntimeError, match="killed"):
            go("cut")
    told: list[int] = []
    resumed = go("cut", report=lambda done, users, note: told.append(done))
    assert min(told) == 1, "the first chunk is not tuned again"
    np.testing.assert_array_equal(np.asarray(resumed.own), np.asarray(whole.own))
    assert resumed.table.equals(whole.table)
    logs = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "cut")]
    assert logs[0] == logs[1] and len(logs[0].splitlines()) == len(whole.log) == len(resumed.log)
    finished = go("cut")
    assert finished.compilations == 0 and np.array_equal(np.asarray(finished.own), np.asarray(whole.own))

    other = replace(config, objective=replace(config.objective, beta=0.5))
    with pytest.raises(CheckpointError, match=r"plan\.json: made with other settings, users or basis"):
        go("cut", other)
    (state,) = (tmp_path / "cut" / "chunk-00001").rglob("meta.json")
    state.write_text(state.read_text().replace("0.", "1.", 1))
    with (
        pytest.warns(UserWarning, match="differs from its checksum"),
        pytest.raises(CheckpointError, match="chunk-00001"),
    ):
        go("cut")
    shutil.rmtree(tmp_path / "cut" / "chunk-00001")
    again = go("cut")
    np.testing.assert_array_equal(np.asarray(again.own), np.asarray(whole.own))


def test_new_users_join_and_old_ones_stay(basis: PromptParams, together: UserPrompts) -> None:
    joined = append_users(basis, together)
    np.testing.assert_array_equal(np.asarray(joined.basis), np.asarray(basis.basis))
    np.testing.assert_array_equal(np.asarray(joined.coefficients[:2]), np.asarray(basis.coefficients))
    np.testing.assert_array_equal(np.asarray(joined.coefficients[2:]), np.asarray(together.own))
    with pytest.raises(ConfigError, match="were tuned over another basis"):
        append_users(basis._replace(basis=basis.basis + 1e-6), together)
    with pytest.raises(ConfigError, match="private prompts cannot join a basis"):
        append_users(basis, replace(together, basis=None))


def test_prompts_in_the_order_asked_for(together: UserPrompts) -> None:
    params = together.prompt_params(("4", "stranger", "0"))
    np.testing.assert_array_equal(np.asarray(params.coefficients[1]), np.asarray(together.start))
    np.testing.assert_array_equal(np.asarray(params.coefficients[2]), np.asarray(together.own[0]))
    prompts = jax.random.normal(jax.random.key(1), (5, 2, 4))
    private = replace(together, own=prompts, basis=None, start=jnp.zeros((2, 4))).prompt_params(("4", "stranger", "0"))
    wanted = jnp.stack([prompts[4], jnp.zeros((2, 4)), prompts[0]])
    np.testing.assert_array_equal(np.asarray(soft_prompt(private, jnp.arange(3))), np.asarray(wanted))


def test_memory_is_a_line_through_two_small_programs(
    workspace: Workspace, basis: PromptParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = module._UserTuning(workspace, workspace.config, None, basis, SEED, None)
    line = run.memory()
    state, sessions, frozen = run._arguments(run.data.members)
    found = program_bytes(run.advance.lower(state, sessions, frozen, jnp.int32(0), jnp.int32(0)))
    pages = run.table_size
    assert found == pytest.approx(line.fixed + 5 * line.per_user + pages * line.page, rel=0.05)
    assert line.bytes(5) >= 0.95 * found
    assert line.most_users(line.bytes(3) + 1, 5) == 3
    monkeypatch.setattr(module._UserTuning, "memory", lambda self: line)
    tight = replace(workspace.config, users=replace(workspace.config.users, chunk=None, memory_gb=line.bytes(2) / 1e9))
    assert module._UserTuning(workspace, tight, None, basis, SEED, None).chunk == 2
    nothing = replace(tight, users=replace(tight.users, memory_gb=1e-6))
    with pytest.raises(ConfigError, match=r"users\.memory_gb: 0\.00 GB do not hold the weights and one user"):
        tune(workspace, basis, nothing)


def test_chunks_are_as_full_as_they_can_be() -> None:
    assert [even_chunk(users, 64) for users in (1, 64, 65, 256, 300)] == [1, 64, 33, 64, 60]
    assert even_chunk(20, 2, devices=8) == 16 and even_chunk(3, 64, devices=8) == 8
    memory = Memory(fixed=100.0, per_user=10.0, page=1.0, pages=6, pages_per_user=4)
    assert [memory.bytes(n) for n in (1, 2, 3)] == [114, 126, 136]
    assert memory.bytes(1, devices=8) == 116


@pytest.mark.parametrize(
    ("users", "kind", "message"),
    [
        (["0", "nobody"], ConfigError, "users: nobody: not in these data; there are 0, 1, 2"),
        (["0", "1", "0"], ConfigError, "users: 0: named twice"),
        ([], ConfigError, "nobody to tune"),
        (["idle"], DataError, "users: idle: no session in split train to learn from; leave them out"),
    ],
)
def test_users_who_cannot_be_tuned(
    workspace: Workspace, basis: PromptParams, users: list[str], kind: type[Exception], message: str
) -> None:
    if users == ["idle"]:
        users, message = ["2"], message.replace("idle", "2")
        train = [i for i in workspace.splits["train"] if workspace.data.sessions[i].user_id != "2"]
        workspace = replace(workspace, splits=workspace.splits | {"train": train})
        left = module._UserTuning(workspace, workspace.config, None, basis, SEED, None)
        assert "2" not in [m.user for m in left.data.members], "left out where nobody is named"
    with pytest.raises(kind, match=message):
        tune(workspace, basis, users=users)


def test_a_basis_that_does_not_fit(workspace: Workspace, basis: PromptParams) -> None:
    with pytest.raises(ConfigError, match="a trained basis is needed; give --basis RUN"):
        tune(workspace, None, replace(workspace.config, users=replace(workspace.config.users, mode="coefficients")))
    with pytest.raises(ConfigError, match=r"prompts of 3 tokens .* where prompt\.tokens is 2"):
        tune(workspace, basis._replace(basis=jnp.zeros((3, 3, workspace.backbone.width))))
    for field, value in (("steps", 0), ("batch", 0), ("patience", 0), ("chunk", 0), ("memory_gb", 0.0), ("only", ())):
        with pytest.raises(ConfigError, match=f"users.{field} = "):
            UsersConfig(**{field: value})  # type: ignore[arg-type]


def test_several_lengths_are_refused(
    workspace: Workspace, basis: PromptParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workspace.data, "buckets", workspace.data.buckets * 2)
    with pytest.raises(ConfigError, match="per-user tuning wants one length of sequences; set it to 1"):
        tune(workspace, basis)


def test_prompts_behind_the_page_are_tuned_over_its_keys(
    workspace: Workspace, basis: PromptParams, tmp_path: Path
) -> None:
    config = replace(workspace.config, prompt=replace(workspace.config.prompt, position="after_image"))
    opened = few_sessions(open_workspace(config, workspace.store, directory=tmp_path))
    assert opened.data.page_keys is not None
    pair, other = (tune(opened, basis, in_pairs(config), users=users) for users in (["4", "0"], ["0", "2"]))
    assert_same(pair, other, ("0",))
    table = pair.table[pair.table["user"] == "0"]
    assert (table["score_after"] < table["score_before"]).all()
