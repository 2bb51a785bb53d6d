"""Checkpoints from the Hugging Face Hub, by way of its own cache."""

import re
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from fixate_jax.errors import CheckpointError

FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer*", "vocab*", "merges.txt"]
"""What a backbone is read from. Code and pickled weights are never fetched."""
ELSEWHERE = ["*/*"]
"""Folders within a repository hold other versions of the model (ONNX, GGUF)."""
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def is_hub_id(path: str) -> bool:
    """Whether a ``backbone.path`` means a repository: ``owner/name``, and no such directory is here."""
    return _REPOSITORY.fullmatch(path) is not None and not Path(path).is_dir()


def download(repository: str, revision: str | None = None) -> Path:
    """A repository's files on disk, fetched where the cache does not hold them yet.

    The cache's place, the token and offline mode are huggingface_hub's: ``HF_HOME``, ``HF_TOKEN``, ``HF_HUB_OFFLINE``.

    Args:
        repository: ``owner/name``.
        revision: branch, tag or commit (None: the main branch as it is now; offline, as it was last fetched).

    Returns:
        The directory, within the cache.

    Raises:
        CheckpointError: naming the repository and what to do.
    """
    name = repository if revision is None else f"{repository} (revision {revision})"
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=FILES, ignore_patterns=ELSEWHERE))
    except Exception as error:  # Its own, those of the connection, those of the disk.
        reason = next(iter(str(error).split("\n")), "").strip() or type(error).__name__
        raise CheckpointError(
            f"backbone.path {name!r} cannot be had from the Hub: {_advice(error, repository)} ({reason})"
        ) from error


def _advice(error: Exception, repository: str) -> str:
    """What went wrong and what to do about it."""
    if isinstance(error, GatedRepoError):
        page = f"{constants.ENDPOINT}/{repository}"
        return f"accept its terms on {page}, then log in with `hf auth login` or set HF_TOKEN"
    if isinstance(error, RepositoryNotFoundError):
        return (
            "neither is there such a directory here nor such a repository there; mind the spelling, and set HF_TOKEN "
            "if the repository is private"
        )
    if isinstance(error, RevisionNotFoundError):
        return "it has no such revision; set backbone.revision to a branch, a tag or a commit of it"
    if isinstance(error, LocalEntryNotFoundError):
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the Hub cannot be reached"
        return (
            f"it is no directory here, not all of its files are in {constants.HF_HUB_CACHE}, and {why}; "
            "fetch it once while online, or give the path of a local directory"
        )
    return "try again, or fetch its files by hand and give their directory"
