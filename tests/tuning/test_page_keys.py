"""The bounded cache of pages' keys and values: tiers, budgets, who shares an entry, what a file is named after."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from fixate_jax import probing
from fixate_jax.backbones import load_backbone
from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.lab.config import PromptConfig, RunConfig
from fixate_jax.pipeline.features import FeatureStore
from fixate_jax.pipeline.kept import CacheConfig
from fixate_jax.pipeline.page_keys import NOWHERE, PageKeyStore, wants_page_keys
from fixate_jax.probing.batches import SessionData, TrainingPlan, evaluation_batches, training_iterator
from tests.worlds import World

BUDGETS = {
    "device": CacheConfig(),
    "host": CacheConfig(device_bytes=0),
    "disk": CacheConfig(device_bytes=0, host_bytes=0),
    "step": NOWHERE,
}
CONFIG = RunConfig(
    backbone=BackboneConfig(tapped_layers=2, attention_block=128),
    prompt=PromptConfig(basis=2, tokens=3, position="after_image"),
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Three pages of two sizes; of the first, two people are asked different things."""
    world = World(
        tmp_path_factory.mktemp("keys"),
        sizes=((3, 320, 192), (3, 192, 160), (4, 320, 192)),
        config=CONFIG,
        max_lengths=2,
    )
    world.sessions.append(replace(world.sessions[0], session_id="again", user_id="u1", profile="hates films"))
    first = world.data.encoded[0]
    asked = world.backbone.encoder(
        profile="hates films", labels=world.sessions[0].labels, rows=first.rows, columns=first.columns
    )
    encoded: Any = world.data.encoded
    encoded.append(asked)
    return world


def store(world: World, cache: CacheConfig, directory: Path, **other: Any) -> PageKeyStore:
    how: dict[str, Any] = {
        "backbone": world.backbone,
        "features": world.features,
        "encoded": world.data.encoded,
        **other,
    }
    pages = [s.page_id for s in world.sessions]
    return PageKeyStore(page_ids=pages, cache=cache, directory=directory, batch=2, **how)


def data(world: World, keys: PageKeyStore | None) -> SessionData:
    return SessionData(
        world.sessions,
        world.data.encoded,
        world.data.user_rows,
        features=world.features,
        prompt_tokens=3,
        signal="fixation",
        max_lengths=2,
        position="after_image",
        page_keys=keys,
    )


def test_every_tier_gives_the_keys_that_the_step_would_compute(world: World, tmp_path: Path) -> None:
    kept = {tier: store(world, cache, tmp_path) for tier, cache in BUDGETS.items()}
    assert [keys.tier for keys in kept.values()] == list(BUDGETS)
    compute = jax.jit(lambda params, inputs: world.backbone.merge(params).page_keys(inputs))
    for bucket in evaluation_batches(data(world, None), range(len(world.sessions)), 3):
        inputs = data(world, None).batch(bucket).inputs
        expected = np.asarray(compute(world.backbone.params, inputs))
        real = np.broadcast_to(np.asarray(inputs.page_valid)[:, None, None, :, None, None], expected.shape)
        for tier in ("device", "host", "disk"):
            batch = data(world, kept[tier]).batch(bucket)
            assert batch.inputs.features is None and batch.pages is None
            found = np.asarray(batch.inputs.page_keys)
            assert found.shape == expected.shape and found.dtype == world.backbone.config.decoder.dtype
            np.testing.assert_allclose(found[real], expected[real], atol=1e-5)


def test_people_who_see_a_page_share_its_entry(world: World, tmp_path: Path) -> None:
    keys = store(world, BUDGETS["host"], tmp_path)
    assert keys.entry_of == [0, 1, 2, 0]
    encoded = [
        replace(e, token_ids=e.token_ids + (i == 3) * (np.arange(len(e.token_ids)) == 0))
        for i, e in enumerate(world.data.encoded)
    ]
    other = store(world, BUDGETS["host"], tmp_path, encoded=encoded)
    assert other.entry_of == [0, 1, 2, 3], "what is said before a page is part of its keys"
    assert np.abs(other([3]) - other([0])).max() > 1e-3


def test_budgets_hold(world: World, tmp_path: Path) -> None:
    decoder = world.backbone.config.decoder
    rows = max(e.page_end for e in world.data.encoded)
    size = 3 * rows * 2 * decoder.layers * decoder.kv_heads * decoder.head_dim * 4
    just, short = (store(world, replace(NOWHERE, host_bytes=n), tmp_path) for n in (size, size - 1))
    assert just.tier == "host" and just.kept.rows.nbytes == size
    assert short.tier == "step" and short.kept.rows is None
    on_disk = store(world, replace(NOWHERE, disk_bytes=size), tmp_path)
    (file,) = tmp_path.iterdir()
    assert on_disk.tier == "disk" and size <= file.stat().st_size < size + 1024


def test_the_files_name_depends_on_all_that_its_numbers_do(world: World, tmp_path: Path) -> None:
    def changed(page: str) -> Image.Image:
        image = world.images[page].copy()
        image.putpixel((5, 5), (1, 2, 3))
        return image

    other_pages = FeatureStore(world.backbone, changed, list(world.images), NOWHERE, directory=tmp_path, batch=2)

    def names(**other: Any) -> set[str]:
        store(world, BUDGETS["disk"], tmp_path, **other)
        return {file.name for file in tmp_path.iterdir()}

    first = names()
    assert len(first) == 1 and names() == first, "used again"
    encoded = world.data.encoded
    flat = [
        replace(e, positions=np.repeat(np.arange(len(e.token_ids), dtype=np.int32)[:, None], 3, 1)) for e in encoded
    ]
    others: list[dict[str, Any]] = [{"features": other_pages}, {"encoded": flat}, {"encoded": [*encoded[:3], flat[3]]}]
    for i, other in enumerate(others):
        assert len(names(**other)) == i + 2


def test_nothing_half_written_is_left(world: World, tmp_path: Path) -> None:
    def broken(groups: Any, title: str) -> Any:
        yield groups[0]
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        store(world, BUDGETS["disk"], tmp_path, track=broken)
    assert list(tmp_path.iterdir()) == []


def test_bfloat16_on_disk(world: World, tmp_path: Path) -> None:
    backbone = load_backbone(BackboneConfig(tapped_layers=2, dtype="bfloat16"), work=tmp_path)
    ours, theirs = (
        store(world, BUDGETS["disk"], tmp_path / name, backbone=b)([1])[0]
        for name, b in (("a", backbone), ("b", world.backbone))
    )
    rows = world.data.encoded[1].page_end
    assert ours.dtype == backbone.config.decoder.dtype != theirs.dtype
    difference = np.abs(ours.astype(np.float32) - theirs)[:, :, :rows]
    assert 0 < difference.max() < 0.05 * np.abs(theirs).max()


def test_training_reads_them_in_micro_batches(world: World, tmp_path: Path) -> None:
    keys = store(world, BUDGETS["disk"], tmp_path)
    sessions = data(world, keys)
    plan = TrainingPlan(sessions, range(4), rows=2, seed=0, epochs=1)
    for batch in training_iterator(sessions, plan, accumulate=2):
        whose = [int(i if i >= 0 else batch.session.max()) for i in batch.session.ravel()]
        assert batch.inputs.page_keys is not None
        got = batch.inputs.page_keys.reshape(2, *batch.inputs.page_keys.shape[2:])
        np.testing.assert_array_equal(got, keys(whose)[:, :, :, : got.shape[3]])


def test_which_runs_use_them() -> None:
    assert wants_page_keys("after_image", probing.attention())
    assert not wants_page_keys("after_image", probing.rollout())
    assert not wants_page_keys("before", probing.attention())
