"""A page as you have it in memory, and what one person did on it."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from PIL import Image

from fixate_jax.data.boxes import require_pixels
from fixate_jax.data.images import as_seen
from fixate_jax.data.session import Split, StoredSession
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
        relative: whether boxes are given in relative page coordinates, 0 to 1, instead of pixels.
        name: of the page in tables, such as that of its file; may be empty.
        items: what stands in each slot, the same name on all pages that show it; may be empty.

    Raises:
        DataError: boxes or labels do not fit together or the image.
    """

    image: Image.Image = field(repr=False)
    boxes: ArrayLike
    labels: tuple[str, ...]
    profile: str = ""
    labelled: bool = False
    relative: bool = False
    name: str = ""
    items: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", tuple(self.labels))
        if self.items and len(self.items) != len(self.labels):
            raise DataError(f"{self._said}: {len(self.items)} items for {len(self.labels)} labels")
        self.stored()  # Checks boxes and labels.

    @property
    def _said(self) -> str:
        return f"page {self.name!r}" if self.name else "page"

    @property
    def slots(self) -> int:
        """Number of slots on the page."""
        return len(self.labels)

    @property
    def relative_boxes(self) -> Float[np.ndarray, "slots 4"]:
        """The boxes in relative page coordinates, 0 to 1."""
        width, height = self.image.size
        boxes = np.asarray(self.boxes, np.float64)
        if boxes.shape != (len(self.labels), 4):
            raise DataError(
                f"{self._said}: boxes of shape {boxes.shape} for {len(self.labels)} labels; give (x0, y0, x1, y1) for "
                "each, in pixels"
            )
        if self.relative:
            return boxes
        require_pixels(boxes, (width, height), self._said)
        return boxes / np.array([width, height, width, height])

    def picture(self) -> Image.Image:
        """The page as the model sees it, with the labels drawn."""
        shown = as_seen(self.image)
        if not self.labelled:
            from fixate_jax.data.readers.own.pages import draw_labels  # Its font is matplotlib's.

            shown = shown.copy()
            draw_labels(shown, list(self.labels), self.relative_boxes)
        return shown

    def stored(
        self,
        name: str = "",
        *,
        user: str = NOBODY,
        gaze: ArrayLike | None = None,
        click: int = 0,
        profile: str | None = None,
    ) -> StoredSession:
        """The page in the form that data sets are stored in.

        Args:
            name: of session and page, instead of the page's own.
            user: who saw it.
            gaze: time or share of each slot (None: nobody looked).
            click: index of the clicked slot.
            profile: instead of the page's own.
        """
        name = name or self.name or "page"
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
            profile=self.profile if profile is None else profile,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Session:
    """A page, and one person's gaze and click on it.

    Attributes:
        page: what was seen.
        user: who saw it.
        gaze: time spent on each slot, or its share; any scale.
        click: the clicked slot's label, or its index.
        split: what it is for: "train", "validation" or "test".

    Raises:
        DataError: gaze or click do not fit the page.
    """

    page: Page
    user: str
    gaze: ArrayLike
    click: str | int
    split: Split = "train"

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
