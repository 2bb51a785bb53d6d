"""FixATE in JAX."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fixate_jax.tuning.probe import Relevance, probe, probe_batch

__all__ = ["Relevance", "probe", "probe_batch"]


def __getattr__(name: str) -> Any:
    # Imported when they are asked for: the command line must answer before JAX is loaded.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fixate_jax.tuning import probe as module

    return getattr(module, name)
