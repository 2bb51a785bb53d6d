"""Reading ``config.json`` so that every complaint names the file and the field."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fixate_jax.backbones.weights.checkpoint import read_json
from fixate_jax.errors import CheckpointError


@dataclass(frozen=True)
class Section:
    """One object of a ``config.json``.

    Attributes:
        path: the file.
        fields: the object.
        where: the object's place in the file, ending in a dot, or nothing for the whole.
    """

    path: Path
    fields: dict[str, Any]
    where: str = ""

    def get(self, name: str, default: Any = None) -> Any:
        """A field, or the default where it is missing or null."""
        value = self.fields.get(name)
        return default if value is None else value

    def need(self, name: str) -> Any:
        """A field that must be there.

        Raises:
            CheckpointError: naming it, when it is missing or null.
        """
        value = self.get(name)
        if value is None:
            raise CheckpointError(f"{self.path}: field {self.where + name!r} is missing")
        return value

    def section(self, name: str) -> "Section":
        """A field that is an object itself; that it is none is an error."""
        self.need(name)
        return Section(self.path, self.object(name), f"{self.where}{name}.")

    def object(self, name: str) -> dict[str, Any]:
        """A field that is an object, an empty one where it is missing.

        Raises:
            CheckpointError: naming it, when it is something else.
        """
        value = self.get(name, {})
        if not isinstance(value, dict):
            raise self.refusal(name, value, "an object")
        return value

    def whole(self, name: str, default: int | None = None, *, most: int = 2**24) -> int:
        """A field that counts something; without a default it must be there.

        Raises:
            CheckpointError: naming it, when it is no whole number from 1 to ``most``.
        """
        value = self.need(name) if default is None else self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise self.refusal(name, value, f"a whole number from 1 to {most}")
        return value

    def real(self, name: str, default: float) -> float:
        """A field that is a number above 0.

        Raises:
            CheckpointError: naming it, when it is none.
        """
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise self.refusal(name, value, "a number above 0")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """A field that is true or false.

        Raises:
            CheckpointError: naming it, when it is something else.
        """
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise self.refusal(name, value, "true or false")
        return value

    def one_of(self, name: str, supported: Sequence[Any], default: Any) -> Any:
        """A field that may have some values only; ``default`` is what a missing one means.

        Raises:
            CheckpointError: naming the field and what is supported.
        """
        value = self.get(name, default)
        if value not in supported:
            raise self.refusal(name, value, " or ".join(map(repr, supported)))
        return value

    def refusal(self, name: str, value: Any, supported: str) -> CheckpointError:
        """The error that says what is supported instead of a field's value."""
        return CheckpointError(f"{self.path}: {self.where}{name} {value!r} is not supported; supported is {supported}")


def read_config_json(directory: Path) -> Section:
    """The whole ``config.json`` of a model directory.

    Raises:
        CheckpointError: naming the file, when it is missing or not JSON.
    """
    path = directory / "config.json"
    return Section(path, read_json(path))
