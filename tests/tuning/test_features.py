"""Page features are the same wherever they are kept, and are kept within their budgets."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from fixate_jax.backbones import load_backbone
from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.pipeline.features import FeatureStore, Tier
from fixate_jax.pipeline.kept import CacheConfig, choose_tier
from fixate_jax.probing.batches import SessionData
from fixate_jax.probing.passes import with_features
from tests.worlds import World

BUDGETS: dict[Tier, CacheConfig] = {
    "device": CacheConfig(),
    "host": CacheConfig(device_bytes=0),
    "disk": CacheConfig(device_bytes=0, host_bytes=0),
    "step": CacheConfig(device_bytes=0, host_bytes=0, disk_bytes=0),
}
# Pages of one size: one compilation of the vision tower.
ALIKE = ["page0", "page2"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("features"), sizes=((3, 320, 192), (6, 192, 160), (4, 320, 192)))


def store(
    world: World, cache: CacheConfig, directory: Path, images: Callable[[str], Image.Image] | None = None, **other: Any
) -> FeatureStore:
    images = images or world.images.__getitem__
    settings = {"backbone": world.backbone, "page_ids": list(world.images), **other}
    return FeatureStore(images=images, cache=cache, directory=directory, batch=2, **settings)


def test_the_first_budget_that_holds_it_wins() -> None:
    cache = CacheConfig(device_bytes=10, host_bytes=20, disk_bytes=30)
    sizes = (1, 10, 11, 20, 21, 30, 31)
    assert [choose_tier(n, cache) for n in sizes] == ["device", "device", "host", "host", "disk", "disk", "step"]
    assert choose_tier(25, CacheConfig(device_bytes=0, host_bytes=10, disk_bytes=24)) == "step"


def test_the_budget_counts_every_byte(world: World, tmp_path: Path) -> None:
    size = int(np.prod(world.features.shape)) * 4
    budgets = [CacheConfig(device_bytes=0, host_bytes=n, disk_bytes=0) for n in (size, size - 1)]
    just, short = (store(world, cache, tmp_path) for cache in budgets)
    assert just.tier == "host" and just.kept.rows.nbytes == size
    assert short.tier == "step" and short.kept.rows is None


def test_every_tier_gives_the_same_features_and_batches(world: World, tmp_path: Path) -> None:
    prepare = jax.jit(lambda params, batch: with_features(world.backbone.merge(params), batch))
    pages = list(world.images)[::-1]
    features, batches, inputs = {}, {}, {}
    for tier, cache in BUDGETS.items():
        kept = store(world, cache, tmp_path)
        assert kept.tier == tier
        features[tier], unseen = kept(pages)
        assert (features[tier] is None) == (tier == "step") == (unseen is not None)
        data = SessionData(
            world.sessions,
            world.data.encoded,
            world.data.user_rows,
            features=kept,
            prompt_tokens=world.config.prompt.tokens,
            signal="fixation",
            max_lengths=1,
        )
        batches[tier] = data.batch(range(len(world.sessions)))
        inputs[tier] = prepare(world.backbone.params, batches[tier])
    assert features["device"].shape == world.features.shape
    for tier in ("host", "disk"):
        np.testing.assert_array_equal(features[tier], features["device"])
        jax.tree.map(np.testing.assert_array_equal, batches[tier], batches["device"])
    for i, session in enumerate(world.sessions):
        visual = int(np.prod(world.features.grids[session.page_id]))
        cached, computed = (inputs[tier].features[i] for tier in ("device", "step"))
        np.testing.assert_allclose(computed[:visual], cached[:visual], atol=1e-5)
        assert not cached[visual:].any(), "nothing stands behind a page's last token"
    for tier, own in inputs.items():
        same = own._replace(features=None), inputs["device"]._replace(features=None)
        jax.tree.map(np.testing.assert_array_equal, *same)
        assert tier == "step" or batches[tier].pages is None


def test_a_page_alone_gives_the_same_features(world: World) -> None:
    """Padding to a bucket's size and the company of other pages change nothing."""
    encode = jax.jit(lambda params, pages: world.backbone.merge(params).encode_pages(pages))
    page = min(world.images, key=lambda p: np.prod(world.features.grids[p]))
    alone = encode(world.backbone.params, world.backbone.page_processor(world.images[page]).inputs)[0]
    kept = world.features([page])[0][0]
    assert len(alone) < len(kept)
    np.testing.assert_allclose(kept[: len(alone)], alone, atol=1e-5)


def test_the_disk_file_is_reused(world: World, tmp_path: Path) -> None:
    computed: list[int] = []

    def track(items: Any, title: str) -> Any:
        computed.append(len(items))
        return iter(items)

    folder = tmp_path / "new" / "folder"
    first = store(world, BUDGETS["disk"], folder, track=track, page_ids=ALIKE)
    (file,) = folder.iterdir()
    written = file.stat().st_mtime_ns
    second = store(world, BUDGETS["disk"], folder, track=track, page_ids=ALIKE)
    assert len(computed) == 1 and file.stat().st_mtime_ns == written
    np.testing.assert_array_equal(first(ALIKE)[0], second(ALIKE)[0])
    store(world, BUDGETS["disk"], folder, track=track, page_ids=ALIKE[:1])
    assert len(computed) == 2 and len(list(folder.iterdir())) == 2, "other pages are other features"


def test_nothing_half_written_is_left(world: World, tmp_path: Path) -> None:
    asked: list[str] = []

    def broken(page: str) -> Image.Image:
        asked.append(page)
        if len(asked) > len(ALIKE) + 1:
            raise OSError("disk full")
        return world.images[page]

    with pytest.raises(OSError, match="disk full"):
        store(world, BUDGETS["disk"], tmp_path, broken, page_ids=ALIKE)
    assert list(tmp_path.iterdir()) == []
    whole = store(world, BUDGETS["disk"], tmp_path, page_ids=ALIKE)
    np.testing.assert_allclose(whole(ALIKE)[0], world.features(ALIKE)[0], atol=1e-6)


@pytest.mark.parametrize("tier", ["device", "disk"])
def test_bfloat16(world: World, tmp_path: Path, tier: Tier) -> None:
    backbone = load_backbone(BackboneConfig(tapped_layers=2, dtype="bfloat16"), work=tmp_path)
    kept = store(world, BUDGETS[tier], tmp_path / "cache", backbone=backbone, page_ids=ALIKE)
    ours, theirs = kept(ALIKE)[0], world.features(ALIKE)[0]
    assert kept.tier == tier and ours.dtype == jnp.bfloat16
    difference = np.abs(np.asarray(ours, np.float32) - theirs)
    assert 0 < difference.max() < 0.05 * np.abs(theirs).max()
