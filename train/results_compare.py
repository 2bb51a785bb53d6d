"""The second table of docs/results/comparison.md: emulated users beside the synthetic users they were tuned on.

    python train/results_compare.py --out runs/truth && python train/fill_page.py runs/truth docs/results/comparison.md

The people of `demo-users` are drawn, so what they would do on a page that nobody has shown them is known: habits,
tastes, and how the click follows are formulas. Both see the same versions of the same carousel pages. The people know
nothing of sizes, so where only these change they do what they did before: that says nothing of what emulated users
make of sizes, but tells whether they can still read the page.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tyro
from jaxtyping import Float

from fixate_jax.data.carousel import Poster
from fixate_jax.data.readers.synthetic.carousel import CONCENTRATION, Person, people
from fixate_jax.emulation import Page
from fixate_jax.emulation.versions import CATALOGUE, VERSIONS, as_drawn, draw_slates, item_name
from fixate_jax.evaluation.statistics import bootstrap_interval
from fixate_jax.lab.bundles.opening import open_emulator
from fixate_jax.lab.bundles.settings import settings_of
from fixate_jax.lab.comparison import Comparison, compare_versions
from fixate_jax.lab.report.tables import to_markdown
from fixate_jax.lab.studies.provenance import provenance
from fixate_jax.lab.studies.report import provenance_lines
from fixate_jax.runtime.durable import write_text
from fixate_jax.runtime.progress import track

POSTERS = {item_name(poster): poster for poster in CATALOGUE}
VISITS = 200
"""Gazes drawn of each person on each page, whose click probabilities are averaged."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is compared.

    Attributes:
        source: users tuned on synthetic users at carousels.
        out: where the table goes.
        pages: how many.
        page_seed: of the posters on them.
    """

    source: str = "demo-users"
    out: Path = Path("runs/truth")
    pages: int = 24
    page_seed: int = 0


def true_comparison(emulated: Comparison, known: list[Person], *, seed: int = 0) -> Comparison:
    """The same versions with what the people themselves would do.

    Args:
        emulated: users named by their number among the people.
        known: the people.
        seed: of their gazes.
    """
    shares = {measure: np.zeros_like(values) for measure, values in emulated.shares.items()}
    for v, pages in enumerate(emulated.pages):
        for p, page in enumerate(pages):
            for u, user in enumerate(emulated.users):
                # The same draws in every version, so that what is the same for the person makes no difference.
                rng = np.random.default_rng([seed, u, p])
                gaze, click = expected(known[int(user)], page, rng)
                shares["attention"][v, u, p, : page.slots], shares["click"][v, u, p, : page.slots] = gaze, click
    return replace(emulated, shares=shares)


def expected(
    person: Person, page: Page, rng: np.random.Generator
) -> tuple[Float[np.ndarray, " slots"], Float[np.ndarray, " slots"]]:
    """A person's mean gaze and click probabilities on a page."""
    content: tuple[Poster, ...] = tuple(POSTERS[item] for item in page.items)
    gaze = person.expected_gaze(content)
    drawn = rng.dirichlet(CONCENTRATION * gaze, size=VISITS)
    return gaze, np.mean([person.click_probabilities(content, one) for one in drawn], axis=0)


def table(emulated: Comparison, true: Comparison) -> pd.DataFrame:
    """A row for each version and measure.

    Columns: what goes to other items, emulated and true, in percent; correlations of emulated with true shares, and of
    differences against the first version, over pages and items within a person, mean over people with its interval;
    and of the differences of all people together on each slot.
    """
    moved = [comparison.summary().set_index(["version", "measure"])["to_items"] for comparison in (emulated, true)]
    rows: list[dict[str, Any]] = []
    for v, version in enumerate(emulated.versions):
        for measure in emulated.shares:
            ours, theirs = (followed(comparison, measure) for comparison in (emulated, true))
            row: dict[str, Any] = {"version": version, "measure": measure}
            row["r of shares"] = _interval(ours[v], theirs[v])
            if v:
                row |= {
                    "goes to other items": 100 * moved[0][version, measure],
                    "in truth": 100 * moved[1][version, measure],
                    "r of differences": _interval(ours[v] - ours[0], theirs[v] - theirs[0]),
                    "r over slots": _r(*(_slots(comparison, measure, v) for comparison in (emulated, true))),
                }
            rows.append(row)
    return pd.DataFrame(rows)


def followed(comparison: Comparison, measure: str) -> Float[np.ndarray, "versions users pages slots"]:
    """Shares of items, wherever they stand."""
    return np.take_along_axis(comparison.shares[measure], comparison.slot_of[:, None], axis=3)


def _slots(comparison: Comparison, measure: str, version: int) -> Float[np.ndarray, " slots"]:
    shares = comparison.shares[measure]
    return (shares[version] - shares[0]).mean(axis=(0, 1))


def _interval(ours: Float[np.ndarray, "users pages slots"], theirs: Float[np.ndarray, "users pages slots"]) -> str:
    of_user = np.array([_r(a, b) for a, b in zip(ours, theirs, strict=True)])
    if np.isnan(of_user).any():
        return "–"
    found = bootstrap_interval(of_user, seed=0)
    return f"{found.mean:.2f} ({found.low:.2f} to {found.high:.2f})"


def _r(ours: Float[np.ndarray, "*shape"], theirs: Float[np.ndarray, "*shape"]) -> float:
    """Correlation; NaN where the truth does not vary."""
    return float(np.corrcoef(ours.ravel(), theirs.ravel())[0, 1]) if np.ptp(theirs) > 1e-9 else float("nan")


def main(plan: tyro.conf.OmitArgPrefixes[Plan]) -> None:
    """Show the versions to both and write the table."""
    emulator = open_emulator(plan.source)
    emulator = replace(emulator, assignment="area")
    slates = draw_slates(pages=plan.pages, seed=plan.page_seed)
    versions = {"as drawn": as_drawn(slates)} | {name: make(slates) for name, make in VERSIONS.items()}
    emulated = compare_versions(emulator, versions, track=track)
    known = people(len(emulated.users), settings_of(emulator).data.split_seed)
    found = table(emulated, true_comparison(emulated, known))
    text = "\n".join([*provenance_lines([provenance()]), "", to_markdown(found, 2)])
    write_text(plan.out / "truth.csv", found.to_csv(index=False))
    write_text(plan.out / "truth.md", text)
    print(text)


if __name__ == "__main__":
    tyro.cli(main)
