# SPDX-License-Identifier: GPL-2.0-or-later
"""Options of pcapng blocks, and what those of interfaces, statistics and packets mean.

Source: IETF draft-ietf-opsawg-pcapng, sections 3.5, 4.2, 4.3, 4.6.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator

from verifier.capture.interface import Interface

COMMENT = 1
_IF_NAME, _IF_TSRESOL, _IF_TSOFFSET = 2, 9, 14
_ISB_RECEIVED, _ISB_IFDROP, _ISB_OSDROP = 4, 5, 7
_EPB_DROPS = 4


def options(data: mmap.mmap, start: int, stop: int, order: str) -> Iterator[tuple[int, bytes]]:
    """Code and value of each option in data[start:stop]; an option that does not fit ends the list."""
    head = struct.Struct(order + "HH")
    while start + 4 <= stop:
        code, length = head.unpack_from(data, start)
        start += 4
        if code == 0 or start + length > stop:
            return
        yield code, data[start : start + length]
        start += (length + 3) & ~3


def describe(interface: Interface, data: mmap.mmap, start: int, stop: int, order: str) -> None:
    """Reads an interface description's options into `interface`."""
    for code, value in options(data, start, stop, order):
        if code == _IF_NAME:
            interface.name = value.rstrip(b"\0").decode("utf-8", "replace")
        elif code == _IF_TSRESOL and value:
            exponent = value[0] & 0x7F
            interface.ticks_per_second = 2**exponent if value[0] & 0x80 else 10**exponent
        elif code == _IF_TSOFFSET and len(value) == 8:
            interface.offset_s = int(struct.unpack(order + "q", value)[0])


def count(interface: Interface, data: mmap.mmap, start: int, stop: int, order: str) -> None:
    """Reads a statistics block's options; its counters are totals, so a later block replaces an earlier."""
    for code, value in options(data, start, stop, order):
        if len(value) != 8:
            continue
        number = int(struct.unpack(order + "Q", value)[0])
        if code == _ISB_RECEIVED:
            interface.received = number
        elif code == _ISB_IFDROP:
            interface.dropped_by_interface = number
        elif code == _ISB_OSDROP:
            interface.dropped_by_system = number


def note(interface: Interface, data: mmap.mmap, start: int, stop: int, order: str) -> str:
    """The comments of a packet, one a line; what it says was dropped before it goes to `interface`."""
    comments: list[str] = []
    for code, value in options(data, start, stop, order):
        if code == COMMENT:
            comments.append(value.rstrip(b"\0").decode("utf-8", "replace"))
        elif code == _EPB_DROPS and len(value) == 8:
            drops = int(struct.unpack(order + "Q", value)[0])
            interface.dropped_before_packets = (interface.dropped_before_packets or 0) + drops
    return "\n".join(comments)
