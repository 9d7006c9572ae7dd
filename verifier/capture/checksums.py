# SPDX-License-Identifier: GPL-2.0-or-later
"""What the checksum of a TCP segment says of its bytes: right, wrong, or nothing.

Pure. It says nothing where it was left to a network card to fill in (checksum offload): then the capture has
0, or the sum of the pseudo-header alone, with the segment's length (Linux: CHECKSUM_PARTIAL, on loopback and
veth for good, and after GRO) or without it (what cards want that cut segments themselves). Other systems
leave garbage there, in all segments that a host sends: that shows only beside others of the same direction,
which is what the states of a direction are for (see `reassembly`).

A sum of 16-bit words with end-around carry is, modulo 65,535, the number that the bytes are, in either byte
order (RFC 1071: swapped bytes give the swapped sum): so it takes a conversion and a few shifts, and no loop
over words.

Source: RFC 9293 (section 3.1: checksum and MSS), 1071, 8200 (8.1); Linux include/linux/skbuff.h (checksumming
of packets), net/ipv4/tcp_output.c: __tcp_v4_send_check, net/ipv4/tcp_offload.c: tcp_gro_complete; Wireshark
since 4.2 tells partial checksums in the same way.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Sequence

from verifier.capture.packets import Segment
from verifier.capture.pcap import Packet

Bytes = mmap.mmap | bytes | bytearray
_from_bytes = int.from_bytes

NOTHING, RIGHT, WRONG = range(3)
"""What one checksum says."""

UNDECIDED, CHECKED, OFFLOADED = range(3)
"""What is known of a direction. CHECKED: a checksum was right, so a wrong one is damage. OFFLOADED: WRONG_MAX
were wrong before any was right, so none says anything."""

WRONG_MAX = 8
"""Not many: of garbage, one in 65,536 is right by chance, and would make damage of all others."""

SHORT = 128
"""Bytes of a frame; shorter ones are mostly acknowledgements: it is not worth while to take them together."""

MODULUS = 0xFFFF
WHOLE = -0x0600 % MODULUS
"""What addresses, length and a right segment come to, bytes swapped: all but the protocol, which is 6."""

_TCP = 6
FIELD_AT = 16  # in a TCP header
_MSS, _NOP = 2, 1
_HEADER_BYTES = 20
_U16 = struct.Struct(">H").unpack_from
# To add the halves of a long number is quicker than to divide it: by steps of a multiple of 16 bits.
_STEPS = tuple((768 << step, (1 << (768 << step)) - 1) for step in range(11, -1, -1))
_FEW, _FEW_BYTES = _STEPS[-4:], 1536  # for what an Ethernet carries


def pseudo(key: bytes) -> int:
    """Of the pseudo-header of a direction's segments, without their length."""
    return (_from_bytes(key[:-4], "big") + _TCP) % MODULUS


def summed(data: Bytes, start: int, stop: int) -> int:
    """The sum of data[start:stop], its bytes swapped: a number of that remainder by MODULUS."""
    value = _from_bytes(data[start:stop], "little")
    size = stop - start
    for shift, mask in _FEW if size <= _FEW_BYTES else _STEPS:
        if shift <= size << 2:
            value = (value >> shift) + (value & mask)
    return value


def all_right(data: Bytes, packets: Sequence[Packet], hosts_at: int, tcp_at: int) -> bool:
    """Whether the checksums of all packets over SHORT bytes are right, by the sum of all sums: when their
    addresses begin at hosts_at, right before TCP, and they end with it. It costs two thirds of one by one.
    """
    total = count = lengths = 0
    for start, stop, _, _, _, _ in packets:
        if stop - start > SHORT:
            count += 1
            lengths += stop - start
            total += _from_bytes(data[start + hosts_at : stop], "little")
    return (total + (lengths - count * tcp_at << 8) - WHOLE * count) % MODULUS == 0


def says(data: Bytes, found: Segment) -> int:
    """NOTHING, RIGHT or WRONG, of one segment. One that was cut by a snap length says nothing."""
    key, _, _, _, _, stop, missing, _, tcp = found
    (field,) = _U16(data, tcp + FIELD_AT)
    length = stop - tcp
    bare = field - pseudo(key)
    if not field or missing or not bare % MODULUS or not (bare - length) % MODULUS:
        return NOTHING
    total = _from_bytes(key[:-4], "little") + (length << 8) + summed(data, tcp, stop)
    return RIGHT if total % MODULUS == WHOLE else WRONG


def mss(data: Bytes, found: Segment) -> int:
    """The most that the sender of a SYN wants in a segment; 0 when it does not say."""
    tcp, end = found[8], found[4]
    at = tcp + _HEADER_BYTES
    while at + 2 <= end and data[at]:
        if data[at] == _NOP:
            at += 1
        elif data[at] == _MSS and at + 4 <= end:
            value: int = _U16(data, at + 2)[0]
            return value
        else:
            at += max(2, data[at + 1])
    return 0
