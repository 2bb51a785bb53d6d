"""The session schema: every field checked, and the message names session and field."""

from typing import Any

import numpy as np
import pytest

from fixate_jax.data.session import StoredSession, validate_session
from fixate_jax.errors import DataError

BOXES = np.array([[0.0, 0, 0.3, 1], [0.3, 0, 0.6, 1], [0.6, 0, 1, 1]])


def session(**changes: Any) -> StoredSession:
    fields: dict[str, Any] = {
        "session_id": "0/1/17",
        "user_id": "0",
        "page_id": "p",
        "boxes": BOXES,
        "labels": ("A", "B", "C"),
        "dwell_ms": {"fixation": np.array([100.0, 300.0, 0.0])},
        "click": 1,
    }
    return StoredSession(**(fields | changes))


def boxes(index: tuple[int, int], value: float) -> np.ndarray:
    changed = BOXES.copy()
    changed[index] = value
    return changed


BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "no id": ({"session_id": ""}, "session_id", "must be a text that is not empty, got ''"),
    "no user": ({"user_id": ""}, "user_id", "must be a text that is not empty"),
    "no page": ({"page_id": ""}, "page_id", "must be a text that is not empty"),
    "no slot": ({"labels": (), "boxes": np.zeros((0, 4))}, "labels", "a page needs at least one slot"),
    "same label": ({"labels": ("A", "B", "A")}, "labels", r"must be unique and not empty, got \('A', 'B', 'A'\)"),
    "empty label": ({"labels": ("A", "", "C")}, "labels", "must be unique and not empty"),
    "too few boxes": ({"boxes": BOXES[:2]}, "boxes", r"shape \(2, 4\) does not match 3 labels"),
    "NaN box": ({"boxes": boxes((0, 1), np.nan)}, "boxes", "holds NaN or infinity"),
    "box without area": ({"boxes": boxes((1, 2), 0.3)}, "boxes", r"box 1 has no area; x1 > x0 and y1 > y0"),
    "box off the page": ({"boxes": boxes((2, 2), 1.2)}, "boxes", "reaches off the page"),
    "pixels": ({"boxes": BOXES * 320}, "boxes", "relative coordinates must lie in 0..1"),
    "no signal": ({"dwell_ms": {}}, "dwell_ms", "no signal given"),
    "dwell of two": ({"dwell_ms": {"cursor": np.ones(2)}}, "dwell_ms[cursor]", r"shape \(2,\) does not match 3 slots"),
    "negative dwell": ({"dwell_ms": {"fixation": np.array([1.0, -1, 2])}}, "dwell_ms[fixation]", "not negative"),
    "NaN dwell": ({"dwell_ms": {"fixation": np.array([1.0, np.nan, 2])}}, "dwell_ms[fixation]", "must be finite"),
    "no dwell": ({"dwell_ms": {"fixation": np.zeros(3)}}, "dwell_ms[fixation]", "is zero on every slot"),
    "click off the page": ({"click": 3}, "click", "slot 3 is not on the page of 3 slots"),
    "negative click": ({"click": -1}, "click", "slot -1 is not on the page"),
    "features of two": ({"slot_features": np.ones((2, 1))}, "slot_features", "2 rows for 3 slots"),
    "NaN feature": ({"slot_features": np.full((3, 1), np.nan)}, "slot_features", "holds NaN or infinity"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_field_is_named(name: str) -> None:
    changes, field, message = BAD[name]
    # Set afterwards: where the tests check annotations, a misshapen array would not get as far as the schema.
    bad = session()
    for changed, value in changes.items():
        object.__setattr__(bad, changed, value)
    with pytest.raises(DataError, match=message) as caught:
        validate_session(bad)
    wanted = changes.get("session_id", "0/1/17")
    assert f"session {wanted!r}, field {field!r}: " in str(caught.value)


def test_a_session_is_checked_when_it_is_made() -> None:
    with pytest.raises(DataError, match="session '0/1/17', field 'click': slot 7 is not on the page"):
        session(click=7)


def test_gaze_is_the_share_of_dwell_tempered_on_demand() -> None:
    np.testing.assert_allclose(session().gaze(), [0.25, 0.75, 0])
    flat, sharp = session().gaze(temperature=2.0), session().gaze(temperature=0.5)
    np.testing.assert_allclose(flat[1] / flat[0], np.sqrt(3))
    np.testing.assert_allclose(sharp, [0.1, 0.9, 0])
    with pytest.raises(DataError, match=r"session '0/1/17', field 'dwell_ms': no signal 'cursor', only \['fixation'\]"):
        session().gaze("cursor")


def test_features_may_be_left_out() -> None:
    assert session().slot_features.shape == (3, 0)
