"""Pages as an emulated user gets them: a picture, where its slots are, what stands in them. No person has seen them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float
from PIL import Image

from fixate_jax.data.session import Session
from fixate_jax.data.store import SessionStore
from fixate_jax.errors import DataError

NOBODY = "nobody"
"""Signal of the gaze that fills a session which nobody had."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Page:
    """One page to show to emulated users.

    Attributes:
        page_id: unique among the pages of a call, such as the name of its file.
        image: the page as it is seen, the labels drawn on it.
        boxes: slot boxes ``(x0, y0, x1, y1)`` in relative page coordinates, 0 to 1, x to the right, y down.
        labels: what is drawn in each slot and what the model answers; unique on the page.
        items: what stands in each slot, the same name on all pages that show it; may be empty.
        profile: text about the task that goes into the model's prompt; may be empty.
    """

    page_id: str
    image: Image.Image = field(repr=False)
    boxes: Float[np.ndarray, "slots 4"]
    labels: tuple[str, ...]
    items: tuple[str, ...] = ()
    profile: str = ""

    def __post_init__(self) -> None:
        if self.items and len(self.items) != len(self.labels):
            raise DataError(f"page {self.page_id!r}: {len(self.items)} items for {len(self.labels)} labels")
        self.session()  # Checks the boxes and labels.

    @property
    def slots(self) -> int:
        """Number of slots on the page."""
        return len(self.labels)

    def session(self, profile: str | None = None) -> Session:
        """The page in the form of a session that nobody had, as the model's inputs are made from.

        Args:
            profile: instead of the page's own.

        Raises:
            DataError: boxes or labels do not fit together.
        """
        return Session(
            session_id=self.page_id,
            user_id=NOBODY,
            page_id=self.page_id,
            boxes=self.boxes,
            labels=self.labels,
            dwell_ms={NOBODY: np.ones(self.slots)},
            click=0,
            profile=self.profile if profile is None else profile,
        )


def pages_of_sessions(store: SessionStore, sessions: Iterable[Session]) -> list[Page]:
    """The pages that people saw, one for each session, for emulated users to see.

    Args:
        store: which holds the pictures.
        sessions: of the store.
    """
    return [
        Page(
            page_id=session.session_id,
            image=store.image(session.page_id).convert("RGB"),
            boxes=session.boxes,
            labels=session.labels,
            profile=session.profile,
        )
        for session in sessions
    ]


def require_distinct(pages: Sequence[Page]) -> None:
    """Stop where two pages have one id, since nobody could tell them apart in a table.

    Raises:
        DataError: naming one.
    """
    seen: dict[str, Page] = {}
    for page in pages:
        if seen.setdefault(page.page_id, page) is not page:
            raise DataError(f"page {page.page_id!r}: two pages have this id; give each its own")
