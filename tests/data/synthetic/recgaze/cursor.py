"""The cursor of a walk: it goes along to some of what the eyes look at, late, and is at every click.

It stays where it is on the screen while the page moves under it.
"""

import numpy as np

from fixate_jax.data.readers.recgaze.geometry import VIEWPORT
from tests.data.synthetic.recgaze.people import Person
from tests.data.synthetic.recgaze.truth import CursorSample
from tests.data.synthetic.recgaze.view import area_under
from tests.data.synthetic.recgaze.walk import MS, Walk

EVERY_MS = 125
"""Time between two entries of the cursor's place in ms, and so what each stands for; in s exact in binary."""
MEANWHILE_MS, MEANWHILE_S = (10, 26, 42), 1 / 64
"""Entries so long after the start of a fixation that the tracker has lost: three rows without a gaze sample, so that
its scroll offset cannot be told. And what each stands for in s."""
LAG_SPREAD = 0.35
"""Deviation of the logarithm of a person's delays."""
MISS_PX = (60.0, 40.0)
"""Deviation of the cursor's place from the gaze's, across and down, in pixels."""
BEFORE_CLICK_MS = 150
"""The cursor is at what will be clicked so long before the click."""
FIRST_PLACE_PX = ((500.0, 1400.0), (380.0, 1040.0))
"""Where it is at first: bounds across and down, in screen pixels."""
UNLOGGED = 0.06
"""Share of the tasks in which the cursor's place was not logged, except while the eyes were lost."""
_HALF = MS // 2


def cursor_of(walk: Walk, person: Person, rng: np.random.Generator) -> list[CursorSample]:
    """The cursor's entries in a walk, in order."""
    moved, places = _moves(walk, person, rng)
    start = walk.states[0].time
    regular = np.arange(start, walk.end, EVERY_MS * MS) + _HALF
    meanwhile = np.array([f.time + ms * MS + _HALF for f in walk.fixations if f.lost for ms in MEANWHILE_MS], int)
    clicks = np.array([click.time for click in walk.clicks], int)
    if rng.random() < UNLOGGED:
        regular, clicks = regular[:0], clicks[:0]
    times = np.concatenate([regular, meanwhile, clicks])
    seconds = np.repeat([EVERY_MS / 1000, MEANWHILE_S, EVERY_MS / 1000], [len(regular), len(meanwhile), len(clicks)])
    order = np.argsort(times, kind="stable")
    times, seconds = times[order], seconds[order]
    x, y = places[np.searchsorted(moved, times, side="right") - 1].T
    # A swipe turns its carousel at the time of its click, and what is clicked is what was there before.
    state = np.searchsorted([s.time for s in walk.states[1:]], times, side="left")
    scroll = np.array([s.scroll for s in walk.states])[state]
    pages = np.array([s.pages for s in walk.states])[state]
    return [
        CursorSample(time, aoi, second)
        for time, aoi, second in zip(times.tolist(), area_under(x, y + scroll, pages), seconds.tolist(), strict=True)
    ]


def _moves(walk: Walk, person: Person, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """When the cursor jumps (ticks, ascending), and where to (screen pixels)."""
    gaze = np.array([[f.time, f.x, f.y - f.scroll] for f in walk.fixations])
    gaze = gaze[rng.random(len(gaze)) < person.cursor_following]
    lag = person.cursor_lag_ms * np.exp(rng.normal(0, LAG_SPREAD, len(gaze)))
    followed = gaze[:, 1:] + rng.normal(0, MISS_PX, (len(gaze), 2))
    clicks = np.array([[c.time - BEFORE_CLICK_MS * MS, c.x, c.y] for c in walk.clicks]).reshape(-1, 3)
    (left, right), (upper, lower) = FIRST_PLACE_PX
    first = np.array([[walk.states[0].time, rng.uniform(left, right), rng.uniform(upper, lower)]])
    delayed = np.column_stack([np.floor(gaze[:, 0] + lag * MS), followed])
    # What would fall between the arrival at a button or film and the click on it is not followed.
    arrivals = np.concatenate([[-np.inf], clicks[:, 0]])
    arrived = arrivals[np.searchsorted(arrivals, delayed[:, 0], side="right") - 1]
    delayed = delayed[delayed[:, 0] > arrived + BEFORE_CLICK_MS * MS]
    moves = np.concatenate([first, delayed, clicks])
    moves = moves[np.argsort(moves[:, 0], kind="stable")]
    places = np.clip(moves[:, 1:], 0.0, np.array(VIEWPORT) - 1.0)
    return moves[:, 0], places
