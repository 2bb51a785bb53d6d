"""Whom and what a run sees: pages that are new in test, and some users only."""

from dataclasses import replace
from pathlib import Path

import pytest

from fixate_jax.data.options import DataConfig
from fixate_jax.data.registry import open_or_prepare
from fixate_jax.data.session import SPLITS
from fixate_jax.data.splits import split_by_page
from fixate_jax.errors import ConfigError, StoreError


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    return DataConfig(name="synthetic_carousel", max_users=4, page_width=64, store=tmp_path / "store")


def test_no_page_of_a_split_by_pages_is_seen_in_two_parts(config: DataConfig):
    by_session = open_or_prepare(config)
    by_page = open_or_prepare(replace(config, split="pages"))
    parts = {split: {s.page_id for s in by_page.sessions if s.split == split} for split in SPLITS}
    assert all(parts.values()) and sum(map(len, parts.values())) == len({s.page_id for s in by_page.sessions})
    trained, tested = ({s.page_id for s in by_session.sessions if s.split == split} for split in ("train", "test"))
    assert trained & tested, "by sessions, some pages of the test were seen by others"
    share = {split: sum(s.split == split for s in by_page.sessions) / len(by_page.sessions) for split in SPLITS}
    assert share == pytest.approx({"train": 0.70, "validation": 0.15, "test": 0.15}, abs=0.03)
    content = [[replace(s, split="train") for s in store.sessions] for store in (by_session, by_page)]
    assert [s.session_id for s in content[0]] == [s.session_id for s in content[1]]


def test_the_seed_moves_pages_and_the_people_do_not(config: DataConfig):
    pages = replace(config, split="pages")
    of_page = {s.page_id: s.split for s in open_or_prepare(pages).sessions}
    two = open_or_prepare(replace(pages, users=("3", "1")))
    assert two.users == ("1", "3")
    assert all(of_page[s.page_id] == s.split for s in two.sessions)
    # People and pages of synthetic users come from the same seed, so another one is asked of the same sessions.
    other = {s.page_id: s.split for s in split_by_page(open_or_prepare(pages).sessions, 1)}
    assert other.keys() == of_page.keys() and other != of_page


def test_users_that_are_not_there_are_named(config: DataConfig):
    with pytest.raises(StoreError, match="no user 'ada'; it has 0, 1, 2, 3"):
        open_or_prepare(replace(config, users=("1", "ada")))
    with pytest.raises(ConfigError, match=r"data\.users"):
        replace(config, users=("1", "1"))
