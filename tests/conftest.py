"""Shared by all tests: the platform, compilation, and the data folder beside the repository."""

import atexit
import os
import shutil
import tempfile

# Before jax is imported anywhere: numbers are compared to the bit, and only the CPU promises that everywhere.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the time goes into compiling small programs; the lowest effort halves that and computes the same formulas.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1")
# A program that several tests compile is compiled once; worker processes find the folder in their environment.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="fixate-jax-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

from pathlib import Path

import pytest

SHARED = Path(__file__).parents[1] / ".." / "shared"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the raw data sets, which are not part of the repository."""
    folder = (SHARED / "data").resolve()
    if not folder.is_dir():
        pytest.skip(f"the raw data sets are not here ({SHARED / 'data'} is no folder)")
    return folder
