"""A small trials.csv of made-up people, and ways to spoil it."""

from collections.abc import Callable
from pathlib import Path

from fixate_jax.data.readers.synthetic.choice import write_trials

Spoil = Callable[[list[list[str]]], None]


def trials_csv(folder: Path, *, users: int = 3, trials: int = 20, spoil: Spoil | None = None) -> Path:
    """Write the table; ``spoil`` changes its lines (0: the header) in place first. Returns the folder."""
    path = write_trials(folder / "trials.csv", users=users, trials=trials, seed=1)
    if spoil is not None:
        lines = [line.split(",") for line in path.read_text(encoding="utf-8").splitlines()]
        spoil(lines)
        path.write_text("".join(",".join(line) + "\n" for line in lines), encoding="utf-8")
    return folder


def put(values: dict[str, str], *, line: int = 5) -> Spoil:
    """Set fields of a line (1: the header, as an editor counts)."""

    def spoil(lines: list[list[str]]) -> None:
        for column, value in values.items():
            lines[line - 1][lines[0].index(column)] = value

    return spoil
