# SPDX-License-Identifier: GPL-2.0-or-later
"""What a supervisor is told: which devices to lend to which QEMU."""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from mockdev.device.timing import MIB, PROFILES
from mockdev.errors import VfmigError
from mockdev.faultspec import parse

DEVICES_MAX = 64
_MARK = re.compile(r"\{(vf|sysfs)([0-9]{1,9})\}")


class AttachConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One QEMU and its mock devices.

    command: QEMU's command line; {iommufd}, {vf0}, {vf1} ... stand for descriptors, {sysfs0} ... for folders.
    route: how QEMU reaches the devices: by descriptors, or by groups and a container. names: of the devices,
    in journals and for their pattern: the idstr of each one's section, where it is known. spare: how many of
    them, the last ones, are for hot plug. filled: they begin with the state that seed and name say, else
    empty. journal, control: paths, None: none. log: where QEMU's output goes, None: where ours does. parent:
    the process that the supervisor belongs to and does not outlive, 0: none; scratch: that one's folder, to
    be removed in its place when it has died. Others: as in MigrationConfig.
    """

    command: tuple[str, ...]
    names: tuple[str, ...]
    spare: int = 0
    route: Literal["iommufd", "legacy"] = "iommufd"
    role: Literal["source", "target"] = "source"
    state_bytes: int = 100 * MIB
    profile: str = "connectx7"
    precopy_bytes: int = 0
    chunk_bytes: int = 8 * MIB
    seed: int = 0
    filled: bool = True
    faults: tuple[str, ...] = ()
    journal: str | None = None
    control: str | None = None
    log: str | None = None
    clock_offset_ns: int | None = None
    parent: int = 0
    scratch: str | None = None

    def check(self) -> None:
        """VfmigError, naming the value, when this cannot be run."""
        for wrong, message in (
            (not self.command, "no QEMU command was given"),
            (not 1 <= len(self.names) <= DEVICES_MAX, f"{len(self.names)} devices, not 1 to {DEVICES_MAX}"),
            (len(set(self.names)) < len(self.names), "two devices of one name"),
            (not 0 <= self.spare <= len(self.names), f"{self.spare} spare devices of {len(self.names)}"),
            (self.state_bytes < 1, f"a device state of {self.state_bytes} bytes"),
            (self.profile not in PROFILES, f"no profile {self.profile!r}; known: {', '.join(PROFILES)}"),
            (
                not 0 <= self.precopy_bytes < max(1, self.state_bytes),
                f"{self.precopy_bytes} bytes before the stop, of a state of {self.state_bytes}",
            ),
            (self.chunk_bytes < 1, f"chunks of {self.chunk_bytes} bytes"),
        ):
            if wrong:
                raise VfmigError(message)
        for text in self.faults:
            number = parse(text, self.role).number
            if number is not None and number >= len(self.names):
                raise VfmigError(f"fault {text!r}: there are devices 0 to {len(self.names) - 1}")
        for word in self.command:
            for mark, number in _MARK.findall(word):
                if int(number) >= len(self.names):
                    raise VfmigError(
                        f"{{{mark}{number}}} in QEMU's command: there are devices 0 to {len(self.names) - 1}"
                    )
                if mark == "sysfs" and self.route != "legacy":
                    raise VfmigError(
                        f"{{{mark}{number}}} in QEMU's command: there are folders only by groups"
                    )
