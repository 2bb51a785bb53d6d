"""A whole run: killed and resumed it ends like one that was not, few compilations, clear refusals."""

import base64
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.data.options import DataConfig
from fixate_jax.data.page import Page
from fixate_jax.data.registry import open_or_prepare
from fixate_jax.data.session import StoredSession
from fixate_jax.errors import CheckpointError, ConfigError
from fixate_jax.evaluation.forward import Evaluation
from fixate_jax.lab.bundles.bundle import load_bundle, write_bundle
from fixate_jax.lab.bundles.card import Origin
from fixate_jax.lab.bundles.opening import load_run
from fixate_jax.lab.cli.commands import main
from fixate_jax.lab.config import (
    ObjectiveConfig,
    OperatorConfig,
    OptimizerConfig,
    PromptConfig,
    RunConfig,
    TrainConfig,
)
from fixate_jax.lab.experiments import evaluate, loop
from fixate_jax.lab.experiments.calibrate import calibrate, facts_of, read_calibration
from fixate_jax.lab.experiments.experiment import (
    Results,
    claim_run,
    evaluate_run,
    load_prompt,
    open_run,
    run_experiment,
    seed_directory,
)
from fixate_jax.lab.experiments.loop import Interrupted, start_state, train, validate
from fixate_jax.lab.experiments.workspace import Workspace, open_workspace
from fixate_jax.lab.frames import session_metrics, user_means
from fixate_jax.lab.settings import dump_config
from fixate_jax.tuning.checkpoint import CheckpointStore, CheckpointWarning
from fixate_jax.tuning.step import TrainState
from tests import environment

SEED = 7


def settings(store: Path) -> RunConfig:
    return RunConfig(
        data=DataConfig(name="synthetic_choice", store=store, page_width=64, max_users=2, train_sessions=16),
        backbone=BackboneConfig(tapped_layers=2),
        prompt=PromptConfig(basis=2, tokens=2, init_scale=0.3),
        operator=OperatorConfig(name="attention"),
        objective=ObjectiveConfig(alignment="kl", warmup=3),
        optimizer=OptimizerConfig(basis_lr=0.05, user_lr=0.05),
        train=TrainConfig(
            seeds=(SEED,),
            epochs=2,
            batch=4,
            accumulate=2,
            eval_batch=8,
            validate_every=1,
            checkpoint_every=2,
            ntp_baseline=False,
            swap_control=False,
            pictures=1,
        ),
    )


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return settings(tmp_path_factory.mktemp("data") / "store")


@pytest.fixture(scope="module")
def workspace(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return open_workspace(config, open_or_prepare(config.data), directory=tmp_path_factory.mktemp("work"))


def final_state(workspace: Workspace, directory: Path) -> Any:
    state = start_state(workspace.config, users=len(workspace.users), width=workspace.backbone.width, seed=SEED)
    restored = CheckpointStore(directory / "checkpoints").restore({"state": state, "best": state.prompt})
    assert restored is not None
    return restored


def assert_same_run(workspace: Workspace, first: Path, second: Path) -> None:
    a, b = final_state(workspace, first), final_state(workspace, second)
    assert a.step == b.step
    for x, y in zip(jax.tree.leaves(a.state), jax.tree.leaves(b.state), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))
    assert (first / "metrics.jsonl").read_bytes() == (second / "metrics.jsonl").read_bytes()
    assert (first / "metrics.csv").read_bytes() == (second / "metrics.csv").read_bytes()


@pytest.fixture(scope="module")
def uninterrupted(workspace: Workspace, config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("whole")
    compiled = workspace.evaluate._cache_size()
    tuned = train(workspace, config, directory, seed=SEED)
    # None where an earlier test of this process had the same programs compiled.
    assert tuned.compilations <= len(workspace.data.buckets) == 1
    assert workspace.evaluate._cache_size() - compiled <= len(workspace.data.buckets)
    assert tuned.steps == 2 * 4 and tuned.best_epoch in (1, 2)
    losses = tuned.log["next_token"].dropna()
    assert len(losses) == tuned.steps and losses.tail(3).mean() < losses.iloc[0]
    return directory


def test_killed_corrupted_and_resumed_is_bit_identical(
    workspace: Workspace, config: RunConfig, uninterrupted: Path, tmp_path: Path
) -> None:
    """SIGKILL in the middle, then a flipped bit in the newest checkpoint, then the same command again."""
    run = tmp_path / "run"
    preset = tmp_path / "preset.yaml"
    preset.write_text(dump_config(config))
    command = [sys.executable, "-m", "fixate_jax", "train", str(preset), "--run", str(run)]
    process = subprocess.Popen(
        command, env=environment.of_child(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    checkpoints = CheckpointStore(seed_directory(run, SEED) / "checkpoints")
    deadline = time.monotonic() + 240
    while len(checkpoints.steps()) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    steps = checkpoints.steps()
    newest = checkpoints.directory / f"step_{steps[-1]:08d}"
    victim = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    damaged = bytearray(victim.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    victim.write_bytes(damaged)
    with pytest.warns(CheckpointWarning, match=newest.name):
        train(workspace, config, seed_directory(run, SEED), seed=SEED)
    assert_same_run(workspace, uninterrupted, seed_directory(run, SEED))


def test_a_request_to_stop_is_obeyed_after_the_step_and_loses_nothing(
    workspace: Workspace, config: RunConfig, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    advance = loop.Training.advance

    def interrupting(self: Any) -> str:
        note = advance(self)
        if self.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return note

    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "advance", interrupting)
        with pytest.raises(Interrupted, match="SIGTERM: saved after step 3; run the same command again"):
            train(workspace, config, tmp_path, seed=SEED)
    train(workspace, config, tmp_path, seed=SEED)
    assert_same_run(workspace, uninterrupted, tmp_path)


def test_a_run_begun_with_another_score_is_not_resumed(
    workspace: Workspace, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one of an earlier release would be: its best score is on another scale."""
    published = replace(config, train=replace(config.train, score="published"))

    def stop(self: Any) -> str:
        os.kill(os.getpid(), signal.SIGTERM)
        return advance(self)

    advance = loop.Training.advance
    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "advance", stop)
        with pytest.raises(Interrupted):
            train(workspace, published, tmp_path, seed=SEED)
    with pytest.raises(CheckpointError, match=r"chosen by the published score; write `score: published`"):
        train(workspace, config, tmp_path, seed=SEED)
    assert train(workspace, published, tmp_path, seed=SEED).best_epoch in (1, 2)
    assert train(workspace, config, tmp_path, seed=SEED).best_epoch in (1, 2), "what is finished stays as it is"


def test_another_seed_gives_another_run(workspace: Workspace, config: RunConfig, uninterrupted: Path) -> None:
    first = start_state(config, users=2, width=workspace.backbone.width, seed=SEED)
    other = start_state(config, users=2, width=workspace.backbone.width, seed=SEED + 1)
    assert not np.array_equal(first.prompt.basis, other.prompt.basis)


@pytest.fixture(scope="module")
def job(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Path, Results]:
    short = replace(config, train=replace(config.train, epochs=1, ntp_baseline=True, swap_control=True, seeds=(1, 2)))
    run = tmp_path_factory.mktemp("job") / "run"
    return short, run, run_experiment(short, run)


def test_the_whole_job_writes_everything_and_can_be_given_again(job: tuple[RunConfig, Path, Results]) -> None:
    short, run, results = job
    for name in (
        "config.yaml",
        "versions.json",
        "results-test.csv",
        "comparison-test.csv",
        "calibrated-test.csv",
        "seeds-test.csv",
    ):
        assert (run / name).stat().st_size > 0, name
    methods = set(results.results["method"])
    assert {"backbone", "fixate", "ntp_only", "fixate_swapped", "uniform", "population_mean", "user_mean"} <= methods
    assert {"user_mean_given_click", "content_regression", "majority_click"} <= methods
    assert {"fixate_calibrated", "backbone_calibrated"} <= methods
    predictions = pd.read_parquet(seed_directory(run, 1) / "predictions-test.parquet")
    assert set(predictions["mode"]) == {"TF", "FR"} and predictions["session_id"].nunique() == 18
    claim_run(run, short)
    with pytest.raises(ConfigError, match=r"made with other settings \(train.epochs: 1 there, 3 now\)"):
        claim_run(run, replace(short, train=replace(short.train, epochs=3)))
    opened, workspace = open_run(run)
    assert opened == short
    assert_shown_as_it_is(workspace, (run / "report.html").read_text(encoding="utf-8"), predictions)
    pd.testing.assert_frame_equal(results.results, evaluate_run(workspace, run).results)


def test_a_calibration_is_fitted_on_validation_and_goes_with_the_emulated_users(
    job: tuple[RunConfig, Path, Results], tmp_path: Path
) -> None:
    _, run, _ = job
    kept = read_calibration(seed_directory(run, 1))
    assert kept is not None and set(kept.habits) == {"0", "1"}
    _, workspace = open_run(run)
    prompt = load_prompt(workspace, seed_directory(run, 1), seed=1)
    fitted = {
        s: facts_of(calibrate(workspace, evaluate.predict(workspace, prompt, s, "x"))) for s in ("validation", "test")
    }
    assert facts_of(kept) == pytest.approx(fitted["validation"]) and facts_of(kept) != pytest.approx(fitted["test"])
    frame = pd.read_parquet(seed_directory(run, 1) / "predictions-test.parquet")
    plain = frame[(frame["method"] == "fixate") & (frame["mode"] == "FR")].set_index("session_id")
    shown = frame[frame["method"] == "fixate_calibrated"].set_index("session_id")
    assert (shown["answer"] == plain["answer"]).all() and (shown["mode"] == "FR").all()
    made = write_bundle(load_run(run, seed=1), tmp_path / "bundle", Origin(data="x", seed=1), users=["1"])
    for users in (load_run(run, seed=1), load_bundle(made)):
        store = open_or_prepare(job[0].data)
        session = next(s for s in store.sessions if s.split == "test" and s.user_id == "1")
        page = Page(
            image=store.image(session.page_id), boxes=session.boxes, labels=session.labels, relative=True,
            labelled=True, profile=session.profile, name="page",
        )  # fmt: skip
        visits = users.visit_all([page], ["1", "backbone"])
        looked = users.calibrated(visits)
        np.testing.assert_allclose(visits.attention[0] / visits.attention[0].sum(), norm(plain, session), atol=1e-5)
        np.testing.assert_allclose(looked.attention[0], norm(shown, session), atol=1e-5)
        np.testing.assert_allclose(looked.probabilities()[0], probabilities(shown, session), atol=1e-5)
        np.testing.assert_array_equal(looked.attention[1], visits.attention[1])
    joined = users.with_prompt(users.prompt, ["newcomer"])
    again = write_bundle(joined, tmp_path / "newcomer", Origin(data="x", seed=1))
    calibration = load_bundle(again).calibration
    assert calibration is not None and users.calibration is not None
    np.testing.assert_allclose(calibration.habits["newcomer"], users.calibration.population, atol=1e-6)
    assert not (made / "bundle.json").read_text().count('"0"'), "whoever is not exported is not in it"
    assert "mean gaze by slot" in (made / "README.md").read_text(), "the card says what else is personal"


def norm(frame: pd.DataFrame, session: StoredSession) -> np.ndarray:
    attention = np.asarray(frame.loc[session.session_id, "attention"])
    return attention / attention.sum()


def probabilities(frame: pd.DataFrame, session: StoredSession) -> np.ndarray:
    log_probs = np.asarray(frame.loc[session.session_id, "log_probs"])
    return np.exp(log_probs - np.logaddexp.reduce(log_probs))


def call(*arguments: object) -> int | str | None:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return left.value.code


def test_the_controls_of_a_run(job: tuple[RunConfig, Path, Results], tmp_path: Path) -> None:
    _, run, results = job
    out = tmp_path / "controls"
    assert call("controls", run, "--out", out, "--seed", 2) == 0
    pages = pd.read_csv(out / "pages.csv")
    assert set(pages["pages"]) == {"as seen", "blank", "rearranged"}
    assert {"fixate", "mean_gaze", "other_session", "backbone"} <= set(pages["prompts"])
    seen = pages[(pages["pages"] == "as seen") & (pages["metric"] == "kl")].set_index("prompts")["mean"]
    wanted = user_means(results.metrics[results.metrics["seed"] == 2]).query("mode == 'FR'")
    for name in ("fixate", "backbone", "user_mean_shrunk"):
        assert seen[name] == pytest.approx(wanted[wanted["method"] == name]["kl"].mean(), abs=1e-5), name
    changes = pd.read_csv(out / "changes.csv").set_index("prompts")
    assert changes.loc["user_mean_shrunk", "correlation"] == 0, "place predicts no change"
    assert (out / "controls.png").stat().st_size > 0 and "KL on the test pages" in (out / "controls.md").read_text()
    kept = {path: path.stat().st_mtime_ns for path in (run / "controls").rglob("checkpoints/step_*")}
    assert len(kept) >= 2
    assert call("controls", run, "--out", out, "--seed", 2) == 0
    assert kept == {path: path.stat().st_mtime_ns for path in kept}, "nothing is tuned twice"
    assert call("controls", run, "--seed", 3) == 2


def assert_shown_as_it_is(workspace: Workspace, report: str, predictions: pd.DataFrame) -> None:
    """The report's sessions say what the predictions of the first seed do, and relevance adds up to slot attention."""
    viewer = json.loads(report.split('id="data">')[1].split("</script>")[0])["viewer"]
    assert [user["name"] for user in viewer["users"]] == list(workspace.users) and len(viewer["sessions"]) == 2 * 6
    rows = predictions[predictions["mode"] == "FR"].set_index(["method", "session_id"])
    index_of = {session.session_id: i for i, session in enumerate(workspace.data.sessions)}
    for session in viewer["sessions"]:
        matrix = workspace.data.slot_matrix(index_of[session["id"]])
        for method, look in zip(("backbone", "fixate"), session["looks"], strict=True):
            row = rows.loc[(method, session["id"])]
            assert (look["answer"], session["click"]) == (row["answer"], row["click"])
            attention = np.array(row["attention"]) / np.sum(row["attention"])
            np.testing.assert_allclose(look["attention"], attention, atol=2e-4)
            np.testing.assert_allclose(session["gaze"], row["gaze"], atol=1e-4)
            tokens = np.frombuffer(base64.b64decode(look["relevance"]), np.uint8).astype(float)
            np.testing.assert_allclose(matrix @ tokens / (matrix @ tokens).sum(), attention, atol=0.01)
            chances = np.exp(row["log_probs"] - np.logaddexp.reduce(row["log_probs"]))
            np.testing.assert_allclose(look["probabilities"], chances, atol=2e-4)


def test_a_folder_with_something_else_in_it_is_refused(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(ConfigError, match=r"is not empty and holds no config\.yaml; choose another --run"):
        run_experiment(config, tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def looks_right(batch: Any) -> Evaluation:
    """What a model would say that looks where people do and clicks what they do."""
    clicked = jax.nn.one_hot(batch.click, batch.gaze.shape[1])
    return Evaluation(
        log_probs=jnp.log(clicked + 0.1),
        answer=batch.click,
        teacher_forced=batch.gaze,
        free_running=batch.gaze,
        tokens_forced=batch.gaze,
        tokens_free=batch.gaze,
    )


@pytest.mark.parametrize(("score", "selection"), [("published", "FR"), ("published", "TF"), ("reported", "FR")])
def test_epochs_are_scored_on_the_validation_sessions(
    workspace: Workspace,
    config: RunConfig,
    monkeypatch: pytest.MonkeyPatch,
    score: Literal["published", "reported"],
    selection: Literal["TF", "FR"],
) -> None:
    seen: list[pd.DataFrame] = []

    def measured(frame: pd.DataFrame, **settings: Any) -> pd.DataFrame:
        seen.append(frame)
        return session_metrics(frame, **settings)

    monkeypatch.setattr(evaluate, "evaluate_batch", lambda workspace, prompt, batch, shift: looks_right(batch))
    monkeypatch.setattr(loop, "session_metrics", measured)
    prompt = start_state(config, users=2, width=workspace.backbone.width, seed=SEED).prompt
    config = replace(config, train=replace(config.train, selection=selection, score=score))
    found, means = validate(workspace, config, prompt)
    (frame,) = seen
    frame = frame[frame["method"] == "fixate"]
    assert set(frame["split"]) == {"validation"} and set(frame["mode"]) == {selection}
    held = {s.session_id for s in workspace.store.sessions if s.split == "validation"}
    assert sorted(frame["session_id"]) == sorted(held)
    assert means["kl"] == pytest.approx(0, abs=1e-6) and means["accuracy"] == 1
    if score == "published":
        # cos, CSH@3 and TGO@3 are 1 where all three slots are in the top; CSH@1 where people click what they look at.
        assert found == pytest.approx(0.55 + 0.2 * means["csh@1"] + 0.25 * (selection == "FR"), abs=1e-6)
    else:
        assert found == pytest.approx(np.log(1.1 / 1.3) / np.log(3) / 2, abs=1e-6)


@pytest.mark.parametrize(("scores", "best", "epochs"), [((0.1, 0.5, 0.4, 0.5), 2, 4), ((0.1, 0.2, 0.3, 0.4), 4, 4)])
def test_the_best_epochs_prompt_is_kept(
    workspace: Workspace,
    config: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scores: tuple[float, ...],
    best: int,
    epochs: int,
) -> None:
    """Not the last one's, nor that of the last of two that are as good; also on disk, and after an interruption."""
    longer = replace(config, train=replace(config.train, epochs=6 if best == 2 else 4, patience=2))
    left, seen = iter(scores), []

    def counting(state: TrainState, params: Any, batch: Any) -> tuple[TrainState, dict[str, Any]]:
        """A step that adds 1 to the prompt, so that a prompt says how many steps it has taken."""
        seen.append(np.ravel(batch.session).tolist())
        prompt = jax.tree.map(lambda x: x + 1, state.prompt)
        return TrainState(prompt, state.optimizer, state.step + 1), {"loss": jnp.float32(1)}

    monkeypatch.setattr(loop, "make_train_step", lambda *_, **__: counting)
    monkeypatch.setattr(loop, "validate", lambda *_: (next(left), {}))
    start = start_state(longer, users=2, width=workspace.backbone.width, seed=SEED).prompt

    def kept(prompt: Any) -> list[int]:
        """Steps that the prompt has taken."""
        return sorted({round(float(d)) for a, b in zip(prompt, start, strict=True) for d in np.ravel(a - b)})

    for stop in (3, 6):
        run = loop.Training(workspace, longer, tmp_path, SEED)
        per_epoch = run.plan.steps_per_epoch
        with run.saving():
            while not run.finished and run.step < stop * per_epoch:
                run.advance()
    tuned = run.tuned(0)
    assert (tuned.best_epoch, tuned.steps) == (best, epochs * per_epoch)
    assert kept(tuned.prompt) == [best * per_epoch]
    assert kept(final_state(workspace, tmp_path).state["best"]) == [best * per_epoch]
    assert seen == [run.plan[i].tolist() for i in range(run.step)], "it goes on where it was in the order of sessions"
