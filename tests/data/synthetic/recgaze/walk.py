"""One person on one screen: where the eyes go, when the page is scrolled or a carousel swiped, and what is clicked.

The eyes walk over the posters in view, a Markov chain with a memory for what was seen: place and taste pull, the same
row is easier to stay in, far posters cost, and what was looked at often loses. After some fixations the person chooses
or moves on. Choosing weighs dwell in the view and appeal; the chosen poster is often looked at once more, then clicked.
"""

from typing import NamedTuple

import numpy as np

from fixate_jax.data.readers.recgaze import geometry
from tests.data.synthetic.recgaze import view as seen
from tests.data.synthetic.recgaze.aims import Aim
from tests.data.synthetic.recgaze.people import Person
from tests.data.synthetic.recgaze.truth import TICKS, Diary, Poster
from tests.data.synthetic.recgaze.view import Aoi

STAY = 0.4
"""Log-odds of looking at the same poster once more, before curiosity."""
PART_ROW = 1.0
"""Log-odds lost by a row that is seen in part are so many times the logarithm of the share that is seen."""
DURATION_SPREAD, SHORTEST_MS, LONGEST_MS = 0.42, 60, 1500
"""Deviation of the logarithm of a person's fixation durations, and their bounds."""
DURATION_PER_APPEAL = 0.12
"""How much longer an appealing poster is looked at: in log-ms for one unit of appeal."""
SACCADE_MS = (25, 60)
"""Least and greatest time between two fixations."""
NEAR, ON_GENRE, ON_NOTHING = 0.09, 0.04, 0.03
"""Shares of the fixations that land just below a poster, on a carousel's name, and far from anything."""
BESIDE_NAME, BESIDE_PX = 0.3, 20
"""Share of those on a name that land to the right of it, by up to so many pixels."""
BELOW_PX, FAR_PX = (1, 35), (62, 84)
"""How far below a poster those land, in pixels: near it, and more than 60 px off it and the next carousel."""
LOSS, LOSS_GOES_ON = 0.012, 0.4
"""Chance that the tracker loses the eyes at a fixation (the log then has no gaze samples), and at the next one, too."""
LATER_LOOK = 0.55
"""Fixations in a later view, as a share of those in the opening one."""
SWIPED_LOOK, NUDGED_LOOK, SEARCHING_LOOK = 0.45, 0.35, 0.4
"""Likewise after a swipe and after a small scroll; and each view's share when one film is searched for."""
APPEAL_URGE, VIEW_URGE, MOST_VIEWS = 1.2, 0.12, 14
"""Log-odds of choosing now: for a unit of the best poster's appeal, and for each earlier view; and who has seen so many
views takes what there is."""
GAZE_BONUS, TASTE_BONUS = 0.5, 1.7
"""What log(1 + s of dwell / 0.25) and a unit of appeal add to a poster's value in the click; its noise is Gumbel's."""
PART_PENALTY = 1.5
"""What a poster seen in part loses in the click."""
CONFIRM = 0.5
"""Chance of a last fixation on the chosen poster before the click, and of another one after each."""
EARLY_CLICK, NO_CLICK = 0.05, 0.015
"""Chance at each move that a film is clicked first and the search goes on; and that nothing is chosen in the end."""
NUDGE, NUDGE_PX = 0.07, (3, 60)
"""Share of moves that are a small scroll, and its least and greatest length in pixels."""
BACK, BACK_AT = 0.18, (180, 640)
"""Share of moves from the third view on that go back to the best poster so far, and how far down the viewport it then
is, in pixels."""
ON_THE_WAY, ON_THE_WAY_MS = 0.4, (60, 149)
"""Chance of a short fixation while the page scrolls, and its least and greatest duration in ms."""
NOTCH_PX, JUMP_SPREAD, HALF_SCROLL_MS = 100, 0.35, (90, 250)
"""A wheel's notch, deviation of the logarithm of a scroll's length, and the time of half a scroll."""
BACK_SWIPE, SWIPE_AGAIN, SWIPE_MS = 0.15, 0.35, (500, 700)
"""Share of swipes that go backward, chance to swipe the same carousel at once again, and how long one takes."""
IMPATIENT, IMPATIENT_MS = 0.15, (60, 499)
"""Chance of a second click on the arrow while the row still moves, and how soon after the first it comes."""
DRAG = 0.2
"""Share of swipes that are made by dragging the row; then a film of it is looked at."""
SEARCH_SWIPES = 0.75
"""Share of swipes among the moves of people who search for one film and see its carousel; they swipe no other."""
BUTTON_LOOK = 0.8
"""Chance of a fixation on the button before a swipe."""
REACTION_MS, AFTER_MS = (250, 700), (150, 500)
"""Time from a decision to the click, and from the last click to the end of the log."""
MS = TICKS // 1000
_START, _TOP_DOWN = 600, geometry.PITCH_Y
_WIDTH, _HEIGHT = geometry.POSTER


class Fixation(NamedTuple):
    """A fixation in the log.

    Attributes:
        time: when it starts, in ticks.
        ms: its duration.
        aoi: what is under it.
        closest: the nearest area within 60 px, if there is nothing under it.
        x, y: where, in page pixels.
        scroll: how far the page is scrolled.
        lost: the log has no gaze samples of it.
    """

    time: int
    ms: int
    aoi: Aoi
    closest: Aoi | None
    x: float
    y: float
    scroll: float
    lost: bool


class Click(NamedTuple):
    """A click: time in ticks, what was clicked, and where in screen pixels."""

    time: int
    aoi: Aoi
    x: float
    y: float


class State(NamedTuple):
    """The page from a time on (ticks): scroll offset and page of every carousel."""

    time: int
    scroll: float
    pages: tuple[int, ...]


class Walk:
    """A walk as it goes on; `run` takes it to its end.

    Attributes:
        fixations, clicks, states: what has happened, in order.
        diary: the same in terms of visits.
        end: time of the end, in ticks.
    """

    def __init__(self, person: Person, aim: Aim, rng: np.random.Generator, *, start: int) -> None:
        self.person, self.aim, self.rng = person, aim, rng
        self.now = start + _START * MS
        self.scroll, self.pages = 0.0, (0,) * geometry.CAROUSELS
        self.fixations: list[Fixation] = []
        self.clicks: list[Click] = []
        self.states = [State(start, self.scroll, self.pages)]
        self.diary = Diary()
        self.counts = np.zeros(aim.appeal.shape)
        self.view_ms: dict[Poster, int] = {}
        self.here: Poster | None = None
        self.losing = self.placed = False

    def run(self) -> None:
        """Look, choose or move on, until something is chosen."""
        share, searching = 1.0, 1.0 if self.aim.target is None else SEARCHING_LOOK
        for view in range(MOST_VIEWS):
            self._look(searching * share)
            if view + 1 == MOST_VIEWS or self._content(view):
                break
            if self.rng.random() < EARLY_CLICK:
                self._choose()
            share = self._move(view)
        if self.rng.random() >= NO_CLICK:
            self._choose()
        self.end = self.now + self._between(AFTER_MS)

    # Looking

    def _look(self, share: float) -> None:
        """Walk over the posters in view; ``share`` of the person's usual number of fixations."""
        posters, pull, moves = self._pulls()
        rows = np.array([row for row, _ in posters]) - 1
        places = np.array([place for _, place in posters]) - 1
        seen_before = self.counts[rows, places]
        at = posters.index(self.here) if self.here in posters else None
        for _ in range(2 + int(self.rng.poisson(max(share * self.person.look - 2, 0.5)))):
            odds = pull - self.person.curiosity * seen_before
            if at is not None:
                odds = odds + moves[at]
            total = np.exp(odds - odds.max()).cumsum()
            at = int(total.searchsorted(self.rng.random() * total[-1]))
            self._glance(posters[at])
            seen_before[at] += 1
        self.counts[rows, places] = seen_before
        self.here = None if at is None else posters[at]

    def _pulls(self) -> tuple[list[Poster], np.ndarray, np.ndarray]:
        """The posters in view, the pull of each, and the log-odds of moving from one to another."""
        person, places, pulls = self.person, [], []
        columns = np.arange(geometry.SHOWN)
        across = -person.left_pull * columns - person.centre_pull * abs(columns - 2) / 2
        for row, height in seen.poster_pixels(self.scroll):
            shown = geometry.places_on(self.pages[row - 1])
            down = max((geometry.poster_top(row) - self.scroll - geometry.FIRST_TOP) / _TOP_DOWN, 0.0)
            part = PART_ROW * np.log(height / _HEIGHT)
            appeal = self.aim.appeal[row - 1, shown[0] - 1 : shown[-1]]
            places += [(row, place) for place in shown]
            pulls.append(across - person.top_pull * down + part + person.taste_pull * appeal)
        row_of = np.array([row for row, _ in places])
        column_of = np.array([(place - 1) % geometry.SHOWN for _, place in places])
        rows_apart = abs(row_of[:, None] - row_of)
        columns_apart = abs(column_of[:, None] - column_of)
        moves = person.row_loyalty * (rows_apart == 0) - person.reach_cost * np.maximum(rows_apart, columns_apart)
        return places, np.concatenate(pulls), moves + STAY * np.eye(len(places))

    def _glance(self, poster: Poster) -> None:
        """A fixation that is meant for a poster, and mostly lands on it."""
        kind, beside = self.rng.random(), self.rng.random() < BESIDE_NAME
        row, top = poster[0], geometry.poster_top(poster[0])
        name, name_y = Aoi(seen.GENRE, row, 0), top - geometry.GENRE_TOP + geometry.GENRE_HEIGHT / 2
        nothing_y = top + _HEIGHT + float(self.rng.integers(*FAR_PX, endpoint=True))
        if kind < ON_GENRE and self._on_screen(name_y):
            first, span = (seen.GENRE_WIDTH + 1, BESIDE_PX) if beside else (0, seen.GENRE_WIDTH)
            x = geometry.FIRST_LEFT + first + span * float(self.rng.random())
            self._fixate(seen.NOWHERE if beside else name, name if beside else None, x, name_y, self._ms(0.0))
        # Under the first column there is the next carousel's name.
        elif ON_GENRE < kind < ON_GENRE + ON_NOTHING and self._on_screen(nothing_y) and poster[1] % geometry.SHOWN != 1:
            self._fixate(seen.NOWHERE, None, self._across(poster), nothing_y, self._ms(0.0))
        else:
            self._fixate_poster(poster, near=kind > 1 - NEAR)

    def _fixate_poster(self, poster: Poster, *, near: bool = False, kept: bool = False) -> None:
        """A fixation on a poster, or just below it if ``near``; the tracker does not lose it if ``kept``."""
        row, place = poster
        top, aoi = geometry.poster_top(row), Aoi(seen.MOVIE, row, place)
        ms = self._ms(float(self.aim.appeal[row - 1, place - 1]))
        y = top + _HEIGHT + float(self.rng.integers(*BELOW_PX, endpoint=True))
        if near and self._on_screen(y):
            self._fixate(seen.NOWHERE, aoi, self._across(poster), y, ms, kept=kept)
        else:
            self._fixate(aoi, None, *self._point_on(poster), ms, kept=kept)
        self.view_ms[poster] = self.view_ms.get(poster, 0) + ms

    def _fixate(self, aoi: Aoi, closest: Aoi | None, x: float, y: float, ms: int, *, kept: bool = False) -> None:
        self.losing = bool(self.rng.random() < (LOSS_GOES_ON if self.losing else LOSS)) and not kept
        self.placed = self.placed or not self.losing
        y = seen.eighth(y)
        self.fixations.append(Fixation(self.now, ms, aoi, closest, x, y, self.scroll, self.losing))
        meant = aoi if closest is None else closest
        poster = (meant.carousel, meant.place) if meant.type == seen.MOVIE else None
        self.diary.fixation(self.now, ms, poster, scroll=self.scroll, pages=self.pages, lost=self.losing)
        self.now += ms * MS + self._between(SACCADE_MS)

    # Choosing

    def _content(self, view: int) -> bool:
        """Is the person ready to choose in this view?"""
        if self.aim.target is not None and self.aim.target in self.view_ms:
            return True
        whole = seen.full_rows(self.scroll)
        appeals = [self.aim.appeal[row - 1, place - 1] for row, place in self.view_ms if row in whole]
        if not appeals or self.aim.target is not None:
            return False
        odds = self.person.decisiveness + APPEAL_URGE * (max(appeals) - 1) + VIEW_URGE * view
        return bool(self.rng.random() < 1 / (1 + np.exp(-odds)))

    def _choose(self) -> None:
        """Click a film of this view."""
        if not self.view_ms:
            return
        whole = seen.full_rows(self.scroll)
        candidates = list(self.view_ms)
        values = [
            GAZE_BONUS * np.log1p(self.view_ms[row, place] / 250)
            + TASTE_BONUS * self.aim.appeal[row - 1, place - 1]
            - PART_PENALTY * (row not in whole)
            for row, place in candidates
        ]
        chosen = candidates[int(np.argmax(values + self.rng.gumbel(size=len(values))))]
        if self.aim.target in self.view_ms:
            chosen = self.aim.target
        while self.rng.random() < CONFIRM:
            self._fixate_poster(chosen)
        if not self.placed:  # the log must tell what was on the screen
            self._fixate_poster(chosen, kept=True)
        self.now += self._between(REACTION_MS)
        x, y = self._point_on(chosen)
        self.clicks.append(Click(self.now, Aoi(seen.MOVIE, *chosen), x, y - self.scroll))
        self.diary.click(chosen)
        self.now += self._between(REACTION_MS)

    # Moving on

    def _move(self, view: int) -> float:
        """Scroll or swipe; returns the share of the usual number of fixations in what comes up."""
        kind = self.rng.random()
        if kind < NUDGE:
            length = self.rng.uniform(*NUDGE_PX) * self.rng.choice([-1, 1])
            self._turn(seen.settle(self.scroll + length, whole=self.person.wheel), self.pages)
            return NUDGED_LOOK
        searching = SEARCH_SWIPES * self._near_target()
        if self.rng.random() < (self.person.swipe_readiness if self.aim.target is None else searching):
            self._swipe()
            return SWIPED_LOOK
        if view >= 2 and kind > 1 - BACK and self.aim.target is None:
            tried = np.where(self.counts > 0, self.aim.appeal, -np.inf)
            row, _ = divmod(int(tried.argmax()), geometry.MOVIES)
            self._scroll_to(geometry.poster_top(row + 1) - self.rng.uniform(*BACK_AT))
        else:
            self._scroll_on()
        return LATER_LOOK

    def _scroll_on(self) -> None:
        """Further down; from the page's end, up again."""
        length = self.person.jump_px * np.exp(self.rng.normal(0, JUMP_SPREAD))
        if self.person.wheel:
            length = max(round(length / NOTCH_PX), 1) * NOTCH_PX
        up = self.scroll >= seen.MAX_SCROLL
        self._scroll_to(self.scroll - 2 * length if up else self.scroll + length)

    def _scroll_to(self, offset: float) -> None:
        """Scroll, with a short look on the way at times."""
        goal = seen.settle(offset, whole=self.person.wheel)
        half = self._between(HALF_SCROLL_MS)
        if self.rng.random() < ON_THE_WAY:
            self.now += half
            between = self.scroll + (goal - self.scroll) * self.rng.uniform(0.3, 0.8)
            self._turn(seen.settle(between, whole=False), self.pages)
            posters, pull, _ = self._pulls()
            poster = posters[int(np.argmax(pull + self.rng.gumbel(size=len(pull))))]
            aoi = Aoi(seen.MOVIE, *poster)
            self._fixate(aoi, None, *self._point_on(poster), int(self.rng.integers(*ON_THE_WAY_MS)))
        self.now += half
        self._turn(goal, self.pages)

    def _swipe(self) -> None:
        """Swipe a fully visible carousel, the best liked one most likely, once or several times."""
        rows = seen.full_rows(self.scroll)
        liking = [self.aim.appeal[row - 1].mean() + (self.here is not None and self.here[0] == row) for row in rows]
        row = rows[int(np.argmax(np.array(liking) + self.rng.gumbel(size=len(rows))))]
        if self.aim.target is not None:
            row = self.aim.target[0]
        while True:
            forward = bool(self.rng.random() >= BACK_SWIPE)
            turned = (self.pages[row - 1] + (1 if forward else -1)) % geometry.PAGES
            pages = (*self.pages[: row - 1], turned, *self.pages[row:])
            if self.rng.random() < DRAG:
                self._turn(self.scroll, pages)
                self.diary.dragged += 1
                self.now += self._between(SWIPE_MS)
                self._fixate_poster((row, geometry.places_on(turned)[0]), kept=True)
                break
            left = geometry.FORWARD_LEFT if forward else geometry.BACKWARD_LEFT
            aoi = Aoi(seen.FORWARD if forward else seen.BACKWARD, row, 0)
            x = left + geometry.SWIPE / 2
            y = geometry.poster_top(row) + geometry.SWIPE_TOP + geometry.SWIPE / 2
            if self.rng.random() < BUTTON_LOOK:
                self._fixate(aoi, None, x, y, self._ms(0.0))
            self.clicks.append(Click(self.now, aoi, x, y - self.scroll))
            if self.rng.random() < IMPATIENT:
                self.clicks.append(Click(self.now + self._between(IMPATIENT_MS), aoi, x, y - self.scroll))
                self.diary.ignored += 1
            self._turn(self.scroll, pages)
            self.now += self._between(SWIPE_MS)
            if self.rng.random() >= SWIPE_AGAIN:
                break
        self.here = (row, geometry.places_on(self.pages[row - 1])[0])

    def _near_target(self) -> bool:
        """Is the carousel in full view that holds what is searched for?"""
        return self.aim.target is not None and self.aim.target[0] in seen.full_rows(self.scroll)

    def _turn(self, scroll: float, pages: tuple[int, ...]) -> None:
        """From now on the page stands so."""
        self.scroll, self.pages, self.placed = scroll, pages, False
        self.states.append(State(self.now, scroll, pages))
        self.view_ms, self.here = {}, None

    # Small things

    def _ms(self, appeal: float) -> int:
        log = np.log(self.person.fixation_ms) + self.rng.normal(0, DURATION_SPREAD) + DURATION_PER_APPEAL * appeal
        return int(np.clip(np.rint(np.exp(log)), SHORTEST_MS, LONGEST_MS))

    def _point_on(self, poster: Poster) -> tuple[float, float]:
        """A point on what is seen of a poster, in page pixels."""
        top = geometry.poster_top(poster[0])
        low = max(top, self.scroll + seen.HIDDEN_ABOVE) + 0.5
        high = min(top + _HEIGHT, self.scroll + seen.SEEN_TO) - 0.5
        return self._across(poster), low + (high - low) * float(self.rng.beta(2, 2))

    def _across(self, poster: Poster) -> float:
        return geometry.poster_left(poster[1]) + _WIDTH * float(self.rng.beta(2, 2))

    def _on_screen(self, y: float) -> bool:
        return self.scroll + seen.HIDDEN_ABOVE <= y < self.scroll + seen.SEEN_TO

    def _between(self, bounds: tuple[int, int]) -> int:
        """A time in ticks between two numbers of ms."""
        return MS * int(self.rng.integers(*bounds, endpoint=True))
