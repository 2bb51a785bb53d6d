"""Comparing versions: differences are those of the same user, page and item, and intervals say how sure they are."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fixate_jax.emulation import BACKBONE, Page, UserEmulator, Visits
from fixate_jax.errors import ConfigError, DataError
from fixate_jax.evaluation.statistics import resamples
from fixate_jax.lab.bundles.bundle import write_bundle
from fixate_jax.lab.bundles.card import Origin
from fixate_jax.lab.bundles.settings import emulator_of
from fixate_jax.lab.cli import commands as cli
from fixate_jax.lab.cli.compare import page_text, version_names
from fixate_jax.lab.comparison import Comparison, compare_versions, match_pages
from tests.emulation.test_emulator import CONFIG, SIZES, pages_of
from tests.worlds import USERS, World, numbers

ITEMS = (
    ("hat", "coat", "scarf"),
    ("coat", "boots", "gloves", "hat", "belt", "socks"),
    ("belt", "hat", "coat", "tie"),
    ("tie", "coat", "hat", "boots", "cap"),
)


@pytest.fixture(autouse=True)
def fewer_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fixate_jax.lab.comparison.resamples", partial(resamples, samples=1000))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    # As in the tests of the emulator, so that nothing is compiled for both.
    return World(tmp_path_factory.mktemp("world"), config=CONFIG, labels=numbers, sizes=SIZES)


@pytest.fixture(scope="module")
def emulator(world: World) -> UserEmulator:
    return emulator_of(CONFIG, world.backbone, world.prompt(), USERS)


@pytest.fixture(scope="module")
def pages(world: World) -> list[Page]:
    return [replace(page, items=items) for page, items in zip(pages_of(world), ITEMS, strict=True)]


def turned(pages: Sequence[Page]) -> list[Page]:
    """Pictures upside down: what stood first stands last."""
    return [
        replace(page, image=page.image.rotate(180), boxes=1 - page.relative_boxes[:, [2, 3, 0, 1]], items=page.items)
        for page in pages
    ]


@pytest.fixture(scope="module")
def compared(emulator: UserEmulator, pages: list[Page]) -> Comparison:
    renamed = [replace(page, items=page.items[1:] + page.items[:1]) for page in pages]
    # The order of a version's pages counts for nothing.
    return compare_versions(emulator, {"old": pages, "same": pages[::-1], "renamed": renamed, "turned": turned(pages)})


def rows(table: pd.DataFrame, version: str, measure: str = "click") -> pd.DataFrame:
    found = table[(table["version"] == version) & (table["measure"] == measure)]
    return found.set_index(table.columns[0])


def test_the_same_pages_make_no_difference(compared: Comparison) -> None:
    for table in (compared.items(), compared.slots()):
        same = table[table["version"] == "same"]
        assert np.abs(same[["difference", "low", "high"]].to_numpy()).max() < 1e-6
        first = table[table["version"] == "old"]
        assert (first["difference"] == 0).all() and first[["low", "high", "low_pages", "high_pages"]].isna().all(None)
    same = compared.summary().set_index("version").loc["same"]
    assert np.abs(same[["to_items", "to_slots", "high"]].to_numpy(float)).max() < 1e-6


def test_items_are_followed_to_where_they_stand(
    emulator: UserEmulator, pages: list[Page], compared: Comparison
) -> None:
    old = emulator.visit_all(pages).frame()
    total = old.groupby(["user_id", "page_id"])["attention"].transform("sum")
    old["attention"] /= total
    for measure, column in (("click", "probability"), ("attention", "attention")):
        expected = old.groupby("item")[column].mean()
        found = rows(compared.items(), "old", measure)
        np.testing.assert_allclose(found["share"].sort_index(), expected.sort_index(), atol=1e-6)
        assert found["pages"].to_dict() == dict(
            hat=4, coat=4, scarf=1, boots=2, gloves=1, belt=2, socks=1, tie=2, cap=1
        )
        # The picture is the old one: places keep what they get, and items get what their new place gets.
        assert np.abs(rows(compared.slots(), "renamed", measure)["difference"]).max() < 1e-6
        moved = rows(compared.items(), "renamed", measure)
        by_slot = rows(compared.slots(), "old", measure)["share"]
        assert by_slot.loc[3] == pytest.approx(old[(old["slot"] == 3)][column].mean(), abs=1e-6)
        gloves = old[(old["page_id"] == "page1") & (old["item"] == "gloves")][column].mean()
        boots = old[(old["page_id"] == "page1") & (old["item"] == "boots")][column].mean()
        assert moved.loc["gloves", "difference"] == pytest.approx(boots - gloves, abs=1e-6)
        # What some gain others lose.
        assert (moved["difference"] * moved["pages"]).sum() == pytest.approx(0, abs=1e-6)
    assert rows(compared.slots(), "old")["pages"].tolist() == [4, 4, 4, 3, 2, 1]


def test_the_summary_says_how_much_moves(compared: Comparison) -> None:
    summary = compared.summary().set_index(["version", "measure"])
    for measure in ("attention", "click"):
        row = summary.loc[("renamed", measure)]
        assert row["to_slots"] < 1e-6 < row["low"] <= row["to_items"] <= row["high"] < 1
        assert summary.loc[("turned", measure), "to_slots"] > 1e-4
    assert summary["answered"].between(0, 1).all()
    assert summary["answered"].groupby(level="version").nunique().eq(1).all()


def test_intervals_are_over_users_and_over_pages(compared: Comparison) -> None:
    moved = rows(compared.items(), "turned")
    assert (moved["low"] <= moved["difference"]).all() and (moved["difference"] <= moved["high"]).all()
    assert moved["low_pages"].isna().tolist() == (moved["pages"] == 1).tolist()
    many = moved[moved["pages"] > 1]
    assert (many["high_pages"] - many["low_pages"] > many["high"] - many["low"]).all()
    pd.testing.assert_frame_equal(compared.items(), compared.items())
    other = replace(compared, seed=5)
    assert (rows(other.items(), "turned")["difference"] == moved["difference"]).all()


def test_whom_to_ask_can_be_chosen(emulator: UserEmulator, pages: list[Page], compared: Comparison) -> None:
    versions = {"old": pages, "turned": turned(pages)}
    one = compare_versions(emulator, versions, [BACKBONE])
    assert one.users == (BACKBONE,)
    assert one.items()[["low", "high", "low_pages", "high_pages"]].isna().all(None), "one user is no population"
    assert one.summary()[["low", "high"]].isna().all(None)
    some = compare_versions(emulator, versions, ["u2", "stranger"], unknown="population", temperature=1e4)
    clicks = some.shares["click"]
    np.testing.assert_allclose(clicks[:, :, 0, :3], 1 / 3, atol=0.01)
    np.testing.assert_allclose(some.shares["attention"][0, 0], compared.shares["attention"][0, 2], atol=1e-5)


def test_attention_that_found_nothing_is_even(
    emulator: UserEmulator, pages: list[Page], monkeypatch: pytest.MonkeyPatch
) -> None:
    visits = emulator.visit_all(pages[:2], ["u0"])
    blind = replace(visits, attention=np.zeros_like(visits.attention))
    monkeypatch.setattr(UserEmulator, "visit_all", lambda *_, **__: blind)
    found = compare_versions(emulator, {"old": pages[:2], "new": pages[:2]}, ["u0"]).shares["attention"]
    np.testing.assert_allclose(found[0, 0], [[1 / 3] * 3 + [0] * 3, [1 / 6] * 6])


def changed(pages: list[Page], index: int, items: tuple[str, ...]) -> list[Page]:
    return [replace(page, items=items) if i == index else page for i, page in enumerate(pages)]


def test_what_cannot_be_matched_is_named(pages: list[Page]) -> None:
    for other, message in (
        ([], "version 'new': lacks page 'page0', which 'old' has; pages are matched by name"),
        (pages[:2], "version 'new': lacks page 'page2', which 'old' has"),
        ([*pages, replace(pages[0], name="extra")], "version 'old': lacks page 'extra', which 'new' has"),
        (changed(pages, 1, ()), "version 'new', page 'page1': does not say what stands in its slots"),
        (changed(pages, 0, ("hat", "", "scarf")), "version 'new', page 'page0', slot 1: has no item"),
        (changed(pages, 0, ("hat", "coat", "hat")), "page 'page0', slot 2: item 'hat' is there twice"),
        (changed(pages, 0, ("hat", "coat", "shawl")), "'new', page 'page0': lacks item 'scarf', which 'old' has"),
        ([*pages, replace(pages[0])], "page 'page0': two pages have this name"),
    ):
        with pytest.raises(DataError, match=message):
            match_pages({"old": pages, "new": other})
    fewer = [replace(pages[0], boxes=pages[0].relative_boxes[:2], labels=("A", "B"), items=("hat", "coat")), *pages[1:]]
    with pytest.raises(DataError, match="version 'old', page 'page0': lacks item 'scarf', which 'new' has"):
        match_pages({"old": fewer, "new": pages})
    with pytest.raises(DataError, match="version 'old': has no pages"):
        match_pages({"old": [], "new": pages})


def test_mistakes_in_a_call_are_named(emulator: UserEmulator, pages: list[Page]) -> None:
    both = {"old": pages, "new": pages}
    with pytest.raises(ConfigError, match="versions: old; give at least two"):
        compare_versions(emulator, {"old": pages})
    with pytest.raises(ConfigError, match="users: u0, u0; name each once"):
        compare_versions(emulator, both, ["u0", "u0"])
    with pytest.raises(ConfigError, match="users: there is nobody"):
        compare_versions(emulator, both, [])
    with pytest.raises(ConfigError, match=r"temperature = 0\.0: must be at least 0\.001"):
        compare_versions(emulator, both, temperature=0.0)
    with pytest.raises(ConfigError, match="somebody: not tuned here"):
        compare_versions(emulator, both, ["somebody"])


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        cli.main([str(argument) for argument in arguments])
    assert isinstance(left.value.code, int)
    return left.value.code


@pytest.fixture(scope="module")
def bundle(emulator: UserEmulator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(emulator, tmp_path_factory.mktemp("bundle") / "bundle", Origin(data="noise", seed=0))


def page_set(folder: Path, pages: Sequence[Page]) -> Path:
    """A folder as people make it, from pages."""
    folder.mkdir(parents=True)
    lines = ["page,x0,y0,x1,y1,item"]
    for page in pages:
        page.image.save(folder / f"{page.name}.png")
        wide, tall = page.image.size
        for item, box in zip(page.items, page.relative_boxes * [wide, tall, wide, tall], strict=True):
            lines.append(",".join([f"{page.name}.png", *(f"{side:.3f}" for side in box), item]))
    (folder / "slots.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def test_folders_become_tables_and_figures(
    bundle: Path, pages: list[Page], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = page_set(tmp_path / "old", pages[:2]), page_set(tmp_path / "new", turned(pages[:2]))
    out = tmp_path / "mine"
    wanted = ("--users", "u2", "u0", "--out", out, "--page-width", 192, "--profile", "likes films")
    assert run("compare", bundle, *folders, *wanted) == 0
    shown = capsys.readouterr().out
    assert "new − old: items that change most" in shown and "to other items" in shown
    items = pd.read_csv(out / "items.csv")
    assert len(items) == 7 * 2 * 2 and set(items["version"]) == {"old", "new"}
    assert len(pd.read_csv(out / "slots.csv")) == 6 * 2 * 2
    assert pd.read_csv(out / "summary.csv")["to_items"].iloc[-1] > 0
    for name in ("page", "items", "slots"):
        assert min(Image.open(out / f"{name}.png").size) > 50
    text = (out / "comparison.md").read_text(encoding="utf-8")
    assert "2 emulated users, 2 pages, 7 items; all against old." in text and "![items](items.png)" in text


def by_size(_: UserEmulator, pages: Sequence[Page], users: Sequence[str], **__: object) -> Visits:
    """Visits of users who look at what is large."""
    area = np.stack(
        [np.prod(page.relative_boxes[:, 2:] - page.relative_boxes[:, :2], axis=1) for page in list(pages) * len(users)]
    )
    return Visits(
        users=tuple(user for user in users for _ in pages),
        pages=tuple(pages) * len(users),
        attention=area,
        log_probs=np.log(area),
        answered=np.zeros(len(area)),
    )


def test_carousels_are_drawn_in_versions(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "comparison"
    wanted = ("--pages", 2, "--users", "u1", "u2", "--out", out, "--assignment", "area", "--bootstrap-seed", 3)
    asked: list[UserEmulator] = []

    def emulate(self: UserEmulator, *told: Any, **more: Any) -> Visits:
        asked.append(self)
        return by_size(self, *told, **more)

    monkeypatch.setattr(UserEmulator, "visit_all", emulate)
    assert run("compare", bundle, "--carousels", "rows", "sizes", *wanted) == 0
    slots = pd.read_csv(out / "slots.csv")
    assert list(dict.fromkeys(slots["version"])) == ["as drawn", "rows", "sizes"]
    assert set(slots["slot"]) == set(range(15)) and (slots["pages"] == 2).all()
    np.testing.assert_allclose(rows(slots, "rows")["difference"], 0, atol=1e-12)
    gains = np.repeat([0.1 - 1 / 15, 0.05 - 1 / 15, 0.05 - 1 / 15], 5)
    np.testing.assert_allclose(rows(slots, "sizes")["difference"], gains, atol=1e-12)
    assert {emulator.assignment for emulator in asked} == {"area"} != {CONFIG.operator.assignment}
    assert Image.open(out / "page.png").width > 300


def test_versions_of_one_name_are_told_apart_by_as_much_as_it_takes() -> None:
    folders = [Path("/home/somebody/old/shop"), Path("/home/somebody/new/shop"), Path("other")]
    assert version_names(folders[:2]) == ["old/shop", "new/shop"]
    assert version_names([folders[0], folders[2]]) == ["shop", "other"]


def test_one_user_alone_has_no_interval_to_count(compared: Comparison) -> None:
    items = compared.items()
    assert "leave out 0" in page_text(compared, items, pictures=[])
    assert "leave out 0" not in page_text(compared, items.assign(low=np.nan, high=np.nan), pictures=[])


def test_bad_wishes_end_with_one_message(
    bundle: Path, pages: list[Page], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = page_set(tmp_path / "old", pages), page_set(tmp_path / "new", changed(pages, 0, ("a", "coat", "scarf")))
    for arguments, message in (
        ((), "give either folders, two or more, or --carousels"),
        ((old, new, "--carousels", "rows"), "give either folders, two or more, or --carousels"),
        ((old,), "alone; give at least two folders"),
        ((old, new, old), "name each once"),
        (("--carousels", "rows", "rows"), "name each once"),
        ((old, new, "--temperature", 0), "--temperature 0.0: must be at least 0.001"),
        ((old, new, "--page-width", -5), "--page-width -5: at least 64 pixels"),
        ((old, new), "version 'new', page 'page0.png': lacks item 'hat', which 'old' has there"),
        (("--carousels", "rows", "--pages", 0), "pages = 0: at least 1"),
        ((old, tmp_path / "none"), "none: no such folder"),
    ):
        assert run("compare", bundle, *arguments, "--out", tmp_path / "out") == 2, arguments
        assert message in " ".join(capsys.readouterr().err.split())
        assert not (tmp_path / "out").exists()
