"""What is known of common accelerators by name: memory of one device, and how many a host has."""

from typing import NamedTuple

from fixate_jax.errors import ConfigError

USABLE = 0.92
"""Share of a device's memory that a plan may fill. The rest is the driver's, the libraries' and fragmentation's; the
launch scripts let JAX take as much of a GPU (its own default is three quarters)."""


class Device(NamedTuple):
    """An accelerator.

    Attributes:
        memory_gb: its memory in gigabytes (10⁹ bytes), as its maker names it.
        per_host: how many a host usually has.
    """

    memory_gb: float
    per_host: int


DEVICES = {
    "a100-40gb": Device(40, 8),
    "a100-80gb": Device(80, 8),
    "h100-80gb": Device(80, 8),
    "h200": Device(141, 8),
    "b200": Device(180, 8),
    "l4": Device(24, 8),
    "l40s": Device(48, 8),
    "rtx-4090": Device(24, 1),
    "tpu-v4": Device(32, 4),
    "tpu-v5e": Device(16, 4),
    "tpu-v5p": Device(95, 4),
    "tpu-v6e": Device(32, 4),
}
"""Makers' data sheets. Anything else: give its memory."""


def memory_of(name: str, memory_gb: float | None = None) -> int:
    """Bytes of one device.

    Args:
        name: a key of :data:`DEVICES`; anything where the memory is given.
        memory_gb: its memory in gigabytes (10⁹ bytes), instead of what is known by name.

    Raises:
        ConfigError: naming the devices that are known.
    """
    if memory_gb is not None:
        if memory_gb <= 0:
            raise ConfigError(f"--device-gb {memory_gb}: must be above 0")
        return int(memory_gb * 10**9)
    if name not in DEVICES:
        raise ConfigError(f"--device {name}: known are {', '.join(DEVICES)}; for another give --device-gb")
    return int(DEVICES[name].memory_gb * 10**9)
