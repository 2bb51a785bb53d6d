"""What the report's page viewer shows: sessions with the page, the person's gaze, and what each method does with it."""

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from fixate_jax.data.session import StoredSession
from fixate_jax.errors import DataError

WIDEST = 800
"""Pixels; wider pages are made smaller before they are put into a report, as screens show them no wider."""
QUALITY = 80
"""Of WebP, at which drawn text stays legible."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """What one method does with one session, free-running.

    Attributes:
        relevance: of each token in its place on the page; its magnitude is shown.
        slot_attention: a, on each slot.
        probabilities: of a click on each slot, over the page's slots.
        answer: slot that the method would click.
        scores: names of metrics → values in this session, as they are to be shown.
    """

    relevance: Float[np.ndarray, "_rows _columns"]
    slot_attention: Float[np.ndarray, " _slots"]
    probabilities: Float[np.ndarray, " _slots"]
    answer: int
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SessionView:
    """One session and what every method does with it.

    Attributes:
        session: page, boxes, labels and click.
        gaze: g, share of the dwell time on each slot.
        looks: method → what it does.
    """

    session: StoredSession
    gaze: Float[np.ndarray, " _slots"]
    looks: Mapping[str, Look]


@dataclass(frozen=True, kw_only=True)
class Viewer:
    """The sessions that can be chosen in a report.

    Attributes:
        views: the sessions; users are listed in the order in which they come.
        methods: method → its name on the page, in order.
        image: from a page id to the page.
        totals: user → sessions there are in the split, shown or not.
        split: whose sessions these are.
        signal: what the gaze was made of, e.g. fixation.
    """

    views: Sequence[SessionView]
    methods: Mapping[str, str]
    image: Callable[[str], Image.Image]
    totals: Mapping[str, int]
    split: str
    signal: str

    def count(self) -> str:
        """How many of all sessions can be chosen, as a sentence."""
        shown: dict[str, int] = {}
        for view in self.views:
            shown[view.session.user_id] = shown.get(view.session.user_id, 0) + 1
        here, there = sum(shown.values()), sum(self.totals.values())
        if here == there:
            return f"All {there} {self.split} sessions of all {len(shown)} users."
        few, of = (_range([counts[user] for user in shown]) for counts in (shown, self.totals))
        people = f"each of the {len(shown)} users"
        if len(shown) < len(self.totals):
            people = f"each of {len(shown)} users, of {len(self.totals)} that there are"
        return f"{few} of {of} {self.split} sessions of {people}; {here} sessions of {there}."


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"


def viewer_data(viewer: Viewer) -> dict[str, Any]:
    """The viewer as plain data for the report's script; every page is in it once.

    Raises:
        DataError: a session lacks a method, or what a method does with it does not fit its slots.
    """
    pages: dict[str, dict[str, Any]] = {}
    users = list(dict.fromkeys(view.session.user_id for view in viewer.views))
    sessions = []
    for view in viewer.views:
        session = view.session
        _check(view, viewer.methods)
        if session.page_id not in pages:
            pages[session.page_id] = page_data(viewer.image(session.page_id))
        sessions.append(
            {
                "id": session.session_id,
                "user": users.index(session.user_id),
                "page": list(pages).index(session.page_id),
                "boxes": _numbers(session.boxes),
                "labels": list(session.labels),
                "click": int(session.click),
                "gaze": _numbers(view.gaze),
                "looks": [_look(view.looks[name]) for name in viewer.methods],
            }
        )
    return {
        "split": viewer.split,
        "signal": viewer.signal,
        "methods": list(viewer.methods.values()),
        "users": [{"name": user, "total": viewer.totals[user]} for user in users],
        "pages": list(pages.values()),
        "sessions": sessions,
    }


def quantised(relevance: Float[np.ndarray, "rows columns"]) -> UInt8[np.ndarray, "rows columns"]:
    """Magnitudes as whole numbers from 0 to 255, the largest of the page being 255."""
    magnitude = np.abs(relevance)
    return np.rint(255 * magnitude / max(float(magnitude.max()), 1e-30)).astype(np.uint8)


def data_uri(image: Image.Image) -> str:
    """An image in the smaller of PNG and WebP, as an address that holds it all."""
    found = []
    for kind, options in (("PNG", {"optimize": True}), ("WEBP", {"quality": QUALITY, "method": 4})):
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        found.append((len(buffer.getvalue()), kind.lower(), buffer.getvalue()))
    _, kind, best = min(found)
    return f"data:image/{kind};base64,{base64.b64encode(best).decode('ascii')}"


def page_data(image: Image.Image) -> dict[str, Any]:
    """A page as the report holds it: no wider than `WIDEST`, and its size."""
    if image.width > WIDEST:
        image = image.resize((WIDEST, max(1, round(image.height * WIDEST / image.width))), Image.Resampling.LANCZOS)
    return {"src": data_uri(image), "width": image.width, "height": image.height}


def _check(view: SessionView, methods: Mapping[str, str]) -> None:
    name, slots = f"session {view.session.session_id!r}", view.session.slots
    if missing := [method for method in methods if method not in view.looks]:
        raise DataError(f"{name}: nothing is known of {missing}; give what every method of the report does with it")
    for field_name, values in [("gaze", view.gaze)] + [
        (f"{method}.{part}", getattr(view.looks[method], part))
        for method in methods
        for part in ("slot_attention", "probabilities")
    ]:
        if len(values) != slots or not np.isfinite(values).all():
            raise DataError(f"{name}, {field_name} = {values}: needs a finite value for each of {slots} slots")


def _look(look: Look) -> dict[str, Any]:
    # As in the metrics, attention is scaled to a sum of 1, and none at all says nothing.
    total = float(look.slot_attention.sum())
    attention = look.slot_attention / total if total > 0 else np.full(len(look.slot_attention), np.nan)
    rows, columns = look.relevance.shape
    return {
        "rows": rows,
        "columns": columns,
        "relevance": base64.b64encode(quantised(look.relevance).tobytes()).decode("ascii"),
        "attention": _numbers(attention),
        "probabilities": _numbers(look.probabilities),
        "answer": int(look.answer),
        "scores": {name: number(value) for name, value in look.scores.items()},
    }


def number(value: float) -> float | None:
    """A value with four digits after the point, None where there is none."""
    return round(float(value), 4) if math.isfinite(value) else None


def _numbers(values: Float[np.ndarray, "..."]) -> list[Any]:
    return [number(x) for x in values.tolist()] if values.ndim == 1 else [_numbers(row) for row in values]
