"""FixATE in JAX: soft prompts that make a frozen vision-language model look at pages as one person does.

Everything is imported when it is first asked for, so that `import fixate_jax` and the command line answer at once.
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fixate_jax import backbones, data, emulation, objective, probing, prompts
    from fixate_jax.backbones import Backbone, load_backbone
    from fixate_jax.data.page import Page, Session
    from fixate_jax.emulation import UserEmulator
    from fixate_jax.evaluation import metrics
    from fixate_jax.lab.bundles.opening import open_emulator
    from fixate_jax.probing.batches import Batch
    from fixate_jax.probing.encode import encode
    from fixate_jax.probing.look import Look, look
    from fixate_jax.tuning.tune import Tuned, evaluate, tune, tune_users

_NAMES = {
    "backbones": "backbones",
    "Backbone": "backbones",
    "load_backbone": "backbones",
    "data": "data",
    "Page": "data.page",
    "Session": "data.page",
    "probing": "probing",
    "Batch": "probing.batches",
    "encode": "probing.encode",
    "Look": "probing.look",
    "look": "probing.look",
    "Tuned": "tuning.tune",
    "tune": "tuning.tune",
    "tune_users": "tuning.tune",
    "evaluate": "tuning.tune",
    "objective": "objective",
    "prompts": "prompts",
    "metrics": "evaluation.metrics",
    "emulation": "emulation",
    "UserEmulator": "emulation",
    "open_emulator": "lab.bundles.opening",
}
"""Where each public name comes from, in the order in which one uses them."""
_MODULES = ("backbones", "data", "probing", "objective", "prompts", "metrics", "emulation")
"""Those that are modules."""

__all__ = [  # noqa: RUF022
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
    "tune_users",
    "evaluate",
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
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    found = importlib.import_module(f"fixate_jax.{_NAMES[name]}")
    return found if name in _MODULES else getattr(found, name)


def __dir__() -> list[str]:
    return sorted(__all__)
