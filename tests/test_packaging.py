"""The wheel, as a user gets it: installed alone, with its real dependencies and nothing else."""

import email
import importlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]

# Needs torch by its nature: it compares with the original.
NEEDS_TORCH = ("fixate_jax.lab.verify.verify",)
# Needs an extra of its own.
NEEDS_GYMNASIUM = "fixate_jax.emulation.gym"

IMPORT_ALL = f"""
import importlib, importlib.util, pkgutil, sys

import fixate_jax

def failed(name):
    if name != {NEEDS_GYMNASIUM!r}:
        raise
    assert 'pip install ".[gym]"' in str(sys.exception())

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
from fixate_jax.backbones.options import BackboneConfig

backbone = load_backbone(BackboneConfig(), work=Path("."))
page = backbone.page_processor(Image.new("RGB", (96, 64)))
print(backbone.encoder(profile="", labels=("A", "B"), rows=page.rows, columns=page.columns).answers)
"""
"""Imports alone do not show that templates, tokenizers and image processors have all they need. It comes first, so that
it imports what it needs by itself."""


def run(*command: str | Path, cwd: Path) -> str:
    # What this test run has on its path must not leak into the clean environment.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=1200, env=environment
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def needed(requirements: list[str], extras: set[str]) -> Iterator[tuple[metadata.Distribution, set[str]]]:
    """The installed distributions, with their extras, that requirements name here for a package with these extras."""
    for requirement in map(Requirement, requirements):
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras):
            yield metadata.distribution(requirement.name), {"", *requirement.extras}


def dependencies(requirements: list[str]) -> list[metadata.Distribution]:
    """All that installing a package with these requirements brings, as installed here."""
    found: dict[tuple[str, str], metadata.Distribution] = {}
    waiting = list(needed(requirements, {""}))
    while waiting:
        distribution, extras = waiting.pop()
        name = canonicalize_name(distribution.metadata["Name"])
        new = {extra for extra in extras if (name, extra) not in found}
        found |= {(name, extra): distribution for extra in new}
        if new:
            waiting += needed(distribution.requires or [], new)
    return list({name: distribution for (name, _), distribution in found.items()}.values())


def link(distribution: metadata.Distribution, site: Path) -> None:
    """Put an installed distribution into another environment, each file as a link."""
    files = distribution.files
    assert files, f"{distribution.metadata['Name']} has no list of its files"
    for file in files:
        source = Path(str(file.locate())).resolve()
        # Scripts stand outside. What is listed and not there are files compiled for Python.
        if ".." not in file.parts and source.exists():
            (site / file).parent.mkdir(parents=True, exist_ok=True)
            (site / file).symlink_to(source)


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
    folder = ROOT / "fixate_jax" / "lab" / "report" / "assets"
    assets = {path.relative_to(ROOT).as_posix() for path in folder.iterdir()}
    assert len(assets) >= 8 and assets <= set(names)
    assert "fixate_jax/lab/presets/demo.yaml" in names
    shipped = {f"fixate_jax/backbones/shipped/{name}/model.safetensors" for name in ("tiny-qwen3-vl", "tiny-internvl")}
    assert shipped <= set(names)
    assert wheel.stat().st_size < 10e6
    tracked = {path.relative_to(ROOT).as_posix() for path in (ROOT / "fixate_jax").rglob("*.py")}
    assert tracked <= set(names)

    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    # Downloading and unpacking it all takes over a minute. Here it is linked, and pip finds nothing missing or too old.
    with zipfile.ZipFile(wheel) as archive:
        (about,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        requirements = email.message_from_bytes(archive.read(about)).get_all("Requires-Dist") or []
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    for distribution in dependencies(requirements):
        link(distribution, site)
    pip = (sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check")
    said = run(*pip, "install", "--no-index", "--no-compile", wheel, cwd=tmp_path)
    installed = "-".join(wheel.name.split("-")[:2]).replace("_", "-")
    assert said.splitlines()[-1].strip() == f"Successfully installed {installed}"

    encoded, loaded = run(python, "-c", ENCODE + IMPORT_ALL, cwd=tmp_path).splitlines()
    assert encoded.startswith("((") and str(tmp_path / "venv") in loaded
    usage = run(tmp_path / "venv" / "bin" / "fixate", "--help", cwd=tmp_path)
    for command in ("prepare", "train", "evaluate", "probe", "verify"):
        assert command in usage
