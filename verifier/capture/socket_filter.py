# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's packet filter for a sniffer: TCP of some ports, and on loopback each packet once.

Pure. Source: Linux Documentation/networking/filter.rst; include/uapi/linux/filter.h, if_packet.h.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

PORTS_MAX = 50  # jumps of the classic filter reach 255 instructions
WHOLE_BYTES = 1 << 18

_LOAD_WORD, _LOAD_HALF, _LOAD_BYTE, _LOAD_HALF_X = 0x20, 0x28, 0x30, 0x48
_LOAD_X_HEADER, _JUMP_EQUAL, _JUMP_SET, _RETURN = 0xB1, 0x15, 0x45, 0x06
_PROTOCOL, _PACKET_TYPE = 0xFFFFF000, 0xFFFFF004  # SKF_AD_OFF + SKF_AD_PROTOCOL, SKF_AD_PKTTYPE
_OUTGOING = 4
_ACCEPT, _REJECT = "accept", "reject"

_Step = tuple[int, int, str, str]
"""Code, operand, label to go to when true, label when false ("" is the next instruction)."""


def assemble(ports: Sequence[int], snap_bytes: int, link_bytes: int, incoming_only: bool) -> bytes:
    """The filter as an array of struct sock_filter.

    ports: TCP ports to keep, all packets when empty. snap_bytes: bytes to keep of a packet, 0 for all.
    link_bytes: length of the link's header. incoming_only: refuse what is on its way out.
    """
    steps: list[_Step] = []
    labels: dict[str, int] = {}
    if incoming_only:
        steps += [(_LOAD_WORD, _PACKET_TYPE, "", ""), (_JUMP_EQUAL, _OUTGOING, _REJECT, "")]
    if ports:
        steps += [
            (_LOAD_WORD, _PROTOCOL, "", ""),
            (_JUMP_EQUAL, 0x86DD, "v6", ""),
            (_JUMP_EQUAL, 0x0800, "", _REJECT),
            (_LOAD_BYTE, link_bytes + 9, "", ""),
            (_JUMP_EQUAL, 6, "", _REJECT),
            (_LOAD_HALF, link_bytes + 6, "", ""),
            (_JUMP_SET, 0x1FFF, _ACCEPT, ""),  # a later fragment has no ports: kept, so that it is reported
            (_LOAD_X_HEADER, link_bytes, "", ""),
        ]
        for at in (link_bytes, link_bytes + 2):
            steps += _any_of(ports, (_LOAD_HALF_X, at, "", ""))
        steps.append((_RETURN, 0, "", ""))
        labels["v6"] = len(steps)
        steps += [(_LOAD_BYTE, link_bytes + 6, "", ""), (_JUMP_EQUAL, 6, "", _REJECT)]
        for at in (link_bytes + 40, link_bytes + 42):
            steps += _any_of(ports, (_LOAD_HALF, at, "", ""))
        labels[_REJECT] = len(steps)
        steps.append((_RETURN, 0, "", ""))
        labels[_ACCEPT] = len(steps)
        steps.append((_RETURN, snap_bytes or WHOLE_BYTES, "", ""))
    else:
        labels[_ACCEPT] = len(steps)
        steps.append((_RETURN, snap_bytes or WHOLE_BYTES, "", ""))
        labels[_REJECT] = len(steps)
        steps.append((_RETURN, 0, "", ""))
    return b"".join(_encode(index, step, labels) for index, step in enumerate(steps))


def _any_of(ports: Sequence[int], load: _Step) -> list[_Step]:
    return [load, *((_JUMP_EQUAL, port, _ACCEPT, "") for port in ports)]


def _encode(index: int, step: _Step, labels: dict[str, int]) -> bytes:
    code, operand, true, false = step
    jumps = [labels[label] - index - 1 if label else 0 for label in (true, false)]
    return struct.pack("=HBBI", code, *jumps, operand)
