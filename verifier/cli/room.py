# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a run fits into memory, asked before it takes any: the kernel's killer gives no reasons."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from mockdev.errors import VfmigError
from mockdev.runtime.config import MigrationConfig
from verifier.report.sizes import size_text

_ENDPOINT_BYTES = 64 << 20  # an interpreter with its libraries
_CGROUP_MAX, _CGROUP_NOW = "memory.max", "memory.current"


class RoomError(VfmigError):
    """The machine has too little memory."""

    environment = True


def needed_bytes(config: MigrationConfig) -> int:
    """What both endpoints hold: the state and the RAM, each of them its own, and buffers on their way."""
    state = config.vfs * config.state_bytes
    buffers = min(state, config.pool_bytes_max)
    return 2 * (state + config.ram_bytes + _ENDPOINT_BYTES) + buffers


def available_bytes(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What can be had without swapping, within the limits of our control group; None when nobody tells."""
    found = []
    with suppress(OSError, ValueError, IndexError):
        for line in (proc / "meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) << 10)
    with suppress(OSError, StopIteration):
        here = next(s for s in (proc / "self/cgroup").read_text().splitlines() if s.startswith("0::"))
        group = cgroups / here.removeprefix("0::").lstrip("/")
        while group.is_relative_to(cgroups):
            with suppress(OSError, ValueError):  # "max", or the root, which has no limit
                limit = int((group / _CGROUP_MAX).read_text())
                found.append(max(0, limit - int((group / _CGROUP_NOW).read_text())))
            group = group.parent
    return min(found, default=None)


def check_room(config: MigrationConfig, available: int | None = None) -> None:
    """RoomError when the run needs more than there is."""
    there = available_bytes() if available is None else available
    needed = needed_bytes(config)
    if there is not None and needed > there:
        raise RoomError(
            f"this run needs {size_text(needed)} of memory (source and target each hold {config.vfs} x "
            f"{size_text(config.state_bytes)} of state and {size_text(config.ram_bytes)} of RAM), and "
            f"{size_text(there)} are available: take a smaller --state-size or fewer --vfs"
        )
