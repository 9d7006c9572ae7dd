# SPDX-License-Identifier: GPL-2.0-or-later
"""What the two kinds of data file have in common, and the value that says "not before"."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import NamedTuple

from mockdev.errors import DeviceError


class NotYet(NamedTuple):
    """Nothing before `ready_ns`; then the same call again, which may say so once more."""

    ready_ns: int


Passes = Callable[[int, int, int], int]
"""Called with now_ns, an offset in the stream and a size: how many of these bytes may be saved or loaded.
All, unless something is to befall the device among them; 0 when it just has, and the session is dead."""


Struck = Callable[[int], None]
"""Called with now_ns when a fault that was asked for has had its effect."""


class Written(NamedTuple):
    """How many bytes of a write were taken, and when the file goes on (it is loading until then)."""

    consumed: int
    ready_ns: int


POLL_IN = 0x0001
POLL_OUT = 0x0004
POLL_RDNORM = 0x0040
POLL_WRNORM = 0x0100
POLL_RDHUP = 0x2000


class DataFile:
    """A data file of a device; each kind goes one way and neither can be read or written at an offset."""

    def read(self, now_ns: int, size_max: int) -> list[memoryview] | NotYet:
        """See SaveFile. DeviceError(EBADF): this file is only written."""
        raise DeviceError(errno.EBADF, f"reading {size_max} bytes from a resume file at {now_ns} ns")

    def write(self, now_ns: int, data: memoryview) -> Written:
        """See ResumeFile. DeviceError(EBADF): this file is only read."""
        raise DeviceError(errno.EBADF, f"writing {len(data)} bytes to a save file at {now_ns} ns")

    def poll(self, now_ns: int) -> int:
        """POLL_ bits that are true now."""
        raise NotImplementedError
