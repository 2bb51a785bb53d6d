"""The script that holds compared versions against made-up people: who does as they do agrees with them wholly."""

from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest

from fixate_jax.data.readers.synthetic.carousel import people
from fixate_jax.emulation.versions import VERSIONS, as_drawn, draw_slates
from fixate_jax.lab.comparison import Comparison, _places, match_pages
from tests.cells import load_script


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("results_compare")


@pytest.fixture(scope="module")
def even() -> Comparison:
    """Users for whom all slots are alike."""
    slates = draw_slates(pages=3, seed=0)
    made = {name: VERSIONS[name](slates) for name in ("order", "sizes")}
    pages = match_pages({"as drawn": as_drawn(slates)} | made)
    return Comparison(
        versions=("as drawn", "order", "sizes"),
        users=("0", "1", "4"),
        pages=pages,
        shares={measure: np.full((3, 3, 3, 15), 1 / 15) for measure in ("attention", "click")},
        slot_of=_places(pages, 15),
        answered=np.zeros((3, 3, 3)),
    )


def test_the_people_agree_with_themselves(script: ModuleType, even: Comparison) -> None:
    true = script.true_comparison(even, people(5, 0))
    for shares in true.shares.values():
        np.testing.assert_allclose(shares.sum(axis=3), 1)
    found = script.table(true, true).set_index(["version", "measure"])
    order = found.loc[("order", "click")]
    assert order["r of shares"] == order["r of differences"] == "1.00 (1.00 to 1.00)"
    assert order["goes to other items"] == order["in truth"] > 20
    assert order["r over slots"] == pytest.approx(1)
    assert found.loc[("sizes", "click"), "in truth"] == 0, "people know nothing of sizes"
    assert found.loc[("sizes", "click"), "r of differences"] == "–"


def test_who_does_otherwise_does_not_agree(script: ModuleType, even: Comparison) -> None:
    true = script.true_comparison(even, people(5, 0))
    others = replace(true, shares={measure: shares[:, ::-1] for measure, shares in true.shares.items()})
    found = script.table(others, true).set_index(["version", "measure"])
    assert float(str(found.loc[("order", "click"), "r of differences"]).split()[0]) < 0.9
    assert found.loc[("order", "click"), "r over slots"] == pytest.approx(1), "together they are the same people"
