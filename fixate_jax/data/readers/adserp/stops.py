"""What a person saw, looked at and clicked in an AdSERP trial: scroll stops, slots, dwell, the clicked slot.

Times are in ms. Places are pixels of the full-page screenshot; the browser's log is in CSS pixels, ``SCALE`` of a
screenshot pixel each. A box holds its upper and left edge and not its lower and right one.
"""

import re
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from fixate_jax.data.boxes import slot_at
from fixate_jax.data.readers.adserp.files import SCREENSHOT_WIDTH, Aoi, MouseLog

SCALE = 1280 / 1422
"""Screenshot pixels in a CSS pixel."""
VIEWPORT_HEIGHT = round(1024 * SCALE)
STOP_MS = 400
"""A scroll offset that holds so long is a stop."""
MIN_CROP = 100
"""Least height of what is seen; below it too little of the page's end is left."""
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


def first_click(mouse: MouseLog) -> int | None:
    """Index of the first click in the log."""
    return mouse.event.index("click") if "click" in mouse.event else None


def scroll_offset(mouse: MouseLog, click: int) -> float:
    """The scroll offset at the click, in CSS pixels."""
    scrolls = [i for i, event in enumerate(mouse.event[:click]) if event == "scroll"]
    return float(mouse.position[scrolls[-1], 1]) if scrolls else 0.0


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


def crop_of(stop: Stop, page_height: int) -> tuple[int, int]:
    """Top and bottom of what is seen during a stop; the page's end cuts it."""
    top = round(stop.offset * SCALE)
    return top, min(top + VIEWPORT_HEIGHT, page_height)


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
    mouse: MouseLog, click: int, stop: Stop, boxes: Float[np.ndarray, "slots 4"]
) -> Float[np.ndarray, " slots"]:
    """Time that the cursor was on each slot during a stop; it stays where it is until an event says otherwise.

    Loading, focus and the like are logged at 0, 0, and a scroll event's place is the page's: the cursor's place comes
    from mouse events and clicks alone.
    """
    log = np.flatnonzero([event.startswith("mouse") or event == "click" for event in mouse.event[: click + 1]])
    time = mouse.time[log].astype(np.float64)
    until = np.append(time[1:], stop.end)
    ms = np.maximum(np.minimum(until, stop.end) - np.maximum(time, stop.start), 0.0)
    points = (mouse.position[log] + [0.0, stop.offset]) * SCALE
    return _total(slot_at(points, boxes), ms, len(boxes))


def clicked_slot(mouse: MouseLog, click: int, slots: Slots) -> int | None:
    """The clicked slot: the result whose rank the element tells, else the smallest box under the click.

    Returns:
        Index of the slot; None for a click on no visible area.
    """
    match = _RESULT.search(mouse.xpath[click])
    if match is not None:
        rank = int(match[1] or 1)
        for slot, aoi in enumerate(slots.aois):
            if aoi.kind == "organic" and aoi.rank == rank:
                return slot
    if not slots.aois:
        return None
    place = (mouse.position[click] + [0.0, scroll_offset(mouse, click)]) * SCALE
    slot = int(slot_at(place[None], slots.boxes)[0])
    return None if slot < 0 else slot
