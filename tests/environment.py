"""How JAX compiles in tests: on the CPU, with the least effort, into a cache that later runs find."""

import os
import shutil
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
CACHE = ROOT / ".jax-cache"
"""Compiled programs of earlier runs. Ignored by git; `make clean` removes it."""
CACHE_BYTES = 2 * 2**30
"""Above this size it is begun anew."""

FAST_COMPILE = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
if metadata.version("jaxlib").startswith("0.10."):
    # Newer ones do not know it, and end the process.
    FAST_COMPILE += " --xla_cpu_use_fusion_emitters=false"
"""Compiles a train step in about a third of the time. The programs compute the same formulas, only slower."""


def set_up() -> None:
    """Settings for this process and its children. Call it before jax is imported; what is already set stays."""
    defaults = {
        "JAX_PLATFORMS": "cpu",  # Numbers are compared to the bit, and only the CPU promises that everywhere.
        "XLA_FLAGS": FAST_COMPILE,
        "JAX_COMPILATION_CACHE_DIR": str(CACHE),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "MATPLOTLIBRC": str(Path(__file__).with_name("matplotlibrc")),
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
        # Without compiled modules each of some fifty processes takes twice as long to import JAX, pandas and the like.
        # Whoever wants none among the sources gets them aside.
        os.environ.setdefault("PYTHONPYCACHEPREFIX", str(CACHE / "python"))
        sys.pycache_prefix, sys.dont_write_bytecode = os.environ["PYTHONPYCACHEPREFIX"], False
    if sum(file.stat().st_size for file in CACHE.glob("*")) > CACHE_BYTES:
        shutil.rmtree(CACHE, ignore_errors=True)


def of_child(*, devices: int = 1, **more: str) -> dict[str, str]:
    """The environment of a child process.

    Args:
        devices: simulated CPU devices.
        more: further variables.
    """
    flags = f"{FAST_COMPILE} --xla_force_host_platform_device_count={devices}"
    # A device that waits for another one occupies a thread of XLA's; with fewer threads than waits, all wait for ever.
    threads = {"NPROC": "32"} if devices > 1 else {}
    return os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"} | threads | more
