"""Pages of RecGaze: posters are on their boxes to the pixel, every run gives the same bytes, bad files are named."""

import csv
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from fixate_jax.data.carousel import GENRES as CAROUSEL_GENRES
from fixate_jax.data.carousel import Poster, draw_carousels
from fixate_jax.data.glyphs import GLYPHS
from fixate_jax.data.readers.recgaze import pages as drawing
from fixate_jax.data.readers.recgaze.geometry import VIEWPORT, places_on, poster_top, slot_boxes
from fixate_jax.data.readers.recgaze.pages import (
    BACKGROUND,
    Viewport,
    draw_viewport,
    render_viewports,
)
from fixate_jax.data.readers.recgaze.posters import GENRES, OTHER, draw_stand_in, wrap
from fixate_jax.data.readers.recgaze.screens import Carousel, Movie, Screen
from fixate_jax.data.render import draw_font
from fixate_jax.data.store import encode_image
from fixate_jax.errors import DataError

LETTERS = "ABCDEFGHIJKLMNO"
FIRST = (0,) * 10
SWIPED = (0, 1, 2, 0, 1, 2, 1, 0, 2, 1)
VIEWS = [(0.0, FIRST), (250.5, FIRST), (690.0, SWIPED), (2400.0, SWIPED)]


def screen_of(genres: Sequence[str] = ("Drama", "Comedy")) -> Screen:
    """A screen of made-up movies."""
    return tuple(
        Carousel(
            f"Genre {c}", tuple(Movie(100 * c + p, f"Movie {c} {p} (1999)", tuple(genres), None) for p in range(1, 16))
        )
        for c in range(1, 11)
    )


def coloured(folder: Path) -> Screen:
    """A screen whose posters are files of one colour each, no two alike and none like anything else on the page."""
    screen = []
    for c in range(1, 11):
        movies = []
        for p in range(1, 16):
            Image.new("RGB", (16, 9), colour_of(c, p)).save(folder / f"{c}-{p}.png")
            movies.append(Movie(100 * c + p, f"Movie {c} {p}", ("Drama",), f"{c}-{p}.png"))
        screen.append(Carousel("Drama", tuple(movies)))
    return tuple(screen)


def colour_of(carousel: int, place: int) -> tuple[int, int, int]:
    return 90 + 15 * carousel, 10 * place, 255


def extents(image: Image.Image) -> dict[tuple[int, int], list[int]]:
    """Left, upper, right and lower edge of every poster of ``coloured`` that is in a picture, without holes."""
    codes = np.asarray(image).astype(np.int32) @ np.array([65536, 256, 1], np.int32)
    present, found = set(np.unique(codes).tolist()), {}
    for slot in ((c, p) for c in range(1, 11) for p in range(1, 16)):
        red, green, blue = colour_of(*slot)
        code = 65536 * red + 256 * green + blue
        if code in present:
            rows, columns = np.nonzero(codes == code)
            found[slot] = [int(v) for v in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)]
            assert (codes[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] == code).all()
    return found


@pytest.fixture(scope="module")
def poster_folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Screen, Path]:
    """The screen of ``coloured``, and its folder."""
    folder = tmp_path_factory.mktemp("posters")
    return coloured(folder), folder


@pytest.mark.parametrize("width", [1920, 1100, 480])
@pytest.mark.parametrize(("scroll", "pages"), VIEWS)
def test_posters_fill_their_boxes_to_the_pixel(
    poster_folder: tuple[Screen, Path], scroll: float, pages: tuple[int, ...], width: int
) -> None:
    screen, folder = poster_folder
    image = draw_viewport(screen, scroll=scroll, horizontal_pages=pages, labels={}, width=width, posters=folder)
    assert image.size == (width, round(width * 1080 / 1920)) and image.mode == "RGB"
    found, size = extents(image), np.array([*image.size, *image.size])
    shown = [(c, p) for c in range(1, 11) for p in places_on(pages[c - 1])]
    boxes = {slot: np.clip(slot_boxes([slot], scroll=scroll)[0] * size, 0, size) for slot in shown}
    assert set(found) <= set(shown) and len(found) >= 15
    assert {slot for slot, box in boxes.items() if box[3] - box[1] >= 1} <= set(found)
    for slot, edges in found.items():
        assert np.abs(boxes[slot] - edges).max() <= 0.5


def test_rows_reaching_over_both_edges_are_drawn_in_part(poster_folder: tuple[Screen, Path]) -> None:
    """At 250 row 1 (176 to 369) ends at 119, and row 4 (from 1195) begins at 945 and runs off the picture."""
    screen, folder = poster_folder
    found = extents(draw_viewport(screen, scroll=250.0, horizontal_pages=FIRST, labels={}, width=1920, posters=folder))
    assert found[1, 1] == [76, 0, 418, 119] and found[4, 5] == [1480, 945, 1822, 1080]
    assert {carousel for carousel, _ in found} == {1, 2, 3, 4}


@pytest.mark.parametrize(("scroll", "pages"), VIEWS)
def test_posters_land_where_the_study_measured_them(
    poster_folder: tuple[Screen, Path], shared_data: Path, scroll: float, pages: tuple[int, ...]
) -> None:
    screen, folder = poster_folder
    found = extents(draw_viewport(screen, scroll=scroll, horizontal_pages=pages, labels={}, width=1920, posters=folder))
    with (shared_data / "recgaze_screens" / "aoi_data.csv").open(newline="") as handle:
        measured = [row for row in csv.DictReader(handle) if row["AOI_type"] == "Movie"]
    boxes = {}
    for row in measured:
        carousel, page = int(row["Row_num"]), int(row["Page"]) - 1
        top, bottom = (float(row[f"AOI_{end}_y"]) - scroll for end in ("min", "max"))
        if page == pages[carousel - 1] and bottom >= 1 and top <= VIEWPORT[1] - 1:
            # The file gives a carousel's pages side by side, each as wide as the viewport.
            left, right = (float(row[f"AOI_{end}_x"]) - page * VIEWPORT[0] for end in ("min", "max"))
            boxes[carousel, int(row["Row_position"])] = np.array([left, max(top, 0), right, min(bottom, VIEWPORT[1])])
    assert len(measured) == 150 and set(boxes) == set(found)
    for slot, edges in found.items():
        assert np.abs(boxes[slot] - edges).max() <= (0.5 if scroll % 1 else 0)


@pytest.mark.parametrize("width", [1100, 480])
def test_letters_stand_under_their_posters_and_nowhere_else(width: int) -> None:
    screen, labels = screen_of(), {(c, p): LETTERS[5 * (c - 1) + p - 1] for c in (1, 2, 3) for p in range(1, 6)}
    some = {slot: letter for slot, letter in labels.items() if slot != (2, 3)}
    with_all, with_some, without = (
        np.asarray(draw_viewport(screen, scroll=0.0, horizontal_pages=FIRST, labels=chosen, width=width), np.int64)
        for chosen in (labels, some, {})
    )
    height, changed = with_all.shape[0], (with_all != without).any(axis=2)
    for (carousel, place), box in zip(labels, slot_boxes(list(labels), scroll=0.0), strict=True):
        x0, x1 = round(box[0] * width), round(box[2] * width)
        y0, y1 = round(poster_top(carousel) / 1080 * height), round(box[3] * height)
        gap = changed[y1 : y1 + round(76 / 1080 * height), x0:x1]
        assert gap.any() and not changed[y0:y1, x0:x1].any(), (carousel, place)
        rows = np.nonzero(gap.any(axis=1))[0]
        assert rows[-1] - rows[0] + 1 >= 7
        changed[y1 : y1 + round(76 / 1080 * height), x0:x1] = False
        if (carousel, place) == (2, 3):
            assert (with_some == without)[y1 : y1 + len(gap), x0:x1].all()
    assert not changed.any()


def test_a_letter_stays_whole_where_the_viewport_ends_with_the_poster() -> None:
    """At 308 row 4 ends with the viewport: its letters lie on the posters' lower edge, on the page's colour."""
    arguments = {"scroll": 308.0, "horizontal_pages": FIRST, "width": 1920}
    plain = np.asarray(draw_viewport(screen_of(), labels={}, **arguments))  # type: ignore[arg-type]
    page = np.asarray(draw_viewport(screen_of(), labels={(4, 2): "H"}, **arguments))  # type: ignore[arg-type]
    rows, columns = np.nonzero((plain != page).any(axis=2))
    assert rows.min() >= 1040 and rows.max() == 1079
    assert columns.min() >= 427 and columns.max() < 769
    assert (page[rows.min(), columns.min()] == BACKGROUND).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": {(4, 1): "A"}}, "place 1 of carousel 4 is not in the viewport at scroll 0"),
        ({"labels": {(1, 6): "A"}}, "place 6 of carousel 1 is not in the viewport"),
        ({"horizontal_pages": (0,) * 9}, "horizontal_pages: must be 10 numbers in 0..2"),
        ({"horizontal_pages": (3, *FIRST[1:])}, "horizontal_pages: must be 10 numbers in 0..2"),
        ({"scroll": float("nan")}, "scroll: must be a number of pixels"),
        ({"screen": screen_of()[:9]}, "a screen has 10 carousels, got 9"),
    ],
)
def test_what_is_not_on_the_screen_is_refused(changes: dict[str, object], message: str) -> None:
    arguments = {"screen": screen_of(), "scroll": 0.0, "horizontal_pages": FIRST, "labels": {}, "width": 480} | changes
    screen = arguments.pop("screen")
    with pytest.raises(DataError, match=message):
        draw_viewport(screen, **arguments)  # type: ignore[arg-type]


def test_what_cannot_be_seen_does_not_change_the_picture() -> None:
    pages = (*FIRST[:5], 1, *FIRST[6:])
    screen = screen_of()
    other = (*screen[:5], screen_of(("War",))[5], *screen[6:])
    made: list[bytes] = []
    ids = render_viewports(
        [
            Viewport(screen=s, scroll=0.0, horizontal_pages=p, labels={}, width=480)
            for s, p in ((screen, FIRST), (screen, pages), (other, FIRST), (screen, (1, *FIRST[1:])))
        ],
        lambda png: made.append(png) or len(made),  # type: ignore[func-returns-value]
    )
    assert ids == [1, 1, 1, 2] and made[0] != made[1]


def test_the_same_bytes_on_every_run_and_for_any_number_of_workers() -> None:
    jobs = [
        Viewport(screen=screen_of(), scroll=20.0 * (i % 26), horizontal_pages=FIRST, labels={(2, 1): "A"}, width=200)
        for i in range(30)
    ]
    assert len({job.scroll for job in jobs}) > drawing.FEW
    runs = []
    for workers in (1, 1, 2):
        written: list[str] = []

        def out(png: bytes, written: list[str] = written) -> str:
            written.append(hashlib.sha256(png).hexdigest())
            return written[-1]

        runs.append((render_viewports(jobs, out, workers=workers), written))
    assert runs[0] == runs[1] == runs[2]
    ids, written = runs[0]
    assert len(written) == 26 and ids == [*written, *written[:4]]


def test_a_broken_poster_is_named_by_every_worker(tmp_path: Path) -> None:
    screen = coloured(tmp_path)
    (tmp_path / "3-2.png").write_bytes(b"no picture")
    jobs = [
        Viewport(screen=screen, scroll=float(s), horizontal_pages=FIRST, labels={}, width=200, posters=tmp_path)
        for s in range(drawing.FEW + 2)
    ]
    with pytest.raises(DataError, match=r"3-2\.png: the poster cannot be read"):
        render_viewports(jobs, len, workers=2)


def test_a_missing_poster_is_drawn_and_a_truncated_one_is_an_error(tmp_path: Path) -> None:
    screen = coloured(tmp_path)
    (tmp_path / "1-1.png").unlink()
    view = {"scroll": 0.0, "horizontal_pages": FIRST, "labels": {}, "width": 480, "posters": tmp_path}
    page = np.asarray(draw_viewport(screen, **view))  # type: ignore[arg-type]
    drawn = np.asarray(draw_stand_in(screen[0].movies[0], (86, 48)))
    x0, y0 = 19, 44
    assert (page[y0 : y0 + 48, x0 : x0 + 86] == drawn).all()
    noise = np.random.default_rng(0).integers(0, 255, (193, 342, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.jpg")
    (tmp_path / "2-1.png").write_bytes((tmp_path / "whole.jpg").read_bytes()[:4000])
    drawing.draw_poster.cache_clear()
    with pytest.raises(DataError, match=r"2-1\.png: the poster cannot be read .*remove it to have one drawn"):
        draw_viewport(screen, **view)  # type: ignore[arg-type]


def test_a_large_photograph_is_drawn_as_if_it_had_been_decoded_whole(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (45, 80, 3), np.uint8)
    Image.fromarray(noise).resize((1280, 720), Image.Resampling.BICUBIC).save(tmp_path / "a.jpg", quality=90)
    drawn = drawing.draw_poster(Movie(1, "A", (), "a.jpg"), (196, 111), tmp_path)
    with Image.open(tmp_path / "a.jpg") as image:
        whole = ImageOps.fit(image, drawn.size, Image.Resampling.LANCZOS)
    difference = np.asarray(drawn, np.float64) - np.asarray(whole)
    assert drawn.size == (196, 111) and np.sqrt((difference**2).mean()) < 2 < 20 < np.asarray(whole).std()


def test_stand_ins_are_stable_and_tell_movies_and_genres_apart() -> None:
    def draw(title: str, *genres: str) -> bytes:
        return encode_image(draw_stand_in(Movie(1, title, genres, None), (196, 111)))

    assert draw_stand_in(Movie(1, "X", (), None), (9, 9)).size == (9, 9)
    assert draw("Alien (1979)", "Horror") == draw("Alien (1979)", "Horror")
    assert draw("Alien (1979)", "Horror") != draw("Alien (1980)", "Horror"), "the year is part of the seed"
    assert draw("Solaris", "Science Fiction") == draw("Solaris", "Sci-Fi")
    pictures = {draw("Alien", genre) for genre in [*GENRES, "no such genre"]}
    assert len(pictures) == len(GENRES) + 1 == 22


def test_every_genre_has_a_colour_and_a_glyph_of_its_own() -> None:
    colours, glyphs = zip(*GENRES.values(), strict=True)
    assert len(set(colours)) == len(set(glyphs)) == len(GENRES) and set(glyphs) <= set(GLYPHS)
    assert OTHER[0] not in colours
    assert GENRES["Action"] == CAROUSEL_GENRES["action"] and GENRES["Sci-Fi"] == CAROUSEL_GENRES["science"]


def test_carousel_pages_are_drawn_as_before_the_glyphs_were_shared() -> None:
    """Their content is what the shipped tiny backbones have learned to read."""
    posters = [Poster(genre, i % 4) for i, genre in enumerate([*CAROUSEL_GENRES, *list(CAROUSEL_GENRES)[:5]])]
    pixels = draw_carousels(posters, list(LETTERS), width=320).tobytes()
    assert hashlib.sha256(pixels).hexdigest()[:16] == CAROUSEL_DIGEST


CAROUSEL_DIGEST = "84e9beb48d94df7d"


@pytest.mark.parametrize("size", [8.0, 20.0])
def test_titles_are_wrapped_to_the_width(size: float) -> None:
    title = "Borat: Cultural Learnings of America for Make Benefit Glorious Nation of Kazakhstan"
    lines = wrap(title, size, 90.0)
    assert all(draw_font(size).getlength(line) <= 90 for line in lines) and all(lines)
    assert "".join(lines).replace(" ", "") == title.replace(" ", "")
