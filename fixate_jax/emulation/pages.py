"""Pages for emulated users to see."""

from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

from PIL import Image

from fixate_jax.data.page import Page
from fixate_jax.data.session import StoredSession
from fixate_jax.errors import DataError


@runtime_checkable
class Pictures(Protocol):
    """What holds the pictures of pages, such as a store."""

    def image(self, page_id: str) -> Image.Image:
        """The picture of a page."""


def pages_of_sessions(store: Pictures, sessions: Iterable[StoredSession]) -> list[Page]:
    """The pages that people saw, one for each session, for emulated users to see.

    Args:
        store: which holds the pictures.
        sessions: of the store.
    """
    return [
        Page(
            name=session.session_id,
            image=store.image(session.page_id).convert("RGB"),
            boxes=session.boxes,
            relative=True,
            labels=session.labels,
            labelled=True,
            profile=session.profile,
        )
        for session in sessions
    ]


def require_distinct(pages: Sequence[Page]) -> None:
    """Stop where two pages have one name, since nobody could tell them apart in a table.

    Raises:
        DataError: naming one.
    """
    seen: dict[str, Page] = {}
    for page in pages:
        if seen.setdefault(page.name, page) is not page:
            raise DataError(f"page {page.name!r}: two pages have this name; give each its own")
