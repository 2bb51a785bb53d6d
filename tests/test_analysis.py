"""What a data set holds: cases worked out by hand, brute force beside the vectorised sums, and the command."""

import html
import time
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from fixate_jax import cli, metrics
from fixate_jax.analysis import (
    AnalysisSettings,
    Layout,
    analyse,
    click_bounds,
    click_relation,
    click_tables,
    correlation_interval,
    gaze_bounds,
    identified,
    mean_of_others,
    over_users,
    people_differ,
    random_halves,
    select_sessions,
    slot_gaze,
    spearman_brown,
    split_half_correlation,
    stability,
    user_means,
    write_analysis,
)
from fixate_jax.analysis import measures as analysis_measures
from fixate_jax.analysis import write as analysis_write
from fixate_jax.config import DataConfig
from fixate_jax.data import Session, SessionStore, open_or_prepare
from fixate_jax.errors import ConfigError, DataError
from fixate_jax.report import figures

DEMO = str(Path(__file__).parents[1] / "configs" / "demo.yaml")
SETTINGS = AnalysisSettings(halvings=5)


def boxes(slots: int) -> np.ndarray:
    edges = np.linspace(0, 1, slots + 1)
    return np.stack([edges[:-1], np.full(slots, 0.2), edges[1:], np.full(slots, 0.9)], axis=1)


def layout(gaze: np.ndarray, user: np.ndarray, click: np.ndarray | None = None) -> Layout:
    users, slots = int(user.max()) + 1, gaze.shape[1]
    return Layout(
        labels=tuple("ABCDEF"[:slots]),
        boxes=boxes(slots),
        page_id="0" * 64,
        users=tuple(f"u{i}" for i in range(users)),
        user=user,
        gaze=gaze,
        click=np.zeros(user.size, int) if click is None else click,
    )


def session(
    number: int, user: str, dwell: list[float], click: int = 0, *, split="train", shift: float = 0.0
) -> Session:
    return Session(
        session_id=f"s{number}",
        user_id=user,
        page_id="0" * 64,
        boxes=boxes(len(dwell)) - np.array([0, shift, 0, shift]),
        labels=tuple("ABCDEF"[: len(dwell)]),
        dwell_ms={"fixation": np.array(dwell, float)},
        click=click,
        split=split,
    )


def made_up(users: int, sessions: int, *, seed: int = 0, personal: bool = True) -> list[Session]:
    rng = np.random.default_rng(seed)
    habits = rng.dirichlet(np.ones(3), users) if personal else np.full((users, 3), 1 / 3)
    return [
        session(100 * u + k, f"u{u}", list(rng.dirichlet(20 * habits[u] + 0.1) + 1e-6), int(rng.integers(3)))
        for u in range(users)
        for k in range(sessions)
    ]


PATTERNS = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]])


def test_people_with_fixed_patterns_are_found_again_and_again():
    user = np.tile(np.arange(3), 5)
    table = stability(layout(PATTERNS[user], user), halvings=20, seed=0).set_index("measure")
    assert table["value"].to_numpy() == pytest.approx([1.0, 1.0, 1.0])
    assert table.loc["split-half correlation", ["low", "high", "sd"]].tolist() == pytest.approx([1, 1, 0])
    assert table["chance"].to_numpy() == pytest.approx([0, 0, 1 / 3])
    assert table.loc["split-half correlation", "p"] < 0.01
    assert (table["users"] == 3).all() and (table["sessions"] == 15).all()


def test_noise_is_at_chance():
    user = np.repeat(np.arange(40), 30)
    gaze = np.random.default_rng(3).dirichlet(np.ones(3), user.size)
    table = stability(layout(gaze, user), halvings=50, seed=0).set_index("measure")
    correlation, found = table.loc["split-half correlation"], table.loc["identified"]
    assert abs(correlation["value"]) < 0.15 and correlation["low"] < 0 < correlation["high"]
    assert correlation["p"] > 0.05 and found["chance"] == 1 / 40
    assert found["value"] == pytest.approx(1 / 40, abs=0.015) and found["low"] <= 1 / 40 <= found["high"]


def test_people_who_do_not_differ_have_no_correlation():
    user = np.repeat(np.arange(4), 6)
    gaze = np.tile(PATTERNS[0], (24, 1))
    table = stability(layout(gaze, user), halvings=3, seed=0).set_index("measure")
    assert table.loc[["split-half correlation", "reliability"], ["value", "low", "high"]].isna().all(axis=None)
    assert table.loc["split-half correlation", "p"] == 1
    assert table.loc["identified", "value"] == pytest.approx(1 / 4)


def test_halves_share_each_persons_sessions():
    rng = np.random.default_rng(0)
    user = rng.permutation(np.repeat([0, 1, 2], [2, 7, 8]))
    gaze = rng.dirichlet(np.ones(4), user.size)
    first, second = random_halves(gaze, user, halvings=30, seed=5)
    sums = first * np.array([1, 3, 4])[:, None] + second * np.array([1, 4, 4])[:, None]
    np.testing.assert_allclose(sums, np.broadcast_to([gaze[user == u].sum(axis=0) for u in range(3)], sums.shape))
    # Both sessions of person 0 are in the first half now and then, and no other value is possible.
    one, other = gaze[user == 0]
    is_one = np.isclose(first[:, 0], one).all(axis=1)
    assert 5 < is_one.sum() < 25 and np.isclose(first[~is_one, 0], other).all()
    assert len(np.unique(np.round(first[:, 2, 0], 12))) > 15
    again, changed = (random_halves(gaze, user, halvings=30, seed=seed)[0] for seed in (5, 6))
    assert (first == again).all() and not np.allclose(first, changed)
    with pytest.raises(DataError, match=r"person 1 has 1 session\(s\), two halves need at least 2"):
        random_halves(gaze[:4], np.array([0, 0, 0, 1]), halvings=1, seed=0)


def test_the_correlation_is_pearsons_over_people_and_slots():
    rng = np.random.default_rng(0)
    first, second = rng.dirichlet(np.ones(3), (2, 6)), rng.dirichlet(np.ones(3), (2, 6))
    centred = [(half - half.mean(axis=1, keepdims=True)).reshape(2, -1) for half in (first, second)]
    wanted = [np.corrcoef(a, b)[0, 1] for a, b in zip(*centred, strict=True)]
    np.testing.assert_allclose(split_half_correlation(first, second), wanted)
    # By hand: people are 0.1 above and below the mean in one half, the other way round in the other.
    up = np.array([[[0.6, 0.4], [0.4, 0.6]]])
    assert split_half_correlation(up, up[:, ::-1] + np.array([0.1, -0.1])) == pytest.approx(-1)


def test_spearman_brown():
    assert spearman_brown(0.5) == pytest.approx(2 / 3)
    assert spearman_brown(-0.5) == pytest.approx(-2 / 3)
    assert spearman_brown(1.0) == 1 and np.isnan(spearman_brown(np.nan))


def test_the_interval_is_that_of_resampled_people(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(analysis_measures, "RESAMPLES", 40)
    rng = np.random.default_rng(1)
    first, second = rng.dirichlet(np.ones(3), (4, 5)), rng.dirichlet(np.ones(3), (4, 5))
    counts = np.random.default_rng(7).multinomial(5, np.full(5, 1 / 5), size=40)
    drawn = [np.repeat(np.arange(5), count) for count in counts]
    brute = [split_half_correlation(first[:, rows], second[:, rows]).mean() for rows in drawn]
    found = correlation_interval(first, second, seed=7)
    assert found.mean == pytest.approx(split_half_correlation(first, second).mean())
    assert [found.low, found.high] == pytest.approx(np.quantile(brute, [0.025, 0.975]).tolist())


def test_identification_by_hand():
    a, b, c = PATTERNS
    # The second and third person's other halves are exchanged.
    assert identified(np.array([[a, b, c]]), np.array([[a, c, b]])).tolist() == [[1, 0, 0]]
    # From the first half, person 1 is nearest to the tied pair; back again, everybody is nearest to the same half.
    near = identified(np.array([[a, b]]), np.array([[a, a]]))
    assert near.tolist() == [[(1 / 2 + 1) / 2, (1 / 2 + 0) / 2]]


def test_the_permutation_test_by_counting():
    gaze = np.array([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    # Of the 6 ways to give two sessions each to two people, 2 keep the pairs together.
    assert people_differ(gaze, np.array([0, 0, 1, 1]), seed=0) == pytest.approx(1 / 3, abs=0.06)
    assert people_differ(gaze, np.array([0, 1, 0, 1]), seed=0) == 1


# Three slots, three slots with a tie at the top, two slots, two slots with a tie between the clicked and the other.
# What stands where a page has no slot does not matter.
GAZE = np.array([[0.5, 0.3, 0.2], [0.4, 0.4, 0.2], [0.3, 0.7, 0.9], [0.5, 0.5, 0.1]])
CLICK = np.array([1, 0, 1, 0])
MASK = np.array([[1, 1, 1], [1, 1, 1], [1, 1, 0], [1, 1, 0]], bool)


def test_clicks_by_hand():
    found = click_relation(GAZE, CLICK, MASK)
    assert found["longest_clicked"].tolist() == [0, 0.5, 1, 0.5]
    assert found["clicked_gaze"].tolist() == [0.3, 0.4, 0.7, 0.5]
    assert found["auc"].tolist() == [0.5, 0.75, 1, 0.5]
    assert found["chance"].tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 2, 1 / 2])
    with pytest.raises(DataError, match="at least 2 slots"):
        click_relation(GAZE[:1], CLICK[:1], np.array([[True, False, False]]))

    over, by_user = click_tables(found, ["u10", "u2", "u2", "u2"], seed=0)
    assert by_user["user_id"].tolist() == ["u2", "u10"] and by_user["sessions"].tolist() == [3, 1]
    assert by_user["longest_clicked"].tolist() == pytest.approx([2 / 3, 0])
    over = over.set_index("measure")
    assert over.loc["longest_clicked", ["micro", "macro"]].tolist() == pytest.approx([0.5, 1 / 3])
    assert over.loc["longest_clicked", "chance"] == pytest.approx((4 / 9 + 1 / 3) / 2)
    assert over.loc["auc", ["micro", "macro", "chance"]].tolist() == pytest.approx([0.6875, 0.625, 0.5])
    assert over["better"].tolist() == [1, 1, 1] and (over["users"] == 2).all() and (over["sessions"] == 4).all()


def test_clicks_are_measured_as_the_metrics_do():
    rng = np.random.default_rng(0)
    slots = rng.integers(2, 6, 60)
    mask = np.arange(5) < slots[:, None]
    gaze = np.where(mask, rng.integers(0, 4, (60, 5)) + 0.25, 0)
    click = rng.integers(0, slots)
    found = click_relation(gaze, click, mask)
    arrays = jnp.asarray(gaze), jnp.asarray(click), jnp.asarray(mask)
    np.testing.assert_allclose(found["longest_clicked"], metrics.hit_at_k(*arrays, 1), rtol=1e-6)
    np.testing.assert_allclose(found["auc"], metrics.auc(*arrays), rtol=1e-6)


def test_means_over_sessions_and_people():
    found = over_users(
        np.array([1.0, 2.0, 6.0]),
        np.array([8, 1, 1]),
        against=np.array([0.0, 3.0, 6.0 + 1e-15]),
        seed=0,
        lower_is_better=True,
    )
    assert (found["micro"], found["macro"], found["better"]) == (1.6, 3.0, 1)
    assert (found["users"], found["sessions"], found["p"]) == (3, 10, 1.0)
    assert found["low"] is not None and found["high"] is not None and found["low"] < 3 < found["high"]
    alone = over_users(np.array([1.0, 2.0]), np.array([1, 1]), against=None, seed=0)
    assert alone["better"] is None and alone["p"] is not None and np.isnan(alone["p"])


def test_means_of_all_other_sessions():
    rng = np.random.default_rng(0)
    values, group = rng.random((7, 2)), np.array([0, 2, 0, 2, 2, 1, 0])
    found = mean_of_others(values, group)
    for i in range(7):
        others = values[(group == group[i]) & (np.arange(7) != i)]
        np.testing.assert_allclose(found[i], others.mean(axis=0) if len(others) else [np.nan, np.nan])
    np.testing.assert_allclose(user_means(values, group)[2], values[group == 2].mean(axis=0))


def test_bounds_of_gaze_by_brute_force():
    rng = np.random.default_rng(0)
    user = np.repeat([0, 1, 2], [4, 6, 9])
    gaze, click = rng.dirichlet(np.ones(3), user.size), rng.integers(0, 2, user.size)
    click[2] = 2  # Nobody else clicks there, so the means are taken without the click.
    table = gaze_bounds(layout(gaze, user, click), seed=0).set_index("predictor")

    def brute(same: np.ndarray, fallback: np.ndarray) -> float:
        kl = []
        for i in range(user.size):
            rows = [rule[i] & (np.arange(user.size) != i) for rule in (same, fallback)]
            m = gaze[rows[0] if rows[0].any() else rows[1]].mean(axis=0)
            kl.append((gaze[i] * np.log((gaze[i] + 1e-4) / (m + 1e-4))).sum())
        return float(np.mean(kl))

    everybody = np.ones((user.size, user.size), bool)
    own, clicked = user[:, None] == user, click[:, None] == click
    wanted = {
        "uniform": (gaze * np.log((gaze + 1e-4) / (1 / 3 + 1e-4))).sum(axis=1).mean(),
        "population_mean": brute(everybody, everybody),
        "user_mean": brute(own, own),
        "population_mean_given_click": brute(clicked, everybody),
        "user_mean_given_click": brute(own & clicked, own),
    }
    assert table["micro"].to_dict() == pytest.approx(wanted)
    assert table["told_click"].tolist() == [False, False, False, True, True]
    assert table.loc["uniform", "better"] is None and table["better"].iloc[1:].map(type).eq(int).all()


def test_own_means_are_better_where_people_differ():
    data = analyse(made_up(6, 20), SETTINGS)
    table = data.tables["bounds"].set_index(["measure", "predictor"])
    own = table.loc[("kl", "user_mean")]
    assert own["against"] == "population_mean" and own["better"] == 6 and own["p"] == pytest.approx(2 / 2**6)
    assert own["macro"] < 0.5 * table.loc[("kl", "population_mean"), "macro"]


def test_bounds_of_clicks_by_hand():
    user, click = np.repeat([0, 1], 4), np.array([0, 0, 0, 0, 1, 1, 1, 1])
    one = layout(np.full((8, 2), 0.5), user, click)
    found = click_bounds(one, halvings=4, seed=0).set_index(["measure", "predictor"])
    table = found["micro"]
    assert table["log_loss"]["uniform"] == pytest.approx(np.log(2))
    # 3 and 4 of the other sessions, and one on each slot; then the person's 3 and 3 sessions' worth of that.
    assert table["log_loss"]["population_click"] == pytest.approx(-np.log(4 / 9))
    assert table["log_loss"]["majority_click"] == pytest.approx(-np.log((3 + 3 * 4 / 9) / 6))
    # Everybody's clicks tie, the person's do not.
    assert table["accuracy"].tolist() == pytest.approx([0.5, 0.5, 1.0])
    assert found["better"].tolist() == [None, 0, 2, None, 0, 2], "more accurate, and less of a loss than the population"


def test_clicks_at_random_are_not_known_beforehand():
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(30), 60)
    one = layout(np.full((user.size, 3), 1 / 3), user, rng.integers(0, 3, user.size))
    table = click_bounds(one, halvings=20, seed=0).set_index(["measure", "predictor"])
    assert table.loc["accuracy", "micro"].to_numpy() == pytest.approx([1 / 3] * 3, abs=0.02)
    assert table.loc[("log_loss", "majority_click"), "micro"] > np.log(3)


def test_mean_gaze_of_each_person_and_slot():
    user = np.array([0, 1, 1, 1])
    table = slot_gaze(layout(np.array([[1.0, 0], [0.2, 0.8], [0.3, 0.7], [0.4, 0.6]]), user))
    assert table["user_id"].tolist() == ["u0", "u0", "u1", "u1"] and table["label"].tolist() == ["A", "B"] * 2
    assert table["gaze"].tolist() == pytest.approx([1, 0, 0.3, 0.7])
    assert table["population"].tolist() == pytest.approx([0.65, 0.35] * 2)
    assert table["difference"].tolist() == pytest.approx([0.35, -0.35, -0.35, 0.35])
    assert table["sessions"].tolist() == [1, 1, 3, 3]
    assert table.loc[1, ["x0", "y0", "x1", "y1"]].tolist() == [0.5, 0.2, 1.0, 0.9]


def same(first: pd.DataFrame, second: pd.DataFrame) -> bool:
    return first.to_csv(index=False) == second.to_csv(index=False)


def test_the_seed_decides():
    sessions = made_up(5, 9)
    one, again, other = (analyse(sessions, replace(SETTINGS, seed=seed)).tables for seed in (1, 1, 2))
    assert all(same(one[name], again[name]) for name in one)
    assert not same(one["stability"], other["stability"])
    more = analyse(sessions, replace(SETTINGS, seed=1, halvings=6)).tables
    assert not same(one["stability"], more["stability"])


def test_gaze_is_of_the_signal_and_tempered():
    sessions = [session(k, f"u{k % 2}", [4.0, 1.0], 0) for k in range(8)]
    sessions = [replace(s, dwell_ms=s.dwell_ms | {"cursor": np.array([0.0, 7.0])}) for s in sessions]

    def gaze(**change: object) -> tuple[float, float]:
        tables = analyse(sessions, replace(SETTINGS, **change)).tables  # type: ignore[arg-type]
        return tables["user_slot_gaze"]["gaze"][0], tables["clicks"].set_index("measure")["micro"]["clicked_gaze"]

    assert gaze() == pytest.approx((0.8, 0.8))
    assert gaze(gaze_temperature=2.0) == pytest.approx((2 / 3, 2 / 3))
    assert gaze(signal="cursor") == pytest.approx((0, 0))


def test_the_test_split_is_not_looked_at():
    sessions = [replace(s, split=("train", "validation", "test")[i % 3]) for i, s in enumerate(made_up(4, 15))]
    found = analyse(sessions, SETTINGS)
    assert found.tables["left_out"].to_numpy().tolist() == [["all tables", "in split test", 20, 4]]
    assert "40 sessions of 4 people, split train and validation. The 20 sessions of the test" in found.notes[0]
    turned = [replace(s, dwell_ms={"fixation": np.roll(s.dwell_ms["fixation"], 1)}) for s in sessions]
    turned = [new if new.split == "test" else old for new, old in zip(turned, sessions, strict=True)]
    assert all(same(table, found.tables[name]) for name, table in analyse(turned, SETTINGS).tables.items())
    whole = analyse(sessions, replace(SETTINGS, splits=("train", "validation", "test")))
    assert whole.layouts[0].user.size == 60 and whole.tables["left_out"].empty
    assert "The test split is among them" in whole.notes[0]


def test_pages_of_other_layouts_are_counted_and_left_out():
    sessions = made_up(3, 6)  # 18 on pages of three slots
    more = [session(1000 + i, f"u{i % 2}", [1.0 + i, 2.0], 0) for i in range(10)]  # two slots, of u0 and u1
    more += [session(2000 + i, f"u{i % 3}", [1.0, 2.0, 3.0 + i], 1, shift=0.1) for i in range(4)]  # moved up
    more += [session(3000, "u2", [1.0, 2.0]), session(3001, "u0", [5.0])]
    found = analyse(sessions + more, SETTINGS)
    assert [one.name for one in found.layouts] == ["3 slots (A, B, C)"] and found.layouts[0].user.size == 18
    assert found.tables["clicks"]["sessions"].unique().tolist() == [33], "clicks count on every page of several slots"
    assert found.tables["left_out"].to_numpy().tolist() == [
        ["all tables", "on a page of one slot", 1, 1],
        ["all but clicks", "on another page layout", 15, 3],
    ]
    two = analyse(sessions + more, replace(SETTINGS, layouts=2))
    assert [one.name for one in two.layouts] == ["3 slots (A, B, C)", "2 slots (A, B)"]
    assert two.layouts[1].users == ("u0", "u1")
    assert two.tables["left_out"].to_numpy().tolist()[1:] == [
        ["all but clicks", "on another page layout", 4, 3],
        ["all but clicks", "of a person with under 4 sessions on page layout 2", 1, 1],
    ]
    assert two.tables["user_slot_gaze"].groupby("layout").size().tolist() == [9, 4]
    assert same(two.tables["stability"].query("layout == 1"), found.tables["stability"])


def test_people_with_too_few_sessions_are_counted_or_stop_it():
    sessions = [*made_up(3, 6), session(1000, "u9", [1.0, 2, 3]), session(1001, "u9", [1.0, 2, 3])]
    found = select_sessions(sessions, SETTINGS)
    assert found.left_out.to_numpy().tolist() == [["all tables", "of a person with under 4 sessions", 2, 1]]
    assert found.layouts[0].users == ("u0", "u1", "u2")
    assert len(select_sessions(sessions, replace(SETTINGS, min_sessions=2)).layouts[0].users) == 4
    with pytest.raises(DataError, match="0 of 4 people have at least 7 sessions in train, validation; people are comp"):
        analyse(sessions, replace(SETTINGS, min_sessions=7))
    with pytest.raises(DataError, match="1 of 1 people have at least 4 sessions"):
        analyse(made_up(1, 6), SETTINGS)
    with pytest.raises(DataError, match="0 of 4 people have at least 4 sessions in test"):
        analyse(sessions, replace(SETTINGS, splits=("test",)))
    alone = [session(i, f"u{i % 2}", [1.0, 2.0, 3.0][: 2 + i % 2]) for i in range(12)]
    with pytest.raises(DataError, match="on none of the 2 page layouts do 2 people have at least 4 sessions"):
        analyse(alone, SETTINGS)
    with pytest.raises(DataError, match="session 's0', field 'dwell_ms': no signal 'cursor', only"):
        analyse(sessions, replace(SETTINGS, signal="cursor"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"splits": ("tset",)}, "splits = tset: name some of train, validation, test, each once"),
        ({"splits": ()}, "splits = : name some of"),
        ({"splits": ("train", "train")}, "splits = train train"),
        ({"halvings": 0}, "halvings = 0: at least 1"),
        ({"min_sessions": 1}, "min_sessions = 1: at least 2"),
        ({"layouts": 0}, "layouts = 0: at least 1"),
        ({"seed": -1}, "seed = -1: at least 0"),
    ],
)
def test_settings_that_cannot_be_used(change: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        AnalysisSettings(**change)


def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures in the order in which they are saved."""
    kept: list[Figure] = []
    save = figures._save

    def keep(figure: Figure, path: Path) -> Path:
        kept.append(figure)
        return save(figure, path)

    monkeypatch.setattr(figures, "_save", keep)
    return kept


def test_the_maps_show_the_people_with_the_most_sessions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    kept = drawn(monkeypatch)
    people = [f"p{i}" for i in range(30)]
    gaze = np.tile([0.5, 0.5], (30, 1))
    gaze[29], gaze[0] = [0.9, 0.1], [0.1, 0.9]
    arguments: dict = {"boxes": boxes(2), "labels": ("A", "B"), "aspect": 0.8}
    path = figures.slot_maps(tmp_path / "a.png", users=people, gaze=gaze, sessions=np.arange(30), **arguments)
    assert path.stat().st_size > 10_000
    (figure,) = kept
    assert figure.get_suptitle() == "Mean gaze of each person; the 24 of 30 people with the most sessions"
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert titles[0] == "mean over 30 people"
    assert titles[1:] == [f"user p{i}, n = {i}" for i in range(6, 30)]
    texts = {axis.get_title(): [text.get_text() for text in axis.texts] for axis in figure.axes}
    assert texts["mean over 30 people"] == ["A\n50%", "B\n50%"]
    assert texts["user p29, n = 29"] == ["90%\n+40", "10%\n−40"] and texts["user p6, n = 6"] == ["50%\n±0"] * 2
    fill = {axis.get_title(): [to_rgb(patch.get_facecolor()) for patch in axis.patches[1:]] for axis in figure.axes}
    more, less = fill["user p29, n = 29"]
    assert more[0] > 2 * more[2] and less[2] > 2 * less[1], "orange where it is more, purple where less"
    figures.slot_maps(tmp_path / "b.png", users=people[:2], gaze=gaze[1:3], sessions=np.ones(2, int), **arguments)
    assert kept[1].get_suptitle() == "Mean gaze of each person"


def test_halves_are_drawn_slot_by_slot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    kept = drawn(monkeypatch)
    figures.half_scatter(tmp_path / "a.png", first=PATTERNS, second=PATTERNS, labels=("A", "B", "C"))
    (axis,) = kept[0].axes
    assert axis.get_title(loc="left") == "3 people × 3 slots: r = 1.00"
    assert len(axis.collections) == 3 and axis.get_legend() is not None
    many = np.random.default_rng(0).dirichlet(np.ones(9), 4)
    figures.half_scatter(tmp_path / "b.png", first=many, second=many[::-1], labels=tuple("ABCDEFGHI"))
    assert kept[1].axes[0].get_legend() is None


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        cli.main(list(arguments))
    assert isinstance(left.value.code, int)
    return left.value.code


ARGUMENTS = ["analyze", DEMO, "--data.name", "synthetic_choice", "--data.max-users", "3", "--data.page-width", "64"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SessionStore:
    """Three made-up people."""
    folder = tmp_path_factory.mktemp("made") / "store"
    return open_or_prepare(DataConfig(name="synthetic_choice", max_users=3, page_width=64, store=folder))


def test_the_command_writes_everything(
    store: SessionStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    arguments = [*ARGUMENTS, "--data.store", str(store.directory), "--halvings", "10"]
    assert call(*arguments, "--out", "found") == 0
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    assert max(map(len, lines)) <= 80 and "…" not in shown
    assert lines[0].startswith("153 sessions of 3 people, split train and validation. The 27 sessions of the")
    assert "left out of all tables: 27 sessions of 3 people (in split test)" in shown
    assert (
        "user_mean_given_click" in shown and "longest_clicked" in shown and "everything: found/analysis.html" in shown
    )
    assert any("split-half correlation" in line and "0.001" in line for line in lines), "whole words, whole numbers"

    out = tmp_path / "found"
    names = ["stability", "clicks", "bounds", "clicks_by_user", "user_slot_gaze", "left_out"]
    assert sorted(p.name for p in out.iterdir()) == sorted([*(f"{n}.csv" for n in names), "analysis.html", "figures"])
    assert sorted(p.name for p in (out / "figures").iterdir()) == ["halves.png", "slot_maps.png"]
    tables = analyse(store.sessions, AnalysisSettings(halvings=10)).tables
    for name in names:
        assert (out / f"{name}.csv").read_text(encoding="utf-8") == tables[name].to_csv(index=False)
    assert pd.read_csv(out / "stability.csv")["value"].between(0.5, 1).all(), "made-up people have habits"
    page = (out / "analysis.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 2
    assert all(heading in page for heading in analysis_write.HEADINGS.values())
    assert "27 sessions of the test split were left untouched" in page and ">slot 2</th>" in page

    assert (
        call(
            *arguments,
            "--splits",
            "test",
            "--seed",
            "3",
            "--min-sessions",
            "9",
            "--layouts",
            "2",
            "--data.gaze-temperature",
            "2",
        )
        == 0
    )
    out = tmp_path / "analyses" / "demo"
    page = (out / "analysis.html").read_text(encoding="utf-8")
    assert "The test split is among them" in page
    wanted = AnalysisSettings(splits=("test",), halvings=10, min_sessions=9, layouts=2, seed=3, gaze_temperature=2.0)
    assert same(
        pd.read_csv(out / "stability.csv", float_precision="round_trip"),
        analyse(store.sessions, wanted).tables["stability"],
    )
    assert same(pd.read_csv(out / "left_out.csv"), analyse(store.sessions, wanted).tables["left_out"])
    for name, value in vars(wanted).items():
        assert f"<td>analysis.{name}</td><td>{html.escape(str(value))}</td>" in page


def test_help_explains_every_flag(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("COLUMNS", "100")
    assert call("analyze", "--help") == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for flag, meaning in {
        "--out": "Directory to write to (None: analyses/ and the preset's name).",
        "--splits": "The test split stays untouched unless it is named. (default: train validation)",
        "--halvings INT": "How often each person's sessions are split into random halves. (default: 100)",
        "--min-sessions INT": "People with fewer sessions are left out and counted. (default: 4)",
        "--layouts INT": "How many of the commonest page layouts to analyse, each by itself. (default: 1)",
        "--seed INT": "Of the halves, the permutation test and the bootstrap. (default: 0)",
        "--data.name STR": "Data set",
    }.items():
        assert flag in shown and meaning in shown


def test_mistakes_stop_the_command(
    store: SessionStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")
    assert call(*ARGUMENTS, "--data.store", "new", "--splits", "tset") == 2
    assert "error: splits = tset: name some of train, validation, test" in capsys.readouterr().err
    assert not (tmp_path / "new").exists(), "settings are checked before any work"
    assert call(*ARGUMENTS, "--data.store", str(store.directory), "--min-sessions", "52") == 2
    assert "0 of 3 people have at least 52 sessions in train, validation" in capsys.readouterr().err
    assert call(*ARGUMENTS, "--data.store", str(store.directory), "--data.signal", "cursor") == 2
    assert "no signal 'cursor', only ['fixation']" in capsys.readouterr().err
    assert not (tmp_path / "analyses").exists()
    assert call("analyze", "--seed", "1", DEMO) == 2
    assert f"give the preset first: fixate analyze {DEMO}" in capsys.readouterr().err


def test_a_file_in_the_way_of_the_directory(store: SessionStore, tmp_path: Path):
    (tmp_path / "letter").write_text("a", encoding="utf-8")
    for out in (tmp_path / "letter", tmp_path / "letter" / "below"):
        with pytest.raises(ConfigError, match=f"--out {out}: "):
            write_analysis(store, out, SETTINGS)
    assert (tmp_path / "letter").read_text(encoding="utf-8") == "a"


def test_a_file_is_replaced_whole_or_not_at_all(store: SessionStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def files() -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in tmp_path.rglob("*.*")}

    write_analysis(store, tmp_path, SETTINGS)
    before = files()
    write_analysis(store, tmp_path, SETTINGS)
    assert files() == before, "the same sessions give the same bytes"

    def half(path: Path, **_: object) -> Path:
        path.write_bytes(b"half a picture")
        raise OSError("disk full")

    monkeypatch.setattr(analysis_write, "slot_maps", half)
    with pytest.raises(OSError, match="disk full"):
        write_analysis(store, tmp_path, SETTINGS)
    assert files() == before


def test_known_figures_on_human_choice(shared_data: Path):
    """40 people are known to correlate 0.84 between halves, and to choose what they watch longest in 56% of trials."""
    trials = pd.read_csv(shared_data / "human_choice" / "trials.csv")
    place = trials[["pos_A", "pos_B", "pos_C"]].to_numpy()
    dwell = np.stack([trials[f"dwell_{x}p"] + trials[f"dwell_{x}m"] for x in "ABC"], axis=1)
    gaze = np.empty_like(dwell)
    np.put_along_axis(gaze, place, dwell, axis=1)
    chosen = trials["choice"].map({"A": 0, "B": 1, "C": 2}).to_numpy()
    click = np.take_along_axis(place, chosen[:, None], axis=1)[:, 0]
    user = np.unique(trials["subject"], return_inverse=True)[1]
    start = time.perf_counter()
    table = stability(layout(gaze / gaze.sum(axis=1, keepdims=True), user, click), halvings=100, seed=0)
    assert time.perf_counter() - start < 10, "takes under a second where nothing else runs"
    table = table.set_index("measure")
    assert 0.75 < table.loc["split-half correlation", "value"] < 0.92
    assert table.loc["split-half correlation", "p"] == 0.001
    assert table.loc["identified", "low"] > 3 / 20
    relation = click_relation(gaze, click, np.ones(gaze.shape, bool))
    assert relation["longest_clicked"].mean() == pytest.approx(0.55, abs=0.03)
