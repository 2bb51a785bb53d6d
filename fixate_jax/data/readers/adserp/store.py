"""AdSERP's sessions in a store: what was seen at the last stop, with a number drawn on each slot."""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from fixate_jax.data.images import tell_of_small_text
from fixate_jax.data.options import DataConfig
from fixate_jax.data.readers.adserp.files import ADS, SCREENSHOT_WIDTH, file_of
from fixate_jax.data.readers.adserp.pages import draw_viewport, relative_boxes
from fixate_jax.data.readers.adserp.reader import read_adserp
from fixate_jax.data.readers.adserp.tables import BadTrial
from fixate_jax.data.session import StoredSession
from fixate_jax.data.store import StoreWriter, encode_image, natural_order
from fixate_jax.runtime.durable import THREADS
from fixate_jax.runtime.progress import track

FEATURES = ("is_ad", *ADS, "rank", "left", "top", "width", "height", "page_top")
"""Names of the slot features. Places and sizes are shares of what is seen, ``page_top`` of the document's height."""
BATCH = 64
"""Pages drawn at a time."""


def slot_features(row: Any) -> Float[np.ndarray, "slots features"]:
    """What is displayed in each slot, in the columns ``FEATURES``."""
    boxes = np.array(row.boxes, np.float64)
    x0, y0, x1, y1 = relative_boxes(boxes, row.crop).T
    kinds = np.array([[kind in ADS, *(kind == name for name in ADS)] for kind in row.kinds], np.float64)
    place = np.stack([x0, y0, x1 - x0, y1 - y0, boxes[:, 1] / row.page_height], axis=1)
    ranks = np.array(row.ranks, np.float64)[:, None]
    return np.concatenate([kinds, ranks, place], axis=1)


def make_session(row: Any, *, page: str) -> StoredSession:
    """A row of ``AdSerp.sessions`` as a session; without a cursor on a slot it has no cursor signal."""
    dwell = {"fixation": np.array(row.fixation_ms, np.float64)}
    if sum(row.cursor_ms) > 0:
        dwell["cursor"] = np.array(row.cursor_ms, np.float64)
    return StoredSession(
        session_id=row.session_id,
        user_id=row.user_id,
        page_id=page,
        boxes=relative_boxes(np.array(row.boxes, np.float64), row.crop),
        labels=tuple(str(i) for i in range(len(row.kinds))),
        dwell_ms=dwell,
        click=row.click,
        profile=row.profile,
        split=row.split,
        slot_features=slot_features(row),
    )


def _draw(path: Path, row: Any, width: int) -> bytes | BadTrial:
    boxes = relative_boxes(np.array(row.boxes, np.float64), row.crop)
    try:
        return encode_image(draw_viewport(file_of(path, "screenshot", row.session_id), row.crop, boxes, width=width))
    except BadTrial as error:
        return error


def prepare(config: DataConfig, writer_of: Callable[[tuple[str, ...]], StoreWriter]) -> None:
    """Read the trials, draw what was seen, several pages at a time, and add the sessions to a store.

    Raises:
        DataError: naming the file, and the line or field.
    """
    path = config.path
    assert path is not None
    tell_of_small_text(SCREENSHOT_WIDTH, config.page_width, "--data.page-width")
    data = read_adserp(path, on_bad_row=config.on_bad_row, seed=config.split_seed)
    users = natural_order(set(data.sessions["user_id"]))[: config.max_users]
    rows = list(data.sessions[data.sessions["user_id"].isin(users)].itertuples(index=False))
    dropped = Counter(data.dropped)
    batches = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
    with writer_of(FEATURES) as writer, ThreadPoolExecutor(THREADS) as pool:
        for batch in track(batches, "Drawing pages"):
            pages = pool.map(lambda row: _draw(path, row, config.page_width), batch)
            for row, page in zip(batch, pages, strict=True):
                if isinstance(page, bytes):
                    writer.add(make_session(row, page=writer.add_image(page)))
                elif config.on_bad_row == "error":
                    raise page
                else:
                    dropped[page.reason] += 1
        writer.dropped, writer.noted = dict(dropped), data.noted
