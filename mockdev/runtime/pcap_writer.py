# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes what an endpoint says it sent and received as a pcapng file of TCP connections that any tool can
follow.

    writer = PcapngWriter(path, ["source"])
    tap = writer.connection(("127.0.0.1", 4000), ("127.0.0.1", 5000), time_ns)
    tap.sent([header, payload], time_ns)
    tap.sent([header], time_ns, Elided(len(payload), digest))
    tap.close(time_ns)
    writer.close()

Packets are raw IP (link type 101), with sequence numbers, a handshake and an end; a segment carries at most
SEGMENT_BYTES_MAX of payload. One call of sent() or received() is one write, without a copy of the payload.

The writer never raises into the data path: when a write fails it cuts the file back to its last whole block,
remembers a sentence in `complaint`, and counts all later packets as dropped. Each interface has its
statistics block right behind its description: the place is reserved at the start, so that a full disk
cannot prevent the file from saying what it lacks. A file that is closed ends with a seal (`wire.seal`).

Source: IETF draft-ietf-opsawg-pcapng; RFC 791, 8200, 9293.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mockdev.errors import VfmigError
from mockdev.runtime.pcap_packets import (
    ACK,
    FIN,
    INTERFACE,
    LINKTYPE_RAW,
    MASK,
    PSH,
    RESERVED,
    RST,
    SECTION,
    SYN,
    Host,
    Side,
    block,
    option,
    statistics,
    trailer,
)
from mockdev.sealing import append_seal

Buffer = bytes | bytearray | memoryview

SEGMENT_BYTES_MAX = 65_495  # of payload: an IPv4 packet's length field ends at 65,535

_IOV_MAX = 1000  # the kernel takes 1024 pieces a call
# Connections without addresses look like ones from many ports to one target, which is what they are.
_SYNTHETIC_PORT, _SYNTHETIC_TARGET_PORT = 49_152, 49_151


class Elided(NamedTuple):
    """Payload that passed and is left away: its size, and its digest as "xxh3-128:<hex>"."""

    size: int
    digest: str


@dataclass(slots=True)
class _Counts:
    """Of one interface: where its statistics block is, packets that came, those not in the file."""

    block_at: int
    received: int = 0
    dropped: int = 0
    last_ns: int = 0


class PcapngWriter:
    """A capture file being written; usable from many threads.

    interfaces: names of the capture points, at least one. segment_bytes: payload of a packet at most.
    complaint: "" or the sentence that says why writing stopped.
    Raises VfmigError when the file cannot be made.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        interfaces: Sequence[str],
        *,
        segment_bytes: int = SEGMENT_BYTES_MAX,
    ) -> None:
        self.path = Path(path)
        self.segment_bytes = segment_bytes
        self.complaint = ""
        self._lock = threading.Lock()
        self._connections = 0
        self._counts: list[_Counts] = []
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise VfmigError(f"{self.path} cannot be written: {error.strerror}") from None
        preamble = self._preamble(interfaces)
        self._end = 0
        self._write([preamble], len(preamble))
        if self.complaint:
            os.close(self._file)
            raise VfmigError(self.complaint)

    def connection(
        self,
        local: Host | str | None,
        peer: Host | str | None,
        time_ns: int,
        *,
        interface: int = 0,
        accepted: bool = False,
    ) -> Tap:
        """A connection that was just made. local, peer: (IP address, port), or anything else for a connection
        without such (a Unix socket, memory), which gets addresses of its own. accepted: the peer called us.
        """
        with self._lock:
            number = self._connections
            self._connections += 1
        caller, called = ("127.0.0.1", _synthetic_port(number)), ("127.0.0.1", _SYNTHETIC_TARGET_PORT)
        ends = [
            end if isinstance(end, tuple) and len(end) >= 2 else synthetic
            for end, synthetic in zip(
                (local, peer), (called, caller) if accepted else (caller, called), strict=True
            )
        ]
        tap = Tap(self, interface, Side.pair(ends[0], ends[1], number))
        tap._open(time_ns, accepted)
        return tap

    def close(self) -> None:
        """Writes the statistics, seals the file and closes it. Safe to call twice."""
        with self._lock:
            if self._file < 0:
                return
            for number, counts in enumerate(self._counts):
                with suppress(OSError):  # written in place, over the reserved block
                    os.pwrite(
                        self._file,
                        statistics(number, counts.received, counts.dropped, counts.last_ns),
                        counts.block_at,
                    )
            append_seal(self._file, self._end)  # here at the end, where nobody waits for it
            try:
                os.close(self._file)
            except OSError as error:
                self._complain(error)
            self._file = -1

    @property
    def dropped(self) -> int:
        """Packets that are not in the file, over all interfaces."""
        return sum(counts.dropped for counts in self._counts)

    def _preamble(self, interfaces: Sequence[str]) -> bytes:
        blocks = bytearray(block(SECTION, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1)))
        for name in interfaces:
            nanoseconds = option(9, b"\x09")
            body = struct.pack("<HHI", LINKTYPE_RAW, 0, 0) + option(2, name.encode()) + nanoseconds
            blocks += block(INTERFACE, body + struct.pack("<HH", 0, 0))
        for number in range(len(interfaces)):
            counts = _Counts(len(blocks))
            self._counts.append(counts)
            blocks += statistics(number, 0, 0, 0, RESERVED)
        return bytes(blocks)

    def _packets(self, interface: int, pieces: list[Buffer], size: int, packets: int, time_ns: int) -> None:
        """`pieces` are `packets` whole packet blocks of `size` bytes; the caller holds the lock."""
        counts = self._counts[interface]
        counts.received += packets
        counts.last_ns = time_ns
        if not self.complaint and self._file >= 0:
            self._write(pieces, size)
            if not self.complaint:
                return
        counts.dropped += packets

    def _write(self, pieces: list[Buffer], size: int) -> None:
        written = 0
        try:
            for first in range(0, len(pieces), _IOV_MAX):
                written += _write_all(self._file, pieces[first : first + _IOV_MAX])
            self._end += size
        except OSError as error:
            self._complain(error)
            with suppress(OSError):
                os.ftruncate(self._file, self._end)

    def _complain(self, error: OSError) -> None:
        if not self.complaint:
            self.complaint = (
                f"{self.path}: the capture stops after {self._end} bytes: {error.strerror or error}; "
                "what came later is counted as dropped"
            )


class Tap:
    """One connection in a capture file."""

    def __init__(self, writer: PcapngWriter, interface: int, sides: tuple[Side, Side]) -> None:
        self._writer = writer
        self._interface = interface
        self._local, self._peer = sides
        self._closed = False

    def sent(self, buffers: Sequence[Buffer], time_ns: int, elided: Elided | None = None) -> None:
        """The local side sent these buffers (contiguous ones), one after the other, then what is elided."""
        self._carry(self._local, self._peer, buffers, time_ns, elided)

    def received(self, buffers: Sequence[Buffer], time_ns: int, elided: Elided | None = None) -> None:
        """The local side received these buffers; as sent()."""
        self._carry(self._peer, self._local, buffers, time_ns, elided)

    def close(self, time_ns: int, *, reset: bool = False) -> None:
        """Both sides have ended it; with `reset`, the local side broke it off. Only the first call counts."""
        local, peer = self._local, self._peer
        with self._writer._lock:
            if self._closed:
                return
            self._closed = True
            if reset:
                self._control([(local, peer, RST | ACK)], time_ns)
            else:
                self._control(
                    [(local, peer, FIN | ACK), (peer, local, FIN | ACK), (local, peer, ACK)], time_ns
                )

    def finish(self, time_ns: int, *, local: bool) -> None:
        """One side has ended its direction, the local one or the peer; the other may go on."""
        side, other = (self._local, self._peer) if local else (self._peer, self._local)
        with self._writer._lock:
            if not self._closed:
                self._control([(side, other, FIN | ACK), (other, side, ACK)], time_ns)

    def _open(self, time_ns: int, accepted: bool) -> None:
        caller, called = (self._peer, self._local) if accepted else (self._local, self._peer)
        with self._writer._lock:
            self._control(
                [(caller, called, SYN), (called, caller, SYN | ACK), (caller, called, ACK)], time_ns
            )

    def _control(self, steps: Sequence[tuple[Side, Side, int]], time_ns: int) -> None:
        pieces: list[Buffer] = []
        for side, other, flags in steps:
            pieces.append(side.head(other, 0, 0, 0, flags, time_ns, self._interface))
            pieces.append(trailer(side.header_bytes, 0))
            if flags & (SYN | FIN):
                side.seq = (side.seq + 1) & MASK
        self._writer._packets(self._interface, pieces, sum(map(len, pieces)), len(steps), time_ns)

    def _carry(
        self, side: Side, other: Side, buffers: Sequence[Buffer], time_ns: int, elided: Elided | None
    ) -> None:
        views = [view for view in (memoryview(buffer).cast("B") for buffer in buffers) if len(view)]
        with self._writer._lock:
            pieces: list[Buffer] = []
            size, packets = self._whole(side, other, views, time_ns, pieces)
            if elided is not None:
                size += self._elided(side, other, elided, time_ns, pieces)
                packets += -(-elided.size // self._writer.segment_bytes)
            if packets:
                self._writer._packets(self._interface, pieces, size, packets, time_ns)

    def _whole(
        self, side: Side, other: Side, views: list[memoryview], time_ns: int, pieces: list[Buffer]
    ) -> tuple[int, int]:
        """Appends packets with all bytes of the views; gives (bytes of the file, packets)."""
        left = sum(map(len, views))
        size = packets = index = position = 0
        while left:
            length = min(left, self._writer.segment_bytes)
            left -= length
            flags = ACK if left else ACK | PSH
            head = side.head(other, length, length, 0, flags, time_ns, self._interface)
            pieces.append(head)
            need = length
            while need:
                view = views[index]
                part = min(need, len(view) - position)
                pieces.append(view[position : position + part])
                need -= part
                position += part
                if position == len(view):
                    index, position = index + 1, 0
            tail = trailer(side.header_bytes, length)
            pieces.append(tail)
            size += len(head) + length + len(tail)
            packets += 1
            side.seq = (side.seq + length) & MASK
        return size, packets

    def _elided(self, side: Side, other: Side, elided: Elided, time_ns: int, pieces: list[Buffer]) -> int:
        """Appends packets without their payload, the digest as the first one's comment; bytes of the file."""
        note = f"vfmig payload {elided.size} {elided.digest}"
        comment = option(1, note.encode()) + struct.pack("<HH", 0, 0)
        at = side.sequence_at
        data = bytearray()
        alike = b""  # a packet in the middle: all of them differ in their sequence number only
        left = elided.size
        while left:
            length = min(left, self._writer.segment_bytes)
            left -= length
            if alike and left:
                data += alike
                data[at - len(alike) : at + 4 - len(alike)] = side.seq.to_bytes(4, "big")
            else:
                flags = ACK if left else ACK | PSH
                packet = side.head(other, length, 0, len(comment), flags, time_ns, self._interface)
                packet += comment + trailer(side.header_bytes, 0, len(comment))
                data += packet
                if not comment:
                    alike = packet
                comment = b""
            side.seq = (side.seq + length) & MASK
        pieces.append(data)
        return len(data)


def _write_all(file: int, pieces: list[Buffer]) -> int:
    """writev until all is written; a short write is tried again, so that the reason comes as an OSError."""
    written = os.writev(file, pieces)
    size = sum(map(len, pieces))
    while written < size:
        skip, rest = written, []
        for piece in pieces:
            if skip < len(piece):
                rest.append(memoryview(piece)[skip:])
            skip = max(0, skip - len(piece))
        written += os.writev(file, rest)
    return written


def _synthetic_port(number: int) -> int:
    return _SYNTHETIC_PORT + number % 16_384
