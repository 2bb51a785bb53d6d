"""The Python examples of the pages about emulated users run as they stand, on the users that are shipped."""

import re
from pathlib import Path
from typing import Any

import pytest

from fixate_jax.backbones.loading import SHIPPED
from fixate_jax.lab.bundles.bundle import SHIPPED_USERS
from tests.emulation import test_fidelity as made_up
from tests.test_docs import ROOT, blocks


@pytest.fixture(autouse=True)
def shipped() -> None:
    if "demo-users" not in SHIPPED_USERS or not (SHIPPED / "tiny-qwen3-vl").is_dir():
        pytest.skip("no weights are in this copy")


def examples(page: str, **fewer: int) -> dict[str, Any]:
    """What is there after all blocks of a page, in which some numbers are smaller."""
    names: dict[str, Any] = {}
    for block in blocks(ROOT / "docs" / "howto" / page, "python"):
        for name, number in fewer.items():
            block = re.sub(rf"\b{name}=\d+", f"{name}={number}", block)
        exec(block, names)
    return names


def test_emulate() -> None:
    names = examples("emulate.md")
    assert names["heat"].shape == names["page"].image.size[::-1]
    assert len(names["table"]) == 3 * 2
    assert callable(names["with_newcomers"])


@pytest.mark.slow
def test_compare() -> None:
    names = examples("compare.md", pages=2)
    gained = names["items"].set_index(["version", "measure"]).loc[("action first", "click")]
    assert set(names["comparison"].summary()["version"]) == set(names["versions"])
    assert len(gained) > 20


def test_fidelity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fixate_jax.lab.fidelity import fidelity

    monkeypatch.setattr(fidelity, "SAMPLES", 100)
    monkeypatch.setattr(fidelity, "SIMULATIONS", 5)
    theirs = made_up.laws(1.0)
    made_up.frame({"fixate": theirs}, theirs=theirs).to_parquet(tmp_path / "predictions-test.parquet")
    table = examples("fidelity.md")["fidelity_of"](tmp_path / "predictions-test.parquet")
    assert set(table["measure"]) == set(fidelity.MEASURES)
