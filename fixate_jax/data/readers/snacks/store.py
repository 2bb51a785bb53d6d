"""Snack screens in a store: what the model is told about the person, the page as it was seen, a label for each item."""

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float

from fixate_jax.data.options import DataConfig
from fixate_jax.data.readers.human_choice import assign_splits, first_users
from fixate_jax.data.readers.snacks.pages import SCREEN, draw_screen, least_width, picture
from fixate_jax.data.readers.snacks.reader import GRIDS, STIMULI, layout_of, read_snacks
from fixate_jax.data.session import Split, StoredSession
from fixate_jax.data.store import StoreWriter, encode_image
from fixate_jax.errors import DataError, DataWarning
from fixate_jax.runtime.durable import THREADS
from fixate_jax.runtime.progress import track

Told = Literal["none", "ratings", "all_ratings"]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
TASK = "Each photograph is a snack with its label below. The user picks the snack to eat."
WORDS = {-3: "hates", -2: "dislikes", -1: "rather dislikes", 0: "is neutral about"}
WORDS |= {1: "rather likes", 2: "likes", 3: "loves"}
BEST, WORST = 5, 3
"""How many products the short profile names."""
BATCH = 64
"""Pages drawn at a time."""


def labels_of(grid: int) -> tuple[str, ...]:
    """Labels of a grid's items: letters, or numbers where there are more items than letters."""
    return tuple(LETTERS[:grid]) if grid <= len(LETTERS) else tuple(str(i + 1) for i in range(grid))


def profile_of(ratings: Mapping[int, float], names: Mapping[int, str], told: Told) -> str:
    """What the model is told: the task, and the person's ratings in words, best first.

    Args:
        ratings: the person's, by product.
        names: of products, by number.
        told: nothing of them, the best and the worst few, or all.
    """
    said: dict[str, list[str]] = {}
    for product in told_products(ratings, told):
        said.setdefault(WORDS[round(ratings[product])], []).append(name_of(product, names))
    return " ".join([TASK, *(f"The user {verb} {', '.join(products)}." for verb, products in said.items())])


def told_products(ratings: Mapping[int, float], told: Told) -> list[int]:
    """The products whose ratings the model is told, best first."""
    ordered = sorted(ratings, key=lambda product: (-ratings[product], product))
    chosen = {"none": [], "ratings": [*ordered[:BEST], *ordered[-WORST:]], "all_ratings": ordered}[told]
    return list(dict.fromkeys(chosen))


def name_of(product: int, names: Mapping[int, str]) -> str:
    """A product's name, or its number."""
    return names.get(product, f"product {product}")


def source_files(path: Path) -> list[Path]:
    """The raw files that the sessions are made of, of all grids that are there."""
    found = []
    for grid in GRIDS:
        try:
            layout = layout_of(path, grid)
        except DataError:
            continue
        found += [layout.trials, layout.positions]
    if not found:
        layout_of(path, GRIDS[0])  # Says what is missing.
    names = [path / STIMULI] if (path / STIMULI).exists() else []
    return [*dict.fromkeys(found), *names, *photographs(path).values()]


def photographs(path: Path) -> dict[int, Path]:
    """Photographs by product."""
    folders = (path / "photos", path / "data" / "stimuli", path / "stimuli")
    files = [file for folder in folders for ending in ("jpg", "png") for file in sorted(folder.glob(f"nr*.{ending}"))]
    return {int(file.stem[2:]): file for file in files if file.stem[2:].isdecimal() and file.is_file()}


def features_of(products: Sequence[int]) -> tuple[str, ...]:
    """Names of the slot features, given the products that there are."""
    return ("rating", "told_rating", "serial_position", *(f"product_{product}" for product in products))


def slot_features(row: Any, products: Sequence[int], told: Collection[int]) -> Float[np.ndarray, "items features"]:
    """What is displayed in each slot, beside the person's own rating of it.

    Args:
        row: the screen.
        products: all that there are, in the order of their columns.
        told: those whose ratings the profile tells; ``told_rating`` is 0 for all others.

    Returns:
        In the columns of :func:`features_of`; the place counts from 0 to 1.
    """
    items = len(row.products)
    place = np.arange(items) / (items - 1)
    shown = np.array(row.products)[:, None] == np.array(products)[None, :]
    known = np.isin(row.products, list(told)) * np.asarray(row.ratings)
    return np.concatenate([np.stack([row.ratings, known, place], axis=1), shown], axis=1).astype(np.float64)


def splits_of(trials: pd.DataFrame, seed: int) -> list[Split]:
    """Split each person's screens of each grid 70/15/15 at random."""
    found = pd.Series("train", index=trials.index, dtype=object)
    for grid, rows in trials.groupby("grid"):
        found[rows.index] = assign_splits(rows.assign(block=grid), seed)
    return list(found)


def prepare(config: DataConfig, writer_of: Callable[[tuple[str, ...]], StoreWriter]) -> None:
    """Read the screens, draw them, several at a time, and add the sessions to a store.

    Raises:
        DataError: naming file, line and field.
    """
    path = config.path
    assert path is not None
    data = read_snacks(path, grids=config.grids, on_bad_row=config.on_bad_row)
    trials = first_users(data.trials, config.max_users)
    products = sorted({int(product) for row in trials["products"] for product in row})
    photos = _photos(path, products, data.names)
    picture.cache_clear()  # A file may be another one by now.
    for grid, boxes in data.boxes.items():
        if config.page_width < least_width(boxes):
            warnings.warn(
                f"labels of the grid of {grid} cannot be read on pages {config.page_width} pixels wide; "
                f"--data.page-width {least_width(boxes)} would do",
                DataWarning,
                stacklevel=2,
            )
    ratings = _ratings(trials)
    told = {person: told_products(own, config.profile) for person, own in ratings.items()}
    splits = splits_of(trials, config.split_seed)
    rows = list(zip(trials.itertuples(index=False), splits, strict=True))

    def draw(row: Any) -> bytes:
        shown = [photos[product] for product in row.products.tolist()]
        page = draw_screen(shown, data.boxes[row.grid], labels_of(row.grid), width=config.page_width)
        return encode_image(page)

    screen = np.array([*SCREEN, *SCREEN], np.float64)
    with writer_of(features_of(products)) as writer, ThreadPoolExecutor(THREADS) as pool:
        writer.dropped = data.dropped
        writer.hidden_features = () if config.profile == "all_ratings" else ("rating",)
        batches = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
        for batch in track(batches, "Drawing pages"):
            pages = pool.map(draw, [row for row, _ in batch])
            for (row, split), page in zip(batch, pages, strict=True):
                writer.add(
                    StoredSession(
                        session_id=f"{row.subject}/{row.grid}/{row.trial}",
                        user_id=str(row.subject),
                        page_id=writer.add_image(page),
                        boxes=data.boxes[row.grid] / screen,
                        labels=labels_of(row.grid),
                        dwell_ms={"fixation": np.asarray(row.gaze_ms, np.float64)},
                        click=int(row.choice),
                        profile=profile_of(ratings[row.subject], data.names, config.profile),
                        split=split,
                        slot_features=slot_features(row, products, told[row.subject]),
                    )
                )


def _photos(path: Path, products: Sequence[int], names: Mapping[int, str]) -> dict[int, Path | str]:
    """For each product its photograph, or its name where there is none, with a warning."""
    files = photographs(path)
    missing = [product for product in products if product not in files]
    if missing:
        shown = ", ".join(f"nr{product}" for product in missing[:8])
        warnings.warn(
            f"{path}: {len(missing)} of {len(products)} photographs are missing ({shown}{', …' * (len(missing) > 8)}); "
            "their products are drawn as a box with their name",
            DataWarning,
            stacklevel=3,
        )
    return {product: files.get(product, name_of(product, names)) for product in products}


def _ratings(trials: pd.DataFrame) -> dict[int, dict[int, float]]:
    """Each person's rating of each product that they were shown."""
    found: dict[int, dict[int, float]] = {}
    for row in trials.itertuples(index=False):
        products: Any = row.products
        found.setdefault(int(row.subject), {}).update(zip(products.tolist(), row.ratings, strict=True))
    return found
