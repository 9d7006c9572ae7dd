# SPDX-License-Identifier: GPL-2.0-or-later
"""What each QEMU release speaks, side by side.

The stream itself names only the machine type, whose last part is the release it was made for. A newer
QEMU that runs an older machine type speaks that older dialect but for what it no longer does at all,
so a statement that depends on the release must allow both where the table says so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Dialect:
    """One release's wire habits.

    switchover_start: SWITCHOVER_START is sent before the final phase (property send-switchover-start).
    device_state: multifd may carry device state.
    config_load_ready: VFIO's FULL section may hold DEV_CONFIG_LOAD_READY.
    queue_cap: the target can bound queued device buffers in bytes.
    flush_per_section: the machine type's default is one SYNC per section end and no MULTIFD_FLUSH.
    sync_surplus: the source may send one SYNC per channel more than MULTIFD_FLUSH marks.
    compression_mask: bits that name a compression method in a RAM packet's flags.
    repeated_switchover_ack: acknowledgements are counted and may come more than once.
    """

    name: str
    switchover_start: bool = False
    device_state: bool = False
    config_load_ready: bool = False
    queue_cap: bool = False
    flush_per_section: bool = False
    sync_surplus: bool = False
    compression_mask: int = 0x3E
    repeated_switchover_ack: bool = False


_TEN = Dialect("10.0", switchover_start=True, device_state=True)

DIALECTS: tuple[Dialect, ...] = (
    Dialect("8.0", flush_per_section=True, sync_surplus=True, compression_mask=0x0E),
    Dialect("8.1", sync_surplus=True, compression_mask=0x0E),
    Dialect("8.2", sync_surplus=True, compression_mask=0x0E),
    Dialect("9.0", sync_surplus=True, compression_mask=0x0E),
    Dialect("9.1", sync_surplus=True, compression_mask=0x1E),
    Dialect("9.2", sync_surplus=True),
    _TEN,
    Dialect("10.1", switchover_start=True, device_state=True, config_load_ready=True, queue_cap=True),
    Dialect("10.2", switchover_start=True, device_state=True, config_load_ready=True, queue_cap=True),
    Dialect("11.0", switchover_start=True, device_state=True, config_load_ready=True, queue_cap=True),
    Dialect(
        "11.1",
        switchover_start=True,
        device_state=True,
        config_load_ready=True,
        queue_cap=True,
        repeated_switchover_ack=True,
    ),
)

_BY_NAME = {d.name: d for d in DIALECTS}


def dialect(name: str) -> Dialect:
    """The dialect called `name`, e.g. "10.0". KeyError with the known names when there is none."""
    try:
        return _BY_NAME[name]
    except KeyError:
        raise KeyError(f"no dialect {name!r}; known: {', '.join(_BY_NAME)}") from None


def dialect_of_machine(machine: str) -> Dialect | None:
    """The dialect that a versioned machine type implies ("pc-q35-10.0" -> 10.0), or None.

    A release newer than the table speaks, as far as we know, what the newest one there does; one older
    than the table is not ours to judge.
    """
    match = re.search(r"-(\d+)\.(\d+)$", machine)
    if not match:
        return None
    found = _BY_NAME.get(f"{match[1]}.{match[2]}")
    if found:
        return found
    wanted = (int(match[1]), int(match[2]))
    newest = DIALECTS[-1]
    return newest if wanted > _version(newest) else None


def flushes_per_section(machine: str) -> bool:
    """Whether a machine type's default is one SYNC per section end, as it was up to release 8.0."""
    match = re.search(r"-(\d+)\.(\d+)$", machine)
    return match is not None and (int(match[1]), int(match[2])) <= (8, 0)


def _version(entry: Dialect) -> tuple[int, int]:
    major, minor = entry.name.split(".")
    return int(major), int(minor)
