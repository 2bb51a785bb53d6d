"""Make a tiny backbone that comes with the library, from nothing: pretrain, examine, publish into the package.

    python train/pretrain_tiny.py
    python train/pretrain_tiny.py --recipe configs/pretrain_tiny_internvl.yaml --run runs/tiny-internvl

Give it again after an interruption and it goes on. The model that is in the package is replaced only at the very end.
"""

import shutil
import subprocess
from pathlib import Path

import tyro

from fixate_jax.backbones.loading import SHIPPED
from fixate_jax.lab.pretraining.recipe import Recipe
from fixate_jax.lab.pretraining.training import Pretraining
from fixate_jax.lab.settings import load_settings

ROOT = Path(__file__).resolve().parents[1]


def main(run: Path = Path("runs/tiny-qwen3-vl"), recipe: Path = ROOT / "configs/pretrain_tiny.yaml") -> None:
    """Pretrain and publish.

    Args:
        run: directory of the run.
        recipe: the YAML recipe.
    """
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    pretraining = Pretraining(load_settings(recipe, Recipe), run)
    pretraining.run()
    target = SHIPPED / f"tiny-{pretraining.recipe.family.replace('_', '-')}"
    made = pretraining.publish(run / target.name, commit=commit)
    if target.exists():
        shutil.rmtree(target)
    shutil.copytree(made, target)
    print(f"published: {target}")


if __name__ == "__main__":
    tyro.cli(main)
