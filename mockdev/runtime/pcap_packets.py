# SPDX-License-Identifier: GPL-2.0-or-later
"""The bytes of a capture file that are not payload: pcapng blocks and options, IP and TCP headers.

Pure. Source: IETF draft-ietf-opsawg-pcapng; RFC 791, 8200, 9293.
"""

from __future__ import annotations

import struct
from ipaddress import ip_address

Host = tuple[str, int]

SECTION, INTERFACE, STATISTICS, PACKET = 0x0A0D0D0A, 1, 5, 6
RESERVED = 0x80000001  # a block type for local use, which readers pass over
LINKTYPE_RAW = 101
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
MASK = 0xFFFF_FFFF

_EPB = struct.Struct("<7I")
_STATISTICS_OPTIONS = struct.Struct("<HHQHHQHHQHH")
_IPV4 = struct.Struct(">BBHHHBBH8s")
_IPV6 = struct.Struct(">IHBB32s")
_TCP = struct.Struct(">HHIIBBHHH")


class Side:
    """One end of a connection as a sender: its headers and its next sequence number.

    header_bytes: of IP and TCP. sequence_at: where in a packet's block the sequence number is.
    """

    def __init__(self, own: Host, other: Host, seq: int) -> None:
        source, destination = ip_address(own[0].partition("%")[0]), ip_address(other[0].partition("%")[0])
        if source.version != destination.version:  # an IPv4 peer of an IPv6 socket
            source, destination = (
                ip_address(f"::ffff:{end}") if end.version == 4 else end for end in (source, destination)
            )
        self.hosts = source.packed + destination.packed
        self.ports = own[1], other[1]
        self.seq = seq
        self.header_bytes = (20 if source.version == 4 else 40) + _TCP.size
        self.sequence_at = _EPB.size + self.header_bytes - _TCP.size + 4
        # The checksum of the IPv4 header without its length field.
        words = struct.unpack(">4H", self.hosts) if source.version == 4 else ()
        self.checksum = 0x4500 + 0x4000 + 0x4006 + sum(words)

    @classmethod
    def pair(cls, local: Host, peer: Host, number: int) -> tuple[Side, Side]:
        """Both ends of connection `number`, whose first sequence numbers come from it."""
        first = (number * 0x9E3779B1) & MASK
        return cls(local, peer, first), cls(peer, local, first ^ 0x55AA55AA)

    def head(
        self, other: Side, length: int, kept: int, options: int, flags: int, time_ns: int, interface: int
    ) -> bytes:
        """Block, IP and TCP header of a packet with `length` bytes of payload, `kept` of them in the file."""
        captured = self.header_bytes + kept
        block_bytes = _EPB.size + captured + (-captured & 3) + options + 4
        epb = _EPB.pack(
            PACKET,
            block_bytes,
            interface,
            time_ns >> 32 & MASK,
            time_ns & MASK,
            captured,
            self.header_bytes + length,
        )
        total = self.header_bytes + length
        if len(self.hosts) == 8:
            checksum = self.checksum + total
            checksum = (checksum & 0xFFFF) + (checksum >> 16)
            checksum = (checksum & 0xFFFF) + (checksum >> 16)
            ip = _IPV4.pack(0x45, 0, total, 0, 0x4000, 64, 6, checksum ^ 0xFFFF, self.hosts)
        else:
            ip = _IPV6.pack(6 << 28, total - 40, 6, 64, self.hosts)
        ack = other.seq if flags & ACK else 0
        return epb + ip + _TCP.pack(*self.ports, self.seq, ack, 0x50, flags, 0xFFFF, 0, 0)


def trailer(header_bytes: int, kept: int, options: int = 0) -> bytes:
    """What ends a packet block: padding after `kept` bytes of payload, and the block's length."""
    captured = header_bytes + kept
    padding = -captured & 3
    return bytes(padding) + struct.pack("<I", _EPB.size + captured + padding + options + 4)


def block(kind: int, body: bytes) -> bytes:
    """A block around a body whose length is a multiple of four."""
    length = struct.pack("<I", 12 + len(body))
    return struct.pack("<I", kind) + length + body + length


def option(code: int, value: bytes) -> bytes:
    """An option, padded to a multiple of four."""
    return struct.pack("<HH", code, len(value)) + value + bytes(-len(value) & 3)


def statistics(interface: int, received: int, dropped: int, time_ns: int, kind: int = STATISTICS) -> bytes:
    """Interface statistics: received (4), dropped for want of room (7), delivered (8)."""
    head = struct.pack("<III", interface, time_ns >> 32 & MASK, time_ns & MASK)
    values = _STATISTICS_OPTIONS.pack(4, 8, received, 7, 8, dropped, 8, 8, received - dropped, 0, 0)
    return block(kind, head + values)
