# SPDX-License-Identifier: GPL-2.0-or-later
"""BC: what bounds the memory that a buffer, a table or a queue may take."""

from __future__ import annotations

from collections.abc import Iterator

from mockdev.journal import Loaded, Received
from mockdev.wire.frames import DeviceStateFrame, RamFrame, VfioItem
from mockdev.wire.structs import (
    COMPRESSION_MASK,
    MULTIFD_PACKET_BYTES,
    VFIO_BUFFER_BYTES_MAX,
    VFIO_DEVICE_STATE_CONFIG,
    VFIO_IDX_MAX,
    MultifdFlag,
    VfioTag,
)
from verifier.history.facts import Facts
from verifier.history.observation import Said, Seen
from verifier.invariants.passport import (
    CHANNEL,
    DEVICE,
    Finding,
    Invariant,
    Need,
    Passport,
    Severity,
    qemu,
)

# The target's table has an entry per index up to the highest: 24 bytes each, 1.5 GiB at this bound.
_INDEX_SANE_MAX = 1 << 26
_NOT_PLAIN = COMPRESSION_MASK | MultifdFlag.SYNC
_COUNTED_MAX = 1 << 16  # buffers of one device that wait at once; of more, the rest is not counted


class BufferSize(Invariant[DeviceStateFrame]):
    """Sound: a source reads into a buffer of at most 1 MiB and sends what a read gave; a config buffer, which
    is no such read, is passed over.

    Misses: a device whose buffer should be smaller still (its own stop-copy size).
    """

    passport = Passport(
        "BC-1",
        "A multifd buffer of device data, other than the config state, carries 1 byte to 1 MiB.",
        Severity.SLOWS,
        qemu("hw/vfio/migration.c", "vfio_save_setup"),
        DEVICE,
    )
    kinds = (DeviceStateFrame,)

    def on(self, seen: Seen, event: DeviceStateFrame) -> Iterator[Finding]:
        if event.vfio is None or event.vfio.flags & VFIO_DEVICE_STATE_CONFIG:
            return
        if not 1 <= event.payload_size <= VFIO_BUFFER_BYTES_MAX:
            yield Finding(f"buffer {event.vfio.idx} of {event.payload_size} bytes", (seen,))


class PacketNotEmpty(Invariant[DeviceStateFrame]):
    """Sound: a target refuses it, and no source has such a packet to send.

    Misses: an empty VFIO payload behind its header, which is BC-1's.
    """

    passport = Passport(
        "BC-2",
        "The next_packet_size of a device-state packet is not 0.",
        Severity.ABORTS,
        qemu("migration/multifd.c", "multifd_recv_thread"),
        CHANNEL,
    )
    kinds = (DeviceStateFrame,)

    def on(self, seen: Seen, event: DeviceStateFrame) -> Iterator[Finding]:
        if not event.head.next_packet_size:
            yield Finding("an empty device-state packet", (seen,))


class IndexBound(Invariant[DeviceStateFrame]):
    """Sound: 2^26 buffers of one device would be 64 TiB of full ones; the bound is the judge's, and any index
    above it costs a target 1.5 GiB.

    Misses: a table that grows large within the bound over many devices.
    """

    passport = Passport(
        "BC-3",
        "No buffer has an index above 2^26, where the target's table (24 bytes for each index up to the "
        "highest) would take more than 1.5 GiB.",
        Severity.ABORTS,
        qemu("hw/vfio/migration-multifd.c", "vfio_load_state_buffer_insert"),
        DEVICE,
    )
    kinds = (DeviceStateFrame,)

    def on(self, seen: Seen, event: DeviceStateFrame) -> Iterator[Finding]:
        if event.vfio is not None and event.vfio.idx > min(_INDEX_SANE_MAX, VFIO_IDX_MAX):
            yield Finding(f"index {event.vfio.idx}", (seen,))


class QueueCap(Invariant[Received | Loaded]):
    """Sound: the target's own figure counts against it, and so does what it received and did not load, its
    next buffer to load left out: a device has one loader, which writes its line before it takes the next
    buffer, so that of the lines still to come only that one can be about something that happened already.

    Misses: a QEMU's target, which ends with an error of its own instead, and one that counts wrongly and
    holds less than one buffer more than the cap.
    """

    passport = Passport(
        "BC-4",
        "The bytes that wait at the target for being loaded into a device never exceed "
        "x-migration-max-queued-buffers-size.",
        Severity.ABORTS,
        qemu("hw/vfio/migration-multifd.c", "vfio_load_state_buffer_insert", "10.1"),
        DEVICE,
        (Need.TARGET,),
    )
    kinds = (Received, Loaded)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.sizes: dict[int, int] = {}  # of what was received and not loaded, by index
        self.bytes = 0  # of these
        self.next = 0  # to be loaded

    def on(self, seen: Said, event: Received | Loaded) -> Iterator[Finding]:
        begin = self.facts.begins.get("target")
        cap = begin.queue_cap if begin is not None else None
        if cap is None or event.idx < 0:
            return
        if isinstance(event, Loaded):
            self.next = event.idx + 1
            self.bytes -= self.sizes.pop(event.idx, 0)
            return
        if event.idx >= self.next and len(self.sizes) < _COUNTED_MAX:
            self.bytes += event.size - self.sizes.get(event.idx, 0)
            self.sizes[event.idx] = event.size
        counted = self.bytes - self.sizes.get(self.next, 0)
        queued = max(event.queued_bytes, counted)
        if queued > cap:
            yield Finding(f"{queued} bytes are queued, at most {cap} may be", (seen,))


class QueueEmptied(Invariant[Loaded]):
    """Sound: the config state is a device's last buffer and is loaded when all others are, so that no buffer
    of the device can be queued then, however lines of other threads are mixed.

    Misses: a wrong figure in between, of which BC-4 sees what is over the cap.
    """

    passport = Passport(
        "BC-7",
        "When a device's config state, its last buffer, has been loaded, nothing is queued for it any more.",
        Severity.SLOWS,
        qemu("hw/vfio/migration-multifd.c", "vfio_load_bufs_thread, vfio_load_state_buffer_get", "10.1"),
        DEVICE,
        (Need.TARGET,),
    )
    kinds = (Loaded,)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.exercised = False

    def on(self, seen: Said, event: Loaded) -> Iterator[Finding]:
        if event.idx < 0 or not event.config:
            return
        self.exercised = True
        if event.queued_bytes:
            yield Finding(f"{event.queued_bytes} bytes are still queued", (seen,))


class BlockSize(Invariant[VfioItem]):
    """Sound: a source reads at most 1 MiB at a time and writes no block for an empty read.

    Misses: nothing of the statement in what was captured; the sum of the blocks is EQ-4's and EQ-6's.
    """

    passport = Passport(
        "BC-5",
        "A DATA_STATE block of the main channel carries 1 byte to 1 MiB.",
        Severity.SLOWS,
        qemu("hw/vfio/migration.c", "vfio_save_block"),
        DEVICE,
    )
    kinds = (VfioItem,)

    def on(self, seen: Seen, event: VfioItem) -> Iterator[Finding]:
        if event.tag == VfioTag.DEV_DATA_STATE and not 1 <= event.data_size <= VFIO_BUFFER_BYTES_MAX:
            yield Finding(f"a block of {event.data_size} bytes", (seen,))


class PageData(Invariant[RamFrame]):
    """Sound: a packet has room for 128 pages of 4 KiB; compressed packets and SYNC are passed over.

    Misses: a size that is allowed and not that of the pages: MP-9.
    """

    passport = Passport(
        "BC-6",
        "The next_packet_size of an uncompressed RAM packet is at most 512 KiB.",
        Severity.SLOWS,
        qemu("migration/multifd.h", "multifd_ram_page_count"),
        CHANNEL,
    )
    kinds = (RamFrame,)

    def on(self, seen: Seen, event: RamFrame) -> Iterator[Finding]:
        head = event.head
        if head.flags & _NOT_PLAIN:
            return
        if head.next_packet_size > MULTIFD_PACKET_BYTES:
            yield Finding(f"{head.next_packet_size} bytes of page data", (seen,))


CAPS = (BufferSize, PacketNotEmpty, IndexBound, QueueCap, QueueEmptied, BlockSize, PageData)
