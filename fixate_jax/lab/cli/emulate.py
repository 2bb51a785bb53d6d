"""The subcommands about emulated users: `fixate emulate` and `fixate export`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import pandas as pd
import tyro

from fixate_jax.data.options import COLDEST, NARROWEST_PAGE
from fixate_jax.errors import ConfigError
from fixate_jax.lab.notes import tell_of_foreign_pages
from fixate_jax.lab.text import say

if TYPE_CHECKING:
    from fixate_jax.emulation import Page, UserEmulator, Visits

CAUTION = (
    "are synthetic users whose model reads drawn carousels alone: on other pages this shows that everything works, and "
    "nothing about people"
)
"""Said of users that come with the library."""
Source = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|BUNDLE")]


@dataclass(frozen=True)
class Emulate:
    """Show screenshots to emulated users: a table of where they look and what they click."""

    source: Source
    """Directory that `fixate train`, `tune-users` or `export` made; or demo-users, synthetic users that come with the
    library."""
    pages: Annotated[Path, tyro.conf.Positional]
    """Folder of screenshots with slots.csv or slots.json: page, x0, y0, x1, y1 in pixels, if wanted label and item."""
    out: Path = Path("emulated.parquet")
    """Table to write, .parquet or .csv: a row for each user, page and slot."""
    users: tuple[str, ...] = ()
    """Whom to ask (none named: everybody); backbone is the model without a prompt."""
    unknown: Literal["error", "population"] = "error"
    """What to do with users who were not tuned: stop, or take the mean prompt."""
    seed: int | None = None
    """Which of a run's seeds (None: its first)."""
    click_seed: int = 0
    """Of the drawn clicks."""
    temperature: float = 1.0
    """Of probabilities and clicks: below 1 the likeliest slot gets more."""
    calibrated: bool = False
    """Calibrate attention and answers as the validation sessions taught, the person's mean gaze by slot mixed in; for
    pages laid out like those tuned on."""
    profile: str | None = None
    """What the model is told about the task (None: a neutral sentence)."""
    page_width: int | None = None
    """Width of the pages that the model sees, in pixels (None: as when the prompts were tuned)."""
    assignment: Literal["centre", "area"] | None = None
    """How visual tokens count for slots (None: as when tuned); area is fair to slots smaller than a token."""
    heat_maps: Path | None = None
    """Folder for a picture of each user and page (None: no pictures)."""
    backbone: str | None = None
    """Where a bundle's backbone is (None: where it was)."""
    accept_other_backbone: bool = False
    """Go on although the backbone's files are not those that the prompts were tuned with."""

    def run(self) -> int:
        """Run the command."""
        from fixate_jax.lab.bundles.bundle import SHIPPED_USERS
        from fixate_jax.lab.bundles.opening import open_emulator
        from fixate_jax.lab.report.emulated import write_table
        from fixate_jax.lab.report.tables import print_table
        from fixate_jax.runtime.progress import track

        if self.out.suffix not in (".parquet", ".csv"):
            raise ConfigError(f"--out {self.out}: must end in .parquet or .csv")
        check_numbers(self.temperature, self.page_width)
        emulator = open_emulator(
            self.source,
            seed=self.seed,
            backbone=self.backbone,
            accept_other_backbone=self.accept_other_backbone,
        )
        if self.calibrated and emulator.calibration is None:
            raise ConfigError(
                f"--calibrated: {self.source} has no calibration; `fixate train` and `fixate evaluate` fit one; "
                "export after it"
            )
        emulator = with_assignment(emulator, self.assignment)
        pages = read_pages(self.pages, emulator, width=self.page_width, profile=self.profile)
        visits = emulator.visit_all(
            pages,
            self.users or None,
            unknown=self.unknown,
            relevance=self.heat_maps is not None,
            track=track,
        )
        visits = emulator.calibrated(visits) if self.calibrated else visits
        table = visits.frame(seed=self.click_seed, temperature=self.temperature)
        write_table(self.out, table)
        if self.heat_maps is not None:
            drawn = _draw(self.heat_maps, visits, self.temperature)
            say(f"drawn: {drawn} pictures in {self.heat_maps}")
        print_table(_shown(table), title="Mean over users", digits=3)
        say(f"written: {self.out}, {len(table)} rows")
        if self.source in SHIPPED_USERS:
            say(f"{self.source} {CAUTION}")
        return 0


def check_numbers(temperature: float, page_width: int | None) -> None:
    """Before anything is loaded.

    Raises:
        ConfigError: a temperature or a width that there cannot be.
    """
    if not (temperature >= COLDEST and math.isfinite(temperature)):
        raise ConfigError(f"--temperature {temperature}: must be at least {COLDEST}, and finite")
    if page_width is not None and page_width < NARROWEST_PAGE:
        raise ConfigError(f"--page-width {page_width}: at least {NARROWEST_PAGE} pixels are needed")


def with_assignment(emulator: "UserEmulator", assignment: Literal["centre", "area"] | None) -> "UserEmulator":
    """The users with another way of counting visual tokens for slots (None: their own)."""
    if assignment is None:
        return emulator
    return replace(emulator, assignment=assignment)


def read_pages(folder: Path, emulator: "UserEmulator", *, width: int | None, profile: str | None) -> list["Page"]:
    """A folder of screenshots as pages for emulated users.

    Args:
        folder: with slots.csv or slots.json.
        emulator: who will see them.
        width: of the pages in pixels (None: as when the prompts were tuned).
        profile: what the model is told about the task (None: a neutral sentence).

    Raises:
        DataError: see :func:`fixate_jax.emulation.page_sets.read_page_set`.
    """
    from fixate_jax.data.readers.own.tables import PROFILE
    from fixate_jax.emulation.page_sets import read_page_set

    tell_of_foreign_pages(emulator.backbone.settings.path, str(folder))
    wide = emulator.page_width if width is None else width
    return read_page_set(folder, width=wide, profile=PROFILE if profile is None else profile)


def _draw(folder: Path, visits: "Visits", temperature: float) -> int:
    """A picture of each visit; how many."""
    import numpy as np

    from fixate_jax.lab.report.emulated import visit_figure

    assert visits.relevance is not None
    probabilities = visits.probabilities(temperature).astype(np.float64)
    pairs = list(zip(visits.users, visits.pages, strict=True))
    names = picture_names([(user, page.name) for user, page in pairs])
    for i, ((user, page), name) in enumerate(zip(pairs, names, strict=True)):
        visit_figure(
            folder / f"{name}.png",
            image=np.asarray(page.image.convert("RGB")),
            boxes=page.relative_boxes,
            labels=page.labels,
            relevance=visits.relevance[i],
            attention=visits.attention[i, : page.slots].astype(np.float64),
            probabilities=probabilities[i, : page.slots],
            title=f"user {user}, {page.name}",
        )
    return len(visits)


def picture_names(visits: Sequence[tuple[str, str]]) -> list[str]:
    """A file name without ending for each user and page; where two would be the same the later ones are numbered."""
    names: dict[str, None] = {}
    for user, page_id in visits:
        plain = "".join(c if c.isalnum() or c in "-_." else "-" for c in f"{user}_{Path(page_id).stem}")
        name, number = plain, 1
        while name in names:
            number += 1
            name = f"{plain}-{number}"
        names[name] = None
    return list(names)


def _shown(table: pd.DataFrame) -> pd.DataFrame:
    """What fits on a screen: each slot over all users."""
    keys = ["page_id", "label", "item"] if table["item"].any() else ["page_id", "label"]
    means = table.assign(click=table["click"].astype(float)).groupby(keys, sort=False)
    return means[["attention", "probability", "click"]].mean().reset_index()


@dataclass(frozen=True)
class Export:
    """Write users' prompts as a bundle that others can use: safetensors, settings, model card."""

    source: Source
    """Directory that `fixate train` or `fixate tune-users` made."""
    out: Annotated[Path, tyro.conf.Positional]
    """Folder to write; must not exist."""
    users: tuple[str, ...] = ()
    """Whose prompts (none named: everybody's)."""
    seed: int | None = None
    """Which of the run's seeds (None: its first)."""
    pseudonyms: bool = False
    """Call them user-1, user-2, … instead of what the data call them."""
    licence: str = "not stated"
    """Under which the prompts may be used, for the model card."""
    note: str = ""
    """About the people and their consent, for the model card."""
    accept_other_backbone: bool = False
    """Go on although the backbone's files are not those that the prompts were tuned with."""

    def run(self) -> int:
        """Run the command."""
        from fixate_jax.lab.bundles.bundle import Origin, write_bundle
        from fixate_jax.lab.bundles.opening import load_run

        run = Path(self.source)
        emulator = load_run(run, seed=self.seed, accept_other_backbone=self.accept_other_backbone)
        from fixate_jax.lab.bundles.settings import settings_of

        config = settings_of(emulator)
        seed = config.train.seeds[0] if self.seed is None else self.seed
        origin = Origin(data=config.data.name, seed=seed, licence=self.licence, note=self.note)
        made = write_bundle(emulator, self.out, origin, users=self.users or None, pseudonyms=self.pseudonyms)
        say(f"written: {made}; a prompt tells its person apart, so pass it on only with their consent")
        return 0
