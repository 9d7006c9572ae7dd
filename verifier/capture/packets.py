# SPDX-License-Identifier: GPL-2.0-or-later
"""One captured frame read down to its TCP header: where the addresses, the sequence number and the payload
are.

Pure. The careful reader, for any frame: `segment`. For the common frame there is a shortcut, `Layout`:
a reader made for frames whose headers lie exactly where those of an earlier frame lay.

Source: RFC 791, 8200, 9293, 2675 (jumbo payloads); libpcap's link types; Linux include/net/ipv6.h (BIG TCP).
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any, NamedTuple

from verifier.capture.interface import EN10MB, IPV4, IPV6, LINUX_SLL, LINUX_SLL2, LOOP, NULL, RAW

FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10

Segment = tuple[bytes, int, int, int, int, int, int, int, int]
"""key, seq, ack, flags, start and stop of the captured payload, bytes missing after it, start of the IP
header and of TCP's.

key: source address, destination address, source port, destination port as they lie in the packet: 12 bytes
with IPv4, 36 with IPv6. `missing`: payload bytes that were on the wire and not captured.
"""

NOT_IP = "not IP"
NOT_TCP = "not TCP"
FRAGMENT = "IP fragment"
CUT_HEADER = "cut before the end of the TCP header"
BAD_HEADER = "header lengths that contradict each other"
UNKNOWN_LINK = "link type that is not read"

_TCP = 6
_IP4, _IP6 = 0x0800, 0x86DD
_TAGS = frozenset({0x8100, 0x88A8, 0x9100})
_LINK_BYTES = {EN10MB: 14, RAW: 0, IPV4: 0, IPV6: 0, LINUX_SLL: 16, LINUX_SLL2: 20, NULL: 4, LOOP: 4}
_PROTOCOL_AT = {EN10MB: 12, LINUX_SLL: 14, LINUX_SLL2: 0}
_EXTENSIONS = frozenset({0, 43, 60, 135, 139, 140})
_FRAGMENT_HEADER, _AUTHENTICATION = 44, 51

_U16 = struct.Struct(">H").unpack_from
_PORTS_SEQ_ACK = struct.Struct(">4sIIBB").unpack_from


class Address(NamedTuple):
    """One end of a connection."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def ends(key: bytes) -> tuple[Address, Address]:
    """Source and destination of a segment's key."""
    width = (len(key) - 4) // 2
    source, destination = ip_address(key[:width]), ip_address(key[width : 2 * width])
    ports = struct.unpack(">HH", key[-4:])
    return Address(str(source), ports[0]), Address(str(destination), ports[1])


def reverse(key: bytes) -> bytes:
    """The key of the other direction."""
    width = (len(key) - 4) // 2
    return key[width : 2 * width] + key[:width] + key[-2:] + key[-4:-2]


def segment(data: mmap.mmap, start: int, stop: int, original: int, link_type: int) -> Segment | str:
    """The TCP segment in the frame data[start:stop], which had `original` bytes on the wire; or why there
    is none.
    """
    at = _ip_header(data, start, stop, link_type)
    if isinstance(at, str):
        return at
    wire_end = start + max(original, stop - start)
    version = data[at] >> 4 if at < stop else 0
    if version == 4:
        return _ipv4(data, at, stop, wire_end)
    if version == 6:
        return _ipv6(data, at, stop, wire_end)
    return CUT_HEADER if at >= stop else NOT_IP


def _ip_header(data: mmap.mmap, start: int, stop: int, link_type: int) -> int | str:
    length = _LINK_BYTES.get(link_type)
    if length is None:
        return f"{UNKNOWN_LINK} ({link_type})"
    at = start + length
    if at > stop:
        return CUT_HEADER
    if link_type not in _PROTOCOL_AT:
        return at
    (protocol,) = _U16(data, start + _PROTOCOL_AT[link_type])
    while protocol in _TAGS and at + 4 <= stop:
        (protocol,) = _U16(data, at + 2)
        at += 4
    return at if protocol in (_IP4, _IP6) else NOT_IP


def _ipv4(data: mmap.mmap, at: int, stop: int, wire_end: int) -> Segment | str:
    if at + 20 > stop:
        return CUT_HEADER
    (total,) = _U16(data, at + 2)
    (fragment,) = _U16(data, at + 6)
    header = (data[at] & 15) * 4
    if data[at + 9] != _TCP:
        return NOT_TCP
    if fragment & 0x3FFF:
        return FRAGMENT
    if header < 20:
        return BAD_HEADER
    end = at + total if total else wire_end  # offloaded segments over 64 KiB have no length of their own
    return _tcp(data, at, data[at + 12 : at + 20], at + header, stop, end)


def _ipv6(data: mmap.mmap, at: int, stop: int, wire_end: int) -> Segment | str:
    if at + 40 > stop:
        return CUT_HEADER
    (length,) = _U16(data, at + 4)
    end = at + 40 + length if length else wire_end
    protocol, here = data[at + 6], at + 40
    while protocol != _TCP:
        if protocol == _FRAGMENT_HEADER:
            return FRAGMENT
        if protocol not in _EXTENSIONS and protocol != _AUTHENTICATION:
            return NOT_TCP
        if here + 8 > stop:
            return CUT_HEADER
        size = (data[here + 1] + 2) * 4 if protocol == _AUTHENTICATION else (data[here + 1] + 1) * 8
        protocol, here = data[here], here + size
    return _tcp(data, at, data[at + 8 : at + 40], here, stop, end)


def _tcp(data: mmap.mmap, at: int, hosts: bytes, tcp: int, stop: int, end: int) -> Segment | str:
    if tcp + 20 > stop:
        return CUT_HEADER
    ports, seq, ack, offset, flags = _PORTS_SEQ_ACK(data, tcp)
    start = tcp + (offset >> 4) * 4
    if offset < 0x50 or start > end:
        return BAD_HEADER
    payload_start, payload_stop = min(start, stop), min(end, stop)
    missing = (end - start) - (payload_stop - payload_start)
    return hosts + ports, seq, ack, flags, payload_start, payload_stop, missing, at, tcp


class Layout(NamedTuple):
    """How to read a frame whose IP header begins `ip_at` bytes in and has no options or extension headers.

    unpack(data, frame start) gives (length, word, key, seq, ack, offset, flags, checksum). It is an
    unfragmented TCP segment when word & mask == value and the key is one that `segment` gave before for this
    interface. The addresses begin at frame + hosts_at, right before the TCP header, which begins at frame +
    tcp_at; the IP packet ends at frame + base + length; `bytes_min` must be captured.
    """

    unpack: Callable[[mmap.mmap, int], tuple[Any, ...]]
    mask: int
    value: int
    hosts_at: int
    tcp_at: int
    base: int
    bytes_min: int


def layout(key_bytes: int, ip_at: int) -> Layout:
    """The layout of frames whose segments have keys of this length and whose IP header begins ip_at bytes
    in.
    """
    if key_bytes == 12:
        reader = struct.Struct(f">{ip_at}x2xH2xI2x12sIIBB2xH")
        return Layout(reader.unpack_from, 0x3FFF00FF, _TCP, ip_at + 12, ip_at + 20, ip_at, reader.size)
    reader = struct.Struct(f">{ip_at}x4xHH36sIIBB2xH")
    return Layout(reader.unpack_from, 0xFF00, _TCP << 8, ip_at + 8, ip_at + 40, ip_at + 40, reader.size)
