"""The subcommand `fixate compare`: what emulated users do with versions of the same pages."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pandas as pd
import tyro

from fixate_jax.errors import ConfigError
from fixate_jax.lab.cli.emulate import Source, check_numbers, read_pages, with_assignment
from fixate_jax.lab.notes import few_people
from fixate_jax.lab.text import markdown, say

if TYPE_CHECKING:
    from fixate_jax.emulation import Page, UserEmulator
    from fixate_jax.lab.comparison import Comparison

AS_DRAWN = "as drawn"
"""Name of the first version of made-up pages."""
SHOWN = 8
"""Items of a version that are printed."""


@dataclass(frozen=True)
class Compare:
    """Show versions of the same pages to emulated users: what gains or loses looks and clicks."""

    source: Source
    """Directory that `fixate train`, `tune-users` or `export` made; or demo-users, synthetic users that come with the
    library."""
    versions: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Folders of screenshots with slots.csv or slots.json, each the same pages and items by name; the others are
    compared with the first."""
    carousels: tuple[Literal["order", "genres", "rows", "sizes"], ...] = ()
    """Instead of folders: drawn carousel pages, compared with themselves back to front, with films by genre, with rows
    from below, or with a first row as high as the others together."""
    pages: int = 24
    """How many carousel pages."""
    page_seed: int = 0
    """Of the posters on them."""
    out: Path = Path("comparison")
    """Folder for tables, figures and a page of text."""
    users: tuple[str, ...] = ()
    """Whom to ask (none named: everybody); backbone is the model without a prompt."""
    unknown: Literal["error", "population"] = "error"
    """What to do with users who were not tuned: stop, or take the mean prompt."""
    seed: int | None = None
    """Which of a run's seeds (None: its first)."""
    bootstrap_seed: int = 0
    """Of the intervals."""
    temperature: float = 1.0
    """Of click probabilities: below 1 the likeliest slot gets more."""
    assignment: Literal["centre", "area"] | None = None
    """How visual tokens count for slots (None: as when tuned); area is fair to slots that do not fit the tokens."""
    profile: str | None = None
    """What the model is told about the task (None: a neutral sentence; for carousels the one of their people)."""
    page_width: int | None = None
    """Width of the pages that the model sees, in pixels (None: as when the prompts were tuned)."""
    backbone: str | None = None
    """Where a bundle's backbone is (None: where it was)."""
    accept_other_backbone: bool = False
    """Go on although the backbone's files are not those that the prompts were tuned with."""

    def run(self) -> int:
        """Run the command."""
        from fixate_jax.lab.bundles.opening import open_emulator
        from fixate_jax.lab.comparison import compare_versions
        from fixate_jax.lab.report.tables import print_table
        from fixate_jax.runtime.progress import track

        self._check()
        emulator = open_emulator(
            self.source,
            seed=self.seed,
            backbone=self.backbone,
            accept_other_backbone=self.accept_other_backbone,
        )
        emulator = with_assignment(emulator, self.assignment)
        versions = self._carousels(emulator) if self.carousels else self._folders(emulator)
        comparison = compare_versions(
            emulator,
            versions,
            self.users or None,
            unknown=self.unknown,
            temperature=self.temperature,
            seed=self.bootstrap_seed,
            track=track,
        )
        written = write_comparison(comparison, self.out)
        if few := few_people(len(comparison.users)):
            say(few, wrap=True)
        print_table(moves(comparison.summary()), title="How much moves, %", digits=1)
        for version in comparison.versions[1:]:
            title = f"{version} − {comparison.versions[0]}: items that change most, %"
            print_table(changes(comparison.items(), version, SHOWN), title=title, digits=1)
        say(f"written: {written} and beside it")
        return 0

    def _check(self) -> None:
        """Before anything is loaded."""
        if bool(self.versions) == bool(self.carousels):
            raise ConfigError("versions: give either folders, two or more, or --carousels order genres rows sizes")
        if len(self.versions) == 1:
            raise ConfigError(f"versions: {self.versions[0]} alone; give at least two folders to compare")
        if len(set(self.versions)) < len(self.versions) or len(set(self.carousels)) < len(self.carousels):
            raise ConfigError(f"versions: {' '.join(map(str, self.versions or self.carousels))}; name each once")
        check_numbers(self.temperature, self.page_width)

    def _carousels(self, emulator: "UserEmulator") -> dict[str, list["Page"]]:
        from fixate_jax.data.readers.synthetic.carousel import PROFILE
        from fixate_jax.emulation.versions import VERSIONS, as_drawn, draw_slates

        slates = draw_slates(pages=self.pages, seed=self.page_seed)
        how: dict[str, Any] = {
            "width": emulator.page_width if self.page_width is None else self.page_width,
            "profile": PROFILE if self.profile is None else self.profile,
        }
        return {AS_DRAWN: as_drawn(slates, **how)} | {name: VERSIONS[name](slates, **how) for name in self.carousels}

    def _folders(self, emulator: "UserEmulator") -> dict[str, list["Page"]]:
        return {
            name: read_pages(path, emulator, width=self.page_width, profile=self.profile)
            for path, name in zip(self.versions, version_names(self.versions), strict=True)
        }


def version_names(folders: Sequence[Path]) -> list[str]:
    """The last parts of folders' paths, as many as it takes to tell them apart; where they lie is nobody's business."""
    parts = [folder.absolute().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise ConfigError(f"versions: {' '.join(map(str, folders))}; name each once")


def write_comparison(comparison: "Comparison", out: Path) -> Path:
    """Write ``items.csv``, ``slots.csv``, ``summary.csv``, three figures, and ``comparison.md`` that shows them.

    Args:
        comparison: to write.
        out: folder.

    Returns:
        The path of ``comparison.md``.

    Raises:
        DiskError: something cannot be written.
    """
    from fixate_jax.lab.report.comparison import page_versions, version_differences
    from fixate_jax.lab.report.emulated import write_table
    from fixate_jax.runtime.durable import write_text

    items, slots = comparison.items(), comparison.slots()
    for name, table in {"items": items, "slots": slots, "summary": comparison.summary()}.items():
        write_table(out / f"{name}.csv", table)
    people = f"{len(comparison.users)} emulated users, {len(comparison.pages[0])} pages"
    first = comparison.pages[0][0].name
    figures = [
        page_versions(out / "page.png", shown_page(comparison, 0), title=f"{first}, mean of the users"),
        version_differences(out / "items.png", items, title=f"Items: {people}"),
        version_differences(out / "slots.png", slots, title=f"Slots, whatever stands there: {people}"),
    ]
    text = page_text(comparison, items, pictures=[figure.name for figure in figures])
    write_text(out / "comparison.md", text)
    return out / "comparison.md"


def shown_page(comparison: "Comparison", index: int) -> dict[str, Any]:
    """A page in each version with its shares, mean over users, for `fixate_jax.lab.report.comparison.page_versions`."""
    import numpy as np

    from fixate_jax.lab.report.comparison import Shown

    return {
        version: Shown(
            image=np.asarray(pages[index].image.convert("RGB")),
            boxes=pages[index].relative_boxes,
            names=pages[index].labels,
            shares={m: x[v, :, index, : pages[index].slots].mean(axis=0) for m, x in comparison.shares.items()},
        )
        for v, (version, pages) in enumerate(zip(comparison.versions, comparison.pages, strict=True))
    }


def changes(items: pd.DataFrame, version: str, most: int) -> pd.DataFrame:
    """The items of a version whose clicks change most, a row each, in percent; the largest gain first."""
    here = items[items["version"] == version]
    clicks, looks = (here[here["measure"] == measure].set_index("item") for measure in ("click", "attention"))
    largest = clicks["difference"].abs().nlargest(most).index
    order = clicks.loc[largest, "difference"].sort_values(ascending=False, kind="stable").index
    table = pd.DataFrame({"item": order, "pages": clicks["pages"].loc[order].to_numpy()})
    for name, rows in (("clicks", clicks.loc[order]), ("attention", looks.loc[order])):
        table[name] = 100 * rows["share"].to_numpy()
        table["Δ " + name] = [_interval(*values) for values in zip(*_columns(rows, "difference"), strict=True)]
    return table


def moves(summary: pd.DataFrame) -> pd.DataFrame:
    """How much of a visit goes elsewhere in each version, in percent."""
    return pd.DataFrame(
        {
            "version": summary["version"],
            "measure": summary["measure"],
            "to other items": [_interval(*values) for values in zip(*_columns(summary, "to_items"), strict=True)],
            "to other slots": 100 * summary["to_slots"],
            "answered": 100 * summary["answered"],
        }
    )


def _columns(rows: pd.DataFrame, mean: str) -> list[list[float]]:
    return [rows[name].tolist() for name in (mean, "low", "high")]


def _interval(mean: float, low: float, high: float) -> str:
    """In percent; NaN bounds are left out."""
    known = f" ({100 * low:.1f}, {100 * high:.1f})" if low == low else ""
    return f"{100 * mean:.1f}{known}"


def page_text(comparison: "Comparison", items: pd.DataFrame, *, pictures: Sequence[str]) -> str:
    """Markdown: who, what computed it, how much moves, the items that change most, the figures."""
    from fixate_jax.lab.report.tables import to_markdown
    from fixate_jax.lab.studies.provenance import provenance
    from fixate_jax.lab.studies.report import provenance_lines

    first, *others = comparison.versions
    shown = items[(items["version"] != first) & items["low"].notna()]  # One user alone has no interval.
    missed = int(((shown["low"] > 0) | (shown["high"] < 0)).sum())
    lines = [
        f"{len(comparison.users)} emulated users, {len(comparison.pages[0])} pages, {items['item'].nunique()} items; "
        f"all against {markdown(first)}.",
        "",
        *provenance_lines([provenance()]),
        "",
        *([few_people(len(comparison.users)), ""] if few_people(len(comparison.users)) else []),
        "How much of a visit goes elsewhere, in percent, with 95% intervals over users; and the probability "
        "that the model answers with any label:",
        "",
        to_markdown(moves(comparison.summary()), 1),
    ]
    if len(shown):
        by_chance = f"Were nothing changed at all, about {len(shown) / 20:.0f} would by chance."
        lines += [f"Of {len(shown)} intervals over users {missed} leave out 0. {by_chance}", ""]
    for version in others:
        lines += [f"{markdown(version)}: the items that change most, in percent", ""]
        lines += [to_markdown(changes(items, version, SHOWN), 1)]
    lines += [line for picture in pictures for line in (f"![{Path(picture).stem}]({picture})", "")]
    return "\n".join(lines)
