# SPDX-License-Identifier: GPL-2.0-or-later
"""What the commands of one kind of device cost. Cards have a file each in cards/."""

from __future__ import annotations

from dataclasses import dataclass, replace

MIB = 1 << 20


@dataclass(frozen=True)
class Profile:
    """Nanoseconds that commands take on an otherwise idle PF.

    records: whether the stream has mlx5's records; else it is the bare bytes of the image.
    config_per_function_ns: loading the PCI config of one device, for each function of its PF.
    """

    name: str
    records: bool = True
    save_fixed_ns: int = 0
    save_mib_ns: int = 0
    load_fixed_ns: int = 0
    load_mib_ns: int = 0
    gamma: float = 0.0
    eta: float = 0.0
    suspend_initiator_ns: int = 0
    suspend_responder_ns: int = 0
    resume_responder_ns: int = 0
    resume_initiator_ns: int = 0
    query_ns: int = 0
    reset_ns: int = 0
    config_per_function_ns: int = 0

    @property
    def free(self) -> bool:
        """Whether nothing costs time, so that no call ever says NotYet and the PF's devices share nothing."""
        return self == Profile(self.name, self.records)

    def save_ns(self, size: int) -> int:
        """Cost of a SAVE of `size` bytes."""
        return self.save_fixed_ns + self.save_mib_ns * size // MIB

    def load_ns(self, size: int) -> int:
        """Cost of a LOAD of `size` bytes."""
        return self.load_fixed_ns + self.load_mib_ns * size // MIB

    def at_rate(self, bytes_per_s: int) -> Profile:
        """The same with SAVE and LOAD at this rate each, and nothing fixed."""
        mib_ns = MIB * 1_000_000_000 // bytes_per_s
        return replace(self, save_fixed_ns=0, save_mib_ns=mib_ns, load_fixed_ns=0, load_mib_ns=mib_ns)
