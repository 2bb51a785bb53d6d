"""`fixate convert`: there and back without a changed bit, whole or not at all, and nothing wrong is read in silence."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fixate_jax import cli
from fixate_jax.backbones import Backbone, load_backbone
from fixate_jax.backbones import convert as converting
from fixate_jax.backbones.cache import MANIFEST, PARAMETERS, SUMS
from fixate_jax.backbones.checkpoint import INDEX_FILE, SINGLE_FILE
from fixate_jax.backbones.convert import convert
from fixate_jax.backbones.tiny_random import TinySizes, write_tiny_random
from fixate_jax.config import BackboneConfig
from fixate_jax.errors import CheckpointError
from tests.backbones.tiny_internvl import rewrite_as_original

SIZES = TinySizes(width=32, ff=48, layers=3, heads=2, kv_heads=1, head_dim=16, vision_width=32, vision_ff=48)
NORM = "model.language_model.norm.weight"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_random(tmp_path_factory.mktemp("convert") / "model", sizes=SIZES)


@pytest.fixture
def rounded(original: Path, tmp_path: Path) -> Path:
    """The same in bfloat16, as published checkpoints are."""
    directory = shutil.copytree(original, tmp_path / "rounded")
    tensors = load_file(directory / SINGLE_FILE)
    save_file({name: x.astype(ml_dtypes.bfloat16) for name, x in tensors.items()}, directory / SINGLE_FILE)
    return directory


@pytest.fixture
def cached(original: Path, tmp_path: Path) -> Path:
    convert(settings(original), tmp_path / "cached")
    return tmp_path / "cached"


def settings(directory: Path, **fields: Any) -> BackboneConfig:
    return BackboneConfig(**{"path": str(directory), "tapped_layers": 2, **fields})


def equal(first: Backbone, second: Backbone) -> None:
    structures: list[Any] = [jax.tree.structure(backbone.params) for backbone in (first, second)]
    assert structures[0] == structures[1]
    for a, b in zip(jax.tree.leaves(first.params), jax.tree.leaves(second.params), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def weights(directory: Path) -> dict[str, np.ndarray]:
    return {name: x for file in directory.glob("*.safetensors") for name, x in load_file(file).items()}


def same_checkpoint(first: Path, second: Path) -> None:
    """Every tensor has the same type, shape and bytes, every other file the same content."""
    a, b = weights(first), weights(second)
    assert a.keys() == b.keys()
    for name in a:
        assert (a[name].dtype, a[name].shape) == (b[name].dtype, b[name].shape), name
        assert a[name].tobytes() == b[name].tobytes(), name
    for file in first.iterdir():
        if file.suffix != ".safetensors" and file.name != INDEX_FILE:
            assert (second / file.name).read_bytes() == file.read_bytes(), file.name


def refused(directory: Path, *parts: str, **fields: Any) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_backbone(settings(directory, **fields))
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize("name", ["original", "rounded"])
def test_there_and_back_gives_the_same_bytes(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    source: Path = request.getfixturevalue(name)
    made = convert(settings(source), tmp_path / "cache")
    assert made == settings(tmp_path / "cache", dtype="float32" if name == "original" else "bfloat16")
    assert weights(tmp_path / "cache") == {}
    equal(load_backbone(made), load_backbone(settings(source, dtype=made.dtype)))
    convert(made, tmp_path / "back", to="safetensors")
    same_checkpoint(source, tmp_path / "back")
    assert sorted(p.name for p in (tmp_path / "back").iterdir()) == sorted(p.name for p in source.iterdir())
    assert {p.name for p in tmp_path.iterdir()} <= {"rounded", "cache", "back"}, "nothing half-written may stay behind"


def test_internvl_there_and_back(tmp_path: Path) -> None:
    source = write_tiny_random(tmp_path / "transformers", sizes=TinySizes(family="internvl"))
    for directory in (source, rewrite_as_original(source, tmp_path / "original")):
        cache, back = (tmp_path / f"{directory.name}-{form}" for form in ("cache", "back"))
        made = convert(settings(directory), cache)
        equal(load_backbone(made), load_backbone(settings(directory)))
        convert(made, back, to="safetensors")
        same_checkpoint(directory, back)


def test_several_types_in_one_checkpoint_come_back_as_they_were(rounded: Path, tmp_path: Path) -> None:
    tensors = load_file(rounded / SINGLE_FILE)
    tensors |= {NORM: tensors[NORM].astype(np.float32) + np.float32(1e-4)}
    save_file(tensors, rounded / SINGLE_FILE)
    made = convert(settings(rounded), tmp_path / "cache")
    assert made.dtype == "float32"
    convert(made, tmp_path / "back", to="safetensors")
    same_checkpoint(rounded, tmp_path / "back")


def test_a_cast_cache_comes_back_in_its_own_type(original: Path, tmp_path: Path) -> None:
    made = convert(settings(original), tmp_path / "cache", dtype="bfloat16")
    equal(load_backbone(made), load_backbone(settings(original, dtype="bfloat16")))
    convert(made, tmp_path / "back", to="safetensors")
    back, before = weights(tmp_path / "back"), weights(original)
    assert {x.dtype for x in back.values()} == {np.dtype(ml_dtypes.bfloat16)}
    assert all((back[name] == before[name].astype(ml_dtypes.bfloat16)).all() for name in before)


def test_large_checkpoints_are_spread_over_files(rounded: Path, tmp_path: Path) -> None:
    limit = 20_000
    convert(settings(rounded), tmp_path / "back", to="safetensors", max_shard_bytes=limit)
    same_checkpoint(rounded, tmp_path / "back")
    index = json.loads((tmp_path / "back" / INDEX_FILE).read_text())
    files = sorted((tmp_path / "back").glob("*.safetensors"))
    assert len(files) > 3
    assert [f.name for f in files] == [f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))]
    parts = {file.name: load_file(file) for file in files}
    assert index["weight_map"] == {name: file for file, part in sorted(parts.items()) for name in part}
    sizes = [[x.nbytes for x in part.values()] for part in parts.values()]
    assert index["metadata"]["total_size"] == sum(map(sum, sizes))
    assert all(sum(part) <= limit or len(part) == 1 for part in sizes)
    equal(load_backbone(settings(tmp_path / "back")), load_backbone(settings(rounded)))


def test_transformers_reads_what_is_written(original: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from fixate_jax.backbones.verify import verify

    convert(settings(original), tmp_path / "back", to="safetensors", max_shard_bytes=50_000)
    assert verify(tmp_path / "back", settings=settings(original))["ok"].all()


def test_settings_that_want_another_cache_are_named(cached: Path) -> None:
    with_what = "was converted with backbone.dtype = float32, backbone.tapped_layers = 2"
    refused(cached, str(cached), with_what, "run `fixate convert` again", dtype="bfloat16")
    refused(cached, str(cached), with_what, tapped_layers=1)
    (cached / MANIFEST).write_text(json.dumps(json.loads((cached / MANIFEST).read_text()) | {"format": 0}))
    refused(cached, MANIFEST, "format 0", "convert again")


def test_a_cache_with_another_checkpoints_configuration_is_refused(cached: Path, tmp_path: Path) -> None:
    other = write_tiny_random(tmp_path / "other", sizes=TinySizes(**{**vars(SIZES), "ff": 64}))
    shutil.copyfile(other / "config.json", cached / "config.json")
    refused(cached, str(cached), "down_proj.kernel' is float32[1, 48, 32] there, float32[1, 64, 32] here")
    # The same shapes, other words.
    other = write_tiny_random(tmp_path / "words", sizes=TinySizes(**{**vars(SIZES), "rope_theta": 5e6}))
    shutil.copyfile(other / "config.json", cached / "config.json")
    refused(cached, str(cached / "config.json"), "differs from its checksum")


def test_any_flipped_bit_is_seen(cached: Path) -> None:
    files = [p for p in cached.rglob("*") if p.is_file() and p.stat().st_size and p.name != SUMS]
    parameters = [p for p in files if PARAMETERS in p.parts]
    assert len(parameters) >= 3
    for path in (*parameters, cached / "tokenizer.json"):
        before = path.read_bytes()
        path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        refused(cached, str(path), "differs from its checksum")
        path.unlink()
        refused(cached, str(path), "not found")
        path.write_bytes(before)
    load_backbone(settings(cached))


def test_what_is_there_is_never_overwritten(original: Path, rounded: Path, cached: Path, tmp_path: Path) -> None:
    before = {p: p.read_bytes() for p in cached.rglob("*") if p.is_file()}
    for source, fields, options, message in (
        (original, {}, {}, "the cache of this very checkpoint already"),
        (original, {}, {"dtype": "bfloat16"}, "another dtype"),
        (original, {"tapped_layers": 3}, {}, "another tapped_layers"),
        (rounded, {}, {"dtype": "float32"}, "another checkpoint"),
        (rounded, {}, {}, "another checkpoint and dtype"),
        (original, {}, {"to": "safetensors"}, "is there already"),
    ):
        with pytest.raises(CheckpointError, match=message):
            convert(settings(source, **fields), cached, **options)  # type: ignore[arg-type]
    assert before == {p: p.read_bytes() for p in cached.rglob("*") if p.is_file()}
    (tmp_path / "mine").mkdir()
    with pytest.raises(CheckpointError, match=r"mine: is there already; name a new directory"):
        convert(settings(original), tmp_path / "mine")
    with pytest.raises(CheckpointError, match="is a cache already"):
        convert(settings(cached), tmp_path / "new")


@pytest.mark.parametrize("to", ["cache", "safetensors"])
@pytest.mark.parametrize("error", [OSError("No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_nothing_behind(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, to: Any
) -> None:
    def fail(folder: Path) -> None:
        assert len(list(folder.iterdir())) > 3
        raise error

    monkeypatch.setattr(converting, "flush", fail)
    wanted = CheckpointError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(wanted):
        convert(settings(original), tmp_path / "deep" / "out", to=to)
    assert list((tmp_path / "deep").iterdir()) == []


def test_fingerprint_of_a_cache_follows_its_content(original: Path, cached: Path, tmp_path: Path) -> None:
    first = load_backbone(settings(cached)).fingerprint
    assert load_backbone(settings(cached)).fingerprint == first
    other = write_tiny_random(tmp_path / "other", sizes=SIZES, seed=1)
    made = convert(settings(other), tmp_path / "other-cache")
    assert load_backbone(made).fingerprint != first


def test_the_command(original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def call(*arguments: str | Path) -> int:
        with pytest.raises(SystemExit) as left:
            cli.main(["convert", *map(str, arguments)])
        assert isinstance(left.value.code, int)
        return left.value.code

    cache, back = tmp_path / "cache", tmp_path / "back"
    assert call(original, cache, "--dtype", "bfloat16", "--tapped-layers", "2") == 0
    shown = capsys.readouterr().out
    flags = shown.split("use it with ")[1].split()
    assert flags == [
        *("--backbone.path", str(cache), "--backbone.dtype", "bfloat16", "--backbone.tapped-layers", "2"),
    ]
    assert call(original, cache) == 2
    assert f"{cache}: holds a cache with another dtype and tapped_layers" in capsys.readouterr().err
    assert call(cache, back, "--to", "safetensors", "--max-shard-gb", "0.00005") == 0
    assert len(list(back.glob("*.safetensors"))) > 1
    assert call(cache, back, "--max-shard-gb", "0") == 2
    assert "--max-shard-gb 0.0: must be above 0" in capsys.readouterr().err
    assert call("nowhere", tmp_path / "new") == 2
    assert "'nowhere' is neither a directory nor" in capsys.readouterr().err
