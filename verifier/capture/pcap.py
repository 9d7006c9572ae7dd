# SPDX-License-Identifier: GPL-2.0-or-later
"""The classic pcap file: one header, then packets of one link type.

Source: IETF draft-ietf-opsawg-pcap; libpcap, pcap/pcap.h: pcap_file_header, pcap_pkthdr.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Iterator

from verifier.capture.interface import Interface

HEADER_BYTES = 24
RECORD_BYTES = 16
PACKET_BYTES_MAX = 1 << 28  # no link carries more in one frame: a longer one is damage, not a cut
_TICKS = {0xA1B2C3D4: 1_000_000, 0xA1B23C4D: 1_000_000_000}
_RAW_AS_DLT = {12: 101, 14: 101}  # LINKTYPE_RAW as some systems wrote it

Packet = tuple[int, int, int, int, int, str]


def byte_order(magic: bytes) -> str:
    """ "<" or ">" when the four bytes begin a pcap file, "" when they do not."""
    for order in "<>":
        if len(magic) == 4 and struct.unpack(order + "I", magic)[0] in _TICKS:
            return order
    return ""


def read_header(data: mmap.mmap) -> Interface:
    """The one interface of the file; the caller has seen that HEADER_BYTES are there."""
    order = byte_order(data[:4])
    magic, _, _, _, _, snap_bytes, link = struct.unpack_from(order + "IHHiIII", data)
    link &= 0xFFFF  # above it: the length of the frame check sequence
    return Interface(0, _RAW_AS_DLT.get(link, link), snap_bytes, ticks_per_second=_TICKS[magic])


class PcapWalk:
    """Walks the packets once. `damage` is a sentence about where and why it stopped before the end.

    size, more: as pcapng.Capture.
    """

    def __init__(self, data: mmap.mmap, interface: Interface, size: int, more: Callable[[], int]) -> None:
        self.data = data
        self.interface = interface
        self.size = size
        self.more = more
        self.damage = ""

    def packets(self) -> Iterator[Packet]:
        """As pcapng.Capture.packets."""
        data, interface, size = self.data, self.interface, self.size
        fields = struct.Struct(byte_order(data[:4]) + "IIII").unpack_from
        scale = interface.scale
        second = interface.ticks_per_second
        position = HEADER_BYTES
        while position < size or (size := self.more()) > position:
            start = position + RECORD_BYTES
            if start > size:
                self.damage = f"the file ends inside the packet at offset {position}"
                return
            seconds, fraction, captured, original = fields(data, position)
            if captured > PACKET_BYTES_MAX:
                self.damage = (
                    f"the packet at offset {position} claims {captured} bytes, which is nonsense; "
                    "the part before it was read"
                )
                return
            if start + captured > size:
                self.damage = f"the file ends inside the packet at offset {position}"
                return
            position = start + captured
            yield start, position, original, (seconds * second + fraction) * scale, 0, ""
