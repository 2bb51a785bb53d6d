"""How many users fit side by side: what the compiled program says it needs, at two small sizes, is a straight line."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from fixate_jax.errors import ConfigError

PROBES = (2, 4)
"""Users in the programs that are looked at. One user would not do: the compiler drops axes of size one."""
PROBE_PAGES = 2
"""Rows of the page table in these programs."""
CPU_CHUNK = 2
"""Users side by side on a CPU: more take more processor time for each than one does (`benchmarks/users.py`)."""
CHUNK = 64
"""Most users side by side on an accelerator, where nobody says otherwise: a kill costs what they have done."""
SHARE, CPU_SHARE = 0.75, 0.5
"""Of the device's memory, and of the main memory, that the program may take."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of the tuning program on one device, as a line over its users.

    Attributes:
        fixed: whatever the number of users: weights, basis.
        per_user: for every user on the device.
        page: for every page of the table.
        pages: pages of all users together.
        pages_per_user: pages of the user who has most.
    """

    fixed: float
    per_user: float
    page: float
    pages: int
    pages_per_user: int

    def bytes(self, users: int, *, devices: int = 1) -> float:
        """What a device takes for ``users`` users on each of ``devices`` devices; at most, since users share pages."""
        pages = min(self.pages, users * devices * self.pages_per_user)
        return self.fixed + users * self.per_user + pages * self.page

    def most_users(self, budget: float, limit: int, *, devices: int = 1) -> int:
        """The largest chunk, up to ``limit``, that fits into a budget in bytes.

        Raises:
            ConfigError: not even one user does.
        """
        low, high = 0, limit
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.bytes(middle, devices=devices) <= budget else (low, middle - 1)
        if low == 0:
            raise ConfigError(
                f"users.memory_gb: {budget / 1e9:.2f} GB do not hold the weights and one user "
                f"({self.bytes(1, devices=devices) / 1e9:.2f} GB); give more, or take a smaller users.batch"
            )
        return low


def least_effort(lowered: Any) -> Any:
    """A program compiled with the least effort at code: buffers are laid out before that, and alike."""
    return lowered.compile(compiler_options={"xla_backend_optimization_level": 0})


def program_bytes(lowered: Any) -> int:
    """What a program takes on a device while it runs, arguments and results included, from its compiled form."""
    found = least_effort(lowered).memory_analysis()
    arguments, results = found.argument_size_in_bytes, found.output_size_in_bytes
    return int(found.temp_size_in_bytes + arguments + results - found.alias_size_in_bytes)


def measure(lower: Callable[[int], Any], *, page: float, pages: int, pages_per_user: int) -> Memory:
    """The line through the program at two sizes.

    Args:
        lower: the lowered program for so many users a device, with a table of `PROBE_PAGES` pages.
        page: bytes of a page in the table.
        pages: of all users together.
        pages_per_user: pages of the user who has most.
    """
    small, large = (program_bytes(lower(users)) for users in PROBES)
    per_user = (large - small) / (PROBES[1] - PROBES[0])
    fixed = small - PROBES[0] * per_user - PROBE_PAGES * page
    return Memory(fixed=fixed, per_user=per_user, page=page, pages=pages, pages_per_user=pages_per_user)


def memory_budget(device: jax.Device, memory_gb: float | None) -> float:
    """Bytes that the program may take on a device: what the settings say, or a share of what there is."""
    if memory_gb is not None:
        return memory_gb * 1e9
    stats = device.memory_stats()
    if device.platform != "cpu" and stats and "bytes_limit" in stats:
        return SHARE * float(stats["bytes_limit"])
    # All simulated devices of a CPU live in one main memory.
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return CPU_SHARE * float(total) / jax.local_device_count()


def default_limit(device: jax.Device) -> int:
    """Most users side by side on a device where the settings do not say."""
    return CPU_CHUNK if device.platform == "cpu" else CHUNK


def even_chunk(users: int, most: int, *, devices: int = 1) -> int:
    """Users in a chunk, a multiple of the devices, so that the fewest chunks are as full as they can be.

    Args:
        users: in all.
        most: users side by side on one device.
        devices: that share a chunk.
    """
    per_device = -(-users // devices)
    chunks = -(-per_device // most)
    return -(-per_device // chunks) * devices
