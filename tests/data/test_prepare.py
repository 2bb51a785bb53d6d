"""From settings to a store: what is made once is found again, and never taken for something else."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fixate_jax.data.options import DataConfig
from fixate_jax.data.readers.human_choice import read_trials
from fixate_jax.data.readers.synthetic.choice import synthetic_trials
from fixate_jax.data.registry import DATASETS, open_or_prepare
from fixate_jax.data.store import StoreWriter
from fixate_jax.errors import ConfigError, DataError, StoreError
from tests.data.tables import put, trials_csv


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run in an empty folder: a store without a name goes below the current one."""
    (tmp_path / "raw").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return trials_csv(tmp_path / "raw")


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("slots", ["alternatives", "texts"])
def test_a_prepared_store_is_whole(slots: str, raw: Path) -> None:
    config = DataConfig(path=raw, slots=slots, page_width=96)  # type: ignore[arg-type]
    store = open_or_prepare(config)
    assert len(store.sessions) == 60 and store.users == ("0", "1", "2")
    assert store.manifest["splits"] == {"train": 42, "validation": 9, "test": 9}
    for session in store.sessions:
        assert session.slots == (3 if slots == "alternatives" else 6)
        assert store.image(session.page_id).size == (96, 77)
        assert session.slot_features.shape == (session.slots, len(store.slot_feature_names))


def test_the_same_page_is_drawn_and_kept_once(raw: Path, tmp_path: Path) -> None:
    path = raw / "trials.csv"
    header, *rows = [line.split(",") for line in path.read_text().splitlines()]
    shown = slice(header.index("pA"), header.index("dwell_Ap"))
    for row in rows:
        row[shown] = rows[0][shown]
    path.write_text("".join(",".join(line) + "\n" for line in [header, *rows]))
    assert open_or_prepare(DataConfig(path=raw, page_width=64)).manifest["pages"] == 1


def test_preparing_again_gives_the_same_bytes(raw: Path, elsewhere: Path) -> None:
    config = DataConfig(path=raw, page_width=64)
    first = open_or_prepare(config).directory
    before = contents(first)
    assert first.parent == Path("stores") and first.name.startswith("human_choice-")
    shutil.rmtree(first)
    assert contents(open_or_prepare(config).directory) == before


def test_a_store_is_found_again_also_below_the_raw_data(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(raw)
    config = DataConfig(path=Path("."), page_width=64)
    first = open_or_prepare(config).directory
    (raw / "README.md").write_text("Notes beside the data change nothing.")
    assert open_or_prepare(config).directory == first
    assert list(Path("stores").iterdir()) == [first]


@pytest.mark.parametrize("change", [{"page_width": 65}, {"slots": "texts"}, {"split_seed": 1}, {"max_users": 2}])
@pytest.mark.parametrize("with_path", [True, False])
def test_a_store_of_other_settings_is_refused(change: dict, with_path: bool, raw: Path, elsewhere: Path) -> None:
    config = DataConfig(path=raw, page_width=64, store=elsewhere / "store")
    open_or_prepare(config)
    other = replace(config, path=raw if with_path else None, **change)
    ((name, value),) = change.items()
    with pytest.raises(StoreError, match=rf"other settings or raw data \({name} was .*, is {value!r}\)"):
        open_or_prepare(other)


def test_a_store_is_opened_without_its_raw_data_but_not_with_others(raw: Path, elsewhere: Path) -> None:
    config = DataConfig(path=raw, page_width=64, store=elsewhere / "store")
    open_or_prepare(config)
    assert len(open_or_prepare(replace(config, path=None)).sessions) == 60
    # How gaze is read from the store is no part of it.
    assert len(open_or_prepare(replace(config, signal="cursor", gaze_temperature=2.0)).sessions) == 60
    trials_csv(raw, spoil=put({"rt": "1234"}))
    with pytest.raises(StoreError, match="source was"):
        open_or_prepare(config)


def test_what_cannot_be_prepared(raw: Path, elsewhere: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.name = 'nothing': choose one of human_choice, recgaze, adserp, "):
        open_or_prepare(DataConfig(name="nothing"))
    with pytest.raises(ConfigError, match=r"data\.path = None: give the folder of human_choice"):
        open_or_prepare(DataConfig())
    with pytest.raises(ConfigError, match=r"data\.path = None"):
        open_or_prepare(DataConfig(store=elsewhere / "not-there"))
    with pytest.raises(ConfigError, match=r"trials\.csv is not there; give the folder of human_choice"):
        open_or_prepare(DataConfig(path=elsewhere))
    trials_csv(raw, spoil=put({"choice": "D"}))
    with pytest.raises(DataError, match="line 5, field 'choice'"):
        open_or_prepare(DataConfig(path=raw, store=elsewhere / "store"))
    assert list(elsewhere.iterdir()) == []


def test_rows_left_out_are_counted_in_the_store(raw: Path) -> None:
    trials_csv(raw, spoil=put({"choice": "D"}))
    store = open_or_prepare(DataConfig(path=raw, page_width=64, on_bad_row="skip"))
    assert len(store.sessions) == 59 and dict(store.dropped) == {"unknown choice": 1}


def test_max_users_takes_the_first(raw: Path) -> None:
    whole = open_or_prepare(DataConfig(path=raw, page_width=64))
    part = open_or_prepare(DataConfig(path=raw, page_width=64, max_users=2))
    assert part.users == ("0", "1")
    wanted = {s.session_id: s.split for s in whole.select(users=part.users)}
    assert {s.session_id: s.split for s in part.sessions} == wanted


def test_of_two_runs_that_start_together_the_slower_uses_the_store_of_the_faster(
    raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DataConfig(path=raw, page_width=64)
    finish = StoreWriter._finish

    def overtaken(writer: StoreWriter) -> None:
        # The other run ends while this one is still drawing.
        monkeypatch.setattr(StoreWriter, "_finish", finish)
        shutil.copytree(writer.temporary, kept := writer.directory.with_name("kept"))
        finish(writer)
        shutil.rmtree(writer.temporary, ignore_errors=True)
        kept.rename(writer.temporary)
        finish(writer)

    monkeypatch.setattr(StoreWriter, "_finish", overtaken)
    store = open_or_prepare(config)
    assert len(store.sessions) == 60
    assert [p.name for p in Path("stores").iterdir()] == [store.directory.name]


def test_made_up_people_need_no_data() -> None:
    store = open_or_prepare(DataConfig(name="synthetic_choice", page_width=64, max_users=3))
    assert store.users == ("0", "1", "2") and len(store.sessions) == 180


def test_every_data_set_says_which_files_it_reads_or_that_it_reads_none(raw: Path) -> None:
    assert DATASETS["synthetic_choice"].files is None
    assert DATASETS["human_choice"].files is not None
    assert DATASETS["human_choice"].files(raw) == [raw / "trials.csv"]


def test_made_up_people_pass_the_reader_and_are_seeded(tmp_path: Path) -> None:
    frame, dropped = read_trials(trials_csv(tmp_path, users=4, trials=50))
    assert dropped == {} and len(frame) == 200
    a, b, c = (synthetic_trials(users=2, trials=5, seed=seed) for seed in (0, 0, 1))
    assert a.equals(b) and not a.equals(c)


def test_made_up_gaze_is_personal_and_says_something_about_the_click(tmp_path: Path) -> None:
    store = open_or_prepare(DataConfig(name="synthetic_choice", page_width=64))
    gaze = {s.session_id: s.gaze() for s in store.sessions}
    assert np.mean([gaze[s.session_id].argmax() == s.click for s in store.sessions]) > 0.45

    def divergence(mean: dict[str, np.ndarray]) -> float:
        test = store.select(split="test")
        return float(np.mean([(g := gaze[s.session_id]) @ np.log((g + 1e-9) / mean[s.user_id]) for s in test]))

    train = store.select(split="train")
    own = {u: np.stack([gaze[s.session_id] for s in train if s.user_id == u]).mean(axis=0) for u in store.users}
    everyone = np.stack([gaze[s.session_id] for s in train]).mean(axis=0)
    assert divergence(own) < 0.8 * divergence(dict.fromkeys(store.users, everyone))
