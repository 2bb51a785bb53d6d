"""What a person saw, looked at and clicked in an AdSERP trial: scroll stops, slots, dwell, the clicked slot.

Times are in ms. Places are pixels of the full-page screenshot; the browser's log is in CSS pixels of the page, so that
what lies under the cursor changes when the page moves under it. A box holds its upper and left edge and not its lower
and right one.
"""

import re
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from fixate_jax.data.boxes import slot_at
from fixate_jax.data.readers.adserp.files import SCREENSHOT_WIDTH, Aoi, MouseLog, Trial

STOP_MS = 400
"""A scroll offset that holds so long is a stop."""
MIN_CROP = 100
"""Least height of what is seen; below it too little of the page's end is left."""
CONTRADICTED = "the clicked element's rank is not that of the result under the click, which counts"
LATER = "the choice is a later click; earlier ones were on nothing"
BY_RANK = "click beside the results; the rank of the clicked element counts"
_RESULT = re.compile(r"""@id=['"]rso['"]\]/div(?:\[(\d+)\])?(?=/|$)""")
"""The result list's child that an element belongs to."""


class Stop(NamedTuple):
    """A time during which the page did not move; ``offset`` is in CSS pixels."""

    start: int
    end: int
    offset: float


class Slots(NamedTuple):
    """The visible areas.

    Attributes:
        crop: top and bottom of what is seen.
        aois: the areas.
        boxes: what is seen of each, on the screenshot.
    """

    crop: tuple[int, int]
    aois: tuple[Aoi, ...]
    boxes: Float[np.ndarray, "slots 4"]


def clicks(mouse: MouseLog) -> list[int]:
    """Indices of the clicks in the log."""
    return [i for i, event in enumerate(mouse.event) if event == "click"]


def scroll_offsets(mouse: MouseLog) -> Float[np.ndarray, " events"]:
    """The scroll offset at each event of the log, in CSS pixels; 0 before the first scroll event."""
    scrolls = np.array([event == "scroll" for event in mouse.event], bool)
    last = np.maximum.accumulate(np.where(scrolls, np.arange(len(scrolls)), -1))
    return np.where(last >= 0, mouse.position[last, 1], 0.0)


def last_stop(mouse: MouseLog, click: int) -> Stop:
    """The last stop before the click.

    The page starts at offset 0 with the log's first event, and the last offset holds until the click. Scroll events
    that do not change the offset do not end a stop. When no offset holds for ``STOP_MS``, the whole time up to the
    click is one stop at offset 0.
    """
    scrolls = np.array([event == "scroll" for event in mouse.event[:click]], bool)
    offsets = np.concatenate([[0.0], mouse.position[:click][scrolls, 1]])
    changes = np.concatenate([[True], np.diff(offsets) != 0])
    starts = np.concatenate([mouse.time[:1], mouse.time[:click][scrolls]])[changes]
    ends = np.append(starts[1:], mouse.time[click])
    stops = np.flatnonzero(ends - starts >= STOP_MS)
    if not len(stops):
        return Stop(int(mouse.time[0]), int(mouse.time[click]), 0.0)
    last = stops[-1]
    return Stop(int(starts[last]), int(ends[last]), float(offsets[changes][last]))


def crop_of(trial: Trial, stop: Stop) -> tuple[int, int]:
    """Top and bottom of what is seen during a stop; the page's end cuts it."""
    top = round(stop.offset * trial.scale)
    return top, min(top + trial.rows, trial.size[1])


def visible_slots(aois: tuple[Aoi, ...], crop: tuple[int, int]) -> Slots:
    """The areas of which something is seen, their boxes clipped to it."""
    top, bottom = crop
    boxes = np.array([aoi.box for aoi in aois], np.float64).reshape(-1, 4)
    boxes = np.clip(boxes, [0, top, 0, top], [SCREENSHOT_WIDTH, bottom, SCREENSHOT_WIDTH, bottom])
    seen = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    return Slots(crop, tuple(aoi for aoi, s in zip(aois, seen, strict=True) if s), boxes[seen])


def _total(
    slots: Int[np.ndarray, " points"], ms: Float[np.ndarray, " points"], count: int
) -> Float[np.ndarray, " slots"]:
    on = slots >= 0
    return np.bincount(slots[on], weights=ms[on], minlength=count).astype(np.float64)


def fixation_dwell(
    fixations: Float[np.ndarray, "fixations 4"], stop: Stop, boxes: Float[np.ndarray, "slots 4"]
) -> Float[np.ndarray, " slots"]:
    """Duration of the fixations on each slot; a fixation belongs to the stop that its timestamp lies in."""
    own = fixations[(fixations[:, 0] >= stop.start) & (fixations[:, 0] <= stop.end)]
    return _total(slot_at(own[:, 1:3], boxes), own[:, 3], len(boxes))


def cursor_dwell(
    trial: Trial, click: int, stop: Stop, boxes: Float[np.ndarray, "slots 4"]
) -> Float[np.ndarray, " slots"]:
    """Time that the cursor was on each slot during a stop; it stays where it is until an event says otherwise.

    It stays on the screen, so what it is on changes with scrolling. Loading, focus and the like are logged at 0, 0, and
    a scroll event's place is the page's: the cursor's place comes from the mouse's events, its wheel's and clicks.
    """
    mouse = trial.mouse
    tells = [event.startswith("mouse") or event in ("click", "wheel") for event in mouse.event[: click + 1]]
    log = np.flatnonzero(tells)
    time = mouse.time[log].astype(np.float64)
    until = np.append(time[1:], stop.end)
    ms = np.maximum(np.minimum(until, stop.end) - np.maximum(time, stop.start), 0.0)
    moved = stop.offset - scroll_offsets(mouse)[log]
    points = (mouse.position[log] + np.stack([np.zeros_like(moved), moved], axis=1)) * trial.scale
    return _total(slot_at(points, boxes), ms, len(boxes))


def on_result(mouse: MouseLog, click: int) -> bool:
    """Whether the clicked element is in the list of results."""
    return _RESULT.search(mouse.xpath[click]) is not None


def clicked_slot(trial: Trial, click: int, slots: Slots) -> tuple[int | None, str]:
    """The clicked slot: the smallest box under the click, else the result whose rank the element tells.

    The element's rank counts whatever the page has between results, so that a box under the click is trusted more.

    Returns:
        Index of the slot, None for a click on no visible area; and what of it is in doubt, empty for nothing.
    """
    if not slots.aois:
        return None, ""
    place = trial.mouse.position[click] * trial.scale
    under = int(slot_at(place[None], slots.boxes)[0])
    match = _RESULT.search(trial.mouse.xpath[click])
    rank = 0 if match is None else int(match[1] or 1)
    told = next((i for i, aoi in enumerate(slots.aois) if aoi.kind == "organic" and aoi.rank == rank), None)
    if under < 0:
        return told, "" if told is None else BY_RANK
    return under, "" if told in (None, under) else CONTRADICTED
