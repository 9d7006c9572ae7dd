# SPDX-License-Identifier: GPL-2.0-or-later
"""Capture files opened and walked: pcapng here, classic pcap through `pcap`, either of them compressed.

    with open_capture("capture.pcapng") as capture:
        for start, stop, original, time_ns, interface, note in capture.packets():
            frame = capture.data[start:stop]

A packet is a tuple of plain numbers, never an object, and its bytes stay where they are in the mapped
file: the walk costs well under a microsecond a packet.

Source: IETF draft-ietf-opsawg-pcapng.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from contextlib import suppress
from os import PathLike
from pathlib import Path
from types import TracebackType

from verifier.capture import options, pcap
from verifier.capture.interface import NANOSECONDS, Interface
from verifier.capture.opening import UNPACKED_BYTES_MAX, CaptureError, map_file

SECTION, INTERFACE, OLD_PACKET, SIMPLE_PACKET, STATISTICS, PACKET = 0x0A0D0D0A, 1, 2, 3, 5, 6
SECTION_MAGIC = b"\x0a\x0d\x0d\x0a"
ORDERS = {b"\x4d\x3c\x2b\x1a": "<", b"\x1a\x2b\x3c\x4d": ">"}
BLOCK_BYTES_MIN = 12
_INTERFACES_MAX = 65_536

Packet = pcap.Packet


def open_capture(path: str | PathLike[str], *, unpacked_bytes_max: int = UNPACKED_BYTES_MAX) -> Capture:
    """Open a pcap or pcapng file, plain or in gzip or zstd.

    Raises CaptureError, a sentence, when it cannot be read as a capture at all.
    """
    mapped = map_file(Path(path), unpacked_bytes_max)
    data = mapped.data
    magic = data[:4]
    kind = "pcapng" if magic == SECTION_MAGIC else "pcap" if pcap.byte_order(magic) else ""
    smallest = 28 if kind == "pcapng" else pcap.HEADER_BYTES
    if kind and len(data) < smallest:
        reason = f"{path} ends inside its first header, so there is nothing in it to read"
    elif kind == "pcapng" and data[8:12] not in ORDERS:
        reason = f"{path} begins like pcapng, but its byte-order magic is {data[8:12].hex()}, which is none"
    elif not kind:
        reason = f"{path} is not a capture: it begins with {magic.hex()}, which is neither pcap nor pcapng"
    else:
        return Capture(Path(path), data, kind, mapped.damage)
    data.close()
    raise CaptureError(reason)


class Capture:
    """An open capture file.

    path; format: "pcap" or "pcapng"; data: the mapped bytes (of the unpacked file, when compressed).
    interfaces: every capture point met so far, complete once packets() has run to its end.
    truncated: "" or a sentence about where reading stopped before the end, and why; what lies before
    that place was read. size: how many bytes there are to read. grows: whether to ask for the next packet
    may mean to wait for it.
    """

    grows = False

    def __init__(self, path: Path, data: mmap.mmap, kind: str, damage: str) -> None:
        self.path = path
        self.data = data
        self.size = len(data)
        self.format = kind
        self.interfaces: list[Interface] = []
        self.truncated = damage
        self._unpacking_damage = damage

    def __enter__(self) -> Capture:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Unmap the file, or leave it to the last view of it that is still held."""
        with suppress(BufferError):
            self.data.close()

    def more(self) -> int:
        """The size, once all before it was read; larger than before in a file that grows (`growing`)."""
        return self.size

    @property
    def drops(self) -> int | None:
        """Packets that capture points say they lost; None when none of them says."""
        known = [point.drops for point in self.interfaces if point.drops is not None]
        return sum(known) if known else None

    def packets(self) -> Iterator[Packet]:
        """Every whole packet in file order: (start, stop, original, time_ns, interface, note).

        data[start:stop] is what was captured of a frame that had `original` bytes on the wire; time_ns
        since 1970 (0 when the file does not say); interface: an index into `interfaces`; note: the
        packet's comments, one a line, mostly "". Can be called again: it starts anew.
        """
        self.interfaces.clear()
        self.truncated = self._unpacking_damage
        if self.format == "pcap":
            self.interfaces.append(pcap.read_header(self.data))
            walk = pcap.PcapWalk(self.data, self.interfaces[0], self.size, self.more)
            yield from walk.packets()
            self._stop(walk.damage)
            return
        position = 0
        while 0 <= position < self.size:
            section = _Section(self, position)
            yield from section.packets()
            position = section.end

    def _stop(self, damage: str) -> None:
        if damage:
            self.truncated = "; ".join(filter(None, (damage, self._unpacking_damage)))


class _Section:
    """One section of a pcapng file: its byte order, its interfaces, and where the next one begins."""

    def __init__(self, capture: Capture, start: int) -> None:
        self.capture = capture
        self.data = capture.data
        self.start = start
        self.end = -1
        self.order = "<"
        self.points: list[Interface] = []

    def _damage(self, sentence: str) -> None:
        self.capture._stop(f"{sentence}; the part before it was read")

    def packets(self) -> Iterator[Packet]:
        """The section's packets; sets `end` when another section follows."""
        data, size = self.data, self.capture.size
        order = ORDERS.get(data[self.start + 8 : self.start + 12])
        if order is None:
            self._damage(f"the section at offset {self.start} has no byte-order magic")
            return
        self.order = order
        fields = struct.Struct(order + "8I").unpack_from
        packed_max = size - 28
        points = self.points
        number = -1
        index = scale = shift = 0
        position, previous = self._skip(self.start)
        while position >= 0:
            # The common case in one unpacking: the trailer of the block before, then a packet's header.
            if position <= packed_max:
                trailer, kind, length, link, high, low, captured, original = fields(data, position - 4)
                if kind == PACKET and length == 32 + ((captured + 3) & ~3) and trailer == previous:
                    following = position + length
                    if link != number and link < len(points):
                        number, index, scale = link, points[link].number, points[link].scale
                        shift = points[link].offset_s * NANOSECONDS
                    if link == number and scale and following <= size:
                        start = position + 28
                        yield start, start + captured, original, (high << 32 | low) * scale + shift, index, ""
                        position, previous = following, length
                        continue
            if position == size and (grown := self.capture.more()) > size:
                size, packed_max = grown, grown - 28
                continue
            position, previous, packet = self._block(position, previous)
            if packet is not None:
                yield packet

    def _skip(self, position: int) -> tuple[int, int]:
        """Checks the block at `position` and gives (where the next begins, this one's length) or (-1, 0)."""
        data, size = self.data, self.capture.size
        if position + BLOCK_BYTES_MIN > size:
            if position < size:
                self._damage(f"the file ends inside the block at offset {position}")
            return -1, 0
        length: int = struct.unpack_from(self.order + "I", data, position + 4)[0]
        if length < BLOCK_BYTES_MIN or length % 4:
            self._damage(f"the block at offset {position} claims a length of {length}, which is nonsense")
            return -1, 0
        following = position + length
        if following > size:
            self._damage(
                f"the file ends inside the block at offset {position}, "
                f"which claims {length} bytes where {size - position} are left"
            )
            return -1, 0
        trailer: int = struct.unpack_from(self.order + "I", data, following - 4)[0]
        if trailer != length:
            self._damage(
                f"the block at offset {position} claims a length of {length} at its start "
                f"and {trailer} at its end"
            )
            return -1, 0
        return following, length

    def _block(self, position: int, previous: int) -> tuple[int, int, Packet | None]:
        """Any block, with care: (where the next begins or -1, this one's length, the packet in it)."""
        trailer: int = struct.unpack_from(self.order + "I", self.data, position - 4)[0]
        if trailer != previous:
            self._damage(
                f"the block before offset {position} has a length of {previous}, but {trailer} at its end"
            )
            return -1, 0, None
        if self.data[position : position + 4] == SECTION_MAGIC:
            self.end = position
            return -1, 0, None
        following, length = self._skip(position)
        if following < 0:
            return -1, 0, None
        kind: int = struct.unpack_from(self.order + "I", self.data, position)[0]
        reader = _READERS.get(kind)
        if reader is None:
            return following, length, None
        smallest, read = reader
        if length < smallest:
            self._damage(f"the block at offset {position} is of type {kind}, but only {length} bytes long")
            return -1, 0, None
        try:
            return following, length, read(self, position, following - 4)
        except _Nonsense as nonsense:
            self._damage(f"the block at offset {position} {nonsense}")
            return -1, 0, None

    def _point(self, number: int) -> Interface:
        if number >= len(self.points):
            raise _Nonsense(f"names interface {number}, but only {len(self.points)} are described")
        return self.points[number]

    def _interface(self, position: int, stop: int) -> None:
        link, _, snap_bytes = struct.unpack_from(self.order + "HHI", self.data, position + 8)
        if len(self.capture.interfaces) >= _INTERFACES_MAX:
            raise _Nonsense(f"describes interface number {_INTERFACES_MAX}, which is more than is read")
        point = Interface(len(self.capture.interfaces), link, snap_bytes)
        options.describe(point, self.data, position + 16, stop, self.order)
        self.points.append(point)
        self.capture.interfaces.append(point)

    def _statistics(self, position: int, stop: int) -> None:
        (number,) = struct.unpack_from(self.order + "I", self.data, position + 8)
        options.count(self._point(number), self.data, position + 20, stop, self.order)

    def _packet(self, position: int, stop: int) -> Packet:
        number, high, low, captured, original = struct.unpack_from(self.order + "5I", self.data, position + 8)
        return self._whole(self._point(number), high << 32 | low, position + 28, captured, original, stop)

    def _old_packet(self, position: int, stop: int) -> Packet:
        number, drops, high, low, captured, original = struct.unpack_from(
            self.order + "HH4I", self.data, position + 8
        )
        point = self._point(number)
        if drops != 0xFFFF:  # which says "unknown"
            point.dropped_before_packets = (point.dropped_before_packets or 0) + drops
        return self._whole(point, high << 32 | low, position + 28, captured, original, stop)

    def _simple_packet(self, position: int, stop: int) -> Packet:
        (original,) = struct.unpack_from(self.order + "I", self.data, position + 8)
        point = self._point(0)
        start = position + 12
        captured = min(original, stop - start, point.snap_bytes or original)
        return start, start + captured, original, 0, point.number, ""

    def _whole(
        self, point: Interface, ticks: int, start: int, captured: int, original: int, stop: int
    ) -> Packet:
        after = start + ((captured + 3) & ~3)
        if after > stop:
            raise _Nonsense(f"claims {captured} captured bytes, which is more than it has room for")
        note = options.note(point, self.data, after, stop, self.order) if after < stop else ""
        return start, start + captured, original, point.time_ns(ticks), point.number, note


class _Nonsense(Exception):
    """What is wrong with a block, as the rest of a sentence that begins with the block."""


_READERS = {
    INTERFACE: (20, _Section._interface),
    STATISTICS: (24, _Section._statistics),
    PACKET: (32, _Section._packet),
    OLD_PACKET: (32, _Section._old_packet),
    SIMPLE_PACKET: (16, _Section._simple_packet),
}
