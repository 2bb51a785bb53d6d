"""FixATE in JAX: soft prompts that make a frozen vision-language model look at pages as one person does.

Everything is imported when it is first asked for, so that `import fixate_jax` and the command line answer at once.
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fixate_jax import backbones, data, emulation, metrics, objective, probing, prompts
    from fixate_jax.backbones import Backbone, load_backbone
    from fixate_jax.data.page import Page, Session
    from fixate_jax.emulation import UserEmulator, open_emulator
    from fixate_jax.probing.batches import Batch
    from fixate_jax.probing.encode import encode
    from fixate_jax.probing.look import Look, look
    from fixate_jax.tuning.in_memory import Tuned, evaluate, tune
    from fixate_jax.tuning.probe import Relevance, probe, probe_batch

_MODULES = ("backbones", "data", "emulation", "metrics", "objective", "probing", "prompts")
_NAMES = {
    "Backbone": "backbones",
    "load_backbone": "backbones",
    "Page": "data.page",
    "Session": "data.page",
    "Batch": "probing.batches",
    "encode": "probing.encode",
    "Look": "probing.look",
    "look": "probing.look",
    "Tuned": "tuning.in_memory",
    "tune": "tuning.in_memory",
    "evaluate": "tuning.in_memory",
    "Relevance": "tuning.probe",
    "probe": "tuning.probe",
    "probe_batch": "tuning.probe",
    "UserEmulator": "emulation",
    "open_emulator": "emulation",
}
"""Where each public name comes from."""

__all__ = [  # noqa: RUF022  (in the order in which one uses them)
    "backbones",
    "Backbone",
    "load_backbone",
    "data",
    "Page",
    "Session",
    "probing",
    "Batch",
    "encode",
    "Look",
    "look",
    "Tuned",
    "tune",
    "evaluate",
    "Relevance",
    "probe",
    "probe_batch",
    "objective",
    "prompts",
    "metrics",
    "emulation",
    "UserEmulator",
    "open_emulator",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.metadata.version("fixate-jax")
    if name in _MODULES:
        return importlib.import_module(f"fixate_jax.{name}")
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"fixate_jax.{_NAMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
