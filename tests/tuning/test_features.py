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
from fixate_jax.config import BackboneConfig, CacheConfig, PromptConfig, RunConfig
from fixate_jax.prompts import soft_prompt
from fixate_jax.tuning.batches import SessionData
from fixate_jax.tuning.features import FeatureStore, choose_tier
from fixate_jax.tuning.step import make_evaluate
from tests.worlds import World

NONE = {"device_bytes": 0, "host_bytes": 0, "disk_bytes": 0}
LARGE = 2**30
BUDGETS = {
    "device": CacheConfig(),
    "host": CacheConfig(**NONE | {"host_bytes": LARGE}),
    "disk": CacheConfig(**NONE | {"disk_bytes": LARGE}),
    "step": CacheConfig(**NONE),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("features"))


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
    just, short = (store(world, CacheConfig(**NONE | {"host_bytes": n}), tmp_path) for n in (size, size - 1))
    assert just.tier == "host" and just._features.nbytes == size
    assert short.tier == "step" and short._features is None


def test_every_tier_gives_the_same_features_and_evaluation(world: World, tmp_path: Path) -> None:
    evaluate = make_evaluate(world.backbone.graph, world.config, world.backbone.encoder.end_token)
    prompt = soft_prompt(world.prompt(), jnp.asarray([s % 3 for s in range(4)]))
    encode = jax.jit(lambda params, pages: world.backbone.merge(params).encode_pages(pages))
    pages = list(world.images)[::-1]
    features, batches, results = {}, {}, {}
    for tier, cache in BUDGETS.items():
        kept = store(world, cache, tmp_path)
        assert kept.tier == tier
        data = SessionData(
            world.sessions,
            world.data.encoded,
            world.data.user_rows,
            features=kept,
            prompt_tokens=world.config.prompt.tokens,
            signal="fixation",
            max_lengths=1,
        )
        batches[tier] = data.batch(range(4))
        results[tier] = evaluate(prompt, True, world.backbone.params, jax.tree.map(jnp.asarray, batches[tier]))
        cached, inputs = kept(pages)
        assert (cached is None) == (tier == "step") == (inputs is not None)
        features[tier] = np.asarray(cached if inputs is None else encode(world.backbone.params, inputs))
    assert features["device"].shape[1:] == world.features.shape[1:]
    for tier in ("host", "disk"):
        np.testing.assert_array_equal(features[tier], features["device"])
        jax.tree.map(np.testing.assert_array_equal, batches[tier], batches["device"])
        jax.tree.map(np.testing.assert_array_equal, results[tier], results["device"])
    for i, page in enumerate(pages):
        visual = int(np.prod(world.features.grids[page]))
        np.testing.assert_allclose(features["step"][i, :visual], features["device"][i, :visual], atol=1e-5)
        assert not features["device"][i, visual:].any(), "nothing stands behind a page's last token"
    np.testing.assert_array_equal(results["step"].answer, results["device"].answer)
    for name in ("log_probs", "teacher_forced", "free_running"):
        np.testing.assert_allclose(getattr(results["step"], name), getattr(results["device"], name), atol=1e-4)


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

    first = store(world, BUDGETS["disk"], tmp_path / "new" / "folder", track=track)
    (file,) = (tmp_path / "new" / "folder").iterdir()
    written = file.stat().st_mtime_ns
    second = store(world, BUDGETS["disk"], tmp_path / "new" / "folder", track=track)
    assert len(computed) == 1 and file.stat().st_mtime_ns == written
    pages = list(world.images)
    np.testing.assert_array_equal(first(pages)[0], second(pages)[0])
    store(world, BUDGETS["disk"], tmp_path / "new" / "folder", track=track, page_ids=pages[:2])
    assert len(computed) == 2, "other pages are other features"


def test_nothing_half_written_is_left(world: World, tmp_path: Path) -> None:
    asked: list[str] = []

    def broken(page: str) -> Image.Image:
        asked.append(page)
        if len(asked) > len(world.images) + 2:
            raise OSError("disk full")
        return world.images[page]

    with pytest.raises(OSError, match="disk full"):
        store(world, BUDGETS["disk"], tmp_path, broken)
    assert list(tmp_path.iterdir()) == []
    pages = list(world.images)
    whole = store(world, BUDGETS["disk"], tmp_path)
    np.testing.assert_array_equal(whole(pages)[0], world.features(pages)[0])


@pytest.mark.parametrize("tier", ["device", "host", "disk"])
def test_bfloat16(world: World, tmp_path: Path, tier: str) -> None:
    config = RunConfig(backbone=BackboneConfig(tapped_layers=2, dtype="bfloat16"), prompt=PromptConfig(tokens=4))
    backbone = load_backbone(config.backbone, work=tmp_path)
    kept = store(world, BUDGETS[tier], tmp_path / "cache", backbone=backbone)
    pages = list(world.images)
    ours, theirs = kept(pages)[0], world.features(pages)[0]
    assert kept.tier == tier and ours.dtype == jnp.bfloat16
    difference = np.abs(np.asarray(ours, np.float32) - theirs)
    assert 0 < difference.max() < 0.05 * np.abs(theirs).max()
