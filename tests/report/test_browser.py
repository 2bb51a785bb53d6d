"""A run's report in Chromium, without a network: everything in it can be used, and nothing complains.

With FIXATE_SCREENSHOTS set to a folder, pictures of the page are left there, to be looked at.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote_plus

import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from tests.report.samples import HOSTILE, LABELS, PER_USER, USERS, report

DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
PATIENCE_MS = 20_000
"""Far above what anything takes, for machines that are busy with other tests."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium on the PATH to open the report in: apt-get install chromium")
    with sync_playwright() as playwright:
        # The sandbox does not start for root, as which containers run; the page is our own.
        opened = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    return report(tmp_path_factory.mktemp("report")).as_uri()


class Opened:
    """A page that keeps what went wrong."""

    def __init__(self, browser: Browser, address: str, **options: object) -> None:
        self.context = browser.new_context(offline=True, **({"viewport": DESKTOP} | options))  # type: ignore[arg-type]
        self.context.set_default_timeout(PATIENCE_MS)
        self.page: Page = self.context.new_page()
        self.wrong: list[str] = []
        self.page.on("console", lambda message: self.wrong.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", lambda asked: self._count(asked.url))
        self.page.goto(address)

    def _count(self, url: str) -> None:
        if not url.startswith(("file:", "data:")):
            self.wrong.append(f"asked for {url}")


@pytest.fixture
def opened(browser: Browser, address: str) -> Iterator[Opened]:
    made = Opened(browser, address)
    yield made
    assert made.wrong == []
    assert made.page.title() == f"A run of {HOSTILE}", "a name has run as a script"
    made.context.close()


def picture_of(canvas: Locator) -> str:
    return str(canvas.evaluate("canvas => canvas.toDataURL()"))


def chosen(page: Page) -> tuple[str, str]:
    texts = [page.locator(f"#{name} option:checked").inner_text() for name in ("user", "session")]
    return texts[0], texts[1].split(", clicked")[0]


def test_users_and_sessions_can_be_chosen(opened: Opened) -> None:
    page = opened.page
    assert chosen(page) == ("ann", "ann/0")
    assert page.locator("#user option").all_inner_texts() == list(USERS)
    expect(page.locator("#said")).to_contain_text(f"Session 1 of {PER_USER} shown, of 4. The person clicked A.")
    page.get_by_role("combobox", name="User", exact=True).select_option(label=HOSTILE)
    page.get_by_role("combobox", name="Session", exact=True).select_option(index=1)
    assert chosen(page) == (HOSTILE, f"{HOSTILE}/1")
    marked = page.locator("#slots tr.clicked th")
    expect(marked).to_have_text(f"{LABELS[1]} ✓ clicked")
    expect(page.locator(".frame .clicked").first).to_contain_text(LABELS[1])
    expect(page.locator("#said")).to_contain_text("Backbone: clicks C & D (wrong), KL 0.50, cosine –.")
    page.get_by_role("button", name="Next").click()
    expect(page.get_by_role("button", name="Next")).to_be_disabled()
    page.get_by_role("button", name="Previous").click()
    assert chosen(page)[1] == f"{HOSTILE}/1"


def test_a_link_leads_to_its_session(opened: Opened) -> None:
    page = opened.page
    page.get_by_role("combobox", name="User", exact=True).select_option(label="__proto__")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Next").click()
    link = str(page.get_by_role("link", name="Link to this session").get_attribute("href"))
    assert link.startswith("#user=__proto__&session=") and page.url.endswith(link)
    page.get_by_role("link", name="Tables").click()
    page.reload()
    assert chosen(page) == ("ann", "ann/0"), "an address without a session shows the first"
    page.goto(page.url.split("#")[0] + f"#user={quote_plus(HOSTILE)}&session={quote_plus(HOSTILE + '/2')}")
    expect(page.locator("#session option:checked")).to_contain_text(f"{HOSTILE}/2")
    page.reload()
    assert chosen(page) == (HOSTILE, f"{HOSTILE}/2")


def test_overlays_are_toggled_and_fade(opened: Opened) -> None:
    page = opened.page
    expect(page.locator(".stage canvas")).to_have_count(3)
    human = page.locator("canvas[data-layer='0']")
    assert picture_of(human) != picture_of(page.locator("canvas[data-layer='1']"))
    page.get_by_label("Side by side").uncheck()
    expect(page.locator(".stage")).to_have_count(1)
    page.get_by_role("checkbox", name="Human").uncheck()
    expect(human).to_have_count(0)
    page.keyboard.press("2")
    expect(page.locator(".stage canvas")).to_have_count(1)
    page.keyboard.press("3")
    expect(page.locator(".stage canvas")).to_have_count(0)
    page.keyboard.press("3")
    fixate = page.locator("canvas[data-layer='2']")
    smooth = picture_of(fixate)
    page.keyboard.press("s")
    assert picture_of(fixate) != smooth
    page.get_by_label("Opacity of FixATE").fill("25")
    expect(fixate).to_have_css("opacity", "0.25")
    before = picture_of(fixate)
    page.get_by_role("button", name="Next").click()
    assert picture_of(fixate) != before
    expect(fixate).to_have_css("opacity", "0.25")
    expect(page.locator(".frame .slot")).to_have_count(3)
    page.keyboard.press("b")
    expect(page.locator(".frame .slot")).to_have_count(0)
    page.keyboard.press("g")
    expect(page.locator(".frame img.grey")).to_have_count(0)


def test_bars_show_the_shares_of_every_slot(opened: Opened) -> None:
    rows = opened.page.locator("#slots tbody tr")
    expect(rows).to_have_count(3)
    assert rows.nth(0).locator(".value").all_inner_texts() == ["60 %", "71 %", "14 %", "71 % ◂", "14 %"]
    widths = rows.nth(0).locator(".fill").evaluate_all("fills => fills.map((fill) => parseFloat(fill.style.width))")
    assert widths[1] == pytest.approx(100) and widths[0] == pytest.approx(100 * 0.6 / (0.5 / 0.7), abs=0.1)
    rows.nth(1).hover()
    expect(opened.page.locator(".frame .slot.marked")).to_have_count(3)


def test_keys_lead_everywhere(opened: Opened) -> None:
    page = opened.page
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowRight")
    assert chosen(page) == ("ann", "ann/1")
    page.keyboard.press("Shift+ArrowLeft")
    assert chosen(page) == ("__proto__", "__proto__/0")
    page.keyboard.press("ArrowLeft")
    assert chosen(page) == ("__proto__", "__proto__/0")
    page.get_by_label("Opacity of Human").focus()
    page.keyboard.press("ArrowRight")
    assert chosen(page) == ("__proto__", "__proto__/0"), "a slider keeps its keys"
    page.keyboard.press("?")
    help_box = page.get_by_role("dialog")
    expect(help_box).to_contain_text("next session")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Escape")
    expect(help_box).to_be_hidden()
    assert chosen(page) == ("__proto__", "__proto__/0")
    unnamed = page.locator("input, select, button, [tabindex='0']").evaluate_all(
        "found => found.filter((one) => !(one.labels?.length || one.ariaLabel || one.textContent.trim())).length"
    )
    assert unnamed == 0


def test_tables_sort_and_go_back(opened: Opened) -> None:
    page = opened.page
    table = page.locator("#tables table")
    methods = table.locator("tbody td:first-child")
    assert methods.all_inner_texts() == [HOSTILE, "fixate", "uniform"]
    head = table.get_by_role("button", name="kl")
    head.click()
    expect(table.locator("th[aria-sort='ascending']")).to_have_count(1)
    assert methods.all_inner_texts() == [HOSTILE, "fixate", "uniform"]
    head.press("Enter")
    assert methods.all_inner_texts() == ["fixate", HOSTILE, "uniform"], "numbers by value, missing ones last"
    head.click()
    expect(table.locator("th[aria-sort]")).to_have_count(0)
    table.get_by_role("button", name="users").click()
    assert methods.all_inner_texts()[0] == "uniform"


def test_points_name_and_choose_users(opened: Opened) -> None:
    page = opened.page
    points = page.locator("#points .point")
    expect(points).to_have_count(3)
    expect(page.locator("#points-said")).to_contain_text("1 of 3 users are better with FixATE")
    points.nth(2).hover()
    expect(page.locator("#tip")).to_have_text("User ann: Backbone 0.900, FixATE 0.500, better")
    points.nth(0).focus()
    expect(page.locator("#tip")).to_contain_text(HOSTILE)
    page.keyboard.press("Enter")
    assert chosen(page)[0] == HOSTILE
    page.keyboard.press("ArrowRight")
    expect(points.nth(1)).to_be_focused()
    page.keyboard.press("Space")
    assert chosen(page)[0] == "__proto__"
    points.nth(2).click()
    assert chosen(page)[0] == "ann"
    page.get_by_label("Metric").select_option("accuracy")
    expect(points).to_have_count(2)
    page.get_by_role("link", name="Users").click()
    page.get_by_text("The same as a table").click()
    expect(page.get_by_role("cell", name="0.9000")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(browser: Browser, address: str, scheme: str) -> None:
    made = Opened(browser, address, color_scheme=scheme)
    page, button = made.page, made.page.get_by_role("button", name="Colours")

    def brightness() -> float:
        red = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]")
        return float(red)

    for name, bright in (("system", scheme == "light"), ("light", True), ("dark", False)):
        expect(button).to_have_text(f"Colours: {name}")
        assert (brightness() > 128) == bright
        button.click()
    page.keyboard.press("d")
    expect(button).to_have_text("Colours: light")
    assert made.wrong == []
    made.context.close()


def test_a_phone_scrolls_no_way_but_down(browser: Browser, address: str) -> None:
    made = Opened(browser, address, viewport=PHONE, has_touch=True, is_mobile=True, reduced_motion="reduce")
    page = made.page
    expect(page.locator(".stage")).to_have_count(1)
    page.locator("details").evaluate_all("all => all.forEach((one) => { one.open = true; })")
    for side_by_side in (False, True):
        page.get_by_label("Side by side").set_checked(side_by_side)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    columns = page.locator("#stages .stage").evaluate_all("all => new Set(all.map((one) => one.offsetLeft)).size")
    assert columns == 1
    page.locator("#points .point").nth(2).tap()
    expect(page.locator("#tip")).to_be_visible()
    assert page.locator(".fill").first.evaluate("fill => getComputedStyle(fill).transitionDuration") == "0s"
    assert made.wrong == []
    made.context.close()


def test_without_scripts_the_tables_are_there(browser: Browser, address: str) -> None:
    made = Opened(browser, address, java_script_enabled=False)
    expect(made.page.get_by_text("Scripts are off")).to_be_visible()
    expect(made.page.get_by_text("9 sessions of 15")).to_be_visible()
    expect(made.page.locator("#tables table")).to_be_visible()
    expect(made.page.get_by_label("validation kl over the optimizer steps")).to_be_visible()
    expect(made.page.get_by_role("button")).to_have_count(0)
    made.context.close()


@pytest.mark.skipif("FIXATE_SCREENSHOTS" not in os.environ, reason="FIXATE_SCREENSHOTS names no folder for pictures")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("name", "size"), [("desktop", DESKTOP), ("phone", PHONE)])
def test_screenshots(browser: Browser, address: str, name: str, size: dict[str, int], scheme: str) -> None:
    made = Opened(browser, address, viewport=size, color_scheme=scheme)
    folder = Path(os.environ["FIXATE_SCREENSHOTS"])
    made.page.screenshot(path=folder / f"{name}-{scheme}.png")
    made.page.screenshot(path=folder / f"{name}-{scheme}-whole.png", full_page=True)
    assert made.wrong == []
    made.context.close()
