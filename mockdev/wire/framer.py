# SPDX-License-Identifier: GPL-2.0-or-later
"""The syntax of a multifd connection: where each packet ends, never whether it is allowed.

A packet that cannot be delimited (wrong magic, wrong version) raises RemoteProtocolError; all else is
yielded as it came, for the endpoint's transition table or the judge's invariants to weigh.
"""

from __future__ import annotations

import struct

from mockdev.errors import RemoteProtocolError
from mockdev.wire.frames import DeviceStateFrame, InitFrame, Payload, RamFrame, Syntax, Want
from mockdev.wire.structs import (
    COMPRESSION_MASK,
    MULTIFD_DEVICE_STATE,
    MULTIFD_HEAD,
    MULTIFD_INIT,
    MULTIFD_MAGIC,
    MULTIFD_PACKET_BYTES,
    MULTIFD_RAM,
    MULTIFD_VERSION,
    PAGE_BYTES,
    VFIO_DEVICE_STATE,
    MultifdFlag,
    VfioDeviceState,
)

_SYNC, _DEVICE_STATE_FLAG = MultifdFlag.SYNC, MultifdFlag.DEVICE_STATE
_INIT = Want(MULTIFD_INIT.size, "multifd init packet", may_end=True)
_HEAD = Want(MULTIFD_HEAD.size, "multifd packet header", may_end=True)
_DEVICE_STATE = Want(MULTIFD_DEVICE_STATE.size - MULTIFD_HEAD.size, "device-state packet header")
_VFIO = Want(VFIO_DEVICE_STATE.size, "VFIO device-state header")


def multifd_channel(name: str = "multifd", page_size: int = PAGE_BYTES) -> Syntax:
    """Read one multifd connection, init packet first.

    Source: QEMU migration/multifd.c: multifd_recv_initial_packet, multifd_recv_thread;
    migration/multifd-nocomp.c: multifd_ram_unfill_packet.
    """
    raw = yield _INIT
    if not raw:
        return
    init = MULTIFD_INIT.unpack(raw)
    _check_magic(init.magic, init.version, name, 0)
    yield InitFrame(0, MULTIFD_INIT.size, init)
    at = MULTIFD_INIT.size
    page_count = MULTIFD_PACKET_BYTES // page_size
    offsets = struct.Struct(f">{page_count}Q")
    ram_rest = Want(MULTIFD_RAM.size - MULTIFD_HEAD.size + offsets.size, "RAM packet header")
    while True:
        start = yield _HEAD
        if not start:
            return
        magic, version, flags = MULTIFD_HEAD.unpack(start)
        _check_magic(magic, version, name, at)
        if flags & _DEVICE_STATE_FLAG:
            rest = yield _DEVICE_STATE
            assert rest is not None
            device = MULTIFD_DEVICE_STATE.unpack(b"".join((start, rest)))
            size = device.next_packet_size
            vfio: VfioDeviceState | None = None
            if size >= VFIO_DEVICE_STATE.size:
                head = yield _VFIO
                assert head is not None
                vfio = VFIO_DEVICE_STATE.unpack(head)
                size -= VFIO_DEVICE_STATE.size
            whole = MULTIFD_DEVICE_STATE.size + device.next_packet_size
            yield DeviceStateFrame(at, whole, device, vfio, size)
        else:
            rest = yield ram_rest
            assert rest is not None
            buffer = b"".join((start, rest))
            ram = MULTIFD_RAM.unpack(buffer)
            table = offsets.unpack_from(buffer, MULTIFD_RAM.size)
            normal = min(ram.normal_pages, page_count)
            zero_end = min(normal + ram.zero_pages, page_count)
            size = _ram_payload(flags, normal, ram.next_packet_size, page_size)
            whole = len(buffer) + size
            yield RamFrame(at, whole, ram, table[:normal], table[normal:zero_end], table[zero_end:], size)
        at += whole
        if size:
            yield Payload(size)


def _ram_payload(flags: int, normal_pages: int, next_packet_size: int, page_size: int) -> int:
    """Bytes of page data that QEMU's receiver takes, which is not always what the head announces."""
    if flags & _SYNC and not normal_pages:
        return 0
    if flags & COMPRESSION_MASK:
        return next_packet_size if normal_pages else 0
    return normal_pages * page_size


def _check_magic(magic: int, version: int, name: str, offset: int) -> None:
    if magic != MULTIFD_MAGIC:
        raise RemoteProtocolError(
            f"a packet begins with {magic:#010x} instead of {MULTIFD_MAGIC:#x}",
            channel=name,
            offset=offset,
            field="magic",
        )
    if version != MULTIFD_VERSION:
        raise RemoteProtocolError(
            f"a packet has version {version} instead of {MULTIFD_VERSION}",
            channel=name,
            offset=offset + 4,
            field="version",
        )
