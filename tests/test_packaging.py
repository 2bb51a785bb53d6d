"""The wheel, as a user gets it: installed alone, with its real dependencies and nothing else."""

import importlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Needs torch by its nature: it compares with the original.
NEEDS_TORCH = ("fixate_jax.backbones.verify",)
# Needs an extra of its own.
NEEDS_GYMNASIUM = "fixate_jax.emulation.gym"

IMPORT_ALL = f"""
import importlib, importlib.util, pkgutil, sys

import fixate_jax

def failed(name):
    if name != {NEEDS_GYMNASIUM!r}:
        raise
    assert 'pip install "fixate-jax[gym]"' in str(sys.exception())

names = [m.name for m in pkgutil.walk_packages(fixate_jax.__path__, "fixate_jax.", onerror=failed)]
for name in names:
    if name not in {(*NEEDS_TORCH, NEEDS_GYMNASIUM)!r} and not name.endswith("__main__"):
        importlib.import_module(name)
heavy = [name for name in ("torch", "torchvision", "tensorflow", "gymnasium") if name in sys.modules]
assert not heavy, f"imported: {{heavy}}"
assert importlib.util.find_spec("torch") is None, "torch came with the dependencies"
print(len(names), "modules of", fixate_jax.__file__)
"""


ENCODE = """
from pathlib import Path
from PIL import Image
from fixate_jax.backbones import load_backbone
from fixate_jax.config import BackboneConfig

backbone = load_backbone(BackboneConfig(), work=Path("."))
page = backbone.page_processor(Image.new("RGB", (96, 64)))
print(backbone.encoder(profile="", labels=("A", "B"), rows=page.rows, columns=page.columns).answers)
"""
"""Imports alone do not show that templates, tokenizers and image processors have all they need."""


def run(*command: str | Path, cwd: Path) -> str:
    # What this test run has on its path must not leak into the clean environment.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=1200, env=environment
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


TOP = (
    ".ci .gitignore CHANGELOG.md CITATION.cff LICENSE Makefile README.md benchmarks configs docs fixate_jax mkdocs.yml "
    "notebooks pyproject.toml tests train"
)


def test_the_repository_holds_no_data_and_no_runs() -> None:
    """What commands leave in the working folder (stores, runs, reports) is easily added by accident."""
    if not (ROOT / ".git").exists():
        pytest.skip("this copy is no git checkout")
    tracked = run("git", "ls-files", cwd=ROOT).split()
    strangers = {name for name in tracked if name.split("/")[0] not in TOP.split()}
    assert not strangers, sorted(strangers)[:5]


def test_every_module_is_imported() -> None:
    """With the packages that are installed, whatever their versions, and with shapes and types checked."""
    # Their own names show that nothing is left out: a package that fails to import hides what is in it.
    files = [path.relative_to(ROOT).with_suffix("") for path in (ROOT / "fixate_jax").rglob("*.py")]
    names = {".".join(path.parts).removesuffix(".__init__") for path in files if path.name != "__main__"}
    assert len(names) > 150
    for name in sorted(names):
        importlib.import_module(name)


@pytest.mark.slow
def test_wheel_in_a_clean_environment(tmp_path: Path) -> None:
    run(sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path / "dist", ROOT, cwd=tmp_path)
    (wheel,) = (tmp_path / "dist").glob("fixate_jax-*.whl")

    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"fixate_jax"}
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assets = {path.relative_to(ROOT).as_posix() for path in (ROOT / "fixate_jax" / "report" / "assets").iterdir()}
    assert len(assets) >= 8 and assets <= set(names)
    shipped = {f"fixate_jax/backbones/shipped/{name}/model.safetensors" for name in ("tiny-qwen3-vl", "tiny-internvl")}
    assert shipped <= set(names)
    assert wheel.stat().st_size < 10e6
    tracked = {path.relative_to(ROOT).as_posix() for path in (ROOT / "fixate_jax").rglob("*.py")}
    assert tracked <= set(names)

    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--no-compile", wheel, cwd=tmp_path)

    loaded = run(python, "-c", IMPORT_ALL, cwd=tmp_path)
    assert str(tmp_path / "venv") in loaded
    assert run(python, "-c", ENCODE, cwd=tmp_path).strip().startswith("((")
    usage = run(tmp_path / "venv" / "bin" / "fixate", "--help", cwd=tmp_path)
    for command in ("prepare", "train", "evaluate", "probe", "verify"):
        assert command in usage
