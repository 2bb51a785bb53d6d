"""What a figure rests on: the command, the commit, the machine, the versions of what computed it."""

import hashlib
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fixate_jax.runtime.versions import versions


def provenance() -> dict[str, Any]:
    """When, by which command, on which commit, machine and versions this process computes."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "command": " ".join([Path(sys.argv[0]).name, *map(_shown, sys.argv[1:])]),
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
    }


def _shown(argument: str) -> str:
    """An argument as others may read it: where this machine keeps its files is nobody's business."""
    flag, equals, value = argument.partition("=")
    if argument.startswith("-") and equals:
        return f"{flag}={_shown(value)}"
    path = Path(argument).expanduser()
    if not path.is_absolute():
        return shlex.quote(argument)
    return f"{'configs' if path.parent.name == 'configs' else 'PATH'}/{shlex.quote(path.name)}"


def commit() -> str:
    """The commit of the package's files, "with changes" where they differ from it; "not in a checkout" elsewhere."""
    folder = Path(__file__).parents[2]
    if not (folder / ".git").exists():
        return "not in a checkout"
    try:
        found = _git(folder, "rev-parse", "--short=10", "HEAD")
        changes = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", "fixate_jax", "configs", "train")
    except (OSError, subprocess.CalledProcessError):
        return "unknown: git cannot be run"
    return f"{found} with changes" if changes else found


def _git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def machine() -> str:
    """The processor as far as it is told, and how many of it this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{name}, {cores} logical processors, {platform.system()}"


def key_of(*parts: object) -> str:
    """A short name for some settings, the same in every process."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
