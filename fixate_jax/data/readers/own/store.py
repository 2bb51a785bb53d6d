"""One's own tables and screenshots in a store."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from fixate_jax.data.images import tell_of_small_text
from fixate_jax.data.options import DataConfig
from fixate_jax.data.readers.own.files import gaze_file, labels_drawn
from fixate_jax.data.readers.own.gaze import READERS, dwell_of
from fixate_jax.data.readers.own.pages import BadPage, make_page
from fixate_jax.data.readers.own.tables import Log, Slots, read_sessions, read_slots
from fixate_jax.data.session import StoredSession
from fixate_jax.data.splits import split_by_content
from fixate_jax.data.store import StoreWriter, encode_image, natural_order
from fixate_jax.errors import DataError
from fixate_jax.runtime.progress import track

BAD_GAZE, NO_GAZE = "session with a bad row of gaze", "no fixation on a slot"
BAD_PAGE, NO_TRAINING = "session on a page that was left out", "session of a person with too few pages to train on"


def read_own(path: Path, log: Log) -> tuple[pd.DataFrame, Slots]:
    """Read and check the tables of a folder.

    Sessions without gaze on a slot are left out and counted in any case.

    Returns:
        The sessions in the order of their table, with ``dwell_ms`` by signal for each slot, and what the slots are.

    Raises:
        DataError: naming file, line and field.
    """
    gaze = gaze_file(path)
    slots = read_slots(path, log)
    sessions, known = read_sessions(path, slots, log)
    require_some(sessions, path, log)
    found = READERS[gaze.name](gaze, sessions, known, slots.pages, log)
    dwell = dwell_of(found, [len(slots.pages[page].labels) for page in sessions["page"]])
    empty = np.array([signals["fixation"].sum() <= 0 for signals in dwell], bool)
    log.count(BAD_GAZE, int(found.bad.sum()))
    log.count(NO_GAZE, int((empty & ~found.bad).sum()))
    sessions = sessions.assign(dwell_ms=dwell)[~(empty | found.bad)].reset_index(drop=True)
    require_some(sessions, path, log)
    return sessions, slots


def require_some(sessions: pd.DataFrame, path: Path, log: Log) -> None:
    """Stop where nothing is left.

    Raises:
        DataError: with the reasons.
    """
    if sessions.empty:
        raise DataError(f"{path}: no session is left; left out by reason: {dict(log.dropped)}")


def with_splits(sessions: pd.DataFrame, seed: int, log: Log) -> pd.DataFrame:
    """Sessions with the splits of their table, else with ones made person by person, no page in two of a person's.

    Sessions of a person of whom none is left to train on are left out and counted.
    """
    if sessions["split"].notna().all():
        return sessions
    sessions = sessions.assign(split=split_by_content(sessions, "page", seed))
    trained = set(sessions.loc[sessions["split"] == "train", "user_id"])
    kept = sessions["user_id"].isin(trained)
    log.count(NO_TRAINING, int((~kept).sum()))
    return sessions[kept]


def prepare(config: DataConfig, writer_of: Callable[[tuple[str, ...]], StoreWriter]) -> None:
    """Read the tables, draw the pages, and add the sessions to a store.

    Raises:
        DataError: naming the file, and the line and field.
    """
    path, log = config.path, Log(on_bad_row=config.on_bad_row)
    assert path is not None
    sessions, slots = read_own(path, log)
    users = natural_order(set(sessions["user_id"]))[: config.max_users]
    sessions = sessions[sessions["user_id"].isin(users)]
    drawn, widest = {}, 0
    with writer_of(slots.feature_names) as writer:
        for name in track(natural_order(set(sessions["page"])), "Drawing pages"):
            try:
                image, boxes, wide = make_page(
                    path, name, slots.pages[name], slots.table, width=config.page_width, draw=not labels_drawn(path)
                )
            except BadPage as error:
                if config.on_bad_row == "error":
                    raise
                log.count(error.reason, 1)
                continue
            drawn[name] = writer.add_image(encode_image(image)), boxes
            widest = max(widest, wide)
        tell_of_small_text(widest, config.page_width, "--data.page-width")
        log.count(BAD_PAGE, int((~sessions["page"].isin(drawn)).sum()))
        sessions = with_splits(sessions[sessions["page"].isin(drawn)], config.split_seed, log)
        writer.dropped = dict(log.dropped)
        for row in sessions.itertuples(index=False):
            page_id, boxes = drawn[row.page]
            page = slots.pages[row.page]
            writer.add(
                StoredSession(
                    session_id=row.session_id,
                    user_id=row.user_id,
                    page_id=page_id,
                    boxes=boxes,
                    labels=page.labels,
                    dwell_ms=row.dwell_ms,
                    click=int(row.click),
                    profile=row.profile,
                    split=row.split,
                    slot_features=page.features,
                )
            )
