# SPDX-License-Identifier: GPL-2.0-or-later
"""One capture point as its file describes it: link type, clock, and what it says it dropped."""

from __future__ import annotations

from dataclasses import dataclass

NANOSECONDS = 1_000_000_000

NULL, EN10MB, RAW, LOOP, LINUX_SLL, IPV4, IPV6, LINUX_SLL2 = 0, 1, 101, 108, 113, 228, 229, 276


@dataclass(slots=True)
class Interface:
    """number: from 0 over the whole file, sections included. snap_bytes: 0 when there is no limit.

    ticks_per_second and offset_s turn the file's timestamps into nanoseconds since 1970.
    received, dropped_by_interface, dropped_by_system: from the statistics block, None when it does not
    say. dropped_before_packets: what single packets say was lost before them.
    """

    number: int
    link_type: int
    snap_bytes: int = 0
    name: str = ""
    ticks_per_second: int = 1_000_000
    offset_s: int = 0
    received: int | None = None
    dropped_by_interface: int | None = None
    dropped_by_system: int | None = None
    dropped_before_packets: int | None = None

    @property
    def drops(self) -> int | None:
        """Packets that passed this point and are not in the file; None when the file does not say."""
        statistics = (self.dropped_by_interface, self.dropped_by_system)
        known = [count for count in statistics if count is not None]
        totals = [sum(known)] if known else []
        if self.dropped_before_packets is not None:
            totals.append(self.dropped_before_packets)
        return max(totals, default=None)

    def time_ns(self, ticks: int) -> int:
        """A timestamp of this interface in nanoseconds since 1970."""
        return ticks * NANOSECONDS // self.ticks_per_second + self.offset_s * NANOSECONDS

    @property
    def scale(self) -> int:
        """Nanoseconds per tick when that is a whole number, else 0."""
        whole, rest = divmod(NANOSECONDS, self.ticks_per_second)
        return 0 if rest else whole
