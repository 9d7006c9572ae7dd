# SPDX-License-Identifier: GPL-2.0-or-later
"""Small captures for tests, built apart from the project's own writers and readers."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from verifier.capture.pcapng import open_capture
from verifier.capture.reassembly import Accounting, reassemble
from verifier.capture.stream import Flow

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
CLIENT, SERVER = ("10.0.0.1", 40000), ("10.0.0.2", 9000)
MASK = 0xFFFFFFFF
EPOCH_NS = 1_700_000_000_123_456_789
_LINK_HEADERS: dict[int, Callable[[bytes], bytes]] = {
    1: lambda kind: bytes(12) + kind,
    101: lambda _: b"",
    113: lambda kind: bytes(14) + kind,
    276: lambda kind: kind + bytes(18),
    0: lambda kind: struct.pack("<I", 2 if kind == b"\x08\x00" else 24),
    108: lambda kind: struct.pack(">I", 2 if kind == b"\x08\x00" else 24),
    228: lambda _: b"",
}


@dataclass
class Frame:
    """A frame as captured: `data` of `original` bytes (all when 0)."""

    data: bytes
    time_ns: int = EPOCH_NS
    original: int = 0
    interface: int = 0
    options: bytes = b""


def word_sum(data: bytes) -> int:
    """The sum of 16-bit words with end-around carry, as RFC 1071 writes it."""
    data += bytes(len(data) % 2)
    total = 0
    for (word,) in struct.iter_unpack(">H", data):
        total += word
        total = (total & 0xFFFF) + (total >> 16)
    return total


def tcp(
    source: tuple[str, int],
    destination: tuple[str, int],
    seq: int,
    payload: bytes = b"",
    *,
    ack: int = 0,
    flags: int = ACK,
    link: int = 1,
    tcp_options: bytes = b"",
    ip_options: bytes = b"",
    fragment: int = 0,
    no_length: bool = False,
    tags: Sequence[int] = (),
    checksum: str = "",
) -> bytes:
    """One TCP segment with its headers. checksum: "whole", "partial" as loopback has it, "bare" without the
    length, or "" for 0.
    """
    hosts = [ip_address(source[0]), ip_address(destination[0])]
    words = (20 + len(tcp_options)) // 4
    ports = (source[1], destination[1])
    segment = struct.pack(">HHIIBBHHH", *ports, seq & MASK, ack & MASK, words << 4, flags, 512, 0, 0)
    segment += tcp_options + payload
    addresses = hosts[0].packed + hosts[1].packed
    if checksum:
        parts = {"whole": segment, "partial": b"", "bare": b""}
        length = 0 if checksum == "bare" else len(segment)
        total = word_sum(addresses + struct.pack(">II", 6, length) + parts[checksum])
        field = total if checksum != "whole" else total ^ 0xFFFF
        segment = segment[:16] + struct.pack(">H", field) + segment[18:]
    if hosts[0].version == 4:
        kind = b"\x08\x00"
        header_words = 5 + len(ip_options) // 4
        total = 0 if no_length else header_words * 4 + len(segment)
        head = struct.pack(">BBHHHBBH", 0x40 | header_words, 0, total, 0, fragment, 64, 6, 0)
        packet = head + addresses + ip_options + segment
    else:
        kind = b"\x86\xdd"
        length = 0 if no_length else len(ip_options) + len(segment)
        following = 60 if ip_options else 6
        packet = struct.pack(">IHBB", 6 << 28, length, following, 64) + addresses + ip_options + segment
    for tag in reversed(tags):
        packet, kind = struct.pack(">H", tag) + kind + packet, b"\x81\x00"
    return _LINK_HEADERS[link](kind) + packet


def option(order: str, code: int, value: bytes) -> bytes:
    return struct.pack(order + "HH", code, len(value)) + value + bytes(-len(value) & 3)


def block(order: str, kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) & 3)
    length = struct.pack(order + "I", 12 + len(body))
    return struct.pack(order + "I", kind) + length + body + length


def section(order: str = "<") -> bytes:
    return block(order, 0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1))


def interface(order: str = "<", link: int = 1, resolution: int = 9, extra: bytes = b"") -> bytes:
    options = option(order, 9, bytes([resolution])) + extra + option(order, 0, b"")
    return block(order, 1, struct.pack(order + "HHI", link, 0, 0) + options)


def packet(frame: Frame, order: str = "<", ticks: int | None = None) -> bytes:
    ticks = frame.time_ns if ticks is None else ticks
    size = len(frame.data)
    head = struct.pack(
        order + "5I", frame.interface, ticks >> 32, ticks & MASK, size, max(frame.original, size)
    )
    return block(order, 6, head + frame.data + bytes(-size & 3) + frame.options)


def pcapng(frames: Sequence[Frame], order: str = "<", link: int = 1, interfaces: int = 1) -> bytes:
    return (
        section(order)
        + interface(order, link) * interfaces
        + b"".join(packet(frame, order) for frame in frames)
    )


def pcap(frames: Sequence[Frame], order: str = "<", nano: bool = False, link: int = 1) -> bytes:
    magic, unit = (0xA1B23C4D, 1) if nano else (0xA1B2C3D4, 1000)
    out = struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 262144, link)
    for frame in frames:
        seconds, rest = divmod(frame.time_ns, 1_000_000_000)
        size = len(frame.data)
        out += (
            struct.pack(order + "IIII", seconds, rest // unit, size, max(frame.original, size)) + frame.data
        )
    return out


@dataclass
class Taken:
    """A sink that keeps everything: bytes, with None for each byte of a hole, and events."""

    flow: Flow
    buffer: memoryview
    stream: list[int | None] = field(default_factory=list)
    holes: list[tuple[int, int, str, str]] = field(default_factory=list)
    times: list[int] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)
    ended_ns: int = 0

    def data(self, start: int, stop: int, time_ns: int) -> None:
        assert stop > start
        assert not self.ends
        self.stream += self.buffer[start:stop]
        self.times.append(time_ns)

    def hole(self, size: int, reason: str, _time_ns: int, note: str) -> None:
        assert size > 0
        assert not self.ends
        assert size < 1 << 24, "a hole too large to be kept byte by byte"
        self.holes.append((len(self.stream), size, reason, note))
        self.stream += [None] * size

    def end(self, kind: str, time_ns: int) -> None:
        self.ends.append(kind)
        self.ended_ns = time_ns

    @property
    def bytes(self) -> bytes:
        """All of it, when there is no hole."""
        return bytes(byte for byte in self.stream if byte is not None) if not self.holes else b"HOLES"


def take_all(path: Path, content: bytes | None = None, **limits: int) -> tuple[Accounting, list[Taken]]:
    """Reassembles a capture (writing `content` to `path` first) and gives its flows as they were met."""
    if content is not None:
        path.write_bytes(content)
    taken: list[Taken] = []
    with open_capture(path) as capture, memoryview(capture.data) as view:

        def factory(flow: Flow) -> Taken:
            taken.append(Taken(flow, view))
            return taken[-1]

        accounting = reassemble(capture, factory, **limits)
    assert [sink.flow for sink in taken] == accounting.flows
    for sink in taken:
        assert len(sink.ends) == 1
        assert sink.flow.delivered_bytes == sum(byte is not None for byte in sink.stream)
        assert sink.flow.hole_bytes == sum(byte is None for byte in sink.stream)
    return accounting, taken


def clock(frames: Sequence[bytes | bytearray], start_ns: int = EPOCH_NS) -> Iterator[Frame]:
    """Frames a microsecond apart."""
    for index, data in enumerate(frames):
        yield Frame(bytes(data), start_ns + 1000 * index)
