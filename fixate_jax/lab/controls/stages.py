"""Test pages as they were seen, and as nobody saw them: blank, rearranged, or told about somebody else."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image

from fixate_jax.data.options import DataConfig
from fixate_jax.data.readers import human_choice
from fixate_jax.data.readers.synthetic import carousel
from fixate_jax.data.session import StoredSession
from fixate_jax.data.store import encode_image, page_id
from fixate_jax.lab.experiments.workspace import Workspace, stage

SEEN, BLANK, REARRANGED, PROFILE = "as seen", "blank", "rearranged", "other profile"
Order = list[int]
"""For each slot, the slot that its content comes from."""
Draw = Callable[[Image.Image, StoredSession, Order], Image.Image]
"""From a page, its session and an order to another page."""


def _redrawn(data: DataConfig) -> Draw | None:
    """How a data set's page is drawn with its contents rearranged; None where nobody can tell content from label."""
    if data.name == "synthetic_carousel":
        return lambda image, session, order: carousel.rearranged(data, session, order)
    if data.name in ("human_choice", "synthetic_choice") and data.slots == "alternatives":
        return lambda image, session, order: human_choice.rearranged(session, order, width=image.width)
    return swapped_boxes if data.name == "snacks" else None


def swapped_boxes(image: Image.Image, session: StoredSession, order: Order) -> Image.Image:
    """A page whose slots have changed places as pictures; for labels that stand outside the slots.

    Args:
        image: the page.
        session: its slots; those of another size are scaled to their new place.
        order: for each slot, the slot that its content comes from.
    """
    boxes = np.round(session.boxes * np.array([*image.size, *image.size])).astype(int)
    page = image.copy()
    for box, source in zip(boxes, boxes[list(order)], strict=True):
        size = (int(box[2] - box[0]), int(box[3] - box[1]))
        x0, y0, x1, y1 = map(int, source)
        page.paste(image.crop((x0, y0, x1, y1)).resize(size), (int(box[0]), int(box[1])))
    return page


def orders_of(sessions: Sequence[StoredSession], *, seed: int) -> list[Order]:
    """An order for each session in which something moves, drawn from the seed and the session's id alone."""
    orders = []
    for session in sessions:
        rng = np.random.default_rng([seed, *session.session_id.encode()])
        order = rng.permutation(session.slots)
        while session.slots > 1 and (order == np.arange(session.slots)).all():
            order = rng.permutation(session.slots)
        orders.append(order.tolist())
    return orders


def content_columns(sessions: Sequence[StoredSession]) -> list[bool]:
    """Which slot features go with the content: those that are not the same for a slot on every page."""
    first = {session.slots: session.slot_features for session in sessions}
    moved = [(session.slot_features != first[session.slots]).any(axis=0) for session in sessions]
    return [bool(column) for column in np.any(moved, axis=0)]


def with_content(session: StoredSession, order: Order, content: Sequence[bool]) -> StoredSession:
    """The session with its content rearranged in the features; gaze and click stay those of the page as it was."""
    features = np.where(np.array(content, bool), session.slot_features[list(order)], session.slot_features)
    return replace(session, slot_features=features)


def law_of(data: DataConfig) -> Callable[[StoredSession, Order], Float[np.ndarray, " _slots"]] | None:
    """Where people look in the mean on a rearranged page, where that is known: for synthetic users."""
    if data.name != "synthetic_carousel":
        return None
    return lambda session, order: carousel.expected_gaze(data, session, order)


def other_profiles(sessions: Sequence[StoredSession], users: Sequence[str]) -> dict[str, str] | None:
    """For each user the profile of the next one in the list whose profile is another; None where all have the same."""
    own = {session.user_id: session.profile for session in sessions}
    people = [user for user in users if user in own]
    if len(set(own.values())) < 2:
        return None
    return {
        user: next(own[other] for other in people[i + 1 :] + people[:i] if own[other] != own[user])
        for i, user in enumerate(people)
    }


def staged(
    workspace: Workspace, sessions: Sequence[StoredSession], pages: Mapping[str, bytes | None], directory: Path
) -> Workspace:
    """A workspace that shows these sessions as its test sessions.

    Args:
        workspace: the run's.
        sessions: what is shown.
        pages: PNG files by page id; None for a page of the store.
        directory: the run's, where the disk cache goes.
    """

    def image(page: str) -> Image.Image:
        png = pages[page]
        return workspace.store.image(page) if png is None else _opened(png)

    config, backbone, mesh = workspace.config, workspace.backbone, workspace.mesh
    features, data = stage(config, backbone, sessions, image, users=workspace.users, mesh=mesh, directory=directory)
    splits: dict[str, list[int]] = {"train": [], "validation": [], "test": list(range(len(sessions)))}
    return replace(workspace, features=features, data=data, splits=splits)


def _opened(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png)).convert("RGB")


def stages(workspace: Workspace, orders: Sequence[Order], directory: Path) -> dict[str, Workspace]:
    """The test sessions in all the ways that their data set allows.

    Args:
        workspace: the run's.
        orders: how each test session's content is rearranged.
        directory: the run's, where the disk cache goes.
    """
    sessions = workspace.sessions("test")
    found = {SEEN: staged(workspace, sessions, {s.page_id: None for s in sessions}, directory)}

    def shown(draw: Draw) -> Workspace:
        pages: dict[str, bytes | None] = {}
        altered = []
        for session, order in zip(sessions, orders, strict=True):
            png = encode_image(draw(workspace.store.image(session.page_id), session, order))
            pages[page_id(png)] = png
            altered.append(replace(session, page_id=page_id(png)))
        return staged(workspace, altered, pages, directory)

    found[BLANK] = shown(lambda image, session, order: _blank(image))
    if redrawn := _redrawn(workspace.config.data):
        found[REARRANGED] = shown(redrawn)
    if profiles := other_profiles(sessions, workspace.users):
        told = [replace(s, profile=profiles[s.user_id]) for s in sessions]
        found[PROFILE] = staged(workspace, told, {s.page_id: None for s in sessions}, directory)
    return found


def _blank(image: Image.Image) -> Image.Image:
    """A page of the same size in its mean colour."""
    mean = np.asarray(image).reshape(-1, 3).mean(axis=0).round().astype(int)
    return Image.new("RGB", image.size, (int(mean[0]), int(mean[1]), int(mean[2])))
