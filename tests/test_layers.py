"""The house: imports point down, and nothing below the laboratory knows a run's settings, data frames or plots."""

import subprocess
import sys
from pathlib import Path

import pytest

import fixate_jax
from fixate_jax.lab.cli import commands, main

ROOT = Path(__file__).parents[1]
PACKAGE = Path(fixate_jax.__file__).parent
BELOW = sorted(path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] != "lab")


def test_no_import_points_up() -> None:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    done = subprocess.run([*command, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_nothing_below_the_laboratory_knows_a_runs_settings() -> None:
    assert len(BELOW) > 60
    assert [path.name for path in BELOW if "RunConfig" in path.read_text(encoding="utf-8")] == []


@pytest.mark.parametrize(
    "modules", ["probing, objective, backbones, prompts", "tuning.tune, evaluation.forward, emulation"]
)
def test_the_library_loads_neither_frames_nor_plots(modules: str) -> None:
    imports = ", ".join(f"fixate_jax.{name.strip()}" for name in modules.split(","))
    unwanted = "{'pandas', 'matplotlib', 'grain', 'orbax', 'tyro', 'pydantic'}"
    program = f"import sys, {imports}; print(sorted({unwanted} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_and_version_are_said_without_jax() -> None:
    program = (
        "import sys; from fixate_jax.lab.cli.main import main; main(sys.argv[1:]); assert 'jax' not in sys.modules"
    )
    for flag, wanted in (("--help", "fidelity"), ("--version", f"fixate-jax {fixate_jax.__version__}")):
        done = subprocess.run(
            [sys.executable, "-c", program, flag], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert wanted in done.stdout


def test_help_says_what_the_commands_say_of_themselves() -> None:
    first = {
        name: (kind.__doc__ or "").split(". ")[0].split("\n")[0].rstrip(".") for name, kind in commands.KINDS.items()
    }
    assert {name: text.rstrip(".") for name, text in main.COMMANDS.items()} == first
