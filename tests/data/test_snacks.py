"""Snack screens: both published layouts and the trimmed one say the same, and pages are what people saw."""

import csv
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import fixate_jax as fx
from fixate_jax.data.options import DataConfig
from fixate_jax.data.readers.snacks import GRIDS, read_snacks
from fixate_jax.data.readers.snacks.pages import draw_screen, label_height, least_width
from fixate_jax.data.readers.snacks.reader import Grid
from fixate_jax.data.readers.snacks.store import TASK, features_of, labels_of, profile_of
from fixate_jax.data.registry import open_or_prepare, store_settings
from fixate_jax.errors import ConfigError, DataError, DataWarning

PEOPLE, TRIALS, PRODUCTS = (0, 4), 10, 40
Trial = dict[str, Any]


def places(grid: int) -> np.ndarray:
    """A grid of boxes of 100×80 with 60 pixels below each."""
    side = round(grid**0.5)
    corners = [(20.0 + 200 * (i % side), 10.0 + 140 * (i // side)) for i in range(grid)]
    return np.array([(x, y, x + 100, y + 80) for x, y in corners])


def made_up(grid: int) -> Iterator[Trial]:
    rng = np.random.default_rng(grid)
    ratings = {user: rng.integers(-3, 4, PRODUCTS) for user in PEOPLE}
    for user in PEOPLE:
        for trial in range(TRIALS):
            products = rng.permutation(PRODUCTS)[:grid]
            gaze = rng.integers(0, 500, grid) * (rng.random(grid) < 0.7)
            gaze[0] += 1
            yield {
                **{"subject": user, "trial": trial, "rt": 1.25 * gaze.sum(), "choice": int(rng.integers(grid))},
                **{"products": products + 1, "ratings": ratings[user][products], "gaze": gaze},
            }


def write_csv(path: Path, rows: list[dict[str, Any]], *, header: bool = True) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]), lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows(rows)


def write_trimmed(folder: Path, grids: tuple[int, ...] = (9, 36)) -> Path:
    found = []
    for grid in grids:
        rows = []
        for t in made_up(grid):
            row = {
                "subject": t["subject"],
                "trial": t["trial"],
                "rt_ms": t["rt"],
                "click_ms": 900,
                "choice": t["choice"],
            }
            for letter, name in (("s", "products"), ("v", "ratings"), ("d", "gaze")):
                row |= {f"{letter}{i}": value for i, value in enumerate(t[name].tolist())}
            rows.append(row | {f"o{i}": "" for i in range(grid)})
        write_csv(folder / f"trials_{grid}.csv", rows)
        found += [
            {"setsize": grid, "item": i} | dict(zip(("x0", "y0", "x1", "y1"), box, strict=True))
            for i, box in enumerate(places(grid).tolist())
        ]
    write_csv(folder / "positions.csv", found)
    return draw_photos(folder / "photos", ".jpg", folder)


def write_published(folder: Path, *, old: bool, grids: tuple[int, ...] = (9, 36)) -> Path:
    data = folder / "data"
    for grid in grids:
        rows = []
        for t in made_up(grid):
            row = {"setsize": grid, "subject": t["subject"], "trial": t["trial"], "rt": t["rt"], "choice": t["choice"]}
            for i in range(grid):
                row |= {f"item_value_{i}": float(t["ratings"][i]), f"stimulus_{i}": f"nr{t['products'][i]}.png"}
                row[f"{'' if old else 'cumulative_'}gaze_{i}"] = t["gaze"][i] / t["rt"]
            rows.append(row)
        boxes = [
            dict(zip(("x_left", "y_top", "x_right", "y_lower"), box, strict=True)) for box in places(grid).tolist()
        ]
        name, place = (f"{grid}_data", f"{grid}_") if old else (f"setsize-{grid}_desc-data", f"setsize-{grid}_desc-")
        write_csv(data / "summary_files" / f"{name}.csv", rows)
        write_csv(data / "stimulus_positions" / f"{place}stimulus_positions.csv", boxes, header=not old)
    return draw_photos(data / "stimuli", ".png", folder)


def draw_photos(folder: Path, ending: str, root: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1, PRODUCTS + 1):
        Image.new("RGB", (41, 31), (6 * number, 200, 100)).save(folder / f"nr{number}{ending}")
    return root


WRITERS: dict[str, Callable[[Path], Path]] = {
    "trimmed": write_trimmed,
    "published": lambda folder: write_published(folder, old=False),
    "published first": lambda folder: write_published(folder, old=True),
    "the folder data": lambda folder: write_published(folder, old=False) / "data",
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_layout_says_what_happened(name: str, tmp_path: Path) -> None:
    data = read_snacks(WRITERS[name](tmp_path), grids=(9, 36))
    assert data.dropped == {} and set(data.boxes) == {9, 36}
    np.testing.assert_array_equal(data.boxes[36], places(36))
    wanted = [(t, grid) for grid in (9, 36) for t in made_up(grid)]
    wanted.sort(key=lambda pair: (pair[0]["subject"], pair[1], pair[0]["trial"]))
    for row, (trial, grid) in zip(data.trials.itertuples(), wanted, strict=True):
        assert (row.subject, row.grid, row.trial, row.choice) == (
            trial["subject"],
            grid,
            trial["trial"],
            trial["choice"],
        )
        np.testing.assert_array_equal(row.products, trial["products"])
        np.testing.assert_array_equal(row.ratings, trial["ratings"])
        np.testing.assert_allclose(row.gaze_ms, trial["gaze"], atol=1e-9)


def test_sessions_in_a_store(tmp_path: Path) -> None:
    folder = write_trimmed(tmp_path)
    config = DataConfig(name="snacks", path=folder, store=tmp_path / "store", grids=(9, 36), page_width=480)
    store = open_or_prepare(config)
    assert store.users == ("0", "4") and len(store.sessions) == 2 * 2 * TRIALS
    assert store.slot_feature_names == features_of(range(1, PRODUCTS + 1))
    assert store.manifest["splits"] == {"test": 8, "train": 28, "validation": 4}  # Of each ten 7, 1 and 2.
    session = store.sessions[0]
    trial = next(made_up(9))
    assert session.session_id == "0/9/0" and session.labels == tuple("ABCDEFGHI") and session.profile == TASK
    features = session.slot_features
    np.testing.assert_array_equal(features[:, 0], trial["ratings"])
    assert not features[:, 1].any() and store.hidden_features == ("rating",)
    np.testing.assert_allclose(features[:, 2], np.arange(9) / 8)
    np.testing.assert_array_equal(features[:, 3:].argmax(axis=1) + 1, trial["products"])
    np.testing.assert_allclose(session.boxes, places(9) / [1280, 1024, 1280, 1024])
    page = np.asarray(store.image(session.page_id))
    assert page.shape == (384, 480, 3)
    for box, product in zip(session.boxes, trial["products"], strict=True):
        middle = page[round((box[1] + box[3]) / 2 * 384), round((box[0] + box[2]) / 2 * 480)].astype(int)
        assert np.abs(middle - [6 * product, 200, 100]).max() <= 4
    # Given again the same store is opened, though the grids came as a tuple and lie there as a list.
    assert open_or_prepare(config).manifest == store.manifest
    assert store_settings(replace(config, grids=(9,))) != store_settings(config)


def test_what_the_profile_tells_is_a_feature_that_can_be_seen(tmp_path: Path) -> None:
    folder = write_trimmed(tmp_path)
    told: list[tuple[Literal["ratings", "all_ratings"], tuple[str, ...]]]
    told = [("ratings", ("rating",)), ("all_ratings", ())]
    for profile, hidden in told:
        config = DataConfig(name="snacks", path=folder, store=tmp_path / profile, grids=(9,), page_width=320)
        config = replace(config, profile=profile)
        store = open_or_prepare(config)
        assert store.hidden_features == hidden
        features = np.concatenate([session.slot_features for session in store.sessions])
        known = features[:, 1] != 0
        np.testing.assert_array_equal(features[known, 1], features[known, 0])
        assert known.any() and (known.sum() < (features[:, 0] != 0).sum()) == (profile == "ratings")


def test_other_data_sets_do_not_know_its_settings(tmp_path: Path) -> None:
    assert not {"grids", "profile", "viewport"} & store_settings(DataConfig(name="synthetic_choice")).keys()


def test_profiles_tell_the_ratings_in_words() -> None:
    ratings = {1: 3.0, 2: 3.0, 3: -3.0, 4: 0.0, 5: 1.0, 6: -1.0, 7: 2.0, 8: -2.0, 9: 0.0}
    names = {1: "Twix", 3: "liquorice"}
    assert profile_of(ratings, names, "none") == TASK
    assert profile_of(ratings, names, "ratings") == (
        f"{TASK} The user loves Twix, product 2. The user likes product 7. The user rather likes product 5. "
        "The user is neutral about product 4. The user rather dislikes product 6. The user dislikes product 8. "
        "The user hates liquorice."
    )
    assert "product 9" in profile_of(ratings, names, "all_ratings")


@pytest.mark.parametrize("grid", GRIDS)
def test_labels_stand_outside_the_photographs(grid: Grid) -> None:
    boxes, width = places(grid), 1280
    photos: list[Path | str] = [f"product {i}" for i in range(grid)]
    page, plain = (
        np.asarray(draw_screen(photos, boxes, labels, width=width), int) for labels in (labels_of(grid), [""] * grid)
    )
    changed = (page != plain).any(axis=2)
    assert len(set(labels_of(grid))) == grid
    for x0, y0, x1, y1 in boxes.astype(int):
        assert not changed[y0:y1, x0:x1].any()
        below = changed[y1 : y1 + 60, x0:x1]
        rows = np.flatnonzero(below.any(axis=1))
        assert label_height(boxes) * 0.8 <= np.ptp(rows) + 1 <= 1.25 * label_height(boxes)  # Q goes below the line.
        changed[y1 : y1 + 60, x0:x1] = False
    assert not changed.any()


def test_rows_may_be_a_little_crooked_but_need_room_for_labels() -> None:
    crooked = places(9) + np.arange(9)[:, None] % 3 * np.array([0, 1, 0, 1])
    assert label_height(crooked) == label_height(places(9)) == 48
    with pytest.raises(DataError, match=r"the grid of 9: no room for a label under each photograph"):
        label_height(places(9) + [0, 0, 0, 55])


def test_shares_of_more_than_the_whole_time_are_refused(tmp_path: Path) -> None:
    folder = write_published(tmp_path, old=False, grids=(9,))
    file = folder / "data" / "summary_files" / "setsize-9_desc-data.csv"
    frame = pd.read_csv(file)
    frame.loc[2, [f"cumulative_gaze_{i}" for i in range(9)]] = 0.2
    frame.to_csv(file, index=False)
    with pytest.raises(DataError, match=r"line 4, field 'cumulative_gaze_0'.*the shares of rt sum to more than 1"):
        read_snacks(folder, grids=(9,))


def test_labels_that_cannot_be_read_are_told_of(tmp_path: Path) -> None:
    folder = write_trimmed(tmp_path, (9,))
    wide = least_width(places(9))
    with pytest.warns(
        DataWarning, match=rf"labels of the grid of 9 cannot be read .* --data\.page-width {wide} would do"
    ):
        fx.data.snacks(folder, grids=(9,), page_width=wide - 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fx.data.snacks(folder, grids=(9,), page_width=wide)


def test_missing_photographs_are_drawn_with_a_warning(tmp_path: Path) -> None:
    folder = write_trimmed(tmp_path, (9,))
    for number in (1, 2, 3):
        (folder / "photos" / f"nr{number}.jpg").unlink()
    with pytest.warns(DataWarning, match="3 of 40 photographs are missing"):
        fx.data.snacks(folder, grids=(9,), page_width=320)
    (folder / "photos" / "nr4.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"nr4\.jpg: the photograph cannot be read"), pytest.warns(DataWarning):
        fx.data.snacks(folder, grids=(9,), page_width=320)


BAD = {
    # name: (column, value, the message, the reason)
    "choice": ("choice", "9", "must be a whole number from 0 to 8", "choice of no item"),
    "rating": ("v3", "4", "must be a whole number from -3 to 3", "rating off the scale"),
    "gaze": ("d1", "-5", "must not be negative", "impossible gaze"),
    "text": ("d1", "long", "is not a number", "not a number"),
    "empty": ("s2", "", "is empty", "missing value"),
    "product": ("s2", "1.5", "must be a whole number", "no product"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_named_or_left_out(name: str, tmp_path: Path) -> None:
    column, value, message, reason = BAD[name]
    folder = write_trimmed(tmp_path, (9,))
    frame = pd.read_csv(folder / "trials_9.csv", dtype=str, keep_default_na=False)
    frame.loc[3, column] = value
    frame.to_csv(folder / "trials_9.csv", index=False)
    with pytest.raises(DataError, match=rf"trials_9\.csv, line 5, field '{column}'.*{message}"):
        read_snacks(folder, grids=(9,))
    data = read_snacks(folder, grids=(9,), on_bad_row="skip")
    assert data.dropped == {reason: 1} and len(data.trials) == 2 * TRIALS - 1


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    folder = write_trimmed(tmp_path, (9,))
    with pytest.raises(DataError, match=r"setsize-16_desc-data\.csv nor trials_16\.csv; give the clone"):
        read_snacks(folder, grids=(9, 16))
    with pytest.raises(ConfigError, match=r"data\.grids = \(9, 9\): name at least one, each once"):
        DataConfig(name="snacks", grids=(9, 9))
    rows = (folder / "positions.csv").read_text().splitlines()
    (folder / "positions.csv").write_text("\n".join(rows[:-1]) + "\n")
    with pytest.raises(DataError, match=r"positions\.csv: has 8 places for the grid of 9"):
        read_snacks(folder, grids=(9,))
    (folder / "positions.csv").write_text("\n".join([*rows[:-1], "9,7,420,290,520,370"]) + "\n")
    with pytest.raises(
        DataError, match=r"positions\.csv, line 10, field 'item' = '7': items of a grid must be numbered"
    ):
        read_snacks(folder, grids=(9,))
    (folder / "positions.csv").write_text("\n".join([*rows[:-1], "9,8,420,290,400,370"]) + "\n")
    with pytest.raises(DataError, match=r"positions\.csv, line 10, field 'x1'.*off the screen"):
        read_snacks(folder, grids=(9,))


def test_the_studys_own_screens(shared_data: Path) -> None:
    folder = shared_data / "snacks"
    if not folder.exists():
        pytest.skip("the snack data are not there")
    data = read_snacks(folder)
    assert data.dropped == {} and data.trials["subject"].nunique() == 25
    assert data.trials["grid"].value_counts().to_dict() == {9: 1212, 16: 1177, 25: 1148, 36: 1080}
    assert all(least_width(boxes) <= 320 for boxes in data.boxes.values())
    assert len(data.names) == 80
