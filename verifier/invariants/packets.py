# SPDX-License-Identifier: GPL-2.0-or-later
"""MP: what stands in the head of a multifd packet, and the page data after it."""

from __future__ import annotations

from collections.abc import Iterator

from mockdev.wire.frames import DeviceStateFrame, RamFrame
from mockdev.wire.structs import (
    COMPRESSION_MASK,
    MULTIFD_FLAGS_KNOWN,
    MULTIFD_PACKET_BYTES,
    PAGE_BYTES,
    MultifdFlag,
)
from verifier.history.facts import Facts
from verifier.history.observation import PagesDone, Seen, text
from verifier.invariants.indexes import IndexSet
from verifier.invariants.passport import (
    CHANNEL,
    MIGRATION,
    Finding,
    Invariant,
    Need,
    Passport,
    Severity,
    qemu,
)

_PAGES = MULTIFD_PACKET_BYTES // PAGE_BYTES
_COMPRESSED_MAX = 1 << 20
_NAMES_MAX = 4096
_SYNC = MultifdFlag.SYNC
_ALONE = int(MultifdFlag.SYNC | MultifdFlag.DEVICE_STATE)
_NO_NAME = bytes(256)
_UNUSED = bytes(24)
# Plain numbers: they are looked at for every packet.
_KNOWN = int(MULTIFD_FLAGS_KNOWN)
_DEVICE_STATE = int(MultifdFlag.DEVICE_STATE)


def may_precede_nine(facts: Facts) -> str:
    """Why a SYNC with pages may be rightly so, as releases before 9.0 send it; "" when it may not.

    A machine type since 9.0 is known to no such release.
    """
    if facts.dialect is not None and not facts.dialect.name.startswith("8."):
        return ""
    return "the source may be older than 9.0, which sends SYNC together with pages"


class Flags(Invariant[RamFrame | DeviceStateFrame]):
    """Sound: the known flags are those of 11.1; DEVICE_STATE packets stand alone wherever they exist, and
    SYNC beside a compression method is left unknown where the machine type allows a source older than 9.0,
    which sends both at once.

    Misses: a flag that is known and not true of the packet; MP-10 inflates, MP-13 looks into SYNC packets.
    """

    passport = Passport(
        "MP-2",
        "A packet's flags are known ones, and SYNC or DEVICE_STATE is not combined with any other.",
        Severity.ABORTS,
        qemu("migration/multifd.c", "multifd_recv_thread"),
        CHANNEL,
    )
    kinds = (RamFrame, DeviceStateFrame)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.sync: Finding | None = None  # beside a compression method

    def on(self, seen: Seen, event: RamFrame | DeviceStateFrame) -> Iterator[Finding]:
        flags = event.head.flags
        if flags & (flags - 1) == 0 and flags & _KNOWN == flags:
            return
        if flags & _KNOWN != flags:
            yield Finding(f"flags {flags:#x} have unknown bits", (seen,))
        elif flags & _ALONE:
            finding = Finding(f"flags {flags:#x} combine what stands alone", (seen,))
            if flags & _DEVICE_STATE:
                yield finding
            else:
                self.sync = self.sync or finding

    def at_end(self) -> Iterator[Finding]:
        if self.sync is not None:
            self.unknown = may_precede_nine(self.facts)
            if not self.unknown:
                yield self.sync


class OneCompression(Invariant[RamFrame]):
    """Sound: the method is a parameter of the whole migration that cannot change during it; SYNC packets,
    which name none, are passed over.

    Misses: a method that both ends did not agree on, which the target refuses, and one of which no packet has
    data (then unknown).
    """

    passport = Passport(
        "MP-3",
        "All RAM packets of a migration name one and the same compression method: none, or one of the known.",
        Severity.ABORTS,
        qemu(
            "migration/multifd-nocomp.c, migration/multifd-zlib.c, migration/multifd-zstd.c",
            "multifd_nocomp_recv, multifd_zlib_recv, multifd_zstd_recv",
        ),
        MIGRATION,
        (Need.CHANNELS,),
    )
    kinds = (RamFrame,)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.first: Seen | None = None
        self.method = 0
        self.with_data = False

    def on(self, seen: Seen, event: RamFrame) -> Iterator[Finding]:
        flags = event.head.flags
        if flags & _SYNC:
            return
        method = flags & COMPRESSION_MASK
        self.with_data |= event.head.normal_pages > 0
        if self.first is None:
            self.first, self.method = seen, method
            if method & (method - 1):
                yield Finding(f"compression bits {method:#x} name no method", (seen,))
        elif method != self.method:
            yield Finding(f"compression bits {method:#x} after {self.method:#x}", (self.first, seen))

    def at_end(self) -> Iterator[Finding]:
        if self.method and not self.with_data:
            self.unknown = "no packet has page data, so its method is only a claim"
        return iter(())


class PagesAlloc(Invariant[RamFrame]):
    """Sound: the table of offsets has 128 places on every target with 4 KiB pages; that a SYNC says 0 is only
    demanded where the machine type is too new for a source older than 9.0.

    Misses: targets with other page sizes, which are not read at all.
    """

    passport = Passport(
        "MP-4",
        "pages_alloc of a RAM packet is the number of pages that a packet has room for (128 of 4 KiB); of a "
        "SYNC packet of a source since 9.0 it is 0.",
        Severity.ABORTS,
        qemu("migration/multifd-nocomp.c", "multifd_ram_fill_packet"),
        CHANNEL,
    )
    kinds = (RamFrame,)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.sync: Finding | None = None

    def on(self, seen: Seen, event: RamFrame) -> Iterator[Finding]:
        sync = event.head.flags & _SYNC
        wanted = 0 if sync else _PAGES
        if event.head.pages_alloc == wanted:
            return
        finding = Finding(f"pages_alloc {event.head.pages_alloc}, not {wanted}", (seen,))
        if not sync:
            yield finding
        elif self.sync is None:
            self.sync = finding

    def at_end(self) -> Iterator[Finding]:
        if self.sync is not None:
            self.unknown = may_precede_nine(self.facts)
            if not self.unknown:
                yield self.sync


class PageCounts(Invariant[RamFrame]):
    """Sound: no release sends a packet without pages that is not a SYNC, and none can send more than its
    table holds.

    Misses: counts that are possible and not those of the payload: MP-9.
    """

    passport = Passport(
        "MP-5",
        "A RAM packet other than SYNC has at least one page, and at most as many as its table of offsets "
        "takes.",
        Severity.ABORTS,
        qemu("migration/multifd-nocomp.c", "multifd_ram_unfill_packet"),
        CHANNEL,
    )
    kinds = (RamFrame,)

    def on(self, seen: Seen, event: RamFrame) -> Iterator[Finding]:
        head = event.head
        if not head.flags & _SYNC and not 1 <= head.normal_pages + head.zero_pages <= _PAGES:
            yield Finding(f"{head.normal_pages} normal and {head.zero_pages} zero pages", (seen,))


class BlockName(Invariant[RamFrame]):
    """Sound: names are compared with the list in the same stream, read whole; 4,096 different names are kept.

    Misses: a packet under the name of the wrong block that exists; EQ-7 compares the guest's RAM.
    """

    passport = Passport(
        "MP-6",
        "The block name of a RAM packet ends with a NUL, is padded with NULs, and is in the stream's list "
        "of RAM blocks.",
        Severity.ABORTS,
        qemu("migration/multifd-nocomp.c", "multifd_ram_unfill_packet"),
        MIGRATION,
        (Need.MAIN,),
    )
    kinds = (RamFrame,)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.names: dict[bytes, Seen] = {}

    def on(self, seen: Seen, event: RamFrame) -> Iterator[Finding]:
        field = event.head.ramblock
        if event.head.flags & _SYNC or field in self.names:
            return
        if field[field.find(b"\0") :].strip(b"\0"):  # of one without a NUL, its last byte
            yield Finding("the block name is not padded with zeros", (seen,))
        if len(self.names) < _NAMES_MAX:
            self.names[field] = seen

    def at_end(self) -> Iterator[Finding]:
        blocks = self.facts.blocks
        for field, seen in self.names.items() if blocks else ():
            if text(field) not in blocks:
                yield Finding(f"there is no RAM block {text(field)!r}", (seen,))


class PageOffsets(Invariant[RamFrame]):
    """Sound: block lengths are those of the stream's own list; alignment is judged for the 4 KiB pages of the
    supported targets.

    Misses: an offset that is possible and not the page's: EQ-7 compares the guest's RAM.
    """

    passport = Passport(
        "MP-7",
        "Each page offset of a RAM packet is a multiple of the page size, and the page lies inside its "
        "block.",
        Severity.CORRUPTS,
        qemu("migration/multifd-nocomp.c", "multifd_ram_unfill_packet"),
        MIGRATION,
        (Need.MAIN,),
    )
    kinds = (RamFrame,)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.highest: dict[bytes, tuple[int, Seen]] = {}

    def on(self, seen: Seen, event: RamFrame) -> Iterator[Finding]:
        offsets = event.normal + event.zero
        if not offsets or event.head.flags & _SYNC:
            return
        if any(offset & (PAGE_BYTES - 1) for offset in offsets):
            yield Finding("a page offset is not a multiple of the page size", (seen,))
        last, block = max(offsets), event.head.ramblock
        known = self.highest.get(block)
        if (known is None and len(self.highest) < _NAMES_MAX) or (known is not None and known[0] < last):
            self.highest[block] = last, seen

    def at_end(self) -> Iterator[Finding]:
        for block, (offset, seen) in self.highest.items():
            length = self.facts.blocks.get(text(block))
            if length is not None and offset > length - PAGE_BYTES:
                yield Finding(f"page {offset:#x} of {text(block)!r}, which has {length:#x} bytes", (seen,))


class DataSize(Invariant[RamFrame]):
    """Sound: without compression the payload is the pages and nothing else; the bound of 1 MiB is the receive
    buffer of zlib and zstd, and SYNC packets are passed over.

    Misses: a compressed size that is possible and wrong: MP-10 inflates it.
    """

    passport = Passport(
        "MP-9",
        "next_packet_size of a RAM packet is 0 without normal pages, the size of these pages when they are "
        "not compressed, and between 1 byte and 1 MiB when they are.",
        Severity.CORRUPTS,
        qemu(
            "migration/multifd-nocomp.c, migration/multifd-zlib.c",
            "multifd_send_prepare_iovs, multifd_send_prepare_common, multifd_zlib_recv_setup",
        ),
        CHANNEL,
    )
    kinds = (RamFrame,)

    def on(self, seen: Seen, event: RamFrame) -> Iterator[Finding]:
        head = event.head
        if head.flags & _SYNC:
            return
        size, pages = head.next_packet_size, head.normal_pages
        if head.flags & COMPRESSION_MASK and pages:
            if not 0 < size <= _COMPRESSED_MAX:
                yield Finding(f"{size} bytes of compressed data", (seen,))
        elif size != pages * PAGE_BYTES:
            yield Finding(f"next_packet_size {size} with {pages} pages of data", (seen,))


class DataInflates(Invariant[PagesDone]):
    """Sound: the judge inflates with the same libraries, from the channel's first packet on; after a hole, or
    with hardware methods, it is unknown.

    Misses: page contents that are wrong and well compressed: EQ-7.
    """

    passport = Passport(
        "MP-10",
        "Compressed page data continues the channel's one zlib or zstd stream and inflates to exactly the "
        "normal pages of its packet.",
        Severity.ABORTS,
        qemu("migration/multifd-zlib.c, migration/multifd-zstd.c", "multifd_zlib_recv, multifd_zstd_recv"),
        CHANNEL,
    )
    kinds = (PagesDone,)

    def on(self, seen: Seen, event: PagesDone) -> Iterator[Finding]:
        if event.got < 0:
            self.unknown = "its page data cannot be inflated here (a hole before it, or hardware compression)"
        elif event.problem:
            yield Finding(f"page data of {event.expected} bytes: {event.problem}", (seen,))


class Reserved(Invariant[RamFrame]):
    """Sound: a source fills in a cleared head, and no release gives these fields a meaning.

    Misses: what follows the head (MP-9); of the head, every field without a meaning is looked at.
    """

    passport = Passport(
        "MP-11",
        "Reserved fields and unused places of the offset table of a RAM packet are zero.",
        Severity.SLOWS,
        qemu("migration/multifd.c", "multifd_send_fill_packet"),
        CHANNEL,
    )
    kinds = (RamFrame,)

    def on(self, seen: Seen, event: RamFrame) -> Iterator[Finding]:
        head = event.head
        if head.unused32 or head.unused64 != _UNUSED:
            yield Finding("a reserved field is set", (seen,))
        elif any(event.unused):
            yield Finding("an unused place of the offset table is set", (seen,))


class PacketNumbers(Invariant[RamFrame]):
    """Sound: one counter numbers all channels since 9.0; only a completed migration whose channels were all
    read can lack one, and a machine type that older sources know leaves it unknown.

    Misses: a packet that was lost from the end, whose number was the highest: RS-8 counts SYNCs, TR-3
    compares with the source's trace.
    """

    passport = Passport(
        "MP-12",
        "The n RAM and SYNC packets of a migration, over all its channels, are numbered 0 to n-1, each "
        "number once.",
        Severity.CORRUPTS,
        qemu("migration/multifd.c", "multifd_send_fill_packet"),
        MIGRATION,
        (Need.CHANNELS,),
    )
    kinds = (RamFrame,)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.numbers = IndexSet(facts)
        self.last: Seen | None = None
        self.old = False

    def on(self, seen: Seen, event: RamFrame) -> Iterator[Finding]:
        self.last = seen
        self.old |= event.head.pages_alloc > 0 and event.head.flags & _SYNC > 0
        if not self.numbers.add(event.head.packet_num):
            yield Finding(f"packet number {event.head.packet_num} comes twice", (seen,))

    def at_end(self) -> Iterator[Finding]:
        if self.numbers.overflowed:
            self.unknown = "too many packet numbers came out of order to tell"
        elif self.complete and self.numbers.gap is not None and self.last is not None:
            if self.old:
                self.unknown = may_precede_nine(self.facts)
            if self.unknown:
                return
            yield Finding(f"packet number {self.numbers.gap} is missing", (self.last,))


class PacketNumberOrder(Invariant[RamFrame]):
    """Sound: a channel's thread takes the number as it sends, so within one connection they can only rise;
    those of sources before 9.0, which number centrally, rise as well.

    Misses: an order among channels: RS-10.
    """

    passport = Passport(
        "MP-16",
        "The packet numbers on one channel rise.",
        Severity.SLOWS,
        qemu("migration/multifd.c", "multifd_send_fill_packet"),
        CHANNEL,
    )
    kinds = (RamFrame,)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.last: Seen | None = None
        self.number = -1

    def on(self, seen: Seen, event: RamFrame) -> Iterator[Finding]:
        number = event.head.packet_num
        if number <= self.number and self.last is not None:
            yield Finding(f"packet {number} after packet {self.number}", (self.last, seen))
        self.last, self.number = seen, number


class SyncEmpty(Invariant[RamFrame]):
    """Sound: since 9.0 a SYNC is a packet of its own; where the machine type allows an older source it is
    unknown.

    Misses: a filled SYNC under a machine type that older sources know, though the source was a new one; TR-3
    and the source's trace tell its release.
    """

    passport = Passport(
        "MP-13",
        "A SYNC packet of a source since 9.0 carries no pages, no data and no block name.",
        Severity.CORRUPTS,
        qemu("migration/multifd.c", "multifd_send_thread", "9.0"),
        CHANNEL,
    )
    kinds = (RamFrame,)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.filled: Seen | None = None

    def on(self, seen: Seen, event: RamFrame) -> Iterator[Finding]:
        head = event.head
        if not head.flags & _SYNC or self.filled is not None:
            return iter(())
        if head.normal_pages or head.zero_pages or head.next_packet_size or head.ramblock != _NO_NAME:
            self.filled = seen
        return iter(())

    def at_end(self) -> Iterator[Finding]:
        if self.filled is not None:
            self.unknown = may_precede_nine(self.facts)
            if not self.unknown:
                yield Finding("a SYNC packet is not empty", (self.filled,))


PACKETS = (
    Flags,
    OneCompression,
    PagesAlloc,
    PageCounts,
    BlockName,
    PageOffsets,
    DataSize,
    DataInflates,
    Reserved,
    PacketNumbers,
    PacketNumberOrder,
    SyncEmpty,
)
