"""Made-up search result pages with their boxes: a search field, organic results, ads above, among and beside them."""

import io
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from fixate_jax.data.readers.adserp.files import SCREENSHOT_WIDTH
from fixate_jax.data.render import draw_font

BRANDS = ("norvik", "alpenta", "quill", "bramble", "tessera", "okapi", "lumen", "farrow")
PRODUCTS = {
    "flashlight": ("bright beam for camping and work", "battery lasts a whole night", "fits in every pocket"),
    "tire gauge": ("reads up to 60 psi", "soft grip and a clear dial", "for cars, bikes and trailers"),
    "oil filter": ("keeps the engine clean", "fits most four-cylinder cars", "changed in ten minutes"),
    "tea kettle": ("boils a litre in three minutes", "turns itself off", "brushed steel, cool handle"),
    "desk lamp": ("five steps of brightness", "arm turns every way", "warm and cold light"),
    "running shoes": ("light sole for long roads", "breathes well in summer", "sizes 36 to 48"),
    "rain jacket": ("dry in heavy rain", "packs into its own pocket", "hood with a peak"),
    "bike lock": ("hardened chain, 90 cm", "two keys and a cover", "weighs just over a kilo"),
}
SITES = (
    "shopwell",
    "buyfield",
    "marketo",
    "pricely",
    "outdoora",
    "toolbarn",
    "reviewly",
    "homeline",
    "carpart",
    "sportly",
)
LEFT, RESULT_WIDTH, FIRST_TOP, GAP = 162, 540, 158, 27
TOP_AD = (586, 250)
RIGHT_LEFT, RIGHT_WIDTH = 760, 360
FOOTER = 220
LINE = 24
"""Height of a line of a result."""
BLUE, GREEN, GREY, BLACK = (26, 13, 171), (0, 102, 33), (77, 81, 86), (32, 33, 36)

Box = tuple[int, int, int, int]


class Area(NamedTuple):
    """A result or an ad as drawn; ``lines`` are those of its text, ``inner`` says that it stands within another."""

    kind: str
    rank: int
    site: str
    title: str
    lines: tuple[str, ...]
    box: Box
    inner: bool = False


class ResultsPage(NamedTuple):
    """A page: the query with hyphens, its height, and its areas, organic results by rank, then ads."""

    query: str
    height: int
    areas: tuple[Area, ...]


def make_page(index: int, seed: int) -> ResultsPage:
    """Make up a page; the same index and seed give the same one."""
    rng = np.random.default_rng([seed, index, 1])
    product, brand = str(rng.choice(list(PRODUCTS))), str(rng.choice(BRANDS))
    query = f"buy-{brand}-{rng.integers(100, 999)}-{product.replace(' ', '-')}"
    kinds = ["native_ad"] * int(rng.integers(0, 3)) + ["organic"] * int(rng.integers(7, 11))
    kinds += ["native_ad"] * int(rng.integers(0, 3))
    areas: list[Area] = []
    top, rank = FIRST_TOP, 0
    if rng.random() < 0.5:
        areas.append(_area(rng, "dd_top", 0, brand, product, (LEFT, top, LEFT + TOP_AD[0], top + TOP_AD[1])))
        top += TOP_AD[1] + GAP
    for kind in kinds:
        rank += kind == "organic"
        bottom = top + LINE * int(rng.integers(4, 7)) + 8
        box = (LEFT, top, LEFT + RESULT_WIDTH, bottom)
        areas.append(_area(rng, kind, rank if kind == "organic" else 0, brand, product, box))
        top = bottom + GAP
    if rng.random() < 0.5:
        right = (RIGHT_LEFT, FIRST_TOP, RIGHT_LEFT + RIGHT_WIDTH, FIRST_TOP + int(rng.integers(380, 560)))
        areas.append(_area(rng, "dd_right", 0, brand, product, right))
        if rng.random() < 0.5:
            card = (right[0] + 20, right[1] + 170, right[2] - 20, right[1] + 340)
            areas.append(_area(rng, "dd_right", 0, brand, product, card)._replace(inner=True))
    order = ("organic", "native_ad", "dd_top", "dd_right")
    areas.sort(key=lambda area: (order.index(area.kind), area.rank))
    return ResultsPage(query, top + FOOTER, tuple(areas))


def _area(rng: np.random.Generator, kind: str, rank: int, brand: str, product: str, box: Box) -> Area:
    site = str(rng.choice(SITES))
    text = [str(line) for line in rng.permutation(PRODUCTS[product])]
    shown = max(1, (box[3] - box[1]) // LINE - 2)
    title = f"{brand.title()} {product} – {site.title()}"
    lines = [f"{a[0].upper()}{a[1:]}; {b}." for a, b in zip(text, text[1:] + text[:1], strict=True)]
    return Area(kind, rank, site, title, tuple(lines[:shown]), box)


def draw_screenshot(page: ResultsPage) -> bytes:
    """The page as a PNG file."""
    image = Image.new("RGB", (SCREENSHOT_WIDTH, page.height), (255, 255, 255))
    draw = ImageDraw.Draw(image)
    draw.rounded_rectangle([LEFT, 28, LEFT + 640, 74], radius=22, outline=(200, 200, 205), width=2)
    draw.text((LEFT + 24, 51), page.query.replace("-", " "), fill=BLACK, font=draw_font(20.0), anchor="lm")
    draw.text(
        (LEFT, 112), "All     Shopping     Images     News     Maps", fill=GREY, font=draw_font(16.0), anchor="lm"
    )
    draw.line([0, 132, SCREENSHOT_WIDTH, 132], fill=(235, 235, 238), width=2)
    for area in sorted(page.areas, key=lambda area: area.inner):
        (_draw_result if area.kind in ("organic", "native_ad") else _draw_display)(draw, area)
    draw.rectangle([0, page.height - 120, SCREENSHOT_WIDTH, page.height], fill=(242, 242, 243))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def _colour(site: str) -> tuple[int, int, int]:
    place = SITES.index(site)
    return 60 + 37 * place % 160, 60 + 71 * place % 160, 60 + 113 * place % 160


def _draw_result(draw: ImageDraw.ImageDraw, area: Area) -> None:
    x, y = area.box[:2]
    left = x
    if area.kind == "native_ad":
        draw.text((x, y + LINE / 2), "Ad ·", fill=BLACK, font=draw_font(15.0), anchor="lm")
        left += 40
    else:
        draw.ellipse([x, y + 3, x + 18, y + 21], fill=_colour(area.site))
        left += 28
    address = f"https://www.{area.site}.example"
    draw.text((left, y + LINE / 2), address, fill=GREEN, font=draw_font(14.0), anchor="lm")
    draw.text((x, y + 1.6 * LINE), area.title, fill=BLUE, font=draw_font(20.0), anchor="lm")
    for i, line in enumerate(area.lines):
        draw.text((x, y + (2.6 + i) * LINE), line, fill=GREY, font=draw_font(15.0), anchor="lm")


def _draw_display(draw: ImageDraw.ImageDraw, area: Area) -> None:
    x0, y0, x1, y1 = area.box
    draw.rounded_rectangle([x0, y0, x1 - 1, y1 - 1], radius=8, fill=(255, 255, 255), outline=(218, 220, 224), width=2)
    draw.text((x0 + 14, y0 + 20), "Sponsored", fill=GREY, font=draw_font(14.0), anchor="lm")
    picture = min(120, (y1 - y0) // 2)
    draw.rectangle([x0 + 14, y0 + 38, x0 + 14 + picture, y0 + 38 + picture], fill=_colour(area.site))
    for i, line in enumerate((area.title, *area.lines)):
        place = (x0 + 28 + picture, y0 + 52 + i * LINE)
        draw.text(
            place, line[: (x1 - x0 - picture) // 9], fill=BLUE if i == 0 else GREY, font=draw_font(14.0), anchor="lm"
        )
