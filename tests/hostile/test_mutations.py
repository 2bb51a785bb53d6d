"""Whatever is done to the files that we are given: a result, or one error soon, and nothing left half-written."""

import os
import resource
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fixate_jax.backbones import load_backbone
from fixate_jax.backbones.loading import SHIPPED
from fixate_jax.data.options import DataConfig
from fixate_jax.data.registry import open_or_prepare
from fixate_jax.data.store import SessionStore
from fixate_jax.emulation.page_sets import read_page_set
from fixate_jax.errors import FixateError
from fixate_jax.lab.bundles.bundle import SHIPPED_USERS, load_bundle
from fixate_jax.lab.settings import PRESETS, load_config
from tests.data.adserp.trials import write_trial
from tests.data.own.folder import own_folder
from tests.data.recgaze.raw import a_session, write_folder
from tests.data.tables import trials_csv
from tests.hostile.mutations import SAME, files_of, spoil

MORE = int(os.environ.get("HOSTILE_TIMES", "1"))
"""How many times as many examples."""
SECONDS, BYTES = 20, 2 * 2**30


def data_reader(name: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        config = DataConfig(name=name, path=folder, store=folder.parent / "store", page_width=64)
        store = open_or_prepare(config)
        return told(store)

    return read


def told(store: SessionStore) -> Any:
    """What a store holds, to compare."""
    pages = {page: np.asarray(store.image(page)).tobytes() for page in {s.page_id for s in store.sessions}}
    return [repr(session) for session in store.sessions], pages


def page_set(folder: Path) -> Any:
    return [(page.name, page.labels, page.items, page.image.tobytes()) for page in read_page_set(folder, width=64)]


def backbone(folder: Path) -> Any:
    return jax.tree.map(np.asarray, jax.tree.leaves(load_backbone(folder).params))


def bundle(folder: Path) -> Any:
    users = load_bundle(folder)
    return users.users, np.asarray(users.soft_prompts)


def preset(folder: Path) -> Any:
    return load_config(folder / "preset.yaml")


def write_pages(folder: Path) -> Path:
    (folder / "pages").mkdir(parents=True)
    Image.new("RGB", (400, 300), "navy").save(folder / "pages" / "shop.png")
    text = "page,x0,y0,x1,y1,item\nshop.png,10,20,200,150,red shoes\nshop.png,210,20,400,150,blue shoes\n"
    (folder / "slots.csv").write_text(text)
    return folder


def listed_pages(folder: Path) -> Path:
    write_pages(folder)
    (folder / "slots.csv").unlink()
    (folder / "slots.json").write_text('{"shop.png": [{"x0": 1, "y0": 2, "x1": 3, "y1": 4, "item": "red shoes"}]}')
    return folder


def copy(source: Path) -> Callable[[Path], Path]:
    return lambda folder: shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.png", "*.md", "*.csv"))


def write_store(folder: Path) -> Path:
    raw = trials_csv(_made(folder.parent / "raw"), users=2, trials=6)
    open_or_prepare(DataConfig(name="human_choice", path=raw, store=folder, page_width=64))
    return folder


def write_preset(folder: Path) -> Path:
    shutil.copyfile(PRESETS[1] / "demo.yaml", _made(folder) / "preset.yaml")
    return folder


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@dataclass(frozen=True)
class Kind:
    """A kind of input: how a valid one is written, how it is read, how often it is spoilt.

    Attributes:
        whole: files are checked against sums, so that whatever is read is what was written.
    """

    write: Callable[[Path], Path]
    read: Callable[[Path], Any]
    times: int
    whole: bool = False


KINDS = {
    "human_choice": Kind(lambda f: trials_csv(_made(f), users=2, trials=8), data_reader("human_choice"), 25),
    "recgaze": Kind(lambda f: write_folder(f, [*a_session(), *a_session(task=5)]), data_reader("recgaze"), 25),
    "adserp": Kind(lambda f: write_trial(write_trial(f), "p004-b1-t4"), data_reader("adserp"), 25),
    "own, dwell": Kind(lambda f: own_folder(f, gaze="dwell"), data_reader("own"), 25),
    "own, fixations": Kind(lambda f: own_folder(f, gaze="fixations"), data_reader("own"), 25),
    "pages": Kind(write_pages, page_set, 25),
    "listed pages": Kind(listed_pages, page_set, 15),
    "store": Kind(write_store, lambda folder: told(SessionStore.open(folder)), 25, whole=True),
    "preset": Kind(write_preset, preset, 25),
    "qwen3_vl": Kind(copy(SHIPPED / "tiny-qwen3-vl"), backbone, 20),
    "internvl": Kind(copy(SHIPPED / "tiny-internvl"), backbone, 20),
    "bundle": Kind(copy(SHIPPED_USERS["demo-users"]), bundle, 8),
}


@contextmanager
def in_time() -> Iterator[None]:
    """Within 20 s, or an exception that is no error of ours."""

    def late(*_: object) -> None:
        raise TimeoutError(f"took more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def remains(place: Path) -> set[str]:
    return {path.name for path in place.iterdir()}


def equal(a: Any, b: Any) -> bool:
    return jax.tree.all(jax.tree.map(lambda x, y: bool(np.array_equal(x, y)), a, b))


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Any]]:
    """A valid input of each kind, and what is read from it."""
    made: dict[str, tuple[Path, Any]] = {}

    def original(name: str) -> tuple[Path, Any]:
        if name not in made:
            folder = KINDS[name].write(tmp_path_factory.mktemp("original") / "given")
            copied = shutil.copytree(folder, tmp_path_factory.mktemp("read") / "given")
            made[name] = folder, KINDS[name].read(copied)
        return made[name]

    return original


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_whatever_is_done_to_a_file(
    name: str, originals: Callable[[str], tuple[Path, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    kind, (original, reference) = KINDS[name], originals(name)

    @settings(max_examples=MORE * kind.times, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        place = tmp_path_factory.mktemp("spoilt")
        folder = shutil.copytree(original, place / "given")
        done = spoil(data.draw, folder)
        before = remains(place)
        try:
            with in_time(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = kind.read(folder)
        except FixateError as error:
            assert str(error).strip(), done
            assert remains(place) == before, f"{done}: {remains(place) - before} was left behind"
        except Exception as error:
            raise AssertionError(f"{done}: {type(error).__name__}: {error}") from error
        else:
            assert not kind.whole or equal(found, reference), done
        finally:
            shutil.rmtree(place)

    # What other tests of this process have used at most is no part of it.
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    check()
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < BYTES


@pytest.mark.parametrize("way", SAME)
@pytest.mark.parametrize("name", [name for name in KINDS if name not in ("qwen3_vl", "internvl", "bundle")])
def test_what_says_the_same_is_read_as_the_same(
    name: str, way: str, originals: Callable[[str], tuple[Path, Any]], tmp_path: Path
) -> None:
    kind, (original, reference), (ending, change) = KINDS[name], originals(name), SAME[way]
    folder = shutil.copytree(original, tmp_path / "given")
    for path in (path for path in files_of(folder) if path.name.endswith(ending)):
        change(path)
    assert equal(kind.read(folder), reference)
