"""A page as you have it in memory, and what one person did on it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from PIL import Image

from fixate_jax.data.session import Session as StoredSession
from fixate_jax.errors import DataError

NOBODY = "nobody"
"""The user, and the signal, of a page that nobody has looked at."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Page:
    """A page: what is seen, where its slots are, what the model answers for each.

    Attributes:
        image: the page.
        boxes: (x0, y0, x1, y1) of each slot in pixels, x to the right, y down.
        labels: what the model answers for each slot; unique on the page.
        profile: text about the person or the task for the model's prompt; may be empty.
        labelled: whether the labels are on the image already; else they are drawn in the slots' upper left corners.

    Raises:
        DataError: boxes or labels do not fit together or the image.
    """

    image: Image.Image = field(repr=False)
    boxes: ArrayLike
    labels: Sequence[str]
    profile: str = ""
    labelled: bool = False

    def __post_init__(self) -> None:
        self.stored()  # Checks boxes and labels.

    @property
    def relative_boxes(self) -> Float[np.ndarray, "slots 4"]:
        """The boxes in relative page coordinates, 0 to 1."""
        width, height = self.image.size
        boxes = np.asarray(self.boxes, np.float64)
        if boxes.shape != (len(self.labels), 4):
            raise DataError(
                f"page: boxes of shape {boxes.shape} for {len(self.labels)} labels; give (x0, y0, x1, y1) for each, in "
                "pixels"
            )
        return boxes / np.array([width, height, width, height])

    def picture(self) -> Image.Image:
        """The page as the model sees it, with the labels drawn."""
        shown = self.image.convert("RGB")
        if not self.labelled:
            from fixate_jax.data.own.pages import draw_labels  # Its font is matplotlib's.

            shown = shown.copy()
            draw_labels(shown, list(self.labels), self.relative_boxes)
        return shown

    def stored(
        self, name: str = "page", *, user: str = NOBODY, gaze: ArrayLike | None = None, click: int = 0
    ) -> StoredSession:
        """The page in the form that data sets are stored in.

        Args:
            name: of session and page.
            user: who saw it.
            gaze: time or share of each slot (None: nobody looked).
            click: index of the clicked slot.
        """
        slots = len(self.labels)
        dwell = np.ones(slots) if gaze is None else np.asarray(gaze, np.float64)
        if dwell.shape != (slots,):
            raise DataError(
                f"session of {user!r}: gaze of shape {dwell.shape} for {slots} slots; give a number for each"
            )
        return StoredSession(
            session_id=name,
            user_id=user,
            page_id=name,
            boxes=self.relative_boxes,
            labels=tuple(self.labels),
            dwell_ms={NOBODY if gaze is None else "fixation": dwell},
            click=click,
            profile=self.profile,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Session:
    """A page, and one person's gaze and click on it.

    Attributes:
        page: what was seen.
        user: who saw it.
        gaze: time spent on each slot, or its share; any scale.
        click: the clicked slot's label, or its index.

    Raises:
        DataError: gaze or click do not fit the page.
    """

    page: Page
    user: str
    gaze: ArrayLike
    click: str | int

    def __post_init__(self) -> None:
        self.stored()  # Checks gaze and click.

    @property
    def clicked(self) -> int:
        """Index of the clicked slot."""
        if isinstance(self.click, str):
            if self.click not in self.page.labels:
                raise DataError(f"session of {self.user!r}: click {self.click!r} is none of {list(self.page.labels)}")
            return list(self.page.labels).index(self.click)
        return int(self.click)

    def stored(self, name: str = "session") -> StoredSession:
        """The session in the form that data sets are stored in."""
        return self.page.stored(name, user=self.user, gaze=self.gaze, click=self.clicked)
