"""Versions of what a result depends on."""

import importlib.metadata
import platform
import sys

import jax

PACKAGES = ("fixate-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "transformers", "numpy")


def versions() -> dict[str, str]:
    """Versions of what a result depends on, and the device."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    device = jax.devices()[0]
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "device": f"{device.platform}: {device.device_kind} × {jax.device_count()}",
        **found,
    }
