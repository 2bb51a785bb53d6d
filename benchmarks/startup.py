"""How long a user waits for an answer that needs no model.

python -m benchmarks.startup
"""

import statistics
import subprocess
import sys
import time

from rich.console import Console
from rich.table import Table

CASES = {
    "python, nothing else": ("pass", 0.0),
    "import fixate_jax": ("import fixate_jax", 0.1),
    "fixate --help": ("from fixate_jax.lab.cli.main import main; main(['--help'])", 1.0),
    "fixate --version": ("from fixate_jax.lab.cli.main import main; main(['--version'])", 1.0),
    "import fixate_jax.probing (and JAX)": ("import fixate_jax.probing", None),
}
"""What → program, and the seconds above Python's own start that it may take."""


def seconds(program: str) -> float:
    """Wall time of a new process that runs a program."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def main(rounds: int = 7) -> None:
    """Time everything in turn, after one round that warms the file cache."""
    taken: dict[str, list[float]] = {name: [] for name in CASES}
    for round_ in range(rounds + 1):
        for name, (program, _) in CASES.items():
            spent = seconds(program)
            if round_:
                taken[name].append(spent)
    table = Table("what", "seconds above Python's start", "target", title=f"Medians of {rounds} processes")
    start = statistics.median(taken["python, nothing else"])
    for name, (_, target) in CASES.items():
        above = statistics.median(taken[name]) - (start if name != "python, nothing else" else 0)
        table.add_row(name, f"{above:.2f}", "" if not target else f"≤ {target}")
    Console().print(table)


if __name__ == "__main__":
    main()
