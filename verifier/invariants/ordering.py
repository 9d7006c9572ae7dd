# SPDX-License-Identifier: GPL-2.0-or-later
"""DS: device state on the wire, each buffer in its place and none missing."""

from __future__ import annotations

from collections.abc import Iterator

from mockdev.wire.frames import DeviceStateFrame, FooterItem, RamFrame, SectionItem, VfioItem
from mockdev.wire.mainstream import is_vfio
from mockdev.wire.structs import (
    COMPRESSION_MASK,
    VFIO_DEVICE_STATE_CONFIG,
    VFIO_DEVICE_STATE_VERSION,
    Tag,
    VfioTag,
)
from verifier.history.facts import Facts
from verifier.history.observation import BufferDone, Seen, device_name
from verifier.invariants.indexes import IndexSet
from verifier.invariants.passport import (
    DEVICE,
    DEVICE_ON_CHANNEL,
    MIGRATION,
    Finding,
    Invariant,
    Need,
    Passport,
    Severity,
    qemu,
)

_MULTIFD = "hw/vfio/migration-multifd.c"
_CONFIG_FIRST = VfioTag.DEV_CONFIG_STATE.to_bytes(8, "big")
_CONFIG_LAST = VfioTag.END_OF_STATE.to_bytes(8, "big")
_END, _CONFIG, _SETUP = VfioTag.END_OF_STATE, VfioTag.DEV_CONFIG_STATE, VfioTag.DEV_SETUP_STATE
_DATA, _SENT = VfioTag.DEV_DATA_STATE, VfioTag.DEV_INIT_DATA_SENT
_READY = VfioTag.DEV_CONFIG_LOAD_READY
_DEVICES_MAX = 4096
_TAGS_MAX = 8  # more than any legal section has, runs of data aside


class DeviceStateAllowed(Invariant[DeviceStateFrame | RamFrame]):
    """Sound: a page packet that names a method shows the parameter, which holds for the whole migration; 10.0
    to 11.1 send device state without compression only.

    Misses: compression that was configured and never used, which no packet shows.
    """

    passport = Passport(
        "DS-1",
        "Device state travels over multifd only where no RAM packet names a compression method.",
        Severity.ABORTS,
        qemu("migration/multifd-device-state.c", "multifd_device_state_supported"),
        MIGRATION,
    )
    kinds = (DeviceStateFrame, RamFrame)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.device: Seen | None = None
        self.compressed: Seen | None = None

    def on(self, seen: Seen, event: DeviceStateFrame | RamFrame) -> Iterator[Finding]:
        if isinstance(event, DeviceStateFrame):
            self.device = self.device or seen
        elif event.head.flags & COMPRESSION_MASK and event.normal:
            self.compressed = self.compressed or seen
        return iter(())

    def at_end(self) -> Iterator[Finding]:
        self.exercised = self.device is not None
        if self.device is not None and self.compressed is not None:
            yield Finding("device state beside compressed pages", (self.device, self.compressed))


class DeviceKnown(Invariant[DeviceStateFrame]):
    """Sound: sections are those STARTed on a main channel read whole; 4,096 names are kept.

    Misses: a packet under the name of another device that exists: EQ-1 compares the states.
    """

    passport = Passport(
        "DS-2",
        "The idstr of a device-state packet is padded with NULs and names, with the instance id, a section "
        "that the main channel has STARTed.",
        Severity.ABORTS,
        qemu(
            "migration/savevm.c, migration/multifd.c",
            "qemu_loadvm_load_state_buffer, multifd_device_state_recv",
        ),
        MIGRATION,
        (Need.MAIN,),
    )
    kinds = (DeviceStateFrame,)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.names: dict[tuple[bytes, int], tuple[str, Seen]] = {}

    def on(self, seen: Seen, event: DeviceStateFrame) -> Iterator[Finding]:
        key = (event.head.idstr, event.head.instance_id)
        if key in self.names or len(self.names) >= _DEVICES_MAX:
            return
        field = event.head.idstr
        if field[field.find(b"\0") :].strip(b"\0"):  # of one without a NUL, its last byte
            yield Finding("the idstr is not padded with zeros", (seen,))
        self.names[key] = seen.device, seen

    def at_end(self) -> Iterator[Finding]:
        if not self.complete:
            return
        for name, seen in self.names.values():
            if name not in self.facts.started:
                yield Finding(f"no section {name!r} was started", (seen,))


class VfioHeader(Invariant[DeviceStateFrame]):
    """Sound: only version 0 exists up to 11.1, and 12 bytes of header are the least that a target takes.

    Misses: a header in the wrong byte order whose version, 0, is the same in both: DS-10 finds indexes
    missing.
    """

    passport = Passport(
        "DS-3",
        "The payload of a VFIO device's packet begins with the 12-byte VFIODeviceStatePacket, whose version "
        "is 0.",
        Severity.ABORTS,
        qemu(_MULTIFD, "vfio_multifd_load_state_buffer"),
        DEVICE,
    )
    kinds = (DeviceStateFrame,)

    def on(self, seen: Seen, event: DeviceStateFrame) -> Iterator[Finding]:
        if event.vfio is None:
            if event.head.next_packet_size:  # an empty one is BC-2's
                yield Finding(f"a packet of {event.head.next_packet_size} bytes", (seen,))
        elif event.vfio.version != VFIO_DEVICE_STATE_VERSION:
            yield Finding(f"version {event.vfio.version}", (seen,))


class VfioFlags(Invariant[DeviceStateFrame]):
    """Sound: only one flag exists up to 11.1, and targets ignore others, so a break costs nothing yet.

    Misses: the flag on the wrong buffer: DS-6, DS-8.
    """

    passport = Passport(
        "DS-4",
        "Of the flags in VFIODeviceStatePacket no other than VFIO_DEVICE_STATE_CONFIG_STATE is set.",
        Severity.SLOWS,
        qemu(_MULTIFD, "vfio_save_complete_precopy_thread_config_state"),
        DEVICE,
    )
    kinds = (DeviceStateFrame,)

    def on(self, seen: Seen, event: DeviceStateFrame) -> Iterator[Finding]:
        if event.vfio is not None and event.vfio.flags & ~VFIO_DEVICE_STATE_CONFIG:
            yield Finding(f"flags {event.vfio.flags:#x}", (seen,))


class IndexOnce(Invariant[DeviceStateFrame]):
    """Sound: a target refuses a second buffer of an index whatever its content; it is judged as the buffers
    come, on any channel.

    Misses: a repetition that lies in a part of a channel that was not read, or so far out of order that it
    was given up (then unknown).
    """

    passport = Passport(
        "DS-5",
        "No two buffers of a device have the same index.",
        Severity.ABORTS,
        qemu(_MULTIFD, "vfio_load_state_buffer_insert"),
        DEVICE,
        (Need.CHANNELS,),
    )
    kinds = (DeviceStateFrame,)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.seen = IndexSet(facts)

    def on(self, seen: Seen, event: DeviceStateFrame) -> Iterator[Finding]:
        if event.vfio is not None and not self.seen.add(event.vfio.idx):
            yield Finding(f"index {event.vfio.idx} comes twice", (seen,))

    def at_end(self) -> Iterator[Finding]:
        if self.seen.overflowed:
            self.unknown = "too many buffers came out of order to tell"
        return iter(())


class ConfigLast(Invariant[DeviceStateFrame]):
    """Sound: two config buffers, or a buffer beyond one, are wrong in any capture; that there is none is only
    said of a completed migration whose channels were all read.

    Misses: a config buffer with the wrong content: DS-8, EQ-1, EQ-8.
    """

    passport = Passport(
        "DS-6",
        "Exactly one buffer of a device is its config state, and it has the highest index.",
        Severity.STALLS,
        qemu(_MULTIFD, "vfio_load_bufs_thread"),
        DEVICE,
        (Need.CHANNELS,),
    )
    kinds = (DeviceStateFrame,)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.config: Seen | None = None
        self.config_idx = -1
        self.highest: Seen | None = None
        self.highest_idx = -1

    def on(self, seen: Seen, event: DeviceStateFrame) -> Iterator[Finding]:
        if event.vfio is None:
            return
        idx = event.vfio.idx
        if event.vfio.flags & VFIO_DEVICE_STATE_CONFIG:
            if self.config is not None:
                yield Finding("two config buffers", (self.config, seen))
            self.config, self.config_idx = self.config or seen, idx
        elif idx > self.highest_idx:
            self.highest, self.highest_idx = seen, idx

    def at_end(self) -> Iterator[Finding]:
        if self.config is None and self.highest is not None:
            if self.complete:
                yield Finding("no config buffer", (self.highest,))
        elif self.config is not None and self.highest is not None and self.highest_idx > self.config_idx:
            yield Finding(
                f"buffer {self.highest_idx} lies beyond the config buffer {self.config_idx}",
                (self.config, self.highest),
            )


class IndexRises(Invariant[DeviceStateFrame]):
    """Sound: a channel's thread sends what it takes from the queue in order; only buffers on one connection
    are compared.

    Misses: a device's order over channels, which is free; DS-13 and TR-1 judge the order of loading.
    """

    passport = Passport(
        "DS-7",
        "On one channel the indexes of one device rise.",
        Severity.SLOWS,
        qemu("migration/multifd-device-state.c", "multifd_queue_device_state"),
        DEVICE_ON_CHANNEL,
    )
    kinds = (DeviceStateFrame,)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.last: Seen | None = None
        self.idx = -1

    def on(self, seen: Seen, event: DeviceStateFrame) -> Iterator[Finding]:
        if event.vfio is None:
            return
        if event.vfio.idx <= self.idx and self.last is not None:
            yield Finding(f"index {event.vfio.idx} after {self.idx}", (self.last, seen))
        self.last, self.idx = seen, event.vfio.idx


class ConfigMarks(Invariant[BufferDone]):
    """Sound: both marks are QEMU's own and stand at a fixed place; a buffer that is not whole in the capture
    is passed over.

    Misses: what is between the marks: EQ-1 and EQ-8 compare it.
    """

    passport = Passport(
        "DS-8",
        "A config buffer begins with VFIO_MIG_FLAG_DEV_CONFIG_STATE and ends with "
        "VFIO_MIG_FLAG_END_OF_STATE.",
        Severity.ABORTS,
        qemu(
            f"{_MULTIFD}, hw/vfio/migration.c",
            "vfio_load_bufs_thread_load_config, vfio_load_device_config_state",
        ),
        DEVICE,
    )
    kinds = (BufferDone,)

    def on(self, seen: Seen, event: BufferDone) -> Iterator[Finding]:
        if not event.config or not event.whole:
            return
        if event.first != _CONFIG_FIRST:
            yield Finding(f"it begins with {event.first.hex()}", (seen,))
        elif event.last != _CONFIG_LAST or event.data_size < 16:
            yield Finding(f"it ends with {event.last.hex()}", (seen,))


class NoGap(Invariant[DeviceStateFrame]):
    """Sound: a gap is only said of a completed migration whose channels were all read to their ends.

    Misses: buffers missing from the end, whose indexes nothing surpasses: DS-6 misses the config buffer.
    """

    passport = Passport(
        "DS-10",
        "When the migration has completed, every index below a device's highest has come.",
        Severity.STALLS,
        qemu(_MULTIFD, "vfio_load_bufs_thread"),
        DEVICE,
        (Need.CHANNELS,),
    )
    kinds = (DeviceStateFrame,)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.seen = IndexSet(facts)
        self.last: Seen | None = None

    def on(self, seen: Seen, event: DeviceStateFrame) -> Iterator[Finding]:
        if event.vfio is not None:
            self.seen.add(event.vfio.idx)
            self.last = seen
        return iter(())

    def at_end(self) -> Iterator[Finding]:
        if self.seen.overflowed:
            self.unknown = "too many buffers came out of order to tell"
        elif self.complete and self.seen.gap is not None and self.last is not None:
            yield Finding(f"buffer {self.seen.gap} is missing", (self.last,))


class MainChannelShape(Invariant[SectionItem | VfioItem | FooterItem]):
    """Sound: the shapes are those of 10.0 to 11.1 for a device on or off multifd; that a device is on it
    follows from any packet of it, that it is not only from channels read whole.

    Misses: a device whose set-up says otherwise: DS-12.
    """

    passport = Passport(
        "DS-11",
        "The tags in a VFIO section of the main channel are those that belong into such a section of a "
        "device with, or without, multifd transfer.",
        Severity.ABORTS,
        qemu("hw/vfio/migration.c", "vfio_load_state, vfio_save_state"),
        MIGRATION,
        (Need.MAIN,),
    )
    kinds = (SectionItem, VfioItem, FooterItem)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.device = ""
        self.tags: list[int] = []
        self.multifd_only: dict[str, Seen] = {}  # first section that a device not on multifd cannot have
        self.main_only: dict[str, Seen] = {}  # and the first that one on multifd cannot have

    def on(self, seen: Seen, event: SectionItem | VfioItem | FooterItem) -> Iterator[Finding]:
        if isinstance(event, SectionItem):
            self.device = device_name(event.idstr, event.instance_id) if is_vfio(event.idstr) else ""
            self.tags = []
        elif type(event) is VfioItem:
            # A run of data blocks counts as one, so that the list stays short.
            if len(self.tags) < 2 or (self.tags[-1] != event.tag and len(self.tags) < _TAGS_MAX):
                self.tags.append(event.tag)
        elif self.device:
            multifd, main = _SHAPES[event.tag]
            tags = tuple(self.tags)
            if tags not in multifd and tags not in main:
                names = ", ".join(VfioTag(tag).name for tag in tags[:6])
                yield Finding(f"{self.device} has {names or 'nothing'} in {Tag(event.tag).name}", (seen,))
            elif tags not in multifd and len(self.main_only) < _DEVICES_MAX:
                self.main_only.setdefault(self.device, seen)
            elif tags not in main and len(self.multifd_only) < _DEVICES_MAX:
                self.multifd_only.setdefault(self.device, seen)

    def at_end(self) -> Iterator[Finding]:
        for device, seen in self.main_only.items():
            if device in self.facts.images and self.facts.images[device].index_last is not None:
                yield Finding(f"{device} has state on the main channel beside multifd", (seen,))
        if not self.complete or (self.facts.channels and not self.facts.channels_whole):
            return
        for device, seen in self.multifd_only.items():
            image = self.facts.images.get(device)
            if image is None or image.index_last is None:
                yield Finding(f"{device} sends no config state, on the main channel or over multifd", (seen,))


# For each section: what a device on multifd may have in it, and what one that is not.
_SETUP_SHAPE = frozenset(((_SETUP, _END),))
_PART_SHAPES = frozenset(((_END,), (_SENT,), (_DATA, _END), (_DATA, _SENT)))
_SHAPES: dict[int, tuple[frozenset[tuple[int, ...]], frozenset[tuple[int, ...]]]] = {
    Tag.SECTION_START: (_SETUP_SHAPE, _SETUP_SHAPE),
    Tag.SECTION_PART: (_PART_SHAPES, _PART_SHAPES),
    Tag.SECTION_END: (
        frozenset(((_END,),)),
        frozenset(((_END,), (_DATA, _END), (_DATA, _DATA, _END))),
    ),
    Tag.SECTION_FULL: (frozenset(((_END,), (_READY,))), frozenset(((_CONFIG, _END),))),
}

ORDERING = (
    DeviceStateAllowed,
    DeviceKnown,
    VfioHeader,
    VfioFlags,
    IndexOnce,
    ConfigLast,
    IndexRises,
    ConfigMarks,
    NoGap,
    MainChannelShape,
)
