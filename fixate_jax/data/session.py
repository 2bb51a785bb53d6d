"""What one person saw, looked at and clicked: the unit of data everywhere in the library."""

from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np
from jaxtyping import Float

from fixate_jax.errors import DataError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredSession:
    """One page seen by one person.

    Attributes:
        session_id: unique in its data set, stable between runs, e.g. ``"0/1/17"``.
        user_id: the person.
        page_id: sha256 hex digest of the page image file's bytes; the store keeps the image under that name.
        boxes: slot boxes ``(x0, y0, x1, y1)`` in relative page coordinates, 0 to 1, x to the right, y down.
        labels: what is drawn in each slot and what the model answers, e.g. ``("A", "B", "C")``; unique on a page.
        dwell_ms: per signal (``"fixation"``, ``"cursor"``) the time spent on each slot in milliseconds, ≥ 0.
        click: index of the clicked slot.
        profile: text about the person or the task that goes into the model's prompt; may be empty.
        split: ``"train"``, ``"validation"`` or ``"test"``.
        slot_features: what is displayed in each slot as numbers, for the content predictors; columns are named
            once per store (``slot_feature_names``). Never shown to the model. May have zero columns.
    """

    session_id: str
    user_id: str
    page_id: str
    boxes: Float[np.ndarray, "slots 4"]
    labels: tuple[str, ...]
    dwell_ms: dict[str, Float[np.ndarray, " slots"]]
    click: int
    profile: str = ""
    split: Split = "train"
    slot_features: Float[np.ndarray, "slots features"] = field(default_factory=lambda: np.zeros((0, 0)))

    def __post_init__(self) -> None:
        if self.slot_features.size == 0 and self.slot_features.shape[0] != self.slots:
            object.__setattr__(self, "slot_features", np.zeros((self.slots, 0)))
        validate_session(self)

    @property
    def slots(self) -> int:
        """Number of slots on the page."""
        return len(self.labels)

    def gaze(self, signal: str = "fixation", temperature: float = 1.0) -> Float[np.ndarray, " slots"]:
        """Human distribution over slots, g = t / Σt, optionally tempered: g^(1/τ), renormalised.

        Raises:
            DataError: when the session has no such signal.
        """
        if signal not in self.dwell_ms:
            raise DataError(
                f"session {self.session_id!r}, field 'dwell_ms': no signal {signal!r}, only {sorted(self.dwell_ms)}"
            )
        dwell = self.dwell_ms[signal]
        share = dwell / dwell.sum()
        if temperature != 1.0:
            share = share ** (1.0 / temperature)
            share = share / share.sum()
        return share


def _fail(session: StoredSession, field_name: str, problem: str) -> None:
    raise DataError(f"session {session.session_id!r}, field {field_name!r}: {problem}")


def validate_session(session: StoredSession) -> None:
    """Check every field of a session against the schema.

    Raises:
        DataError: naming the session and the field.
    """
    fail = partial(_fail, session)
    for name in ("session_id", "user_id", "page_id"):
        if not isinstance(getattr(session, name), str) or not getattr(session, name):
            fail(name, f"must be a text that is not empty, got {getattr(session, name)!r}")
    if not isinstance(getattr(session, "profile"), str):  # noqa: B009  (typed as text, but data come from anywhere)
        fail("profile", f"must be a text, got {session.profile!r}")
    n = session.slots
    if n < 1:
        fail("labels", "a page needs at least one slot")
    if len(set(session.labels)) != n or any(not label for label in session.labels):
        fail("labels", f"labels must be unique and not empty, got {session.labels}")
    if session.boxes.shape != (n, 4):
        fail("boxes", f"shape {session.boxes.shape} does not match {n} labels; give one (x0, y0, x1, y1) per label")
    if not np.isfinite(session.boxes).all():
        fail("boxes", "holds NaN or infinity")
    x0, y0, x1, y1 = session.boxes.T
    if (x1 <= x0).any() or (y1 <= y0).any():
        fail("boxes", f"box {int(np.argmax((x1 <= x0) | (y1 <= y0)))} has no area; x1 > x0 and y1 > y0 are needed")
    if session.boxes.min() < -1e-6 or session.boxes.max() > 1 + 1e-6:
        fail("boxes", "reaches off the page; relative coordinates must lie in 0..1")
    if not session.dwell_ms:
        fail("dwell_ms", "no signal given; at least one of e.g. 'fixation', 'cursor' is needed")
    for signal, dwell in session.dwell_ms.items():
        if dwell.shape != (n,):
            fail(f"dwell_ms[{signal}]", f"shape {dwell.shape} does not match {n} slots")
        if not np.isfinite(dwell).all() or (dwell < 0).any():
            fail(f"dwell_ms[{signal}]", "times must be finite and not negative")
        if dwell.sum() <= 0:
            fail(f"dwell_ms[{signal}]", "is zero on every slot; leave such sessions out and count them")
    if not 0 <= session.click < n:
        fail("click", f"slot {session.click} is not on the page of {n} slots")
    if session.split not in SPLITS:
        fail("split", f"{session.split!r} is not one of {SPLITS}")
    if session.slot_features.shape[0] != n:
        fail("slot_features", f"{session.slot_features.shape[0]} rows for {n} slots")
    if not np.isfinite(session.slot_features).all():
        fail("slot_features", "holds NaN or infinity")
