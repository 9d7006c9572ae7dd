# SPDX-License-Identifier: GPL-2.0-or-later
"""Sources whose packets are wrong: byte order, names, sizes, contents."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from mockdev.device.files import NotYet
from mockdev.errors import DeviceError
from mockdev.multifd.sender import SendRam
from mockdev.wire import writer
from mockdev.wire.structs import MULTIFD_DEVICE_STATE, MULTIFD_INIT, MULTIFD_RAM
from verifier.simulation.migration import Parts
from verifier.simulation.slot import Slot
from verifier.simulation.source import Source
from verifier.simulation.zoo.bug import Bug

_MULTIFD = {"transfer": "multifd"}
_NAME = MULTIFD_DEVICE_STATE.place("idstr").offset
_VFIO = MULTIFD_DEVICE_STATE.size  # version, idx, flags follow, four bytes each


def _patched(data: bytes, offset: int, new: bytes) -> bytes:
    return data[:offset] + new + data[offset + len(new) :]


def _number(value: int) -> bytes:
    return value.to_bytes(4, "big")


class _HostOrder(Source):
    def buffer_head(self, slot: Slot, idx: int, size: int, *, config: bool) -> bytes:
        head = super().buffer_head(slot, idx, size, config=config)
        fields = (head[at : at + 4][::-1] for at in (_VFIO, _VFIO + 4, _VFIO + 8))
        return head[:_VFIO] + b"".join(fields)


class _Version(Source):
    def buffer_head(self, slot: Slot, idx: int, size: int, *, config: bool) -> bytes:
        return _patched(super().buffer_head(slot, idx, size, config=config), _VFIO, _number(1))


class _DirtyFlags(Source):
    def buffer_head(self, slot: Slot, idx: int, size: int, *, config: bool) -> bytes:
        head = super().buffer_head(slot, idx, size, config=config)
        return _patched(head, _VFIO + 8, bytes((head[_VFIO + 8] | 0x80,)))


class _DirtyName(Source):
    def buffer_head(self, slot: Slot, idx: int, size: int, *, config: bool) -> bytes:
        head = super().buffer_head(slot, idx, size, config=config)
        return _patched(head, _NAME + 250, b"stack")


class _Instance(Source):
    def buffer_head(self, slot: Slot, idx: int, size: int, *, config: bool) -> bytes:
        return writer.device_state_packet(slot.name, 1, idx, size, config=config)


class _HeaderTwice(Source):
    def buffer_head(self, slot: Slot, idx: int, size: int, *, config: bool) -> bytes:
        return super().buffer_head(slot, idx, size + 12, config=config)


class _HeaderNotCounted(Source):
    def buffer_head(self, slot: Slot, idx: int, size: int, *, config: bool) -> bytes:
        return super().buffer_head(slot, idx, max(0, size - 12), config=config)


class _OtherName(Source):
    def buffer_head(self, slot: Slot, idx: int, size: int, *, config: bool) -> bytes:
        other = self.slots[1 - self.slots.index(slot)]
        return super().buffer_head(other, idx, size, config=config)


class _EmptyBuffer(Source):
    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.at_end: set[str] = set()

    def read_buffer(self, slot: Slot) -> list[memoryview] | NotYet:
        views = super().read_buffer(slot)
        if views or slot.name in self.at_end:
            return views
        self.at_end.add(slot.name)
        return [memoryview(b"")]


class _PiecesSwapped(Source):
    def read_buffer(self, slot: Slot) -> list[memoryview] | NotYet:
        views = super().read_buffer(slot)
        return views if isinstance(views, NotYet) else views[::-1]


class _SentAgain(Source):
    """After an interrupted write, begins with the buffer anew, under the next index."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.again: dict[str, list[memoryview]] = {}  # what to send again, once

    def read_buffer(self, slot: Slot) -> list[memoryview] | NotYet:
        if self.again.get(slot.name):
            views, self.again[slot.name] = self.again[slot.name], []
            return views
        read = super().read_buffer(slot)
        if isinstance(read, list):
            self.again.setdefault(slot.name, read)
        return read


class _StaleBuffer(Source):
    """Two buffers in turn, the first of them used again before it was filled again."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.kept: dict[str, list[memoryview]] = {}

    def read_buffer(self, slot: Slot) -> list[memoryview] | NotYet:
        views = super().read_buffer(slot)
        if not isinstance(views, list) or not views:
            return views
        kept = self.kept.setdefault(slot.name, [])
        data = memoryview(b"".join(views))
        kept.append(data)
        return [kept[0]] if len(kept) == 3 and len(kept[0]) == len(data) else views


class _ErrorIsEnd(Source):
    def read_buffer(self, slot: Slot) -> list[memoryview] | NotYet:
        try:
            return super().read_buffer(slot)
        except DeviceError:
            return []


class _SameChannel(Source):
    def init_packet(self, number: int) -> bytes:
        return super().init_packet(max(0, number - 1))


class _GuidOrder(Source):
    def init_packet(self, number: int) -> bytes:
        return writer.init_packet(number, UUID(self.config.uuid).bytes_le)


class _NoUuid(Source):
    def init_packet(self, number: int) -> bytes:
        return super().init_packet(number) if number == 0 else writer.init_packet(number, bytes(16))


class _DirtyInit(Source):
    def init_packet(self, number: int) -> bytes:
        return _patched(super().init_packet(number), MULTIFD_INIT.size - 8, b"stack")


class _PageNumbers(Source):
    def ram_packet(self, work: SendRam) -> list[bytes | memoryview]:
        packet = work.packet
        normal, zero = ([offset >> 12 for offset in offsets] for offsets in (packet.normal, packet.zero))
        head = writer.ram_packet(work.packet_num, packet.block, normal, zero)
        return [head, *self.ram.send_packet(packet)]


class _RamField(Source):
    """One field of the RAM packets' head is wrong."""

    field = ""
    value = b""

    def ram_packet(self, work: SendRam) -> list[bytes | memoryview]:
        head, *pages = super().ram_packet(work)
        return [_patched(bytes(head), MULTIFD_RAM.place(self.field).offset, self.value), *pages]


class _NoPagesAlloc(_RamField):
    field, value = "pages_alloc", _number(0)


class _DirtyBlockName(_RamField):
    field, value = "ramblock", b"pc.ram\0stack"


class _Compressed(_RamField):
    field, value = "flags", _number(1 << 1)


class _DirtyReserved(_RamField):
    field, value = "unused64", b"stack"


class _UnknownFlag(_RamField):
    field, value = "flags", _number(1 << 7)


PACKETS = (
    Bug(
        "host-byte-order",
        "version, idx and flags of a buffer are in the host's byte order.",
        "QEMU 10.0-rc, March 2025: the fields of VFIODeviceStatePacket were host-endian",
        Parts(source=_HostOrder),
        ("DS-4",),
        fixed=_MULTIFD,
    ),
    Bug(
        "packet-version",
        "The source sends version 1 of a buffer's header.",
        "QEMU hw/vfio/migration-multifd.c: VFIO_DEVICE_STATE_PACKET_VER_CURRENT",
        Parts(source=_Version),
        ("DS-3",),
        fixed=_MULTIFD,
    ),
    Bug(
        "flags-not-cleared",
        "A flag that nobody has defined is set in a buffer's header.",
        "QEMU hw/vfio/migration-multifd.c: the packet is allocated once and its fields are set one by one",
        Parts(source=_DirtyFlags),
        ("DS-4",),
        fixed=_MULTIFD,
    ),
    Bug(
        "name-not-cleared",
        "The source's stack shows behind the name in a device-state packet.",
        "QEMU migration/multifd-device-state.c: strncpy fills the rest of idstr with zeros",
        Parts(source=_DirtyName),
        ("DS-2",),
        fixed=_MULTIFD,
    ),
    Bug(
        "instance-id",
        "Buffers name another instance than the section of the device.",
        "QEMU migration/multifd-device-state.c: instance_id of the SaveStateEntry",
        Parts(source=_Instance),
        ("DS-2",),
        fixed=_MULTIFD,
    ),
    Bug(
        "header-counted-twice",
        "next_packet_size counts the 12-byte header of a buffer twice.",
        "mlx5 series of 2026: a size was wrong by one record header",
        Parts(source=_HeaderTwice),
        ("MP-1",),
        fixed=_MULTIFD,
    ),
    Bug(
        "header-not-counted",
        "next_packet_size does not count the 12-byte header of a buffer.",
        "mlx5 series of 2026: a size was wrong by one record header",
        Parts(source=_HeaderNotCounted),
        ("MP-1",),
        fixed=_MULTIFD,
    ),
    Bug(
        "ids-exchanged",
        "The buffers of two devices carry each other's name.",
        "QEMU hw/vfio/migration-multifd.c: idstr is looked up by instance for every packet",
        Parts(source=_OtherName),
        ("EQ-1",),
        "source's journal",
        fixed={"transfer": "multifd", "vfs": 2},
    ),
    Bug(
        "empty-buffer",
        "The read that finds the end is sent as an empty buffer.",
        "QEMU hw/vfio/migration-multifd.c: the loop ends at data_size 0",
        Parts(source=_EmptyBuffer),
        ("BC-1",),
        fixed=_MULTIFD,
    ),
    Bug(
        "pieces-swapped",
        "The pieces of one buffer are written in the wrong order.",
        "hisi_acc, 2025 (Fixes b0eed085903e): halves of an address were put together the wrong way round",
        Parts(source=_PiecesSwapped),
        ("DS-15",),
        fixed=_MULTIFD,
    ),
    Bug(
        "buffer-sent-again",
        "After an interrupted write a buffer is sent once more, as the next one.",
        "Linux include/uapi/linux/vfio.h: a data file has a position, and a read that was made is made",
        Parts(source=_SentAgain),
        ("DS-15",),
        fixed=_MULTIFD,
    ),
    Bug(
        "buffer-used-again",
        "The third buffer goes out with the bytes of the first, from which it was allocated.",
        "QEMU migration/multifd-device-state.c: a buffer is the channel's until it is written",
        Parts(source=_StaleBuffer),
        ("EQ-1",),
        "source's journal",
        fixed=_MULTIFD,
    ),
    Bug(
        "read-error-is-end",
        "A read that fails is taken as the end of the state.",
        "QEMU hw/vfio/migration-multifd.c: any negative read is fatal in the save thread",
        Parts(source=_ErrorIsEnd),
        ("DS-15",),
        fixed={"transfer": "multifd", "faults": ("source.vf0.save:eio@45",)},
    ),
    Bug(
        "channel-id-twice",
        "Two channels give the same id.",
        "QEMU migration/multifd.c: multifd_recv_initial_packet refuses it since 2018",
        Parts(source=_SameChannel),
        ("CH-4",),
        fixed={"channels": 3},
    ),
    Bug(
        "uuid-as-guid",
        "The init packets hold the VM's UUID in the byte order of a GUID.",
        "RFC 9562 and Microsoft's GUID put the first three fields in different byte orders",
        Parts(source=_GuidOrder),
        ("CH-5",),
        "source's journal",
    ),
    Bug(
        "uuid-of-first-channel-only",
        "All channels but the first leave their UUID zero.",
        "QEMU migration/multifd.c: multifd_send_initial_packet copies it for each channel",
        Parts(source=_NoUuid),
        ("CH-5",),
        fixed={"channels": 3},
    ),
    Bug(
        "init-not-cleared",
        "The source's stack shows in the unused bytes of an init packet.",
        "QEMU migration/multifd.c: MultiFDInit_t is cleared by its initialiser",
        Parts(source=_DirtyInit),
        ("CH-6",),
    ),
    Bug(
        "page-numbers",
        "RAM packets hold page numbers where byte offsets belong.",
        "QEMU migration/multifd-nocomp.c: offset[] is in bytes of the block",
        Parts(source=_PageNumbers),
        ("MP-7",),
    ),
    Bug(
        "pages-alloc-zero",
        "RAM packets say that they have room for no page.",
        "QEMU migration/multifd.c: pages_alloc moved between structs twice in 2024",
        Parts(source=_NoPagesAlloc),
        ("MP-4",),
    ),
    Bug(
        "block-name-not-cleared",
        "The rest of an older name shows behind the block's name in a RAM packet.",
        "QEMU migration/multifd-nocomp.c: strncpy fills the rest of ramblock with zeros",
        Parts(source=_DirtyBlockName),
        ("MP-6",),
    ),
    Bug(
        "reserved-not-cleared",
        "Reserved fields of a RAM packet hold what was in memory.",
        "QEMU migration/multifd.c: multifd_send_fill_packet clears the packet first",
        Parts(source=_DirtyReserved),
        ("MP-11",),
    ),
    Bug(
        "flag-unknown",
        "A flag of another release is set in RAM packets.",
        "QEMU migration/multifd.h: MULTIFD_FLAG_* grew with each release",
        Parts(source=_UnknownFlag),
        ("MP-2",),
    ),
)
