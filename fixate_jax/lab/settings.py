"""Settings from YAML files and back, checked strictly: unknown names and wrong types are errors, nothing is guessed."""

import dataclasses
import difflib
import functools
import json
import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, create_model
from pydantic_core import ErrorDetails

from fixate_jax.errors import ConfigError
from fixate_jax.lab.config import RunConfig
from fixate_jax.runtime.files import require_ordinary

Settings = TypeVar("Settings")


@functools.cache
def _document(kind: type) -> type[BaseModel]:
    """Puts the settings, and all dataclasses within, under pydantic's rules; they themselves know nothing of them."""
    return create_model("_Document", __config__=ConfigDict(extra="forbid", strict=True), settings=(kind, ...))


class _Loader(yaml.SafeLoader):
    """YAML with plain numbers and no surprises: see the resolvers below, and a repeated key is an error."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):  # type: ignore[no-untyped-call]
            # A few lines of them can stand for more than any memory holds.
            raise ConfigError(f"line {self.peek_event().start_mark.line + 1}: *aliases are not read; write it out")  # type: ignore[no-untyped-call]
        return super().compose_node(parent, index)  # type: ignore[no-untyped-call]

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        mapping = super().construct_mapping(node, deep=deep)
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]  # type: ignore[no-untyped-call]
        repeated = [key for index, key in enumerate(keys) if key in keys[:index]]
        if repeated:
            raise ConfigError(f"line {node.start_mark.line + 1}: {repeated[0]!r} is given twice; keep one")
        return mapping


# YAML 1.1 reads 1e-3 as text, for want of a dot, and 2024-01-01 as a date; here they are a number and a folder's name.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


PRESETS = (Path(__file__).with_name("presets"), Path(__file__).parents[2] / "configs")
"""Where presets are: in the installed package, in a checkout."""


def presets() -> list[str]:
    """Names of the presets that come with the library."""
    return sorted(file.stem for folder in PRESETS for file in folder.glob("*.yaml"))


def preset_file(path: Path) -> Path:
    """The file that a path means, or the name of a preset where there is no such file."""
    named = [folder / f"{path}.yaml" for folder in PRESETS if len(path.parts) == 1 and not path.suffix]
    return next((file for file in named if file.is_file() and not path.is_file()), path)


def load_config(path: Path | str) -> RunConfig:
    """Read a preset of a run, see :func:`load_settings`."""
    return load_settings(path, RunConfig)


def load_settings(path: Path | str, kind: type[Settings]) -> Settings:
    """Read a YAML file into a settings dataclass; fields that it leaves out keep their defaults.

    Args:
        path: YAML file, or the name of a preset, e.g. ``demo``.
        kind: the dataclass.

    Raises:
        ConfigError: the file is missing or no YAML, or a setting has an unknown name or a wrong type or value; the
            message names the file and every such field, as in ``objective.gamma``.
    """
    path = preset_file(Path(path))
    require_ordinary(path, ConfigError)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); give a YAML file, or one of {', '.join(presets())}"
        ) from error
    except RecursionError as error:
        raise ConfigError(f"{path}: no valid YAML: nested too deeply") from error
    except (yaml.YAMLError, ValueError, ConfigError) as error:
        raise ConfigError(f"{path}: no valid YAML: {error}") from error
    if content is None:
        content = {}
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path}: holds a {type(content).__name__}; sections such as 'data:' and 'train:' are needed")
    return settings_from_dict({str(name): value for name, value in content.items()}, kind, source=str(path))


def config_from_dict(settings: Mapping[str, Any], *, source: str = "settings") -> RunConfig:
    """A run's settings from nested mappings, see :func:`settings_from_dict`."""
    return settings_from_dict(settings, RunConfig, source=source)


def settings_from_dict(values: Mapping[str, Any], kind: type[Settings], *, source: str = "settings") -> Settings:
    """Settings from nested mappings of plain values, as YAML or JSON give them.

    Args:
        values: ``{"train": {"batch": 4}, …}``; what is left out keeps its default.
        kind: the settings' dataclass.
        source: where they come from, for error messages.

    Raises:
        ConfigError: naming the source and every field with an unknown name or a wrong type or value.
    """
    try:
        # By way of JSON: there, pydantic's strict rules take a text for a path and a mapping for a dataclass.
        text = json.dumps({"settings": dict(values)})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{source}: only numbers, texts, true/false and null can be settings ({error})") from error
    try:
        document: Any = _document(kind).model_validate_json(text)  # type: ignore[arg-type]
    except ValidationError as error:
        problems = [_explain(detail, kind) for detail in error.errors(include_url=False)]
        raise ConfigError("\n".join(f"{source}: {problem}" for problem in problems)) from error
    settings: Settings = document.settings
    return settings


def config_to_dict(config: RunConfig) -> dict[str, Any]:
    """Nested dictionary of plain values that `config_from_dict` turns into an equal configuration."""
    settings: dict[str, Any] = _adapter().dump_python(config, mode="json")
    return settings


@functools.cache
def _adapter() -> Any:
    """Made once: it takes longer than what it is made for."""
    return TypeAdapter(RunConfig)


def dump_config(config: RunConfig) -> str:
    """YAML text, every field written out, that `load_config` reads back to an equal configuration."""
    return yaml.safe_dump(config_to_dict(config), sort_keys=False, allow_unicode=True)


def _explain(detail: ErrorDetails, kind: type) -> str:
    """One problem in the user's words."""
    parts = [str(part) for part in detail["loc"][1:]]
    name = ".".join(parts)
    if detail["type"] == "unexpected_keyword_argument":
        known = _field_names(kind, parts[:-1])
        close = difflib.get_close_matches(parts[-1], known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known)}"
        return f"{name}: no such setting; {hint}"
    if detail["type"] == "value_error":
        # Raised by the dataclass itself, which names the field already.
        return str(detail["ctx"]["error"])
    message = detail["msg"].removeprefix("Input ")
    return f"{name} = {detail['input']!r}: {message}"


def _field_names(kind: type, section: list[str]) -> list[str]:
    """Names of the settings in a section; an empty list of parts stands for the top level."""
    at: Any = kind()
    for part in section:
        at = getattr(at, part)
    return [field.name for field in dataclasses.fields(at)]
