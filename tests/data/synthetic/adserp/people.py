"""Made-up people who look at result pages, scroll and click, and a record of what they do while they do it.

Within a stop of scrolling the fixations are shared out by a softmax over what is seen of place from the top, column, ad
and site, and come in the order of the page from the top, with regressions. Durations are log-normal. The cursor follows
some fixations a little later. Places are screenshot pixels; those of cursor and scrolling are CSS pixels.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from tests.data.synthetic.adserp.pages import SITES, Area, ResultsPage

PLACE_SPREAD, PLACE_MEAN = 0.2, 0.35
"""How much less each area further down is looked at, over people."""
RIGHT_SPREAD, AD_SPREAD, AD_MEAN = 1.0, 0.8, -0.5
"""Pull of the right column and of ads, over people."""
TASTE_SPREAD = 0.5
"""Standard deviation over people of the taste for a site."""
FIXATION_MS, FIXATION_SPREAD = 220.0, 0.35
"""Median of a fixation's duration, and the standard deviation of its logarithm."""
OFF_TARGET = 0.08
"""How often a fixation lands anywhere on the screen."""
REGRESSION = 2.0
"""In places from the top: how much the order of fixations strays from that of the page."""
LEAST_SEEN = 24
"""Areas of which less than this height is seen are neither read nor clicked."""
PAUSE = 400
"""A view that lasts for so many ms is a stop."""
CSS, SCREEN, VIEW = 1280 / 1422, 1137, 1024
"""Screenshot pixels in a CSS pixel; height of the window in CSS pixels, and in rows of the screenshot."""
PERSON_STREAM = 2
"""Keeps the random numbers of people apart from others."""

Seen = list[tuple[Area, tuple[float, float, float, float]]]
"""Visible areas, each with what is seen of it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Person:
    """What makes one person look and click as they do.

    Attributes:
        traits: columns of ``participants.csv``.
        depth: stops of scrolling after the first, in the mean.
        place: how much less each area further down is looked at.
        right: pull of the right column.
        ads: pull of ads, mostly negative.
        tastes: for each of ``SITES``.
        follows: how often the cursor follows a fixation, and after how many ms.
    """

    traits: dict[str, str]
    depth: float
    place: float
    right: float
    ads: float
    tastes: Float[np.ndarray, " sites"]
    follows: tuple[float, float]

    def pulls(self, seen: Seen) -> Float[np.ndarray, " seen"]:
        """Logits of attention to what is seen."""
        tops = sorted({box[1] for _, box in seen})
        return np.array(
            [
                -self.place * tops.index(box[1])
                + self.right * (area.kind == "dd_right")
                + self.ads * (area.kind != "organic")
                + self.tastes[SITES.index(area.site)]
                for area, box in seen
            ]
        )


def make_person(user: int, seed: int) -> Person:
    """Draw a person; the same number and seed give the same one."""
    rng = np.random.default_rng([seed, user, PERSON_STREAM])
    traits = {
        "gender": str(rng.choice(["Female", "Male"])),
        "age": str(rng.integers(19, 60)),
        "english": str(rng.choice(["Intermediate", "Advanced", "Native speaker"])),
        "education": str(rng.choice(["High school diploma", "Bachelor's degree", "Graduate"])),
        "pref_device": str(rng.choice(["Smartphones", "Computers or laptops"])),
        "pref_website": str(rng.choice(["Amazon", "eBay", "Other"])),
        "online_shopping_freq": str(rng.choice(["Rarely", "Weekly", "Monthly"])),
    }
    return Person(
        traits=traits,
        depth=float(rng.gamma(2.0, 0.6)),
        place=float(max(0.0, rng.normal(PLACE_MEAN, PLACE_SPREAD))),
        right=float(rng.normal(0, RIGHT_SPREAD)),
        ads=float(rng.normal(AD_MEAN, AD_SPREAD)),
        tastes=rng.normal(0, TASTE_SPREAD, len(SITES)),
        follows=(float(rng.uniform(0.1, 0.6)), float(rng.uniform(80, 300))),
    )


def seen_at(page: ResultsPage, offset: int) -> tuple[tuple[int, int], Seen]:
    """Top and bottom of what is seen at a scroll offset in CSS pixels, and the areas in it."""
    top = round(offset * CSS)
    bottom = min(top + VIEW, page.height)
    seen: Seen = []
    for area in page.areas:
        x0, y0, x1, y1 = area.box
        if y0 < bottom and y1 > top:
            seen.append((area, (float(x0), float(max(y0, top)), float(x1), float(min(y1, bottom)))))
    return (top, bottom), seen


def area_under(seen: Seen, x: float, y: float) -> int | None:
    """The smallest visible area at a place."""
    found = [
        ((b[2] - b[0]) * (b[3] - b[1]), i) for i, (_, b) in enumerate(seen) if b[0] <= x < b[2] and b[1] <= y < b[3]
    ]
    return min(found)[1] if found else None


class View(NamedTuple):
    """What was seen from one scroll offset, and for how many ms eyes and cursor were on each area of it.

    Attributes:
        start, end: of the time, in ms.
        offset: in CSS pixels.
        crop: top and bottom of what is seen.
        seen: the visible areas.
        gaze, rest: ms of fixations and of the cursor on each.
    """

    start: int
    end: int
    offset: int
    crop: tuple[int, int]
    seen: Seen
    gaze: list[int]
    rest: list[int]


def view_from(page: ResultsPage, offset: int, start: int) -> View:
    """A view that begins."""
    crop, seen = seen_at(page, offset)
    return View(start, start, offset, crop, seen, [0] * len(seen), [0] * len(seen))


class Recording:
    """One trial while it happens: writes down what the devices log, and what is true.

    Attributes:
        now: the time, in ms.
        view: of the present scroll offset.
        opening: the view from offset 0 for the whole time, wherever the page is.
        paused: the last view that lasted for at least ``PAUSE`` ms, if any.
        fixations: timestamp, x, y, duration, as logged.
        events: timestamp, x, y, event, xpath, as logged.
        cursor: where it is on the screen.
    """

    def __init__(self, page: ResultsPage, person: Person, rng: np.random.Generator, start: int) -> None:
        self.page, self.person, self.rng = page, person, rng
        self.now = start
        self.view = view_from(page, 0, start)
        self.opening = view_from(page, 0, start)
        self.paused: View | None = None
        self.fixations: list[tuple[int, int, int, int]] = []
        self.events: list[tuple[int, int, int, str, str]] = []
        self.cursor: tuple[int, int] | None = None
        self.log("load", 0, 0, "/")

    def log(self, event: str, x: int, y: int, xpath: str) -> None:
        """Something the browser tells."""
        self.events.append((self.now, x, y, event, xpath))

    def point(self, event: str, x: int, y: int, xpath: str) -> None:
        """Something that happens at a place of the screen; the browser tells where that is on the page."""
        self.log(event, x, y + self.view.offset, xpath)

    def pass_time(self, ms: int) -> None:
        """Time goes by with page and cursor where they are."""
        for view in (self.view, self.opening):
            if self.cursor is not None:
                under = area_under(view.seen, self.cursor[0] * CSS, (self.cursor[1] + view.offset) * CSS)
                if under is not None:
                    view.rest[under] += ms
        self.now += ms

    def end_view(self) -> None:
        """The present view ends now; it counts if it lasted."""
        if self.now - self.view.start >= PAUSE:
            self.paused = self.view._replace(end=self.now)

    def aim(self, target: int) -> tuple[int, int]:
        """A place of a visible area, in whole CSS pixels on the screen."""
        x0, y0, x1, y1 = self.view.seen[target][1]
        for _ in range(500):
            x = round(self.rng.uniform(x0, x1) / CSS)
            y = round(self.rng.uniform(y0, y1) / CSS - self.view.offset)
            if area_under(self.view.seen, x * CSS, (y + self.view.offset) * CSS) == target:
                return x, y
        raise AssertionError(f"no place of area {target} can be pointed at")

    def move(self, x1: int, y1: int) -> None:
        """The cursor goes somewhere on the screen, in some steps."""
        x0, y0 = self.cursor or (700, 400)
        for part in (0.4, 0.8, 1.0):
            self.pass_time(int(self.rng.integers(8, 20)))
            self.cursor = round(x0 + part * (x1 - x0)), round(y0 + part * (y1 - y0))
            self.point("mouseover", *self.cursor, "//*[@id='rcnt']")
            self.point("mousemove", *self.cursor, "//*[@id='rcnt']")

    def fixate(self, x: int, y: int, ms: int | None = None) -> None:
        """A fixation, logged when it ends, as the study's are."""
        if ms is None:
            ms = round(float(np.exp(self.rng.normal(np.log(FIXATION_MS), FIXATION_SPREAD))))
        self.pass_time(int(self.rng.integers(15, 50)) + ms)
        self.fixations.append((self.now, x, y, ms))
        for view in (self.view, self.opening):
            under = area_under(view.seen, float(x), float(y))
            if under is not None:
                view.gaze[under] += ms

    def look(self, count: int) -> None:
        """Fixations over what is seen, from the top with regressions; the cursor follows some."""
        seen, crop = self.view.seen, self.view.crop
        # An area of which hardly a line is seen cannot be read.
        odds = np.exp(self.person.pulls(seen)) * [box[3] - box[1] >= LEAST_SEEN for _, box in seen]
        targets = self.rng.choice(len(odds), count, p=odds / odds.sum())
        tops = np.array([box[1] for _, box in seen])
        order = np.argsort(tops[targets] / 130 + self.rng.normal(0, REGRESSION, count), kind="stable")
        for target in targets[order].tolist():
            strays = self.rng.random() < OFF_TARGET
            x0, y0, x1, y1 = (0.0, crop[0], 1280.0, crop[1]) if strays else seen[target][1]
            self.fixate(int(self.rng.integers(round(x0), round(x1))), int(self.rng.integers(round(y0), round(y1))))
            if self.rng.random() < self.person.follows[0]:
                self.pass_time(round(self.person.follows[1]))
                self.move(*self.aim(target))

    def scroll(self, by: int) -> None:
        """The page moves in five events, the first of which ends the view, and stands still at another offset."""
        old = self.view.offset
        for step in range(1, 6):
            self.pass_time(int(self.rng.integers(12, 30)))
            if step == 1:
                self.end_view()
            # What happens between the events belongs to no view but the opening.
            offset = old + round(step * by / 5)
            self.view = view_from(self.page, offset, self.now)
            self.log("scroll", 0, offset, "/")

    def room(self) -> int:
        """How far the page can still be scrolled down."""
        return round(self.page.height / CSS) - SCREEN - self.view.offset
