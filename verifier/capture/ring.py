# SPDX-License-Identifier: GPL-2.0-or-later
"""The process that captures: an AF_PACKET ring, mapped, written block by block to a pcapng file.

Started by `sniff` with one JSON argument. It answers one line when it captures (or a refusal), goes on
until its standard input ends, writes what was captured until then, and answers one line with the counts.

Source: Linux Documentation/networking/packet_mmap.rst; include/uapi/linux/if_packet.h: tpacket_req3,
tpacket_block_desc, tpacket3_hdr, tpacket_stats_v3; IETF draft-ietf-opsawg-pcapng.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import select
import socket
import struct
import sys
import time
from contextlib import suppress
from itertools import accumulate

from mockdev.sealing import append_seal
from verifier.capture.interface import EN10MB, RAW
from verifier.capture.socket_filter import WHOLE_BYTES, assemble

_SO_ATTACH_FILTER = 26
_SOL_PACKET, _PACKET_RX_RING, _PACKET_STATISTICS, _PACKET_VERSION = 263, 5, 6, 10
_TPACKET_V3, _STATUS_USER = 2, 1
_ETH_P_ALL = 3
_BLOCK_BYTES = 4 << 20
_FRAME_BYTES = 1 << 16
_RETIRE_MS = 10  # the kernel hands over a block that is not full after this long
_GRACE_MS = 3 * _RETIRE_MS
_DRAIN_S = 2.0
_PIECES_MAX = 999
_NICE = -15  # on a busy machine the capture comes first: what waits too long for it is lost
_LINKS = {1: (EN10MB, 14), 772: (EN10MB, 14), 65534: (RAW, 0)}  # ARPHRD_ETHER, _LOOPBACK, _NONE
_LOOPBACK = 772

_BLOCK_HEAD = struct.Struct("=8xIII").unpack_from
_FRAME_HEAD = struct.Struct("=6IH").unpack_from
_EPB = struct.Struct("<7I").pack
_RESERVED, _STATISTICS = 0x80000001, 5


class Refusal(Exception):
    """Why there is no capture, as a sentence."""


class _Ring:
    """The socket and its ring."""

    def __init__(self, interface: str, ports: list[int], snap_bytes: int, ring_bytes: int) -> None:
        self.received = self.dropped = 0
        try:
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        except PermissionError:
            raise Refusal(
                f"capturing on {interface} needs the privilege CAP_NET_RAW: run as root, or give it to the "
                f"interpreter with: sudo setcap cap_net_raw+ep {os.path.realpath(sys.executable)}"
            ) from None
        try:
            self.socket.bind((interface, 0))  # no protocol yet: nothing arrives before the ring is there
        except OSError as error:
            raise Refusal(f"there is no interface {interface} to capture on ({error.strerror})") from None
        kind = self.socket.getsockname()[3]
        if kind not in _LINKS:
            raise Refusal(f"{interface} is of hardware type {kind}, which is not captured")
        self.link_type, link_bytes = _LINKS[kind]
        code = assemble(ports, snap_bytes, link_bytes, incoming_only=kind == _LOOPBACK)
        place = ctypes.create_string_buffer(code, len(code))
        self.socket.setsockopt(
            socket.SOL_SOCKET,
            _SO_ATTACH_FILTER,
            struct.pack("@HP", len(code) // 8, ctypes.addressof(place)),
        )
        self.socket.setsockopt(_SOL_PACKET, _PACKET_VERSION, struct.pack("=i", _TPACKET_V3))
        self.blocks = max(2, ring_bytes // _BLOCK_BYTES)
        frames = self.blocks * (_BLOCK_BYTES // _FRAME_BYTES)
        request = struct.pack("=7I", _BLOCK_BYTES, self.blocks, _FRAME_BYTES, frames, _RETIRE_MS, 0, 0)
        try:
            self.socket.setsockopt(_SOL_PACKET, _PACKET_RX_RING, request)
            self.memory = mmap.mmap(self.socket.fileno(), self.blocks * _BLOCK_BYTES)
        except OSError as error:
            raise Refusal(
                f"the kernel gives no ring of {ring_bytes} bytes to capture into: {error.strerror}"
            ) from None
        self.view = memoryview(self.memory)
        self.next = 0
        self.interface = interface

    def begin(self) -> None:
        """From here on packets arrive."""
        self.socket.bind((self.interface, _ETH_P_ALL))

    def block(self) -> tuple[int, int, int] | None:
        """(start, offset of the first frame, frames) of the next block handed over, if any."""
        start = self.next * _BLOCK_BYTES
        status, frames, first = _BLOCK_HEAD(self.memory, start)
        return (start, start + first, frames) if status & _STATUS_USER else None

    def give_back(self, start: int) -> None:
        """The kernel may use the block again."""
        struct.pack_into("=I", self.memory, start + 8, 0)
        self.next = (self.next + 1) % self.blocks

    def count(self) -> None:
        """Adds up the kernel's counters, which begin anew with every look."""
        received, dropped, _ = struct.unpack(
            "=3I", self.socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 12)
        )
        self.received += received
        self.dropped += dropped


class _File:
    """The pcapng file. The place of the statistics block is reserved, so a full disk cannot prevent it."""

    def __init__(
        self, path: str, interface: str, link_type: int, snap_bytes: int, expected_bytes: int
    ) -> None:
        self.path = path
        self.packets = self.bytes = self.lost = 0
        self.complaint = ""
        try:
            self.file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
            description = struct.pack("<HHI", link_type, 0, snap_bytes)
            description += _option(2, interface.encode()) + _option(9, b"\x09") + _option(0, b"")
            head = _block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1)) + _block(1, description)
            self.statistics_at = len(head)
            head += self._statistics(_RESERVED, 0, 0, 0)
            self.end = os.write(self.file, head)
            if self.end != len(head):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise Refusal(f"{path} cannot be written: {error.strerror}") from None
        self._prepare(expected_bytes)

    def _prepare(self, size: int) -> None:
        """Fills the file ahead: to write over pages that are there takes half the time of making them."""
        zeros = bytes(1 << 20)
        with suppress(OSError):  # what has no room now will be said when it is needed
            for _ in range(0, size, len(zeros)):
                os.write(self.file, zeros)
        os.lseek(self.file, self.end, os.SEEK_SET)

    def write(self, ring: _Ring, at: int, frames: int) -> None:
        """Appends the packets of one block of the ring."""
        memory, view = ring.memory, ring.view
        pieces: list[bytes | memoryview] = []
        for _ in range(frames):
            step, seconds, nanoseconds, captured, original, _, mac = _FRAME_HEAD(memory, at)
            time_ns = seconds * 1_000_000_000 + nanoseconds
            padding = -captured & 3
            length = 32 + captured + padding
            pieces += (
                _EPB(6, length, 0, time_ns >> 32, time_ns & 0xFFFF_FFFF, captured, original),
                view[at + mac : at + mac + captured],
                bytes(padding) + length.to_bytes(4, "little"),
            )
            at += step
            if len(pieces) >= _PIECES_MAX:
                self._append(pieces)
                pieces = []
        if pieces:
            self._append(pieces)

    def close(self, ring: _Ring) -> None:
        """Writes the statistics in place, and the seal."""
        block = self._statistics(_STATISTICS, time.time_ns(), ring.received, ring.dropped + self.lost)
        with suppress(OSError):
            os.ftruncate(self.file, self.end)
            os.pwrite(self.file, block, self.statistics_at)
            append_seal(self.file, self.end)
        os.close(self.file)

    def _append(self, pieces: list[bytes | memoryview]) -> None:
        """Writes packets of three pieces each: header, payload, trailer."""
        sizes = [sum(map(len, pieces[index : index + 3])) for index in range(0, len(pieces), 3)]
        size, written = sum(sizes), 0
        if not self.complaint:
            try:
                written = os.writev(self.file, pieces)
                if written < size:  # the rest alone, so that the reason comes as an error
                    written += os.write(self.file, b"".join(pieces)[written:])
                if written < size:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError as error:
                sizes = _first(sizes, written)
                self._complain(error, self.end + sum(sizes))
        else:
            sizes = []
        self.end += sum(sizes)
        self.packets += len(sizes)
        self.bytes += sum(map(len, pieces[1 : 3 * len(sizes) : 3]))
        self.lost += len(pieces) // 3 - len(sizes)

    def _complain(self, error: OSError, end: int) -> None:
        self.complaint = (
            f"{self.path}: the capture stops after {end} bytes: {error.strerror}; "
            "what came later is counted as dropped"
        )
        with suppress(OSError):
            os.ftruncate(self.file, end)

    @staticmethod
    def _statistics(kind: int, time_ns: int, received: int, dropped: int) -> bytes:
        counters = _option(4, struct.pack("<Q", received)) + _option(7, struct.pack("<Q", dropped))
        head = struct.pack("<III", 0, time_ns >> 32, time_ns & 0xFFFF_FFFF)
        return _block(kind, head + counters + _option(0, b""))


def _first(sizes: list[int], limit: int) -> list[int]:
    """As many of the first sizes as fit whole into the limit."""
    for index, end in enumerate(accumulate(sizes)):
        if end > limit:
            return sizes[:index]
    return sizes


def _block(kind: int, body: bytes) -> bytes:
    length = struct.pack("<I", 12 + len(body))
    return struct.pack("<I", kind) + length + body + length


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + value + bytes(-len(value) & 3)


def _pump(ring: _Ring, file: _File, stdin: int) -> None:
    """Until standard input ends, and then until the file has all that the kernel counted before."""
    poll = select.poll()
    poll.register(ring.socket, select.POLLIN | select.POLLERR)
    poll.register(stdin, select.POLLIN)
    seen, deadline = 0, 0.0
    while True:
        ready = ring.block()
        while ready is not None:
            start, first, frames = ready
            file.write(ring, first, frames)
            seen += frames
            ring.give_back(start)
            ready = ring.block() if not deadline or time.monotonic() < deadline else None
        if not deadline:
            events = poll.poll()
            if any(fd == stdin for fd, _ in events) and not os.read(stdin, 1):
                poll.unregister(stdin)
                deadline = time.monotonic() + _DRAIN_S
            if any(event & select.POLLERR for _, event in events):
                ring.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # the interface went down, say
            continue
        quiet = not poll.poll(_GRACE_MS)
        ring.count()
        if (quiet and seen >= ring.received - ring.dropped) or time.monotonic() > deadline:
            return


def _say(**answer: int | str | bool) -> None:
    with suppress(BrokenPipeError):  # nobody listens any more: what counts is in the file
        os.write(sys.stdout.fileno(), json.dumps(answer).encode() + b"\n")


def main(order: str) -> int:
    """Capture as the JSON in `order` says; see `sniff.Sniffer` for its keys."""
    given = json.loads(order)
    snap_bytes = given["snap_bytes"]
    try:
        ring = _Ring(given["interface"], given["ports"], snap_bytes, given["ring_bytes"])
        file = _File(
            given["path"],
            given["interface"],
            ring.link_type,
            snap_bytes or WHOLE_BYTES,
            given["expected_bytes"],
        )
        ring.begin()
    except Refusal as refusal:
        _say(refusal=str(refusal))
        return 4
    with suppress(OSError):  # without the privilege it captures all the same, and counts what it drops
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)
    _say(ready=True)
    _pump(ring, file, sys.stdin.fileno())
    file.close(ring)
    _say(packets=file.packets, bytes=file.bytes, dropped=ring.dropped + file.lost, complaint=file.complaint)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
