# SPDX-License-Identifier: GPL-2.0-or-later
"""The one reader of time.

Journals, captures and devices of one run must share a time line, also between processes: a `Clock` is
the monotonic clock plus an offset to the wall clock that is read once, by whoever starts the run, and
handed to every process of it. Steps of the wall clock during a run then move nothing.
"""

from __future__ import annotations

import time


def wall_offset_ns() -> int:
    """Wall clock minus monotonic clock, now, in ns."""
    return time.time_ns() - time.monotonic_ns()


class Clock:
    """Nanoseconds since the epoch that never step back."""

    def __init__(self, offset_ns: int | None = None) -> None:
        self.offset_ns = wall_offset_ns() if offset_ns is None else offset_ns

    def now_ns(self) -> int:
        """The time, in ns since 1970."""
        return time.monotonic_ns() + self.offset_ns


def cpu_ns() -> int:
    """CPU time this process has used, user and system, all threads, in ns."""
    return time.process_time_ns()
