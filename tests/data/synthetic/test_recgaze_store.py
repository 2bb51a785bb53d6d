"""Made-up people of the carousels in a store: on built-in screens, or on those of a list."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fixate_jax.config import DataConfig
from fixate_jax.data import open_or_prepare, store_settings
from fixate_jax.data.synthetic.recgaze import Truth, generator, write_recgaze
from fixate_jax.errors import ConfigError, DataError, StoreError
from tests.data.synthetic.test_recgaze_screens import write_screens

TASKS = (1, 2, 4, 7, 31, 32)
CONFIG = DataConfig(name="synthetic_recgaze", max_users=2, page_width=96)


@pytest.fixture
def few_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stores of six screens."""

    def small_recgaze(directory: Path, **settings: Any) -> Truth:
        return write_recgaze(directory, tasks=TASKS, **settings)

    monkeypatch.setattr(generator, "write_recgaze", small_recgaze)


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


@pytest.mark.usefixtures("few_tasks")
def test_made_up_people_come_out_the_same_each_time(tmp_path: Path) -> None:
    one, other = (open_or_prepare(replace(CONFIG, store=tmp_path / name)) for name in ("a", "b"))
    assert contents(one.directory) == contents(other.directory) and len(one.users) == 2
    assert one.manifest["settings"]["source"] == "generated"


@pytest.mark.usefixtures("few_tasks")
def test_people_look_at_the_screens_of_a_list(tmp_path: Path) -> None:
    path = write_screens(tmp_path / "screens.csv", TASKS)
    config = replace(CONFIG, path=tmp_path, store=tmp_path / "store")
    store = open_or_prepare(config)
    truth = write_recgaze(tmp_path / "logs", users=2, seed=0, tasks=TASKS, screens=path)
    assert [(s.session_id, s.click) for s in store.sessions] == list(
        truth.sessions[["session_id", "click"]].itertuples(index=False, name=None)
    )
    # Each film of this list has two genres.
    place = store.slot_feature_names.index("share_of_preferred_genres")
    assert {value for s in store.sessions for value in s.slot_features[:, place]} <= {0.0, 0.5, 1.0}
    digest = hashlib.sha256(b"screens.csv\0" + hashlib.sha256(path.read_bytes()).digest()).hexdigest()
    assert store.manifest["settings"]["source"] == digest
    assert open_or_prepare(config).manifest == store.manifest
    with pytest.raises(StoreError, match=f"source was '{digest}', is 'generated'"):
        open_or_prepare(replace(config, path=None))
    path.write_text(path.read_text(encoding="utf-8").replace("War", "Crime", 1), encoding="utf-8")
    with pytest.raises(StoreError, match=f"source was '{digest}', is '[0-9a-f]"):
        open_or_prepare(config)


def test_a_folder_without_a_list_or_with_one_that_lacks_a_task(tmp_path: Path) -> None:
    config = replace(CONFIG, path=tmp_path, store=tmp_path / "store")
    with pytest.raises(ConfigError, match=r"screens\.csv is not there; give the folder of .* or leave it out"):
        open_or_prepare(config)
    write_screens(tmp_path / "screens.csv", range(1, 36))
    with pytest.raises(DataError, match=r"screens\.csv: no rows of task 36, 37, 38, 39, 40; a list of"):
        open_or_prepare(config)
    assert [p.name for p in tmp_path.iterdir()] == ["screens.csv"]


def test_other_made_up_people_need_no_folder_and_read_none() -> None:
    for name in ("synthetic_choice", "synthetic_carousel", "synthetic_adserp"):
        settings = store_settings(DataConfig(name=name))
        assert settings["source"] == "generated" and "on_bad_row" not in settings


def test_on_the_real_screens(shared_data: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, max_users=1, path=shared_data / "recgaze_screens", store=tmp_path / "store")
    store = open_or_prepare(config)
    assert len(store.sessions) > 20 and store.users == ("KInIT_1",)
    assert store.manifest["settings"]["source"] != "generated"
