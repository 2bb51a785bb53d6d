"""Versions of the same pages, shown to the same emulated users: what is looked at and clicked more, and by how much.

Pages are matched by name, and the items of a page by name. Every user sees every page in every version, so differences
are paired: what one user does with one item on one page, in another version minus in the first. Attention is scaled to
a sum of 1 over the slots of a page; clicks are expected ones, that is probabilities, so no drawing adds noise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from fixate_jax.emulation.emulator import UserEmulator
from fixate_jax.emulation.pages import Page, require_distinct
from fixate_jax.emulation.visits import Visits, require_temperature
from fixate_jax.errors import ConfigError, DataError
from fixate_jax.evaluation.statistics import crossed_interval, resamples, studentised_bounds
from fixate_jax.runtime.progress import Track, silent

MEASURES = ("attention", "click")
Cells = tuple[Int[np.ndarray, " cells"], Int[np.ndarray, " cells"]]
"""Pages, and a slot on each: where a thing is."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """What users do with the pages of each version.

    Attributes:
        versions: their names; the others are compared with the first.
        users: who saw them.
        pages: of each version, in the same order of names.
        shares: measure → the share of a page's attention or clicks on each slot; 0 where the page has no such slot.
        slot_of: where the item that stands in each slot of the first version stands in this one; the slot itself where
            the page has none.
        answered: log-probability that the model answers with a label of the page at all, of everything that it could
            say. Where it is far lower than in the first version, the model may not understand this one.
        seed: of the bootstrap.
    """

    versions: tuple[str, ...]
    users: tuple[str, ...]
    pages: tuple[tuple[Page, ...], ...]
    shares: Mapping[str, Float[np.ndarray, "versions users pages slots"]]
    slot_of: Int[np.ndarray, "versions pages slots"]
    answered: Float[np.ndarray, "versions users pages"]
    seed: int = 0

    def items(self) -> pd.DataFrame:
        """A row for each item, version and measure.

        Columns: ``item``, ``version``, ``measure``, ``pages`` that show the item, ``share`` (mean over users and these
        pages), ``difference`` (share minus that in the first version), ``low`` and ``high`` (its 95% interval
        over users), ``low_pages`` and ``high_pages`` (over users and pages). Intervals are NaN in the first version,
        those over users for a single user, those over pages for a single page too.
        """
        cells: dict[str, list[tuple[int, int]]] = {}
        for p, page in enumerate(self.pages[0]):
            for slot, item in enumerate(page.items):
                cells.setdefault(item, []).append((p, slot))
        return self._table(self._followed(), {item: _cells(found) for item, found in cells.items()}, "item")

    def slots(self) -> pd.DataFrame:
        """A row for each slot, version and measure: what the place gets, whatever stands there.

        Columns as in :meth:`items`, with ``slot`` (from 0) in place of the item.
        """
        counts = np.array([page.slots for page in self.pages[0]])
        cells = {s: _cells([(int(p), s) for p in np.flatnonzero(counts > s)]) for s in range(counts.max())}
        return self._table(self.shares, cells, "slot")

    def summary(self) -> pd.DataFrame:
        """A row for each version and measure: how much of it all moves.

        Columns: ``version``, ``measure``, ``to_items`` (share of a visit's attention or clicks that goes to other items
        than in the first version: half the sum of the absolute differences, mean over visits), ``low`` and ``high``
        (its 95% interval over users), ``to_slots`` (the same of slots: where items change places alone, 0
        says that only the place counts), ``answered`` (probability that the model answers with any label at all,
        geometric mean over visits).
        """
        counts, followed = self._user_counts(), self._followed()
        rows: list[dict[str, Any]] = []
        for v, version in enumerate(self.versions):
            for measure, shares in self.shares.items():
                moved = [np.abs(x[v] - x[0]).sum(axis=2) / 2 for x in (followed[measure], shares)]
                low, high = self._bounds(moved[0].mean(axis=1)[:, None], counts if v else None)
                rows.append(
                    {
                        "version": version,
                        "measure": measure,
                        "to_items": float(moved[0].mean()),
                        "low": float(low[0]),
                        "high": float(high[0]),
                        "to_slots": float(moved[1].mean()),
                        "answered": float(np.exp(self.answered[v].mean())),
                    }
                )
        return pd.DataFrame(rows)

    def _followed(self) -> dict[str, Float[np.ndarray, "versions users pages slots"]]:
        """Shares of the items, wherever they stand, in the order of the first version's slots."""
        return {
            measure: np.take_along_axis(shares, self.slot_of[:, None], axis=3)
            for measure, shares in self.shares.items()
        }

    def _table(
        self,
        shares: Mapping[str, Float[np.ndarray, "versions users pages slots"]],
        cells: Mapping[Any, Cells],
        key: str,
    ) -> pd.DataFrame:
        counts = self._user_counts()
        rows: list[dict[str, Any]] = []
        for measure, values in shares.items():
            # Users × things, each the mean over the pages that show the thing.
            own = np.stack([values[:, :, pages, slots].mean(axis=2) for pages, slots in cells.values()], axis=2)
            for v, version in enumerate(self.versions):
                low, high = self._bounds(own[v] - own[0], counts if v else None)
                for i, (name, (pages, slots)) in enumerate(cells.items()):
                    change = values[v][:, pages, slots] - values[0][:, pages, slots]
                    wide = (np.nan, np.nan)
                    if v and min(change.shape) > 1:
                        interval = crossed_interval(change)
                        wide = interval.low, interval.high
                    rows.append(
                        {
                            key: name,
                            "version": version,
                            "measure": measure,
                            "pages": len(pages),
                            "share": float(own[v, :, i].mean()),
                            "difference": float(change.mean()),
                            "low": float(low[i]),
                            "high": float(high[i]),
                            "low_pages": wide[0],
                            "high_pages": wide[1],
                        }
                    )
        order = {version: i for i, version in enumerate(self.versions)}
        table = pd.DataFrame(rows)
        return table.iloc[table["version"].map(order).argsort(kind="stable")].reset_index(drop=True)

    def _user_counts(self) -> Int[np.ndarray, "samples users"]:
        return resamples(len(self.users), seed=self.seed)

    def _bounds(
        self, values: Float[np.ndarray, "users things"], counts: Int[np.ndarray, "samples users"] | None
    ) -> Float[np.ndarray, "2 things"]:
        """Of the mean over users; NaN where there is nothing to draw from."""
        if counts is None:
            return np.full((2, values.shape[1]), np.nan)
        return np.stack(studentised_bounds(values, counts))


def compare_versions(
    emulator: UserEmulator,
    versions: Mapping[str, Sequence[Page]],
    users: Sequence[str] | None = None,
    *,
    unknown: Literal["error", "population"] = "error",
    temperature: float = 1.0,
    seed: int = 0,
    track: Track = silent,
) -> Comparison:
    """Show two or more versions of the same pages to emulated users.

    Args:
        emulator: the users.
        versions: pages by the name of the version; the others are compared with the first. Each holds the same pages by
            name, in any order, and each page the same items by name, in any slots.
        users: to whom (None: to all), see :meth:`UserEmulator.emulate`.
        unknown: what to do with users who were not tuned.
        temperature: of the click probabilities.
        seed: of the bootstrap.
        track: wraps the batches of each version in a progress bar.

    Raises:
        ConfigError: there are fewer than two versions, nobody is asked, a user is named twice or not known, or the
            temperature is out of range.
        DataError: a page is in one version only, or an item, or pages do not say what stands in them.
        LabelError: labels of a page do not suit the tokenizer.
    """
    if len(versions) < 2:
        raise ConfigError(f"versions: {', '.join(versions) or 'none'}; give at least two to compare")
    require_temperature(temperature)
    shown = tuple(emulator.users if users is None else users)
    if not shown or len(set(shown)) < len(shown):
        raise ConfigError(f"users: {', '.join(shown) or 'there is nobody'}; name each once")
    matched = match_pages(versions)
    slots = max(page.slots for page in matched[0])
    shape = len(matched), len(shown), len(matched[0])
    shares = {measure: np.zeros((*shape, slots)) for measure in MEASURES}
    answered = np.zeros(shape)
    for v, pages in enumerate(matched):
        visits = emulator.visit_all(pages, shown, unknown=unknown, track=track)
        found = {"attention": _scaled(visits), "click": visits.probabilities(temperature)}
        for measure, rows in found.items():
            shares[measure][v] = rows.reshape(*shape[1:], slots)
        answered[v] = visits.answered.reshape(shape[1:])
    return Comparison(
        versions=tuple(versions),
        users=shown,
        pages=matched,
        shares=shares,
        slot_of=_places(matched, slots),
        answered=answered,
        seed=seed,
    )


def match_pages(versions: Mapping[str, Sequence[Page]]) -> tuple[tuple[Page, ...], ...]:
    """The pages of all versions in the order of the first's.

    Args:
        versions: pages by the name of the version.

    Raises:
        DataError: naming version, page and item where one is missing, unnamed or there twice.
    """
    (first, reference), *others = versions.items()
    if not reference:
        raise DataError(f"version {first!r}: has no pages")
    for name, pages in versions.items():
        require_distinct(pages)
        for page in pages:
            _require_items(name, page)
    matched = [tuple(reference)]
    for name, pages in others:
        by_name = {page.name: page for page in pages}
        wanted = [page.name for page in reference]
        for here, there, lacking in (
            (name, first, [p for p in wanted if p not in by_name]),
            (first, name, [p for p in by_name if p not in wanted]),
        ):
            if lacking:
                raise DataError(
                    f"version {here!r}: lacks page {lacking[0]!r}, which {there!r} has; pages are matched by name, so "
                    "give each version the same names"
                )
        for page in reference:
            _require_same_items(page, by_name[page.name], first, name)
        matched.append(tuple(by_name[p] for p in wanted))
    return tuple(matched)


def _require_items(version: str, page: Page) -> None:
    where = f"version {version!r}, page {page.name!r}"
    if not page.items:
        raise DataError(f"{where}: does not say what stands in its slots; name the item of each (column 'item')")
    for slot, item in enumerate(page.items):
        if not item:
            raise DataError(f"{where}, slot {slot}: has no item; name what stands there (column 'item')")
        if item in page.items[:slot]:
            raise DataError(
                f"{where}, slot {slot}: item {item!r} is there twice; items are matched by name, so give each its own"
            )


def _require_same_items(page: Page, other: Page, first: str, name: str) -> None:
    for version, there, lacking in (
        (name, first, [item for item in page.items if item not in other.items]),
        (first, name, [item for item in other.items if item not in page.items]),
    ):
        if lacking:
            raise DataError(
                f"version {version!r}, page {page.name!r}: lacks item {lacking[0]!r}, which {there!r} has there; "
                "only what is on the page in every version can be compared"
            )


def _places(matched: Sequence[Sequence[Page]], slots: int) -> Int[np.ndarray, "versions pages slots"]:
    places = np.tile(np.arange(slots), (len(matched), len(matched[0]), 1))
    for v, pages in enumerate(matched):
        for p, (page, reference) in enumerate(zip(pages, matched[0], strict=True)):
            index = {item: slot for slot, item in enumerate(page.items)}
            places[v, p, : page.slots] = [index[item] for item in reference.items]
    return places


def _scaled(visits: Visits) -> Float[np.ndarray, "visits slots"]:
    """Attention with a sum of 1 on each page; where none was found on any slot it counts as even, as in the metrics."""
    counts = np.array([page.slots for page in visits.pages])
    even = (np.arange(visits.attention.shape[1]) < counts[:, None]).astype(np.float64)
    total = visits.attention.sum(axis=1, keepdims=True, dtype=np.float64)
    weights = np.where(total > 0, visits.attention.astype(np.float64), even)
    share: Float[np.ndarray, "visits slots"] = weights / weights.sum(axis=1, keepdims=True)
    return share


def _cells(pairs: Sequence[tuple[int, int]]) -> Cells:
    pages, slots = zip(*pairs, strict=True)
    return np.array(pages), np.array(slots)
