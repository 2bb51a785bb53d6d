"""Checkpoints from the Hub: its cache, offline mode and errors, without a network."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import filter_repo_objects

from fixate_jax.backbones import load_backbone, resolve
from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.backbones.tiny.random import TinySizes, write_tiny_random
from fixate_jax.backbones.weights import hub
from fixate_jax.backbones.weights.hub import is_hub_id
from fixate_jax.errors import CheckpointError
from fixate_jax.lab.config import RunConfig
from fixate_jax.lab.experiments.experiment import absolute_paths

NAME, COMMIT, OLDER = "someone/Tiny-VL", "1" * 40, "2" * 40
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ``HF_HOME`` as huggingface_hub lays it out, with two commits of a repository."""
    folder = tmp_path_factory.mktemp("huggingface")
    repository = folder / "hub" / f"models--{NAME.replace('/', '--')}"
    (repository / "blobs").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "refs" / "v1").write_text(OLDER)
    for commit, seed in ((COMMIT, 0), (OLDER, 1)):
        snapshot = repository / "snapshots" / commit
        snapshot.mkdir(parents=True)
        for file in write_tiny_random(folder / commit, seed=seed, sizes=TinySizes(layers=2)).iterdir():
            shutil.copyfile(file, repository / "blobs" / f"{commit}-{file.name}")
            (snapshot / file.name).symlink_to(f"../../blobs/{commit}-{file.name}")
    return folder


@pytest.fixture
def offline(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Offline mode with that cache; the folder is empty otherwise."""
    # Both are read from the environment when huggingface_hub is imported, which was long ago.
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return home / "hub"


def refused(path: str, *parts: str, revision: str | None = None) -> None:
    with pytest.raises(CheckpointError) as caught:
        resolve(path, work=Path("."), revision=revision)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("Qwen/Qwen3-VL-4B-Instruct", True),
        ("OpenGVLab/InternVL3_5-4B", True),
        ("nowhere", False),
        ("a/b/c", False),
        ("/models/Qwen", False),
        ("./models", False),
        ("../models", False),
        ("models/", False),
        ("models/here", False),
        ("models/Qwen 3", False),
    ],
)
def test_what_a_repository_looks_like(
    path: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "here").mkdir(parents=True)
    assert is_hub_id(path) is expected


def test_a_cached_repository_is_used_offline(offline: Path, home: Path) -> None:
    found = load_backbone(BackboneConfig(path=NAME, tapped_layers=1))
    assert found.directory.parent.name == "snapshots" and found.directory.is_relative_to(offline)
    plain = load_backbone(BackboneConfig(path=str(home / COMMIT), tapped_layers=1))
    assert found.fingerprint == plain.fingerprint


@pytest.mark.parametrize(("revision", "commit"), [(None, COMMIT), ("v1", OLDER), (OLDER, OLDER)])
def test_revision(offline: Path, revision: str | None, commit: str) -> None:
    assert resolve(NAME, work=Path("."), revision=revision).name == commit


def test_load_backbone_passes_the_revision_on(offline: Path) -> None:
    assert load_backbone(BackboneConfig(path=NAME, revision="v1", tapped_layers=1)).directory.name == OLDER


def test_offline_and_not_in_the_cache(offline: Path) -> None:
    refused("someone/else", "'someone/else'", "no directory here", str(offline), "HF_HUB_OFFLINE is set")
    refused(NAME, f"'{NAME} (revision v2)'", "HF_HUB_OFFLINE is set", revision="v2")


def test_a_name_that_is_nothing(offline: Path) -> None:
    refused(
        "nowhere", "neither a directory nor an embedded backbone (tiny-", "nor a repository on the Hub (owner/name)"
    )


def test_environment_variables_are_honoured(home: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from fixate_jax.backbones import resolve\n"
        f"print(resolve({NAME!r}, work=Path('.')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == home / "hub" / "models--someone--Tiny-VL" / "snapshots" / COMMIT


def answered(kind: type[HfHubHTTPError], status: int) -> Callable[..., Any]:
    """What asking the Hub ends with."""

    def ask(*args: Any, **kwargs: Any) -> Any:
        # huggingface_hub's own client, of whatever release.
        client = huggingface_hub.utils.get_session()
        request = client.build_request("GET", "https://example.org")
        response = type("Response", (), {"headers": {}, "request": request, "status_code": status})()
        raise kind("it said no\nat length", response=response)  # type: ignore[arg-type]

    return ask


def unreachable(*args: Any, **kwargs: Any) -> Any:
    raise OfflineModeIsEnabled("no way out")


@pytest.mark.parametrize(
    ("ask", "parts"),
    [
        (answered(GatedRepoError, 403), ("accept its terms on https://", "someone/else", "HF_TOKEN")),
        (answered(RepositoryNotFoundError, 404), ("neither is there such a directory here nor such a repository",)),
        (answered(RevisionNotFoundError, 404), ("it has no such revision", "backbone.revision")),
        (answered(HfHubHTTPError, 500), ("the Hub cannot be reached", "give the path of a local directory")),
        (unreachable, ("the Hub cannot be reached",)),
    ],
    ids=["gated", "no repository", "no revision", "server error", "no connection"],
)
def test_what_the_hub_refuses(
    ask: Callable[..., Any], parts: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", ask)
    refused("someone/else", "backbone.path 'someone/else' cannot be had from the Hub", *parts)


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> str:
        raise OSError("No space left on device")

    monkeypatch.setattr(hub, "snapshot_download", fail)
    refused("someone/else", "No space left on device", "try again")


def test_neither_code_nor_pickles_nor_other_versions_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def download(repository: str, **options: Any) -> str:
        asked.update(options, repository=repository)
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert resolve("someone/else", work=Path("."), revision="v1") == tmp_path
    assert (asked.pop("repository"), asked.pop("revision")) == ("someone/else", "v1")
    wanted = [
        *("config.json", "generation_config.json", "model.safetensors", "model-00001-of-00002.safetensors"),
        *("model.safetensors.index.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"),
        *("chat_template.json", "chat_template.jinja", "added_tokens.json", "vocab.json", "merges.txt"),
    ]
    unwanted = [
        *("modeling_internvl_chat.py", "pytorch_model.bin", "model.gguf", "README.md", "onnx/model.safetensors"),
        *("onnx/config.json", ".gitattributes", "examples/image1.jpg", "training_args.pt"),
    ]
    assert list(filter_repo_objects([*wanted, *unwanted], **asked)) == wanted


def test_a_runs_settings_keep_the_repositorys_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = RunConfig()
    kept = absolute_paths(replace(config, backbone=BackboneConfig(path="someone/else", revision="v1")))
    assert (kept.backbone.path, kept.backbone.revision) == ("someone/else", "v1")
    (tmp_path / "someone" / "else").mkdir(parents=True)
    made = absolute_paths(replace(config, backbone=BackboneConfig(path="someone/else")))
    assert made.backbone.path == str(tmp_path / "someone" / "else")
