"""Sessions that lack a signal: left out when asked, named when not."""

from dataclasses import replace

import numpy as np
import pytest

from fixate_jax.data.options import DataConfig
from fixate_jax.data.registry import open_or_prepare, usable_sessions
from fixate_jax.data.store import SessionStore, StoreWriter, encode_image
from fixate_jax.errors import DataError

CONFIG = DataConfig(name="synthetic_choice", max_users=2, page_width=64)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[SessionStore, SessionStore, SessionStore]:
    """Sessions with fixations alone; every third with a cursor as well; the rest of those."""
    folder = tmp_path_factory.mktemp("stores")
    plain = open_or_prepare(replace(CONFIG, store=folder / "plain"))
    kept = []
    for name, keep in (("mixed", lambda i: True), ("without", lambda i: i % 3 != 0)):
        with StoreWriter(
            folder / name, name="made", settings={}, slot_feature_names=plain.slot_feature_names
        ) as writer:
            for i, session in enumerate(plain.sessions):
                cursor = {"cursor": np.ones(session.slots)} if i % 3 == 0 else {}
                page = writer.add_image(encode_image(plain.image(session.page_id)))
                if keep(i):
                    writer.add(replace(session, page_id=page, dwell_ms=session.dwell_ms | cursor))
        kept.append(SessionStore.open(folder / name))
    return plain, kept[0], kept[1]


def test_all_sessions_unless_asked_otherwise(stores: tuple[SessionStore, SessionStore, SessionStore]):
    plain, mixed, _ = stores
    assert usable_sessions(plain, CONFIG) == list(plain.sessions)
    assert usable_sessions(mixed, CONFIG) == list(mixed.sessions)
    assert usable_sessions(plain, replace(CONFIG, common_sessions=True)) == list(plain.sessions)


def test_common_sessions_are_the_same_for_every_signal(stores: tuple[SessionStore, SessionStore, SessionStore]):
    _, mixed, _ = stores
    common = replace(CONFIG, common_sessions=True)
    gaze, cursor = (usable_sessions(mixed, replace(common, signal=signal)) for signal in ("fixation", "cursor"))
    assert gaze == cursor == list(mixed.sessions[::3])


def test_a_session_without_the_signal_is_named(stores: tuple[SessionStore, SessionStore, SessionStore]):
    _, mixed, without = stores
    first = mixed.sessions[1].session_id
    with pytest.raises(DataError, match=rf"session '{first}' has only fixation; choose another signal, or set data"):
        usable_sessions(mixed, replace(CONFIG, signal="cursor"))
    with pytest.raises(DataError, match=r"data\.signal = 'mouse'"):
        usable_sessions(without, replace(CONFIG, signal="mouse", common_sessions=True))
